"""What each rule costs on a GPU with the whole step compiled: results/performance-GPU, in one command of some minutes.

    python benchmarks/performance_gpu.py --out results/performance-h100
    python benchmarks/performance_gpu.py --models "resnet18: fa; aa" --batch 64 --out runs/try

ResNets on images of 224 x 224 in bf16, each rule against the plain network, interleaved, in a process of its own: all
compile at once, as that takes the CPU alone, and then they are timed one after the other.
"""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
import json
import multiprocessing as mp
import os
import queue
import statistics
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch._functorch import config as functorch
from torch.profiler import ProfilerActivity, profile

import untied
from untied.lab.experiments.bench import profiled
from untied.lab.keeping.environment import environment
from untied.lab.measuring.timing import Clock, Step, interleaved, plain_step, untied_step
from untied.lab.models import build
from untied.lab.settings.optimizer import OptimizerConfig
from untied.rules import parse

RULES = ("fa", "kp", "sa", "wm", "aa", "ia", "wm(fraction=1/8)", "aa(fraction=1/8)", "ia(fraction=1/8)")
PLAIN, CONTROL = "plain", "plain again"
FORWARD, BACKWARD = OptimizerConfig(weight_decay=1e-4), OptimizerConfig()
COUNTED = {"wm": 4 / 3, "aa": 5 / 3, "ia": 5 / 3}  # tests/test_flops.py counts them


def step_of(name: str, model_name: str, given: argparse.Namespace) -> Step:
    """A compiled step of the plain network, or of a rule."""
    torch.manual_seed(0)
    size = given.image_size
    x = torch.randn(given.batch, 3, size, size, device="cuda").contiguous(memory_format=torch.channels_last)
    y = torch.randint(1000, (given.batch,), device="cuda")
    model = build(model_name, input_shape=(3, size, size), classes=1000).train()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    options: dict[str, Any] = {"fullgraph": True} if given.compile else {}
    if name in (PLAIN, CONTROL):
        return plain_step(model.cuda(), x, y, FORWARD, "bf16", **options)
    rule = parse(name)
    untied.untie_(model, rule)
    return untied_step(model.cuda(), rule, x, y, FORWARD, BACKWARD, "bf16", **options)


def first(step: Step, clock: Clock) -> float:
    """Seconds of the first step, which compiles. Where others run theirs just now, wait for their memory."""
    before = time.perf_counter()
    for _ in range(20):
        try:
            step.run(clock)
            break
        except torch.cuda.OutOfMemoryError:
            gc.collect()
            torch.cuda.empty_cache()
            time.sleep(2)
    taken = time.perf_counter() - before
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return taken


def peak(step: Step, clock: Clock) -> int:
    """Bytes at the highest of a step, with what stays from step to step, by the allocator."""
    gc.collect()
    torch.cuda.synchronize()
    kept = sum(t.numel() * t.element_size() for t in step.tensors())
    for parameter in step.model.parameters():
        parameter.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step.run(clock)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before + kept


def kernels(step: Step, clock: Clock) -> dict[str, float]:
    """Milliseconds of a step's kernels by name, those of the most time."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as seen:
        step.run(clock)
        torch.cuda.synchronize()
    events = [e for e in seen.key_averages() if e.device_type.name == "CUDA" and not e.is_user_annotation]
    events.sort(key=lambda e: -e.self_device_time_total)
    return {f"{e.key[:120]} x{e.count}": e.self_device_time_total / 1e3 for e in events[:60]}


def job(model: str, rule: str, given: argparse.Namespace, start: Any, out: Any) -> None:
    """One rule and the plain network, in this process: says when both are compiled, waits for all others, measures."""
    row: dict[str, Any] = {"model": model, "rule": rule}
    steps: dict[str, Step] = {}
    torch.backends.cudnn.benchmark = True
    functorch.force_non_lazy_backward_lowering = True  # else activations are held while the backward pass compiles
    clock = Clock("cuda")
    try:
        steps[rule] = step_of(rule, model, given)
        row["first_step"] = first(steps[rule], clock)
        steps[PLAIN] = step_of(PLAIN, model, given)
        first(steps[PLAIN], clock)
        out.put(None)
        start.wait()
        with FileLock(given.lock):
            rounds = interleaved(steps, clock, given.rounds, warming=5)
            row["rounds"] = [{name: parts._asdict() for name, parts in found.items()} for found in rounds]
            row["peaks"] = {name: peak(step, clock) for name, step in steps.items()}
            row["kernels"] = {name: kernels(step, clock) for name, step in steps.items()}
            row["profiles"] = [{n: profiled(s, clock) for n, s in steps.items()} for _ in range(given.profile)]
            torch.cuda.empty_cache()
    except Exception:
        row["error"] = traceback.format_exc()
    if steps:
        own = [p for n, p in steps[rule].model.named_parameters() if n.endswith("backward_weight")]
        row["backward_weights"] = sum(p.numel() * p.element_size() for p in own)
    out.put(row)


def largest_activation(model: str, given: argparse.Namespace) -> int:
    """Bytes, in bf16, of the largest output of a layer with a kernel."""
    sizes = []
    with torch.device("meta"):
        net = build(model, input_shape=(3, given.image_size, given.image_size), classes=1000)
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.register_forward_hook(lambda _layer, _inputs, y: sizes.append(2 * y.numel()))
        net(torch.empty(given.batch, 3, given.image_size, given.image_size))
    return max(sizes)


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows. Each is written as it comes."""
    context = mp.get_context("spawn")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")  # of each process
    start, out = context.Event(), context.Queue()
    given.lock = str(Path(tempfile.mkdtemp()) / "gpu.lock")
    jobs = [context.Process(target=job, args=(model, rule, given, start, out), daemon=True)
            for model, rules in given.models.items() for rule in (CONTROL, *rules)]  # fmt: skip
    for process in jobs:
        process.start()
    began, rows, ready = time.perf_counter(), [], 0
    while len(rows) < len(jobs):
        try:
            row = out.get(timeout=2)
        except queue.Empty:
            late = time.perf_counter() - began > given.patience
            if not start.is_set() and late:
                print(
                    f"{ready} of {len(jobs)} are compiled after {given.patience:.0f} s: the rest is left out",
                    flush=True,
                )
                start.set()
            if late and not any(process.is_alive() for process in jobs):
                break
            continue
        if row is None:
            ready += 1
        else:
            rows.append(row)
            print(row["model"], row["rule"], row.get("error", "")[-600:] or ratio(row), flush=True)
            (given.out / "rows.json").write_text(json.dumps(rows))
        if ready + sum("error" in r for r in rows) == len(jobs) and not start.is_set():
            print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
            start.set()
    return rows


def ratios(row: dict[str, Any]) -> list[float]:
    return [sum(r[row["rule"]].values()) / sum(r[PLAIN].values()) for r in row["rounds"]]


def ratio(row: dict[str, Any]) -> str:
    return f"{statistics.median(ratios(row)):.3f}"


def counted(rule: str) -> float:
    """Products over backpropagation's, all layers alike."""
    kind = parse(rule) if rule != CONTROL else None
    more = COUNTED.get(getattr(kind, "name", ""), 1.0) - 1
    return 1 + more * getattr(kind, "fraction", 1.0)


HEADS = ("rule", "step / plain", "middle half", "counted", "+ products", "+ the rest", "images/s",
         "memory above plain (MB)", "its bound (MB)", "first step (s)")  # fmt: skip


def table_row(row: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """A measured rule beside the plain network in the same process."""
    rule, peaks = row["rule"], row["peaks"]
    low, middle, high = statistics.quantiles(ratios(row), n=4)
    own, plain = (statistics.median(sum(r[name].values()) for r in row["rounds"]) for name in (rule, PLAIN))
    more = {}
    for part in ("products", "rest"):
        gained = [(p[rule][part] - p[PLAIN][part]) / sum(p[PLAIN].values()) for p in row["profiles"]]
        more[part] = statistics.median(gained) if gained else float("nan")
    bound = 3 * row["backward_weights"] + largest_activation(row["model"], given)
    return {
        "model": row["model"], "rule": rule, "rounds": len(row["rounds"]), "ratio": middle, "low": low, "high": high,
        "counted": counted(rule), **more, "plain_ms": 1e3 * plain, "images_per_second": given.batch / own,
        "above_plain_mb": (peaks[rule] - peaks[PLAIN]) / 1e6, "bound_mb": 0 if rule == CONTROL else bound / 1e6,
        "peak_plain_mb": peaks[PLAIN] / 1e6, "first_step": row["first_step"],
    }  # fmt: skip


def page(given: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """README.md, table.csv, kernels.csv and environment.json."""
    order = {name: i for i, name in enumerate((CONTROL, *dict.fromkeys(itertools.chain(*given.models.values()))))}
    table = [
        table_row(row, given) for row in sorted((r for r in rows if "error" not in r), key=lambda r: order[r["rule"]])
    ]
    if not table:
        raise SystemExit("nothing was measured: the errors are above")
    with open(given.out / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    with open(given.out / "kernels.csv", "w", newline="") as file:
        kernels_of = csv.writer(file)
        kernels_of.writerow(("model", "process of", "step of", "kernel x launches", "ms"))
        for row in rows:
            for name, found in row.get("kernels", {}).items():
                kernels_of.writerows((row["model"], row["rule"], name, k, f"{ms:.3f}") for k, ms in found.items())
    lines = []
    for model in given.models:
        own = [t for t in table if t["model"] == model]
        lines += [f"**{model}**", "", f"| {' | '.join(HEADS)} |", "|:--|" + "--:|" * (len(HEADS) - 1)] if own else []
        for t in own:
            cells = (f"`{t['rule']}`", f"{t['ratio']:.3f}", f"{t['low']:.3f} – {t['high']:.3f}", f"{t['counted']:.3f}",
                     f"{t['products']:+.3f}", f"{t['rest']:+.3f}", f"{t['images_per_second']:,.0f}",
                     f"{t['above_plain_mb']:.0f}", f"{t['bound_mb']:.0f}", f"{t['first_step']:.0f}")  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        if own:
            lines += ["", f"A plain step takes {own[0]['plain_ms']:.1f} ms and {own[0]['peak_plain_mb']:,.0f} MB.", ""]
    made = environment()
    (given.out / "environment.json").write_text(json.dumps(made, indent=2) + "\n")
    commit = ((made["git"] or {}).get("commit") or "unknown")[:9]
    how = "compiled as one graph" if given.compile else "not compiled"
    (given.out / "README.md").write_text(
        f"# Cost of a training step on {', '.join(made['machine']['gpus']) or 'a GPU'}\n\n"
        f"Made by `python benchmarks/performance_gpu.py`: {given.image_size} x {given.image_size} pixels, batch "
        f"{given.batch}, bf16 (autocast), channels last, {how}, {given.rounds} interleaved rounds, torch "
        f"{made['packages']['torch']}, commit {commit}, {made['date'][:10]}. What the columns are: "
        "[docs/performance.md](../../docs/performance.md). Memory is the allocator's peak in a step; its bound is B, "
        "its momentum, one tensor of each weight's size, and the largest activation.\n\n"
        + "\n".join(lines).rstrip() + "\n"
    )  # fmt: skip
    print((given.out / "README.md").read_text(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"],
                        help='each perhaps with its rules, as in "resnet18: fa; aa(fraction=1/8)"')  # fmt: skip
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds for compiling; what is not done is left out"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    words = (model.partition(":") for model in given.models)
    given.models = {m.strip(): [r.strip() for r in rules.split(";")] if rules else RULES for m, _, rules in words}
    given.out.mkdir(parents=True, exist_ok=True)
    page(given, measure(given))


if __name__ == "__main__":
    main()
