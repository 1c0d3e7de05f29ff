"""The Trainer mixin against the real transformers: decay, clipping, accumulation, evaluation, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import untied

transformers = pytest.importorskip("transformers", reason="needs the extra 'huggingface'")
pytest.importorskip("accelerate", reason="needs the extra 'huggingface'")

from untied.integrations.huggingface import UntiedTrainerMixin  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


class Net(nn.Module):
    """Regression, its loss computed inside, as the Trainer wants it."""

    def __init__(self, summed: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        self.accepts_loss_kwargs = summed

    def forward(self, x: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None) -> dict[str, Any]:
        error = (self.layers(x).squeeze(-1) - labels).square()
        return {"loss": error.mean() if num_items_in_batch is None else error.sum() / num_items_in_batch}


class Mine(UntiedTrainerMixin, transformers.Trainer):
    pass


def data(n: int = 8) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [{"x": torch.randn(4, generator=draw), "labels": torch.randn((), generator=draw)} for _ in range(n)]


def trainer(tmp_path: Path, rule: str = "ia", summed: bool = False, **settings: Any) -> Mine:
    torch.manual_seed(0)
    model = Net(summed)
    untied.untie_(model, rule)
    save_backward = settings.pop("save_backward", True)
    options = dict(max_steps=1, per_device_train_batch_size=8, optim="sgd", lr_scheduler_type="constant",
                   learning_rate=1.0, max_grad_norm=0.0, report_to=[], save_strategy="no", use_cpu=True,
                   disable_tqdm=True, logging_strategy="no")  # fmt: skip
    arguments = transformers.TrainingArguments(str(tmp_path), **(options | settings))
    return Mine(model=model, args=arguments, train_dataset=data(), eval_dataset=data(), save_backward=save_backward)


def step(t: Mine) -> list[torch.Tensor]:
    """What one step of SGD with rate 1 took from W and B."""
    before = [p.detach().clone() for p in t.model.parameters()]
    t.train()
    return [b - p.detach() for b, p in zip(before, t.model.parameters(), strict=True)]


def by_hand(rule: str = "ia") -> list[torch.Tensor]:
    """The gradient of J + R on the whole batch."""
    torch.manual_seed(0)
    model = Net()
    untied.untie_(model, rule)
    batch = {k: torch.stack([d[k] for d in data()]) for k in ("x", "labels")}
    with untied.record(model) as tape:
        loss = model(**batch)["loss"]
    (loss + tape.penalty()).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("summed", [False, True], ids=["mean", "sum over the whole batch"])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_step_is_the_step_of_j_plus_r_under_accumulation(tmp_path: Path, parts: int, summed: bool) -> None:
    t = trainer(tmp_path, summed=summed, per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts)
    if summed:  # J is then normalised by the number of items, and the Trainer divides nothing
        t._get_num_items_in_batch = lambda samples, device: sum(len(s["labels"]) for s in samples)
    for moved, expected in zip(step(t), by_hand(), strict=True):
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_weight_decay_reaches_w_alone(tmp_path: Path) -> None:
    t = trainer(tmp_path, weight_decay=0.5)
    t.create_optimizer()
    decayed = {id(p) for group in t.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    kept = {id(p) for group in t.optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    _, backward = untied.parameter_groups(t.model)
    assert id(t.model.layers[0].weight) in decayed and {id(B) for B in backward} <= kept


def test_w_is_clipped_by_its_own_norm(tmp_path: Path) -> None:
    moved, expected = step(trainer(tmp_path, max_grad_norm=0.01)), by_hand()
    names = [n for n, _ in trainer(tmp_path).model.named_parameters()]
    forward = [i for i, n in enumerate(names) if "backward" not in n]
    norm = torch.stack([moved[i].norm() for i in forward]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01), rtol=1e-3, atol=0)
    for i in set(range(len(names))) - set(forward):
        torch.testing.assert_close(moved[i], expected[i], rtol=1e-4, atol=1e-6)


def test_eval_loss_is_free_of_r(tmp_path: Path) -> None:
    t = trainer(tmp_path, per_device_eval_batch_size=8)
    batch = {k: torch.stack([d[k] for d in data()]) for k in ("x", "labels")}
    assert t.evaluate()["eval_loss"] == pytest.approx(t.model(**batch)["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_b_is_saved_by_choice_and_always_in_checkpoints(tmp_path: Path, keep: bool) -> None:
    load = pytest.importorskip("safetensors.torch").load_file
    t = trainer(tmp_path / "run", save_backward=keep, save_strategy="steps", save_steps=1)
    t.train()
    t.save_model(str(tmp_path / "model"))
    saved = load(tmp_path / "model/model.safetensors")
    assert ("layers.0.backward_weight" in saved) is keep and "layers.0.weight" in saved
    assert "layers.0.backward_weight" in load(tmp_path / "run/checkpoint-1/model.safetensors")


def test_a_run_that_goes_on_is_the_run_that_was_never_interrupted(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", max_steps=4, learning_rate=0.1)
    whole.train()
    half = trainer(tmp_path / "b", max_steps=2, learning_rate=0.1, save_strategy="steps", save_steps=2)
    half.train()
    on = trainer(tmp_path / "b", max_steps=4, learning_rate=0.1)
    with torch.no_grad():
        on.model.layers[0].backward_weight.zero_()  # what the checkpoint has to bring back
    on.train(resume_from_checkpoint=str(tmp_path / "b/checkpoint-2"))
    for a, b in zip(whole.model.parameters(), on.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_that_is_not_untied_and_a_trainer_of_another_version_are_refused(tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(untied.UntiedError, match=r"call untied\.untie_"):
        Mine(model=Net(), args=arguments, train_dataset=data())

    class Old:
        """A Trainer without what the mixin overrides."""

    with pytest.raises(untied.UntiedError, match=r"has no Trainer\._clip_grad_norm"):
        type("Of", (UntiedTrainerMixin, Old), {})()
