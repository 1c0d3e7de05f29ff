"""Every folder names the command that made it, and can be reported again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import untied
from runs import Page
from untied.errors import UntiedError
from untied.lab.cli import main
from untied.lab.commands import maker, makers, of_version_0_1
from untied.lab.keeping.record import RunFolder
from untied.lab.rules.signs import FROZEN
from untied.lab.settings.bench import BenchConfig
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.diagnose import DiagnoseConfig
from untied.lab.settings.dynamics import DynamicsConfig
from untied.lab.settings.neural import NeuralConfig
from untied.lab.settings.run import TrainConfig
from untied.lab.showing.listing import moves
from untied.lab.showing.report import PAPER
from untied.lab.study.config import KINDS
from untied.rules import taxonomy

ROOT = Path(__file__).resolve().parents[2]

CONFIGS = {
    "compare": CompareConfig, "train": TrainConfig, "bench": BenchConfig, "dynamics": DynamicsConfig,
    "diagnose": DiagnoseConfig,
}  # fmt: skip


SAID: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "dynamics": (
        "Dynamics of wm",
        "Stable line (every start comes to rest, on a line or curve of fixed points): wm.",
        ("wm at x = 1", "eigenvalues 0 symmetric, 2 skew", "9.49 steps"),
    ),
    "diagnose": (
        "What each layer will do under wm: mlp-8 on digits",
        "Predicted for 2 layers: ",
        ("fc1 ", "fc2 ", "of every layer"),
    ),
}
"""On the page of a command: the title, what came out, and what the words in place of its figure have in them."""


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["dynamics", "wm"], ["flow.csv", "figures/phase_portraits.svg", "index.html"]),
        (
            ["diagnose", "mlp-8", "--data.batch-size", "8"],
            ["table.md", "table.csv", "figures/diagnosis.svg", "index.html"],
        ),
    ],
)
def test_a_folder_is_written_again(
    words: list[str], files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*words, "--out", str(out)]) == 0
    made = json.loads((out / "environment.json").read_text())
    assert made["command"] == words[0] and made["packages"]["untied"] == untied.__version__
    before = {name: (out / name).read_bytes() for name in files}
    for name in files:
        if name != "table.csv":  # which the tables are made from
            (out / name).unlink()
    assert main(["report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in files} == before
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert f"untied {words[0]}" in page.text
    title, came_out, numbers = SAID[words[0]]
    assert page.of("h1") == page.of("title") == title and came_out in page.text
    links = page.values("a", "href")
    assert PAPER in links and (out / links[0]).resolve() == ROOT / "docs/theory.md"
    alts = page.values("img", "alt")
    assert len(alts) == 1 and all(number in alts[0] for number in numbers), alts
    assert not set(alts) & {page.of("figcaption")}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_maker_is_known_with_and_without_its_name(name: str, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIGS[name]())
    assert maker(folder) == name
    (folder.path / "environment.json").unlink()  # version 0.1 did not write the command's name into it
    assert maker(folder) == name


def test_studies_and_neural_fits_are_known_by_their_fields() -> None:
    for kind in KINDS:
        assert of_version_0_1({"kind": kind, "run": {}, "rules": []}) == kind
    assert of_version_0_1(dict.fromkeys(NeuralConfig.__dataclass_fields__)) == "neural"
    assert set(makers()) == {*CONFIGS, *KINDS, "neural"}


def test_a_folder_of_something_else_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.create(tmp_path / "run", {"depth": 3})
    with pytest.raises(UntiedError, match=r"made by untied \(unknown\).*it reads those of bench, compare"):
        maker(folder)
    made = folder.environment() | {"command": "dream"}
    folder.write_json("environment.json", made)
    assert main(["report", str(folder.path)]) == 2
    assert f"made by untied dream of version {untied.__version__}" in capsys.readouterr().err


def test_a_table_that_was_changed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["diagnose", "mlp-8", "--data.batch-size", "8", "--out", str(out)]) == 0
    (out / "table.csv").write_text("layer,power\nfc1,much\n")
    assert main(["report", str(out)]) == 2
    err = capsys.readouterr().err
    assert "table.csv is missing or was changed" in err and err.count("\n") == 1


def test_the_readmes_table_of_rules_is_the_codes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in taxonomy():
        if row["name"] != FROZEN:
            local = "yes" if row["local"] else "no"
            line = f"| `{row['name']}` | {row['title']} | {row['sends']} | {moves(row)} | {local} | {row['cost']:.2f} |"
            assert line in readme, line
