"""Target propagation beside backpropagation and the alignment rules, at three depths: accuracy, cost, gradient angle.

    python benchmarks/target_propagation.py                      digits, depths 1, 3 and 6, 3 seeds; some minutes
    python benchmarks/target_propagation.py --depths 3 --seeds 5 --epochs 20 --members bp ldrl
    python benchmarks/target_propagation.py --data mnist --root FOLDER       its four .gz files, as they are published
    python benchmarks/target_propagation.py --data cifar10-jpeg --root FILE  an .npz of header, data, offsets, labels

Networks are MLPs with ELU and the given number of hidden layers of 64 units, trained by SGD with momentum, with one
learning rate for all members of a depth. Feedback networks have Adam and some steps a batch, and start with as many as
an epoch has batches. It writes results/target-propagation/.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import io
import itertools
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import untied
from untied.targets.propagation import KINDS, TargetPropagation

OUT = Path(__file__).resolve().parents[1] / "results" / "target-propagation"
END = "<!-- /tables -->"
RULES = {"bp": "bp", "sa": "sa", "mkp": "mkp", "ia": "ia(noise=normal, positions=mean)", "dfa": "dfa", "fa": "fa"}
MEMBERS = (*RULES, *KINDS)
STRONGER = {"drl": 1e-4, "ddtp-linear": 1e-4}  # weight decay of the feedback: the damping of its inverse


class Operations(TorchDispatchMode):
    """PyTorch's own counts of products. Its FlopCounterMode cannot see gradients of inputs."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


Split = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training images and labels, test images and labels."""


def digits(root: Path | None) -> Split:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    return x[:1347], y[:1347], x[1347:], y[1347:]


def mnist(root: Path | None) -> Split:
    def read(name: str, skipped: int) -> Tensor:
        file = Path(root or "") / f"{name}-ubyte.gz"
        if root is None or not file.is_file():
            raise SystemExit(f"{file} is not there: give the folder of MNIST's four .gz files with --root")
        return torch.from_numpy(np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=skipped).copy())

    x, test_x = (read(f"{part}-images-idx3", 16).view(-1, 784) / 255 for part in ("train", "t10k"))
    y, test_y = (read(f"{part}-labels-idx1", 8).long() for part in ("train", "t10k"))
    return x, y, test_x, test_y


def cifar10(root: Path | None) -> Split:
    """JPEGs that share a header; colours are averaged over 2 × 2 pixels, so that the MLP has 768 inputs."""
    if root is None or not root.is_file():
        raise SystemExit(f"{root} is not there: give the .npz file of CIFAR-10's JPEGs with --root")
    held = np.load(root)
    header, data, offsets = held["header"].tobytes(), held["data"].tobytes(), held["offsets"]
    files = (header + data[a:b] for a, b in itertools.pairwise(offsets))
    x = torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(f)).convert("RGB"))) for f in files])
    x = F.avg_pool2d(x.permute(0, 3, 1, 2) / 255, 2).flatten(1)
    y, test = torch.from_numpy(held["labels"]).long(), torch.from_numpy(held["split"]) == 1
    return x[~test], y[~test], x[test], y[test]


DATA: dict[str, Callable[[Path | None], Split]] = {"digits": digits, "mnist": mnist, "cifar10-jpeg": cifar10}


@functools.lru_cache(maxsize=1)
def whole(data: str, root: Path | None) -> Split:
    return DATA[data](root)


def load(data: str, root: Path | None, seed: int, images: int) -> Split:
    """As many training images as are asked for, others by seed where there are more; every test image of the set, of
    the digits those of a split by seed."""
    x, y, test_x, test_y = whole(data, root)
    if data == "digits":
        x, y = torch.cat([x, test_x]), torch.cat([y, test_y])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    mean, std = x.mean(), x.std()
    if data == "digits":
        test_x, test_y = x[order[1347:]], y[order[1347:]]
    kept = order[: min(images, 1347 if data == "digits" else len(x))]
    return (x[kept] - mean) / std, y[kept], (test_x - mean) / std, test_y


def network(inputs: int, depth: int, width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for i, o in itertools.pairwise((inputs, *[width] * depth, 10)):
        parts += [nn.Linear(i, o), nn.ELU()]
        nn.init.kaiming_normal_(parts[-2].weight)
        nn.init.zeros_(parts[-2].bias)
    return nn.Sequential(*parts[:-1])


def angle(model: nn.Module, ours: list[Tensor], x: Tensor, y: Tensor) -> float:
    """Between a pseudogradient of all forward weights and backpropagation's, in degrees."""
    plain = untied.tie_(model) if isinstance(next(iter(model)), untied.Untied) else model
    true = torch.autograd.grad(F.cross_entropy(plain(x), y), list(plain.parameters()))
    a, b = torch.cat([g.flatten() for g in ours]), torch.cat([g.flatten() for g in true])
    return math.degrees(math.acos(max(-1.0, min(1.0, float(F.cosine_similarity(a, b, dim=0))))))


Step = Callable[[Tensor, Tensor, int], None]
Gradient = Callable[[Tensor, Tensor], list[Tensor]]


def by_rule(model: nn.Sequential, text: str, lr: float) -> tuple[Step, Gradient]:
    untied.untie_(model, text)
    weights, others = untied.parameter_groups(model)
    others = [B for B in others if B.requires_grad]
    forward = torch.optim.SGD(weights, lr, momentum=0.9)
    backward = torch.optim.SGD(others, 0.5 if text == "sa" else 0.05) if others else None

    def step(x: Tensor, y: Tensor, i: int) -> None:
        with untied.record(model, step=i, targets=y) as tape:
            task = F.cross_entropy(model(x), y)
        forward.zero_grad()
        if backward is not None:
            backward.zero_grad()
        (task + tape.penalty()).backward()
        forward.step()
        if backward is not None:
            backward.step()

    def gradient(x: Tensor, y: Tensor) -> list[Tensor]:
        with untied.record(model, align=False, targets=y):
            task = F.cross_entropy(model(x), y)
        return list(torch.autograd.grad(task, weights))

    return step, gradient


def by_targets(
    model: nn.Sequential, kind: str, lr: float, x: Tensor, k: int, warm: int, options: argparse.Namespace
) -> tuple[Step, Gradient]:
    beta = 1.0 if kind == "tp" else options.beta  # its targets carry G's whole error, however small the step
    net = TargetPropagation(model, x[:64], kind, beta=beta, noise=options.noise, strict=False)
    forward = torch.optim.SGD(net.forward_parameters(), lr, momentum=0.9)
    backward = None
    if net.feedback:  # dtp with one hidden layer has no target that comes through any
        decay = STRONGER.get(kind, 0.0)
        backward = torch.optim.Adam(net.feedback_parameters(), options.feedback_lr, weight_decay=decay)
    for i in range(warm if backward else 0):
        start = 64 * i % (len(x) - 64)
        backward.zero_grad()
        net.feedback_loss(net.activity(x[start : start + 64])).backward()
        backward.step()

    def step(x: Tensor, y: Tensor, i: int) -> None:
        net.step(x, lambda out: F.cross_entropy(out, y), forward, backward, k)

    def gradient(x: Tensor, y: Tensor) -> list[Tensor]:
        losses = net.local_losses(net.activity(x), lambda out: F.cross_entropy(out, y))
        return list(torch.autograd.grad(torch.stack(losses).sum(), net.forward_parameters()))

    return step, gradient


def train(member: str, depth: int, seed: int, options: argparse.Namespace) -> dict[str, float | str]:
    x, y, test_x, test_y = load(options.data, options.root, seed, options.images)
    model = network(x.shape[1], depth, options.width, seed)
    lr, batches = options.lr / math.sqrt(depth), len(x) // 64
    if member in RULES:
        step, gradient = by_rule(model, RULES[member], lr)
    else:
        step, gradient = by_targets(model, member, lr, x, options.feedback_steps, batches, options)
    with Operations() as counted:
        step(x[:64], y[:64], 0)
    torch.manual_seed(1000 + seed)
    start = time.perf_counter()
    for i in range(1, options.epochs * batches + 1):
        rows = torch.randint(len(x), (64,))
        step(x[rows], y[rows], i)
    spent = math.nan if options.untimed else (time.perf_counter() - start) / (options.epochs * batches)
    found = gradient(x[:512], y[:512])
    model.eval()
    with torch.no_grad():
        accuracy = float((model(test_x).argmax(1) == test_y).double().mean())
    bad = not all(g.isfinite().all() for g in found)
    return {"member": member, "depth": depth, "seed": seed, "accuracy": accuracy, "flops": counted.total,
            "seconds": spent, "angle": math.nan if bad else angle(model, found, x[:512], y[:512])}  # fmt: skip


def spread(values: list[float]) -> str:
    if any(math.isnan(v) for v in values):
        return "–"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def machine() -> str:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return f"commit {commit.stdout.strip()}, {cpu}, one thread of a machine that others used, torch {torch.__version__}"


def page(rows: list[dict[str, float | str]], options: argparse.Namespace) -> str:
    timed = not any(math.isnan(float(r["seconds"])) for r in rows)
    words = " ".join(["python", *sys.argv]).replace(str(options.root), "PATH")
    lines = [f"# Target propagation on {options.data}\n",
             f"`{words}`; {machine()}.\n",
             f"MLPs of {options.width} units a layer with ELU, {options.epochs} epochs of "
             f"{options.images // 64} batches of 64, {options.seeds} seeds, learning rate {options.lr:g}/√depth with "
             f"momentum 0.9; feedback: Adam, lr {options.feedback_lr:g}, {options.feedback_steps} steps a batch, "
             f"β = {options.beta:g} (`tp`: 1), σ = {options.noise:g}. "
             "Cost is over backpropagation's; the angle is that of all forward weights' "
             "pseudogradient to backpropagation's gradient, at the end.\n"]  # fmt: skip
    for depth in sorted({int(r["depth"]) for r in rows}):
        lines += [f"## {depth} hidden layer{'s' if depth > 1 else ''}\n",
                  "| member | test accuracy, % | gradient angle, ° | cost, counted |" + timed * " cost, measured |",
                  "|:--|--:|--:|--:|" + timed * "--:|"]  # fmt: skip
        here = [r for r in rows if r["depth"] == depth]
        base = [r for r in here if r["member"] == "bp"] or here
        for member in MEMBERS:
            own = [r for r in here if r["member"] == member]
            if own:
                costs = [statistics.fmean(float(r[k]) for r in own) / statistics.fmean(float(r[k]) for r in base)
                         for k in ("flops", "seconds")]  # fmt: skip
                accuracy, turned = [100 * float(r["accuracy"]) for r in own], [float(r["angle"]) for r in own]
                cells = [f"`{member}`", spread(accuracy), spread(turned), f"{costs[0]:.2f}", f"{costs[1]:.1f}"][
                    : 4 + timed
                ]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def write(rows: list[dict[str, float | str]], options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    readme = options.out / "README.md"
    below = readme.read_text().partition(END)[2] if readme.is_file() else "\n"  # what was written by hand stays
    readme.write_text(page(rows, options) + END + below)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--root", type=Path, help="where the data lie; the digits need none")
    parser.add_argument("--images", type=int, help="of training; 1,347 digits, 10,000 of the others if left out")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), choices=MEMBERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--feedback-lr", type=float, default=0.003)
    parser.add_argument("--feedback-steps", type=int, default=5)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--untimed", action="store_true", help="no times: for a machine that others use too")
    parser.add_argument("--out", type=Path, help="results/target-propagation; of other data a folder in it")
    options = parser.parse_args()
    options.images = options.images or (1347 if options.data == "digits" else 10_000)
    options.out = options.out or (OUT if options.data == "digits" else OUT / options.data)
    torch.set_num_threads(1)
    rows = []
    if (options.out / "runs.csv").is_file():  # what is not run anew stays
        kept = list(csv.DictReader((options.out / "runs.csv").open()))
        rows = [{k: v if k == "member" else float(v) for k, v in r.items()} for r in kept]
        anew = {(m, d) for m in options.members for d in options.depths}
        rows = [r for r in rows if (r["member"], r["depth"]) not in anew]
    for depth, member in itertools.product(options.depths, options.members):
        for seed in range(options.seeds):
            rows.append(train(member, depth, seed, options))
            print(*(f"{v:.3g}" if isinstance(v, float) else v for v in rows[-1].values()), flush=True)
        write(rows, options)


if __name__ == "__main__":
    main()
