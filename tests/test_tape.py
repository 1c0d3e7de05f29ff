"""R as a term of the loss: its value, its gradient, and everything that it must leave alone."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import untied
from cases import (
    LayerCase,
    RuleCase,
    SmallNet,
    assert_same,
    build_untied,
    by_aligning_rule,
    by_any_rule,
    by_rule,
    geometry_of,
    gradients,
    signals,
    small_batch,
    small_net,
    step,
)
from untied import UntiedError
from untied.rules import ActivationAlignment, Alignment, WeightMirror, parse


def backward_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if "backward_weight" in name}


# The value and the gradient


@by_any_rule
def test_penalties_by_layer_add_up(rule: RuleCase) -> None:
    model = small_net(rule.text)
    x, labels = small_batch()
    with untied.record(model, progress=0.5, step=0, targets=labels) as tape:
        model(x)
    R = tape.penalty()
    by_layer = tape.penalties()
    assert R.shape == () and sum(by_layer.values()) == pytest.approx(R.item())
    if parse(rule.text).aligns:
        assert set(by_layer) == {"conv", "grouped", "hidden", "out"}
    else:
        assert R.item() == 0 and not R.requires_grad


@by_aligning_rule
def test_asking_twice_gives_the_same(rule: RuleCase) -> None:
    model = small_net(rule.text)
    with untied.record(model, progress=0.5, step=0) as tape:
        model(small_batch()[0])
    first = tape.penalties()
    R = tape.penalty()
    assert tape.penalty() is R and tape.penalties() == first
    assert R.item() == pytest.approx(sum(first.values()))
    parameters = [p for n, p in model.named_parameters() if "backward_weight" in n]
    a, b = (torch.autograd.grad(R, parameters, retain_graph=keep) for keep in (True, False))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_forward_pass_after_R_was_asked_for_is_an_error() -> None:
    model = small_net("aa")
    with untied.record(model) as tape:
        model(small_batch()[0])
        tape.penalty()
        with pytest.raises(UntiedError, match="after the last one"):
            model(small_batch()[0])


# What R and J leave alone


@by_aligning_rule
def test_R_of_one_layer_does_not_move_another(rule: RuleCase) -> None:
    """B of a layer alone decides its share: another layer's B changes neither its value nor its gradient."""
    results = []
    for change in (False, True):
        model = small_net(rule.text)
        if change:
            with torch.no_grad():
                model.hidden.backward_weight.mul_(3)
        torch.manual_seed(0)
        with untied.record(model, progress=0.5, step=0) as tape:
            model(small_batch()[0])
        tape.penalty().backward()
        results.append((tape.penalties(), gradients(model)))
    for name in ("conv", "grouped", "out"):
        assert results[0][0][name] == results[1][0][name]
        assert torch.equal(results[0][1][f"{name}.backward_weight"], results[1][1][f"{name}.backward_weight"])
    assert not torch.equal(results[0][1]["hidden.backward_weight"], results[1][1]["hidden.backward_weight"]) or (
        parse(rule.text).combination.keys() == {"amp"}
    )


# An ordinary term of the loss


@by_any_rule
def test_a_penalty_may_be_weighted_by_itself(rule: RuleCase) -> None:
    """Phases multiply terms: 0 · R gives B zero gradients, not none."""
    if not parse(rule.text).aligns:
        return
    model = small_net(rule.text)
    with untied.record(model, progress=0.5, step=0) as tape:
        task = model(small_batch()[0]).sum()
    (0.0 * task + 0.0 * tape.penalty()).backward()
    for name in backward_names(model):
        assert torch.equal(model.get_parameter(name).grad, torch.zeros_like(model.get_parameter(name)))


# In part


def with_options(rule: str, **options: Any) -> Alignment:
    """A rule of the table with further options."""
    r = parse(rule)
    assert isinstance(r, Alignment)
    return Alignment(r.combination, **{**r.options, **options})


@pytest.mark.parametrize("fraction", [1 / 8, 0.25, 0.5, 3 / 8])
@pytest.mark.parametrize("rule", ["wm", "aa", "ia", "ia(reverse=true)"])
def test_a_fraction_is_unbiased(rule: str, fraction: float) -> None:
    """The average over all places where it may begin is R of the whole batch, exactly."""
    n = 8
    x, labels = small_batch(n)
    whole, part = small_net(rule), small_net(with_options(rule, fraction=fraction))
    _, R = step(whole, x, labels)
    total = 0.0
    for place in range(n):
        with untied.record(part) as tape:
            tape.place = torch.tensor((place + 0.5) / n)
            task = nn.functional.cross_entropy(part(x), labels)
        mean = (task + tape.penalty()) / n
        total += tape.penalty().item() / n
        mean.backward()
    assert total == pytest.approx(R.item())
    assert_same(gradients(part), gradients(whole))


@pytest.mark.parametrize(
    ("n", "wanted"), [(4, {(0, 1), (2, 3)}), (5, {(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)})], ids=["blocks", "around"]
)
def test_a_fraction_sees_neighbours(n: int, wanted: set[tuple[int, int]]) -> None:
    """Blocks where they divide the batch; else from any place, going around the end."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    untied.untie_(layer, f"align(amp=1, fraction={2 / n})")
    with torch.no_grad():
        layer.weight.fill_(1.0)
    x = 10.0 ** torch.arange(n, dtype=torch.float64)[:, None]
    seen = set()
    for place in torch.arange(20) / 20:
        with untied.record(layer) as tape:
            tape.place = place
            layer(x)
        (g,) = torch.autograd.grad(tape.penalty(), layer.backward_weight)
        seen.add(round(-2 * g.item()))
    assert seen == {round(100**i + 100**j) for i, j in wanted}


def test_the_place_of_a_fraction_is_drawn_anew_and_uniformly() -> None:
    """n = 800 draws of 8 places: each expected 100 times, standard deviation 9.4."""
    model = small_net("wm(fraction=1/8)")
    torch.manual_seed(0)
    places = []
    for _ in range(800):
        with untied.record(model) as tape:
            places.append(int(tape.place * 8))
    counts = torch.tensor(places).bincount(minlength=8)
    assert (counts - 100).abs().max() < 45


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_fraction_of_a_small_batch_is_at_least_one_example(n: int) -> None:
    model = small_net("ia(fraction=1/8)")
    x, labels = small_batch(n)
    _, R = step(model, x, labels)
    assert R.isfinite() and model.out.backward_weight.grad.any()


@pytest.mark.parametrize(
    "rule", ["sa", "wm", "aa", "ia", "ia(reverse=true)", "aa(update_forward=true)", "sa(update_forward=true)"]
)
@pytest.mark.parametrize("every", [2, 3])
def test_every_kth_step_is_unbiased(rule: str, every: int) -> None:
    """The mean over k steps on one batch is R at every step, exactly; the other steps give zeros, not none."""
    x, labels = small_batch()
    whole, part = small_net(rule), small_net(with_options(rule, every=every))
    _, R = step(whole, x, labels)
    values = []
    for i in range(every):
        before = gradients(part)
        values.append(step(part, x, labels, scale=1 / every, step=i + every)[1].item())
        for name in backward_names(part):
            g = part.get_parameter(name).grad
            assert g is not None and torch.equal(g, before[name] if before[name] is not None else g * 0) == (i != 0)
    assert values[1:] == [0.0] * (every - 1)
    assert sum(values) / every == pytest.approx(R.item())
    assert_same(gradients(part), gradients(whole))


def test_every_needs_the_step() -> None:
    model = small_net("sa(every=2)")
    with (
        pytest.raises(UntiedError, match=r"layer conv: .*every 2 steps.*record\(model, step=i\)"),
        untied.record(model),
    ):
        pass
    with untied.record(model, step=0):  # the failure left nothing behind
        pass


def test_positions_mean_divides_by_the_positions() -> None:
    x = small_batch()[0]
    results = []
    for rule in ("wm", "wm(positions=mean)"):
        layer = nn.Conv2d(2, 3, 3, padding=1).double()
        torch.manual_seed(0)
        nn.init.normal_(layer.weight)
        untied.untie_(layer, rule, init="copy")
        with untied.record(layer) as tape:
            layer(x)
        tape.penalty().backward()
        results.append(layer.backward_weight.grad - layer.backward_weight.detach())  # without decay's
    torch.testing.assert_close(results[1], results[0] / 36)


# Schedules


def test_coefficients_follow_the_progress() -> None:
    x, labels = small_batch()
    scheduled = WeightMirror(amp=lambda t: 4 * t, decay=lambda t: 1 - t)
    for progress in (0.0, 0.25, 1.0):
        a, b = small_net(scheduled), small_net(WeightMirror(amp=4 * progress, decay=1 - progress))  # type: ignore[arg-type]
        _, R = step(a, x, labels, progress=progress)
        _, wanted = step(b, x, labels)
        torch.testing.assert_close(R, wanted)
        assert_same(gradients(a), gradients(b))


def test_a_schedule_needs_the_progress() -> None:
    model = small_net(ActivationAlignment(amp=lambda t: t))  # type: ignore[arg-type]
    with pytest.raises(UntiedError, match=r"progress=step / steps"), untied.record(model):
        pass


def test_a_schedule_at_zero_gives_zero_gradients_for_ddp() -> None:
    model = small_net(ActivationAlignment(amp=lambda t: 0.0, sparse=lambda t: 0.0))  # type: ignore[arg-type]
    step(model, *small_batch(), progress=0.0)
    assert all(not model.get_parameter(n).grad.any() for n in backward_names(model))


# One kernel, several calls


@by_aligning_rule
@pytest.mark.parametrize("layer", ["dense", "convolution"])
def test_a_module_called_twice_adds_its_calls_up(rule: RuleCase, layer: str) -> None:
    """Data terms once per call, weight terms once."""
    if rule.random:
        pytest.skip("the second call draws anew")
    r = parse(rule.text)
    case = LayerCase("", lambda: nn.Linear(4, 4), (6, 4)) if layer == "dense" else LayerCase(
        "", lambda: nn.Conv1d(2, 2, 3, padding=1), (6, 2, 5))  # fmt: skip
    results = []
    for calls in ((0, 1), (0,), (1,)):
        module, x = build_untied(case, rule.text)
        inputs = (x, torch.roll(x, 1, 0) + 1)
        with untied.record(module, progress=0.5, step=0) as tape:
            for i in calls:
                module(inputs[i].detach())
        R = tape.penalty()
        R.backward()
        results.append((R.detach(), module.backward_weight.grad.clone()))
    s = signals(case)
    s.operations = r.operations
    c = {p: v * r.every for p, v in r.coefficients(0.5).items()}
    weights = r.weight_terms(s.W, s.B, c)
    share = 0.5 if r.positions == "mean" else 1.0
    both, first, second = results
    for part in (0, 1):
        torch.testing.assert_close(both[part] - weights[part], share * (first[part] + second[part] - 2 * weights[part]))


def test_one_parameter_in_two_modules_has_one_backward_weight() -> None:
    torch.manual_seed(0)
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    model = nn.Sequential(a, nn.Tanh(), b)
    untied.untie_(model, "sa")
    assert a.backward_weight is b.backward_weight
    assert len(untied.parameter_groups(model)[1]) == 1
    with untied.record(model) as tape:
        model(torch.randn(3, 4))
    tape.penalty().backward()
    torch.testing.assert_close(a.backward_weight.grad, (a.backward_weight - a.weight).detach())


def test_one_parameter_in_two_modules_is_untied_in_both_or_in_neither() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    model = nn.Sequential(a, b)
    with pytest.raises(UntiedError, match="1 shares its weight with 0"):
        untied.untie_(model, "sa", filter="0")
    assert type(a) is type(b) is nn.Linear


# Recomputation


class Checkpointed(SmallNet):
    """The same network, its two halves recomputed in backward."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.features, x, use_reentrant=self.reentrant)
        return checkpoint(self.head, x, use_reentrant=self.reentrant)


@by_rule
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("inside", [False, True], ids=["", "backward-inside-record"])
def test_activation_checkpointing_changes_nothing(rule: RuleCase, reentrant: bool, inside: bool) -> None:
    """Random rules and dropout included: what is drawn for R is not drawn among the network's own."""
    x, labels = small_batch()
    x.requires_grad_()
    results = []
    for kind in (SmallNet, Checkpointed):
        model = small_net(rule.text, dropout=0.5)
        model.__class__ = kind
        model.reentrant = reentrant
        torch.manual_seed(5)
        with untied.record(model, progress=0.5, step=0) as tape:
            task = nn.functional.cross_entropy(model(x), labels)
            loss = task + tape.penalty()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        results.append((loss.item(), gradients(model)))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])


def test_checkpointing_a_padded_convolution() -> None:
    """Its reconstruction takes the adjoint of the padding, inside the checkpoint."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 2, 2, padding="same"))
    untied.untie_(model, "ia")
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    results = []
    for recompute in (False, True):
        model.zero_grad()
        with untied.record(model) as tape:
            y = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
        (y.sum() + tape.penalty()).backward()
        results.append(gradients(model))
    assert_same(*results)


def test_saved_tensors_may_be_kept_on_the_host() -> None:
    """The same for every user of saved-tensor hooks."""
    model, kept = small_net("ia(reverse=true)"), small_net("ia(reverse=true)")
    step(model, *small_batch())
    with torch.autograd.graph.save_on_cpu():
        step(kept, *small_batch())
    assert_same(gradients(model), gradients(kept))


# Odd batches and frozen parts


@by_rule
def test_an_empty_batch_gives_zero_gradients_from_the_data(rule: RuleCase) -> None:
    model = small_net(rule.text)
    with untied.record(model, progress=0.5, step=0) as tape:
        task = model(small_batch()[0][:0]).sum()
    R = tape.penalty()
    (task + R).backward()
    assert R.isfinite()
    for name, p in model.named_parameters():
        assert not p.requires_grad or (p.grad is not None and p.grad.isfinite().all()), name
        if name.endswith(".weight") and not parse(rule.text).aligns:
            assert not p.grad.any()


@by_any_rule
def test_frozen_layers_work(rule: RuleCase) -> None:
    """W frozen: B still aligns to it. B frozen: R gives it nothing."""
    x, labels = small_batch()
    free, frozen = small_net(rule.text), small_net(rule.text)
    frozen.conv.requires_grad_(False)
    frozen.hidden.weight.requires_grad_(False)
    step(free, x, labels)
    step(frozen, x, labels)
    wanted = gradients(free)
    for name, p in frozen.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, wanted[name])
        else:
            assert p.grad is None


def test_all_backward_weights_frozen() -> None:
    model = small_net("aa")
    for p in untied.parameter_groups(model)[1]:
        p.requires_grad_(False)
    with pytest.warns(UserWarning, match="is frozen"):
        _, R = step(model, *small_batch())
    assert R != 0 and all(model.get_parameter(n).grad is None for n in backward_names(model))


def test_a_copied_model_records_on_its_own() -> None:
    model = small_net("ia")
    step(model, *small_batch())
    twin = copy.deepcopy(model)
    twin.zero_grad()
    model.zero_grad()
    step(twin, *small_batch())
    assert all(p.grad is None for p in model.parameters())
    step(model, *small_batch())
    assert_same(gradients(model), gradients(twin))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device: no GPU here")
@pytest.mark.filterwarnings("ignore:.*no current CUDA context")  # of the first backward pass there
@by_any_rule
def test_a_model_on_two_devices(rule: RuleCase) -> None:
    class Split(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x).to("cuda")).cpu()

    whole, split = small_net(rule.text), small_net(rule.text)
    split.__class__ = Split
    split.hidden.cuda()
    split.out.cuda()
    J = [step(model, *small_batch()) for model in (whole, split)]
    for name, p in split.named_parameters():
        assert p.grad is None or p.grad.device == p.device, name
    if not rule.random:
        torch.testing.assert_close(J[1], J[0])
        assert_same({n: g if g is None else g.cpu() for n, g in gradients(split).items()}, gradients(whole))


# What record() refuses, and what it warns of


def test_recording_a_plain_model_is_an_error() -> None:
    with pytest.raises(UntiedError, match=r"untie_\(model, rule\)"), untied.record(small_net()):
        pass


def test_recording_twice_at_once_is_an_error() -> None:
    model = small_net("sa")
    with untied.record(model):
        with pytest.raises(UntiedError, match="already"), untied.record(model):
            pass
        with pytest.raises(UntiedError, match="already"), untied.record(nn.Sequential(model)):
            pass
    with untied.record(model):
        pass


def test_an_exception_inside_ends_the_recording() -> None:
    model = small_net("sa")
    with pytest.raises(ZeroDivisionError), untied.record(model):
        1 / 0  # noqa: B018
    with untied.record(model) as tape:
        model(small_batch()[0])
    assert tape.penalty().requires_grad


def test_a_penalty_without_the_forward_pass_is_an_error() -> None:
    model = small_net("sa")
    with untied.record(model) as tape:
        pass
    with pytest.raises(UntiedError, match=r"not called.*conv, grouped, hidden, out.*record\(\)"):
        tape.penalty()


@by_rule
def test_a_layer_that_is_passed_by_says_so_when_its_weight_is_used(rule: RuleCase) -> None:
    """For transport rules too: their errors would be backprop's in silence."""
    model, x = small_net(rule.text), small_batch()[0]
    with untied.record(model, progress=0.5, step=0) as tape:
        y = nn.functional.linear(model.features(x).mean((-2, -1)), model.hidden.weight)
    R = tape.penalty()
    with pytest.raises(UntiedError, match=r"layer hidden was never called, yet its weight gets"):
        (y.square().sum() + R).backward()
    untied.tie_(model)
    nn.functional.linear(torch.ones(4, dtype=x.dtype), model.hidden.weight).sum().backward()


@by_rule
def test_a_layer_may_be_left_out_from_the_first_step_on(rule: RuleCase) -> None:
    """Stochastic depth, or experts without tokens."""
    model, x = small_net(rule.text), small_batch()[0]
    for run in (model.features, model.features, model):
        with untied.record(model, progress=0.5, step=0) as tape:
            y = run(x)
        (y.square().sum() + tape.penalty()).backward()
    assert model.hidden.weight.grad is not None


def test_R_that_is_never_asked_for_is_missed() -> None:
    model, x = small_net("sa"), small_batch()[0]
    with untied.record(model):
        model(x)
    with pytest.warns(UserWarning, match=r"never asked for.*conv, grouped, hidden, out.*align=False"):
        step(model, *small_batch())
    step(model, *small_batch())  # warnings are errors
    with untied.record(model, align=False):
        model(x)
    step(model, *small_batch())
    with pytest.raises(ZeroDivisionError), untied.record(model):
        model(x)
        1 / 0  # noqa: B018
    copied = copy.deepcopy(model)
    step(copied, *small_batch())
    step(model, *small_batch())


def test_R_without_autograd_is_refused() -> None:
    model, x = small_net("sa"), small_batch()[0]
    with untied.record(model) as tape:
        model(x)
    with torch.no_grad(), pytest.raises(UntiedError, match=r"no_grad\(\) has no gradient.*tape.penalties\(\)"):
        tape.penalty()
    with torch.no_grad():
        assert set(tape.penalties()) == {"conv", "grouped", "hidden", "out"}
    resting = small_net("fa")
    with untied.record(resting) as tape, torch.no_grad():
        resting(x)
        assert tape.penalty() == 0


def test_an_optimizer_without_B_is_missed() -> None:
    model = small_net("sa")
    for optimizer, said in (
        (torch.optim.SGD([p for n, p in model.named_parameters() if "backward" not in n], 0.1), True),
        (torch.optim.SGD(model.parameters(), 0.1), False),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(15):
                step(model, *small_batch())
                optimizer.step()
        assert [("no optimizer holds B" in str(w.message)) for w in caught] == [True] * said


@pytest.mark.parametrize("rule", ["sa", "aa", "wm", "kp"])
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_an_optimizer_that_searches_along_a_line_is_told_once(rule: str, search: str | None) -> None:
    model, (x, labels) = small_net(rule), small_batch()
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn=search)

    def closure() -> Tensor:
        optimizer.zero_grad()
        with untied.record(model) as tape:
            task = nn.functional.cross_entropy(model(x), labels)
        loss = task + tape.penalty()
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="LBFGS has evaluated J . R 3 times in one step.*SGD or Adam"):
        optimizer.step(closure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure)


@pytest.mark.parametrize("rule", ["sa", "fa"])
def test_an_optimizer_that_takes_one_gradient_a_step_is_told_nothing(rule: str) -> None:
    """Lightning gives every optimizer a closure. Under fa there is no R."""
    model, (x, labels) = small_net(rule), small_batch()
    kind = torch.optim.SGD if rule == "sa" else torch.optim.LBFGS
    optimizer = kind(model.parameters(), 0.01)

    def closure() -> Tensor:
        optimizer.zero_grad()
        with untied.record(model) as tape:
            loss = nn.functional.cross_entropy(model(x), labels)
        loss = loss + tape.penalty()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            optimizer.step(closure)  # type: ignore[arg-type]
    torch.save(copy.deepcopy(optimizer), io.BytesIO())  # what counts goes with neither


def test_a_frozen_B_that_carries_errors_is_named() -> None:
    model = small_net("sa").requires_grad_(False)
    model.conv.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"is frozen, though.*\(layers grouped, hidden, out\)"):
        step(model, *small_batch())
    model = small_net("sa").requires_grad_(False)
    model.out.requires_grad_(True)  # nothing goes through the frozen ones
    step(model, *small_batch())


def test_an_evaluating_encoder_layer_calls_its_layers_while_recorded() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    untied.untie_(model, "sa")
    model.eval()
    x = torch.randn(2, 3, 8)
    for gradients_on in (True, False):
        with untied.record(model) as tape, torch.set_grad_enabled(gradients_on):
            model(x)
        assert len(tape.called) == 4
        tape.penalty().backward()
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_audit_shortens_a_long_list() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(8)))
    untied.untie_(model, "sa")
    with untied.record(model) as tape:
        pass
    with pytest.raises(UntiedError, match="0, 1, 2, 3, 4 and 3 more"):
        tape.penalty()


def test_a_layer_may_be_left_out_later() -> None:
    """Stochastic depth: once seen, a layer may rest; its weight terms rest with it or go on, without an error."""
    model = small_net("sa")
    step(model, *small_batch())
    with untied.record(model) as tape:
        model.features(small_batch()[0])
    assert tape.penalty().isfinite()


@by_rule
def test_a_training_pass_outside_record_warns(rule: RuleCase) -> None:
    model, x = small_net(rule.text), small_batch()[0]
    if parse(rule.text).needs_record:
        with pytest.warns(UserWarning, match=r"outside untied.record\(\)"):
            model(x)
    else:
        model(x)  # warnings are errors
    with torch.no_grad():
        model(x)
    model.eval()(x)


def test_the_warning_comes_once_by_default() -> None:
    model, x = small_net("sa"), small_batch()[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            model(x)
    assert len(caught) == 1


def test_geometry_helper_leaves_no_trace() -> None:
    layer, x = build_untied(LayerCase("", lambda: nn.Linear(4, 3), (5, 4)))
    geometry_of(layer, x)
    assert layer.listeners == ()
