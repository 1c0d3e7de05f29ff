"""Many runs over a shared database: study run FILE, study worker, study show, study recover."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from untied.errors import UntiedError
from untied.lab.arguments import read_config


@dataclass(frozen=True)
class Running:
    """Start the study that a file describes, or go on with it."""

    file: Annotated[Path, tyro.conf.Positional]
    """A YAML file with the study's kind (search, transfer or noise) and the fields of that command, or a study folder's
    config.yaml."""
    workers: int | None = None
    """How many processes of this machine train. By default it is as the file says. 0 trains in this one."""
    storage: str | None = None
    """The database. By default it is as the file says."""
    out: Path | None = None
    """The study's folder. By default it is as the file says."""


@dataclass(frozen=True)
class Joining:
    """Take runs from a study's database and train them, until all have ended."""

    study: str
    """The study's name."""
    storage: str | None = None
    """The URL of the database. By default it is the environment variable UNTIED_STORAGE."""
    out: Path | None = None
    """The study's folder on this machine, for the run folders. Workers that share it can go on with each other's
    runs."""
    data_root: Path | None = None
    """Where the data lies on this machine. By default it is where the study says."""
    threads: int | None = None
    """How many threads PyTorch has. By default it chooses."""
    wait: bool = True
    """Whether this worker stays while others train the last runs, in case one of them is lost."""
    quiet: bool = False
    """Whether it says only what goes wrong."""
    leash: bool = False
    """Whether it stops once standard input is closed, which happens when the program that started it ends."""


@dataclass(frozen=True)
class Showing:
    """Print how far a study is, who trains what, and the best so far."""

    folder: Annotated[Path | None, tyro.conf.Positional] = None
    """The study's folder. Without one, --storage and --study name the study."""
    storage: str | None = None
    """The URL of the database."""
    study: str | None = None
    """The study's name."""


@dataclass(frozen=True)
class Recovering:
    """Make a study's damaged or lost database again, from the folders of its runs."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The study's folder."""
    storage: str | None = None
    """The database that is written. By default it is the one of before."""


def run(words: list[str]) -> int:
    """Run the command that the next word names."""
    word, rest = (words[0], words[1:]) if words else ("", [])
    if word == "run":
        c = read_config(Running, rest, "untied study run")
        from untied.lab.study import run as studies

        given = {k: v for k in ("workers", "storage", "out") if (v := getattr(c, k)) is not None}
        return studies.run(dataclasses.replace(studies.read_study(c.file), **given))
    if word == "worker":
        j = read_config(Joining, rest, "untied study worker")
        from untied.lab.study import run as studies

        return studies.join(j.storage, j.study, j.out, j.data_root, j.threads, j.wait, j.quiet, j.leash)
    if word == "show":
        s = read_config(Showing, rest, "untied study show")
        from untied.lab.study import run as studies

        return studies.show(s.folder, s.storage, s.study)
    if word == "recover":
        r = read_config(Recovering, rest, "untied study recover")
        from untied.lab.study.recover import recover

        return recover(r.folder, r.storage)
    if word in ("-h", "--help", "help"):
        print("usage: untied study run FILE | worker --study NAME | show FOLDER | recover FOLDER  (each with --help)")
        return 0
    raise UntiedError(f"untied study {word or '(nothing)'}: possible are run FILE, worker, show, recover FOLDER")
