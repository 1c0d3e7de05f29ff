"""Every `untied ...` line of the README and the docs is one that the commands take, and those that are quick run.

A line stands in a block of bash, or in a sentence between backquotes. The parser of its command makes a configuration
of each: rules are read, networks are built. The lines of the blocks are then run, a page's in their order, in a folder
that has what the page takes for granted. They are made smaller by options at their end (``SMALLER``). What needs more
than this machine is not run, and ``NEEDS`` says why.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from untied.lab import arguments, cli, commands, models
from untied.lab.cli import main
from untied.lab.neural.recording import write
from untied.lab.reading import own
from untied.lab.settings.recipes import recipes
from untied.lab.training import loop

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(path for folder in ("docs", "results") for path in (ROOT / folder).rglob("*.md"))
BLOCK = re.compile(
    r"^(?P<indent> *)```(?:bash|console|sh) *\n(?P<code>.*?)^(?P=indent)``` *$", re.MULTILINE | re.DOTALL
)
ANY_BLOCK = re.compile(r"^ *```.*?^ *``` *$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(untied [^`]+)`")

STANDS_FOR = {
    "RUN": "runs/bp-0", "DIR": "mnist", "RECIPE": next(iter(recipes())), "...": "", "V4.npz": "v4-0.npz",
    "$UNTIED_STORAGE": "sqlite:///shared.db", "runs/compare-...": "runs/compare", "runs/neural-...": "runs/neural",
    "MODEL": "mlp-8", "R": "sa", "D": "digits", "k": "2", "NAME": "mine", "FILE": "file", "FOLDER": "folder",
    "OUT": "out",
}  # fmt: skip
"""What a reader puts in the place of a word. A line that runs has what it stands for in its folder."""

SMALLER: dict[str, list[str]] = {
    "train": ["--epochs", "1"],
    "compare": ["--epochs", "1", "--seeds", "1", "--workers", "0", "--timing-steps", "2"],
    "bench": [
        "--models",
        "mlp-8",
        "--rounds",
        "1",
        "--profile",
        "0",
        "--image-size",
        "8",
        "--batches",
        "4",
        "--rules",
        "bp",
        "ia",
    ],
    "diagnose": ["--steps", "2"],
    "search": ["--trials", "2", "--workers", "0", "--run.model", "mlp-8", "--run.epochs", "1"],
    "transfer": ["--models", "mlp-8", "--seeds", "1", "--workers", "0", "--run.epochs", "1"],
    "noise": ["--models", "mlp-8", "--seeds", "1", "--workers", "0", "--run.epochs", "1", "--sigmas", "0", "0.1"],
    "neural": ["--components", "3", "--bootstrap", "20"],
}
"""Options that make a command quick. The last of two of one name counts."""

NARROWER = {"resnet18": "resnet18-w2", "resnet18-w8": "resnet18-w2"}
"""Networks that stand for wider ones when a line is run."""

NEEDS = {
    r"--devices\.(devices 8|nodes)": "eight devices",
    r"--devices\.accelerator cuda": "a GPU",
    r"train RECIPE --out run$": "CIFAR-10",
    r"/(shared|data)\b": "disks that several machines share",
    r"brainscore:": "Brain-Score's package and data",
    r"neural convert (session|it92|-)": "a recording of others; test_neural.py converts such ones",
    r"--rule half_of_w": "the package to be installed; test_new.py does it",
    r"^untied compare$": "four minutes; the README's comparison of three rules is run",
}
"""What a line that is not run needs, by what is found in it."""


class Line(NamedTuple):
    """A command as a page prints it."""

    page: str
    number: int
    words: tuple[str, ...]
    runs: bool
    """Whether it stands in a block, and needs nothing that is not here."""

    def __str__(self) -> str:
        return f"{self.page}:{self.number} untied {shlex.join(self.words)}"

    @property
    def given(self) -> list[str]:
        """Its words, with a reader's own in the place of RUN and its like."""
        meant = [STANDS_FOR.get(word, word) for word in self.words]
        return [word for word in meant if word]

    @property
    def need(self) -> str:
        """What it needs that is not here."""
        text = shlex.join(("untied", *self.words))
        return next((why for pattern, why in NEEDS.items() if re.search(pattern, text)), "")


def said(text: str) -> Iterator[tuple[str, ...]]:
    """The words of each call of untied in a line of shell."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    call: list[str] = []
    for word in [*lexer, ";"]:
        if word.startswith("untied "):  # a line that another command is given whole
            yield from said(word)
        if re.fullmatch(r"[;&|]+", word):
            if "untied" in call and "pip" not in call:
                yield tuple(call[call.index("untied") + 1 :])
            call = []
        else:
            call.append(word)


def lines(path: Path) -> list[Line]:
    """The lines of a page, in their order."""
    text = path.read_text(encoding="utf-8")
    page = str(path.relative_to(ROOT))
    found = []
    for block in BLOCK.finditer(text):
        code = re.sub(r"\\\n", lambda _: "  ", block["code"])
        for shown in code.splitlines():
            number = text.count("\n", 0, text.find(shown.strip()[:40], block.start())) + 1
            found += [Line(page, number, words, True) for words in said(shown)]
    prose = ANY_BLOCK.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    for inline in INLINE.finditer(prose):
        number = prose.count("\n", 0, inline.start()) + 1
        found += [Line(page, number, words, False) for words in said(inline[1].replace("\n", " "))]
    return found


ALL = [line for path in PAGES for line in lines(path)]
ASKS = {("evaluate",), ("export",), ("report",), ("shards",), ("new",), ("study",), ("neural",), ("neural", "convert"),
        ("study", "run"), ("study", "worker"), ("study", "show"), ("study", "recover"), ("--debug", "...")}  # fmt: skip
"""Commands that need words after them. A sentence may have their name alone."""


def test_lines_are_found() -> None:
    assert len([line for line in ALL if line.runs]) > 50 and len(ALL) > 100
    everything = " ".join(shlex.join(line.words) for line in ALL)
    assert all(re.search(rf"(^|[ =']){re.escape(word)}\b", everything) for word in STANDS_FOR if word.isalpha())
    used = [line.need for line in ALL]
    assert all(why in used for why in NEEDS.values())


def test_a_line_is_cut_where_a_shell_does() -> None:
    text = "if [ -f a ]; then untied train --resume a; else untied rules; fi; A=b untied list | head # untied no"
    assert list(said(text)) == [("train", "--resume", "a"), ("rules",), ("list",)]
    assert list(said('sbatch --wrap "untied report RUN" && pip install untied')) == [("report", "RUN")]
    assert list(said('untied train --rule "ia(amp=1; x) @ Adam"')) == [("train", "--rule", "ia(amp=1; x) @ Adam")]


class Read(Exception):
    """The configuration that a command would have worked with."""


def configuration(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command's own parser makes of its words, before anything is done; None where it has no settings."""

    def stop(kind: type, *rest: Any, **more: Any) -> Any:
        raise Read(arguments.read_config(kind, *rest, **more))

    if words[0] in commands.NAMES:
        module = importlib.import_module(f"untied.lab.commands.{words[0]}")
        monkeypatch.setattr(module, "read_config", stop)
        monkeypatch.setattr(module, "recipe", lambda name: recipe(name), raising=False)
    if words[0].startswith("-") or "--resume" in words or {"--help", "--help-all"} & {*words}:
        with contextlib.suppress(SystemExit):
            assert words[0] in commands.NAMES or cli.command(words) == 0
        return None
    try:
        cli.command(words)
    except Read as read:
        return read.args[0]
    raise AssertionError(f"untied {words[0]} asked for no settings")


def recipe(name: str) -> Any:
    """A recipe, as untied train takes it."""
    from untied.lab.settings.recipes import recipe

    return recipe(name)


@pytest.fixture
def a_rule_of_ones_own(tmp_path: Path) -> Iterator[None]:
    """half_of_w, as `untied new rule half_of_w` writes it, known as if its package were installed."""
    import untied
    from untied.lab.commands.new import write

    folder = write("half_of_w", tmp_path / "half") / "src"
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("untied_half_of_w")
        untied.register_rule(module.HalfOfW)
        yield
        untied.unregister_rule("half_of_w")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("untied_half_of_w", None)


@pytest.mark.parametrize("line", ALL, ids=str)
def test_a_line_is_one_that_its_command_takes(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, a_rule_of_ones_own: None
) -> None:
    monkeypatch.chdir(tmp_path)
    if line.words == () or (not line.runs and line.words in ASKS):
        assert all(word in commands.NAMES for word in line.words[:1] if word != "--debug")
        return
    if "--config" in line.words:  # an earlier run's
        earlier = Path(line.words[line.words.index("--config") + 1])
        earlier.parent.mkdir(parents=True)
        earlier.write_text("rule: fa\n")
    config = configuration(line.given, monkeypatch)
    for name in (getattr(config, "model", ""), *getattr(config, "models", ())):
        if name and not own.is_own("model", name):
            shape = (32, 3) if name.startswith("transformer") else (3, 32, 32)
            with torch.device("meta"):
                models.build(name, input_shape=shape, classes=10)


def digits_of_ones_own(folder: Path) -> None:
    """The files and modules that pages name as a reader's own: MNIST's, a network, data, a recording."""
    (folder / "mnist").mkdir()
    for half, count in (("train", 60), ("t10k", 20)):
        values = {"images-idx3": np.arange(count * 49) % 251, "labels-idx1": np.arange(count) % 10}
        for kind, array in values.items():
            sides = [count, 7, 7] if "images" in kind else [count]
            head = bytes([0, 0, 8, len(sides)]) + np.array(sides, ">u4").tobytes()
            (folder / "mnist" / f"{half}-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
    (folder / "nets.py").write_text(
        "from torch import nn\ndef Net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))\n"
    )
    (folder / "sets.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\ndef load():\n"
        "    return tuple(TensorDataset(torch.randn(n, 4), torch.arange(n) % 3) for n in (150, 30))\n"
    )
    (folder / "mypackage").mkdir()
    for name in ("nets.py", "sets.py"):
        shutil.copy(folder / name, folder / "mypackage")
    random = np.random.default_rng(0)
    images = random.integers(256, size=(60, 6, 6), dtype=np.uint8)
    responses = images.reshape(60, 36) @ random.normal(size=(36, 4)) / 300
    for name, region in (("v4-0", "V4"), ("v4-1", "V4"), ("v4", "V4"), ("it", "IT"), ("it92", "IT")):
        fields = {"images": images, "responses": responses, "region": np.array(region), "name": np.array(name)}
        write(folder / f"{name}.npz", fields)


def trained(folder: Path) -> None:
    """The runs that pages name: networks of some rules, one that was interrupted, a comparison, studies."""
    small = ["--model", "resnet18-w2", "--epochs", "1", "--devices.accelerator", "cpu"]
    for name in ("bp-0", "bp-1", "sa-0", "sa-1", "fa-0", "fa-1", "sa-slow"):
        rule, _, seed = name.partition("-")
        words = [*small, "--rule", rule, "--seed", seed if seed.isdigit() else "2"]
        assert main(["train", *words, "--no-verify", "--out", f"runs/{name}"]) == 0
    shutil.copytree("runs/bp-0", "earlier")
    with pytest.MonkeyPatch.context() as patch:
        epoch = loop.Run.epoch
        patch.setattr(loop.Run, "epoch", lambda run, *rest: (setattr(run, "stop", True), epoch(run, *rest))[1])
        assert main(["train", *small, "--out", "interrupted"]) == 143  # as SIGTERM would have it
    assert (
        main(["compare", *small[:2], "--rules", "bp", "--no-frozen", *SMALLER["compare"], "--out", "runs/compare"]) == 0
    )
    assert main(["search", "--space", "ia", *SMALLER["search"]]) == 0
    assert (
        main(
            ["transfer", "--rules", "bp", *SMALLER["transfer"], "--models", "resnet18-w2", "--out", "studies/transfer"]
        )
        == 0
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that pages take for granted."""
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder):
        digits_of_ones_own(folder)
        trained(folder)
    return folder


def prepare(words: list[str]) -> None:
    """What has to be so before a line: a run to go on with was interrupted, and a study to recover is damaged."""
    if "--resume" in words:
        run = words[words.index("--resume") + 1]
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree("interrupted", run)
    if words[0] == "report" and not Path(words[1]).exists():  # of the day and hour of an earlier line
        words[1] = min(glob.glob(f"{words[1]}-*"))
    if words[:2] == ["study", "recover"]:
        (Path(words[2]) / "study.db").write_bytes(b"damaged")
    if "--out" in words and words[0] != "export":  # a page's second line of one name
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)


def expanded(words: list[str]) -> list[str]:
    """Words as a shell hands them over, v4-*.npz being the files of that name; and networks narrower."""
    words = [NARROWER.get(word, word) for word in words]
    if words[0] == "train" and "--model" not in words and "--resume" not in words:
        words += ["--model", "resnet18-w2"]
    return [name for word in words for name in (sorted(glob.glob(word)) if "*" in word and " " not in word else [word])]


RUN = [path for path in PAGES if any(line.runs and not line.need for line in lines(path))]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_lines_of_a_page_run(
    path: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here = shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("UNTIED_STORAGE", "sqlite:///studies/search-ia/study.db")
    for line in lines(path):
        if not line.runs or line.need:
            continue
        words = expanded(line.given)
        prepare(words)
        smaller = [] if "--resume" in words or words[1:2] == ["convert"] else SMALLER.get(words[0], [])
        if "--help" in words or "--help-all" in words:
            with pytest.raises(SystemExit) as end:
                main(words)
            assert not end.value.code
            continue
        code = main([*words, *smaller])
        assert code == 0, f"{line} ended with {code}: {capfd.readouterr().err}"


@pytest.mark.slow
def test_the_lines_of_a_runs_card_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    code = "\n".join(block["code"] for block in BLOCK.finditer(Path("runs/sa-0/card.md").read_text(encoding="utf-8")))
    given = [list(words) for line in code.splitlines() for words in said(line)]
    assert [words[0] for words in given] == ["evaluate", "export"]
    assert [main(words) for words in given] == [0, 0]


@pytest.mark.parametrize("line", [line for line in ALL if line.runs and line.need], ids=str)
def test_a_line_that_is_not_run_says_what_it_needs(line: Line) -> None:
    pytest.skip(f"{line} needs {line.need}")
