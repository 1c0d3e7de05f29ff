"""The command line: subcommands, no logic."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro
import yaml

import untied
from untied.errors import UntiedError
from untied.lab import crash
from untied.lab.commands import Command
from untied.lab.completion import completion
from untied.lab.reading import is_rare, nested_config, read_yaml, set_in, settings_of
from untied.lab.record import plain
from untied.lab.secrets import redacted

__all__ = ["main"]

T = TypeVar("T")
_settings = ""  # the last ones that were read, as YAML, for a crash file
MEANT = {"learning-rate": "lr", "optimizer": "name", "optim": "name", "wd": "weight-decay", "batch": "batch-size"}
"""What others call our options."""


def compare(arguments: list[str]) -> int:
    """Train the same network with each of several rules: table, figures and a page; --resume RUN goes on with it."""
    from untied.lab.compare import compare, resume
    from untied.lab.config import CompareConfig

    words, run = take_option(arguments, "--resume")
    if run is not None:
        if words:
            raise UntiedError(f"--resume goes on with the comparison's own configuration: leave out {words[0]}")
        return resume(Path(run))
    return compare(read_config(CompareConfig, words, "untied compare"))


def train(arguments: list[str]) -> int:
    """Train one network in a run folder, on one device or many; --resume RUN goes on with it."""
    from untied.lab.config import TrainConfig
    from untied.lab.recipes import recipe

    words, run = take_option(arguments, "--resume")
    if run is not None:
        if words:
            raise UntiedError(f"--resume goes on with the run's own configuration: leave out {words[0]}")
        from untied.lab.train import resume

        return resume(Path(run))
    named = recipe(words.pop(0)) if words and not words[0].startswith("-") else None
    config = read_config(TrainConfig, words, "untied train [RECIPE]", named)
    from untied.lab.train import train  # here, as it is slow to import

    return train(config)


def evaluate(arguments: list[str]) -> int:
    """Print a trained run's accuracy on a split, and every angle by layer."""
    from untied.lab.evaluate import evaluate_run

    @dataclass(frozen=True)
    class Evaluation:
        """Top-1, top-5, loss, and all angles by layer, of a run that untied train has made."""

        run: Annotated[Path, tyro.conf.Positional]
        """The run folder."""
        split: Literal["test", "validation", "train"] = "test"
        """Which images."""
        checkpoint: Literal["last", "best"] = "last"
        """The last one, or the best on validation."""
        root: Path | None = None
        """Where the data lies now, if not where it lay in training."""
        accelerator: str = "auto"
        """cpu, cuda, mps, or auto: the best there is."""

    c = read_config(Evaluation, arguments, "untied evaluate")
    return evaluate_run(c.run, c.split, c.checkpoint, c.root, c.accelerator)


def export(arguments: list[str]) -> int:
    """Write a run's plain weights, as the stock model loads them."""
    from untied.lab.evaluate import export

    @dataclass(frozen=True)
    class Export:
        """The forward weights of a run that untied train has made, as a plain state dict without backward weights."""

        run: Annotated[Path, tyro.conf.Positional]
        """The run folder."""
        out: Path = Path("model.safetensors")
        """The file to write."""
        checkpoint: Literal["last", "best"] = "last"
        """The last one, or the best on validation."""

    c = read_config(Export, arguments, "untied export")
    return export(c.run, c.out, c.checkpoint)


def recipes(arguments: list[str]) -> int:
    """List the recipes: the paper's tables at full size and at sizes for one GPU or two cores."""
    from untied.lab.recipes import print_recipes

    @dataclass(frozen=True)
    class Nothing:
        """List the recipes that untied train takes by name."""

    read_config(Nothing, arguments, "untied recipes")
    print_recipes()
    return 0


def rules(arguments: list[str]) -> int:
    """Print the primitives, the named rules and how to write one (Tables 1 and 2 of the paper)."""
    from untied.lab.listing import print_rules

    @dataclass(frozen=True)
    class Nothing:
        """Print the primitives, the named rules and how to write one (Tables 1 and 2 of the paper)."""

    read_config(Nothing, arguments, "untied rules")
    print_rules()
    return 0


def listing(arguments: list[str]) -> int:
    """List every rule, model and data set by name, and what installed packages offer."""
    from untied.lab.listing import print_all

    @dataclass(frozen=True)
    class Nothing:
        """List every rule, model and data set by name, and what installed packages offer."""

    read_config(Nothing, arguments, "untied list")
    print_all()
    return 0


def report(arguments: list[str]) -> int:
    """Write the tables, figures and page of a run folder again."""
    from untied.lab.commands import again

    @dataclass(frozen=True)
    class Where:
        """Write the tables, figures and page of a run folder again, without training."""

        run: Annotated[Path, tyro.conf.Positional]
        """The run folder of any command."""

    return again(read_config(Where, arguments, "untied report").run)


def search(arguments: list[str]) -> int:
    """Search a rule's metaparameters (TPE), for accuracy on validation images; goes on where it was interrupted."""
    from untied.lab.study.config import SearchConfig
    from untied.lab.study.run import run

    return run(read_config(SearchConfig, arguments, "untied search"))


def transfer(arguments: list[str]) -> int:
    """Train other architectures with fixed metaparameters (Fig. 3 of the paper)."""
    from untied.lab.study.config import TransferConfig
    from untied.lab.study.run import run

    return run(read_config(TransferConfig, arguments, "untied transfer"))


def noise(arguments: list[str]) -> int:
    """Train with noise on every update: rules against backpropagation (Fig. 5 of the paper)."""
    from untied.lab.study.config import NoiseConfig
    from untied.lab.study.run import run

    return run(read_config(NoiseConfig, arguments, "untied noise"))


def study(arguments: list[str]) -> int:
    """Many runs over a shared database: study run FILE, study worker, study show, study recover."""
    from untied.lab.study import run as studies

    @dataclass(frozen=True)
    class Running:
        """Start the study that a file describes, or go on with it."""

        file: Annotated[Path, tyro.conf.Positional]
        """YAML: kind (search, transfer or noise) and fields of that command; a study folder's config.yaml."""
        workers: int | None = None
        """Processes of this machine that train, if not as the file says; 0 trains in this one."""
        storage: str | None = None
        """The database, if not as the file says."""
        out: Path | None = None
        """The study's folder, if not as the file says."""

    @dataclass(frozen=True)
    class Joining:
        """Take runs from a study's database and train them, until all have ended."""

        study: str
        """The study's name."""
        storage: str | None = None
        """The database's URL; by default the environment variable UNTIED_STORAGE."""
        out: Path | None = None
        """The study's folder here, for the run folders; workers that share it can go on with each other's runs."""
        data_root: Path | None = None
        """Where the data lies here, if not where the study says."""
        threads: int | None = None
        """For PyTorch; by default as many as it chooses."""
        wait: bool = True
        """Stay while others train the last runs, in case one of them is lost."""
        quiet: bool = False
        """Say only what goes wrong."""
        leash: bool = False
        """Stop once standard input is closed: with the program that has started this worker, however that ends."""

    @dataclass(frozen=True)
    class Showing:
        """Print how far a study is, who trains what, and the best so far."""

        folder: Annotated[Path | None, tyro.conf.Positional] = None
        """The study's folder; or name it by --storage and --study."""
        storage: str | None = None
        """The database's URL."""
        study: str | None = None
        """The study's name."""

    @dataclass(frozen=True)
    class Recovering:
        """Make a study's damaged or lost database again, from the folders of its runs."""

        folder: Annotated[Path, tyro.conf.Positional]
        """The study's folder."""
        storage: str | None = None
        """The database, if not the one of before."""

    word, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if word == "run":
        c = read_config(Running, rest, "untied study run")
        given = {k: v for k in ("workers", "storage", "out") if (v := getattr(c, k)) is not None}
        return studies.run(dataclasses.replace(studies.read_study(c.file), **given))
    if word == "worker":
        j = read_config(Joining, rest, "untied study worker")
        return studies.join(j.storage, j.study, j.out, j.data_root, j.threads, j.wait, j.quiet, j.leash)
    if word == "show":
        s = read_config(Showing, rest, "untied study show")
        return studies.show(s.folder, s.storage, s.study)
    if word == "recover":
        from untied.lab.study.recover import recover

        r = read_config(Recovering, rest, "untied study recover")
        return recover(r.folder, r.storage)
    if word in ("-h", "--help", "help"):
        print("usage: untied study run FILE | worker --study NAME | show FOLDER | recover FOLDER  (each with --help)")
        return 0
    raise UntiedError(f"untied study {word or '(nothing)'}: possible are run FILE, worker, show, recover FOLDER")


def dynamics(arguments: list[str]) -> int:
    """Draw phase portraits of rules: who diverges, rests or collapses (Fig. 2a-c of the paper)."""
    from untied.lab.dynamics import DynamicsConfig, dynamics

    return dynamics(read_config(DynamicsConfig, arguments, "untied dynamics"))


def diagnose(arguments: list[str]) -> int:
    """Say which layers will diverge, stay or collapse under a rule, and what to change (Fig. 2d-f of the paper)."""
    from untied.lab.diagnose import DiagnoseConfig, diagnose

    return diagnose(read_config(DiagnoseConfig, arguments, "untied diagnose"))


def check(arguments: list[str]) -> int:
    """Say by number whether a network's errors go through its backward weights alone, and what moves those."""
    from untied.lab.check import CheckConfig, check

    return check(read_config(CheckConfig, arguments, "untied check"))


def neural(arguments: list[str]) -> int:
    """Say how well trained networks predict neurons' responses (Fig. 6 of the paper); neural convert: their file."""
    if arguments[:1] == ["convert"]:
        from untied.lab.neural.convert import ConvertConfig, convert

        return convert(read_config(ConvertConfig, arguments[1:], "untied neural convert"))
    from untied.lab.neural.command import NeuralConfig, neural

    return neural(read_config(NeuralConfig, arguments, "untied neural RUN [RUN ...] --recording FILE [FILE ...]"))


def bench(arguments: list[str]) -> int:
    """Time a training step of each rule against plain PyTorch's: measured beside counted, memory, figure."""
    from untied.lab.bench import BenchConfig, bench

    return bench(read_config(BenchConfig, arguments, "untied bench"))


def shards(arguments: list[str]) -> int:
    """Pack an image folder into tar files, for --data shards."""
    from untied.lab.data.shards import write_shards

    @dataclass(frozen=True)
    class Packing:
        """Pack an image folder into tar files, for --data shards. The image files are copied as they are."""

        folder: Annotated[Path, tyro.conf.Positional]
        """It holds train/CLASS/IMAGE, and val/CLASS/IMAGE or test/CLASS/IMAGE."""
        out: Annotated[Path, tyro.conf.Positional]
        """Gets train/*.tar, and val/*.tar or test/*.tar."""
        per_shard: int = 1000
        """Images in a tar file."""

    packing = read_config(Packing, arguments, "untied shards")
    for folder, index in write_shards(packing.folder, packing.out, packing.per_shard).items():
        print(f"{folder}: {sum(index.shards.values()):,} images in {len(index.shards):,} shards")
    return 0


COMMANDS: dict[str, Command] = {
    run.__name__.replace("listing", "list"): Command(run)
    for run in (
        compare, train, evaluate, export, recipes, rules, listing, report, search, transfer, noise, study, dynamics,
        diagnose, check, neural, shards, bench,
    )
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 2 for a mistake of the user's, 3 for one of ours, 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    if not os.environ.get("COLUMNS", "1").strip("0"):  # a terminal of no width: nothing would be printed
        del os.environ["COLUMNS"]
    try:
        return command(words)
    except UntiedError as error:
        return stop(f"untied: {error}", 2, debug)
    except KeyboardInterrupt:
        return stop("untied: interrupted", 130, debug)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except Exception as error:
        file = crash.write(error, words, _settings)
        where = f"the file {file} says where: please report it" if file else "--debug shows where"
        return stop(redacted(f"untied: unexpected {type(error).__name__}: {error} ({where})"), 3, debug)


def stop(line: str, code: int, debug: bool) -> int:
    """Say in one line what went wrong. One process of several ends here."""
    if debug:
        traceback.print_exc()
    print(" ".join(line.split()), file=sys.stderr)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Threads of its backend may still wait for another process; one that wakes while Python ends aborts it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def command(words: list[str]) -> int:
    """Find the command that the first word names, and run it."""
    if words[:1] == ["--version"]:
        print(f"untied {untied.__version__}")
        return 0
    if words[:1] == ["--print-completion"]:
        print(completion(words[1:], COMMANDS, help_of))
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print("usage: untied COMMAND [OPTIONS]     (untied COMMAND --help lists them)\n")
        for name, run in COMMANDS.items():
            print(f"  {name:<10} {run.help}")
        print("\n  --version   --debug (a traceback with every error)   --print-completion bash, zsh or fish")
        return 0 if words else 2
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UntiedError(f"unknown command {words[0]!r}: possible are {', '.join(COMMANDS)}{hint}")
    return COMMANDS[words[0]](words[1:])


def help_of(words: list[str]) -> str:
    """What a command prints for --help, as plain text in one column."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), columns(100), contextlib.suppress(SystemExit, UntiedError):
        command([*words, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())


def read_config(kind: type[T], arguments: list[str], program: str, default: T | None = None) -> T:
    """A config from the command line, over ``default`` or the YAML file that --config names, over the defaults.

    Raises:
        UntiedError: an unknown flag (with the nearest known one), or an impossible value.
    """
    arguments = [re.sub(r"^--data(?==|$)", "--data.name", word) for word in arguments]
    arguments, pairs = take_pairs(comma_lists(kind, arguments))
    arguments, file = take_option(arguments, "--config")
    if file is not None and default is not None:
        raise UntiedError(f"a recipe and --config {file} are both given: name one of them")
    start = default if file is None else read_yaml(kind, Path(file))
    given: dict[str, Any] = {} if start is None else {"default": start}
    if "--help-all" in arguments:
        print(f"{program}: all settings, for --set path.to.field=value and for YAML\n")
        for path, value, text, _ in settings_of(kind):
            print(textwrap.fill(f"{path} = {value}: {text}", 100, initial_indent="  ", subsequent_indent="      "))
        raise SystemExit(0)
    if {"-h", "--help"} & set(arguments):
        about = f"Other settings: --set path.to.field=value, as often as you like. {program} --help-all lists them all."
        given |= {"description": f"{inspect.getdoc(kind)}\n\n{about}"} if has_rare(kind) else {}
        shown: T = tyro.cli(kind, args=arguments, prog=program, **given)
        return shown
    said = io.StringIO()
    config: T
    try:
        with contextlib.redirect_stderr(said), columns(10_000):
            config, unknown = tyro.cli(kind, args=arguments, prog=program, return_unknown_args=True, **given)
    except SystemExit:
        raise UntiedError(f"{essence(said.getvalue())} ({program} --help says more)") from None
    if unknown:
        if (spelling := new_spelling(kind, unknown)) is not None:
            raise UntiedError(f"{unknown[0].partition('=')[0]} is not a flag any more: write  --set {spelling}")
        flags = flags_of(kind)
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=2, cutoff=0.5)
        word = unknown[0].partition("=")[0]
        meant = [flag for flag in flags if flag.rpartition(".")[2] == MEANT.get(word.lstrip("-"), word.lstrip("-"))]
        near = [flag for flag in near if flag != word]  # a positional argument has its flag's name
        hint = f"did you mean {' or '.join(meant or near)}? " if meant or near else ""
        if word in flags:
            hint = f"give it without {word}, as in {program} VALUE; "
        raise UntiedError(f"unknown option {unknown[0]!r}: {hint}{program} --help lists all")
    config = set_in(config, pairs, plain(config)) if pairs else config
    global _settings
    _settings = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    return config


def take_pairs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Take ``--set a.b=1 c=2`` out of the arguments."""
    rest: list[str] = []
    pairs: list[str] = []
    waiting = inside = False  # for the first pair, and for more of them
    for word in [*arguments, "--"]:  # the last one ends what is open
        pair = word.removeprefix("--set=") if word.startswith("--set=") else word if inside and "=" in word else ""
        if pair and (inside or pair != word) and not pair.startswith("-"):
            pairs.append(pair)
            waiting, inside = False, True
            continue
        if waiting:
            raise UntiedError("--set needs path.to.field=value, as in --set forward.lr=0.05")
        waiting = inside = word == "--set"
        rest += [] if waiting else [word]
    return rest[:-1], pairs


def comma_lists(kind: type[Any], arguments: list[str]) -> list[str]:
    """Write ``--rules bp,fa`` as ``--rules bp fa``, for every option that takes several; not inside of brackets."""
    several = {flag for flag in flags_of(kind, lists=True)}
    words: list[str] = []
    inside = False
    for word in arguments:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            inside = flag in several
            words += [flag, *split_commas(value)] if inside and equals else [word]
        else:
            words += split_commas(word) if inside else [word]
    return words


def split_commas(text: str) -> list[str]:
    """The parts between commas that stand in no brackets.

    >>> split_commas("bp,ia(amp=1, null=2),sa")
    ['bp', 'ia(amp=1, null=2)', 'sa']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()] or [text]


def has_rare(kind: type[Any]) -> bool:
    return any(rare for *_, rare in settings_of(kind))


def new_spelling(kind: type[Any], unknown: list[str]) -> str | None:
    """How a flag of version 0.1, with the words after it, is written now; None if it was none."""
    flag, equals, value = unknown[0].partition("=")
    path = flag.removeprefix("--").replace("-", "_")
    rare = {name for name, *_, is_rare in settings_of(kind) if is_rare}
    off = path.replace(".no_", ".").removeprefix("no_")
    if path not in rare and off in rare:
        return f"{off}=false"
    if path not in rare:
        return None
    after = [value] if equals else list(itertools.takewhile(lambda word: not word.startswith("--"), unknown[1:]))
    if path.endswith("arguments") and len(after) >= 2:
        return f"{path}.{after[0]}={after[1]}"
    return f"{path}={'true' if not after else after[0] if len(after) == 1 else '[' + ','.join(after) + ']'}"


def take_option(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Take ``--flag VALUE`` or ``--flag=VALUE`` out of the arguments."""
    for at, word in enumerate(arguments):
        if word.startswith(flag + "="):
            return arguments[:at] + arguments[at + 1 :], word.removeprefix(flag + "=")
        if word == flag:
            if at + 1 == len(arguments):
                needed = {
                    "--config": "a YAML file, such as the config.yaml of an earlier run",
                    "--resume": "the folder of the run or comparison that is to go on",
                }
                raise UntiedError(f"{flag} needs {needed[flag]}")
            return arguments[:at] + arguments[at + 2 :], arguments[at + 1]
    return arguments, None


def flags_of(kind: type[Any], prefix: str = "--", lists: bool = False) -> list[str]:
    """Every flag that a config dataclass gives rise to; or only those that take several values."""
    flags = ["--config", "--set"] if prefix == "--" and not lists else []
    for field in dataclasses.fields(kind):
        flag, nested = prefix + field.name.replace("_", "-"), nested_config(field)
        if nested is not None:
            flags += flags_of(nested, flag + ".", lists)
        elif not is_rare(kind, field.name) and (not lists or re.search(r"tuple\[(?!Path)", str(field.type))):
            flags.append(flag)
    return flags


@contextlib.contextmanager
def columns(width: int) -> Iterator[None]:
    """Let tyro write as wide as it wants, so that no word is broken."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def essence(box: str) -> str:
    """What tyro says in a box, in one line: without frame, title, and the help that follows."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in box.splitlines()]
    inside = [re.sub(r"^[│|]\s*|\s*[│|]$", "", line).strip() for line in lines if not re.match(r"^[╭╰+]", line)]
    framed = any(
        line.startswith("╭") for line in lines
    )  # where letters are ASCII there is no frame: the title is a line
    if not framed and len(inside) > 1 and re.fullmatch(r"[─-]{3,}", inside[1]):
        inside = inside[2:]
    text = []
    for line in inside:
        if re.match(r"^[─-]{3,}|^Argument helptext|^For full helptext", line):
            break
        text.append(line.strip())
    line = " ".join(" ".join(text).split())
    return (
        re.sub(r"^Error parsing (\w*Config|run|data|forward|backward): ", "", line) or "the command line cannot be read"
    )
