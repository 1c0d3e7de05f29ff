"""Whether a step costs more than it did: `untied bench` of two commits, taking turns on one machine.

    python benchmarks/between_commits.py 83d1194 HEAD                            half an hour on 2 cores
    python benchmarks/between_commits.py 83d1194 HEAD --repeats 2 -- --models cnn    what follows -- is for untied bench
    python benchmarks/between_commits.py 83d1194 HEAD --repeats 0                a minute: PyTorch's operations alone

Ratios to the plain network drift on a machine with neighbours, so one table is no proof. Each repeat times the earlier
and the later commit one after the other, in an order that alternates; the differences are paired by repeat. Operations
do not drift. They are counted first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scipy import stats

from untied.lab.keeping.environment import environment

ROOT = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def timed(tree: Path, out: Path, options: list[str]) -> dict[str, dict[str, Any]]:
    """Rows of `untied bench` by rule, of the library in ``tree``."""
    command = [sys.executable, "-m", "untied", "bench", "--profile", "0", "--out", str(out), *options]
    subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree / "src")}, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return {row["rule"]: row for row in json.loads((out / "results.json").read_text())}


STEP = """
import collections, json, sys, torch, untied
from torch.utils._python_dispatch import TorchDispatchMode
from untied.lab.models import build

class Counting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        seen[str(func)] += 1
        return out

found = {}
for rule in sys.argv[1:]:
    torch.manual_seed(0)
    model = build("resnet18-w16", input_shape=(3, 32, 32), classes=10).train()
    untied.untie_(model, rule)
    x, y = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    groups = [g for g in untied.parameter_groups(model) if g]
    optimizer = torch.optim.SGD([{"params": g} for g in groups], lr=0.1, momentum=0.9)
    for i in range(2):  # the first makes the optimizer's state
        seen = collections.Counter()
        with Counting():
            with untied.record(model, progress=0.0, step=i) as tape:
                loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            (loss + tape.penalty()).backward()
            optimizer.step()
    found[rule] = seen
print(json.dumps(found))
"""
RULES = ("bp", "fa", "kp", "usf", "sa", "wm", "aa", "ia")


def operations(tree: Path) -> dict[str, dict[str, int]]:
    """By rule: how often a step of ResNet-18 of width 16 calls each of PyTorch's operations."""
    done = subprocess.run([sys.executable, "-c", STEP, *RULES], cwd=tree, check=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tree / "src")})  # fmt: skip
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def counts(commits: list[str], found: list[dict[str, dict[str, int]]]) -> str:
    """Markdown: a row for each rule, and which operations are called more or less often than before."""
    lines = [f"| rule | operations, {commits[0]} | {commits[1]} | more or fewer |", "| :-- | --: | --: | :-- |"]
    for rule in RULES:
        a, b = (f[rule] for f in found)
        changed = {name: b.get(name, 0) - a.get(name, 0) for name in sorted({*a, *b})}
        shown = ", ".join(f"`{name}` {n:+d}" for name, n in changed.items() if n)
        lines.append(f"| `{rule}` | {sum(a.values())} | {sum(b.values())} | {shown} |")
    return "\n".join(lines) + "\n"


def difference(before: list[float], after: list[float]) -> str:
    """The paired difference, with its 95 % interval."""
    paired = [b - a for a, b in zip(before, after, strict=True)]
    mean = statistics.mean(paired)
    if len(paired) < 2:
        return f"{mean:+.3f}"
    half = float(stats.t.ppf(0.975, len(paired) - 1)) * statistics.stdev(paired) / len(paired) ** 0.5
    return f"{mean:+.3f} ± {half:.3f}"


def table(commits: list[str], repeats: list[list[dict[str, dict[str, Any]]]]) -> str:
    """Markdown: a row for each rule that both commits have."""
    lines = [
        f"| rule | step / plain, {commits[0]} | {commits[1]} | difference | counted, {commits[0]} | {commits[1]} "
        f"| memory above plain, {commits[0]} (MB) | {commits[1]} (MB) |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for rule in (name for name in repeats[0][0] if name in repeats[0][1]):
        ratios = [[repeat[at][rule]["ratio"] for repeat in repeats] for at in (0, 1)]
        counted = [repeats[0][at][rule]["counted"] for at in (0, 1)]
        memory = [repeats[0][at][rule]["above_plain_mb"] for at in (0, 1)]
        lines.append(
            f"| `{rule}` | {statistics.mean(ratios[0]):.3f} | {statistics.mean(ratios[1]):.3f} | {difference(*ratios)} "
            f"| {counted[0]:.3f} | {counted[1]:.3f} | {memory[0]:.1f} | {memory[1]:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    own, _, options = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, help="the earlier and the later commit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "between-commits")
    args = parser.parse_args(own.split())
    names = [git("rev-parse", "--short", commit) for commit in args.commits]
    repeats = []
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / str(at) for at in (0, 1)]
        for tree, name in zip(trees, names, strict=True):
            git("worktree", "add", "--detach", str(tree), name)
        try:
            called = [operations(tree) for tree in trees]
            print(counts(names, called), flush=True)
            for i in range(args.repeats):
                found: dict[int, dict[str, dict[str, Any]]] = {}
                for at in (0, 1) if i % 2 == 0 else (1, 0):
                    out = Path(folder) / f"bench-{i}-{at}"
                    found[at] = timed(trees[at], out, options.split() or ["--rounds", "4"])
                repeats.append([found[0], found[1]])
                print(table(names, repeats), flush=True)
        finally:
            for tree in trees:
                git("worktree", "remove", "--force", str(tree))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(
        json.dumps({"commits": names, "repeats": repeats, "operations": called}, indent=1) + "\n"
    )
    about = environment()
    machine, torch = about["machine"], about["packages"]["torch"]
    text = (
        f"# A step of {names[1]} beside one of {names[0]}\n\nMade by `python benchmarks/between_commits.py "
        f"{' '.join(sys.argv[1:])}`: {machine['cpu']}, {machine['cores']} cores, torch {torch}.\n\n## Operations\n\n"
        "Of PyTorch, in a step of `resnet18-w16`.\n\n" + counts(names, called)
    )
    if repeats:
        text += (
            f"\n## Time\n\nMeans over {len(repeats)} repeats of `untied bench {options or '--rounds 4'}`; the "
            "difference is paired by repeat, with its 95 % interval. `plain again` is the control: the plain network "
            "against itself.\n\n" + table(names, repeats)
        )
    (args.out / "README.md").write_text(text)


if __name__ == "__main__":
    main()
