"""Tasks: what each measures, what fits it, and each of them from the command line."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from untied.errors import UntiedError
from untied.lab import tasks
from untied.lab.cli import main
from untied.lab.data import DataConfig, load
from untied.lab.data.items import Part, from_parts
from untied.lab.data.series import mackey_glass
from untied.lab.keeping.record import RunFolder
from untied.lab.models import build
from untied.lab.reading import own
from untied.lab.settings.run import TrainConfig
from untied.lab.tasks import Autoencoding, Classification, MultiLabel, NextToken, Regression
from untied.lab.tasks.trees import chunks, finite, first, size
from untied.lab.training.loop import train


def scores(task: tasks.Task, outputs: torch.Tensor, targets: torch.Tensor, parts: int = 3) -> dict[str, float]:
    """Of a split, added up over batches."""
    batches = list(zip(outputs.chunk(parts), targets.chunk(parts), strict=True))
    total = sum(task.tally(*batch).double() for batch in batches)
    assert total.shape == (task.width,)
    return task.scores(total.tolist(), len(outputs))


def test_classification_counts_the_first_guess_and_the_first_five() -> None:
    outputs, targets = torch.randn(60, 8), torch.arange(60) % 8
    right = outputs.topk(5).indices == targets[:, None]
    found = scores(Classification(classes=8), outputs, targets)
    assert found == {"accuracy": right[:, 0].double().mean(), "top5": right.any(1).double().mean()}
    assert set(scores(Classification(classes=5), outputs[:, :5], targets % 5)) == {
        "accuracy"
    }  # of five, it says nothing
    smooth = Classification(label_smoothing=0.3)
    assert smooth.objective(outputs, targets) != smooth.loss(outputs, targets)


def test_regression_is_what_scikit_learn_says() -> None:
    from sklearn.metrics import mean_squared_error, r2_score

    targets = torch.randn(60, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]) + 100
    outputs = targets + 0.5 * torch.randn_like(targets)
    found = scores(Regression(outputs=3), outputs, targets)
    assert found["r2"] == pytest.approx(r2_score(targets, outputs, multioutput="variance_weighted"), abs=1e-9)
    assert found["mse"] == pytest.approx(mean_squared_error(targets, outputs))
    assert Regression(outputs=3).loss(outputs, targets) == pytest.approx(found["mse"])
    flat = scores(Regression(outputs=6), outputs.reshape(30, 6), targets.reshape(30, 2, 3))
    assert flat["mse"] == pytest.approx(found["mse"])


def test_multi_label_is_what_scikit_learn_says() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    outputs, targets = torch.randn(60, 4), torch.randint(2, (60, 4))
    found, given = scores(MultiLabel(outputs=4), outputs, targets), (outputs > 0).long()
    assert found["f1"] == pytest.approx(f1_score(targets, given, average="micro"))
    assert found["exact"] == pytest.approx(accuracy_score(targets, given))
    assert found["label_accuracy"] == pytest.approx(float((given == targets).double().mean()))


def test_perplexity_is_the_exponential_of_the_mean_over_tokens() -> None:
    task, targets = NextToken(), torch.randint(7, (60, 5))
    assert scores(task, torch.zeros(60, 5, 7), targets)["perplexity"] == pytest.approx(7)
    outputs = torch.randn(60, 5, 7)
    assert scores(task, outputs, targets)["perplexity"] == pytest.approx(
        math.exp(task.loss(outputs, targets)), rel=1e-5
    )
    assert scores(task, 99 * torch.nn.functional.one_hot(targets, 7), targets)["accuracy"] == 1
    assert not task.metrics[0].higher and task.metrics[0].better(2.0, 3.0)


def test_batches_may_be_nested() -> None:
    tree = {"a": torch.arange(6), "b": [torch.ones(6, 2), (torch.zeros(6),)]}
    assert size(tree) == 6 and size(first(tree, 2)) == 2 and finite(tree)
    assert [part["a"].tolist() for part in chunks(tree, 2)] == [[0, 1, 2], [3, 4, 5]]
    tree["b"][1][0][3] = math.nan
    assert not finite(tree)


def test_the_embedded_text_and_series() -> None:
    text = load(DataConfig("text", batch_size=8, validation=0.1), seed=0)
    x, y = next(iter(text.train))
    assert x.shape == y.shape == (8, 32) and torch.equal(x[:, 1:], y[:, :-1]) and text.task == "next-token"
    assert text.outputs == text.vocabulary == len(text.classes) > 50 and min(text.sizes.values()) > 80
    words = "".join(text.classes[i] for i in torch.cat([x for x, _ in text.validation]).flatten())
    assert " the " in words
    series = load(DataConfig("series", batch_size=8, validation=0.1), seed=0)
    x, y = next(iter(series.test))
    assert x.shape[1:] == (32, 1) and y.shape[1:] == (1,) and series.task == "regression" and not series.classes
    assert torch.equal(x[6:, -1], y[:-6])  # six steps ahead
    values = mackey_glass(400)
    assert 0.2 < values.min() < 0.6 and 1.1 < values.max() < 1.5  # of the attractor, and no fixed point
    assert values[-100:].std() > 0.1
    for name in ("text", "series"):
        with pytest.raises(UntiedError, match=f"augment is set, but {name} has no images"):
            DataConfig(name, augment="standard")


@pytest.mark.parametrize("name", ["gru-16", "lstm-16", "rnn-16", "transformer-16-1"])
def test_networks_for_sequences(name: str) -> None:
    tokens = build(name, input_shape=(5,), classes=7, vocabulary=7)
    values = build(name, input_shape=(5, 2), classes=3)
    x = torch.randint(7, (2, 5))
    y = tokens(x)
    assert y.shape == (2, 5, 7) and values(torch.randn(2, 5, 2)).shape == (2, 3)
    later = x.clone()
    later[:, 3:] = (later[:, 3:] + 1) % 7
    assert torch.allclose(tokens(later)[:, :3], y[:, :3], atol=1e-6)  # what comes later changes nothing before
    with pytest.raises(UntiedError, match="takes sequences"):
        build(name, input_shape=(1, 8, 8), classes=3)
    with pytest.raises(UntiedError, match="inputs are tokens"):
        build("mlp", input_shape=(5,), classes=7, vocabulary=7)


OWN = """
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from untied.lab.tasks import Metric, Task

class Distance(Task):
    name, metrics = "distance", (Metric("distance", "mean distance", higher=False),)
    def loss(self, outputs, targets):
        return (outputs - targets).norm(dim=1).mean()
    def tally(self, outputs, targets):
        return (outputs - targets).norm(dim=1).sum()[None]

class Nothing:
    pass

class Vector(Task):
    name, metrics = "vector", Distance.metrics
    def loss(self, outputs, targets):
        return (outputs - targets).norm(dim=1)
    def tally(self, outputs, targets):
        return outputs.sum()[None]

def plane(count=192):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
    return x, x @ torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])

def points():
    return {"train": TensorDataset(*plane()), "test": TensorDataset(*plane(24)), "task": "regression"}

def labels():
    return {k: TensorDataset(x, (y > 0).long()) for k, (x, y) in dict(train=plane(), test=plane(24)).items()}

def odd():
    x, y = plane()
    return TensorDataset(x, 3 * (y > 0).long()), TensorDataset(x, (y > 0).long())

class Pairs(Dataset):
    def __len__(self):
        return 192
    def __getitem__(self, i):
        x, y = plane()
        return {"left": x[i, :2], "right": [x[i, 2:]]}, y[i]

def pairs():
    return {"train": Pairs(), "test": Pairs(), "task": "regression"}

class Both(nn.Module):
    def __init__(self, outputs, input_shape):
        super().__init__()
        assert input_shape == {"left": (2,), "right": [(2,)]}
        self.left, self.right, self.out = nn.Linear(2, 8), nn.Linear(2, 8), nn.Linear(8, outputs)
    def forward(self, x):
        return self.out(torch.relu(self.left(x["left"]) + self.right(x["right"][0])))

class Wide(nn.Linear):
    def __init__(self):
        super().__init__(4, 5)

class Several(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
    def forward(self, x):
        return super().forward(x), x

class Wrong(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

class Turned(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
    def forward(self, x):
        return super().forward(x).sum(0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name == "mine" or name.startswith("untied_own_")]:
        del sys.modules[name]


CPU = ["--devices.accelerator", "cpu", "--epochs", "2"]


@pytest.mark.parametrize(
    ("words", "metric", "bound"),
    [
        (["--data", "text", "--model", "transformer-16-1", "--rule", "sa", "--data.batch-size", "32",
          "--forward.name", "Adam"],
         "perplexity", -60),
        (["--data", "text", "--model", "gru-16", "--rule", "fa", "--data.batch-size", "50",
          "--forward.name", "Adam"], "perplexity", -60),
        (["--data", "series", "--model", "mlp-32", "--rule", "sa"], "r2", 0.3),
        (["--data", "digits", "--model", "mlp-32", "--task", "autoencoding", "--rule", "sa",
          "--forward.name", "Adam"], "r2", 0.05),
        (["--data", "mine:labels", "--model", "mlp-16", "--task", "multi-label", "--data.batch-size", "8"], "f1", 0.5),
        (["--data", "mine:points", "--model", "mlp-16", "--data.batch-size", "8"], "r2", 0.2),
        (["--data", "mine.py:points", "--model", "mlp-16", "--task", "mine.py:Distance", "--data.batch-size", "8"],
         "distance", -2.0),
        (["--data", "mine:pairs", "--model", "mine:Both", "--data.batch-size", "8"], "r2", 0.2),
    ],
)  # fmt: skip
def test_each_task_is_trained_evaluated_and_reported(
    folder: Path, words: list[str], metric: str, bound: float, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, *CPU, "--out", "run", "--forward.lr", "0.02"]) == 0
    run = RunFolder.open(folder / "run")
    result = run.read_json("results.json")
    value = result[metric]
    assert (value > bound) if bound > 0 else (value < -bound), result
    assert f"validation_{metric}" in run.metrics()[-1] and result["metrics"][0]["name"] == metric
    best = [line[f"validation_{metric}"] for line in run.metrics()]
    assert result[f"best_validation_{metric}"] == (max(best) if bound > 0 else min(best))
    assert main(["evaluate", "run", "--accelerator", "cpu"]) == 0
    assert run.read_json("evaluation-test-last.json")[metric] == pytest.approx(value, rel=1e-5)
    assert result["metrics"][0]["title"] in (run.path / "card.md").read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_rules_are_compared_on_a_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "series", "--model", "mlp-8", "--rules", "bp", "fa", "--seeds", "1", "--no-frozen"]
    assert main(["compare", *words, "--epochs", "1", "--workers", "0", "--timing-steps", "2", "--out", "all"]) == 0
    assert "R²" in capsys.readouterr().out
    run = RunFolder.open(folder / "all")
    rows = run.read_json("results.json")
    assert [row["metric"]["name"] for row in rows] == ["r2", "r2"] and rows[0]["cost"] > 0
    assert "| test R² |" in (run.path / "table.md").read_text()
    assert main(["report", "all"]) == 0
    assert main(["check", "mlp-8", "--data", "series"]) == 0
    assert main(["diagnose", "mlp-8", "--data", "series", "--steps", "2", "--out", "d"]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--task", "regresion"], ["unknown task 'regresion'", "'regression'"]),
        (["--task", "regression"], ["task regression needs targets of floating point", "handwritten digits", "int64"]),
        (["--task", "next-token"], ["whole numbers (n, length)"]),
        (["--task", "multi-label"], ["(n, labels)"]),
        (["--data", "text"], ["resnet18", "tokens", "transformer"]),
        (["--data", "text", "--model", "mlp"], ["inputs are tokens"]),
        (["--data", "text", "--model", "gru", "--task", "classification"], ["a class for each example"]),
        (["--data", "text", "--model", "gru", "--task", "autoencoding"], ["floating point"]),
        (["--data", "series", "--model", "cnn"], ["(32, 1)", "channels, height, width"]),
        (["--data", "series", "--model", "mlp", "--set", "label_smoothing=0.1"], ["it is for classification"]),
        (["--data", "mine:points", "--model", "mine:Wide"], ["(5,)", "(2,)", "is needed"]),
        (["--data", "mine:points", "--model", "mine:Several"], ["gives a tuple", "one tensor"]),
        (["--data", "mine:points", "--model", "mine:Turned"], ["gives () for each example", "(2,)"]),
        (["--data", "mine:points", "--model", "mine:Wrong"], ["mine:Wrong, given inputs of (4,)", "RuntimeError"]),
        (["--data", "mine:odd", "--model", "mlp", "--task", "multi-label"], ["0 and 1 alone"]),
        (["--data", "mine:pairs", "--model", "mlp"], ["inputs are several"]),
        (["--data", "mine:points", "--task", "mine:Nothing"], ["gave a Nothing", "untied.lab.tasks.Task"]),
        (["--data", "mine:points", "--model", "mlp", "--task", "mine:Vector"], ["without dimensions"]),
        (["--data", "mine:points", "--task", "mine:Gone"], ["mine has no Gone"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_training(
    folder: Path, words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    size = [] if "--data" not in words or "mine" not in words[1] else ["--data.batch-size", "8"]
    assert main(["train", *words, *size, "--out", "run"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(text in err for text in expected), err
    assert not (folder / "run").exists()


def test_a_task_goes_on_bit_for_bit(tmp_path: Path) -> None:
    from untied.lab.training.loop import Run, Stopped

    config = TrainConfig(rule="sa", model="mlp-8", data=DataConfig("series", batch_size=256, validation=0.2), epochs=2)
    whole: list[dict] = []
    train(config, whole.append)
    run, lines = Run(config, folder=tmp_path), []
    run.tick = lambda: setattr(run, "stop", run.position.step == 3)
    with pytest.raises(Stopped):
        run.train(lines.append)
    again = Run(config, folder=tmp_path)
    again.resume()
    again.train(lines.append)
    assert lines == whole


def test_a_task_may_follow_from_what_the_data_say() -> None:
    x = torch.randn(20, 4)
    config = DataConfig("synthetic", batch_size=4, validation=0.2)
    data = from_parts("x", {"train": Part(TensorDataset(x, x)), "test": Part(TensorDataset(x, x))}, config, seed=0)
    assert data.outputs == 4 and not data.classes
    assert tasks.make("autoencoding", data).outputs(data) == 4 and isinstance(
        tasks.make("autoencoding", data), Autoencoding
    )
    assert own.is_own("task", "mine:Task")
