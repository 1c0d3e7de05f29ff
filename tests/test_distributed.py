"""Two processes under DistributedDataParallel give the gradients of one big batch, for every rule."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

import untied
from cases import ROUTED, RULES, RuleCase, small_batch, small_net

N = 8
RESTING = "task alone, rules at rest"
BY_WEIGHT = {"task and R": (1.0, 1.0), "R alone": (0.0, 1.0), "task alone": (1.0, 0.0), RESTING: (1.0, 1.0)}
"""Phases multiply the terms, or let the rules rest, so that every gradient is there in each."""


def built(rule: RuleCase) -> nn.Module:
    """The same network each time; a B that takes its size from its layer's input has one."""
    model = small_net(rule.text)
    if any(is_lazy(p) for p in model.parameters()):
        torch.manual_seed(3)
        with torch.no_grad():
            model.eval()(small_batch(N)[0])
        model.train()
    return model


def shares(rule: RuleCase, name: str) -> float:
    """What two processes give of a gradient, where a rule does not send what follows the loss."""
    if name.endswith("backward_factor"):
        return 2.0  # Oja's rule is of second order in the error
    hidden = not name.startswith("out.")
    return 0.5 if rule.text.startswith(("sdfa", "drtp")) and hidden else 1.0  # signs and targets are no means


def one_step(
    model: nn.Module, run: nn.Module, part: slice, weights: tuple[float, float], step: int, align: bool = True
) -> None:
    x, labels = small_batch(N)
    torch.manual_seed(7)
    with untied.record(run, progress=0.5, step=step, align=align, targets=labels[part]) as tape:
        task = nn.functional.cross_entropy(run(x[part]), labels[part])
    (weights[0] * task + weights[1] * tape.penalty()).backward()


def collected(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results: dict[str, torch.Tensor] = {}
    for rule in [*RULES, *ROUTED]:
        model = built(rule)
        run = DistributedDataParallel(model)
        for i, (name, weights) in enumerate(BY_WEIGHT.items()):
            model.zero_grad()
            one_step(model, run, slice(rank * N // 2, (rank + 1) * N // 2), weights, i, name != RESTING)
            results |= {f"{rule.text}/{name}/{n}": g for n, g in collected(model).items()}
        model.zero_grad()
        with run.no_sync():  # accumulation: two micro-batches before one exchange
            one_step(model, run, slice(rank * 4, rank * 4 + 2), (0.5, 0.5), 0)
        one_step(model, run, slice(rank * 4 + 2, rank * 4 + 4), (0.5, 0.5), 0)
        results |= {f"{rule.text}/accumulated/{n}": g for n, g in collected(model).items()}
    save_file(results, Path(folder) / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """Gradients by rule, phase and parameter, from one start of two processes."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=2)
    return [load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.parametrize("phase", [*BY_WEIGHT, "accumulated"])
@pytest.mark.parametrize("rule", [*RULES, *ROUTED], ids=[r.text for r in [*RULES, *ROUTED]])
def test_two_processes_are_one_big_batch(rule: RuleCase, phase: str, processes: list[dict[str, torch.Tensor]]) -> None:
    here = f"{rule.text}/{phase}/"
    first, second = ({k.removeprefix(here): g for k, g in p.items() if k.startswith(here)} for p in processes)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)
    model = built(rule)
    with untied.record(model, progress=0.5, step=0):
        pass  # a rule that moves B itself measures here, as in the processes' first phase, and not while W stands still
    weights = BY_WEIGHT.get(phase, (1.0, 1.0))
    i = list(BY_WEIGHT).index(phase) if phase in BY_WEIGHT else 0
    one_step(model, model, slice(0, N), weights, i, phase != RESTING)
    wanted = collected(model)
    assert first.keys() == wanted.keys()
    if rule.over_batch or (rule.random and rule.text != "brsf"):
        return  # each process centres its own batch, or draws its own noise
    for name in wanted:
        torch.testing.assert_close(
            first[name], shares(rule, name) * wanted[name], msg=lambda m, name=name: f"{name}: {m}"
        )
