"""The mirrored Kolen-Pollack rule: an exact copy under every optimizer, a mirror of the predicted variance."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import untied
from cases import LAYERS, LayerCase, build, by_layer, small_batch, small_net
from untied import UntiedError
from untied.layers.layer import untied_layers
from untied.rules import parse
from untied.rules.mirror import MirroredKolenPollack, measured, needed_patches

KERNELS = [c for c in LAYERS if c.name not in ("linear-1d", "linear-2d", "linear-3d", "conv1d-no-bias")]


def errors(model: nn.Module) -> dict[str, Tensor]:
    """E = B − W of every layer, as it is when B has followed W."""
    untied.metrics.weight_angles(model)  # brings B up to date
    found: dict[str, Any] = untied_layers(model)
    return {name: (layer.backward_weight - layer.weight).detach().clone() for name, layer in found.items()}


def train(model: nn.Module, optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int = 4) -> None:
    """Task steps in which the mirror rests, with what a user's loop may do: accumulation, clipping, a schedule."""
    moving = optimizer([p for p in model.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.LambdaLR(moving, lambda t: 1 / (1 + t))
    x, labels = small_batch()

    def closure() -> Tensor:
        moving.zero_grad()
        total = torch.zeros((), dtype=x.dtype)
        for part in (slice(0, 4), slice(4, 8)):
            with untied.record(model, align=False) as tape:
                task = nn.functional.cross_entropy(model(x[part]), labels[part]) / 2
            (task + tape.penalty()).backward()
            total = total + task.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return total

    for _ in range(steps):
        moving.step(closure)
        schedule.step()


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum, decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam, decay": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "adamax": lambda p: torch.optim.Adamax(p, 0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.1),
    "radam": lambda p: torch.optim.RAdam(p, 0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_task_step_changes_the_error(name: str) -> None:
    """Whatever W's optimizer makes of the gradient: decay, clipping, accumulation and a schedule included."""
    model = small_net("mkp")
    before, W = errors(model), copy.deepcopy(model.state_dict())
    train(model, OPTIMIZERS[name])
    assert not torch.equal(model.out.weight, W["out.weight"])
    after = errors(model)
    for layer, E in before.items():
        torch.testing.assert_close(after[layer], E, rtol=0, atol=1e-12)


def test_no_step_of_muon_changes_the_error() -> None:
    """Muon takes matrices alone, and orthogonalises them in bfloat16; another optimizer has the biases."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    untied.untie_(model, "mkp")
    before, W = errors(model), model[2].weight.detach().clone()
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizers = (
        torch.optim.Muon([p for p in moving if p.dim() == 2], 0.1, weight_decay=0.1),
        torch.optim.AdamW([p for p in moving if p.dim() != 2], 0.1),
    )
    for _ in range(5):
        with untied.record(model, align=False) as tape:
            task = nn.functional.cross_entropy(model(torch.randn(7, 6, dtype=torch.float64)), torch.arange(7) % 3)
        model.zero_grad()
        (task + tape.penalty()).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert (model[2].weight - W).norm() > 0.1
    after = errors(model)
    for layer, E in before.items():
        torch.testing.assert_close(after[layer], E, rtol=0, atol=1e-12)


def test_a_sharded_weight_is_refused() -> None:
    """FSDP's weights have the method full_tensor; the difference of W would be a shard's."""
    layer: Any = nn.Linear(3, 2)
    untied.untie_(layer, "mkp")
    layer.weight.full_tensor = None
    with pytest.raises(UntiedError, match=r"sharded.*use DDP"), untied.record(layer):
        pass


def test_the_copy_is_what_an_equal_optimizer_of_its_own_would_do() -> None:
    """The other exact way: `copy`, with B in W's optimizer and the same state. Without decay both leave E alone."""
    for make in (OPTIMIZERS["sgd"], lambda p: torch.optim.Adam(p, 0.01), lambda p: torch.optim.SGD(p, 0.1, 0.9)):
        results = []
        for rule in ("mkp", "copy"):
            torch.manual_seed(0)
            model = small_net(rule)
            torch.manual_seed(1)
            for layer in untied_layers(model).values():
                nn.init.normal_(layer.backward_weight)  # type: ignore[arg-type]
            optimizer = make([p for p in model.parameters() if p.requires_grad])
            x, labels = small_batch()
            for _ in range(4):
                optimizer.zero_grad()
                with untied.record(model, align=False):
                    nn.functional.cross_entropy(model(x), labels).backward()
                optimizer.step()
            results.append(errors(model) | dict(model.named_parameters()))
        for name, E in results[0].items():
            torch.testing.assert_close(results[1][name], E, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", KERNELS, ids=[c.name for c in KERNELS])
def test_lattice_measures_the_kernel_exactly(case: LayerCase) -> None:
    layer, _ = build(case)
    untied.untie_(layer, "mkp(noise=lattice)")
    module: Any = layer
    with untied.record(layer):
        pass
    torch.testing.assert_close(module.backward_weight.data, module.weight.data, rtol=1e-10, atol=1e-12)
    state = module.backward_heard.tolist()
    assert state[1] == needed_patches(module.geometry_of("weight").patch(module.weight)[2]) and state[2] == 1
    with torch.no_grad():
        module.weight.add_(1.0)
    with untied.record(layer):
        pass
    assert module.backward_heard.tolist()[2] == 1  # it rests
    torch.testing.assert_close(module.backward_weight.data, module.weight.data, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("noise", "patches", "excess"),
    [("normal", 32, 1.0), ("uniform", 32, -0.2), ("codes", 16, None), ("codes", 64, None)],
)
@pytest.mark.parametrize("name", ["linear-1d", "conv2d-padding", "conv2d-circular-groups", "transposed2d-stride"])
def test_a_measurement_is_unbiased_and_has_the_variance_that_shapes_say(
    name: str, noise: str, patches: int, excess: float | None
) -> None:
    layer, _ = build(next(c for c in LAYERS if c.name == name))
    untied.untie_(layer, "mkp")
    module: Any = layer
    W, geometry = module.weight.detach(), module.geometry_of("weight")
    fan_in, draws = geometry.patch(W)[2], 4000
    torch.manual_seed(0)
    drawn = torch.stack([measured(W, geometry, patches, noise) for _ in range(draws)])
    variance = (drawn - W).square().sum((*range(1, drawn.dim()),)).mean() / W.square().sum()
    scale = math.sqrt(fan_in / patches / draws)
    assert (drawn.mean(0) - W).norm() < 2 * max(scale, 1e-9) * W.norm()
    if excess is not None:
        assert float(variance) == pytest.approx((fan_in + excess) / patches, rel=0.05)
    elif patches >= needed_patches(fan_in):
        size = needed_patches(patches)
        assert size == patches and variance < 1e-20
    else:
        assert variance <= 1.05 * (fan_in - 1) / patches


def test_the_mirror_alone_follows_the_predicted_error() -> None:
    """300 evaluations of a layer whose W moves all the time: ‖E‖² / ‖W‖² = 1 / (1/P₀ + S/i), over 64 layers."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(20, 30) for _ in range(64)).double()
    untied.untie_(layers, "mkp(until=0)")
    x = torch.randn(10, 20, dtype=torch.float64)
    for t in range(300):
        with untied.record(layers):
            for layer in layers:
                layer(x)
        with torch.no_grad():
            for p in layers.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn_like(p))
        if t in (0, 1, 9, 99, 299):
            module: Any = layers[0]
            heard = module.backward_heard.tolist()
            assert heard[1] == 20 + 10 * t and heard[2] == t + 1  # the first has no batch to go by
            follows = [(layer.backward_weight - layer.backward_follows, layer.backward_follows) for layer in layers]
            ratio = sum(float(E.square().sum()) for E, _ in follows) / sum(float(W.square().sum()) for _, W in follows)
            if t == 0:
                assert ratio == pytest.approx(1 / (1 / 2 + heard[1] / 20), rel=0.1)
            else:  # later measurements are of a larger W, so the law holds with each one's own size
                assert ratio < 1 / (1 / 2 + heard[1] / 20) * 1.1


def test_noise_is_a_function_of_its_stream_and_leaves_random_numbers_alone() -> None:
    model = small_net("mkp")
    twin = copy.deepcopy(model)
    state = torch.get_rng_state()
    with untied.record(model):
        pass
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    with untied.record(twin):
        pass
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_a_run_that_is_saved_goes_on_bit_for_bit() -> None:
    def some(model: nn.Module, steps: range) -> None:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        for i in steps:
            x, labels = small_batch(8 - i)
            with untied.record(model):
                task = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            task.backward()
            optimizer.step()

    whole, first, second = small_net("mkp"), small_net("mkp"), small_net("mkp")
    first.load_state_dict(whole.state_dict())
    some(whole, range(6))
    some(first, range(3))
    second.load_state_dict(first.state_dict())
    some(second, range(3, 6))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_it_rests_and_what_it_then_costs() -> None:
    model = small_net("mkp(until=3)")
    x, labels = small_batch()
    for _ in range(6):
        with untied.record(model):
            nn.functional.cross_entropy(model(x), labels).backward()
        with torch.no_grad():
            model.out.weight.add_(0.1)
    counts = {n: v.tolist()[2] for n, v in model.state_dict().items() if n.endswith("heard")}
    assert counts == {"conv.backward_heard": 1, "grouped.backward_heard": 1, "hidden.backward_heard": 1,
                      "out.backward_heard": 3}  # fmt: skip  # only where W moved, and three times at most


def test_an_evaluation_costs_two_products_of_its_patches() -> None:
    """And a step in which the mirror rests costs backpropagation's three (tests/test_flops.py)."""
    model = nn.Linear(12, 7)
    untied.untie_(model, "mkp")
    with untied.record(model), torch.no_grad():
        model(torch.randn(32, 12))
        model.weight.add_(1.0)
    with FlopCounterMode(display=False) as counter, untied.record(model):
        pass
    assert counter.get_total_flops() == 2 * (2 * 32 * 12 * 7)


def test_every_needs_a_step() -> None:
    model = small_net("mkp(every=2, until=0)")
    with pytest.raises(UntiedError, match=r"every 2 steps.*step=i"), untied.record(model):
        pass
    for i in range(4):
        with torch.no_grad():
            model.out.weight.add_(0.1)
        with untied.record(model, step=i):
            pass
    assert model.out.backward_heard.tolist()[2] == 2  # type: ignore[operator]


def test_forgetting_is_a_floor_under_the_gain() -> None:
    layer: Any = nn.Linear(3, 3)
    untied.untie_(layer, "mkp(forget=1, until=0)")
    with untied.record(layer):
        pass
    once = layer.backward_weight.detach().clone()
    untied.mirror_(layer, 1)
    torch.manual_seed(0)
    assert not torch.equal(once, layer.backward_weight)
    stream, _, evaluations, _ = layer.backward_heard.tolist()
    torch.manual_seed((stream << 24) + evaluations - 1)
    wanted = measured(layer.weight.detach(), layer.geometry(), 3, "normal")
    torch.testing.assert_close(layer.backward_weight.data, wanted)


@pytest.mark.parametrize("rule", ["fa", "sa", "mkp", "mkp(noise=lattice)"])
def test_calibration_before_training(rule: str) -> None:
    model = small_net(rule)
    angles = untied.mirror_(model, batches=100)
    assert set(angles) == set(untied_layers(model)) and max(angles.values()) < (1e-5 if "lattice" in rule else 10)


def test_calibration_says_what_it_cannot_do() -> None:
    with pytest.raises(UntiedError, match="no layer of this model has a backward weight"):
        untied.mirror_(small_net("bp"))
    with pytest.raises(UntiedError, match="batches=0"):
        untied.mirror_(small_net("mkp"), batches=0)


@by_layer
def test_the_patch_of_a_layer_is_its_map_at_one_position(case: LayerCase) -> None:
    """T of a patch is linear in the kernel with the same number of outputs, and every weight is used once or more."""
    layer, _ = build(case)
    untied.untie_(layer, "fa")
    module: Any = layer
    W = module.weight.detach()
    bare, shape, fan_in = module.geometry_of("weight").patch(W)
    x = torch.randn(2, *shape, dtype=W.dtype)
    y = bare.project(x, W)
    torch.testing.assert_close((bare.correlate(x, y) * W).sum(), y.square().sum())
    ones = bare.project(torch.ones(1, *shape, dtype=W.dtype), torch.ones_like(W))
    assert torch.equal(ones, torch.full_like(ones, fan_in))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"noise": "white"}, "noise='white'"), ({"every": 0}, "every=0"), ({"until": -1}, "until=-1"),
     ({"forget": 2}, "forget=2"), ({"every": True}, "every=True")],
)  # fmt: skip
def test_impossible_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UntiedError, match=words):
        MirroredKolenPollack(**options)


def test_text() -> None:
    for text in ("mkp", "mkp(noise=lattice)", "mkp(noise=codes, every=2, until=0, forget=0.01)"):
        assert str(parse(text)) == text and parse(text) == parse(str(parse(text))) != parse("mkp(until=7)")


def test_gradients_are_backprops_once_B_is_W() -> None:
    """With a lattice, before the first step: the whole network's gradient, to rounding."""
    model, plain = small_net("mkp(noise=lattice)"), small_net()
    x, labels = small_batch()
    with untied.record(model) as tape:
        task = nn.functional.cross_entropy(model(x), labels)
    (task + tape.penalty()).backward()
    nn.functional.cross_entropy(plain(x), labels).backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, p.grad, rtol=1e-9, atol=1e-12)
