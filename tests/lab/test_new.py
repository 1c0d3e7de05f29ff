"""`untied new rule`: the package it writes is installed, passes its tests, and its rule trains."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import untied
from untied.lab.cli import main

SOURCE = str(Path(untied.__file__).parents[1])


def run(words: list[str], folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """A process that finds what is installed in ``path``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), SOURCE])}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_a_rule_of_ones_own_is_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for tool in ("pip", "hatchling"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"no {tool}: install the extra 'dev'")
    monkeypatch.chdir(tmp_path)
    assert main(["new", "rule", "half_way"]) == 0
    assert "untied-half-way" in capsys.readouterr().out
    made, installed = tmp_path / "untied-half-way", tmp_path / "installed"
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = run(["-m", "pip", "install", *offline, "--target", str(installed), str(made)], tmp_path, installed)
    assert done.returncode == 0, done.stderr
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "tests"], made, installed)
    assert done.returncode == 0, done.stdout
    assert "14 passed" in done.stdout
    words = ["--rule", "half_way(decay=2)", "--model", "mlp-8", "--data", "digits", "--epochs", "1", "--out", "run"]
    done = run(["-m", "untied", "train", *words, "--devices.accelerator", "cpu"], tmp_path, installed)
    assert done.returncode == 0 and (tmp_path / "run" / "results.json").is_file(), done.stderr
    done = run(["-m", "untied", "list"], tmp_path, installed)
    assert "half_way  from untied-half-way (untied_half_way:HalfWay)" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rule", "2fast"], "'2fast' cannot name a rule: give a word"),
        (["rule", "Half"], "cannot name a rule"),
        (["rule", "class"], "cannot name a rule"),
        (["rule", "../evil"], "cannot name a rule"),
        (["rule", "sa"], "sa is known already"),
        (["rule", "amp"], "amp is known already"),
        (["rule", "mine"], "untied-mine is there already"),
        (["rule", "other", "--out", "untied-mine"], "untied-mine is there already"),
        (["ruel", "mine"], "rule"),
        (["rule"], "name"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "untied-mine").mkdir()
    assert main(["new", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("untied: ") and err.count("\n") == 1 and said in err
    assert [p.name for p in tmp_path.iterdir()] == ["untied-mine"] and not list((tmp_path / "untied-mine").iterdir())
