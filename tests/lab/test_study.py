"""Studies in this process: spaces, who takes part, the queue, a search, a transfer, noise, and what they end with."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from runs import DATA, silent, small
from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.lab.reading.secrets import without_password
from untied.lab.settings.run import TrainConfig
from untied.lab.study import report
from untied.lab.study.config import CHANGEABLE, NoiseConfig, SearchConfig, TransferConfig, entrant
from untied.lab.study.queue import Queue
from untied.lab.study.run import again, run, show, with_sampler
from untied.lab.study.space import Space, shipped, space
from untied.lab.study.storage import NoAnswer, create, open_storage, patiently, with_driver
from untied.rules import parse

SPACE = {"parameters": {"amp": {"low": "1e-3", "high": 1.0, "log": True}, "optimizer": ["SGD", "Adam"],
                        "momentum": {"low": 0.0, "high": 0.9, "when": {"optimizer": "SGD"}}},
         "run": {"rule": {"of": "wm", "amp": "{amp}", "noise": "normal"},
                 "backward": {"name": "{optimizer}", "momentum": "{momentum}"}}}  # fmt: skip


def common(**changes: Any) -> TrainConfig:
    return small(data=DataConfig(**{**DATA.__dict__, "validation": 0.2}), angles="weights", **changes)


def test_a_space_leaves_out_what_is_not_there() -> None:
    own = Space.of(SPACE, "space")
    assert own.fill({"amp": 0.5, "optimizer": "Adam"}) == {
        "rule": "wm(amp=0.5, noise=normal)", "backward": {"name": "Adam"}}  # fmt: skip
    assert own.fill({"amp": 1e-3, "optimizer": "SGD", "momentum": 0.1})["backward"] == {"name": "SGD", "momentum": 0.1}


@pytest.mark.parametrize("name", list(shipped()))
def test_every_shipped_space_makes_configurations(name: str) -> None:
    config = SearchConfig(space=name, run=common())
    definition = config.define()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        [made] = config.configs(definition, study.ask())
        assert parse(made.rule).aligns and made.evaluate_on == "validation"


@pytest.mark.parametrize("change, words", [
    ({"parameters": {}}, "nothing to search"), ({"run": {"rule": "{b}"}}, "run has {b}"),
    ({"parameters": {"a": {"low": 2, "high": 1}}}, "low must be below high"),
    ({"parameters": {"a": [1], "b": {"low": 0, "high": 1, "when": {"c": 1}}}}, "not a parameter before it"),
    ({"parameters": {"a": [1], "b": {"low": 0, "high": 1, "when": {"a": 2}}}}, "never is"),
    ({"parameters": {"a": [1]}, "run": {}}, "used nowhere"), ({"more": 1}, "unknown key"),
    ({"start": [{"amp": 5}]}, "not in the space"),
])  # fmt: skip
def test_a_wrong_space_is_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UntiedError, match=words):
        Space.of(SPACE | change, "space")


def test_unknown_space() -> None:
    with pytest.raises(UntiedError, match="unknown space 'wmm': did you mean 'wm'"):
        space("wmm")


def test_who_takes_part() -> None:
    assert entrant("tuned:aa", common())[1]["backward"]["name"] == "Adam"
    assert entrant("aa", common())[1]["backward"]["name"] == "SGD"  # exactly the rule
    label, part = entrant("mine: wm @ SGD(lr=0.5)", common())
    assert label == "mine" and part["rule"] == "wm" and part["backward"]["lr"] == 0.5
    assert entrant("recipe two-cores/resnet18-sa", common())[0] == "resnet18-sa"
    with pytest.raises(UntiedError, match="not a run folder"):
        entrant("best of nowhere", common())
    with pytest.raises(UntiedError, match="two rules are called"):
        TransferConfig(rules=("a: bp", "a: sa"), run=common()).define()


def test_where_noise_goes() -> None:
    config = NoiseConfig(run=common())
    for rule, side in (("bp", "forward"), ("fa", "forward"), ("kp", "forward"), ("sa", "backward"), ("wm", "backward")):
        assert config.changed({"rule": rule}, {"sigma": 0.3})[side] == {"noise": 0.3}


def test_a_search_is_continued_and_its_best_transferred(tmp_path: Path) -> None:
    """Five settings, two more; the best in two networks; everything again from the folder alone."""
    search = SearchConfig(run=common(), trials=5, workers=0, out=tmp_path / "search", prune="none")
    assert run(search, silent()) == 0
    more = SearchConfig(run=common(), trials=7, workers=0, out=tmp_path / "search", prune="none")
    assert run(more, silent()) == 0
    rows = json.loads((tmp_path / "search/results.json").read_text())
    assert [row["run"] for row in rows] == [f"{i:04d}" for i in range(7)]
    out = io.StringIO()
    assert show(tmp_path / "search", None, None, Console(file=out, width=80)) == 0
    said = out.getvalue()
    assert "7 runs: 7 complete" in said and "validation accuracy (%)" in said and "best: " in said and "…" not in said
    rules = ("bp", f"tpe: best of {tmp_path / 'search'}", "broken: wm @ SGD(lr=1e9)")
    transfer = TransferConfig(run=common(), rules=rules,
                              models=("mlp-8", "mlp-4"), seeds=2, workers=0, out=tmp_path / "transfer")  # fmt: skip
    assert run(transfer, silent()) == 0
    rows = json.loads((tmp_path / "transfer/results.json").read_text())
    assert len(rows) == 12 and len({row["run"] for row in rows}) == 12
    for row in rows:  # a loss that is not finite counts at chance
        assert (row["value"] == pytest.approx(1 / 3)) if row["failure"] else 0 <= row["value"] <= 1
        assert bool(row["failure"]) == (row["params"]["rule"] == "broken")
    (tmp_path / "transfer/study.db").unlink()
    table = (tmp_path / "transfer/table.md").read_text()
    (tmp_path / "transfer/table.md").unlink()
    assert again(tmp_path / "transfer", silent()) == 0
    assert (tmp_path / "transfer/table.md").read_text() == table and "2 not finite, early" in table
    for name in ("table.csv", "index.html", "figures/transfer.png", "figures/transfer.svg"):
        assert (tmp_path / "transfer" / name).stat().st_size > 0


@pytest.mark.parametrize("startup", [10, 2])
def test_a_search_proposes_the_same_however_often_it_is_interrupted(startup: int) -> None:
    """Each part is a new process, with a sampler of its own."""

    def proposed(*parts: int) -> list[dict[str, Any]]:
        storage = optuna.storages.InMemoryStorage()
        for number in parts:
            config = SearchConfig(run=common(), trials=number, startup=startup, name="s")
            definition = config.define()
            study, _ = create(storage, "s", definition, CHANGEABLE)
            with_sampler(study, config)
            queue = Queue(study, config.plan(definition), 10.0, 3)
            queue.fill()
            while (claim := queue.take()) is not None:
                config.configs(definition, claim.trial)
                queue.tell(claim, math.sin(1e4 * claim.trial.params["amp"]), False, [])
        return [t.params for t in study.get_trials() if not t.user_attrs.get("surplus")]

    whole = proposed(9)
    assert len({str(params) for params in whole}) == 9
    assert proposed(3, 6, 9) == whole == proposed(1, 2, 9)


@pytest.mark.parametrize("how", ["released", "killed"])
def test_a_run_that_was_put_back_keeps_its_place(how: str) -> None:
    """Or TPE would propose the next settings without its result, or find the results in another order."""

    def proposed(back: tuple[str, ...]) -> dict[str, Any]:
        storage = optuna.storages.InMemoryStorage()
        config = SearchConfig(run=common(), trials=9, startup=2, name="s")
        definition = config.define()
        while True:  # each part is a new process
            study, _ = create(storage, "s", definition, CHANGEABLE)
            with_sampler(study, config)
            queue = Queue(study, config.plan(definition), 10.0, 3)
            queue.fill()
            while (claim := queue.take()) is not None:
                config.configs(definition, claim.trial)
                claim.trial.set_user_attr("folder", claim.key)
                if claim.attempt == 0 and claim.key in back:
                    queue.release(claim) if how == "released" else queue._close(claim.trial, gone=True)
                    break
                queue.tell(claim, round(math.sin(1e4 * claim.trial.params["amp"])), False, [])  # many are equal
            else:
                return {t.user_attrs["key"]: t.params for t in queue.ended()}

    whole = proposed(())
    assert len({str(params) for params in whole.values()}) == 9
    assert proposed(("0001", "0003", "0004", "0007")) == whole == proposed(tuple(whole))


def test_a_run_that_has_failed_by_itself_lets_others_go_first() -> None:
    """Three different ones that fail in a row end a worker: it is not the runs then."""
    config = SearchConfig(run=common(), trials=3, name="s")
    definition = config.define()
    study, _ = create(optuna.storages.InMemoryStorage(), "s", definition, CHANGEABLE)
    queue = Queue(study, config.plan(definition), 10.0, 3)
    taken = []
    for _ in range(4):
        queue.fill()
        claim = queue.take()
        assert claim is not None
        taken.append(claim.key)
        queue.abandon(claim, "no memory is left")
    assert taken == ["0000", "0001", "0002", "0000"]


def test_another_study_under_the_same_name(tmp_path: Path) -> None:
    assert run(NoiseConfig(run=common(epochs=1), rules=("bp",), models=("mlp-8",), sigmas=(0.0,), seeds=1, workers=0,
                           out=tmp_path / "noise"), silent()) == 0  # fmt: skip
    with pytest.raises(UntiedError, match=r"another run.epochs: 1; now given: 2"):
        run(NoiseConfig(run=common(), rules=("bp",), models=("mlp-8",), sigmas=(0.0,), seeds=1, workers=0,
                        out=tmp_path / "noise"), silent())  # fmt: skip


def test_databases() -> None:
    assert with_driver("postgres://u@h/d") == "postgresql+psycopg://u@h/d"
    assert without_password("postgresql://u:secret@h/d") == "postgresql://u:***@h/d"
    with pytest.raises(UntiedError, match="cannot read the storage nonsense"):
        open_storage("nonsense")
    with pytest.raises(UntiedError, match=r"cannot open the storage postgresql://u:\*\*\*@127.0.0.1:1/d"):
        open_storage("postgresql://u:secret@127.0.0.1:1/d")


def test_patience() -> None:
    tries = itertools.count()

    def call() -> int:
        if next(tries) < 1:
            raise OSError("away")
        return 7

    said: list[str] = []
    assert patiently(call, say=said.append) == 7
    assert said == ["the study's database does not answer (away); trying again"]


def test_patience_ends_when_it_is_told_to() -> None:
    def call() -> int:
        raise OSError("away")

    asked = itertools.count()
    with pytest.raises(NoAnswer, match="does not answer: away"):
        patiently(call, stopped=lambda: next(asked) >= 2)


@pytest.mark.parametrize("gaps, words", [
    ([(0.0, -1.0), (0.1, -1.0)], "none up to the largest σ"), ([(0.0, 1.0), (0.1, 1.0)], "already without noise"),
    ([(0.0, -1.0), (0.1, 1.0)], "below 0.1"), ([(0.01, -1.0), (0.1, 1.0)], "0.032"),
    ([(0.01, -1.0), (0.1, 1.0), (1.0, -1.0)], "0.032, until 0.1"),
])  # fmt: skip
def test_where_a_rule_crosses_backpropagation(gaps: list[tuple[float, float]], words: str) -> None:
    assert report.crossing(gaps) == words
