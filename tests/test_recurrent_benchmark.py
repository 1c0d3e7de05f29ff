"""What benchmarks/recurrent.py trains on and with: its tasks, its baselines, and kp under its optimizers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from benchmarks import recurrent as bench


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(setting: bench.Setting, seed: int = 0) -> tuple[Tensor, Tensor]:
    return setting.data.batch(seeded(seed), "test")  # type: ignore[no-any-return]


@pytest.mark.parametrize("length", [2, 7, 30])
def test_adding_marks_one_value_in_each_half_and_asks_for_their_sum(length: int) -> None:
    x, y = bench.adding(50, length, seeded(0))
    assert x.shape == (50, length, 2) and y.shape == (50, 1)
    values, marks = x.unbind(-1)
    assert ((marks == 0) | (marks == 1)).all() and ((values >= 0) & (values < 1)).all()
    assert (marks[:, : length // 2].sum(1) == 1).all() and (marks[:, length // 2 :].sum(1) == 1).all()
    torch.testing.assert_close(y[:, 0], torch.stack([v[m == 1].sum() for v, m in zip(values, marks, strict=True)]))


def test_the_baselines_of_adding() -> None:
    """The sum of two uniform values has variance 1/6, and given the second 1/12. The variance of n squares is known:
    sums have a kurtosis of 2.4, and uniform values one of 1.8."""
    n = 20_000
    x, y = bench.adding(n, 10, seeded(0))
    second = (x[:, 5:, 0] * x[:, 5:, 1]).sum(1, keepdim=True)
    for guess, wanted, kurtosis in ((torch.ones(n, 1), 1 / 6, 2.4), (second + 0.5, 1 / 12, 1.8)):
        error = float((y - guess).square().mean())
        assert abs(error / wanted - 1) < 4 * math.sqrt((kurtosis - 1) / n)


@pytest.mark.parametrize("name", bench.SETTINGS)
def test_tasks_have_their_shapes_and_are_decided_by_seed(name: str) -> None:
    setting = bench.SETTINGS[name]
    x, y = batch(setting)
    assert x.shape == (bench.BATCH, setting.data.length, setting.data.features)
    assert all(torch.equal(a, b) for a, b in zip((x, y), batch(setting), strict=True))
    assert not torch.equal(x, batch(setting, 1)[0])
    held = {split: setting.data.held_out(split) for split in ("validation", "test")}
    assert not torch.equal(held["validation"][0][:64], held["test"][0][:64])
    again = setting.data.held_out("test")
    assert all(torch.equal(a, b) for a, b in zip(held["test"], again, strict=True))
    model = bench.network(setting, bench.Way("fa"), 3)
    out = model(x)
    assert out.shape == (bench.BATCH, setting.data.outputs) and setting.data.loss(out, y).isfinite()


def test_digits_are_never_in_two_parts() -> None:
    rows, pixels = bench.Digits(8), bench.Digits(1)
    assert torch.equal(rows.held_out("test")[0].flatten(1), pixels.held_out("test")[0].flatten(1))
    assert len(rows.held_out("validation")[0]) == 270 and len(rows.held_out("test")[0]) == 450
    seen = {split: torch.cat([rows.batch(seeded(i), split)[0] for i in range(100)]) for split in ("validation", "test")}
    order = bench.digits()[0].view(-1, 8, 8)
    for split, end in (("validation", 1077), ("test", 1347)):
        places = (seen[split].flatten(1)[:, None] == order.flatten(1)).all(-1).int().argmax(1)
        assert int(places.max()) < end


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(way: bench.Way, forward: bench.Forward, steps: int = 4) -> tuple[Any, dict[str, Tensor]]:
    """(a network after some steps, its weights before)."""
    setting = bench.SETTINGS["rows-gru"]
    model = bench.network(setting, way, 3)
    before = weights(model)
    step = bench.stepper(model, way, forward)
    for i in range(steps):
        x, y = batch(setting, i)
        step(i, lambda x=x, y=y: setting.data.loss(model(x), y))  # type: ignore[misc]
    return model, before


@pytest.mark.parametrize("name", bench.GRID)
def test_bp_is_plain_backpropagation_through_time(name: str) -> None:
    forward, setting = bench.GRID[name], bench.SETTINGS["rows-gru"]
    model, before = trained(bench.Way("bp"), forward)
    plain = bench.recurrent((8, 8), 10, kind="gru", width=bench.WIDTH)
    plain.load_state_dict(before)
    optimizer = forward.make([{"params": list(plain.parameters())}])
    for i in range(4):
        x, y = batch(setting, i)
        optimizer.zero_grad()
        setting.data.loss(plain(x), y).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), bench.CLIP)
        optimizer.step()
    for key, W in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(key), W, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", bench.GRID)
def test_kp_forgets_where_it_began_and_nothing_else(name: str) -> None:
    """W − B falls by 1 − ηλ in a step of AdamW; under SGD with momentum, by the same recursion whatever the task."""
    forward, decay = bench.GRID[name], 0.5
    model, before = trained(bench.Way("copy", decay), forward)
    left, speed = 1.0, 0.0
    for _ in range(4):
        speed = (0.9 * speed if forward.name == "SGD" else 0.0) + decay * left
        left -= forward.lr * speed
    for key in ("rnn.weight_hh_l0", "fc.weight"):
        B = key.replace("weight", "backward_weight")
        torch.testing.assert_close(
            model.get_parameter(key) - model.get_parameter(B), left * (before[key] - before[B]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("rule", ["fa", "copy", "sa", "mkp"])
def test_rules_of_a_seed_begin_with_the_same_weights(rule: str) -> None:
    setting = bench.SETTINGS["adding-lstm"]
    ours, theirs = (bench.network(setting, bench.Way(r), 5).state_dict() for r in (rule, "bp"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_in_frozen_the_readout_alone_moves() -> None:
    model, before = trained(bench.Way("bp", frozen=True), bench.GRID["AdamW(lr=0.01)"])
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"fc.weight", "fc.bias"}
