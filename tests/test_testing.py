"""The batteries of `untied.testing`: this library's own rules and layers inherit them, and what is wrong is caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untied
from cases import LAYERS, ONE_OF_EACH_KIND, ROUTED, RULES, LayerCase, RuleCase, build
from test_flops import MODELS
from untied.testing import LayerTests, RuleTests

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's own, from the plain layer


class TestEveryRule(RuleTests):
    @pytest.fixture(autouse=True, params=[*RULES, *ROUTED], ids=lambda case: case.text)
    def row(self, request: pytest.FixtureRequest) -> None:
        case: RuleCase = request.param
        self.rule, self.local, self.scales = case.text, case.local, case.scales  # type: ignore[misc]
        self.adds_up = not (case.over_batch or case.random)
        self.promises_cost = case.products is not None

    def layers(self) -> Iterator[tuple[str, nn.Module, Callable[[nn.Module], Tensor]]]:
        for case in LAYERS:
            if case.name in ONE_OF_EACH_KIND:
                layer, x = build(case)
                yield case.name, layer, lambda m, x=x, call=case.call: m(x, **call)

    def costed(self) -> Iterator[tuple[str, nn.Module, Tensor]]:
        for name, (make, shape) in MODELS.items():
            yield name, make(), torch.randn(shape)


class TestEveryLayer(LayerTests):
    @pytest.fixture(autouse=True, params=LAYERS, ids=lambda case: case.name)
    def row(self, request: pytest.FixtureRequest) -> None:
        self.case: LayerCase = request.param

    def layer(self) -> nn.Module:
        return self.case.make()

    def inputs(self) -> tuple[Any, ...]:
        return (torch.randn(self.case.input),)

    def call(self) -> dict[str, Any]:
        return self.case.call


# What is wrong is caught


class Wrong(untied.primitives.Primitive):
    """Its gradient is half of what its penalty has."""

    name, degree, needs_data, formula, gradient_formula = "wrong", 2, False, "½‖B‖²", "B / 2"

    def penalty(self, s: untied.operations.Signals) -> Tensor:
        return s.B.square().sum() / 2

    def gradient(self, s: untied.operations.Signals) -> Tensor:
        return s.B / 2


class Leaky(untied.rules.Transport):
    """It sends errors through W and says that it is local."""

    name, local = "leaky", True

    def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
        return W

    def __str__(self) -> str:
        return "bp"


class Half(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / 2)


def test_a_wrong_gradient_a_wrong_text_and_a_wrong_claim_are_caught() -> None:
    class TestWrong(RuleTests):
        rule = untied.rules.as_rule(Wrong())

    with pytest.raises(AssertionError, match="gradient in B of R of dense under wrong"):
        TestWrong().test_R_is_its_readable_penalty()

    class TestLeaky(RuleTests):
        rule, local = Leaky(), False

    with pytest.raises(AssertionError, match="read as another rule"):
        TestLeaky().test_its_text_is_read_back()
    with pytest.raises(AssertionError):
        TestLeaky().test_it_is_as_local_as_is_said()
    with pytest.raises(AssertionError, match="has no rule"):
        RuleTests().test_its_text_is_read_back()


def test_a_wrong_layer_is_caught() -> None:
    @untied.register_layer(Half)
    class UntiedHalf(untied.Untied, Half):
        """It forgets to halve its input."""

        def forward(self, x: Tensor) -> Tensor:
            return self.connect(x, untied.geometry.DENSE)

    class TestHalf(LayerTests):
        def layer(self) -> nn.Module:
            return Half(4, 3)

        def inputs(self) -> tuple[Any, ...]:
            return (torch.randn(5, 4),)

    try:
        with pytest.raises(AssertionError, match="another output"):
            TestHalf().test_the_output_is_the_plain_layers()
        with pytest.raises(AssertionError, match="gradient in weight"):
            TestHalf().test_with_B_equal_to_W_it_is_backpropagation()
        TestHalf().test_the_three_functions_are_one_linear_map()
    finally:
        del untied.layers.LAYERS[Half]
