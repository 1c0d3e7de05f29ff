"""`LayerTests`: what holds of every layer type. This library's are rows of a table; a user's is a subclass."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..convert import tie_, untie_
from ..layers.layer import Untied, untied_layers
from ..layers.oracle import connecting, straight_through
from ..recording import listening, record
from ..rules.call import Call
from .readable import PROGRESS, assert_close, assert_R_is_readable

__all__ = ["LayerTests"]


class LayerTests:
    """Tests that a layer type of one's own inherits, after `untied.register_layer`.

    Attributes:
        rules: texts of the rules whose R is compared on it.

    >>> class TestLinear(LayerTests):
    ...     def layer(self):
    ...         return torch.nn.Linear(4, 3)
    ...     def inputs(self):
    ...         return (torch.randn(5, 4),)
    >>> TestLinear().test_the_three_functions_are_one_linear_map()
    """

    rules: ClassVar[tuple[str, ...]] = ("sa", "wm", "ia", "aa", "wm(decay=balanced)")

    # What it is

    def layer(self) -> nn.Module:
        """A plain layer with fresh weights."""
        raise NotImplementedError(f"{type(self).__name__}.layer: give a plain layer")

    def inputs(self) -> tuple[Any, ...]:
        """The arguments of its forward pass; tensors of numbers among them get gradients."""
        raise NotImplementedError(f"{type(self).__name__}.inputs: give what it is called with")

    def call(self) -> dict[str, Any]:
        """Further arguments, by name."""
        return {}

    # Conversion

    def test_the_output_is_the_plain_layers(self) -> None:
        """To the last bit, in both precisions."""
        for dtype in (torch.float64, torch.float32):
            plain, inputs = self._plain(dtype)
            layer, _ = self._untied("fa", dtype=dtype)
            ours, theirs = _tensor(self._run(layer, inputs)), _tensor(self._run(plain, inputs))
            assert torch.equal(ours, theirs), f"another output in {dtype}"

    def test_conversion_and_back(self) -> None:
        """`tie_` undoes `untie_`, and leaves no trace."""
        plain, _ = self._plain()
        kind, state, own = type(plain), copy.deepcopy(plain.state_dict()), set(plain.__dict__)
        untie_(plain, "sa")
        assert isinstance(plain, kind) and isinstance(plain, Untied)
        kernels = plain.own_weights()
        assert kernels, f"{kind.__name__} has no kernel: name them in the class attribute weights"
        assert len(set(plain.state_dict()) - set(state)) == len(kernels)
        tie_(plain)
        assert type(plain) is kind and set(plain.__dict__) == own
        assert list(plain.state_dict()) == list(state)
        assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), state.values(), strict=True))

    def test_copies_and_states(self) -> None:
        """A deepcopy and a loaded state carry B."""
        layer, inputs = self._untied("sa")
        twin = copy.deepcopy(layer)
        torch.manual_seed(9)
        other = self.layer().double()
        untie_(other, "sa")
        other.load_state_dict(layer.state_dict())
        wanted = self._gradients(layer, inputs)
        for copied in (twin, other):
            for a, b in zip(wanted, self._gradients(copied, inputs), strict=True):
                assert a is b is None or torch.equal(a, b)  # type: ignore[arg-type]

    # What it computes

    def test_errors_go_through_B(self) -> None:
        """All gradients against `untied.layers.oracle.straight_through`, which shares nothing with the layer's code."""
        layer, inputs = self._untied("kp")
        ours = self._gradients(layer, inputs)
        with connecting(untied_layers(layer), straight_through):
            oracles = self._gradients(layer, inputs)
        names = ["input"] * len(_floats(inputs)) + [n for n, _ in layer.named_parameters()]
        for name, a, b in zip(names, ours, oracles, strict=True):
            assert (a is None) == (b is None), name
            if a is not None and b is not None:
                assert_close(a, b, f"gradient in {name}")

    def test_with_B_equal_to_W_it_is_backpropagation(self) -> None:
        """The plain layer's own gradients."""
        plain, inputs = self._plain()
        layer, _ = self._untied("fa", init="copy")
        theirs = self._gradients(plain, inputs)
        ours = self._gradients(layer, inputs)
        count = len(_floats(inputs))
        mine = dict(zip([n for n, _ in layer.named_parameters()], ours[count:], strict=True))
        for (name, _), wanted in zip(plain.named_parameters(), theirs[count:], strict=True):
            if wanted is not None:
                assert_close(mine[name], wanted, f"gradient in {name}")
        for a, b in zip(ours[:count], theirs[:count], strict=True):
            assert_close(a, b, "gradient in the input")

    def test_the_three_functions_are_one_linear_map(self) -> None:
        """`reconstruct` and `correlate` are the derivatives of `project`, and <T x, y> = <x, T* y> = <K, correlate>."""
        for call in self._calls("fa"):
            g, x = call.geometry, call.x.detach().requires_grad_()
            K = torch.randn_like(call.W).requires_grad_()
            projected = g.project(x, K)
            y = torch.randn_like(projected)
            back, product = g.reconstruct(y, K.detach(), like=x.detach()), g.correlate(x.detach(), y)
            by_x, by_K = torch.autograd.grad(projected, (x, K), y)
            kind = type(g).__name__
            assert_close(back, by_x, f"{kind}.reconstruct")
            assert_close(product, by_K, f"{kind}.correlate")
            total = (projected.detach() * y).sum()
            torch.testing.assert_close((x.detach() * back).sum(), total)
            torch.testing.assert_close((K.detach() * product).sum(), total)

    def test_R_is_its_readable_penalty(self) -> None:
        """Under each of ``rules``."""
        for rule in self.rules:
            layer, inputs = self._untied(rule)
            assert_R_is_readable(layer, lambda m, inputs=inputs: self._run(m, inputs), type(layer).__name__)  # type: ignore[arg-type, misc]

    def test_every_B_moves(self) -> None:
        """A step of R alone moves each B, and nothing else."""
        layer, inputs = self._untied("sa")
        before = {n: p.detach().clone() for n, p in layer.named_parameters()}
        with record(layer) as tape:
            self._run(layer, inputs)
        tape.penalty().backward()
        torch.optim.SGD(layer.parameters(), 0.1).step()
        moved = {n for n, p in layer.named_parameters() if not torch.equal(p, before[n])}
        kept = {id(B) for of in untied_layers(layer).values() for B in of.backward_parameters()}
        assert moved == {n for n, p in layer.named_parameters() if id(p) in kept}

    # Within

    def _plain(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        layer = self.layer().to(dtype)
        return layer, tuple(_given(i, dtype) for i in self.inputs())

    def _untied(
        self, rule: str, init: str = "like", dtype: torch.dtype = torch.float64
    ) -> tuple[nn.Module, tuple[Any, ...]]:
        layer, inputs = self._plain(dtype)
        untie_(layer, rule, init=init)
        return layer, inputs

    def _run(self, layer: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return layer(*inputs, **self.call())

    def _gradients(self, layer: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor | None]:
        """Of the output times a fixed tensor, in the inputs and in every parameter."""
        y = _tensor(self._recorded(layer, inputs))
        error = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(4))
        wanted = [*_floats(inputs), *(p for p in layer.parameters() if p.requires_grad)]
        found = iter(torch.autograd.grad(y, wanted, error, allow_unused=True))
        given = [next(found) for _ in _floats(inputs)]
        return given + [next(found) if p.requires_grad else None for p in layer.parameters()]

    def _recorded(self, layer: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if not untied_layers(layer):
            return self._run(layer, inputs)
        with record(layer, progress=PROGRESS, step=0, align=False):
            return self._run(layer, inputs)

    def _calls(self, rule: str) -> list[Call]:
        layer, inputs = self._untied(rule)
        heard: list[Call] = []

        class Listening:
            def note(self, call: Call) -> None:
                heard.append(call)

        with listening(untied_layers(layer), Listening()):
            self._run(layer, inputs)
        assert heard, f"{type(layer).__name__} never calls connect: write its forward with it, or give it geometry()"
        return heard


def _given(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().to(dtype).requires_grad_()
    return value


def _floats(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [i for i in inputs if isinstance(i, Tensor) and i.requires_grad]


def _tensor(output: Any) -> Tensor:
    """The output, or the first tensor of one that is several."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output
