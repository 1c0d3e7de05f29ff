"""The page about integrations runs as printed, where all its libraries are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_docs import run

PAGE = Path(__file__).resolve().parents[2] / "docs/integrations/index.md"


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("lightning", "transformers", "accelerate", "torchmetrics"):
        pytest.importorskip(package, reason="the page needs the extras lightning, huggingface and torchmetrics")
    monkeypatch.chdir(tmp_path)
    run(PAGE)
    assert (tmp_path / "plain/model.safetensors").is_file()
