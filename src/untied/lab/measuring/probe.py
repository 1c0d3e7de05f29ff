"""A layer on its own data: what a rule sees of it, how fast R moves B there, and where B comes to rest.

R's gradient in B is taken from the rule itself. For every primitive of Table 1 and any layer type it is affine in B,
H B − drive: B's rest is the solution of a linear system, found by conjugate gradients, and its fastest rate an
eigenvalue of H. No covariance matrix is made. `untied.dynamics.layer` has the same in closed form for a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from untied.geometry import Geometry
from untied.layers.layer import untied_layers
from untied.operations import Signals
from untied.recording import listening
from untied.rules.algebra import Alignment
from untied.rules.call import Call

__all__ = ["Probe", "probed", "spread"]

NOISE_ELEMENTS = 2**18
"""At most so many numbers of noise a layer."""
MOST_ROWS = 4096
"""At most so many vectors go into a layer's covariance."""


@dataclass
class Probe:
    """One backward kernel, and the inputs that its layer was given.

    Attributes:
        name: of the layer. rule: without fraction and every, which change nothing in the mean.
        W, B: the kernels. geometry, bias: of the layer.
        calls: inputs [n, ...], one for each call. passes: forward passes in which they were made.
    """

    name: str
    rule: Alignment
    W: Tensor
    B: Tensor
    geometry: Geometry
    bias: Tensor | None
    calls: list[Tensor] = field(default_factory=list)
    passes: int = 1

    def signals(self, B: Tensor) -> Iterator[tuple[Signals, float]]:
        """Each call, and the factor that makes sums over calls a mean over examples (and positions) of one pass."""
        for x in self.calls:
            positions = max(self.geometry.positions(x, self.geometry.project(x[:1], self.W)), 1)
            if self.rule.operations.noise is not None:  # its mean is wanted: more samples than a weight has inputs
                x = x[:1].expand(self._draws(x, positions), *x.shape[1:])
            share = len(self.calls) / self.passes * positions if self.rule.positions == "mean" else 1
            yield (
                Signals(x, self.W, B, self.geometry, self.rule.operations, self.bias),
                1 / (len(x) * share * self.passes),
            )

    def _draws(self, x: Tensor, positions: int) -> int:
        wanted = 40 * max(self.W[0].numel(), self.W.shape[0]) // positions
        return max(1, min(max(wanted, len(x)), NOISE_ELEMENTS // max(x[0].numel(), 1)))

    @property
    def power(self) -> float:
        """The mean over weights of the squared input that a weight multiplies, as the rule's amp sees it."""
        with _same_noise():
            return sum(scale * float(s.with_input_operations().power.mean()) for s, scale in self.signals(self.B))

    def gradient(self, B: Tensor) -> Tensor:
        """R's gradient in B, its mean over the data."""
        c = self.rule.coefficients(0.5)
        with _same_noise():
            total = self.rule.weight_terms(self.W, B, c)[1]
            for s, scale in self.signals(B) if self.rule.needs_data else ():
                total = total + self.rule.data_terms(s, c, scale)[1]
        return total

    def pull(self, V: Tensor) -> Tensor:
        """H V: how the gradient changes with B."""
        return self.gradient(V) - self._drift

    @property
    def _drift(self) -> Tensor:
        return self.gradient(torch.zeros_like(self.B))

    @property
    def is_affine(self) -> bool:
        """Whether R's gradient is affine in B, so that what follows holds; tried out at B."""
        once, twice = self.pull(self.B), self.pull(2 * self.B)
        return bool(((twice - 2 * once).norm() <= 1e-3 * twice.norm()).item())

    def rate(self) -> float:
        """⟨W, H W⟩ / ⟨W, W⟩: the rate, in flow time, at which B's part along W nears its rest. NaN if W is zero."""
        size = float(self.W.square().sum())
        return float((self.W * self.pull(self.W)).sum()) / size if size else math.nan

    def fastest(self, iterations: int = 12) -> float:
        """H's largest eigenvalue, from below. With a learning rate above 2 (1 + momentum) / this, B oscillates away."""
        generator = torch.Generator(self.B.device).manual_seed(0)
        V, value = torch.randn(self.B.shape, generator=generator, device=self.B.device, dtype=self.B.dtype), 0.0
        drift = self._drift
        for _ in range(iterations):
            V = V / V.norm().clamp(min=1e-30)
            HV = self.gradient(V) - drift
            value, V = float((V * HV).sum()), HV
        return value

    def rest(self, iterations: int = 40) -> Tensor | None:
        """Where B comes to rest from where it is: H B = drive; None where it runs away in some direction.

        Directions in which nothing moves keep what B has there, as in training.
        """
        drift, B = self._drift, self.B.clone()
        residual = -self.gradient(B)
        V, size = residual, residual.square().sum()
        enough = 1e-8 * max(float(size), float(drift.square().sum()))
        for _ in range(iterations):
            if float(size) <= enough:
                break
            HV = self.gradient(V) - drift
            curvature = (V * HV).sum()
            if float(curvature) <= 1e-9 * float(V.square().sum()):
                return None
            step = size / curvature
            B, residual = B + step * V, residual - step * HV
            size, before = residual.square().sum(), size
            V = residual + size / before * V
        return B


def probed(model: nn.Module, batches: list[Tensor], examples: int) -> list[Probe]:
    """Run images [n, c, h, w] through a converted model, in training mode, and keep what its layers are given.

    Args:
        examples: of each batch, that are kept for each layer.
    """
    found: dict[tuple[str, int, torch.Size], Probe] = {}
    layers = untied_layers(model)
    names = {id(layer): name for name, layer in layers.items()}

    class Probing:
        def note(self, call: Call) -> None:
            rule = cast(Alignment, call.layer.rule)
            options = {k: v for k, v in rule.options.items() if k not in ("fraction", "every")}
            name, bias = names[id(call.layer)], getattr(call.layer, "bias", None)
            probe = found.setdefault(
                (name, call.W.data_ptr(), call.W.shape),
                Probe(name, Alignment(rule.combination, **options), call.W.detach(), call.B.detach(), call.geometry,
                      None if bias is None else bias.detach(), passes=len(batches)),
            )  # fmt: skip
            x = call.x if call.geometry.batch_size(call.x) is not None else call.x.unsqueeze(0)
            probe.calls.append(x.detach()[:examples].clone())

    model.train()
    with listening(layers, Probing()), torch.no_grad():
        for images in batches:
            model(images)
    for probe in found.values():
        if probe.rule.operations.noise is not None:  # one pass says it all: of the input only the shape matters
            probe.calls, probe.passes = probe.calls[: math.ceil(len(probe.calls) / probe.passes)], 1
    return list(found.values())


def spread(probe: Probe) -> tuple[float, float, int]:
    """Of the input's second moment over its channels: condition number, effective rank (tr C)² / tr C², channels.

    Of at most `MOST_ROWS` vectors. The condition number is inf where a direction is never visited, NaN for no input.
    """
    with _same_noise():
        seen = [s.with_input_operations().x for s, _ in probe.signals(probe.B)]
    dense = seen[0].shape[-1] == probe.W.shape[1] and probe.W.dim() == 2
    rows = torch.cat([(x if dense else x.movedim(1, -1)).reshape(-1, x.shape[-1 if dense else 1]) for x in seen])
    rows = rows[:: max(1, math.ceil(len(rows) / MOST_ROWS))].double()
    C = rows.T @ rows / max(len(rows), 1)
    values = torch.linalg.eigvalsh(C)
    top = float(values.max())
    if not top > 0:
        return math.nan, 0.0, C.shape[0]
    low = float(values.min())
    rank = float(values.sum()) ** 2 / float(values.square().sum())
    return (top / low if low > 1e-9 * top else math.inf), rank, C.shape[0]


@contextmanager
def _same_noise() -> Iterator[None]:
    """Noise input is drawn the same each time, and no other random number is touched."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed(0)
        yield
