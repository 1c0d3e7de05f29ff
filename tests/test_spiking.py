"""Spiking units, the discontinuity at their threshold, and the rules that live on it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import untied
from cases import ESTIMATED, LAYERS, LayerCase, RuleCase, build, small_batch, small_net
from untied import UntiedError
from untied.geometry import DENSE
from untied.layers.layer import untied_layers
from untied.rules import RegressionDiscontinuity, counted_cost, parse
from untied.rules.mirror import MirroredKolenPollack, seeded
from untied.spiking import Neurons, Windows, estimate

DOUBLE = torch.float64
by_estimated = pytest.mark.parametrize("rule", ESTIMATED, ids=[c.text for c in ESTIMATED])
KINDS = ("linear-1d", "conv1d", "conv2d-groups", "conv2d-reflect", "conv3d", "transposed2d-groups-dilation")


# Units


def test_a_unit_under_constant_drive_fires_at_the_closed_forms_rate() -> None:
    """From 0 to θ takes τ ln(u∞ / (u∞ − θ)), rounded up to steps, and the refractory time stands before it."""
    for mean, refractory in ((1.2, 3.0), (2.0, 0.0), (5.0, 7.0)):
        neurons = Neurons(mean=mean, std=0.0, refractory=refractory, window=200.0, step=0.5)
        spikes = neurons.run(2, 4, DOUBLE).spikes
        climb = math.ceil(10.0 * math.log(mean / (mean - 1)) / 0.5) * 0.5
        assert (spikes - 200 / (climb + refractory)).abs().max() <= 1


def test_without_a_threshold_the_membrane_has_the_mean_and_std_that_were_asked_for() -> None:
    """The highest of one step per window is the membrane itself; shared noise is a correlation."""
    torch.manual_seed(0)
    neurons = Neurons(threshold=100.0, mean=0.6, std=0.3, window=1.0, refractory=0.0, shared=0.5)
    v = neurons.run(3, 80_000, DOUBLE).drive
    assert v.mean().item() == pytest.approx(0.6, abs=0.01) and v.std().item() == pytest.approx(0.3, rel=0.02)
    assert torch.corrcoef(v.T)[0, 1].item() == pytest.approx(0.5, abs=0.05)


def test_the_trace_of_a_spike_has_unit_area() -> None:
    """One spike in each window of 200 ms, over before the next: its mean is 1 / 200, up to the step."""
    windows = Neurons(mean=2.0, std=0.0, refractory=193.0, window=200.0).run(4, 4, DOUBLE)
    assert (windows.spikes == 1).all()
    torch.testing.assert_close(200 * windows.trace, torch.ones(4, 4, dtype=DOUBLE), rtol=0.01, atol=0)


def test_the_highest_drive_decides_over_a_spike() -> None:
    windows = Neurons(mean=0.8, refractory=12.0).run(20, 400, DOUBLE)
    assert torch.equal(windows.drive >= 1, windows.spikes > 0) and 0 < (windows.spikes > 0).double().mean() < 1


# The discontinuity


def test_the_jump_of_broken_lines_is_exact() -> None:
    """Whatever the slopes on either side."""
    torch.manual_seed(0)
    z = 1 + 0.3 * (2 * torch.rand(200, 4, dtype=DOUBLE) - 1)
    windows = Windows(z, z, (z >= 1).double(), Neurons())
    omega, size = windows.jump()
    x = z - 1
    R = torch.where(x >= 0, 5 + 3 * x, 2 - 7 * x)
    torch.testing.assert_close((omega * R).sum(0), torch.full((4,), 3.0, dtype=DOUBLE))
    torch.testing.assert_close(omega.square().sum(0), size)
    for i in range(4):  # the textbook's two regressions
        fits = [torch.linalg.lstsq(torch.stack([torch.ones_like(x[s, i]), x[s, i]], 1), R[s, i, None]).solution[0, 0]
                for s in (x[:, i] >= 0, x[:, i] < 0)]  # fmt: skip
        assert float(fits[0] - fits[1]) == pytest.approx(3.0)


@pytest.mark.parametrize("name", ["linear-1d", "conv2d-depthwise", "transposed1d"])
def test_one_input_alone_is_measured_exactly(name: str) -> None:
    """Nothing interferes: Ŵ = W to rounding, and the error says so."""
    layer = {"linear-1d": nn.Linear(1, 3), "conv2d-depthwise": nn.Conv2d(4, 4, 1, groups=4),
             "transposed1d": nn.ConvTranspose1d(1, 3, 3)}[name].double()  # fmt: skip
    untied.untie_(layer, "fa")
    module: Any = layer
    found = estimate(module.weight, module.geometry(), 300)
    torch.testing.assert_close(found.weight, module.weight.data, rtol=1e-9, atol=1e-12)
    assert found.error.max() < 1e-6 and found.variance < 1e-12 * 1.01


def test_the_error_is_the_closed_form_of_what_interferes() -> None:
    """Ŵ = W A with A of the spikes alone: 1 on the diagonal, and ω·S_k / ω·S beside it."""
    torch.manual_seed(0)
    W = torch.randn(4, 6, dtype=DOUBLE)
    windows = Neurons().run(6, 500, DOUBLE)
    omega, _ = windows.jump()
    A = windows.trace.T @ omega / (omega * windows.trace).sum(0)
    torch.testing.assert_close(A.diag(), torch.ones(6, dtype=DOUBLE))
    torch.testing.assert_close(estimate(W, windows=windows).weight, W @ A)


@pytest.mark.parametrize("case", [c for c in LAYERS if c.name in KINDS], ids=lambda c: c.name)
def test_the_estimate_finds_the_kernel_and_its_errors_are_honest(case: LayerCase) -> None:
    """Over seeds: no bias, and deviations in units of the error have standard deviation 1."""
    layer, _ = build(case)
    untied.untie_(layer, "fa")
    module: Any = layer
    W, scores, found = module.weight.detach(), [], []
    for seed in range(12):
        torch.manual_seed(seed)
        e = estimate(W, module.geometry_of("weight"), 3000)
        found.append(e.weight)
        scores.append((e.weight - W) / e.error)
        assert torch.corrcoef(torch.stack([e.weight.flatten(), W.flatten()]))[0, 1] > 0.75
    z = torch.stack(scores)
    assert z.std().item() == pytest.approx(1.0, abs=0.12) and abs(z.mean().item()) < 0.25
    mean = torch.stack(found).mean(0)
    assert torch.corrcoef(torch.stack([mean.flatten(), W.flatten()]))[0, 1] > 0.97


def test_the_error_falls_with_the_root_of_the_windows() -> None:
    torch.manual_seed(0)
    W = torch.randn(10, 16, dtype=DOUBLE)
    few, many = (estimate(W, windows=n) for n in (1000, 16000))
    assert (few.error.mean() / many.error.mean()).item() == pytest.approx(4.0, rel=0.15)
    for e, n in ((few, 1000), (many, 16000)):
        truth = float((e.weight - W).square().sum() / W.square().sum())
        assert e.variance == pytest.approx(truth, rel=0.4), n


def test_a_shared_drive_confounds_correlation_and_not_the_discontinuity() -> None:
    """W is all positive, so whatever drives every unit makes each look stronger than it is."""
    torch.manual_seed(0)
    W = torch.rand(5, 20, dtype=DOUBLE)
    windows = Neurons(shared=0.5, bandwidth=0.15).run(20, 40_000, DOUBLE)
    S = windows.trace - windows.trace.mean(0)
    naive = (S @ W.T).T @ S / S.square().sum(0)
    e = estimate(W, windows=windows)
    assert float((naive - W).mean() / W.mean()) > 1.0
    assert abs(float((e.weight - W).mean() / W.mean())) < 0.3
    assert float(((e.weight - W) / e.error).std()) < 1.3  # too large rather than too small


def test_half_precision_is_measured_in_float32() -> None:
    torch.manual_seed(0)
    W = torch.randn(3, 4)
    torch.manual_seed(1)
    wide = estimate(W.bfloat16().float(), windows=500)
    torch.manual_seed(1)
    half = estimate(W.bfloat16(), windows=500)
    assert half.weight.dtype == torch.bfloat16
    torch.testing.assert_close(half.weight.float(), wide.weight, rtol=1e-2, atol=1e-2)


# What cannot be


def test_units_that_cannot_be_measured_are_named_with_their_rate() -> None:
    torch.manual_seed(0)
    good = Neurons().run(3, 200, DOUBLE)
    silent = replace(good, drive=good.drive.index_fill(1, torch.tensor(1), 0.2),
                     spikes=good.spikes.index_fill(1, torch.tensor(1), 0.0))  # fmt: skip
    with pytest.raises(UntiedError, match=r"layer fc1, unit 1 never spikes \(0 Hz in 200 windows\): raise the drive's"):
        estimate(torch.ones(2, 3, dtype=DOUBLE), windows=silent, name="fc1")
    busy = replace(good, drive=good.drive.index_fill(1, torch.tensor(2), 1.2),
                   spikes=good.spikes.index_fill(1, torch.tensor(2), 3.0))  # fmt: skip
    with pytest.raises(UntiedError, match=r"unit 2 spikes in every window \(100 Hz in 200 windows\): lower the drive"):
        estimate(torch.ones(2, 3, dtype=DOUBLE), windows=busy)
    with pytest.raises(UntiedError, match=r"unit \d+ has . of 12 windows just (above|below) its threshold"):
        estimate(torch.ones(2, 30), windows=10)
    with pytest.raises(UntiedError, match="never spikes"):
        estimate(torch.ones(2, 3), neurons=Neurons(mean=0.0, std=0.05))
    with pytest.raises(UntiedError, match="spikes in every window"):
        estimate(torch.ones(2, 3), neurons=Neurons(mean=5.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"window": 3.0}, "window=3 ms is not longer than the refractory time of 3 ms"), ({"threshold": 0}, "threshold=0"),
     ({"rise": 12}, "rise=12 is not below fall=10"), ({"shared": 1.5}, "shared=1.5"), ({"step": 5}, "step=5 ms"),
     ({"bandwidth": math.nan}, "bandwidth=nan")],
)  # fmt: skip
def test_impossible_settings(options: dict[str, float], words: str) -> None:
    with pytest.raises(UntiedError, match=words):
        Neurons(**options)


def test_impossible_windows() -> None:
    with pytest.raises(UntiedError, match="windows=2 is not possible"):
        estimate(torch.ones(2, 3), windows=2)
    with pytest.raises(UntiedError, match=r"windows of 4 units are given, and the kernel of shape \(2, 3\) has 3"):
        estimate(torch.ones(2, 3), windows=Neurons().run(4, 100))


# The rule


def one_step(model: nn.Module, i: int, optimizer: torch.optim.Optimizer, **record: Any) -> None:
    x, labels = small_batch(8)
    with untied.record(model, step=i, **record) as tape:
        task = nn.functional.cross_entropy(model(x), labels)
    optimizer.zero_grad()
    (task + tape.penalty()).backward()
    optimizer.step()


def heard(model: nn.Module) -> dict[str, list[int]]:
    return {n: v.tolist()[1:3] for n, v in model.state_dict().items() if n.endswith("heard")}


def test_R_is_symmetric_alignment_with_the_estimate_in_Ws_place() -> None:
    model = small_net("rdd(self=2, decay=0.5, period=1)")
    with untied.record(model, step=0) as tape:
        task = nn.functional.cross_entropy(model(small_batch()[0]), small_batch()[1])
    R = tape.penalty()
    (task + R).backward()
    wanted = torch.zeros((), dtype=DOUBLE)
    for name, layer in untied_layers(model).items():
        module: Any = layer
        B, W_ = module.backward_weight, module.backward_estimate
        torch.testing.assert_close(B.grad, 0.5 * B.data - 2 * W_)
        wanted += 0.25 * B.data.square().sum() - 2 * (B.data * W_).sum()
        stream = module.backward_heard.tolist()[0]
        with seeded(stream, 0, torch.device("cpu")):
            torch.testing.assert_close(W_, estimate(module.weight, module.geometry(), 2000, name=name).weight)
    torch.testing.assert_close(R, wanted)


def test_forward_weights_get_the_tasks_gradient_alone() -> None:
    model, twin = small_net("rdd"), small_net("fa")
    x, labels = small_batch()
    for a, b in zip(untied_layers(model).values(), untied_layers(twin).values(), strict=True):
        b.backward_weight.data.copy_(a.backward_weight.data)  # type: ignore[attr-defined]
    for net in (model, twin):
        with untied.record(net, step=0) as tape:
            task = nn.functional.cross_entropy(net(x), labels)
        (task + tape.penalty()).backward()
    for name, p in twin.named_parameters():
        if "backward" not in name:
            torch.testing.assert_close(model.get_parameter(name).grad, p.grad)


def test_it_measures_in_its_period_where_W_has_moved_and_rests_with_align_false() -> None:
    model = small_net("rdd(period=3, windows=200)")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    for i in range(5):
        one_step(model, i, optimizer)
        seen.append(heard(model)["out.backward_heard"])
    assert seen == [[200, 1], [200, 1], [200, 1], [400, 2], [400, 2]]
    one_step(model, 6, optimizer, align=False)
    assert heard(model)["out.backward_heard"] == [400, 2]
    with pytest.raises(UntiedError, match=r"measures every 3 steps.*step=i"), untied.record(model):
        pass
    late = small_net("rdd(period=3, windows=200)")
    one_step(late, 1, torch.optim.SGD(late.parameters(), 0.1))
    assert heard(late)["out.backward_heard"] == [200, 1]  # the first recording measures, whatever its number


def test_the_average_is_over_as_many_measurements_as_it_says() -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(6, 5).double()
    untied.untie_(layer, "rdd(period=1, average=3, windows=200)")
    kept: list[Tensor] = []
    for i in range(5):
        with torch.no_grad():
            layer.weight.add_(0.0)  # it has moved, by nothing
        with untied.record(layer, step=i):
            pass
        with seeded(layer.backward_heard.tolist()[0], i, torch.device("cpu")):
            found = estimate(layer.weight, DENSE, 200).weight
        mean = found if not kept else kept[-1] + max(1 / (i + 1), 1 / 3) * (found - kept[-1])
        torch.testing.assert_close(layer.backward_estimate, mean)
        kept.append(mean)


def test_a_run_that_is_saved_goes_on_bit_for_bit() -> None:
    text = "rdd(period=2, windows=200, average=2)"

    def some(model: nn.Module, steps: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for i in steps:
            one_step(model, i, optimizer)

    whole, first, second = small_net(text), small_net(text), small_net(text)
    first.load_state_dict(whole.state_dict())
    some(whole, range(6))
    some(first, range(3))
    second.load_state_dict(first.state_dict())
    some(second, range(3, 6))
    assert {"out.backward_estimate", "out.backward_heard"} <= set(whole.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_it_trains_and_aligns() -> None:
    """B comes to W as closely as the estimates' mean does, in a phase of its own and beside the task."""
    model = small_net("rdd(period=1)", dtype=torch.float32)
    before = untied.metrics.weight_angles(model)
    backward = [B for layer in untied_layers(model).values() for B in layer.backward_parameters()]
    optimizer = torch.optim.SGD(backward, 0.2)
    for i in range(15):
        with torch.no_grad():
            for layer in untied_layers(model).values():
                layer.weight.add_(0.0)  # type: ignore[attr-defined]
        optimizer.zero_grad()
        with untied.record(model, step=i) as tape, torch.no_grad():
            model(small_batch(dtype=torch.float32)[0])
        tape.penalty().backward()
        optimizer.step()
    after = untied.metrics.weight_angles(model)
    assert all(after[n] < 20 < before[n] for n in after)


@by_estimated
def test_what_every_rule_promises(rule: RuleCase) -> None:
    """Outputs bit for bit, a way back, a warning outside record, backpropagation's cost while W stands still."""
    assert parse(rule.text).local == rule.local and counted_cost(parse(rule.text)) == 1
    plain, model = small_net(), small_net(rule.text)
    x = small_batch()[0]
    with pytest.warns(UserWarning, match=r"outside untied.record\(\)"):
        assert torch.equal(model(x), plain(x))
    with untied.record(model, step=0) as tape:
        model(x)
    tape.penalty()
    with FlopCounterMode(display=False) as ours, untied.record(model, step=0, align=False):
        model(x).sum().backward()
    with FlopCounterMode(display=False) as theirs:
        plain(x).sum().backward()
    assert ours.get_total_flops() == theirs.get_total_flops()
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()
    assert untied.tie_(model).state_dict().keys() == plain.state_dict().keys()


def test_recorded_graphs_keep_the_estimate_that_they_saw() -> None:
    model = small_net("rdd(period=1, windows=200)")
    x, _ = small_batch()
    with untied.record(model, step=0) as tape:
        task = model(x).square().mean()
    R, seen = tape.penalty(), {n: v.clone() for n, v in model.state_dict().items()}
    with torch.no_grad():
        model.out.weight.add_(0.0)
    with untied.record(model, step=1):
        pass
    (task + R).backward()
    torch.testing.assert_close(model.out.backward_weight.grad,  # type: ignore[union-attr]
                               seen["out.backward_weight"] - seen["out.backward_estimate"])  # fmt: skip


def test_text_and_algebra() -> None:
    for text in ("rdd", "rdd(self=0.5, decay=linear(0, 1), every=2, windows=500, period=1, average=4)"):
        rule = parse(text)
        assert parse(str(rule)) == rule and isinstance(rule, RegressionDiscontinuity)
    assert str(parse("rdd(period=1)")) == "rdd(period=1)" and parse("rdd(period=1)") != parse("rdd")
    assert parse("2*rdd(windows=100)") == RegressionDiscontinuity(2.0, 2.0, windows=100)
    for text, words in (("rdd + amp", "estimate in W's place"), ("rdd(windows=2)", "windows=2"),
                        ("rdd(period=0)", "period=0"), ("rdd(noise=normal)", "rdd takes self"),
                        ("rdd(decay=power)", "rdd's decay")):  # fmt: skip
        with pytest.raises(UntiedError, match=words):
            parse(text)
    assert copy.deepcopy(parse("rdd")) == parse("rdd") and hash(parse("rdd")) == hash(parse("rdd"))


def test_the_layer_that_cannot_be_measured_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 200), nn.Linear(200, 2))
    untied.untie_(model, "rdd(windows=20)")
    with pytest.raises(UntiedError, match=r"layer [01], unit \d+ has . of 20 windows"), untied.record(model, step=0):
        pass


# The mirrored Kolen-Pollack rule by spikes


def test_mkp_averages_spikes_by_their_own_error() -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(24, 16).double()
    untied.untie_(layer, "mkp(noise=spikes, until=0)")
    angles = []
    for _ in range(24):
        with torch.no_grad():
            layer.weight.add_(0.05 * torch.randn_like(layer.weight))  # the copy keeps up with any motion of W
        with untied.record(layer):
            pass
        angles.append(untied.metrics.weight_angles(layer)[""])
    assert angles[-1] < 0.35 * angles[0]
    rule = parse("mkp(noise=spikes)")
    assert isinstance(rule, MirroredKolenPollack)
    assert angles[-1] == pytest.approx(rule.predicted_angle(layer.beside("weight"), 24), rel=0.25)


@pytest.mark.parametrize("rule", ["mkp(noise=spikes)", "rdd"])
def test_calibration(rule: str) -> None:
    model = small_net(rule)
    assert max(untied.mirror_(model, batches=12).values()) < 30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_it_runs_on_a_gpu() -> None:
    torch.manual_seed(0)
    W = torch.randn(8, 16, device="cuda")
    e = estimate(W, windows=20_000)
    assert e.weight.is_cuda and float(((e.weight - W) / e.error).std()) < 1.3


def test_the_estimate_from_another_simulators_spikes() -> None:
    """snnTorch's `Leaky`, which resets one step late: its windows go in, the kernel comes out."""
    snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    torch.manual_seed(0)
    W, n, units, neurons = torch.randn(6, 10), 3000, 10, Neurons()
    keep, fall, rise = (math.exp(-1 / t) for t in (10.0, 10.0, 3.0))
    resets = snntorch.Leaky(beta=keep, threshold=1.0, reset_mechanism="zero")
    climbs = snntorch.Leaky(beta=keep, threshold=1.0, reset_mechanism="none")
    v = 0.6 + 0.3 * torch.randn(n, units)
    falling, rising = torch.zeros_like(v), torch.zeros_like(v)
    for settled in (False, True):
        u, peak, count = v * (v <= 1), torch.full_like(v, -math.inf), torch.zeros_like(v)
        before, total = (falling - rising) / 7, torch.zeros_like(v)
        for _ in range(30):
            drive = (1 - keep) * 0.6 + 0.3 * math.sqrt(1 - keep**2) * torch.randn_like(v)
            spike, v = resets(drive, v)
            _, u = climbs(drive, u)
            falling, rising = fall * falling + spike, rise * rising + spike
            peak, count, total = torch.maximum(peak, u), count + spike, total + (falling - rising) / 7
        if settled:
            e = estimate(W, windows=Windows(peak, total / 30 - before, count, neurons))
            assert torch.corrcoef(torch.stack([e.weight.flatten(), W.flatten()]))[0, 1] > 0.9
            assert ((e.weight - W) / e.error).std().item() == pytest.approx(1.0, abs=0.25)
