"""Target propagation: targets by hand, local gradients, and where the family meets the paper's primitives."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from untied import UntiedError
from untied.geometry import DENSE, Convolution
from untied.operations import Operations, Signals
from untied.rules import parse
from untied.targets.propagation import KINDS, TargetPropagation

DOUBLE = torch.float64
by_kind = pytest.mark.parametrize("kind", KINDS)


def mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        parts += [nn.Linear(i, o, bias=bias), activation()]
    return nn.Sequential(*parts[:-1]).double()


def linear(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in itertools.pairwise(sizes))).double()


def conv_net(activation: type[nn.Module] = nn.ELU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), activation(),
        nn.Conv2d(4, 6, 3, 2, 1), activation(), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 2), activation(), nn.Flatten(), nn.Linear(6, 3),
    ).double()  # fmt: skip


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.bn = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv2(F.elu(self.bn(self.conv1(x)))) + self.short(x))


def resnet() -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ELU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(stem, Residual(4, 4, 1), Residual(4, 8, 2), head).double()


def data(n: int = 12, shape: tuple[int, ...] = (5,), classes: int = 3) -> tuple[Tensor, Any]:
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (n,), generator=g)
    return torch.randn(n, *shape, dtype=DOUBLE, generator=g), lambda y: F.cross_entropy(y, labels)


# Targets


def test_dtps_targets_by_hand() -> None:
    model, (x, J) = mlp(5, 7, 6, 4, 3), data()
    net = TargetPropagation(model, x, "dtp", beta=0.3)
    h = net.activity(x)
    t = net.targets(h, J)
    assert len(net.feedback) == 2 and len(t) == 4
    W, b = model[6].weight, model[6].bias
    n, logits = 12, h[3] @ W.T + b
    labels = torch.randint(3, (12,), generator=torch.Generator().manual_seed(1))
    e = (logits.softmax(1) - F.one_hot(labels, 3)).detach()
    torch.testing.assert_close(t[3], logits.detach() - 0.3 * e)
    torch.testing.assert_close(t[2], (h[3] - 0.3 * e @ W).detach())
    at = t[2]
    for number, G in ((2, net.feedback[1]), (1, net.feedback[0])):
        V, c = G[1].weight, G[1].bias  # type: ignore[index]
        at = (h[number] + torch.tanh(at) @ V.T + c - (torch.tanh(h[number + 1]) @ V.T + c)).detach()
        torch.testing.assert_close(t[number - 1], at)
    loss = net.local_losses(h, J)
    torch.testing.assert_close(loss[0], (h[1] - t[0]).square().sum() / (2 * 0.3 * n))
    torch.testing.assert_close(loss[3], J(model(x)))


def test_the_last_hidden_target_is_what_sets_sdtp_and_dtp_apart() -> None:
    model, (x, J) = mlp(5, 7, 6, 3), data()
    torch.manual_seed(5)
    sdtp = TargetPropagation(model, x, "sdtp")
    torch.manual_seed(5)
    dtp = TargetPropagation(model, x, "dtp")
    assert len(sdtp.feedback) == 2 and len(dtp.feedback) == 1
    h = sdtp.activity(x)
    a, b = sdtp.targets(h, J), dtp.targets(h, J)
    G = sdtp.feedback_of(2)
    torch.testing.assert_close(a[1], (h[2] + G(a[2]) - G(h[3])).detach())
    torch.testing.assert_close(a[2], b[2])
    assert not torch.allclose(a[1], b[1])
    plain = TargetPropagation(model, x, "tp", [copy.deepcopy(m) for m in sdtp.feedback])
    c = plain.targets(h, J)
    torch.testing.assert_close(c[1], G(c[2]).detach())
    torch.testing.assert_close(c[0], sdtp.feedback_of(1)(c[1]).detach())


@by_kind
def test_no_gradient_reaches_over_two_blocks(kind: str) -> None:
    """Of each local loss in the blocks, and of the feedback's loss in its own network alone."""
    model, (x, J) = mlp(5, 7, 6, 4, 3), data()
    net = TargetPropagation(model, x, kind)
    for p in net.feedback.parameters():
        nn.init.normal_(p, std=0.3)
    h = net.activity(x)
    for at, loss in enumerate(net.local_losses(h, J)):
        for number, block in enumerate(net.blocks):
            g = torch.autograd.grad(loss, list(block.parameters()), retain_graph=True, allow_unused=True)
            assert all((v is not None and v.abs().sum() > 0) == (number == at) for v in g)
        assert all(v is None for v in torch.autograd.grad(loss, net.feedback_parameters(), retain_graph=True,
                                                          allow_unused=True))  # fmt: skip
    assert all(v is None for v in torch.autograd.grad(net.feedback_loss(h), net.forward_parameters(),
                                                      allow_unused=True))  # fmt: skip
    for at in range(1, len(net.feedback) + 1):
        loss = net.kind.loss(net, [v.detach() for v in h], at)
        for number in range(1, len(net.feedback) + 1):
            g = torch.autograd.grad(loss, list(net.feedback_of(number).parameters()), retain_graph=True,
                                    allow_unused=True)  # fmt: skip
            assert (g[0] is not None) == (number == at)


def test_with_transposed_feedback_the_update_is_backpropagations() -> None:
    """In a linear network for any β; so an untied network whose B is W is the same thing."""
    model, (x, J) = linear(5, 7, 6, 3), data()
    net = TargetPropagation(model, x, "ldrl", beta=0.7)
    with torch.no_grad():
        for at in (1, 2):
            G: Any = net.feedback_of(at)
            G.weight.copy_(model[at].weight.T)
    sum(net.local_losses(net.activity(x), J)).backward()  # type: ignore[union-attr]
    found = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    model.zero_grad()
    J(model(x)).backward()
    for a, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


@pytest.mark.parametrize("kind", ["sdtp", "tp", "drl", "ddtp-linear"])
def test_with_inverse_feedback_targets_are_gauss_newton_steps(kind: str) -> None:
    """t_l − h_l = −β J⁻¹ ∂J/∂h_L with J the Jacobian of the output in h_l, whatever lies between (Meulemans et al.)."""
    model, (x, J) = linear(4, 4, 4, 4), data(shape=(4,), classes=4)
    W = [m.weight.detach() for m in model]  # type: ignore[union-attr]
    net = TargetPropagation(model, x, kind, beta=0.2)
    through = {1: W[2] @ W[1], 2: W[2]}
    with torch.no_grad():
        for at in (1, 2):
            G: Any = net.feedback_of(at)
            last = G[-1][-1] if kind == "ddtp-linear" else G
            last.weight.copy_(torch.linalg.inv(through[at] if kind == "ddtp-linear" else W[at]))
            last.bias.zero_()
    h = net.activity(x)
    t = net.targets(h, J)
    y = h[-1].detach().requires_grad_()
    (g,) = torch.autograd.grad(J(y) * len(x), y)
    for at in (1, 2):
        torch.testing.assert_close(t[at - 1] - h[at].detach(), -0.2 * g @ torch.linalg.inv(through[at]).T)


def test_direct_feedback_learns_the_damped_pseudo_inverse() -> None:
    """Of E‖Q J ε − ε‖² / σ² + λ‖Q‖² the minimum is Jᵀ (J Jᵀ + λ)⁻¹: there the gradient of the mean is 0."""
    model, lam = linear(5, 6, 5, 3), 0.3
    x = torch.randn(60_000, 5, dtype=DOUBLE)
    net = TargetPropagation(model, x[:4], "ddtp-linear", noise=0.5)
    through = (model[2].weight @ model[1].weight).detach()  # type: ignore[operator]
    Q: Any = net.feedback_of(1)[-1][-1]  # type: ignore[index]
    with torch.no_grad():
        Q.weight.copy_(through.T @ torch.linalg.inv(through @ through.T + lam * torch.eye(3, dtype=DOUBLE)))
        Q.bias.zero_()
    torch.manual_seed(0)
    (g,) = torch.autograd.grad(net.kind.loss(net, [v.detach() for v in net.activity(x)], 1), Q.weight)
    (decay,) = torch.autograd.grad(lam * Q.weight.square().sum(), Q.weight)
    assert (g + decay).norm() < 0.03 * decay.norm()


# What feedback learns, in the paper's primitives


@pytest.mark.parametrize(("eps", "xi"), [(0.3, 0.3), (0.5, 0.2)])
def test_ldrl_is_self_and_decay_in_expectation(eps: float, xi: float) -> None:
    """2 (σ_ε² self + σ_ξ² decay) for a linear layer: with equal noises balanced weight mirror with noise input."""
    model = linear(5, 6, 3)
    x = torch.randn(200_000, 5, dtype=DOUBLE)
    net = TargetPropagation(model, x[:4], "ldrl", noise=eps, output_noise=xi)
    G: Any = net.feedback_of(1)
    W, B = model[1].weight.detach(), G.weight.detach().T  # type: ignore[union-attr]
    G.bias.data.zero_()
    s = Signals(x[:1, :1], W, B, DENSE, Operations())
    wanted = 2 * parse(f"align(self={eps**2}, decay={xi**2})").penalty(s)
    slope = 2 * (xi**2 * B - eps**2 * W)
    torch.manual_seed(0)
    found = []
    for part in x.chunk(50):
        loss = net.feedback_loss(net.activity(part))
        (g,) = torch.autograd.grad(loss, G.weight)
        found.append(torch.cat([loss.detach().view(1), g.T.flatten()]))
    mean, wanted = torch.stack(found).mean(0), torch.cat([wanted.view(1), slope.flatten()])
    error = torch.stack(found).std(0) / len(found) ** 0.5
    assert ((mean - wanted) / error).abs().max() < 4  # of 19 numbers
    assert (error[1:].norm() / slope.norm()) < 0.02


def test_ldrl_in_a_convolution_counts_its_positions() -> None:
    """A 1 × 1 convolution is a dense layer at each of 16 positions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1, bias=False)).double()
    x = torch.randn(20_000, 2, 4, 4, dtype=DOUBLE)
    net = TargetPropagation(model, x[:2], "ldrl", noise=0.4, output_noise=0.3)
    G: Any = net.feedback_of(1)
    W, B = model[1].weight.detach(), G.weight.detach()  # type: ignore[union-attr]
    (g,) = torch.autograd.grad(net.feedback_loss(net.activity(x)), G.weight)
    slope = 16 * 2 * (0.09 * B - 0.16 * W)
    assert float((g - slope).norm()) < 0.03 * float(slope.norm())


@pytest.mark.parametrize("layer", ["dense", "convolution"])
def test_footnote_3_information_alignment_is_the_reconstruction_loss(layer: str) -> None:
    """½‖x − T_B* T_W x‖² = amp + null + ½‖x‖²: DTP's feedback loss without noise, and its gradient."""
    torch.manual_seed(0)
    x: Tensor
    if layer == "dense":
        model, x, geometry = linear(5, 6, 3), torch.randn(20, 5, dtype=DOUBLE), DENSE
    else:
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3, 2, 1, bias=False)).double()
        x, geometry = torch.randn(20, 2, 8, 8, dtype=DOUBLE), Convolution.of(model[1])  # type: ignore[assignment]
    net = TargetPropagation(model, x, "sdtp", noise=0.0)
    G: Any = net.feedback_of(1)
    if G.bias is not None:
        G.bias.data.zero_()
    W = model[1].weight.detach()  # type: ignore[union-attr]
    B = (G.weight.T if layer == "dense" else G.weight).detach()  # a transposed convolution's kernel is in W's layout
    h = net.activity(x)[1].detach()
    rule = parse("amp + null")
    s = Signals(h, W, B, geometry, rule.operations)  # type: ignore[attr-defined]
    loss = net.feedback_loss(net.activity(x))
    wanted = rule.penalty(s) / 20  # type: ignore[attr-defined]
    torch.testing.assert_close(loss / 2, wanted + h.square().sum() / 40)
    (g,) = torch.autograd.grad(loss / 2, G.weight)
    slope = rule.data_terms(s, rule.coefficients(None), 1 / 20)[1]  # type: ignore[attr-defined]
    torch.testing.assert_close(g.T if layer == "dense" else g, slope)


# Networks


@by_kind
@pytest.mark.parametrize(("make", "shape"), [(lambda: mlp(5, 8, 7, 3), (5,)), (conv_net, (1, 8, 8)),
                                             (resnet, (1, 8, 8))], ids=["mlp", "conv", "resnet"])  # fmt: skip
def test_every_kind_trains_every_network(kind: str, make: Any, shape: tuple[int, ...]) -> None:
    model, (x, J) = make(), data(24, shape)
    net = TargetPropagation(model, x, kind, beta=1.0 if kind == "tp" else 0.1, strict=False)
    before = {n: p.clone() for n, p in net.named_parameters()}
    forward = torch.optim.SGD(net.forward_parameters(), 0.002 if kind == "tp" else 0.02)
    backward = torch.optim.Adam(net.feedback_parameters(), 0.01)
    for _ in range(30):  # the feedback begins
        backward.zero_grad()
        net.feedback_loss(net.activity(x)).backward()
        backward.step()
    losses = [float(net.step(x, J, forward, backward, 3)) for _ in range(25)]
    assert losses[-1] < losses[0]
    still = [n for n, p in net.named_parameters() if torch.equal(before[n], p)]
    assert all(n.startswith("feedback") and n.endswith("bias") for n in still), still  # differences have none
    torch.testing.assert_close(net.eval()(x), model.eval()(x))
    assert f"{len(net.blocks)} blocks" in net.report() and "the task's loss" in net.report()


@pytest.mark.parametrize("kind", ["ldrl", "drl"])
def test_feedback_that_has_learned_brings_the_gradients_angle_down(kind: str) -> None:
    """L-DRL to backpropagation's; the loss of DRL falls."""
    model, (x, J) = mlp(5, 12, 12, 3, activation=nn.ELU), data(64)
    net = TargetPropagation(model, x, kind, beta=0.05)
    backward = torch.optim.Adam(net.feedback_parameters(), 0.01)

    def cosine() -> float:
        model.zero_grad()
        sum(net.local_losses(net.activity(x), J)).backward()  # type: ignore[union-attr]
        ours = model[0].weight.grad.clone()  # type: ignore[union-attr, operator]
        model.zero_grad()
        J(model(x)).backward()
        return float(F.cosine_similarity(ours.flatten(), model[0].weight.grad.flatten(), dim=0))  # type: ignore[union-attr, operator]

    first, loss = cosine(), float(net.feedback_loss(net.activity(x)).detach())
    for _ in range(300):
        backward.zero_grad()
        net.feedback_loss(net.activity(x)).backward()
        backward.step()
    assert float(net.feedback_loss(net.activity(x)).detach()) < loss
    if kind == "ldrl":
        assert cosine() > 0.95 > first


def test_noisy_passes_leave_running_statistics_alone() -> None:
    model, (x, J) = conv_net(), data(8, (1, 8, 8))
    net = TargetPropagation(model, x, "ldrl")
    assert torch.equal(model[1].running_mean, torch.zeros(4, dtype=DOUBLE))  # type: ignore[arg-type]
    h = net.activity(x)
    kept = model[1].running_mean.clone()  # type: ignore[union-attr, operator]
    net.feedback_loss(h)
    net.targets(h, J)
    assert torch.equal(model[1].running_mean, kept) and model[1].momentum == 0.1  # type: ignore[arg-type]


def test_state_is_the_models_and_the_feedbacks() -> None:
    model, (x, _) = mlp(5, 8, 7, 3), data()
    net = TargetPropagation(model, x, "ldrl")
    twin = TargetPropagation(mlp(5, 8, 7, 3), x, "ldrl")
    twin.load_state_dict(net.state_dict())
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    assert set(net.forward_parameters()) == set(model.parameters())


# What cannot be


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5).double(), nn.Linear(5, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + x


def test_a_network_that_cannot_be_cut_is_refused() -> None:
    x, _ = data()
    with pytest.raises(
        UntiedError, match=r"Skipping cannot be cut into blocks: its parts, run one after the other, ha"
    ):
        TargetPropagation(Skipping(), x)

    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 3).double(), nn.Linear(72, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).flatten(1))

    with pytest.raises(UntiedError, match=r"do not run one after the other .*such as nn.Flatten"):
        TargetPropagation(Flattening(), torch.randn(2, 1, 8, 8, dtype=DOUBLE))
    with pytest.raises(UntiedError, match="is one block"):
        TargetPropagation(nn.Sequential(nn.Linear(5, 3), nn.Tanh()).double(), x)


def test_stages_inside_a_network_are_cut_too() -> None:
    class Staged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.act = nn.Linear(5, 6), nn.Tanh()
            self.stage = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.stage(self.act(self.stem(x))))

    net = TargetPropagation(Staged().double(), data()[0])
    assert [sum(1 for _ in b.parameters()) for b in net.blocks] == [2, 2, 2, 2]


@pytest.mark.parametrize("kind", ["tp", "dtp", "sdtp"])
def test_a_non_invertible_activation_is_named(kind: str) -> None:
    x, _ = data()
    with pytest.raises(UntiedError, match=rf"block 2 has ReLU, which cannot be inverted, and {kind}'s"):
        TargetPropagation(mlp(5, 7, 6, 3, activation=nn.ReLU), x, kind)
    TargetPropagation(mlp(5, 7, 6, 3, activation=nn.ReLU), x, kind, strict=False)
    TargetPropagation(mlp(5, 7, 6, 3, activation=nn.ReLU), x, "ldrl")

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.layer(x))

    with pytest.raises(UntiedError, match=r"leaves \d+% of its outputs at one value"):
        TargetPropagation(nn.Sequential(nn.Linear(5, 7), Hidden(), nn.Linear(6, 3)).double(), x, kind)


def test_other_impossible_things() -> None:
    x, _ = data()
    for make, words in (
        (lambda: TargetPropagation(mlp(5, 7, 6, 3), x, "wtp"), "kind='wtp' is not possible: choose one of tp, dtp"),
        (lambda: TargetPropagation(mlp(5, 7, 6, 3), x, "ldrl", [nn.Linear(3, 6)]), "1 feedback networks are given"),
        (lambda: TargetPropagation(mlp(5, 7, 3), x, "ldrl", [nn.Linear(3, 6).double()]), r"gives \(6,\), .* \(7,\)"),
        (lambda: TargetPropagation(mlp(5, 7, 3), x, "ldrl", noise=0), "noise=0"),
        (lambda: TargetPropagation(mlp(5, 7, 3), x, "dtp", beta=0), "beta=0"),
        (lambda: TargetPropagation(nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double(), x),
         r"Dropout\(p=0.5"),
    ):  # fmt: skip
        with pytest.raises(UntiedError, match=words):
            make()


@by_kind
def test_a_loss_of_the_output_sends_targets_in_its_backward_pass(kind: str) -> None:
    """`net(x)` and R as terms of one loss are the local losses and the feedback's, whatever else is done with them."""
    model, (x, J) = mlp(5, 7, 6, 4, 3), data()
    net = TargetPropagation(model, x, kind)
    for p in net.feedback.parameters():
        nn.init.normal_(p, std=0.3)
    wanted = torch.autograd.grad(torch.stack(net.local_losses(net.activity(x), J)).sum(), net.forward_parameters())
    torch.manual_seed(1)
    slopes = torch.autograd.grad(net.feedback_loss(net.activity(x)), net.feedback_parameters())
    torch.manual_seed(1)
    with net.recording() as heard:
        y = net(x)
    torch.testing.assert_close(y, model(x))
    (J(y) + heard.penalty()).backward()
    for p, g in zip([*net.forward_parameters(), *net.feedback_parameters()], [*wanted, *slopes], strict=True):
        torch.testing.assert_close(p.grad, g)
    with net.recording(align=False) as heard, torch.no_grad():
        net(x)
    assert heard.penalty().item() == 0 and heard.penalty().requires_grad
    net.zero_grad()
    J(net.plain(x)).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    J(model(x)).backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(ours, model.parameters(), strict=True))


def test_a_recording_that_heard_nothing() -> None:
    net = TargetPropagation(mlp(5, 7, 3), data()[0])
    with net.recording() as heard:
        pass
    with pytest.raises(UntiedError, match="was not called in this recording"):
        heard.penalty()
