"""The same rules written otherwise, side by side in one run: BioTorch, if it is installed, and autograd of the penalty.

    python benchmarks/others.py [--model resnet18-w16] [--rounds 15]

The second is what one writes first: a plain network with a backward weight beside each kernel, the paper's penalty of
each layer's input and output built in autograd's graph, detached so that it reaches B alone. Its task goes through
plain backpropagation, so that only R's cost differs. BioTorch converts a module itself and is timed with its layers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untied
from untied.lab.measuring.timing import Clock, Step, interleaved, plain_step, untied_step
from untied.lab.models import build
from untied.lab.settings.optimizer import OptimizerConfig
from untied.rules import parse

RULES = ("sa", "wm", "aa", "ia")
BIOTORCH = {"fa": "fa", "usf": "usf", "brsf": "brsf", "frsf": "frsf"}


class WithPenalty(nn.Module):
    """A plain network whose forward pass also gives the penalty of a rule, by autograd."""

    def __init__(self, model: nn.Module, rule: str) -> None:
        super().__init__()
        self.model, self.rule, self.R = model, rule, torch.zeros(())
        self.backward_weights = nn.ParameterList()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                B = nn.Parameter(torch.empty_like(layer.weight).copy_(layer.weight.detach()))
                self.backward_weights.append(B)
                layer.register_forward_hook(self.hook(B))

    def hook(self, B: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def note(layer: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
            x, y, W = inputs[0].detach(), y.detach(), layer.weight.detach()  # type: ignore[operator]
            if isinstance(layer, nn.Conv2d):
                p = lambda: F.conv2d(x, B, None, layer.stride, layer.padding)  # noqa: E731
                rest = [s - ((o - 1) * t - 2 * q + k) for s, o, t, q, k in
                        zip(x.shape[2:], y.shape[2:], layer.stride, layer.padding, layer.kernel_size, strict=True)]  # type: ignore[arg-type]  # fmt: skip
                r = lambda: F.conv_transpose2d(y, B, None, layer.stride, layer.padding, rest)  # type: ignore[arg-type]  # noqa: E731
            else:
                p, r = lambda: x @ B.T, lambda: y @ B
            n = len(x)
            amp, decay = (lambda: -(p() * y).sum() / n), lambda: B.square().sum() / 2
            terms = {
                "sa": lambda: -(B * W).sum() + decay(),
                "wm": lambda: amp() + decay(),
                "aa": lambda: amp() + p().square().sum() / 2 / n,
                "ia": lambda: amp() + decay() + r().square().sum() / 2 / n,
            }
            self.R = self.R + terms[self.rule]()

        return note

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.R = torch.zeros(())
        return self.model(x), self.R


def by_autograd(model: nn.Module, rule: str, x: Tensor, y: Tensor) -> Step:
    """A step of it, with two optimizers."""
    both = WithPenalty(model, rule)
    forward = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9, weight_decay=1e-4)
    backward = torch.optim.SGD(both.backward_weights.parameters(), lr=1e-12, momentum=0.9)

    def run(clock: Clock) -> None:
        clock.start()
        forward.zero_grad()
        backward.zero_grad()
        logits, R = both(x)
        loss = F.cross_entropy(logits, y) + R
        clock.mark()
        loss.backward()
        clock.mark()
        forward.step()
        backward.step()
        clock.mark()

    return Step(run, model, (forward, backward))


def biotorch_model(model: nn.Module, mode: str) -> nn.Module | None:
    """The model converted by BioTorch; None where it is not installed or does not convert it."""
    try:
        from biotorch.module.biomodule import BioModule
    except ImportError:
        return None
    converted = BioModule(model, mode=mode)
    return converted.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]  # its layers are new


def write(out: Path, threads: int = 1, clock: str = "wall", model: str = "resnet18", rounds: int = 15) -> None:
    """A table in Markdown: ratio to the plain network, ours and the other's."""
    torch.set_num_threads(threads)
    x = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y, sgd = torch.randint(10, (64,)), OptimizerConfig(weight_decay=1e-4)

    def net() -> nn.Module:
        torch.manual_seed(0)
        made = build(model, input_shape=(3, 32, 32), classes=10).train()
        return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    steps = {"plain": plain_step(net(), x, y, sgd)}
    for rule in (*RULES, *BIOTORCH):
        ours = net()
        untied.untie_(ours, rule)
        steps[rule] = untied_step(ours, parse(rule), x, y, sgd, sgd)
    for rule in RULES:
        steps[f"{rule} by autograd"] = by_autograd(net(), rule, x, y)
    for rule, mode in BIOTORCH.items():
        converted = biotorch_model(net(), mode)
        if converted is not None:
            steps[f"{rule} by BioTorch"] = plain_step(converted, x, y, sgd)
    found = list(interleaved(steps, Clock(cpu=clock == "cpu"), rounds))
    ratio = {name: statistics.median(r[name].total / r["plain"].total for r in found) for name in steps}
    command = f"benchmarks/others.py --model {model} --threads {threads}"
    about = f"{model}, batch 64, float32, {clock} clock, {rounds} rounds (`{command}`)"
    lines = [f"{about}: time of a step over plain PyTorch's.", "",
             "| rule | untied | autograd of the penalty | BioTorch |", "|:--|--:|--:|--:|"]  # fmt: skip
    for rule in (*RULES, *BIOTORCH):
        others = (f"{ratio[k]:.3f}" if (k := f"{rule} by {who}") in ratio else "–" for who in ("autograd", "BioTorch"))
        lines.append(f"| `{rule}` | {ratio[rule]:.3f} | {' | '.join(others)} |")
    if not any("BioTorch" in name for name in steps):
        lines += ["", "BioTorch was not installed."]
    out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, default=Path("others.md"))
    given = parser.parse_args()
    write(given.out, given.threads, given.clock, given.model, given.rounds)
