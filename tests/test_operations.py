"""The local operations, against an implementation written here in plain autograd, and the law of the noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import untied
from cases import LAYERS, LayerCase, by_kind_of_layer, signals
from untied.geometry import Geometry
from untied.operations import ACTIVATIONS, Operations, Signals, batch_centre, centre, codes_like, noise_like, normalise
from untied.primitives.primitive import PRIMITIVES
from untied.rules import Alignment

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's own, from the plain layer

SWITCHES: list[dict[str, Any]] = [
    {},
    {"centre_input": True, "normalise_input": True},
    {"forward_bias": True, "forward_activation": "tanh", "centre_forward_output": True},
    {"backward_bias": True},
    {"backward_activation": "tanh"},
    {"backward_bias": True, "backward_activation": "gelu", "forward_bias": True, "forward_activation": "gelu"},
    {"centre_backward_output": True},
    {"normalise_backward_output": True},
    {"centre_forward_output": True},
    {"normalise_forward_output": True},
    {"batch_centre_forward_output": True},
    {"batch_centre_backward_input": True, "normalise_backward_output": True},
    {"reverse": True},
    {"reverse": True, "normalise_backward_output": True, "backward_activation": "elu", "backward_bias": True},
    {"amp_on_reconstruction": True},
    {"amp_on_reconstruction": True, "reverse": True},
    {"amp_on_reconstruction": True, "centre_forward_output": True, "batch_centre_forward_output": True},
    {"update_forward": True},
    {"update_forward": True, "centre_input": True, "forward_bias": True, "normalise_backward_output": True},
    {"update_forward": True, "reverse": True, "amp_on_reconstruction": True},
]
switch_ids = [" ".join(f"{k}={v}" if isinstance(v, str) else k for k, v in s.items()) or "none" for s in SWITCHES]


def independent(
    project: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    W: Tensor,
    B: Tensor,
    bias: Tensor | None,
    c: dict[str, float],
    do: dict[str, Any],
) -> Tensor:
    """R of one layer, summed over the batch, as one would write it from Table 1 and the list of operations.

    ``project`` is the plain layer's own forward; the adjoint is autograd's.
    """

    def has(switch: str) -> bool:
        return bool(do.get(switch, False))

    def over_example(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        return torch.stack([f(one) for one in z])

    def minus_mean(z: Tensor) -> Tensor:
        return over_example(lambda one: one - one.mean(), z)

    def unit(z: Tensor) -> Tensor:
        return over_example(lambda one: (one - one.mean()) / (one - one.mean()).norm(), z)

    def adjoint(y: Tensor, K: Tensor) -> Tensor:
        z = torch.zeros_like(x, requires_grad=True)
        return torch.autograd.grad((project(z, K) * y).sum(), z, create_graph=True)[0]

    def shift(z: Tensor) -> Tensor:
        return z if bias is None else z + bias.reshape([-1] + [1] * (z.dim() - 2 if isinstance_conv else 0))

    isinstance_conv = W.dim() > 2
    if has("centre_input"):
        x = minus_mean(x)
    if has("normalise_input"):
        x = unit(x)
    raw_y = project(x, W)
    raw_p = project(x - x.mean(0) if has("batch_centre_backward_input") else x, B)
    if has("forward_bias"):
        raw_y = shift(raw_y)
    if has("backward_bias"):
        raw_p = shift(raw_p)
    if do.get("forward_activation"):
        raw_y = getattr(torch.nn.functional, do["forward_activation"])(raw_y)
    if do.get("backward_activation"):
        raw_p = getattr(torch.nn.functional, do["backward_activation"])(raw_p)

    def forward_operations(z: Tensor) -> Tensor:
        z = minus_mean(z) if has("centre_forward_output") else z
        z = unit(z) if has("normalise_forward_output") else z
        return z - z.mean(0) if has("batch_centre_forward_output") else z

    def backward_operations(z: Tensor) -> Tensor:
        z = minus_mean(z) if has("centre_backward_output") else z
        return unit(z) if has("normalise_backward_output") else z

    y, p = forward_operations(raw_y), backward_operations(raw_p)
    back = backward_operations(adjoint(raw_p, W)) if has("reverse") else forward_operations(adjoint(raw_y, B))
    R = c.get("decay", 0.0) * B.square().sum() / 2 - c.get("self", 0.0) * (B * W).sum()
    R = R - c.get("amp", 0.0) * ((x * back).sum() if has("amp_on_reconstruction") else (p * y).sum())
    R = R + c.get("null", 0.0) * back.square().sum() / 2 + c.get("sparse", 0.0) * p.square().sum() / 2
    if has("update_forward"):
        R = R + c.get("decay", 0.0) * W.square().sum() / 2 + c.get("sparse", 0.0) * y.square().sum() / 2
    return R


TOGETHER = dict(amp=1.0, decay=0.5, null=0.7, sparse=0.3, self=2.0)


@pytest.mark.parametrize("switches", SWITCHES, ids=switch_ids)
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_R_of_each_primitive_is_the_independent_one(primitive: str, switches: dict[str, Any]) -> None:
    for case in LAYERS:
        if case.name in ("linear-3d", "conv2d-stride-leaves-a-rest", "transposed2d-output-padding"):
            test_R_and_its_gradients_are_the_independent_ones(case, switches, {primitive: 1.3})


@by_kind_of_layer
@pytest.mark.parametrize("switches", SWITCHES, ids=switch_ids)
def test_R_and_its_gradients_are_the_independent_ones(
    case: LayerCase, switches: dict[str, Any], c: dict[str, float] = TOGETHER
) -> None:
    s = signals(case, **switches)
    if len(s.x) == 1 and switches.get("batch_centre_backward_input"):
        pytest.skip("a batch of one is centred to zero")
    plain = case.make().double()

    def project(x: Tensor, K: Tensor) -> Tensor:
        parameters = {"weight": K} | ({} if plain.bias is None else {"bias": torch.zeros_like(plain.bias)})
        return functional_call(plain, parameters, (x,), case.call)

    W, B = (k.clone().requires_grad_() for k in (s.W, s.B))
    x = s.x.clone().requires_grad_()  # so that the independent adjoint is differentiable
    wanted_R = independent(project, x, W, B, s.bias, c, switches)
    wanted = torch.autograd.grad(wanted_R, (B, W), allow_unused=True)

    rule = Alignment(c, **switches)
    now = rule.coefficients(None)
    R_data, dB_data, dW_data = rule.data_terms(s, now, 1.0)
    R_weights, dB_weights, dW_weights = rule.weight_terms(s.W, s.B, now)
    torch.testing.assert_close(R_data + R_weights, wanted_R.detach())
    torch.testing.assert_close(dB_data + dB_weights, torch.zeros_like(B) if wanted[0] is None else wanted[0])
    torch.testing.assert_close(rule.penalty(s), wanted_R.detach())
    if switches.get("update_forward"):
        dW = sum((d for d in (dW_data, dW_weights) if d is not None), start=torch.zeros_like(W))
        torch.testing.assert_close(dW, torch.zeros_like(W) if wanted[1] is None else wanted[1])
    else:
        assert dW_data is None and dW_weights is None


@pytest.mark.parametrize("switches", SWITCHES, ids=switch_ids)
def test_autograd_is_used_exactly_where_the_closed_form_does_not_hold(switches: dict[str, Any]) -> None:
    on_B = {"backward_bias", "backward_activation", "centre_backward_output", "normalise_backward_output", "reverse",
            "amp_on_reconstruction", "update_forward"}  # fmt: skip
    on_reconstruction = {"centre_forward_output", "normalise_forward_output", "batch_centre_forward_output"}
    for name in PRIMITIVES:
        expected = not on_B & switches.keys() and not (name == "null" and on_reconstruction & switches.keys())
        assert Alignment({name: 1.0}, **switches).has_closed_form == expected


def test_autograd_of_the_penalty_is_the_closed_form_where_both_hold() -> None:
    rule = Alignment(dict(amp=1.0, null=0.7, sparse=0.3))
    for case in LAYERS:
        s = signals(case)
        c = rule.coefficients(None)
        for a, b in zip(rule.data_terms(s, c, 0.25)[:2], rule._by_autograd(s, c, 0.25)[:2], strict=True):
            torch.testing.assert_close(a, b, msg=case.name)


# The operations themselves


def disturbed(geometry: Geometry, W: Tensor, B: Tensor) -> Geometry:
    """The same layer, in which T_B x and T_W* y come out wrong: what does not change with them needs neither."""

    def shifted(made: Callable[..., Tensor], kernel: Tensor) -> Callable[..., Tensor]:
        def wrong(z: Tensor, K: Tensor, **more: Any) -> Tensor:
            out = made(z, K, **more)
            return out + torch.linspace(1, 2, out.numel()).view_as(out) if torch.equal(K.detach(), kernel) else out

        return wrong

    other = copy.copy(geometry)
    object.__setattr__(other, "project", shifted(geometry.project, B))
    object.__setattr__(other, "reconstruct", shifted(geometry.reconstruct, W))
    return other


@pytest.mark.parametrize("switches", SWITCHES, ids=switch_ids)
def test_a_local_rule_needs_nothing_that_is_at_neither_end_of_its_synapse(switches: dict[str, Any]) -> None:
    """Section 2 of the paper, traced: x and T_W x are at hand, T_B* y arrives, and T_B x and T_W* y are nowhere."""
    s = signals(LayerCase("", lambda: nn.Linear(4, 3), (5, 4)), **switches)
    wrong = Signals(s.x, s.W, s.B, disturbed(s.geometry, s.W, s.B), s.operations, s.bias)
    for terms in ({"amp": 1.0}, {"null": 1.0}, {"amp": 1.0, "null": 0.5, "decay": 0.1}, {"amp": 1.0, "decay": 1.0}):
        rule = Alignment(terms, **switches)
        (_, dB, dW), (_, dB_wrong, dW_wrong) = (rule.data_terms(i, rule.coefficients(None), 1.0) for i in (s, wrong))
        needs = not torch.allclose(dB, dB_wrong) or (dW is not None and not torch.allclose(dW, dW_wrong))
        # Autograd carries R of null to W through T_B of the reconstruction, which no call here shows.
        hidden = bool(switches.get("update_forward"))
        if dB.norm() > 1e-9:  # the length of a unit vector has no gradient
            assert rule.local == (not needs and not hidden), rule


def test_centre_takes_each_examples_mean_away() -> None:
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert centre(x).flatten(1).mean(1).abs().max() < 1e-6
    torch.testing.assert_close(centre(x)[1], x[1] - x[1].mean())


def test_normalise_gives_each_example_length_one() -> None:
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalise(x).flatten(1).norm(dim=1), torch.ones(3))
    assert normalise(x).flatten(1).mean(1).abs().max() < 1e-6
    torch.testing.assert_close(normalise(5 * x + 3), normalise(x))


def test_an_example_without_variation_becomes_zero() -> None:
    x = torch.full((2, 5), 7.0, requires_grad=True)
    z = normalise(x)
    assert torch.equal(z, torch.zeros(2, 5))
    z.sum().backward()
    assert x.grad.isfinite().all()


def test_batch_centre_takes_the_batchs_mean_away() -> None:
    x = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0))
    assert batch_centre(x).mean(0).abs().max() < 1e-6


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_the_function_of_that_name(name: str) -> None:
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(ACTIVATIONS[name](x), getattr(F, name)(x))


def test_channels_last_stays_channels_last() -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for operation in (
        centre,
        batch_centre,
        lambda x: noise_like(x, "normal", 1.0),
        lambda x: noise_like(x, "uniform", 1.0),
    ):
        assert operation(x).is_contiguous(memory_format=torch.channels_last)


def test_normalising_channels_last_gives_the_same_numbers() -> None:
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(normalise(x.contiguous(memory_format=torch.channels_last)), normalise(x))


# The noise


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
def test_noise_has_mean_zero_and_its_standard_deviation(kind: str, std: float) -> None:
    """n = 400,000: the mean's standard error is std/632; the deviation's, at most std/894 (normal)."""
    torch.manual_seed(0)
    noise = noise_like(torch.empty(400, 1000), kind, std)
    n = noise.numel()
    assert abs(noise.mean().item()) < 5 * std / math.sqrt(n)
    assert abs(noise.std().item() - std) < 5 * std / math.sqrt(2 * n)
    kurtosis = (noise / std).pow(4).mean().item()
    assert abs(kurtosis - {"normal": 3.0, "uniform": 1.8}[kind]) < 0.1
    if kind == "uniform":
        assert noise.abs().max().item() <= std * math.sqrt(3)


@pytest.mark.parametrize("kind", ["normal", "uniform", "codes"])
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(2, 3, 3, padding=1), lambda: nn.ConvTranspose2d(2, 3, 3),
                                  lambda: nn.Linear(2, 3)], ids=["conv", "transposed", "linear"])  # fmt: skip
def test_weight_mirror_under_noise_sees_W_times_the_variance(make: Callable[[], nn.Module], kind: str) -> None:
    """E[amp's gradient] = −s² · positions · W at a tap that every position uses.

    n = 4,000 examples of 7×7 positions: a tap's relative error is about 1/√(n · positions) = 0.2 % for convolutions
    and 1.6 % for the dense layer, times the ratio of all taps' norm to this one's. Asked for are 2 % and 5 %.
    """
    torch.manual_seed(0)
    layer: Any = make()
    n, s, size = 4000, 0.7, 7
    untied.untie_(layer, f"align(amp=1, noise={kind}, noise_std={s})")
    is_linear = isinstance(layer, nn.Linear)
    with untied.record(layer) as tape:
        layer(torch.zeros((n, 2) if is_linear else (n, 2, size, size)))  # its own input does not matter
    tape.penalty().backward()
    gradient, W, positions = layer.backward_weight.grad, layer.weight.detach(), 1 if is_linear else size * size
    if not is_linear:  # the middle tap; the outer ones lose the positions beyond the border
        gradient, W = gradient[..., 1, 1], W[..., 1, 1]
    expected = -(s**2) * positions * W
    assert (gradient - expected).norm() < (0.05 if is_linear else 0.02) * expected.norm()


@pytest.mark.parametrize("shape, features", [((16, 8, 4, 4), 1), ((64, 40), -1), ((4, 16, 30), -1), ((2, 3, 128), 1)])
def test_codes_are_orthogonal_over_the_batch(shape: tuple[int, ...], features: int) -> None:
    """Examples times positions are a power of two here, and at least as many as there are features."""
    z = codes_like(torch.empty(shape, dtype=torch.float64), features, 0.7)
    assert z.shape == shape and z.abs().unique().tolist() == [0.7]
    flat = z.movedim(features, -1).flatten(0, -2)
    torch.testing.assert_close(flat.T @ flat / len(flat), 0.49 * torch.eye(flat.shape[1], dtype=torch.float64))
    assert not codes_like(z, features, 0.7).equal(z)


@pytest.mark.parametrize("m, count", [(5, 12), (12, 5), (1, 1), (1, 3), (3, 1)])
def test_codes_are_white_on_average_however_few(m: int, count: int) -> None:
    """The mean of 3,000 sample covariances is the identity: an entry's deviation is below 1 / sqrt(3,000 m)."""
    x = torch.zeros(m, count, dtype=torch.float64)
    drawn = [codes_like(x, -1, 1.0) for _ in range(3000)]
    mean = torch.stack([z.T @ z / m for z in drawn]).mean(0)
    assert (mean - torch.eye(count, dtype=torch.float64)).abs().max() < 5 / math.sqrt(3000 * m)
    assert torch.stack(drawn).mean((0, 1)).abs().max() < 5 / math.sqrt(3000 * m)


def test_codes_keep_dtype_and_memory_format() -> None:
    x = torch.empty(4, 8, 6, 6, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    z = codes_like(x, 1, 1.0)
    assert z.dtype == torch.bfloat16 and z.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("model", [nn.Linear(24, 5, bias=False), nn.Conv2d(24, 5, 1, bias=False)])
def test_balanced_weight_mirror_at_its_rest_has_no_variance_under_codes(model: nn.Module) -> None:
    """B = W stays, to rounding, where a kernel has one position and the batch is 32: independent noise moves it."""
    model = model.double()
    sizes = {}
    for noise in ("codes", "normal"):
        layer = copy.deepcopy(model)
        untied.untie_(layer, f"wm(decay=balanced, noise={noise}, positions=mean)", init="copy")
        with untied.record(layer) as tape:
            layer(
                torch.zeros(2, 16, 24).double() if isinstance(model, nn.Linear) else torch.zeros(2, 24, 4, 4).double()
            )
        tape.penalty().backward()
        B, W = layer.backward_weight, layer.weight.detach()
        sizes[noise] = float(B.grad.norm() / W.norm())  # type: ignore[union-attr, operator, arg-type]
    assert sizes["codes"] < 1e-12 and sizes["normal"] > 0.1


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "zeros"])
@pytest.mark.parametrize("same", [False, True], ids=["padding", "same"])
@pytest.mark.parametrize("noise", ["normal", "codes"])
def test_balanced_weight_mirror_rests_at_W_whatever_the_padding(mode: str, same: bool, noise: str) -> None:
    """R's mean gradient at B = W is 0, over 40,000 examples of small maps: its size is that of chance.

    An entry sums 17 products of inputs with deviation below √(1/40,000): 0.02 of W, where 0.06 is asked for. Noise
    drawn before the padding gives 0.2 to 2.
    """
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding="same" if same else 2 if mode != "zeros" else 1, padding_mode=mode).double()
    untied.untie_(layer, f"wm(decay=balanced, noise={noise}, positions=mean)", init="copy")
    with untied.record(layer) as tape:
        size = 2 if mode == "circular" else 3  # less than the kernel, so that a window meets its own copy
        layer(torch.zeros(40_000, 2, size, size).double())
    tape.penalty().backward()
    assert layer.backward_weight.grad.norm() < 0.06 * layer.weight.norm()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv2d(16, 5, 1, stride=2, bias=False), (4, 16, 4, 4)),
        (lambda: nn.Conv1d(16, 5, 1, stride=3, bias=False), (8, 16, 5)),
        (lambda: nn.Conv2d(32, 6, 1, stride=2, groups=2, bias=False), (8, 32, 3, 4)),
        (lambda: nn.Conv2d(16, 5, 1, stride=2, padding=2, padding_mode="reflect", bias=False), (2, 16, 4, 4)),
        (lambda: nn.ConvTranspose1d(16, 5, 1, stride=2, padding=2, bias=False), (8, 16, 6)),
    ],
    ids=["stride", "stride-with-a-rest", "groups", "reflect", "transposed-cropped"],
)
def test_codes_have_no_variance_over_the_positions_that_are_read(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """A stride leaves positions out. Those that a 1×1 kernel reads are a power of two with the batch."""
    torch.manual_seed(0)
    layer: Any = make().double()
    untied.untie_(layer, "wm(decay=balanced, noise=codes, positions=mean)", init="copy")
    with untied.record(layer) as tape:
        layer(torch.zeros(shape).double())
    tape.penalty().backward()
    assert layer.backward_weight.grad.norm() < 1e-12 * layer.weight.norm()


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_is_drawn_anew_at_each_step_from_the_global_generator(kind: str) -> None:
    layer = nn.Linear(4, 3)
    untied.untie_(layer, f"wm(noise={kind})")

    def gradient(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with untied.record(layer) as tape:
            layer(torch.ones(2, 4))
        return torch.autograd.grad(tape.penalty(), layer.backward_weight)[0]

    assert torch.equal(gradient(0), gradient(0))
    assert not torch.equal(gradient(0), gradient(1))


# What cannot be


@pytest.mark.parametrize(
    ("wrong", "possible"),
    [
        ({"noise": "pink"}, "normal, uniform, codes"),
        ({"noise_std": 0}, "above 0"),
        ({"noise_std": -1.0}, "above 0"),
        ({"noise_std": "much"}, "above 0"),
        ({"noise_std": float("nan")}, "above 0"),
        ({"forward_activation": "swish"}, "relu"),
        ({"backward_activation": "swish"}, "relu"),
        ({"centre_input": "yes"}, "true"),
        ({"reverse": 2}, "true"),
    ],
    ids=str,
)
def test_impossible_operations_are_refused(wrong: dict[str, Any], possible: str) -> None:
    with pytest.raises(untied.UntiedError, match=possible) as error:
        Operations(**wrong)
    message = str(error.value)
    assert "\n" not in message and str(next(iter(wrong.values()))) in message


def test_changed_lists_what_is_switched_on() -> None:
    assert Operations().changed() == {}
    assert Operations(noise="normal", reverse=True).changed() == {"noise": "normal", "reverse": True}
