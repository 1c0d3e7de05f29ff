"""The house itself: no circles, no ladders over kinds of rule, and short files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import untied
from untied.routes.route import Route
from untied.rules.rule import Rule

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "src" / "untied"
APART = ("lab", "integrations")  # applications: they import the core, never the other way round


def modules() -> dict[str, Path]:
    """Every module of the core by its dotted name below `untied`."""
    found = {}
    for path in sorted(CORE.rglob("*.py")):
        parts = path.relative_to(CORE).with_suffix("").parts
        if parts[0] not in APART and parts[0] not in ("__init__", "__main__"):
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the core that a file imports: at its top, within functions, and for types alone."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or "").startswith("untied")):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        module = [*base, *((node.module or "").split(".") if node.level else (node.module or "").split(".")[1:])]
        where = ".".join(p for p in module if p)
        inside = {f"{where}.{alias.name}".strip(".") for alias in node.names} & set(known)
        found |= inside or ({where} if where in known else set())
    return found - {name}


def test_no_circles() -> None:
    known = modules()
    waits = {name: imports(name, path, known) for name, path in known.items()}
    assert sum(map(len, waits.values())) > 60  # the arrows are seen
    while ready := [name for name, needs in waits.items() if not needs & set(waits)]:
        for name in ready:
            del waits[name]
    assert not waits, f"these import each other in a circle: {waits}"


def test_the_core_imports_nothing_of_its_applications() -> None:
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        assert not any(f"untied.{part}" in line for part in APART for line in text.splitlines() if "import" in line), (
            path
        )


def house() -> dict[str, Path]:
    """Every file below src, the application and the program too, by its dotted name."""
    source = ROOT / "src"
    parts = {path: path.relative_to(source).with_suffix("").parts for path in source.rglob("*.py")}
    return {".".join(p for p in where if p != "__init__"): path for path, where in parts.items()}


def arrows() -> set[tuple[str, str]]:
    """Who imports whom, file by file, within functions too; but what a package hands on is no arrow of its own."""
    known, found = house(), set()
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                found |= {(name, t) for a in node.names if (t := f"{node.module}.{a.name}") in known}
                if node.module in known and any(f"{node.module}.{a.name}" not in known for a in node.names):
                    found.add((name, node.module))
            elif isinstance(node, ast.Import):
                found |= {(name, a.name) for a in node.names if a.name in known}
    return {(a, b) for a, b in found if a != b}


DOORS = ("untied", "untied.lab")
"""Packages that hand on what stands above them: whoever names one means what it hands on."""


def test_the_whole_house_has_no_circles() -> None:
    known = house()
    waits: dict[str, set[str]] = {name: set() for name in known}
    for a, b in arrows():
        if a not in DOORS and b not in DOORS:
            waits[a].add(b)
    assert sum(map(len, waits.values())) > 400
    while ready := [name for name, needs in waits.items() if not needs & set(waits)]:
        for name in ready:
            del waits[name]
    assert not waits, f"these import each other in a circle: {waits}"


def kinds(base: type) -> set[str]:
    return {kind.__name__ for kind in base.__subclasses__()} | {n for k in base.__subclasses__() for n in kinds(k)}


def test_nobody_asks_what_kind_of_rule_it_is() -> None:
    """A rule or route is asked what it does, not which one it is, so that a user's own is treated like ours."""
    ours = {k for k in kinds(Rule) | kinds(Route) if hasattr(untied.rules, k) or k.startswith("_")}
    assert {"Alignment", "Transport", "MirroredKolenPollack", "Broadcast", "Product", "Through"} <= ours
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass", "type")
            compared = isinstance(node, ast.Compare)  # type(self) is Alignment
            sides = list(ast.walk(node)) if called else [node.left, *node.comparators] if compared else []
            asked = {n.id for n in sides if isinstance(n, ast.Name)}
            asked |= {n.attr for n in sides if isinstance(n, ast.Attribute)}
            assert not asked & ours, f"{path.name}:{node.lineno} asks for {asked & ours}"


@pytest.mark.parametrize("name", sorted(house()))
def test_files_are_short(name: str) -> None:
    lines = house()[name].read_text(encoding="utf-8").count("\n")
    assert lines <= 460, f"{name} has {lines} lines: two ideas may share it"


def test_the_reading_order_and_its_minutes_are_true() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[\S+\]\(\.\./src/untied/(\S+)\.py\) \| .* \| (\d+) \|$", page, re.MULTILINE)
    assert len(rows) > 10
    for name, minutes in rows:
        lines = (CORE / f"{name}.py").read_text(encoding="utf-8").count("\n")
        assert abs(int(minutes) - max(1, lines / 50)) <= 1, (name, minutes, lines)
    assert sum(int(minutes) for _, minutes in rows) <= 70
    order, known = [name.replace("/", ".") for name, _ in rows], modules()
    for at, name in enumerate(order):  # what a file needs comes before it
        assert not imports(name, known[name], known) & set(order[at:]), name
    named = set(re.findall(r"\]\(\.\./src/untied/([\w/]+)\.py\)", page))
    whole = {"dynamics", "testing"}  # one idea in several files: the page names the room
    inside = {n.replace(".", "/") for n, path in known.items() if path.name != "__init__.py"}
    inside = {n for n in inside if n.partition("/")[0] not in whole} - {"schedules", "statistics"}
    assert inside <= named, inside - named
