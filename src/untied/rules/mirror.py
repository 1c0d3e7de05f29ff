"""The mirrored Kolen-Pollack rule: B copies every update of W, and a noise mirror averages its measurements of W.

Legend
    E    B − W, the error of the backward weight         i  how many inputs reach one output of the layer
    P₀   2, ‖E‖² / ‖W‖² of a B that is drawn like W       m  noise patches in one evaluation
    S    noise patches heard so far

The copy leaves E as it is, so nothing lags. One evaluation gives each weight an unbiased estimate of W, of relative
variance i/m. Estimates of what does not drift are averaged: the optimal gain (a Kalman filter without drift) is

    k = m / (i/P₀ + S + m)            and leaves            ‖E‖² / ‖W‖² = 1 / (1/P₀ + S/i)

A patch is one input of the layer at a single position, so padding, stride and dilation have no part in it.
docs/local_rule.md explains the rule and names its sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import UntiedError
from ..geometry import Geometry
from ..operations.noise import hadamard
from ..routes.route import Place
from ..spiking import estimate
from .rule import Rule, Visit, whole

__all__ = ["MirroredKolenPollack", "measured", "needed_patches"]

PRIOR = 2.0
WINDOWS = 1000  # of spiking, at least, in one evaluation
BLOCK = 1 << 22  # numbers of noise that are in memory at a time


class MirroredKolenPollack(Rule):
    """B takes W's realised update, and a noise mirror averages its own measurements of W. Local, and nothing to tune.

    B moves when `untied.record` is entered, outside every optimizer: momentum, clipping, loss scaling and weight
    decay act on W, and B takes what came of it. So E = B − W does not change with any task step.

    Args:
        noise: of the mirror: "normal", "uniform", "codes" (orthogonal over the patches of an evaluation, as far as
            these suffice), "lattice" (as many codes as it takes to measure W exactly, in one evaluation), or "spikes":
            no noise but the discontinuity at the threshold of spiking units (`untied.spiking`), in as many windows as
            patches, at least `WINDOWS`; it counts for as many patches of normal noise as have its own error.
        every: the mirror is evaluated at every k-th step; `untied.record` then needs ``step``.
        until: evaluations after which it rests for good and the copy goes on alone; 0 never rests. With one evaluation
            exact, "lattice" rests after the first.
        forget: a floor under the gain, from 0 up to 1, to follow a W that moves unseen.

    Raises:
        UntiedError: an impossible value.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> _ = untied.untie_(model, "mkp(noise=lattice)")
    >>> with untied.record(model) as tape:
    ...     loss = model(torch.randn(16, 4)).square().mean()
    >>> (loss + tape.penalty()).backward()
    >>> max(untied.metrics.weight_angles(model).values()) < 1e-3
    True
    """

    name, motion, local, moves_itself, mirrors = "mkp", "estimate", True, True, True
    alone = "moves B by measurements of its own, and no R does: write one of the two, or kp in its place"
    title, source = "mirrored Kolen-Pollack", "docs/local_rule.md"
    NOISE: ClassVar[tuple[str, ...]] = ("normal", "uniform", "codes", "lattice", "spikes")
    OPTIONS: ClassVar[dict[str, Any]] = {"noise": "normal", "every": 1, "until": 64, "forget": 0.0}

    def __init__(self, noise: str = "normal", every: int = 1, until: int = 64, forget: float = 0.0) -> None:
        if noise not in self.NOISE:
            raise UntiedError(f"noise={noise!r} is not possible: choose one of {', '.join(self.NOISE)}")
        if isinstance(until, bool) or not isinstance(until, int) or until < 0:
            raise UntiedError(f"until={until!r} is not possible: give a number of evaluations, or 0 to go on for ever")
        if isinstance(forget, bool) or not isinstance(forget, int | float) or not 0 <= forget <= 1:
            raise UntiedError(f"forget={forget!r} is not possible: give a gain from 0 to 1")
        self.noise, self.every, self.until, self.forget = noise, whole("every", every), until, float(forget)

    @classmethod
    def possible(cls) -> list[str]:
        return list(cls.OPTIONS)

    @property
    def keeps(self) -> tuple[str, ...]:
        return ("backward_weight", "backward_follows", "backward_heard")

    @property
    def needs_record(self) -> bool:
        return True

    @property
    def options(self) -> dict[str, Any]:
        """Every option that is not at its default."""
        return {k: v for k, default in self.OPTIONS.items() if (v := getattr(self, k)) != default}

    def beside(self, at: Place) -> dict[str, Tensor | None]:
        W = at.W
        stream = torch.randint(1 << 31, (1,))
        return {
            "backward_weight": nn.Parameter(at.draw(), requires_grad=False),
            "backward_follows": W.detach().clone(),  # W as B saw it last
            # the noise's stream; patches heard; evaluations; patches of the task in a step
            "backward_heard": torch.cat([stream, torch.zeros(3, dtype=stream.dtype)]).to(W.device),
        }

    def settle(self, visit: Visit) -> None:
        """B takes what W has been moved by since.

        Raises:
            UntiedError: B is parametrized, or W is sharded (FSDP).
        """
        if hasattr(visit.W, "full_tensor"):
            raise UntiedError(
                f"layer {visit.name}: its weights are sharded, and {self.name} needs the whole of W between two steps: "
                "use DDP, or a rule that an optimizer moves, such as kp or sa"
            )
        if not isinstance(visit.beside["backward_weight"], nn.Parameter):
            raise UntiedError(
                f"layer {visit.name}: {self.name} moves B itself, and a parametrization makes B anew at each call: "
                "take it off B, or use another rule for this layer"
            )
        with torch.no_grad():
            B, follows, W = visit.beside["backward_weight"], visit.beside["backward_follows"], visit.W.detach()
            B.data.add_(W - follows)  # .data: a graph that was recorded before keeps its own right to B
            follows.copy_(W)

    def visit(self, visit: Visit) -> None:
        self.settle(visit)
        if visit.align and self.is_due(visit):
            self.evaluate(visit)

    def is_due(self, visit: Visit) -> bool:
        """Whether the mirror is evaluated now.

        Raises:
            UntiedError: the rule has ``every``, and no step is given.
        """
        if self.every > 1:
            if visit.step is None:
                raise UntiedError(
                    f"layer {visit.name}: rule {self} is evaluated every {self.every} steps, and no step was given: "
                    "use untied.record(model, step=i)"
                )
            if visit.step % self.every:
                return False
        return self.most == 0 or heard(visit.beside)[2] < self.most

    @property
    def most(self) -> int:
        """How many evaluations there are; 0 for no end."""
        return 1 if self.noise == "lattice" and not self.forget else self.until

    def rest(self, beside: Mapping[str, Any]) -> None:
        beside["backward_heard"][2] = self.most

    def evaluate(self, visit: Visit) -> None:
        """One measurement of W, averaged into B, from as many noise patches as the task took in a step: examples times
        positions. Before the first step it is as many as inputs reach one output; "lattice" takes what it needs.
        """
        B, W = visit.beside["backward_weight"], visit.W.detach()
        stream, total, evaluations, patches = heard(visit.beside)
        fan_in = visit.geometry.patch(W)[2]
        m = needed_patches(fan_in) if self.noise == "lattice" else patches or fan_in
        with torch.no_grad(), seeded(stream, evaluations, W.device):
            measurement, m = self.measurement(visit, m)
            exact = (
                self.noise in ("codes", "lattice") and m >= fan_in and m == needed_patches(m)
            )  # all codes, each once
            gain = 1.0 if exact else max(m / (fan_in / PRIOR + total + m), self.forget)
            B.data.lerp_(measurement.to(B.dtype), gain)
            visit.beside["backward_heard"][1:3].add_(torch.tensor([m, 1], device=B.device))

    def measurement(self, visit: Visit, patches: int) -> tuple[Tensor, int]:
        """One estimate of W, in its layout, and for how many patches of normal noise it counts. A subclass may measure
        in a way of its own; random numbers are seeded here by the layer's stream and the number of its evaluation.
        """
        W = visit.W.detach()
        if self.noise != "spikes":
            return measured(W, visit.geometry, patches, self.noise), patches
        found = estimate(W, visit.geometry, max(patches, WINDOWS), name=visit.name)
        return found.weight, max(round(visit.geometry.patch(W)[2] / found.variance), 1)

    def predicted_angle(self, beside: Mapping[str, Any], fan_in: int) -> float:
        """The weight angle that the average should have by now, in degrees: ‖E‖² / ‖W‖² = 1 / (1/P₀ + S/i)."""
        return math.degrees(math.atan(math.sqrt(1 / (1 / PRIOR + heard(beside)[1] / fan_in))))

    def __str__(self) -> str:
        words = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.options.items())
        return f"{self.name}({words})" if words else self.name


def measured(W: Tensor, geometry: Geometry, patches: int, noise: str) -> Tensor:
    """An unbiased estimate of W, in its layout, from the layer's own response to noise: correlate(ξ, T_W ξ) / patches.

    Its relative variance is i/patches, more exactly (i + 1)/patches for normal noise, (i − 0.2)/patches for uniform.
    Codes of ±1 have (i − 1)/patches at most, and none where their number is a power of two from i on.

    Args:
        W: [o, i/groups, ...], as the geometry's legend says. patches: of noise, one input at one position each.
        noise: "normal", "uniform", "codes" or "lattice".

    >>> import torch
    >>> from untied.geometry import DENSE
    >>> W = torch.randn(3, 4)
    >>> torch.allclose(measured(W, DENSE, 4, "codes"), W, atol=1e-5)
    True
    """
    bare, shape, fan_in = geometry.patch(W)
    width = math.prod(shape)
    coded = noise in ("codes", "lattice")
    order = torch.randperm(needed_patches(max(fan_in, patches)), device=W.device) if coded else None
    size, total = max(1, BLOCK // max(width, 1)), torch.zeros_like(W)
    columns = torch.arange(fan_in, device=W.device)
    for start in range(0, patches, size):
        n = min(size, patches - start)
        if order is not None:  # groups share no output, so they may have the same codes
            x = hadamard(order[start : start + n], columns, W.dtype).repeat(1, width // fan_in)
        elif noise == "normal":
            x = torch.randn(n, width, dtype=W.dtype, device=W.device)
        else:
            x = (torch.rand(n, width, dtype=W.dtype, device=W.device) - 0.5) * math.sqrt(12.0)
        x = x.view(n, *shape)
        total += bare.correlate(x, bare.project(x, W))
    return total / patches


def needed_patches(fan_in: int) -> int:
    """How many patches measure W exactly with codes: the power of two from the number of inputs of an output on.

    >>> needed_patches(9)
    16
    """
    return 1 << max(fan_in - 1, 0).bit_length()


def heard(beside: Mapping[str, Any]) -> list[int]:
    """The mirror's state as numbers: stream, patches heard, evaluations, patches of the task in a step."""
    return beside["backward_heard"].tolist()  # type: ignore[no-any-return]


class seeded:
    """Random numbers from (stream, count) alone, the same in every process; all others stay as they were."""

    def __init__(self, stream: int, count: int, device: torch.device) -> None:
        self.seed = (stream << 24) + count
        self.fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)
