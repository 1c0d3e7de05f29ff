"""Help is whole sentences: nobody has to guess what "Of the same." would have meant, and a terminal breaks no word."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parents[2] / "src/untied/lab"
FILES = [*LAB.glob("settings/*.py"), *LAB.glob("commands/*.py"), *LAB.glob("**/config.py")]
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
