"""A user's own models and data, by import path and by entry point; every way in which they can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import untied
from untied.errors import UntiedError
from untied.lab.cli import main
from untied.lab.data import DataConfig, load
from untied.lab.keeping.record import RunFolder
from untied.lab.models import build
from untied.lab.reading import own

NETS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

class Net(nn.Sequential):
    def __init__(self, input_shape, classes, width=8):
        super().__init__(nn.Flatten(), nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, classes))

made = nn.Linear(2, 2)
word = "no function"

def demanding(depth):
    pass

def number():
    return 3

def broken():
    return 1 / 0

def points(count, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return TensorDataset(torch.randn(count, 4, generator=g) + 3 * torch.eye(3, 4)[y], y)

def load():
    return points(120, 0), points(30, 1)

class Noisy(Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, i):
        if i == 7 and BAD:
            raise ValueError("item seven is bad")
        return torch.randn(4), i % 3

BAD = False

def noisy():
    return {"train": DataLoader(Noisy(), num_workers=1), "test": Noisy(), "classes": ["a", "b", "c"]}

def bad():
    global BAD
    BAD = True
    return {"train": Noisy(), "test": Noisy(), "classes": 3}

class Stream(IterableDataset):
    def __iter__(self):
        yield 1

def stream():
    return Stream(), Stream()

class Triples(Dataset):
    def __len__(self):
        return 9
    def __getitem__(self, i):
        return 1, 2, 3

def triples():
    return {"train": Triples(), "test": Triples(), "classes": 2}

def no_classes():
    return Noisy(), Noisy()

def one():
    return {"train": points(9, 0)}

def misspelt():
    return {"train": points(9, 0), "test": points(9, 0), "validaton": points(9, 0)}
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nets.py, which is the current one; nothing of it stays imported."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "fails.py").write_text("import torch\nraise RuntimeError('not today')\n")
    (tmp_path / "typo.py").write_text("def load(:\n")
    (tmp_path / "needs.py").write_text("import nothing_like_this\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    own.offered.cache_clear()
    yield tmp_path
    own.offered.cache_clear()
    for name in set(sys.modules) - before:
        if name in ("nets", "fails", "typo", "needs", "offers") or name.startswith("untied_own_"):
            del sys.modules[name]


SMALL = ["--epochs", "1", "--data.batch-size", "12"]


@pytest.mark.parametrize("where", ["nets", "nets.py"])
def test_a_network_and_data_of_ones_own_are_trained(nets: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", f"{where}:Net", "--data", f"{where}:load", *SMALL]
    assert main(["train", *words, "--rule", "sa", "--out", "run", "--devices.accelerator", "cpu"]) == 0
    weights = RunFolder.open(nets / "run")
    assert weights.config()["model"] == f"{where}:Net" and weights.config()["data"]["name"] == f"{where}:load"
    assert main(["evaluate", "run", "--accelerator", "cpu"]) == 0
    if where == "nets":
        return
    assert (
        main(["compare", *words, "--rules", "bp", "--seeds", "1", "--workers", "1", "--no-frozen", "--out", "all"]) == 0
    )
    assert [row["finished"] for row in RunFolder.open(nets / "all").read_json("results.json")] == [True]
    assert main(["check", f"{where}:Net", "--data", f"{where}:load", "--data.batch-size", "12"]) == 0
    assert main(["diagnose", f"{where}:Net", "--data", f"{where}:load", "--data.batch-size", "12"]) == 0


def test_bench_times_a_network_of_ones_own(nets: Path) -> None:
    (nets / "wide.py").write_text(
        "from torch import nn\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, classes))\n"
    )
    words = ["--models", "wide:net", "--image-size", "8", "--batches", "4", "--rounds", "1", "--profile", "0"]
    assert main(["bench", *words, "--rules", "bp", "sa", "--out", "bench"]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "nowhere.nets:Net"], ["nowhere.nets:Net", "no module nowhere"]),
        (["--model", "lib/nowhere.py:Net"], ["no file", "lib/nowhere.py"]),
        (["--model", "nets:Nett"], ["nets has no Nett", "did you mean Net"]),
        (["--model", "nets:word"], ["nets:word is a str", "cannot be called"]),
        (["--model", "nets:made"], ["made already", "name the class"]),
        (["--model", "nets:number"], ["gave an int", "torch.nn.Module"]),
        (["--model", "nets:demanding"], ["needs depth", "input_shape"]),
        (["--model", "nets:broken"], ["ZeroDivisionError", "nets.py, line 20", "division by zero"]),
        (["--model", "fails:Net"], ["RuntimeError", "fails.py, line 2", "not today"]),
        (["--model", "typo:Net"], ["SyntaxError", "typo.py, line 1"]),
        (["--model", "needs:Net"], ["ModuleNotFoundError", "nothing_like_this"]),
        (["--model", "nets.py:broken"], ["nets.py:broken", "division by zero"]),
        (["--data", "nets:nothing"], ["nets has no nothing"]),
        (["--data", "nets:number"], ["returned an int", "(train, test)"]),
        (["--data", "nets:broken"], ["ZeroDivisionError"]),
        (["--data", "nets:stream"], ["Stream, without a length"]),
        (["--data", "nets:triples"], ["pair (input, target)"]),
        (["--data", "nets:no_classes"], ["how many classes"]),
        (["--data", "nets:one"], ["returned no 'test'"]),
        (["--data", "nets:misspelt"], ["'validaton'", "possible are"]),
        (["--data", "nets:load", "--data.augment", "standard"], ["augment is set", "data of your own"]),
        (["--data", "nets:load", "--data.validation", "0.001"], ["leaves nothing"]),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    nets: Path, words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = words if "--model" in words else ["--model", "nets:Net", *words]
    assert main(["train", *given, "--out", "run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("untied: ") and err.count("\n") == 1
    for text in expected:
        assert text in err
    assert not (nets / "run").exists()


def test_the_users_own_traceback_comes_with_debug(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "train", "--model", "nets:broken", "--out", "run"]) == 2
    err = capsys.readouterr().err
    assert "return 1 / 0" in err and err.splitlines()[-1].startswith("untied: model nets:broken raised")


@pytest.mark.parametrize("name", ["nets:load", "nets:noisy"])
def test_an_epoch_is_a_function_of_seed_and_number(nets: Path, name: str) -> None:
    config = DataConfig(name, batch_size=4)

    def batches(epoch: int, seed: int = 0, **how) -> list[torch.Tensor]:
        torch.manual_seed(epoch)  # the global random state is not read
        return [x for x, _ in load(config, seed=seed).train.epoch(epoch, **how)]

    first, later = batches(3), batches(4)
    before = torch.get_rng_state()
    again = [x for x, _ in load(config, seed=0).train.epoch(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert name == "nets:noisy" or torch.equal(before, torch.get_rng_state())  # nor changed
    assert not torch.equal(first[0], later[0]) and not torch.equal(first[0], batches(3, seed=1)[0])
    assert all(torch.equal(a, b) for a, b in zip(first[2:], batches(3, start=2), strict=True))
    parts = [batches(3, share=(rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat([parts[0][0], parts[1][0]]), first[0])


def test_an_item_that_raises_is_named_from_a_worker_too(nets: Path) -> None:
    data = load(DataConfig("nets:bad", batch_size=20), seed=0)
    with pytest.raises(UntiedError, match=r"nets:bad.*item \d+ raised ValueError.*item seven is bad"):
        list(data.train.epoch(0))


def test_splits_are_held_out_once_for_every_seed(nets: Path) -> None:
    one, other = (load(DataConfig("nets:load", validation=0.25), seed=seed) for seed in (0, 1))
    assert one.sizes == {"train": 90, "validation": 30, "test": 30} and len(one.classes) == 3
    assert torch.equal(next(iter(one.validation))[0], next(iter(other.validation))[0])


def test_an_installed_package_offers_its_own(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = nets / "offers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[untied.models]\nour-net = nets:Net\nmlp = nets:broken\n[untied.datasets]\nour-points = nets:load\n"
        "[untied.rules]\nhalf_of_w = offers:Half\nlying = offers:Half\n"
    )
    (nets / "offers.py").write_text(
        "import untied\nclass Half(untied.rules.Transport):\n    name, title = 'half_of_w', 'half of W'\n"
        "    def backward_weight(self, W, magnitude):\n        return W / 2\n"
    )
    sys.path.append(str(nets))
    own.offered.cache_clear()
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for text in ("our-net  from offers (nets:Net)", "our-points", "half_of_w", "--data", "package.module:Net"):
        assert text in out
    words = ["--model", "our-net", "--data", "our-points", "--rule", "half_of_w", "--devices.accelerator", "cpu"]
    try:
        assert main(["train", *words, *SMALL, "--out", "run"]) == 0
        build("mlp", input_shape=(1, 4, 4), classes=2)  # a name of ours stays ours
        with pytest.raises(UntiedError, match="is called 'half_of_w'"):
            untied.rules.parse("lying")
    finally:
        if "half_of_w" in untied.rules.NAMED:
            untied.unregister_rule("half_of_w")


def test_objects_of_this_process_have_names() -> None:
    net = lambda classes: torch.nn.Linear(2, classes)  # noqa: E731
    name = own.hold(net)
    assert name.startswith("python:") and own.hold(net) == name and own.find("model", name) is net
    assert own.hold(torch.nn.Flatten) == "torch.nn.modules.flatten:Flatten"
    assert isinstance(build(name, input_shape=(2, 1, 1), classes=3), torch.nn.Linear)
    with pytest.raises(UntiedError, match="process that has ended"):
        own.find("model", "python:gone-1")


PLUG_IN = """
import torch, untied, untied.lab.tasks
class Scaled(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x / 2)
class Odd(torch.nn.Linear):
    pass
class Task(untied.lab.tasks.Classification):
    name = "our-task"
"""
UNTIED = """
import untied, plugged
@untied.register_layer(plugged.Scaled)
class UntiedScaled(untied.Untied, plugged.Scaled):
    def forward(self, x):
        return self.connect(x / 2, untied.geometry.DENSE)
"""


def test_layers_and_tasks_are_offered_and_what_raises_is_named_once(
    nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = nets / "plugs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[untied.layers]\nplugged.Scaled = plugged_untied:UntiedScaled\nplugged.Odd = fails:Odd\n"
        "[untied.tasks]\nour-task = plugged:Task\n[untied.rules]\nfailing = fails:Rule\n"
    )
    (nets / "plugged.py").write_text(PLUG_IN)
    (nets / "plugged_untied.py").write_text(UNTIED)
    sys.path.append(str(nets))
    own.offered.cache_clear()
    plugged = __import__("plugged")
    try:
        model = torch.nn.Sequential(plugged.Scaled(4, 3), torch.nn.Linear(3, 2))
        assert untied.untie_(model, "sa").converted["0"] == "Scaled, rule sa"  # found by its class
        said = r"plugged.Odd \(fails:Odd\) raised RuntimeError: not today; it is left"
        with pytest.warns(UserWarning, match=said), pytest.raises(UntiedError, match="0 is Odd, a subclass of Linear"):
            untied.untie_(torch.nn.Sequential(plugged.Odd(4, 3), torch.nn.Linear(3, 2)), "sa")
        with pytest.raises(UntiedError, match="0 is Odd, a subclass of Linear"):  # and no second warning
            untied.untie_(torch.nn.Sequential(plugged.Odd(4, 3), torch.nn.Linear(3, 2)), "sa")
        with pytest.warns(UserWarning, match=r"rule failing \(fails:Rule\) raised RuntimeError.*left out"):
            assert main(["rules"]) == 0
        assert main(["rules"]) == 0
        capsys.readouterr()
        assert main(["list"]) == 0
        out = capsys.readouterr().out
        for text in (
            "plugged.Scaled  from plugs",
            "our-task  from plugs (plugged:Task)",
            "failing  from plugs",
            "Conv2d",
        ):
            assert text in out
        words = ["--model", "nets:Net", "--data", "nets:load", "--task", "our-task", "--devices.accelerator", "cpu"]
        assert main(["train", *words, *SMALL, "--out", "run"]) == 0
    finally:
        untied.layers.LAYERS.pop(plugged.Scaled, None)
        for name in ("plugged", "plugged_untied"):
            sys.modules.pop(name, None)
