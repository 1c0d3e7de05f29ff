"""Conversion: what it changes, what it leaves, how it is undone."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import untied
from cases import (
    LayerCase,
    RuleCase,
    build,
    by_any_rule,
    by_layer,
    by_rule,
    small_batch,
    small_net,
    step,
)
from untied import UntiedError, record, untie_
from untied.convert import like_weight
from untied.layers.layer import LAYERS as KNOWN
from untied.layers.layer import Untied, untied_layers
from untied.rules import SymmetricAlignment, parse

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's own, from the plain layer


# What conversion does


@by_layer
@pytest.mark.parametrize("rule", ["bp", "frsf", "fa", "sa"])
def test_conversion_and_back(case: LayerCase, rule: str) -> None:
    layer, x = build(case)
    plain, y, before = type(layer), layer(x, **case.call), copy.deepcopy(layer.state_dict())
    own = dict(layer.__dict__)
    report = untied.untie_(layer, rule)
    assert report.converted == {"": f"{plain.__name__}, rule {rule}"} and report.left == {}
    assert isinstance(layer, plain) and isinstance(layer, Untied) and isinstance(layer, KNOWN[plain])
    assert torch.equal(layer.eval()(x, **case.call), y)
    extra = {"frsf": ["backward_magnitude"], "bp": []}.get(rule, ["backward_weight"])
    assert set(layer.state_dict()) == {*before, *extra}
    for name in extra:
        assert layer.state_dict()[name].shape == layer.weight.shape
    untied.tie_(layer.train())
    assert type(layer) is plain
    assert list(layer.state_dict()) == list(before)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), before.values(), strict=True))
    assert layer.__dict__.keys() == own.keys()
    assert torch.equal(layer(x, **case.call), y)


@by_any_rule
def test_parameters_stay_the_same_objects(rule: RuleCase) -> None:
    """Optimizers made before conversion, hooks and shared references stay valid."""
    model = small_net()
    before = dict(model.named_parameters())
    modules = dict(model.named_modules())
    calls: list[int] = []
    model.conv.register_forward_hook(lambda *_: calls.append(1))
    untied.untie_(model, rule.text)
    assert all(model.get_parameter(n) is p for n, p in before.items())
    assert all(model.get_submodule(n) is m for n, m in modules.items())
    step(model, *small_batch())
    assert calls == [1]


def test_tying_a_plain_model_leaves_it_alone() -> None:
    model = small_net()
    before = model.state_dict()
    assert untied.tie_(model) is model and list(model.state_dict()) == list(before)


def test_untying_again_with_another_rule() -> None:
    model = small_net("sa")
    untied.tie_(model)
    untied.untie_(model, "bp")
    assert {str(layer.rule) for layer in untied_layers(model).values()} == {"bp"}


def test_the_backward_weight_stands_beside_the_weight() -> None:
    model = small_net("sa")
    keys = list(model.state_dict())
    for name in ("conv", "grouped", "hidden", "out"):
        assert f"{name}.backward_weight" in keys
        assert model.get_parameter(f"{name}.backward_weight").shape == model.get_parameter(f"{name}.weight").shape
    assert "norm.backward_weight" not in keys
    assert "rule=sa" in repr(model.conv) and "in_features=4" in repr(model.hidden)


@by_rule
def test_what_is_a_parameter_and_what_learns(rule: RuleCase) -> None:
    r, model = parse(rule.text), small_net(rule.text)
    forward, backward = untied.parameter_groups(model)
    plain = list(small_net().parameters())
    assert len(forward) == len(plain)
    assert isinstance(forward, list) and isinstance(backward, list)
    if isinstance(r, untied.rules.Transport):
        assert backward == []
    else:
        assert {id(B) for B in backward} == {id(m.backward_weight) for m in untied_layers(model).values()}  # type: ignore[attr-defined]
        assert all(B.requires_grad == (r.aligns or r.copies_gradient) for B in backward)
        assert all(B.is_leaf for B in backward)
    assert {id(p) for p in forward + backward} == {id(p) for p in model.parameters()}


def test_parameter_groups_of_a_plain_model() -> None:
    forward, backward = untied.parameter_groups(small_net())
    assert len(forward) == 10 and backward == []


# The initial B


def test_B_starts_with_Ws_own_spread() -> None:
    """n = 90,000: relative standard error of a standard deviation 1/√(2n) = 0.24 %."""
    torch.manual_seed(0)
    for std in (0.01, 1.0):
        layer = nn.Linear(300, 300)
        nn.init.normal_(layer.weight, std=std)
        untied.untie_(layer, "fa")
        B, W = layer.backward_weight, layer.weight
        assert abs(B.std() / W.std() - 1) < 0.015
        assert abs(B.mean()) < 0.02 * std
        assert abs(torch.corrcoef(torch.stack([B.flatten(), W.flatten()]))[0, 1]) < 0.02


def test_a_constant_W_does_not_make_a_constant_B() -> None:
    for constant in (0.0, 0.5):
        W = torch.full((200, 100, 3), constant)
        B = like_weight(W)
        assert abs(B.std() * math.sqrt(3 * 300) - 1) < 0.02


def test_like_weight_keeps_dtype_device_and_format() -> None:
    W = torch.randn(4, 3, 2, 2, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    B = like_weight(W)
    assert (B.dtype, B.device) == (W.dtype, W.device) and B.is_contiguous(memory_format=torch.channels_last)
    assert not B.requires_grad
    for shape in ((0, 4), (4, 0), (1, 1)):
        assert like_weight(torch.zeros(shape)).shape == shape


def test_init_copy_starts_at_W_with_its_own_memory() -> None:
    layer = nn.Conv1d(2, 3, 3)
    untied.untie_(layer, "sa", init="copy")
    assert torch.equal(layer.backward_weight, layer.weight)
    with torch.no_grad():
        layer.weight.add_(1)
    assert not torch.equal(layer.backward_weight, layer.weight)


def test_init_from_a_generator_is_repeatable_and_leaves_the_global_one_alone() -> None:
    results = []
    for seed in (7, 7, 8):
        model = small_net()
        before = torch.get_rng_state()
        untied.untie_(model, "fa", init=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), before)
        results.append(model.hidden.backward_weight.detach())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_init_by_a_function() -> None:
    model = small_net()
    untied.untie_(model, "fa", init=lambda W: -2 * W)
    assert torch.equal(model.conv.backward_weight, -2 * model.conv.weight)
    float_model = small_net()
    untied.untie_(float_model, "fa", init=lambda W: torch.ones(W.shape, dtype=torch.float16))
    assert float_model.conv.backward_weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("init", "parts"),
    [
        ("ones", ["init='ones'", "'like', 'copy'"]),
        (3, ["init=3", "Generator"]),
        (None, ["init=None"]),
        (lambda W: W[:1], ["(4, 2, 3, 3)"]),
        (lambda W: W.T if W.dim() == 2 else W.flatten(), ["shape"]),
        (lambda W: 0.0, ["float"]),
    ],
)
def test_impossible_inits_change_nothing(init: Any, parts: list[str]) -> None:
    model = small_net()
    with pytest.raises(UntiedError) as error:
        untied.untie_(model, "fa", init=init)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
    assert list(model.state_dict()) == list(small_net().state_dict())
    assert not untied_layers(model)


# Filters


@pytest.mark.parametrize(
    ("filter", "names"),
    [
        (None, {"conv", "grouped", "hidden", "out"}),
        ("*", {"conv", "grouped", "hidden", "out"}),
        ("conv", {"conv"}),
        ("*o*", {"conv", "grouped", "out"}),
        ("[ch]*", {"conv", "hidden"}),
        (nn.Linear, {"hidden", "out"}),
        ((nn.Linear, nn.Conv2d), {"conv", "grouped", "hidden", "out"}),
        (lambda name, module: getattr(module, "groups", 1) == 2, {"grouped"}),
        (lambda name, module: name != "out", {"conv", "grouped", "hidden"}),
    ],
)
def test_filters(filter: Any, names: set[str]) -> None:
    model = small_net()
    report = untied.untie_(model, "sa", filter=filter)
    assert set(report.converted) == names == set(untied_layers(model))
    assert set(report.left) == {"conv", "norm", "grouped", "hidden", "out"} - names
    step(model, *small_batch())


def test_a_name_pattern_reaches_into_the_tree() -> None:
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), head=nn.Linear(2, 2)))
    assert set(untied.untie_(model, "sa", filter="body.*").converted) == {"body.0", "body.1"}


@pytest.mark.parametrize("filter", [3, "nothing*", nn.Conv3d, lambda n, m: False, [nn.Linear]], ids=range(5))
def test_a_filter_that_matches_nothing_is_an_error(filter: Any) -> None:
    model = small_net()
    with pytest.raises(UntiedError) as error:
        untied.untie_(model, "sa", filter=filter)
    assert "\n" not in str(error.value) and "filter=" in str(error.value)
    assert not any(path in str(error.value) for path in ("<class", " at 0x")) or filter == [nn.Linear]
    if filter == "nothing*":
        assert "conv (Conv2d" in str(error.value) and "ConvTranspose3d, GRU" in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: untied.untie_(small_net(), "sa", filter=(nn.Conv3d, nn.LSTM)), "filter=(Conv3d, LSTM): "),
        (lambda: untied.untie_(small_net(), "sa", allow=[nn.Linear]), "allow=Linear is not possible"),
        (lambda: untied.untie_(small_net(), nn.Linear), "Linear is not a rule"),
        (lambda: untied.untie_(small_net(), untied.rules.SymmetricAlignment), "write SymmetricAlignment()"),
        (lambda: untied.register_rule(nn.Linear), "Linear is no class of rules"),
        (lambda: untied.untie_(nn.Linear, "sa"), "Linear is no model: give a torch.nn.Module"),
        (lambda: untied.untie_(torch.zeros(3, 3), "sa"), "a Tensor is no model"),
        (lambda: untied.tie_("model"), "'model' is no model"),
        (lambda: untied.verify(None, lambda m: None), "None is no model"),
    ],
)  # fmt: skip
def test_a_message_shows_a_class_by_its_name(call: Any, words: str) -> None:
    with pytest.raises(UntiedError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value) and "<class" not in str(error.value)


def test_a_model_prints_as_a_plain_one_does_and_says_its_rule() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(1, 2, 3), nn.LSTM(3, 2), nn.MultiheadAttention(4, 2))
    untied.untie_(model, "wm(amp=2)")
    shown = str(model).splitlines()
    assert shown[1] == "  (0): UntiedLinear(in_features=4, out_features=3, bias=True, rule=wm(amp=2))"
    assert "UntiedConv2d(1, 2, kernel_size=(3, 3)" in shown[2] and "UntiedLSTM(3, 2, rule=wm(amp=2))" in shown[3]
    assert "untied." not in str(model)


@pytest.mark.parametrize("name", sorted(untied.rules.NAMED))
def test_rules_and_routes_print_as_texts(name: str) -> None:
    rule = untied.rules.named(name)
    assert untied.rules.parse(str(rule)) == rule and repr(rule) == str(rule)
    for thing in (rule.route, rule.combination, *rule.combination):
        assert repr(thing) == str(thing) and not any(mark in repr(thing) for mark in ("<", " at 0x", "untied."))


def test_a_model_without_kernels_is_an_error() -> None:
    with pytest.raises(UntiedError, match=r"nothing to untie with no filter: the model has 0 \(BatchNorm2d"):
        untied.untie_(nn.Sequential(nn.BatchNorm2d(3)), "sa")
    with pytest.raises(UntiedError, match="no module with parameters"):
        untied.untie_(nn.ReLU(), "sa")


def test_different_layers_may_have_different_rules() -> None:
    x, labels = small_batch()
    model = small_net()
    untied.untie_(model, "sa", filter="conv")
    second = untied.untie_(model, "aa", filter=nn.Linear)
    third = untied.untie_(model, "usf")
    assert set(second.converted) == {"hidden", "out"} and set(third.converted) == {"grouped"}
    assert third.left["conv"] == "untied already, rule sa"
    assert {n: str(m.rule) for n, m in untied_layers(model).items()} == {
        "conv": "sa", "grouped": "usf", "hidden": "aa", "out": "aa",
    }  # fmt: skip
    step(model, x, labels)
    assert model.conv.backward_weight.grad is not None and not hasattr(model.grouped, "backward_weight")
    torch.testing.assert_close(
        model.conv.backward_weight.grad, (model.conv.backward_weight - model.conv.weight).detach()
    )


def test_untying_everything_twice_is_an_error_that_says_so() -> None:
    model = small_net("sa")
    with pytest.raises(UntiedError, match="untied already, rule sa"):
        untied.untie_(model, "aa")


# The report


def test_the_report_says_what_was_done_and_what_was_not() -> None:
    model = nn.Sequential(
        OrderedDict(embed=nn.Embedding(5, 4), a=nn.Linear(4, 4), norm=nn.LayerNorm(4), b=nn.Linear(4, 4), act=nn.ReLU())
    )
    report = untied.untie_(model, 0.5 * untied.primitives.amp + untied.primitives.decay, filter="[aen]*")
    assert report.converted == {"a": "Linear, rule 0.5*amp + decay"}
    assert set(report.left) == {"embed", "norm", "b"}
    text = str(report)
    assert text.startswith("converted 1 layers\n  a: Linear, rule 0.5*amp + decay\nleft alone")
    assert "LayerNorm: it scales element by element: norm" in text and "Embedding: its input is an index" in text
    assert "Linear, not in filter='[aen]*': b" in text
    assert "(the model)" in str(untied.untie_(nn.Linear(2, 2), "sa"))


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("sa", str), (SymmetricAlignment(), str), (untied.primitives.amp, str), (untied.primitives.amp * 2, str)],
    ids=str,
)
def test_every_form_of_a_rule_is_taken(rule: Any, kind: type) -> None:
    assert isinstance(untied.untie_(small_net(), rule), untied.Report)


def test_a_wrong_rule_changes_nothing() -> None:
    model = small_net()
    for wrong in ("amq", None, SymmetricAlignment):
        with pytest.raises(UntiedError):
            untied.untie_(model, wrong)  # type: ignore[arg-type]
    assert not untied_layers(model)


# What cannot be untied


class Odd(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: nn.Bilinear(3, 3, 3), ["1 is Bilinear", "not linear in one input"]),
        (lambda: nn.LazyLinear(3), ["LazyLinear", "forward pass before"]),
        (lambda: nn.LazyConv2d(3, 3), ["LazyConv2d", "forward pass before"]),
        (lambda: Odd(3, 3), ["1 is Odd", "subclass of Linear", "register_layer(Odd)"]),
    ],
)
def test_what_cannot_be_untied_is_an_error_that_changes_nothing(make: Any, parts: list[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), make())
    with pytest.raises(UntiedError) as error:
        untied.untie_(model, "sa")
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert type(model[0]) is nn.Linear and not untied_layers(model)
    report = untied.untie_(model, "sa", filter="0")  # the way out that the message gives
    assert "1" in report.left or isinstance(model[1], nn.modules.lazy.LazyModuleMixin) or "Parametrized" in parts[0]


def test_a_lazy_layer_works_after_its_first_pass() -> None:
    model = nn.Sequential(nn.LazyConv2d(3, 3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.ones(1, 1, 4, 4))
    assert set(untied.untie_(model, "sa").converted) == {"0", "2"}


# Copies and states


def test_a_plain_state_dict_loads_with_the_backward_weights_missing() -> None:
    model = small_net("sa")
    with pytest.warns(UserWarning, match="leaves B as it is"):
        result = model.load_state_dict(small_net().state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == [f"{n}.backward_weight" for n in ("conv", "grouped", "hidden", "out")]


@by_rule
def test_an_averaged_model(rule: RuleCase) -> None:
    """EMA copies the model, B included, and averages both."""
    model = small_net(rule.text)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    average.update_parameters(model)
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    step(model, *small_batch())
    optimizer.step()
    average.update_parameters(model)
    for name, p in model.named_parameters():
        torch.testing.assert_close(average.module.get_parameter(name), (first[name] + p.detach()) / 2)
    average.eval()(small_batch()[0])
    step(average, *small_batch())


def test_it_moves_with_the_model() -> None:
    model = small_net("frsf").float()
    assert model.conv.backward_magnitude.dtype == torch.float32
    meta = copy.deepcopy(small_net("sa")).to("meta")
    assert meta.conv.backward_weight.device.type == "meta"


@pytest.mark.parametrize("rule", ["fa", "sa", "dfa", "pfa"])
@pytest.mark.parametrize("construction", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"])
def test_weights_without_values_are_refused(construction: Callable[[], Any], rule: str) -> None:
    with construction():
        model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
        with pytest.raises(UntiedError, match=r"^0 has weights without values .*initialise them, then untie_$"):
            untie_(model, rule)
    assert type(model[0]) is nn.Linear
    real = model.to_empty(device="cpu") if model[0].weight.is_meta else nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    for layer in real:
        layer.reset_parameters()
    untie_(real, rule)
    with record(real, step=0, progress=0.5):
        real(torch.randn(5, 6)).sum().backward()
    assert real[0].weight.grad is not None


@pytest.mark.parametrize("rule", ["fa", "sa"])
def test_an_untied_model_runs_without_values(rule: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    untie_(model, rule)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, record(model, step=0, progress=0.5) as tape:
        loss = model(mode.from_tensor(torch.randn(5, 6))).sum()
        (loss + tape.penalty()).backward()
    assert model[2].weight.grad.shape == (3, 4)


# Kernels that are not called weight


class Elman(nn.Module):
    """A recurrent network written by hand, beside one known layer."""

    def __init__(self) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.randn(5, 3))
        self.W_rec = nn.Parameter(torch.randn(5, 5))
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 5)
        for _ in range(3):
            h = torch.tanh(x @ self.W_in.T + h @ self.W_rec.T)
        return self.out(h)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(3, 2)
        self.up = nn.Parameter(torch.randn(2, 3, 4))
        self.down = nn.ParameterDict({"0": nn.Parameter(torch.randn(4, 3)), "1": nn.Parameter(torch.randn(4, 3))})
        self.more = nn.ParameterList([nn.Parameter(torch.randn(3, 3))])


@pytest.mark.parametrize(
    ("make", "names"),
    [(Elman, ["W_in", "W_rec"]), (Experts, ["up", "down.0", "down.1", "more.0"])],
)
def test_matrices_outside_known_layers_are_named_and_refused(make: Any, names: list[str]) -> None:
    model = make()
    with pytest.raises(UntiedError, match=r"register_layer.*allow=") as error:
        untied.untie_(model, "fa")
    assert all(f"{n} (" in str(error.value) for n in names) and "\n" not in str(error.value)
    assert not untied_layers(model)
    with pytest.raises(UntiedError, match=rf": {names[1]} \("):
        untied.untie_(model, "fa", allow=[names[0], *names[2:]])
    for allow in (names, True):
        twin = make()
        assert "allow=" in str(untied.untie_(twin, "fa", allow=allow)) and untied_layers(twin)


def test_a_pattern_allows_and_freezing_does_not() -> None:
    """A frozen matrix learns nothing, and still sends errors down through itself."""
    assert untied.untie_(Elman(), "fa", allow="W_*").converted.keys() == {"out"}
    with pytest.raises(UntiedError, match="W_in"):
        untied.untie_(Elman().requires_grad_(False), "fa")
    with pytest.raises(UntiedError, match="names or patterns"):
        untied.untie_(Elman(), "fa", allow=[3])  # type: ignore[list-item]


def test_what_is_merely_added_or_scaled_does_not_cry_wolf() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((4, 4)))
    model.register_parameter("cls_token", nn.Parameter(torch.zeros(1, 1, 4)))
    model.register_parameter("prefix", nn.Parameter(torch.zeros(1, 3, 4)))
    model.register_parameter("layer_scale", nn.Parameter(torch.zeros(4, 1, 1)))
    report = str(untied.untie_(model, "fa"))
    assert "backprop" not in report and "no kernel" in report


def test_parameter_groups_as_optimizers_take_them() -> None:
    for rule, names in (("sa", ["forward", "backward"]), ("bp", ["forward"])):
        groups = untied.parameter_groups(small_net(rule)).with_settings({"weight_decay": 0.1}, {"lr": 0.2})
        optimizer = torch.optim.AdamW(groups, lr=0.5)
        assert [g["name"] for g in optimizer.param_groups] == names
        assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.1), (0.2, 0.0)][: len(names)]


def test_rules_of_ones_own_print() -> None:
    class Half(untied.rules.Transport):
        def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
            return W / 2

    class Mine(untied.rules.Alignment):
        pass

    assert (str(Half()), str(Mine({"amp": 1.0}))) == ("Half", "amp")


def test_untying_again_names_tie() -> None:
    model = small_net("sa")
    with pytest.raises(UntiedError, match=r"another rule, untied.tie_\(model\) first"):
        untied.untie_(model, "fa")


@pytest.mark.parametrize("rule", ["kp", "pfa", "ldfa(rank=1)", "sa", "mkp"])
def test_a_B_that_only_follows_W_rests_where_W_is_frozen(rule: str) -> None:
    """Kolen-Pollack's B takes W's steps. By the gradients of a W that takes none it would go astray."""
    model: Any = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    model[2].requires_grad_(False)
    untied.untie_(model, rule)
    x = torch.randn(6, 4)
    assert model[2].backward_weight.requires_grad == (rule == "sa")
    assert untied.verify(model, lambda m: m(x).square().mean(), strict=True)
    B = model[2].backward_weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for at in range(2):
        with untied.record(model, step=at) as tape:
            loss = model(x).square().mean()
        optimizer.zero_grad()
        (loss + tape.penalty()).backward()
        optimizer.step()
    assert torch.equal(model[2].backward_weight, B) == (rule in ("kp", "pfa", "ldfa(rank=1)"))


# Checkpoints of plain models


@pytest.mark.parametrize("rule", ["fa", "kp", "sa", "dfa", "pfa"])
def test_a_plain_checkpoint_says_what_to_do(rule: str) -> None:
    plain = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    state, model = copy.deepcopy(plain.state_dict()), copy.deepcopy(plain)
    untie_(model, rule)
    said = "no backward weights, as that of a plain model: load it before untie_, or with strict=False"
    with pytest.warns(UserWarning, match=said), pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)
    own = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match=said):
        assert model.load_state_dict(state, strict=False).missing_keys
    model.load_state_dict(own)  # its own is taken without a word
    untie_(other := copy.deepcopy(plain), "bp")
    other.load_state_dict(state)
