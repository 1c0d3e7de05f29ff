"""The main job, end to end, in small: what it writes, what it keeps when stopped, what it refuses."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import untied
from untied.errors import UntiedError
from untied.lab import compare as module
from untied.lab.compare import again, compare
from untied.lab.config import PRESETS, CompareConfig, OptimizerConfig, TrainConfig, label, parse_entry
from untied.lab.data import DataConfig
from untied.lab.loop import NotFinite, dataset, network
from untied.lab.reading import read_yaml
from untied.lab.record import RunFolder

DATA = DataConfig("synthetic", synthetic_shape=(1, 4, 4), synthetic_classes=3, synthetic_count=120, batch_size=16)


def small(out: Path, *rules: str, **changes) -> CompareConfig:
    settings = {"model": "mlp-8", "data": DATA, "epochs": 2, "seeds": 2, "workers": 0, "timing_steps": 2, "out": out}
    return CompareConfig(rules=rules or ("bp", "fa", "sa"), **(settings | changes))


def silent() -> Console:
    return Console(file=io.StringIO(), width=80)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "a" / "run"
    assert compare(small(out, "bp", "fa", "sa", "aa"), silent()) == 0
    return RunFolder.open(out)


def test_it_writes_everything(finished: RunFolder) -> None:
    rows = finished.read_json("results.json")
    assert [row["rule"] for row in rows] == ["bp", "fa", "sa", "aa"]
    assert [row["local"] for row in rows] == [False, True, False, False]
    for row in rows:
        assert row["finished"] and row["failure"] is None and row["seeds"] == len(row["accuracies"]) == 2
        assert 0 <= row["accuracy_mean"] <= 1 and row["cost"] > 0 and row["split"] == "test"
    assert rows[0]["weight_angle"] == rows[0]["gradient_angle"] == 0
    assert rows[3]["text"] == PRESETS["aa"]
    lines = finished.metrics()
    assert len(lines) == 4 * 2 * 2
    assert set(lines[0]) == {
        "rule", "seed", "epoch", "step", "train_loss", "train_accuracy", "train_top5", "validation_loss",
        "validation_accuracy", "validation_top5", "penalty", "weight_angle", "gradient_angle", "norm_ratio",
    }  # fmt: skip
    assert finished.weight_names() == [f"{rule}-seed{seed}" for rule in ("aa", "bp", "fa", "sa") for seed in (0, 1)]
    assert "fc1.backward_weight" in finished.weights("fa-seed0")
    for name in ("table.md", "table.csv", "environment.json", "index.html"):
        assert (finished.path / name).stat().st_size > 0
    for figure in ("accuracy", "results", "angles", "scatter"):
        assert (finished.path / "figures" / f"{figure}.png").exists()
        assert (finished.path / "figures" / f"{figure}.svg").exists()


def test_its_config_repeats_it(finished: RunFolder) -> None:
    config = read_yaml(CompareConfig, finished.path / "config.yaml")
    assert config.rules == ("bp", "fa", PRESETS["sa"], PRESETS["aa"])
    assert config.entries == config.rules and [label(r) for r in config.rules] == ["bp", "fa", "sa", "aa"]
    assert config.data == DATA


def test_every_rule_of_a_seed_starts_at_the_same_weights(tmp_path: Path) -> None:
    config = small(tmp_path)
    data = dataset(config.data, 0, "cpu")
    states = [network(config.run(entry, 5), data).state_dict() for entry in ("bp", "fa", "sa", "usf")]
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())
    assert torch.equal(states[1]["fc1.backward_weight"], states[2]["fc1.backward_weight"])
    other = network(config.run("fa", 6), data).state_dict()
    assert not torch.equal(other["fc1.weight"], states[1]["fc1.weight"])


def test_processes_give_what_one_process_gives(finished: RunFolder, tmp_path: Path) -> None:
    assert compare(small(tmp_path / "run", "bp", "fa", "sa", "aa", workers=2, timing_steps=0), silent()) == 0
    rows, others = finished.read_json("results.json"), RunFolder.open(tmp_path / "run").read_json("results.json")
    assert [row["accuracies"] for row in others] == [row["accuracies"] for row in rows]
    assert [row["cost"] for row in others] == [None] * 4


def test_a_report_can_be_written_again(finished: RunFolder) -> None:
    page = finished.path / "index.html"
    before = page.read_text()
    page.unlink()
    (finished.path / "figures" / "accuracy.svg").unlink()
    assert again(finished.path, silent()) == 0
    assert page.read_text() == before


def test_tuning_never_sees_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    evaluate = untied.lab.loop.evaluate
    monkeypatch.setattr(
        untied.lab.loop,
        "evaluate",
        lambda model, loader, *rest: seen.append(loader) or evaluate(model, loader, *rest),
    )
    compare(small(tmp_path / "v", "bp", seeds=1, evaluate_on="validation"), silent())
    data = dataset(DATA, 0, "cpu")
    assert seen and all(loader is data.validation for loader in seen)
    assert RunFolder.open(tmp_path / "v").read_json("results.json")[0]["split"] == "validation"
    assert "validation accuracy" in (tmp_path / "v" / "table.md").read_text()
    seen.clear()
    compare(small(tmp_path / "t", "bp", seeds=1, timing_steps=0), silent())
    assert [loader is data.test for loader in seen] == [False, False, True]  # once, at the end


def test_a_failed_run_is_in_the_table_and_stops_no_other(tmp_path: Path) -> None:
    rules = ("bp", "wm @ SGD(lr=1e6)")
    assert compare(small(tmp_path / "run", *rules), silent()) == 0
    good, bad = RunFolder.open(tmp_path / "run").read_json("results.json")
    assert good["failure"] is None and good["finished"]
    assert "wm @ SGD(lr=1e6)" in bad["failure"] and "layer fc" in bad["failure"] and "seed 0 failed" in bad["failure"]
    assert bad["accuracies"] == pytest.approx([1 / 3, 1 / 3])
    assert "failed" in (tmp_path / "run" / "table.md").read_text()
    assert compare(small(tmp_path / "all", rules[1], seeds=1), silent()) == 1  # nothing succeeded


def test_whatever_stops_it_the_finished_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = module.train

    def stops(error: BaseException):
        def third(config: TrainConfig, report, fabric):
            if config.seed == 1:
                raise error
            return train(config, report, fabric)

        return third

    monkeypatch.setattr(module, "train", stops(KeyboardInterrupt()))
    assert compare(small(tmp_path / "c"), silent()) == 130
    monkeypatch.setattr(module, "train", stops(UntiedError("cannot read image x.png")))
    with pytest.raises(UntiedError, match=r"x\.png"):
        compare(small(tmp_path / "e"), silent())
    for name in ("c", "e"):
        rows = RunFolder.open(tmp_path / name).read_json("results.json")
        assert [row["seeds"] for row in rows] == [1, 1, 1] and not any(row["finished"] for row in rows)
        assert "not finished" in (tmp_path / name / "table.md").read_text()
        assert (tmp_path / name / "index.html").exists()
    monkeypatch.setattr(module, "train", stops(KeyboardInterrupt()))
    assert compare(small(tmp_path / "none", first_seed=1), silent()) == 130  # before anything was finished
    assert (tmp_path / "none" / "index.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(which: signal.Signals, tmp_path: Path) -> None:
    words = ["compare", "--rules", "bp", "fa", "--model", "mlp-8", "--epochs", "1000", "--seeds", "2", "--out"]
    command = subprocess.Popen(
        [sys.executable, "-m", "untied", *words, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300  # a busy machine imports slowly
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            assert command.poll() is None, command.communicate()[1]
            time.sleep(0.1)
        os.killpg(command.pid, which)  # as a terminal does it: to the workers too
        out, err = command.communicate(timeout=120)
    finally:
        if command.poll() is None:
            command.kill()
    assert command.returncode == 130, err
    assert "Traceback" not in err and "interrupted" in out
    assert len(RunFolder.open(tmp_path / "run").metrics()) > 0
    assert (tmp_path / "run" / "table.md").exists() and (tmp_path / "run" / "index.html").exists()
    with pytest.raises(ProcessLookupError):  # and no process stays behind
        for _ in range(50):
            os.killpg(command.pid, 0)
            time.sleep(0.1)


def test_an_earlier_run_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    compare(small(out, "bp", seeds=1, timing_steps=0), silent())
    before = (out / "results.json").read_text()
    with pytest.raises(UntiedError, match="already holds a run"):
        compare(small(out, "fa"), silent())
    assert (out / "results.json").read_text() == before
    compare(small(out, "fa", seeds=1, timing_steps=0, overwrite=True), silent())
    assert json.loads((out / "results.json").read_text())[0]["rule"] == "fa"
    assert RunFolder.open(out).weight_names() == ["fa-seed0"]


def test_a_rule_brings_its_optimizer() -> None:
    default = OptimizerConfig(lr=0.3)
    assert parse_entry("sa", default)[1] == default
    rule, optimizer = parse_entry("ia(null=2) @ Adam(lr=1e-3, schedule=cosine, clip=1)", default)
    assert str(rule) == "ia(null=2)"
    assert optimizer == OptimizerConfig("Adam", lr=1e-3, schedule="cosine", clip=1.0)
    assert parse_entry("aa @ RMSprop", default)[1] == OptimizerConfig("RMSprop")
    assert str(parse_entry("wm(amp=linear(0, 1)) @ SGD(lr=1)", default)[0]) == "wm(amp=linear(0, 1))"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_entries_of_their_rule(name: str) -> None:
    rule, _ = parse_entry(PRESETS[name], OptimizerConfig())
    assert rule.name == name and label(PRESETS[name]) == name
    assert CompareConfig(rules=(name, f"{name}()")).entries == (PRESETS[name], f"{name}()")


def test_a_rule_with_every_is_timed_over_its_period(tmp_path: Path) -> None:
    from untied.lab.timing import step_costs

    costs = step_costs(small(tmp_path, "aa()", "aa(every=3)", timing_steps=3))
    assert set(costs) == {"aa()", "aa(every=3)"} and min(costs.values()) > 0


def test_not_finite_is_an_error_of_ours() -> None:
    assert issubclass(NotFinite, UntiedError)
