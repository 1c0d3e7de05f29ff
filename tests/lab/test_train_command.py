"""The command as a user meets it: killed, stopped, on a full disk, with nonsense."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from safetensors.torch import load_file

from untied.lab.cli import main
from untied.lab.evaluate import load_run
from untied.lab.loop import evaluate
from untied.lab.record import RunFolder

SMALL = ["--model", "mlp-8", "--data", "synthetic", "--data.synthetic-shape", "1", "4", "4", "--epochs", "2"]
LONG = [
    "--model", "cnn-4", "--data", "synthetic", "--data.synthetic-shape", "1", "6", "6", "--data.synthetic-count", "320",
    "--data.batch-size", "16", "--epochs", "6", "--rule", "ia(noise=normal)", "--backward.name", "Adam",
    "--backward.lr", "0.01", "--forward.noise", "0.01", "--ema", "0.9", "--devices.accelerator", "cpu",
    "--phases.kind", "alternating",
]  # fmt: skip


def command(*words: str, **how) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "untied", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, **how,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert path.exists(), path


def is_one_line(text: str) -> bool:
    return text.startswith("untied: ") and text.count("\n") == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", *LONG, "--out", str(out)]) == 0
    return out


def assert_same_run(first: Path, second: Path) -> None:
    for name in ("metrics.jsonl", "results.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for name in ("last", "best"):
        one, other = (load_file(path / "checkpoints" / f"{name}.safetensors") for path in (first, second))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list((second / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(
    processes: int, whole: Path, tmp_path: Path, capsys
) -> None:
    """A checkpoint after every step, so that many kills fall into the writing of one."""
    moments, out = random.Random(processes), tmp_path / "run"
    more = ["--checkpoint-minutes", "0", "--devices.devices", str(processes), "--out", str(out)]
    words = ["train", *LONG, *more]
    for _ in range(6 if processes == 1 else 2):
        process = command(*words, start_new_session=True)
        if not (out / "checkpoints" / "last.safetensors").exists():
            wait_for(out / "checkpoints" / "last.safetensors", process)
        else:
            before = (out / "checkpoints" / "last.safetensors").stat().st_mtime_ns
            while process.poll() is None and ((out / "checkpoints" / "last.safetensors").stat().st_mtime_ns == before):
                time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        words = ["train", "--resume", str(out)]
    end = command(*words)
    _, errors = end.communicate(timeout=300)
    assert end.returncode == 0, errors
    if processes == 2:
        whole = tmp_path / "whole"
        undisturbed = command("train", *LONG, *more[:-1], str(whole))
        assert undisturbed.wait(timeout=300) == 0, undisturbed.communicate()
    assert_same_run(whole, out)


@pytest.mark.slow
@pytest.mark.parametrize(("which", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_say_how_to_go_on(which: signal.Signals, code: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = command("train", *LONG, "--epochs", "600", "--out", str(out), start_new_session=True)
    wait_for(out / "metrics.jsonl", process)
    os.killpg(process.pid, which)
    said, errors = process.communicate(timeout=100)
    assert process.returncode == code
    assert f"untied train --resume {out}  goes on" in said and "Traceback" not in errors
    assert (out / "checkpoints" / "last.safetensors").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    size = (out / "checkpoints" / "last.safetensors").stat().st_size
    good = (out / "checkpoints" / "last.safetensors").read_bytes()

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, size - 100))

    (out / "results.json").unlink()  # as if it had not ended
    config = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump(config | {"epochs": 3}))
    process = command("train", "--resume", str(out), preexec_fn=small_disk)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2
    assert is_one_line(errors.splitlines()[-1] + "\n") and "last.safetensors" in errors and "File too large" in errors
    assert (out / "checkpoints" / "last.safetensors").read_bytes() == good
    assert main(["train", "--resume", str(out)]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "0"], "epochs is 0: it must be at least 1"),
        (["--rule", "kp", "--phases.kind", "mirror"], "rule is kp but phases.kind is mirror"),
        (["--phases.task-steps", "3"], "phases.task_steps is 3 but phases.kind is simultaneous"),
        (["--ema", "0.9", "--devices.strategy", "fsdp"], "ema is set and devices.strategy is fsdp"),
        (["--accumulate", "7"], "accumulate is 7 but data.batch_size is 64"),
        (["--evaluate-on", "validation", "--data.validation", "0"], "is validation but data.validation is 0"),
        (["--devices.devices", "3"], "data.batch_size is 64 and 3 processes share it: choose a multiple of 3"),
        (["--devices.precision", "16", "--devices.accelerator", "cpu"], "precision is 16 but the device is cpu"),
        (["--forward.name", "Adma"], "unknown optimizer 'Adma': did you mean"),
        (["--forward.arguments", "beta", "1"], "optimizer SGD has no argument 'beta'"),
        (["--model", "resnet19"], "unknown model 'resnet19'; nearest: resnet18"),
        (["--rule", "sb"], "cannot read rule at 'sb', column 1"),
        (["--data", "cifar10", "--data.root", "/nowhere"], "cifar10: no complete data in /nowhere"),
        (["--data", "folder", "--data.root", "/nowhere"], "no folder /nowhere"),
        (["--no-such-thing", "1"], "unknown option '--no-such-thing'"),
        (["--resume", "/nowhere"], "--resume goes on with the run's own configuration: leave out --model"),
    ],
)  # fmt: skip
def test_nonsense_is_one_line_before_anything_is_trained(words: list[str], said: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert is_one_line(error) and said in error, error
    assert not out.exists()


def test_recipes_can_be_named_and_overridden(capsys) -> None:
    assert main(["train", "table4/resnet5-sa"]) == 2
    assert "unknown recipe 'table4/resnet5-sa': did you mean table4/resnet50-sa" in capsys.readouterr().err
    assert main(["train", "table4/resnet50-sa", "--data.root", "/nowhere"]) == 2
    assert "no folder /nowhere" in capsys.readouterr().err
    assert main(["recipes"]) == 0
    assert "table3/MODEL-wm-ad-ops" in capsys.readouterr().out


def test_what_is_not_a_run_is_refused(whole: Path, tmp_path: Path, capsys) -> None:
    for words, said in [
        (["train", "--resume", str(tmp_path)], "is not a run folder"),
        (["train", "--resume", str(whole)], "has ended"),
        (["train", *SMALL, "--out", str(whole)], "already holds a run"),
        (["evaluate", str(tmp_path)], "is not a run folder"),
        (["export", str(whole), "--out", str(tmp_path / "x.pt")], "written as .safetensors"),
    ]:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert is_one_line(error) and said in error, error


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "there is no checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "is damaged"),
        (lambda path: path.write_bytes(b"nonsense"), "is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(damage, said: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--epochs", "1", "--out", str(out)]) == 0
    damage(out / "checkpoints" / "last.safetensors")
    capsys.readouterr()
    for words in (["evaluate", str(out)], ["export", str(out), "--out", str(tmp_path / "w.safetensors")]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert is_one_line(error) and said in error, error


def test_a_checkpoint_of_another_rule_is_refused(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--epochs", "1", "--out", str(out)]) == 0
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("rule: sa", "rule: fa"))
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 2
    assert "its rule is sa, here fa" in capsys.readouterr().err


def test_evaluate_says_what_the_run_said(whole: Path, capsys) -> None:
    assert main(["evaluate", str(whole)]) == 0
    result, run = RunFolder.open(whole).read_json("evaluation-test-last.json"), RunFolder.open(whole)
    ended = run.read_json("results.json")
    assert (result["top1"], result["top5"], result["loss"]) == (ended["accuracy"], ended["top5"], ended["loss"])
    assert set(result) >= {"projection_angle", "local_gradient_angle", "layer_gradient_angle", "norm_ratio"}
    assert main(["evaluate", str(whole), "--split", "validation", "--checkpoint", "best"]) == 0
    best = run.read_json("evaluation-validation-best.json")["top1"]
    assert best == pytest.approx(ended["best_validation_accuracy"])
    assert "top-1" in capsys.readouterr().out


def test_evaluate_measures_the_angles_that_training_measured(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    assert main(["evaluate", str(out)]) == 0
    last, found = RunFolder.open(out).metrics()[-1], RunFolder.open(out).read_json("evaluation-test-last.json")
    for name in ("weight_angle", "projection_angle", "local_gradient_angle", "norm_ratio", "gradient_angle"):
        assert found[name] == last[name], name


def test_export_loads_into_the_stock_model(tmp_path: Path, capsys) -> None:
    out, weights = tmp_path / "run", tmp_path / "resnet18.safetensors"
    words = ["--model", "resnet18-imagenet", "--data", "synthetic", "--data.synthetic-count", "100", "--epochs", "1",
             "--data.batch-size", "30", "--angles", "weights"]  # fmt: skip
    assert main(["train", *words, "--out", str(out)]) == 0
    assert main(["export", str(out), "--out", str(weights)]) == 0
    assert "torchvision.models.get_model('resnet18', num_classes=10)" in capsys.readouterr().out
    stock = torchvision.models.resnet18(num_classes=10)
    stock.load_state_dict(load_file(weights))
    model, data, _ = load_run(out, "last")
    images, _ = next(iter(data.test))
    torch.testing.assert_close(stock.eval()(images), model.eval()(images))
    assert evaluate(stock, data.test) == evaluate(model, data.test)
