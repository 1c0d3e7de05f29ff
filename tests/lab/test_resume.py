"""A run that is interrupted at any moment, in any way, goes on as if it had not been, bit for bit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from runs import WORDS, command, pictures, silent, small, state, until
from untied.errors import UntiedError
from untied.lab.console import stopping
from untied.lab.data import DataConfig
from untied.lab.experiments import train
from untied.lab.keeping.record import RunFolder
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.settings.phases import PhaseConfig
from untied.lab.settings.run import TrainConfig
from untied.lab.training import loop
from untied.lab.training.loop import Run, Stopped

ADAM = OptimizerConfig("Adam", lr=0.01)
NOISY = OptimizerConfig(lr=0.05, noise=0.1, clip=1.0)
SYNTHETIC = {"synthetic_classes": 3, "synthetic_count": 60, "batch_size": 12}
PICTURES = DataConfig("synthetic", synthetic_shape=(3, 8, 8), augment="standard", **SYNTHETIC)

RUNS = {
    "sa": small(rule="sa"),
    "backprop, label smoothing": small(rule="bp", label_smoothing=0.1),
    "sampled nulling, Adam": small(rule="ia(null=0.1, noise=normal, fraction=0.5)", backward=ADAM),
    "kp, accumulated": small(rule="kp(decay=0.1)", accumulate=2),
    "brsf": small(rule="brsf"),
    "aa every other step, average": small(rule="aa(every=2)", ema=0.9, backward=ADAM),
    "noise on the gradient": small(rule="sa", forward=NOISY, backward=NOISY),
    "noise on the variable": small(rule="sa", backward=OptimizerConfig(noise=0.1, noise_on="variable")),
    "alternating": small(rule="wm(noise=normal)", phases=PhaseConfig("alternating", task_steps=2)),
    "mirror": small(rule="wm(noise=normal)", phases=PhaseConfig("mirror"), epochs=3),
    "three alignments a batch": small(rule="ia(null=0.1, noise=normal)", phases=PhaseConfig(align_steps=3),
                                      model="cnn-3", data=PICTURES, epochs=1, backward=NOISY),
    "rdd": small(rule="rdd(windows=50, period=3, average=2)", phases=PhaseConfig(align_steps=2), model="cnn-3",
                 data=PICTURES, epochs=2),
    "target propagation": small(rule="ldrl", model="cnn-3-4", data=PICTURES, phases=PhaseConfig(align_steps=2),
                                backward=ADAM),
    "direct targets": small(rule="ddtp", model="mlp-8-8-tanh", epochs=1, backward=OptimizerConfig(weight_decay=1e-4)),
    "mkp, every other step": small(rule="mkp(every=2)"),
    "delay": small(rule="sa", phases=PhaseConfig(delay=1), epochs=1),
    "coefficients on a schedule": small(rule="sa(self=linear(0, 1))", phases=PhaseConfig(align="linear(1, 0)")),
    "step schedules": small(forward=OptimizerConfig(schedule="step", warmup=0.2), backward=ADAM),
    "batch norm, augmentation, average": small(rule="ia(noise=normal)", model="resnet20-w2", data=PICTURES, ema=0.9,
                                               epochs=1),
    "dropout": small(rule="sa", model="torchvision:squeezenet1_1", epochs=1, angles="weights", data=DataConfig(
        "synthetic", synthetic_shape=(3, 24, 24), **SYNTHETIC)),
    "RMSprop": small(backward=OptimizerConfig("RMSprop", lr=0.01), forward=OptimizerConfig("AdamW", lr=0.01)),
    "NAdam and Adafactor": small(forward=OptimizerConfig("NAdam", lr=0.01),
                                 backward=OptimizerConfig("Adafactor", lr=0.01)),
    "SWATS": small(rule="sa", forward=OptimizerConfig("SWATS", lr=0.01), backward=OptimizerConfig("SWATS", lr=0.01)),
}  # fmt: skip


def part(config: TrainConfig, path: Path, one_step: bool = False) -> bool:
    """Train from where the folder's run is, for one step or to the end. Whether it has ended."""
    folder = RunFolder(path)
    run = Run(config, folder=path)
    run.resume()
    folder.keep_lines(run.position.lines)
    if one_step:
        epoch = run.epoch

        def stops_after_one(number: int, start: int) -> None:
            run.stop = start < run.plan.length
            epoch(number, start)

        run.epoch = stops_after_one
    try:
        result = run.train(folder.append)
    except Stopped:
        return False
    folder.write_json("results.json", result)
    return True


def whole(config: TrainConfig, path: Path) -> dict[str, bytes]:
    path.mkdir()
    assert part(config, path)
    return state(path)


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_at_every_step_it_is_the_same_run(name: str, tmp_path: Path) -> None:
    if name == "SWATS" and importlib.util.find_spec("pytorch_optimizer") is None:
        pytest.skip("pytorch-optimizer is not installed")
    config = RUNS[name]
    wanted = whole(config, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    parts = 1
    while not part(config, tmp_path / "parts", one_step=True):
        parts += 1
    steps = (config.epochs + config.phases.delay) * 4
    assert parts == steps + 1 and len(RunFolder(tmp_path / "whole").metrics()) == steps // 4
    found = state(tmp_path / "parts")
    assert found.keys() == wanted.keys()
    for file, content in wanted.items():
        assert found[file] == content, file


@pytest.mark.parametrize("at", ["validation", "after validation", "metrics", "best", "test"])
def test_interrupted_between_two_epochs_it_is_the_same_run(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, or killed, in an evaluation, or between two of the files that an epoch writes."""
    config = small(rule="aa", model="mlp-8", backward=ADAM, checkpoint_minutes=0)
    wanted = whole(config, tmp_path / "whole")
    path = tmp_path / "parts"
    path.mkdir()
    run = Run(config, folder=path)
    folder = RunFolder(path)

    class Killed(Exception):
        pass

    def killed(*_: object) -> None:
        raise Killed

    if at in ("validation", "test"):
        loader = getattr(run.data, at)
        epoch = loader.epoch

        def stops(*arguments, **options):
            run.stop = True
            return epoch(*arguments, **options)

        monkeypatch.setattr(loader, "epoch", stops)
    elif at == "after validation":
        monkeypatch.setattr(loop, "alignment", killed)
    elif at == "best":
        save = run.save
        monkeypatch.setattr(run, "save", lambda name: killed() if name == "best" else save(name))
    report = folder.append if at != "metrics" else lambda metrics: (folder.append(metrics), killed())
    with pytest.raises((Stopped, Killed)):
        run.train(report)
    assert len(folder.metrics()) == {"metrics": 1, "best": 1, "test": 2}.get(at, 0)
    monkeypatch.undo()
    assert part(config, path)
    assert state(path) == wanted


@pytest.mark.slow
def test_one_process_at_a_time_goes_on_with_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = command("train", *WORDS, "--epochs", "200", "--out", str(run), "--set", "angles=weights")
    until(lambda: (run / "metrics.jsonl").exists(), first)
    for again in (lambda: train.resume(run, silent()), lambda: train.train(small(run, overwrite=True), silent())):
        with pytest.raises(UntiedError, match=f"process {first.pid} on .* is writing to "):
            again()
    out, err = first.communicate(timeout=300)
    assert (first.returncode, err) == (0, ""), out
    assert [row["epoch"] for row in RunFolder(run).metrics()] == list(range(1, 201))
    assert not (run / "lock.json").exists()


def test_a_run_without_a_checkpoint_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "finish", lambda folder, config: None)
    assert train.train(small(tmp_path / "whole"), silent()) == 0
    RunFolder.create(tmp_path / "run", small(tmp_path / "run"))
    RunFolder(tmp_path / "run").append({"epoch": 1})  # killed before the checkpoint
    (tmp_path / "run" / ".config.yaml-7.partial").write_text("half")
    assert train.resume(tmp_path / "run", silent()) == 0
    assert state(tmp_path / "run") == state(tmp_path / "whole")
    assert len((tmp_path / "run" / "timing.jsonl").read_text().splitlines()) == 2
    assert not list((tmp_path / "run").rglob(".*.partial"))


def test_it_goes_on_with_as_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number adds in another order, and changes the last bits."""
    folder = RunFolder.create(tmp_path / "run", small(tmp_path / "run"))
    about = folder.environment()
    assert about["machine"]["threads"] == torch.get_num_threads() == 1
    about["machine"]["threads"] = 3
    folder.write_json("environment.json", about)
    seen = []
    monkeypatch.setattr(train, "go", lambda *given, **named: seen.append(torch.get_num_threads()))
    console = silent()
    train.resume(tmp_path / "run", console)
    assert seen == [3] and torch.get_num_threads() == 1
    assert "with 3 CPU threads, as it began" in console.file.getvalue()  # type: ignore[attr-defined]
    about["machine"]["threads"] = 10**9
    folder.write_json("environment.json", about)
    train.resume(tmp_path / "run", silent())
    assert seen == [3, 1]


def test_waiting_for_a_process_that_does_not_come_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "PATIENCE", 0.05)
    console = silent()
    for wanted in (False, True):
        with train.said_later(console, "waiting", wanted):
            time.sleep(0.3)
        assert ("waiting" in console.file.getvalue()) == wanted  # type: ignore[attr-defined]


def test_a_run_that_was_killed_after_training_gets_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(train, "finish", lambda folder, config: None)
        train.train(small(tmp_path / "run"), silent())
    assert not (tmp_path / "run" / "index.html").exists()
    assert train.resume(tmp_path / "run", silent()) == 0
    for name in ("card.md", "index.html", "figures/accuracy.svg"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    with pytest.raises(UntiedError, match=r"has ended: see its card.md"):
        train.resume(tmp_path / "run", silent())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_at_random_moments_it_is_the_same_run(tmp_path: Path) -> None:
    words = [*WORDS, "--rule", "aa", "--epochs", "12", "--backward.name", "Adam", "--set", "ema=0.9",
             "checkpoint_minutes=0"]  # fmt: skip
    script = Path(__file__).parent.parent / "killing.py"
    for name, kills in (("parts", 20), ("whole", 0)):
        done = subprocess.run([sys.executable, str(script), str(tmp_path / name), str(kills), *words],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        killed, torn = map(int, done.stdout.split())
        assert killed == kills and (torn > 0) == (kills > 0)
    assert state(tmp_path / "parts") == state(tmp_path / "whole")
    assert len((tmp_path / "parts" / "timing.jsonl").read_text().splitlines()) == 12
    assert not list((tmp_path / "parts").rglob("*.partial"))
    for name in ("parts", "whole"):  # and every step once in TensorBoard's files
        for points in tensorboard_events(tmp_path / name).values():
            assert [point.step for point in points] == [4 * epoch for epoch in range(1, 13)]


def tensorboard_events(run: Path) -> dict[str, list]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("which", "devices", "group"),
    [(signal.SIGTERM, 1, False), (signal.SIGINT, 1, True), (signal.SIGTERM, 2, False), (signal.SIGINT, 2, True),
     (signal.SIGKILL, 2, False)],
)  # fmt: skip
def test_signals_end_it_and_it_goes_on(which: signal.Signals, devices: int, group: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*WORDS, "--epochs", "40", "--devices.devices", str(devices), "--set", "angles=weights"]
    first = command("train", *words, "--out", str(run))
    until(lambda: (run / "metrics.jsonl").exists(), first)
    (os.killpg if group else os.kill)(first.pid, which)
    out, err = first.communicate(timeout=120)
    assert first.returncode == (-9 if which == signal.SIGKILL else 128 + which), err
    if which != signal.SIGKILL:
        assert err == ""
        assert "stopped after step" in out and f"untied train --resume {run}  goes on" in out
    assert not (run / "results.json").exists()
    with pytest.raises(ProcessLookupError):  # and no process stays behind
        for _ in range(200):
            os.killpg(first.pid, 0)
            time.sleep(0.1)
    if which == signal.SIGINT:
        return
    again = command("train", "--resume", str(run))
    out, err = again.communicate(timeout=300)
    assert (again.returncode, err) == (0, "")
    if devices == 1:
        assert state(run) == whole(train.open_run(run)[1], tmp_path / "whole")
    assert len(RunFolder(run).metrics()) == 40


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_to_its_data_workers_too_ends_it_cleanly(tmp_path: Path) -> None:
    """SLURM tells every process of a job."""
    words = ["--model", "mlp-8", "--data", "folder", "--data.root", str(pictures(tmp_path / "pictures")), "--epochs",
             "200", "--data.batch-size", "4", "--set", "data.image_size=8", "data.workers=1"]  # fmt: skip
    run = tmp_path / "run"
    process = command("train", *words, "--devices.accelerator", "cpu", "--out", str(run))
    until(lambda: (run / "metrics.jsonl").exists(), process)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (143, "") and "stopped after step" in out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_lost_reader_of_images_is_one_line(tmp_path: Path) -> None:
    words = ["--model", "mlp-8", "--data", "folder", "--data.root", str(pictures(tmp_path / "pictures")), "--epochs",
             "2000", "--data.batch-size", "4", "--set", "data.image_size=8", "data.workers=1"]  # fmt: skip
    run = tmp_path / "run"
    first = command("train", *words, "--devices.accelerator", "cpu", "--out", str(run))
    until(lambda: (run / "metrics.jsonl").exists(), first)
    while first.poll() is None:  # each epoch has a new one
        children = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 2 and err.count("\n") == 1, err
    assert "a process that reads images has ended" in err and f"untied train --resume {run} goes on" in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_lost_process_is_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = command("train", *WORDS, "--epochs", "500", "--devices.devices", "2", "--out", str(run))
    until(lambda: (run / "metrics.jsonl").exists(), first)
    children = [int(pid) for pid in subprocess.check_output(["pgrep", "-P", str(first.pid)], text=True).split()]
    os.kill(children[-1], signal.SIGKILL)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 2 and err.count("\n") == 1, err
    assert "another process of this run has ended" in err and f"untied train --resume {run} goes on" in err


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    run = Run(small(tmp_path))
    with pytest.raises(KeyboardInterrupt), stopping(run) as codes:
        os.kill(os.getpid(), signal.SIGINT)
        assert run.stop and codes == [130]
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
