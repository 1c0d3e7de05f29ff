"""`untied check`: a verdict on a network and a rule."""

from __future__ import annotations

import pytest

from untied.lab.cli import main


def test_a_network_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mlp-8-8", "--rule", "sa"]) == 0
    said = capsys.readouterr().out
    assert "parameter" in said and "backward_weight" in said and "verified: errors go through B alone" in said


def test_what_is_impossible_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mlp-8-8", "--rule", "saa"]) == 2
    assert main(["check", "--examples", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err
