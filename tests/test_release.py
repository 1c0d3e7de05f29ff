"""What a release is made of: names that agree, workflows that are YAML, and a wheel that holds what it must."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_extras_are_those_of_the_distribution_wherever_they_are_written() -> None:
    """``pip install untied[lab]`` would install somebody else's package."""
    assert PROJECT["name"] == "torch-untied"
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "pyproject.toml"]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w-])untied\[[a-z]", text), file
        for extras in re.findall(r"torch-untied\[([a-z0-9,]+)\]", text):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), (file, extras)


def test_workflows_and_templates_are_yaml_with_the_parts_that_the_host_reads() -> None:
    workflows = {p.stem: yaml.safe_load(p.read_text(encoding="utf-8")) for p in (ROOT / ".github/workflows").iterdir()}
    assert set(workflows) == {"ci", "release"}
    for workflow in workflows.values():
        assert {"name", True, "permissions", "jobs"} <= set(workflow)  # YAML 1.1 reads the key `on` as true
        for job in workflow["jobs"].values():
            assert job["runs-on"] and all(("run" in step) != ("uses" in step) for step in job["steps"])
    matrix = workflows["ci"]["jobs"]["test"]["strategy"]["matrix"]
    assert len(matrix["os"]) == 3 and matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    for template in (ROOT / ".github/ISSUE_TEMPLATE").iterdir():
        assert {"name", "description", "body"} <= set(yaml.safe_load(template.read_text(encoding="utf-8")))
    json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))


def test_the_oldest_torch_of_ci_is_the_oldest_that_the_package_allows() -> None:
    (oldest,) = re.findall(r"torch==([\d.]+)\.\*", (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))[:1]
    assert f"torch>={oldest}" in PROJECT["dependencies"]


def test_sdist_and_wheel_hold_what_they_must(tmp_path: Path) -> None:
    for tool in ("build", "hatchling", "twine"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"no {tool}: install the extra 'dev'")
    make = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = tmp_path.glob("torch_untied-*.tar.gz"), tmp_path.glob("torch_untied-*.whl")
    check = [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "py.typed",
        "lab/showing/templates/page.html",
        "lab/recipes/table4.yaml",
        "lab/recipes/spaces/ia.yaml",
    ):
        assert f"untied/{needed}" in names, needed
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"recipes/table4.yaml", "src/untied/py.typed", "pyproject.toml", "README.md", "LICENSE"} <= inside
