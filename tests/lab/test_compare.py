"""The main job, end to end, in small: what it writes, what it keeps when stopped, what it refuses."""

from __future__ import annotations

import contextlib
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
from untied.lab.data import DataConfig
from untied.lab.experiments import compare as module
from untied.lab.experiments.compare import again, compare, resume
from untied.lab.keeping.record import RunFolder
from untied.lab.reading.fields import read_yaml
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.entries import DEFINED, PRESETS, label, parse_entry
from untied.lab.settings.optimizer import OptimizerConfig, backward_default
from untied.lab.settings.run import TrainConfig
from untied.lab.training.loop import NotFinite
from untied.lab.training.setup import dataset, network

DATA = DataConfig("synthetic", synthetic_shape=(1, 4, 4), synthetic_classes=3, synthetic_count=120, batch_size=16)


def small(out: Path, *rules: str, **changes) -> CompareConfig:
    settings = {
        "model": "mlp-8",
        "data": DATA,
        "epochs": 2,
        "seeds": 2,
        "workers": 0,
        "timing_steps": 2,
        "frozen": False,
        "out": out,
    }
    return CompareConfig(rules=rules or ("bp", "fa", "sa"), **(settings | changes))


def silent() -> Console:
    return Console(file=io.StringIO(), width=80)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "a" / "run"
    assert compare(small(out, "bp", "fa", "tuned:sa", "tuned:aa"), silent()) == 0
    return RunFolder.open(out)


def test_it_writes_everything(finished: RunFolder) -> None:
    rows = finished.read_json("results.json")
    assert [row["rule"] for row in rows] == ["bp", "fa", "tuned:sa", "tuned:aa"]
    assert [row["local"] for row in rows] == [False, True, False, False]
    for row in rows:
        assert row["finished"] and row["failure"] is None and row["seeds"] == len(row["accuracies"]) == 2
        assert 0 <= row["accuracy_mean"] <= 1 and row["cost"] > 0 and row["split"] == "test"
    assert rows[0]["weight_angle"] == rows[0]["gradient_angle"] == 0
    assert rows[3]["text"] == PRESETS["aa"]
    lines = finished.metrics()
    assert len(lines) == 4 * 2 * 2
    assert set(lines[0]) == {
        "rule", "seed", "epoch", "step", "train_loss", "train_accuracy", "validation_loss",
        "validation_accuracy", "penalty", "weight_angle", "gradient_angle", "norm_ratio",
    }  # fmt: skip
    assert finished.weight_names() == [
        f"{rule}-seed{seed}" for rule in ("bp", "fa", "tuned-aa", "tuned-sa") for seed in (0, 1)
    ]
    assert "fc1.backward_weight" in finished.weights("fa-seed0")
    for name in ("table.md", "table.csv", "environment.json", "index.html"):
        assert (finished.path / name).stat().st_size > 0
    for figure in ("accuracy", "results", "angles", "scatter"):
        assert (finished.path / "figures" / f"{figure}.png").exists()
        assert (finished.path / "figures" / f"{figure}.svg").exists()


def test_its_config_repeats_it(finished: RunFolder) -> None:
    config = read_yaml(CompareConfig, finished.path / "config.yaml")
    assert config.rules == ("bp", "fa", PRESETS["sa"], PRESETS["aa"])
    assert config.entries == config.rules and [label(r) for r in config.rules] == [
        "bp", "fa", "tuned:sa", "tuned:aa"
    ]  # fmt: skip
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
    assert (
        compare(small(tmp_path / "run", "bp", "fa", "tuned:sa", "tuned:aa", workers=2, timing_steps=0), silent()) == 0
    )
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
    evaluate = untied.lab.training.scoring.evaluate
    monkeypatch.setattr(
        untied.lab.training.loop,
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


def test_a_stopped_comparison_goes_on_and_redoes_nothing(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, trained = module.train, []

    def counted(config: TrainConfig, report, fabric):
        trained.append((config.rule, config.seed))
        if len(trained) == 6:
            report({"rule": "x", "seed": config.seed, "epoch": 1})  # an epoch of a run that does not end
            raise KeyboardInterrupt
        return train(config, report, fabric)

    monkeypatch.setattr(module, "train", counted)
    out = tmp_path / "run"
    assert compare(small(out, "bp", "fa", "tuned:sa", "tuned:aa"), silent()) == 130
    assert len(RunFolder.open(out).metrics("runs.jsonl")) == 5
    with (out / "runs.jsonl").open("a") as file:
        file.write('{"torn')  # as a kill may leave it
    said = Console(file=io.StringIO(), width=200)
    assert resume(out, said) == 0
    assert "going on: 5 of 8 runs have ended before" in said.file.getvalue()  # type: ignore[attr-defined]
    assert trained[6] == trained[5] and len(trained) == 6 + 3  # the one that did not end, and two more
    rows, wanted = (folder.read_json("results.json") for folder in (RunFolder.open(out), finished))
    for row, other in zip(rows, wanted, strict=True):
        assert row["cost"] > 0 and {**row, "cost": 0} == {**other, "cost": 0}
    order = lambda line: (line["seed"], line["rule"], line["epoch"])  # noqa: E731
    assert sorted(RunFolder.open(out).metrics(), key=order) == sorted(finished.metrics(), key=order)
    with pytest.raises(UntiedError, match="has ended: untied report"):
        resume(out, silent())
    (out / "index.html").unlink()  # it was killed while it wrote its page
    trained.clear()
    assert resume(out, silent()) == 0 and not trained and (out / "index.html").exists()


def test_only_what_can_go_on_does(tmp_path: Path, finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from untied.lab.cli import main

    old = tmp_path / "old"
    shutil.copytree(finished.path, old)
    (old / "runs.jsonl").unlink()
    (old / "index.html").unlink()
    for words, expected in (
        ([str(old)], "version 0.1 wrote none"),
        ([str(tmp_path / "nowhere")], "not a run folder"),
        ([str(old), "--epochs", "3"], "leave out --epochs"),
        ([], "--resume needs"),
    ):
        assert main(["compare", "--resume", *words]) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_comparison_that_was_killed_goes_on(tmp_path: Path) -> None:
    words = ["--rules", "bp", "fa", "sa", "--model", "mlp-8", "--epochs", "3", "--seeds", "2", "--timing-steps", "0",
             "--no-frozen"]  # fmt: skip
    command = subprocess.Popen(
        [sys.executable, "-m", "untied", "compare", *words, "--workers", "1", "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run" / "runs.jsonl").exists() and time.monotonic() < deadline:
            assert command.poll() is None, command.communicate()[1]
            time.sleep(0.05)
    finally:
        os.killpg(command.pid, signal.SIGKILL)
        command.communicate()
    before = RunFolder.open(tmp_path / "run").metrics("runs.jsonl")
    assert resume(tmp_path / "run", silent()) == 0
    after = RunFolder.open(tmp_path / "run").metrics("runs.jsonl")
    assert after[: len(before)] == before and len(after) == 6
    assert len({(r["rule"], r["seed"]) for r in after}) == 6


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
    assert command.returncode == 128 + which, err
    assert "Traceback" not in err and "interrupted" in out
    assert len(RunFolder.open(tmp_path / "run").metrics()) > 0
    assert (tmp_path / "run" / "table.md").exists() and (tmp_path / "run" / "index.html").exists()
    with pytest.raises(ProcessLookupError):  # and no process stays behind
        for _ in range(50):
            os.killpg(command.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """However that ends; what has finished by then is on the disk."""
    words = ["compare", "--rules", "bp", "fa", "--model", "mlp-8", "--epochs", "1000", "--seeds", "2", "--workers", "2"]
    parent = subprocess.Popen([sys.executable, "-m", "untied", *words, "--out", str(tmp_path / "run")],
                              stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            assert parent.poll() is None
            time.sleep(0.1)
        parent.kill()
        parent.wait()
        with pytest.raises(ProcessLookupError):
            for _ in range(300):
                os.killpg(parent.pid, 0)
                time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


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
    assert rule.name == name and label(PRESETS[name]) == f"tuned:{name}" and label(name) == name
    assert CompareConfig(rules=(f"tuned:{name}", name)).entries == (PRESETS[name], DEFINED.get(name, name), "frozen")
    assert parse_entry(f"tuned:{name}", OptimizerConfig()) == parse_entry(PRESETS[name], OptimizerConfig())


def test_a_bare_name_is_the_rule_in_every_command() -> None:
    """And what `tuned:` stands for is the same in all of them."""
    from untied.lab.settings.bench import BenchConfig
    from untied.lab.study.config import entrant

    for text in ("ia", "tuned:ia", "aa @ Adam(lr=0.003)"):
        wanted = parse_entry(text, backward_default())
        one = TrainConfig(rule=text)
        assert (str(wanted[0]), wanted[1]) == (one.rule, one.backward)
        run = CompareConfig(rules=(text,)).run(CompareConfig(rules=(text,)).entries[0], 0)
        assert (run.rule, run.backward) == (one.rule, one.backward)
        assert BenchConfig(rules=(text,)).entries[text] == wanted
        assert entrant(text, TrainConfig())[1]["rule"] == one.rule
    assert parse_entry("ia", backward_default()) == (untied.rules.parse("ia"), backward_default())
    with pytest.raises(UntiedError, match="no tuned settings for 'bp': tuned are kp"):
        TrainConfig(rule="tuned:bp")
    with pytest.raises(UntiedError, match="leave one out"):
        TrainConfig(rule="tuned:ia", backward=OptimizerConfig(lr=0.3))


def test_weights_of_version_0_1_are_found() -> None:
    entry = PRESETS["ia"]
    assert module.weights_kept(entry, 0, {"ia-seed0"}) == "ia-seed0"
    assert module.weights_kept(entry, 0, {"ia-seed0", "tuned-ia-seed0"}) == "tuned-ia-seed0"
    assert module.weights_kept(entry, 1, {"ia-seed0"}) is None


def test_what_is_done_with_entries_is_said() -> None:
    adam = OptimizerConfig("Adam", lr=0.123)
    config = CompareConfig(rules=("sa", "tuned:ia", "fa", "aa @ Adam(lr=0.003)"), backward=adam)
    assert [parse_entry(e, adam)[1].lr for e in config.entries[:4]] == [0.123, 0.02, 0.123, 0.003]
    assert config.about_entries == [
        "backward is set, and tuned:ia, aa @ Adam(lr=0.003) bring optimizers of their own, which they keep"
    ]
    assert CompareConfig(rules=("tuned:sa", "bp")).about_entries == []
    direct = CompareConfig(rules=("bp", "dfa", "drtp(kernel=dense)"))
    assert direct.entries == ("bp", "dfa(kernel=position)", "drtp(kernel=dense)", "frozen")
    assert [label(e) for e in direct.entries] == ["bp", "dfa", "drtp(kernel=dense)", "frozen"]
    assert direct.about_entries == [
        "dfa has two definitions for convolutions: this is dfa(kernel=position), the other is kernel=dense"
    ]


def test_it_looks_at_every_rule_first(tmp_path: Path) -> None:
    for verify in (True, False):
        screen = io.StringIO()
        config = small(tmp_path / str(verify), "bp", "sa", seeds=1, epochs=1, timing_steps=0, verify=verify)
        compare(config, Console(file=screen, width=300))
        assert ("bp, sa: verified: errors go through B alone" in screen.getvalue()) == verify


def test_a_frozen_network_is_the_baseline(tmp_path: Path) -> None:
    screen = io.StringIO()
    assert compare(small(tmp_path, "bp", seeds=1, frozen=True), Console(file=screen, width=200)) == 0
    folder = RunFolder.open(tmp_path)
    rows = {row["rule"]: row for row in folder.read_json("results.json")}
    assert list(rows) == ["bp", "frozen"] and rows["bp"]["chance"] == pytest.approx(1 / 3)
    data = dataset(DATA, 0, "cpu")
    start = network(small(tmp_path).run("frozen", 0), data).state_dict()
    end = folder.weights("frozen-seed0")
    assert torch.equal(end["fc1.weight"], start["fc1.weight"]) and torch.equal(end["fc1.bias"], start["fc1.bias"])
    assert not torch.equal(end["fc2.weight"], start["fc2.weight"])
    assert small(tmp_path, "frozen", "bp", frozen=True).entries == ("frozen", "bp")


def test_a_rule_with_every_is_timed_over_its_period(tmp_path: Path) -> None:
    from untied.lab.measuring.timing import step_costs

    costs = step_costs(small(tmp_path, "aa()", "aa(every=3)", timing_steps=3))
    assert set(costs) == {"aa()", "aa(every=3)"} and min(costs.values()) > 0


def test_not_finite_is_an_error_of_ours() -> None:
    assert issubclass(NotFinite, UntiedError)


def test_init_reaches_the_rules_that_have_one_and_the_others_are_named() -> None:
    config = CompareConfig(rules=("bp", "fa", "pfa"), init="angle(30)", frozen=False)
    assert [config.run(entry, 0).init for entry in config.entries] == ["like", "angle(30)", "like"]
    assert any("bp, pfa have no B that could start so" in line for line in config.about_entries)
    with pytest.raises(UntiedError, match="no B that could start so"):
        TrainConfig(rule="pfa", init="angle(30)")


def test_nothing_beside_W_is_drawn_from_its_own_numbers() -> None:
    """Sign symmetry's magnitudes once were: with the same seed they were |W|, and B was W."""
    for rule in ("frsf", "pfa", "dfa(kernel=dense)", "fa"):
        config = TrainConfig(rule=rule, model="mlp-32", data=DataConfig("digits", batch_size=8))
        model = network(config, dataset(config.data, 0, "cpu"))
        for layer in untied.layers.untied_layers(model).values():
            W = layer.weight.detach().abs().flatten()  # type: ignore[attr-defined]
            for name, other in {**dict(layer.named_parameters()), **dict(layer.named_buffers())}.items():  # type: ignore[attr-defined]
                if name.startswith("backward") and other.numel() >= W.numel() > 300:
                    r = torch.corrcoef(torch.stack([W, other.detach().abs().flatten()[: W.numel()]]))[0, 1]
                    assert abs(float(r)) < 0.25, (rule, name, float(r))
