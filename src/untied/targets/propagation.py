"""Target propagation: a block learns to reach a target, and feedback networks carry targets from block to block.

Legend
    F_l  block l of L, forward        h_l = F_l(h_{l−1}), h_0 the input        J  the task's loss, of h_L
    G_l  its feedback, back from h_l's space to h_{l−1}'s                       t_l  target of h_l
    β    how far the output's target lies along −∂J/∂h_L                        ε, ξ  noise at h_{l−1}, at h_l

The output's target is t_L = h_L − β ∂J/∂h_L. How it goes on, and what the feedback learns, is the kind:

    tp           t_{l−1} = G_l(t_l)                               ‖G_l(F_l(h + ε)) − (h + ε)‖²
    sdtp         t_{l−1} = h_{l−1} + G_l(t_l) − G_l(h_l)          the same
    dtp          as sdtp, but t_{L−1} = h_{L−1} − β ∂J/∂h_{L−1}   the same
    drl          as sdtp                                          ‖ε − what comes back of it from the output‖² / σ²
    ldrl         as sdtp                                          −2 ε·(G_l(F_l(h + ε)) − G_l(h_l)) + ‖G_l(h_l + ξ) − G_l(h_l)‖²
    ddtp-linear  t_l = h_l + Q_l (t_L − h_L)                      ‖ε − Q_l (F(h_l + ε) − h_L)‖² / σ²

Blocks learn by ‖h_l − t_l‖² / 2β alone, which with G = the transposed Jacobian is backpropagation as β → 0, and with its
inverse a Gauss-Newton step (Meulemans et al. 2020). All is summed over features and is a mean over the batch, as J is.
Sources: Bengio 2014 (tp), Lee et al. 2015 (dtp), Bartunov et al. 2018 (sdtp), Meulemans et al. 2020 (drl, ddtp-linear),
Ernoult et al. 2022 (ldrl).
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UntiedError
from .reversing import by_shape, cut, described, many_to_one, quiet, reverse

__all__ = ["KINDS", "Kind", "TargetPropagation"]

Criterion = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kind:
    """One member of the family: what its feedback learns, and how a target goes on.

    Attributes:
        title, source: its long name and who published it.
        loss: of one feedback network, from the activity of the clean pass and the number of its target.
        difference: whether G's own error is taken off, G(t) − G(h) rather than G(t).
        gradient_at_last: whether the last hidden block gets a gradient step for a target.
        direct: whether feedback comes straight from the output.
        inverts: whether it asks for blocks that can be inverted.

    >>> from untied.targets import KINDS
    >>> KINDS["tp"].title, KINDS["tp"].difference
    ('target propagation', False)
    """

    title: str
    source: str
    loss: Callable[[TargetPropagation, list[Tensor], int], Tensor]
    difference: bool = True
    gradient_at_last: bool = False
    direct: bool = False
    inverts: bool = False


def per_example(x: Tensor) -> Tensor:
    """Summed over features, the mean over the batch."""
    return x.sum() / len(x)


def reconstruction(net: TargetPropagation, h: list[Tensor], at: int) -> Tensor:
    noisy = h[at] + net.noise * torch.randn_like(h[at])
    return per_example((net.feedback_of(at)(net.forward_from(noisy, at, at + 1)) - noisy).square())


def local_difference(net: TargetPropagation, h: list[Tensor], at: int) -> Tensor:
    G, eps, xi = net.feedback_of(at), torch.randn_like(h[at]), torch.randn_like(h[at + 1])
    eps, xi = net.noise * eps, net.output_noise * xi
    clean = G(h[at + 1])
    back = G(net.forward_from(h[at] + eps, at, at + 1)) - clean
    return per_example(-2 * eps * back) + per_example((G(h[at + 1] + xi) - clean).square())


def difference(net: TargetPropagation, h: list[Tensor], at: int) -> Tensor:
    eps = net.noise * torch.randn_like(h[at])
    r = net.forward_from(h[at] + eps, at, net.depth)
    with torch.no_grad():
        for l in range(net.depth - 1, at, -1):  # noqa: E741
            r = h[l] + net.feedback_of(l)(r) - net.feedback_of(l)(h[l + 1])
    G = net.feedback_of(at)
    return per_example((G(r) - G(h[at + 1]) - eps).square()) / net.noise**2


def direct_difference(net: TargetPropagation, h: list[Tensor], at: int) -> Tensor:
    eps = net.noise * torch.randn_like(h[at])
    sent = net.forward_from(h[at] + eps, at, net.depth) - h[-1]
    return per_example((net.feedback_of(at)(sent) - eps).square()) / net.noise**2


KINDS: dict[str, Kind] = {
    "tp": Kind("target propagation", "Bengio 2014", reconstruction, difference=False, inverts=True),
    "dtp": Kind(
        "difference target propagation", "Lee et al. 2015", reconstruction, gradient_at_last=True, inverts=True
    ),
    "sdtp": Kind("simplified difference target propagation", "Bartunov et al. 2018", reconstruction, inverts=True),
    "drl": Kind("DTP with the difference reconstruction loss", "Meulemans et al. 2020", difference),
    "ldrl": Kind("DTP with the local difference reconstruction loss", "Ernoult et al. 2022", local_difference),
    "ddtp-linear": Kind("direct linear DTP", "Meulemans et al. 2020", direct_difference, direct=True),
}
"""Every member of the family by its short name."""


class SendTargets(torch.autograd.Function):
    """From the blocks' outputs to the last one; backward, the gradients of the blocks' local losses in their outputs.

    With ‖h_l − t_l‖² / 2β of `TargetPropagation.local_losses` that is (h_l − t_l) / βn.
    """

    @staticmethod
    def forward(ctx: Any, net: TargetPropagation, *h: Tensor) -> Tensor:
        ctx.net = net
        ctx.save_for_backward(*h)
        return h[-1].view_as(h[-1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        h, net = list(ctx.saved_tensors), ctx.net
        t = net.targets_for(h, g)
        hidden = [(v - u) / (net.beta * len(g)) for v, u in zip(h[1:-1], t[:-1], strict=True)]
        return None, None, *hidden, g


class Heard:
    """What a recording has heard: the activity of each pass, from which R, the feedback's loss, is made."""

    def __init__(self, net: TargetPropagation, align: bool) -> None:
        self.net, self.align = net, align
        self.passes: list[list[Tensor]] = []

    def penalty(self) -> Tensor:
        """R, 0-dim, with gradients in the feedback alone; 0 where it rests.

        Raises:
            UntiedError: the network was not called.
        """
        if not self.passes:
            raise UntiedError("the network was not called in this recording: call it, or leave the recording out")
        with torch.enable_grad():
            if not self.align:
                zeros = [0.0 * p.sum() for p in self.net.feedback_parameters()]
                return torch.stack(zeros).sum() if zeros else self.net.feedback_loss([])
            return torch.stack([self.net.feedback_loss(h) for h in self.passes]).sum()

    def penalties(self) -> dict[str, float]:
        """R by the target that a feedback network makes, for whoever looks for one that is not finite."""
        with torch.no_grad():
            return {
                f"feedback.{at - 1}": sum(float(self.net.kind.loss(self.net, h, at)) for h in self.passes)
                for at in range(1, len(self.net.feedback) + 1)
            }


class TargetPropagation(nn.Module):
    """A network of blocks that is trained by targets. The blocks are the model's own modules, so the model learns.

    Within a block the local loss's gradient is backpropagation's. Between blocks nothing but targets goes back.

    Args:
        model: an `nn.Sequential` of blocks, or of plain layers, or a module that `untied.targets.reversing.cut`
            can cut.
        x: an example batch, for the shapes. Its numbers are looked at for activations that cannot be inverted.
        kind: one of `KINDS`.
        feedback: a module for each target that comes through one, from the first hidden block's to the last's; made of
            each block's layers in reversed order where none is given.
        beta: β. noise: σ of ε. output_noise: σ of ξ (``ldrl``); like ``noise`` if left out.
        strict: False lets a kind that asks for invertible blocks be trained without them.

    Raises:
        UntiedError: the model cannot be cut into blocks; a block is not invertible and the kind asks for it; the wrong
            number of feedback networks, or one of the wrong shape; dropout; an impossible value.

    >>> import torch
    >>> from torch import nn
    >>> from untied.targets import TargetPropagation
    >>> _ = torch.manual_seed(0)
    >>> x, labels = torch.randn(32, 6), torch.randint(3, (32,))
    >>> model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> net = TargetPropagation(model, x, "ldrl")
    >>> forward = torch.optim.SGD(net.forward_parameters(), 0.5)
    >>> backward = torch.optim.Adam(net.feedback_parameters(), 0.01)
    >>> J = [net.step(x, lambda y: nn.functional.cross_entropy(y, labels), forward, backward, 5) for _ in range(20)]
    >>> bool(J[-1] < J[0])
    True
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        kind: str = "ldrl",
        feedback: Sequence[nn.Module] | None = None,
        *,
        beta: float = 0.1,
        noise: float = 0.1,
        output_noise: float | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__()
        self.heard: Heard | None = None
        self.whole = (model,)  # whose modules the blocks are: no part of the state beside them
        if kind not in KINDS:
            raise UntiedError(f"kind={kind!r} is not possible: choose one of {', '.join(KINDS)}")
        self.kind = KINDS[kind]
        self.beta, self.noise, self.output_noise = beta, noise, noise if output_noise is None else output_noise
        least = 0.0 if self.kind.loss is reconstruction else 1e-12
        if not beta > 0 or not self.noise >= least or not self.output_noise >= 0:
            raise UntiedError(
                f"beta={beta}, noise={noise}, output_noise={output_noise} is not possible under {kind}: beta and noise "
                "are above 0 (noise may be 0 under tp, dtp and sdtp), output_noise is 0 or more"
            )
        self.blocks = nn.ModuleList(cut(model, x))
        for module in self.blocks.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                raise UntiedError(
                    f"the model has {module}: a noisy pass would be compared with a clean one through another mask; "
                    "set its p to 0"
                )
        with torch.no_grad(), quiet(model):
            h = self.activity(x)
        if self.kind.inverts and strict:
            self._refuse_many_to_one(kind, h)
        last = self.depth - (1 if self.kind.gradient_at_last else 0)
        sources = {at: h[-1] if self.kind.direct else h[at + 1] for at in range(1, last)}
        if feedback is None:
            with torch.no_grad(), quiet(model):
                feedback = [self._made(at, h, y) for at, y in sources.items()]
        if len(feedback) != len(sources):
            raise UntiedError(
                f"{len(feedback)} feedback networks are given, and {kind} has {len(sources)} targets to carry in a "
                f"network of {self.depth} blocks: give one for each, from the first block's to the last hidden one's"
            )
        self.feedback = nn.ModuleList(feedback)
        with torch.no_grad():
            for at, y in sources.items():
                self._check_shape(at, self.feedback_of(at)(y), h[at])

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.blocks)

    def feedback_of(self, at: int) -> nn.Module:
        """The feedback that makes targets for the output of block ``at``, from 1."""
        return self.feedback[at - 1]

    def forward_parameters(self) -> list[nn.Parameter]:
        return list(self.blocks.parameters())

    def feedback_parameters(self) -> list[nn.Parameter]:
        return list(self.feedback.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """The model's output. Its backward pass sends targets: blocks get their local losses' gradients, x none.

        So ``J(net(x)).backward()`` is a step of every block, and in ``with net.recording() as heard`` R is heard too.
        """
        h = self.activity(x)
        if self.heard is not None:
            self.heard.passes.append(h)
        return SendTargets.apply(self, *h) if torch.is_grad_enabled() else h[-1]

    def plain(self, x: Tensor) -> Tensor:
        """The model's output, whose backward pass is backpropagation."""
        for block in self.blocks:
            x = block(x)
        return x

    @contextmanager
    def recording(self, align: bool = True) -> Iterator[Heard]:
        """Training passes, for what the feedback learns: J and R are terms of one loss, as under `untied.record`.

        Args:
            align: False lets the feedback rest in this pass.

        >>> import torch
        >>> from untied.targets import TargetPropagation
        >>> x, labels = torch.randn(8, 4), torch.randint(3, (8,))
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
        >>> net = TargetPropagation(model, x, "sdtp")
        >>> with net.recording() as heard:
        ...     task = torch.nn.functional.cross_entropy(net(x), labels)
        >>> (task + heard.penalty()).backward()
        >>> all(p.grad is not None for p in net.parameters())
        True
        """
        before, self.heard = self.heard, Heard(self, align)
        try:
            yield self.heard
        finally:
            self.heard = before

    def activity(self, x: Tensor) -> list[Tensor]:
        """h_0 to h_L. Each is computed from the one before it, detached: no graph reaches over two blocks."""
        h = [x]
        for block in self.blocks:
            h.append(block(h[-1].detach()))
        return h

    def forward_from(self, h: Tensor, start: int, stop: int) -> Tensor:
        """Through blocks ``start`` + 1 to ``stop``, without a graph, for noise."""
        with torch.no_grad(), quiet(self):
            for block in self.blocks[start:stop]:
                h = block(h)
        return h

    def feedback_loss(self, h: list[Tensor]) -> Tensor:
        """What the feedback networks learn: 0-dim, the sum over them, with gradients in their parameters alone.

        Args:
            h: of `activity`.
        """
        h = [v.detach() for v in h]
        losses = [self.kind.loss(self, h, at) for at in range(1, len(self.feedback) + 1)]
        return torch.stack(losses).sum() if losses else torch.zeros((), requires_grad=True)

    def targets(self, h: list[Tensor], criterion: Criterion) -> list[Tensor]:
        """t_1 to t_L, detached.

        Args:
            h: of `activity`. criterion: J of the output, a mean over the batch.
        """
        with torch.enable_grad():
            y = h[-1].detach().requires_grad_()
            (g,) = torch.autograd.grad(criterion(y), y)
        return self.targets_for(h, g)

    def targets_for(self, h: list[Tensor], g: Tensor) -> list[Tensor]:
        """t_1 to t_L, detached.

        Args:
            h: of `activity`. g: ∂J/∂h_L, J a mean over the batch.
        """
        n = len(h[-1])
        t = {self.depth: h[-1].detach() - self.beta * n * g}
        if self.kind.gradient_at_last:
            with torch.enable_grad(), quiet(self):
                x = h[-2].detach().requires_grad_()
                (back,) = torch.autograd.grad(self.blocks[-1](x), x, g)
            t[self.depth - 1] = x.detach() - self.beta * n * back
        with torch.no_grad():
            for at in range(len(self.feedback), 0, -1):
                G = self.feedback_of(at)
                if self.kind.direct:
                    t[at] = h[at] + G(t[self.depth] - h[-1])
                else:
                    t[at] = h[at] + G(t[at + 1]) - G(h[at + 1]) if self.kind.difference else G(t[at + 1])
        return [t[at].detach() for at in range(1, self.depth + 1)]

    def local_losses(self, h: list[Tensor], criterion: Criterion) -> list[Tensor]:
        """Of each block: ‖h_l − t_l‖² / 2β, and J for the last, whose gradient is the same. Their sum's gradient in a
        block's parameters is its own term's.
        """
        t = self.targets(h, criterion)
        hidden = [per_example((v - u).square()) / (2 * self.beta) for v, u in zip(h[1:-1], t[:-1], strict=True)]
        return [*hidden, criterion(h[-1])]

    def step(
        self,
        x: Tensor,
        criterion: Criterion,
        forward: torch.optim.Optimizer,
        backward: torch.optim.Optimizer | None,
        feedback_steps: int = 1,
    ) -> Tensor:
        """One batch: the feedback learns for some steps, each with noise of its own, then the blocks for one.

        Args:
            x: the batch. criterion: J of the output. forward, backward: of `forward_parameters`, `feedback_parameters`.
            feedback_steps: how many; 0 leaves the feedback as it is.

        Returns:
            J before the step, 0-dim, detached.
        """
        h = self.activity(x)
        for _ in range(feedback_steps if backward is not None else 0):
            assert backward is not None
            backward.zero_grad()
            self.feedback_loss(h).backward()
            backward.step()
        losses = self.local_losses(h, criterion)
        forward.zero_grad()
        torch.stack([loss.to(losses[-1].dtype) for loss in losses]).sum().backward()
        forward.step()
        return losses[-1].detach()

    def report(self) -> str:
        """What carries each target, and what goes by backpropagation still. Print it."""
        lines = [f"{self.kind.title} ({self.kind.source}), {self.depth} blocks"]
        for at, block in enumerate(self.blocks, start=1):
            kernels = sum(p.dim() > 1 for p in block.parameters())
            inside = f"; {kernels} kernels, backpropagation between them" if kernels > 1 else ""
            if at <= len(self.feedback):
                source = "the output" if self.kind.direct else f"block {at + 1}"
                how = f"target from {source} by {described(self.feedback_of(at))}"
            else:
                how = "the task's loss" if at == self.depth else "target by a gradient step through the last block"
            lines.append(f"  block {at}: {described(block)}{inside}; {how}")
        return "\n".join(lines)

    def _made(self, at: int, h: list[Tensor], y: Tensor) -> nn.Module:
        """The feedback for a block's target where none is given."""
        if self.kind.direct:
            made = by_shape(self.blocks[at], h[at].flatten(1), y)
            for p in made.parameters():
                nn.init.zeros_(p)  # a regression: no target before anything is known
            parts = [made, nn.Unflatten(1, tuple(h[at].shape[1:]))] if h[at].dim() > 2 else [made]
            return nn.Sequential(*parts).to(y.device, y.dtype)
        return reverse(self.blocks[at], h[at], y) or nn.Identity()

    def _refuse_many_to_one(self, kind: str, h: list[Tensor]) -> None:
        for at in range(2, self.depth):  # the last block and the first are not inverted, or only in their outputs
            found = many_to_one(self.blocks[at - 1], h[at])
            if found:
                raise UntiedError(
                    f"block {at} has {found}, which cannot be inverted, and {kind}'s feedback learns the inverse: use "
                    "Tanh, LeakyReLU or ELU, or ldrl, which asks for none (strict=False trains it all the same)"
                )

    def _check_shape(self, at: int, made: Tensor, wanted: Tensor) -> None:
        if made.shape != wanted.shape:
            raise UntiedError(
                f"the feedback for block {at} gives {tuple(made.shape[1:])}, and that block's output is "
                f"{tuple(wanted.shape[1:])}: give a module with that output"
            )
