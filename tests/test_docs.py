"""Every Python block of the README, the docs and the tutorials runs as printed.

The blocks of one file run in order, in one namespace, in an empty working directory. A block that cannot run says why
in a comment directly before it: <!-- not executed: reason -->.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

import untied
from untied.primitives.primitive import KNOWN, PRIMITIVES
from untied.rules.naming import BUILT_IN, NAMED

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(?P<indent> *)```python *\n(?P<code>.*?)^(?P=indent)``` *$", re.MULTILINE | re.DOTALL)
EXCUSE = re.compile(r"<!-- not executed: \S((?!-->).)*-->\s*\Z", re.DOTALL)


class Block(NamedTuple):
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """The Python blocks of a Markdown text that are to run, with the line each starts on (from 1)."""
    return [
        Block(textwrap.dedent(found["code"]), text.count("\n", 0, found.start("code")) + 1)
        for found in FENCE.finditer(text)
        if not EXCUSE.search(text[: found.start()].rpartition("```")[2])
    ]


def run(path: Path) -> None:
    """Run the blocks of a file. A failure's traceback shows the file's own name and line numbers."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(path.read_text(encoding="utf-8")):
        exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), namespace)


FILES = [
    path
    for pattern in ("README.md", "docs/*.md", "docs/tutorials/*.md")
    for path in sorted(ROOT.glob(pattern))
    if blocks(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(path)


def test_errors_are_shown_as_they_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*NAMED} - {*BUILT_IN}:  # of the lab, and of pages that ran before
        monkeypatch.delitem(NAMED, name)
    for name in {*KNOWN} - {*PRIMITIVES, "copy"}:
        monkeypatch.delitem(KNOWN, name)
    page = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
    shown = re.findall(r"^untied\.rules\.parse\(\"(.*)\"\)\n((?:    .*\n)+)", page, re.MULTILINE)
    assert len(shown) == 4
    for text, message in shown:
        with pytest.raises(untied.UntiedError) as error:
            untied.rules.parse(text)
        assert " ".join(message.split()) == str(error.value)


def test_the_table_of_primitives_is_the_codes() -> None:
    page = (ROOT / "docs/maths.md").read_text(encoding="utf-8")
    section = page.partition("## 4. Primitives")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (\d) \| (yes|no)\b.* \| (\S+) \|$", section, re.MULTILINE)
    assert [name for name, *_ in rows] == [*PRIMITIVES, "copy"]
    for name, penalty, gradient, degree, local, cost in rows:
        p = KNOWN[name]
        assert (penalty.replace("\\", ""), gradient.replace("\\", "")) == (p.formula, p.gradient_formula)
        assert (int(degree), local == "yes") == (p.degree, p.local)
        assert cost == f"{untied.rules.as_rule(p).cost:.2f}"


def test_blocks_share_a_namespace_and_may_be_excused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n\n"
        "<!-- not executed: it needs a GPU -->\n```python\nraise SystemExit\n```\n\n"
        "```bash\nexit 1\n```\n\n"
        "1. in a list\n\n   ```python\n   if x == 1:\n       x += 1\n   ```\n\n"
        "```python\nassert x == 2\n```\n"
    )
    assert [block.line for block in blocks(page.read_text())] == [2, 17, 22]
    run(page)


def test_an_excuse_counts_only_directly_before_its_block() -> None:
    assert len(blocks("<!-- not executed: why -->\n\nwords <!-- more -->\n\n```python\n1\n```\n")) == 1
    assert len(blocks("<!-- not executed: why -->\n```python\n1\n```\n```python\n2\n```\n")) == 1


def test_a_failing_block_names_its_file_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("words\n\n```python\n\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as failure:
        run(page)
    last = failure.traceback[-1]
    assert (str(last.path), last.lineno + 1) == (str(page), 5)
