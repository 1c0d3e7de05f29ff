"""A small training run in one odd environment after the other: what the shell, the system or the folder does to it.

    python benchmarks/environments.py                       # all of them; some seconds each
    python benchmarks/environments.py --only stdout         # those whose name has this in it

Where the command can do its work it has to: exit code 0, and the results are those of an ordinary environment. Where it
cannot, it ends with the expected exit code and one line. There is never a traceback, and never more than a minute of
silence. What fails is printed with what it said, and the exit code is 1.

Where the environment matters to Python's own start or to imports, the command is a new process; elsewhere a fork of
this one, which has imported everything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import untied.__main__
from untied.lab.experiments import train  # noqa: F401
from untied.lab.showing import findings, plots, report  # noqa: F401

SOURCE = Path(untied.__file__).parent.parent
SMALL = ["data.name=synthetic", "data.synthetic_shape=[1,4,4]", "data.synthetic_classes=3", "data.synthetic_count=60",
         "data.batch_size=12", "epochs=2", "model=mlp-8", "devices.accelerator=cpu"]  # fmt: skip
PATIENCE = 180.0  # seconds; a machine may be busy
NOBODY = 65534


LATER = {"COLUMNS", "LINES", "TERM", "FORCE_COLOR", "NO_COLOR", "PATH", "TZ", "GIT_DIR", "SLURM_PROCID", "RANK",
         "LOCAL_RANK"}  # fmt: skip
"""Variables that nobody reads before the command begins."""


@dataclass(frozen=True)
class Place:
    """An environment.

    Attributes:
        variables: of the environment; None takes one away. python: options of the interpreter.
        folder: the name of the folder to work in. out: of the run; it is relative to that.
        before: called in the process before the command, as what sets limits, closes files or leaves root.
        ready: called with the folder before that. pipe: a shell command that reads the output.
        codes: what it may end with; where that is not 0 there is one line, unless nobody can read it.
        silent: whether its one line cannot be seen. empty: whether there are no variables at all.
        fresh: whether it matters to Python's start or to imports, where nothing else says so.
    """

    variables: dict[str, str | None] = field(default_factory=dict)
    python: tuple[str, ...] = ()
    folder: bytes = b"here"
    out: str | None = "run"
    before: Callable[[], None] = lambda: None
    ready: Callable[[bytes], None] = lambda folder: None
    pipe: str | None = None
    codes: tuple[int, ...] = (0,)
    silent: bool = False
    empty: bool = False
    fresh: bool = False

    def starts_python(self) -> bool:
        """Whether a fork of a process that has imported everything would not be the same."""
        return self.fresh or self.empty or bool(self.python) or not set(self.variables) <= LATER


def of(**variables: str | None) -> Place:
    return Place(variables)


def closing(*descriptors: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in descriptors] and None


def opening(path: str, *descriptors: int) -> Callable[[], None]:
    def before() -> None:
        for number in descriptors:
            os.dup2(os.open(path, os.O_RDWR), number)

    return before


def limiting(which: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (most, most))


def ignoring(*signals: signal.Signals) -> Callable[[], None]:
    return lambda: [signal.signal(number, signal.SIG_IGN) for number in signals] and None


def no_root() -> None:
    """File permissions say nothing to root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def read_only(folder: bytes) -> None:
    os.chmod(folder, 0o555)


def linked(folder: bytes) -> None:
    os.rename(folder, folder + b"-itself")
    os.symlink(folder + b"-itself", folder)


def gone() -> None:
    os.rmdir(os.getcwdb())


def masked() -> None:
    no_root()
    os.umask(0o777)


def filed(folder: bytes) -> None:
    Path(os.fsdecode(folder), "run").write_text("a file")


def looped(folder: bytes) -> None:
    Path(os.fsdecode(folder), "run").symlink_to("run")


def piped(folder: bytes) -> None:
    os.mkfifo(Path(os.fsdecode(folder), "run"))


def blocking() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


PLACES: dict[str, Place] = {
    "COLUMNS=0": of(COLUMNS="0"),
    "COLUMNS=1": of(COLUMNS="1"),
    "COLUMNS=1000000": of(COLUMNS="1000000"),
    "COLUMNS=-5": of(COLUMNS="-5"),
    "COLUMNS of letters": of(COLUMNS="wide", LINES="x"),
    "TERM=dumb": of(TERM="dumb"),
    "TERM unknown": of(TERM="no-such-terminal", FORCE_COLOR="1"),
    "no TERM": of(TERM=None),
    "NO_COLOR": of(NO_COLOR="1"),
    "LANG=C": of(LANG="C", LC_ALL="C"),
    "POSIX without UTF-8": of(LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "locale unknown": of(LC_ALL="xx_YY.nonsense"),
    "stdout in ASCII": of(PYTHONIOENCODING="ascii"),
    "stdout in ASCII, strict": of(PYTHONIOENCODING="ascii:strict"),
    "stdout in Latin-1": of(PYTHONIOENCODING="latin-1:strict"),
    "stdout in UTF-16": of(PYTHONIOENCODING="utf-16"),
    "hash seed 1": of(PYTHONHASHSEED="1"),
    "hash seed 4294967295": of(PYTHONHASHSEED="4294967295"),
    "python -O": Place(python=("-O",)),
    "python -OO": Place(python=("-OO",)),
    "python -X dev": Place(python=("-X", "dev")),
    "python -B -u": Place(python=("-B", "-u")),
    "no site packages of the user": Place(python=("-s",)),
    "byte code in a folder that cannot be": of(PYTHONPYCACHEPREFIX="/dev/null/x"),
    "no environment at all": Place(empty=True),
    "no PATH": of(PATH=None),
    "no HOME": of(HOME=None),
    "HOME missing": of(HOME="/nonexistent", XDG_CONFIG_HOME=None, XDG_CACHE_HOME=None),
    "HOME a device": of(HOME="/dev/null"),
    "another user, without a home": Place({"HOME": "/nonexistent"}, before=no_root),
    "TMPDIR missing": of(TMPDIR="/nonexistent"),
    "TMPDIR read-only": Place({"TMPDIR": "/usr"}, before=no_root),
    "MPLCONFIGDIR missing": of(MPLCONFIGDIR="/dev/null/x"),
    "MPLBACKEND of a screen": of(MPLBACKEND="TkAgg", DISPLAY=":99"),
    "MPLBACKEND unknown": of(MPLBACKEND="no-such-backend"),
    "TZ unknown": of(TZ="Nowhere/At_All"),
    "GIT_DIR missing": of(GIT_DIR="/nonexistent"),
    "OMP_NUM_THREADS=0": of(OMP_NUM_THREADS="0"),
    "OMP_NUM_THREADS of letters": of(OMP_NUM_THREADS="many"),
    "no GPU visible": of(CUDA_VISIBLE_DEVICES="-1"),
    "SLURM_PROCID of letters": Place({"SLURM_PROCID": "x"}, codes=(0, 2)),
    "RANK empty": Place({"RANK": ""}, codes=(0, 2)),
    "LOCAL_RANK of letters": Place({"LOCAL_RANK": "first"}, codes=(0, 2)),
    "stdin closed": Place(before=closing(0), fresh=True),
    "stdout closed": Place(before=closing(1), fresh=True),
    "stderr closed": Place(before=closing(2), fresh=True),
    "stdin, stdout and stderr closed": Place(before=closing(0, 1, 2), fresh=True),
    "stdout full": Place(before=opening("/dev/full", 1), codes=(2,)),
    "stderr full": Place(before=opening("/dev/full", 2)),
    "stdout and stderr full": Place(before=opening("/dev/full", 1, 2), codes=(2,), silent=True),
    "stdin of zeros": Place(before=opening("/dev/zero", 0)),
    "output to head -1": Place(pipe="head -1"),
    "output to a reader that is gone": Place(pipe="true"),
    "output to head -1, SIGPIPE ignored": Place(pipe="head -1", before=ignoring(signal.SIGPIPE)),
    "SIGINT and SIGHUP ignored, as under nohup": Place(before=ignoring(signal.SIGINT, signal.SIGHUP)),
    "SIGTERM ignored": Place(before=ignoring(signal.SIGTERM)),
    "SIGCHLD ignored": Place(before=ignoring(signal.SIGCHLD)),
    "signals blocked": Place(before=blocking),
    "48 open files": Place(before=limiting(resource.RLIMIT_NOFILE, 48)),
    "16 open files": Place(before=limiting(resource.RLIMIT_NOFILE, 16), codes=(0, 2)),
    "files of 2 KB at most": Place(before=limiting(resource.RLIMIT_FSIZE, 2048), codes=(2,)),
    "files of no bytes": Place(before=limiting(resource.RLIMIT_FSIZE, 0), codes=(2,), silent=True),  # its output is one
    "1.2 GB of addresses": Place(before=limiting(resource.RLIMIT_AS, 1_200_000_000), codes=(0, 1, 2), fresh=True),
    "3 GB of addresses": Place(before=limiting(resource.RLIMIT_AS, 3_000_000_000), codes=(0, 1, 2), fresh=True),
    "no core dumps, small stack": Place(before=limiting(resource.RLIMIT_STACK, 2**20)),
    "lowest priority": Place(before=lambda: os.nice(19) and None),
    "umask 777": Place(before=masked, codes=(2,)),
    "umask 0": Place(before=lambda: os.umask(0) and None),
    "folder behind a link": Place(ready=linked),
    "folder that is deleted": Place(before=gone, codes=(2,), fresh=True),
    "folder that is deleted, no --out": Place(before=gone, out=None, codes=(2,), fresh=True),
    "folder read-only": Place(ready=read_only, before=no_root, codes=(2,)),
    "folder read-only, no --out": Place(ready=read_only, before=no_root, out=None, codes=(2,)),
    "folder with spaces and quotes": Place(folder=b"a b 'c' \"d\" $e"),
    "folder with a newline": Place(folder=b"a\nb"),
    "folder that is no UTF-8": Place(folder=b"a\xff\xfeb"),
    "folder with markup": Place(folder=b"[red]a[bold] <b>&amp; %s {x}"),
    "folder of other letters": Place(folder="ærlig 学習 🙂".encode()),
    "folder with a long name": Place(folder=b"x" * 255),
    "run that is no UTF-8": Place(out="r\udcff"),
    "run with a newline": Place(out="r\nun"),
    "run with a name too long": Place(out="x" * 300, codes=(2,)),
    "run below a file": Place(out="/dev/null/run", codes=(2,)),
    "run in /proc": Place(out="/proc/run", codes=(2,)),
    "run where a file is": Place(ready=filed, codes=(2,)),
    "run where a link to itself is": Place(ready=looped, codes=(2,)),
    "run where a pipe is": Place(ready=piped, codes=(2,)),
}


def scores(run: Path) -> Any:
    """What has to be the same everywhere."""
    return json.loads((run / "results.json").read_text()), (run / "checkpoints/last.safetensors").read_bytes()


def started(place: Place, words: list[str], folder: bytes, env: dict[str, str], out: int, wrong: int) -> int:
    python = [sys.executable, *place.python, "-m", "untied", *words]
    return subprocess.Popen(python, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=wrong,
                            preexec_fn=place.before, start_new_session=True).pid  # fmt: skip


def forked(place: Place, words: list[str], folder: bytes, env: dict[str, str], out: int, wrong: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), out, wrong)):
            os.dup2(descriptor, number)
        os.closerange(3, 1000)  # above all the pipe that this process would read by itself
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        place.before()
        sys.argv = ["untied", *words]
        code = untied.__main__.main()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except OSError:  # as Python ends where its output cannot be written
        code = 120
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int | None:
    """The exit code, None of a process that did not end in time."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def tried(place: Place, root: Path) -> tuple[int | None, str, Path]:
    """The exit code, None where it does not end; what it said; and the run's folder."""
    folder = os.fsencode(root) + b"/" + place.folder
    os.mkdir(folder)
    os.chmod(root, 0o755)
    os.chmod(folder, 0o777)
    place.ready(folder)
    environment = {} if place.empty else dict(os.environ)
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    for name, value in ({"PYTHONPATH": path} | place.variables).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    words = ["train", "--set", *SMALL, *([] if place.out is None else ["--out", place.out])]
    said = root / "said"
    with said.open("wb") as file:
        reader = None
        if place.pipe is not None:
            reader = subprocess.Popen(place.pipe, shell=True, stdin=subprocess.PIPE, stdout=file)
        sink = file if reader is None or reader.stdin is None else reader.stdin
        start = started if place.starts_python() else forked
        pid = start(place, words, folder, environment, sink.fileno(), file.fileno())
        if reader is not None and reader.stdin is not None:
            reader.stdin.close()
        code = ended(pid)
        if reader is not None:
            reader.wait()
    return code, said.read_bytes().decode("utf-8", "replace"), Path(os.fsdecode(folder)) / (place.out or "")


def verdict(place: Place, code: int | None, said: str, run: Path, whole: Any) -> str:
    """What is wrong, in a few words; nothing if all is well."""
    if code is None:
        return "does not end"
    if code not in place.codes:
        return f"exit code {code}"
    if "Traceback" in said or "Exception ignored" in said:
        return "a traceback"
    if code == 0:
        try:
            return "" if scores(run) == whole else "another result"
        except OSError as error:
            return f"no result ({error})"
    if not place.silent and sum(line.startswith("untied: ") for line in said.splitlines()) != 1:
        return "not one line"
    return ""


def main() -> int:
    """Try every environment and print a table. Returns the exit code."""
    parser = argparse.ArgumentParser(description="A small run in one odd environment after the other.")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    places = {name: place for name, place in PLACES.items() if any(part in name for part in given.only)}
    failed, missed = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        code, said, run = tried(Place(), Path(tempfile.mkdtemp(dir=temporary)))
        assert code == 0, said
        whole = scores(run)
        os.chmod(temporary, 0o755)
        print("| environment | exit code | |\n|---|--:|---|")
        for name, place in places.items():
            began = time.monotonic()
            try:
                code, said, run = tried(place, Path(tempfile.mkdtemp(dir=temporary)))
            except OSError as error:  # as where another user may not read the interpreter
                missed += 1
                print(f"| {name} | | not possible here: {error.strerror} |", flush=True)
                continue
            wrong = verdict(place, code, said, run, whole)
            print(f"| {name} | {code} | {'fails: ' + wrong if wrong else 'passes'} |", flush=True)
            if wrong:
                failed.append(name)
                print(f"  after {time.monotonic() - began:.0f} s it had said: {said[-1500:]}", flush=True)
    print(f"\n{len(places)} environments, {len(failed)} failed, {missed} not possible here")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
