"""`untied bench`: what a training step of each rule costs, measured beside counted, over plain PyTorch's."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from untied.lab.devices.devices import single_device
from untied.lab.keeping.record import RunFolder, new_folder
from untied.lab.measuring.memory import Held
from untied.lab.measuring.timing import Clock, Step, interleaved, plain_step, untied_step
from untied.lab.models import build
from untied.lab.reading.fields import from_mapping
from untied.lab.settings.bench import BenchConfig, Case
from untied.lab.showing import report, style, writers
from untied.lab.showing.costs import (
    CONTROL,
    HEADS,
    NARROW,
    PLAIN,
    SUMMARY,
    by_case,
    captions,
    cells,
    finding,
    markdown,
    shown_columns,
    speed_figure,
    table_rows,
)
from untied.lab.training.learners import made
from untied.lab.training.setup import sized

__all__ = ["again", "bench", "profiled"]

THREADS = 1024  # far beyond it the runtime of threads crashes
PRODUCTS = ("conv", "mm", "linear", "gemm", "matmul", "cutlass", "xmma", "nvjet", "wgrad", "dgrad", "fprop")


def bench(config: BenchConfig, console: Console | None = None) -> int:
    """Measure, and write the folder. Returns 0, or 130 if interrupted: what was measured is kept.

    Raises:
        UntiedError: an unknown model, rule or device, or an output folder in use.
    """
    console = console or Console()
    for precision in config.precisions:
        single_device(config.device, precision)
    for case in config.cases:
        with torch.device("meta"):
            _network(config, case)
    out = config.out or new_folder("bench")
    config = dataclasses.replace(config, out=out, threads=config.threads or torch.get_num_threads())
    folder = RunFolder.create(out, config, overwrite=config.overwrite)
    interrupted = False
    with _threads(config.threads or 1):
        for case in config.cases:
            try:
                with console.status(f"{case}") as status:
                    for number, line in enumerate(_measure(config, case)):
                        folder.append(line)
                        status.update(f"{case}: {number} of {config.rounds + config.profile} rounds")
            except KeyboardInterrupt:
                interrupted = True
                break
    _finish(folder, config, console)
    if interrupted:
        console.print("interrupted: what was measured is kept", highlight=False)
    return 130 if interrupted else 0


def again(path: Path, console: Console | None = None) -> int:
    """Write a folder's tables, figure and page again, from what it holds. Returns 0."""
    folder = RunFolder.open(path)
    _finish(folder, from_mapping(BenchConfig, folder.config(), f"config of {path}"), console or Console())
    return 0


# Measuring


def _network(config: BenchConfig, case: Case) -> nn.Module:
    torch.manual_seed(0)
    size = config.image_size
    model = build(case.model, input_shape=(3, size, size), classes=config.classes).train()
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def _steps(config: BenchConfig, case: Case, compiled: bool) -> dict[str, Step]:
    """The plain network, the same once more as a null control, and every rule's."""
    shape = (case.batch, 3, config.image_size, config.image_size)
    images = torch.randn(shape, device=config.device)
    if config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(config.classes, (case.batch,), device=config.device)
    options: dict[str, Any] = {"fullgraph": True, "backend": config.backend} if compiled else {}
    steps = {}
    for name in (PLAIN, CONTROL):
        model = _network(config, case).to(config.device)
        steps[name] = plain_step(model, images, labels, config.forward, case.precision, **options)
    for name, (rule, backward) in config.entries.items():
        model = made(_network(config, case), rule, lambda: images)
        sized(model, torch.zeros(1, *shape[1:])).to(config.device)
        steps[name] = untied_step(
            model, rule, images, labels, config.forward, backward, case.precision, align_steps=config.align_steps,
            **options,
        )  # fmt: skip
    return steps


def _measure(config: BenchConfig, case: Case) -> Iterator[dict[str, Any]]:
    """Lines of metrics.jsonl: what is counted, then a line a round, then a line a round under the profiler."""
    about = dataclasses.asdict(case)
    clock = Clock(config.device, config.clock == "cpu")
    steps = _steps(config, case, compiled=False)
    counted = {name: _counted(step, clock) for name, step in steps.items()}
    first: dict[str, float] = {}
    if case.compile:
        torch._dynamo.reset()
        del steps
        gc.collect()
        steps = _steps(config, case, compiled=True)
        for name, step in steps.items():
            before = time.perf_counter()
            step.run(clock)
            first[name] = time.perf_counter() - before
    yield about | {"kind": "counted", "rules": counted, "first_step": first}
    for found in interleaved(steps, clock, config.rounds):
        yield about | {"kind": "round", "rules": {name: parts._asdict() for name, parts in found.items()}}
    for _ in range(config.profile):
        yield about | {"kind": "profile", "rules": {name: profiled(step, clock) for name, step in steps.items()}}


def _counted(step: Step, clock: Clock) -> dict[str, int]:
    """Floating-point operations of a step, and the bytes it holds at its highest, what stays included."""
    flops = peak = 0
    step.run(clock)  # a mirror knows from it how much noise to take
    for _ in range(step.period):
        with FlopCounterMode(display=False) as counter:
            step.run(clock)
        flops += counter.get_total_flops()
    gc.collect()
    for parameter in step.model.parameters():
        parameter.grad = None
    with Held(step.tensors()) as held:
        step.run(clock)
    peak = held.peak
    backward = sum(_bytes(p) for n, p in step.model.named_parameters() if "backward_weight" in n.rpartition(".")[2])
    return {"flops": flops // step.period, "peak": peak, "backward_weights": backward}


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def profiled(step: Step, clock: Clock) -> dict[str, float]:
    """Seconds in kernels that multiply, and in all others, of one step."""
    cuda = clock.cuda
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with _quiet(), profile(activities=activities, acc_events=True) as seen:
        step.run(clock)
    products = rest = 0.0
    for event in seen.key_averages():
        if cuda and (event.device_type.name != "CUDA" or event.is_user_annotation):
            continue  # what started a kernel has the kernel's time as well
        own = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        if any(word in event.key.lower() for word in PRODUCTS) and not event.key.startswith("triton"):
            products += own
        else:
            rest += own
    return {"products": products, "rest": rest}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the profiler's library writes to standard error by itself."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# What is written


def _finish(folder: RunFolder, config: BenchConfig, console: Console) -> None:
    rows = table_rows(folder.metrics())
    folder.write_json("results.json", rows)
    folder.write_text("table.md", markdown(rows))
    keys = [key for key in (rows[0] if rows else {}) if key != "ratios"]
    folder.write_text("table.csv", writers.comma_separated(keys, rows))
    if not rows:
        console.print(f"nothing was measured; {folder.path} has the configuration", highlight=False)
        return
    style.save(speed_figure(rows), folder.path / "figures", "cost")
    sections = [
        report.Section(str(case), rows=[{HEADS[k]: cells(row)[k] for k in shown_columns(own)} for row in own])
        for case, own in by_case(rows)
    ]
    page = report.write_html(
        folder, rows=[], title="What a training step costs", finding=finding(rows), summary=SUMMARY,
        sections=sections, captions=captions(rows),
    )  # fmt: skip
    for case, own in by_case(rows):
        narrow = [key for key in shown_columns(own) if key in NARROW]  # for 80 columns
        lines = [[cells(row)[key] for key in narrow] for row in own]
        console.print(
            writers.terminal(narrow, lines, ["rule"], titles=NARROW, wrapped=["rule"], title=str(case), dense=False)
        )
    console.print(f"folder {folder.path}\npage   {page}", highlight=False, markup=False, soft_wrap=True)
