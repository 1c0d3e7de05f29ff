"""Several processes through Fabric give the gradients of one big batch: DDP and FSDP, every named rule, every phase."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import nn

import untied
from cases import small_batch, small_net
from untied.errors import UntiedError
from untied.lab.devices.devices import fabric_of, full, single_device, unsharded
from untied.lab.devices.sync_batch_norm import synchronised
from untied.lab.settings.devices import DeviceConfig
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.training.optim import Optimizers
from untied.lab.training.step import Objective, Phase, training_step

N = 8
PHASES = {"both": Phase(), "task alone": Phase(align=0.0), "align alone": Phase(task=0.0), "weighted": Phase(0.5, 2.0)}
RULES = {"ddp": ["bp", "fa", "kp", "wm", "ia", "sa", "aa", "usf"], "fsdp": ["bp", "kp", "wm", "ia", "sa", "aa"]}
WORLDS = [("ddp", 2), ("ddp", 4), ("fsdp", 2)]


def gradients_of_a_step(model: nn.Module, objective: nn.Module, phase: Phase, part: slice, **how) -> dict:
    """Gradients of one step of a still optimizer, by parameter."""
    x, labels = small_batch(N)
    still = OptimizerConfig(lr=1e-30, momentum=0.0)
    rule = next(iter(untied.layers.untied_layers(model).values())).rule
    optimizers = Optimizers(model, rule, still, still, 1)
    training_step(objective, x[part], labels[part], optimizers, phase, progress=0.5, step=0, **how)
    return {n: full(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}


class Normalised(nn.Module):
    """A network whose batch normalisation sees the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.net.norm = nn.BatchNorm2d(4).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def normalised() -> nn.Module:
    torch.manual_seed(0)
    model = Normalised()
    untied.untie_(model, "sa")
    return model


def worker(rank: int, port: int, strategy: str, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
        GROUP_RANK="0", LOCAL_WORLD_SIZE=str(world), TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    fabric = fabric_of(DeviceConfig(accelerator="cpu", strategy=strategy), N)  # as many as torchrun has started
    fabric.launch()
    part = slice(rank * N // world, (rank + 1) * N // world)
    results = {}
    for rule in RULES[strategy]:
        model = small_net(rule)
        objective = fabric.setup_module(Objective(model))
        how = {"backward": fabric.backward, "apart": lambda o=objective: fabric.no_backward_sync(o)}
        for name, phase in PHASES.items():
            found = gradients_of_a_step(model, objective, phase, part, **how)
            results |= {f"{rule}/{name}/{n}": g for n, g in found.items()}
        if world == 2:
            found = gradients_of_a_step(model, objective, Phase(), part, parts=2, **how)
            results |= {f"{rule}/accumulated/{n}": g for n, g in found.items()}
        with unsharded(objective):  # evaluation and measurements see whole weights
            y = model.eval()(small_batch(N)[0])
            results[f"{rule}/evaluated"] = y.detach()
            angles = untied.metrics.weight_angles(model)
            results[f"{rule}/angles"] = torch.tensor(list(angles.values()))
    if strategy == "ddp":
        model = synchronised(normalised(), fabric.device)
        objective = fabric.setup_module(Objective(model))
        found = gradients_of_a_step(model, objective, Phase(), part, backward=fabric.backward)
        results |= {f"norm/{n}": g for n, g in found.items()}
        results |= {f"norm/{n}": b.clone() for n, b in model.named_buffers()}
    save_file({k: v.contiguous() for k, v in results.items()}, Path(folder) / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def start(strategy: str, world: int, folder: Path) -> list[dict[str, torch.Tensor]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (port, strategy, world, str(folder)), nprocs=world)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(world)]


@pytest.fixture(scope="module", params=WORLDS, ids=[f"{s}-{n}" for s, n in WORLDS])
def processes(request, tmp_path_factory) -> Iterator[tuple[str, list[dict[str, torch.Tensor]]]]:
    strategy, world = request.param
    yield strategy, start(strategy, world, tmp_path_factory.mktemp(f"{strategy}{world}"))


def test_processes_are_one_big_batch(processes) -> None:
    strategy, found = processes
    for rule in RULES[strategy]:
        for name in [*PHASES, *(["accumulated"] if len(found) == 2 else [])]:
            model = small_net(rule)
            wanted = gradients_of_a_step(model, Objective(model), PHASES.get(name, Phase()), slice(0, N))
            here = f"{rule}/{name}/"
            for own in found:
                mine = {k.removeprefix(here): g for k, g in own.items() if k.startswith(here)}
                assert mine.keys() == wanted.keys(), here
                for n, g in wanted.items():
                    torch.testing.assert_close(mine[n], g, msg=lambda m, at=here + n: f"{at}: {m}")


def test_evaluation_sees_whole_weights(processes) -> None:
    strategy, found = processes
    for rule in RULES[strategy]:
        model = small_net(rule).eval()
        for own in found:
            torch.testing.assert_close(own[f"{rule}/evaluated"], model(small_batch(N)[0]).detach())
            angles = torch.tensor(list(untied.metrics.weight_angles(model).values()))
            torch.testing.assert_close(own[f"{rule}/angles"], angles)


def test_batch_normalisation_over_processes_is_that_of_the_whole_batch(processes) -> None:
    strategy, found = processes
    if strategy != "ddp":
        return
    model = normalised()
    wanted = gradients_of_a_step(model, Objective(model), Phase(), slice(0, N))
    wanted |= {n: b for n, b in model.named_buffers()}
    for own in found:
        for n, g in wanted.items():
            torch.testing.assert_close(own[f"norm/{n}"], g, msg=lambda m, at=n: f"{at}: {m}")


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(UntiedError, match="batch_size is 64 and 3 processes share it: choose a multiple of 3"):
        fabric_of(DeviceConfig(accelerator="cpu", devices=3), 64)
    with pytest.raises(UntiedError, match="2 processes of 5 parts each share it: choose a multiple of 10"):
        fabric_of(DeviceConfig(accelerator="cpu", devices=2), 64, accumulate=5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DeviceConfig(accelerator="cpu", precision="16"), "precision is 16 but the device is cpu"),
        (DeviceConfig(accelerator="quantum"), "accelerator quantum.*cannot be used: .*; accelerator cpu always can"),
        (DeviceConfig(accelerator="cuda"), "accelerator cuda.*cannot be used"),
    ],
)
def test_devices_that_are_not_there_are_one_line(config: DeviceConfig, said: str) -> None:
    if config.accelerator == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(UntiedError, match=said):
        fabric_of(config, 64)


def test_one_device_by_name() -> None:
    assert single_device().device == torch.device("cpu")
    with pytest.raises(UntiedError, match=r"device 'cuda:77' cannot be used: .*; cpu always can"):
        single_device("cuda:77")
    with pytest.raises(UntiedError, match="precision is 16 but the device is cpu"):
        single_device("cpu", "16")
