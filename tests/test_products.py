"""The first training pass refuses backpropagation's errors that nobody has allowed: by what is computed."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untied
from cases import RuleCase, by_any_rule
from untied.errors import UntiedError


class Autoencoder(nn.Module):
    """Its decoder is the encoder's weight, used without the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.code = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.code(torch.tanh(self.encode(x)))), self.encode.weight.t())


class NamedAsAdded(nn.Module):
    """A matrix whose name says that it is added, and which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.pos_embed = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) @ self.pos_embed)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.token = nn.Parameter(torch.randn(5, 6))  # added

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x + self.token)))


def replaced(rule: str | untied.rules.Rule) -> nn.Module:
    model = Layers()
    untied.untie_(model, rule)
    model.last = nn.Linear(4, 3)
    return model


def made(kind: type[nn.Module], rule: str | untied.rules.Rule, **given: object) -> nn.Module:
    model = kind()
    untied.untie_(model, rule, **given)
    return model


@pytest.mark.parametrize("rule", ["fa", "usf", "brsf", "transport(sign)"])
@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda rule: made(Autoencoder, rule), "encode.weight"), (lambda rule: made(NamedAsAdded, rule), "pos_embed"),
     (replaced, "last.weight")],
    ids=["used directly", "named as added", "replaced"],
)  # fmt: skip
def test_a_plain_loop_is_told(make: object, name: str, rule: str) -> None:
    model = make(rule)  # type: ignore[operator]
    message = f"^errors go through {name} by backpropagation: .*untie_.*allow="
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            one(torch.randn(5, 6))
        one.eval()(torch.randn(5, 6))
        with pytest.raises(UntiedError, match=message):
            one.train()(torch.randn(5, 6))


@by_any_rule
def test_under_any_rule_but_backpropagation(rule: RuleCase) -> None:
    model, x = made(NamedAsAdded, rule.text), torch.randn(5, 6)
    with untied.record(model, progress=0.5, step=0, targets=torch.randn(5, 3)):
        if all(layer.rule.exact for layer in untied.layers.untied_layers(model).values()):
            model(x)
        else:
            with pytest.raises(UntiedError, match="through pos_embed by backpropagation"):
                model(x)


def test_what_is_allowed_or_left_by_the_filter_stays() -> None:
    x = torch.randn(5, 6)
    for model in (
        made(NamedAsAdded, "fa", allow="pos_*"),
        made(NamedAsAdded, "fa", allow=True),
        made(Layers, "fa", filter="first"),
        made(Layers, "fa"),
    ):
        model(x).sum().backward()
        assert not model._forward_pre_hooks and not model._forward_hooks


def test_it_goes_with_the_first_training_pass_or_with_tie() -> None:
    model = made(Layers, "fa")
    keys = list(model.state_dict())
    assert len(model._forward_pre_hooks) == 1
    model(torch.randn(5, 6))
    assert not model._forward_pre_hooks and list(model.state_dict()) == keys
    model = untied.tie_(made(Layers, "fa"))
    assert not model._forward_pre_hooks


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    model = made(NamedAsAdded, "fa")
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.randn(5, 7))
    assert len(model._forward_pre_hooks) == 1 and not model._forward_hooks
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_compiled_model_is_one_graph_and_is_not_looked_at() -> None:
    model = made(Layers, "fa")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(5, 6)).sum().backward()
    model(torch.randn(5, 6))
    compiled(torch.randn(5, 6)).sum().backward()
    assert not model._forward_pre_hooks


class Interrupted(NamedAsAdded):
    """Its first pass ends early, after the product."""

    ends: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.ends is not None:
            ends, self.ends = self.ends, None
            raise ends
        return y


@pytest.mark.parametrize("ends", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_pass_that_ends_early_is_not_the_first(ends: BaseException) -> None:
    model = made(Interrupted, "fa")
    model.ends = ends  # type: ignore[assignment]
    with pytest.raises(type(ends)):
        model(torch.randn(5, 6))
    with pytest.raises(UntiedError, match="through pos_embed"):
        model(torch.randn(5, 6))
    assert not torch.overrides._get_current_function_mode_stack()


def test_after_an_interrupt_another_model_is_looked_at_alone() -> None:
    old = made(Interrupted, "fa")
    old.ends = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        old(torch.randn(5, 6))
    new = made(Layers, "fa")
    assert not torch.overrides._get_current_function_mode_stack()
    new(torch.randn(5, 6))
    with pytest.raises(UntiedError, match="through pos_embed"):
        old(torch.randn(5, 6))


def test_who_goes_on_is_told_again() -> None:
    model = made(NamedAsAdded, "fa")
    for _ in range(2):
        with pytest.raises(UntiedError, match="through pos_embed"):
            model(torch.randn(5, 6))
    untied.untie_(untied.tie_(model), "fa", allow="pos_embed")
    model(torch.randn(5, 6))


def test_threads_share_a_model() -> None:
    model, wrong = nn.Sequential(*(nn.Linear(6, 6) for _ in range(20))), []
    untied.untie_(model, "fa")

    def passes() -> None:
        try:
            for _ in range(20):
                model(torch.randn(5, 6)).sum()
            assert not torch.overrides._get_current_function_mode_stack()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=passes) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not model._forward_hooks and not model._forward_pre_hooks


class Biased(nn.Module):
    """Attention, whose scores have a matrix added to them in the product's own call."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.q, self.k, self.how = nn.Linear(6, 6), nn.Linear(6, 6), how
        self.bias = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x).t()
        if self.how == "keyword":
            return torch.addmm(input=self.bias, mat1=q, mat2=k)
        if self.how == "batched":
            return torch.baddbmm(self.bias.expand(1, -1, -1), q[None], k[None])
        return torch.addmm(self.bias, q, k) if self.how == "function" else self.bias.addmm(q, k)


@pytest.mark.parametrize("how", ["function", "method", "keyword", "batched"])
def test_what_is_added_carries_nothing(how: str) -> None:
    model = Biased(how)
    untied.untie_(model, "fa", allow="bias")  # untie_ goes by names
    object.__setattr__(next(iter(model._forward_pre_hooks.values())), "allow", ())
    model(torch.randn(5, 6)).sum().backward()
    report = untied.verify(model, lambda m: m(torch.randn(5, 6)).square().mean())
    assert report.verified, report.verdict


class CallsItself(nn.Module):
    """Each level uses a weight directly, or not, after the level below has returned; it returns a state beside."""

    def __init__(self, directly: bool) -> None:
        super().__init__()
        self.first, self.last, self.directly = nn.Linear(6, 6), nn.Linear(6, 3), directly

    def forward(self, x: Tensor, levels: int = 2) -> Tensor | tuple[Tensor, Tensor]:
        h = torch.tanh(self.first(x))
        if not levels:
            return h, x
        h, _ = self(h, levels - 1)
        h = h @ self.first.weight if self.directly else h
        return self.last(h) if levels == 2 else (h, x)


@pytest.mark.parametrize("rule", ["fa", "sa", "usf", "dfa"])
def test_a_model_that_calls_itself_is_judged_at_its_outermost_call(rule: str) -> None:
    for directly in (True, False):
        torch.manual_seed(0)
        model, x = CallsItself(directly), torch.randn(5, 6)
        untied.untie_(model, rule)
        for _ in range(2):
            with untied.record(model, align=False):
                if directly:
                    with pytest.raises(UntiedError, match=r"through first\.weight by backpropagation"):
                        model(x)
                else:
                    model(x).square().sum().backward()
        assert bool(model._forward_pre_hooks) == directly and not model._forward_hooks
        assert not torch.overrides._get_current_function_mode_stack()


def test_a_level_that_fails_and_is_caught_is_no_failure_of_the_pass() -> None:
    class Tries(CallsItself):
        def forward(self, x: Tensor, levels: int = 1) -> Tensor:
            h = torch.tanh(self.first(x))
            if not levels:
                raise ValueError("no further")
            try:
                self(h, levels - 1)
            except ValueError:
                h = h @ self.first.weight
            return self.last(h)  # type: ignore[no-any-return]

    model = Tries(True)
    untied.untie_(model, "fa")
    with pytest.raises(UntiedError, match=r"through first\.weight"):
        model(torch.randn(5, 6))


class Whole(nn.Module):
    """Its user calls its parts, as a step of Lightning or of two players does."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.wrong, self.head = Layers(), NamedAsAdded(), nn.Linear(3, 2)


def test_parts_that_are_called_instead_of_the_model_are_looked_at() -> None:
    def made_whole(allow: str = "none") -> Whole:
        model = Whole()
        untied.untie_(model, "fa", allow=allow)
        return model

    x, model = torch.randn(5, 6), made_whole()
    model.head(model.right(x)).sum().backward()
    for _ in range(2):
        with pytest.raises(UntiedError, match=r"through wrong\.pos_embed by .*allow=.'wrong\.pos_embed'"):
            model.wrong(x)
    assert not model.right._forward_pre_hooks and model.wrong._forward_pre_hooks
    for allowed in (copy.deepcopy(made_whole("wrong.pos_*")), made_whole("pos_embed")):
        allowed.wrong(x).sum().backward()
    untied.tie_(model)
    assert not any(part._forward_pre_hooks for part in model.modules())
