"""Phases: passes that train the task alone (``align=False``), and mirror phases that align alone, without autograd."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import untied
from cases import (
    LayerCase,
    RuleCase,
    assert_same,
    build_untied,
    by_aligning_rule,
    by_kind_of_layer,
    by_rule,
    gradients,
    small_batch,
    small_net,
    step,
)
from untied.rules import parse


def is_backward(name: str) -> bool:
    return "backward_weight" in name


# The task alone


@by_rule
def test_a_pass_of_the_task_alone_gives_zeros_to_B(rule: RuleCase) -> None:
    """And to the rest what it gets otherwise. Neither progress nor step is needed."""
    r, (x, labels) = parse(rule.text), small_batch()
    model, plain = small_net(rule.text, dropout=0.5), small_net(rule.text, dropout=0.5)
    torch.manual_seed(2)
    task = nn.functional.cross_entropy(_unrecorded(plain, x), labels)
    task.backward()
    J, R = step(model, x, labels, progress=None, step=None, align=False)
    assert R == 0 and torch.equal(J, task.detach())
    for name, p in model.named_parameters():
        if not is_backward(name) or not r.aligns:
            assert (p.grad is None) == (plain.get_parameter(name).grad is None)
        if is_backward(name) and r.aligns:
            copied = model.get_parameter(name.replace("backward_weight", "weight")).grad
            assert p.grad is not None and torch.equal(p.grad, r.copies * copied)
        elif p.grad is not None:
            torch.testing.assert_close(p.grad, plain.get_parameter(name).grad)


def _unrecorded(model: nn.Module, x: Tensor) -> Tensor:
    """A training pass outside record, on purpose."""
    with pytest.warns(UserWarning, match="outside") if model.out.rule.needs_record else contextlib.nullcontext():
        return model(x)  # type: ignore[no-any-return]


@by_aligning_rule
def test_the_penalty_of_a_resting_pass(rule: RuleCase) -> None:
    """It is a term like any other; the audit holds; random numbers stay where they are."""
    model = small_net(rule.text)
    state = torch.get_rng_state()
    with untied.record(model, align=False) as tape:
        pass
    with pytest.raises(untied.UntiedError, match="not called"):
        tape.penalty()
    with untied.record(model, align=False) as tape:
        model(small_batch()[0])
    R = tape.penalty()
    assert R.requires_grad and set(tape.penalties().values()) == {0.0}
    assert not tape.align and torch.equal(torch.get_rng_state(), state)


def test_schedules_need_no_progress_in_a_resting_pass() -> None:
    model = small_net("wm(amp=linear(0, 1), every=3)")
    _, R = step(model, *small_batch(), progress=None, step=None, align=False)
    assert R == 0
    _, R = step(model, *small_batch(), progress=0.5, step=0)
    assert R != 0


# Alignment alone


def aligned(model: Any, x: Tensor, mode: Callable[[], Any], inside: bool, call: dict[str, Any] | None = None) -> Tensor:
    """R's gradients by a pass under ``mode``; R is asked for inside record or after it."""
    torch.manual_seed(5)
    with untied.record(model, progress=0.5, step=0) as tape:
        with mode():
            model(x, **(call or {}))
        R = tape.penalty() if inside else None
    R = tape.penalty() if R is None else R
    R.backward()
    return R.detach()


@by_aligning_rule
@by_kind_of_layer
def test_alignment_needs_no_autograd(rule: RuleCase, case: LayerCase) -> None:
    (usual, x), (layer, _) = build_untied(case, rule.text), build_untied(case, rule.text)
    wanted = aligned(usual, x, contextlib.nullcontext, inside=False, call=case.call)
    assert torch.equal(aligned(layer, x, torch.no_grad, inside=False, call=case.call), wanted)
    assert_same(gradients(layer), gradients(usual), rtol=0, atol=0)
    assert layer.backward_weight.grad is not None


class Normalised(nn.Sequential):
    """Dropout and batch normalisation in training mode, twice the same kernel, and a checkpoint."""

    def __init__(self) -> None:
        shared = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        super().__init__(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), shared, nn.ReLU(), shared, nn.Flatten(),
            nn.Dropout(0.5), nn.Linear(64, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]


@by_aligning_rule
@pytest.mark.parametrize("inside", [False, True], ids=["", "penalty-inside-record"])
@pytest.mark.parametrize("cast", [None, torch.bfloat16], ids=str)
def test_a_mirror_phase_of_a_network(rule: RuleCase, inside: bool, cast: torch.dtype | None) -> None:
    x = small_batch()[0].to(torch.float64 if cast is None else torch.float32)
    results = []
    for mode in (contextlib.nullcontext, torch.no_grad):
        torch.manual_seed(0)
        model = Normalised().to(x.dtype)
        untied.untie_(model, rule.text)
        if cast is None:
            R = aligned(model, x, mode, inside)
        else:
            with torch.autocast("cpu", cast):
                R = aligned(model, x, mode, inside)
        assert parse(rule.text).operations.update_forward or all(
            p.grad is None for n, p in model.named_parameters() if not is_backward(n)
        )
        results.append({"R": R, **gradients(model), **dict(model.named_buffers())})
    assert_same(results[1], results[0], rtol=0, atol=0)


@pytest.mark.parametrize("rule", ["sa", "wm", "aa", "ia(reverse=true)", "wm(noise=normal)"])
def test_a_mirror_phase_of_attention(rule: str) -> None:
    """Queries, keys and values of their own inputs: parts of one kernel."""
    results = []
    for mode in (contextlib.nullcontext, torch.no_grad):
        torch.manual_seed(0)
        model: Any = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).double()
        untied.untie_(model, rule)
        x, memory = torch.randn(2, 3, 8).double(), torch.randn(2, 4, 8).double()
        R = aligned(model, x, mode, inside=False, call={"memory": memory})
        results.append({"R": R, **gradients(model)})
    assert_same(results[1], results[0], rtol=0, atol=0)


def test_inference_mode_is_refused() -> None:
    model = small_net("wm")
    with (
        pytest.raises(untied.UntiedError, match=r"use torch.no_grad\(\)"),
        untied.record(model),
        torch.inference_mode(),
    ):
        model(small_batch()[0])
    with untied.record(model, align=False), torch.inference_mode():
        model(small_batch()[0])


@by_aligning_rule
def test_a_mirror_phase_costs_the_forward_pass_and_R(rule: RuleCase) -> None:
    if rule.products is None:
        pytest.skip("by autograd: nothing promised")
    torch.manual_seed(0)
    model, x = nn.Conv2d(6, 10, 3, padding=1), torch.randn(8, 6, 7, 7)
    with FlopCounterMode(display=False) as product:
        model(x)
    untied.untie_(model, rule.text)
    with FlopCounterMode(display=False) as counter:
        aligned(model, x, torch.no_grad, inside=False)
    every, whole = parse(rule.text).every, product.get_total_flops()
    measured = whole // (8 * 10) if "power" in str(parse(rule.text)) else 0  # one example's, of one output channel
    assert counter.get_total_flops() == (1 + rule.products * every) * whole + measured


@pytest.mark.parametrize("rule", ["wm", "ia", "wm(noise=normal)", "aa(update_forward=true)"])
def test_a_compiled_mirror_phase(rule: str) -> None:
    x = small_batch()[0]
    eager, model = small_net(rule), small_net(rule)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    with untied.record(model, progress=0.5, step=0) as tape, torch.no_grad():
        compiled(x)
    tape.penalty().backward()
    aligned(eager, x, torch.no_grad, inside=False)
    assert_same(gradients(model), gradients(eager))
    torch._dynamo.reset()
