"""Help is whole sentences: nobody has to guess what "Of the same." would have meant, and a terminal breaks no word."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

from untied.lab.cli import main
from untied.lab.commands import NAMES
from untied.lab.settings.recipes import recipes

LAB = Path(__file__).resolve().parents[2] / "src/untied/lab"
FILES = sorted({*LAB.glob("settings/*.py"), *LAB.glob("commands/*.py"), *LAB.glob("**/config.py")})
OPENINGS = {"The", "A", "An", "How", "Whether", "Which", "What", "Where", "When", "After", "Half", "Your"}
"""How a sentence may begin that says what a setting is: "The seed of initial weights." "How many epochs there are." """
VERBS = re.compile(
    r"\b(adds|is|are|has|have|had|can|do|does|costs?|fits|keeps?|may|must|names?|chooses?|comes?|counts?|decodes|gets?|gives?|goes|holds|leaves?|"
    r"lists|puts|says|sets?|shows?|stands|starts?|stops?|takes?|trains|writes?)\b",
    re.IGNORECASE,
)
"""Verbs that say what happens; a sentence has one of these or begins as above."""


def settings() -> list[tuple[str, str]]:
    """The help of every field of every settings class: (where it is, its text)."""
    found = []
    for path in FILES:
        for kind in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(kind, ast.ClassDef):
                continue
            for field, below in itertools.pairwise(kind.body):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    text = " ".join(str(ast.literal_eval(below.value)).split())
                    found.append((f"{path.parent.name}.{kind.name}.{ast.unparse(field.target)}", text))
    return found


def sentences(text: str) -> list[str]:
    """A text's sentences; a list that goes on with "..." ends one."""
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[\"A-Z0-9])", text) if s]


def test_help_is_found() -> None:
    names = [name for name, _ in settings()]
    assert len(names) > 120 and len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "text"), settings(), ids=[name for name, _ in settings()])
def test_help_is_whole_sentences(name: str, text: str) -> None:
    assert text.endswith("."), text
    for sentence in sentences(text):
        words = re.findall(r"[\w'-]+", sentence)
        assert re.match(r"[A-Z0-9]", sentence), f"begins small: {sentence}"
        assert words[0] in OPENINGS or VERBS.search(sentence), f"a telegram: {sentence}"
        assert len(words) <= 30 or ":" in sentence, f"{len(words)} words: {sentence}"  # after a colon stands a list


COMMANDS = [
    *([name] for name in NAMES if name != "study"),
    ["neural", "convert"],
    *(["study", word] for word in ("run", "worker", "show", "recover")),
]


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_terminal_wraps_help(
    words: list[str], width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is longer than the terminal is wide, and none ends early: the next word would not have fitted."""
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: untied {words[0]}")
    assert max(map(len, lines)) <= width and not any("None" in line for line in lines), lines
    inside = [line.strip("│").rstrip() for line in lines]
    column = len(max(re.findall(r"(?m)^(  ?-h, --help +)show", "\n".join(inside)), default=" "))
    for line, after in itertools.pairwise(inside):
        if after.startswith(" " * column) and line[column - 2 : column] == "  " and line[column:]:
            assert len(line) + 1 + len(after.split()[0]) > width - 4, f"{line!r} ends early"


def test_a_recipe_shows_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", next(iter(recipes())), "--help"])
    assert "usage: untied train [RECIPE]" in capsys.readouterr().out
