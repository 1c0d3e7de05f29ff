"""Checkpoints that are damaged, of something else, or cannot be written: one line, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from runs import command, silent, small, state
from untied.errors import UntiedError
from untied.lab.experiments import train
from untied.lab.experiments.evaluate import evaluate_run, export
from untied.lab.keeping.record import RunFolder
from untied.lab.settings.optimizer import OptimizerConfig, optimizer_names
from untied.lab.training import checkpoint
from untied.lab.training.checkpoint import Position
from untied.lab.training.identity import LAST
from untied.lab.training.loop import Run


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that has been stopped in its second epoch."""
    return begin(tmp_path / "run")


def begin(path: Path, **changes: Any) -> Path:
    config = small(path, **changes)
    folder = RunFolder.create(path, config)
    run = Run(config, folder=path)
    run.tick = lambda: setattr(run, "stop", run.position.step == 5)
    with pytest.raises(train.Stopped):
        run.train(folder.append)
    return path


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["untied"])


def edit(run: Path, **changes: Any) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(settings | changes))


def refused(run: Path, *words: str) -> None:
    """Going on is one line with these words, and touches nothing."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UntiedError) as error:
        train.resume(run, silent())
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "header alone", "not ours", "no position"])
def test_a_damaged_checkpoint(damage: str, begun: Path) -> None:
    file = begun / LAST
    content = file.read_bytes()
    if damage == "not ours":
        save_file({"a": torch.zeros(1)}, file)
    elif damage == "no position":
        save_file({"a": torch.zeros(1)}, file, {"untied": "{}"})
    else:
        file.write_bytes({"truncated": content[:-7], "garbage": b"?" * 4000, "empty": b"",
                          "header alone": content[:200]}[damage])  # fmt: skip
    refused(begun, "last.safetensors is not a checkpoint of a training run, or is damaged")
    for use in (evaluate_run, export):
        with pytest.raises(UntiedError, match="is not a checkpoint of a training run, or is damaged"):
            use(begun, **({"out": begun / "w.safetensors"} if use is export else {}), console=silent())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "mlp-9"}, ["its model: mlp-8; here: mlp-9"]),
        ({"rule": "aa"}, ["its rule: sa; here: aa"]),
        ({"seed": 3}, ["its seed: 0; here: 3"]),
        ({"epochs": 9}, ["its epochs: 2; here: 9"]),
        ({"ema": 0.5}, ["its ema: None; here: 0.5"]),
        ({"data": {"name": "digits", "batch_size": 12}}, ["its data: synthetic; here: digits"]),
        ({"backward": {"name": "Adam"}}, ["its backward optimizer: SGD; here: Adam"]),
        ({"rulle": "aa"}, ["unknown key rulle", "'rule'"]),
        ({"epochs": 0}, ["epochs is 0"]),
    ],
)
def test_a_checkpoint_of_another_run(changes: dict[str, Any], words: list[str], begun: Path) -> None:
    edit(begun, **changes)
    refused(begun, *words)


def test_weights_of_another_model_under_the_right_name(begun: Path, tmp_path: Path) -> None:
    other = begin(tmp_path / "other", model="mlp-9")
    tensors, rest = load_file(other / LAST), header(begun / LAST)
    del rest["digest"], rest["format"]  # as an early version, whose header says nothing of the tensors
    save_file(tensors, begun / LAST, {"untied": json.dumps(rest)})
    refused(begun, "is of another model or rule: fc1.weight is (9, 16) there and (8, 16) here")
    with pytest.raises(UntiedError, match=r"fc1.weight is \(9, 16\) there"):
        evaluate_run(begun, console=silent())


def test_no_bit_flips_unseen(tmp_path: Path) -> None:
    """Neither in the weights nor in the header, where the digest's own name may be hit."""
    path, given = tmp_path / "best.safetensors", torch.arange(6.0)
    checkpoint.save(path, Position(step=3), {"model.w": given})
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UntiedError, match="is not a checkpoint of a training run, or is damaged"):
            checkpoint.read(path)


def test_a_header_without_its_digest(begun: Path) -> None:
    tensors, rest = load_file(begun / LAST), header(begun / LAST)
    del rest["digest"]
    save_file(tensors, begun / LAST, {"untied": json.dumps(rest)})
    refused(begun, "its bytes are not those that were written")
    del rest["format"]  # an early version wrote neither
    save_file(tensors, begun / LAST, {"untied": json.dumps(rest)})
    assert checkpoint.read(begun / LAST)[1].step == 5


def test_swapped_files(begun: Path, tmp_path: Path) -> None:
    other = begin(tmp_path / "other", rule="fa")
    shutil.copy(other / LAST, begun / LAST)
    refused(begun, "its rule: fa; here: sa")
    shutil.copy(begun / "checkpoints" / "best.safetensors", begun / LAST)
    refused(begun, "weights alone")


def test_metrics_that_were_shortened(begun: Path) -> None:
    (begun / "metrics.jsonl").write_text("")
    refused(begun, "metrics.jsonl has 0 lines where its checkpoint has seen 1")


def test_another_number_of_processes(begun: Path) -> None:
    edit(begun, devices={"devices": 2, "accelerator": "cpu"})
    refused(begun, "the run had 1 processes and now has 2")


def test_folders_without_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "new", small(tmp_path / "new"))
    for use in (evaluate_run, export):
        out = {"out": tmp_path / "w.safetensors"} if use is export else {}
        with pytest.raises(UntiedError, match=r"there is no checkpoint .*last.safetensors"):
            use(tmp_path / "new", **out, console=silent())
        with pytest.raises(UntiedError, match="is not a run folder"):
            use(tmp_path, **out, console=silent())
    with pytest.raises(UntiedError, match="is not a run folder"):
        train.resume(tmp_path, silent())
    with pytest.raises(UntiedError, match=r"not ended: untied train --resume .*new  goes on"):
        train.rewrite(tmp_path / "new", silent())
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "config.yaml").write_text("rules: [bp]\n")
    with pytest.raises(UntiedError, match="is not a run of untied train"):
        train.resume(tmp_path / "compared", silent())


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_can_be_kept_or_is_refused(name: str, tmp_path: Path) -> None:
    """All of torch.optim: a run and the same run in two parts agree, or nothing is begun, in one line."""
    if name == "SWATS":
        pytest.importorskip("pytorch_optimizer")
    config = small(forward=OptimizerConfig(name, lr=1e-3, momentum=0.0), backward=OptimizerConfig(name, lr=1e-3))
    try:
        run = Run(config, folder=tmp_path / "a")
    except UntiedError as error:
        assert f"optimizer {name} refuses" in str(error) and "\n" not in str(error)
        return
    wanted = run.train(lambda metrics: None)
    first = Run(config, folder=tmp_path / "b")
    first.tick = lambda: setattr(first, "stop", first.position.step == 4)
    with pytest.raises(train.Stopped):
        first.train(lambda metrics: None)
    second = Run(config, folder=tmp_path / "b")
    second.resume()
    assert second.train(lambda metrics: None) == wanted
    assert state(tmp_path / "a") == state(tmp_path / "b")


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, Position(step=1), {"a": torch.ones(3)})

    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fails)
    with pytest.raises(UntiedError, match=r"cannot write .*c.safetensors: No space left on device"):
        checkpoint.save(path, Position(step=2), {"a": torch.zeros(3)})
    tensors, position, _ = checkpoint.read(path)
    assert position.step == 1 and tensors["a"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_can_go_on(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    run = begin(tmp_path / "run", epochs=40, model="mlp-64", angles="weights")
    size = (run / LAST).stat().st_size

    def full(limit: int):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    before = (run / LAST).read_bytes()
    for limit in (size - 100, 4000):  # checkpoints do not fit; nor do metrics and TensorBoard's events
        done = command("train", "--resume", str(run), preexec_fn=full(limit))
        _, err = done.communicate(timeout=120)
        assert done.returncode == 2 and err.count("\n") == 1, err
        assert err.startswith("untied: cannot write ") and "File too large" in err
        assert (run / LAST).read_bytes() == before
        assert not list(run.rglob(".*.partial"))
    assert train.resume(run, silent()) == 0
    assert len(RunFolder(run).metrics()) == 40
