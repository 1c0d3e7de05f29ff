"""Every notebook of docs/notebooks runs from its first cell to its last, and is committed without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def code(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


def test_there_are_eight_and_the_site_links_them() -> None:
    index = (ROOT / "docs" / "notebooks" / "index.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 8 and all(f"({path.name})" in index for path in NOTEBOOKS)
    assert "notebooks/index.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@by_notebook
def test_outputs_are_stripped(path: Path) -> None:
    for cell in cells(path):
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
        assert set(cell["metadata"]) == set()
    assert "torch-untied[lab]" in code(path)[0]
    assert not any(line.startswith(("%", "!")) for source in code(path) for line in source.splitlines())


@by_notebook
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell in one namespace, as a kernel does it; a failure names the notebook and the cell."""
    pytest.importorskip("lightning_fabric", reason="the lab is not installed")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for at, source in enumerate(code(path)):
        exec(compile(source, f"{path.name}, cell {at}", "exec"), namespace)
