"""The command without the packages of the lab extra, and importing the library without them."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_THE_EXTRA = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tyro", "rich", "yaml", "numpy", "matplotlib", "torchvision", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def test_the_command_without_the_lab_extra_says_what_to_install() -> None:
    done = python(WITHOUT_THE_EXTRA + "from untied.__main__ import main\nsys.exit(main())")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr  # torch itself may warn that there is no NumPy
    assert done.stderr.splitlines()[-1].startswith("untied: ") and "pip install 'torch-untied[lab]'" in done.stderr


def test_the_library_needs_none_of_the_lab_extra() -> None:
    done = python(
        WITHOUT_THE_EXTRA + "import untied\nassert not [m for m in sys.modules if m.startswith('untied.lab')]"
    )
    assert done.returncode == 0, done.stderr


def test_a_mistake_of_our_own_is_not_mistaken_for_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from untied.__main__ import main

    monkeypatch.setitem(sys.modules, "untied.lab.cli", None)
    with pytest.raises(ModuleNotFoundError):
        main()


def test_python_dash_m_runs_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "untied", "--help"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and "compare" in done.stdout
