"""``import untied`` needs PyTorch and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import untied

PROBE = """
import sys, torch
before = {name.partition(".")[0] for name in sys.modules}
import untied, untied.rules, untied.metrics, untied.rules.text, untied.rules.reference
untied.rules.parse("ia(amp=1) + 0.5*null")
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before - set(sys.stdlib_module_names)))
print(*sorted(name for name in sys.modules if name.startswith("untied.lab")))
print(*sorted({"torchvision", "sklearn", "matplotlib", "tyro", "pydantic", "timm", "safetensors", "PIL", "yaml",
               "rich", "jinja2", "scipy", "pandas"} & after))
"""


def test_importing_untied_imports_torch_only() -> None:
    source = str(Path(untied.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {source!r})\n{PROBE}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    new, lab, heavy = done.stdout.split("\n")[:3]
    assert (new, lab, heavy) == ("untied", "", "")


SLOW = ("torchmetrics", "transformers", "matplotlib", "torchvision.models", "scipy.stats", "sklearn", "pandas", "timm")


@pytest.mark.parametrize(
    "command",
    [
        "experiments.train",
        "experiments.compare",
        "experiments.evaluate",
        "experiments.check",
        "study.worker",
        "study.run",
        "showing.listing",
    ],
)
def test_a_command_starts_without_what_it_may_never_need(command: str) -> None:
    pytest.importorskip("lightning_fabric", reason="the lab is not installed")
    code = f"import sys, untied.lab.{command}; print(*(m for m in {SLOW} if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_help_waits_for_nothing() -> None:
    """A list of commands without PyTorch; and a command's own help without what only its work needs."""
    source = str(Path(untied.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); import untied_usage as program; program.usage()"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(len(sys.modules), 'torch' in sys.modules)"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    count, torch_too = done.stdout.split()
    assert int(count) < 150 and torch_too == "False"
    pytest.importorskip("lightning_fabric", reason="the lab is not installed")
    heavy = (*SLOW, "torch._dynamo", "optuna", "lightning_fabric", "rich.progress")
    code += "; [__import__('untied.lab.commands.' + name) for name in program.commands()]"
    code += f"; print(*(m for m in {heavy} if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_public_names_exist_and_are_listed() -> None:
    for module in (
        untied, untied.dynamics, untied.geometry, untied.metrics, untied.operations, untied.primitives, untied.rules,
        untied.schedules, untied.statistics,
    ):  # fmt: skip
        assert sorted(module.__all__) == sorted(set(module.__all__))
        for name in module.__all__:
            assert getattr(module, name).__doc__ or name == "DENSE" or not callable(getattr(module, name)), name


def test_the_error_is_a_value_error() -> None:
    assert issubclass(untied.UntiedError, ValueError)
    with pytest.raises(ValueError):
        untied.rules.parse("nonsense")


def test_the_version_is_a_version() -> None:
    assert untied.__version__.count(".") == 2
