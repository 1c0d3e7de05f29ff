"""The database of a study, and patience with it."""

from __future__ import annotations

import random
import sqlite3
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from untied.errors import UntiedError
from untied.lab.reading.edges import shown, validated
from untied.lab.reading.secrets import redacted, without_password
from untied.lab.study.journal import open_journal
from untied.lab.study.order import Study

__all__ = ["NoAnswer", "NoStudy", "create", "load", "open_storage", "patiently"]

optuna.logging.set_verbosity(optuna.logging.ERROR)  # we say ourselves what happens
warnings.filterwarnings("ignore", category=ExperimentalWarning)

FORMAT = 1
"""Of what we keep in a study's attributes; a study of another one is refused."""
DRIVERS = {"postgresql+psycopg:": "psycopg[binary]", "mysql+pymysql:": "pymysql"}


class WriteAhead(sqlite3.Connection):
    """A connection to SQLite that appends what it writes to a log: some 20 ms less for each, and readers do not wait.

    A process that is killed loses nothing. A machine that loses power may lose the last seconds, never the database; a
    run whose end is lost is taken again, and found trained in its folder.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        with suppress(sqlite3.OperationalError):  # where another process is just making the file, or it is read-only
            self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


class SQLite(RDBStorage):
    """SQLite has no SELECT ... FOR UPDATE: two workers could both find a trial waiting, and both take it."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        session = self.scoped_session()  # of this thread, as Optuna's own next statements have it
        try:
            session.execute(text("BEGIN IMMEDIATE"))
        except SQLAlchemyError:
            session.close()
            raise
        return super().set_trial_state_values(trial_id, state, values)


WAITING: dict[str, dict[str, Any]] = {  # seconds, but for tcp_user_timeout: no call may hang on a dead connection
    "sqlite": {"timeout": 60, "factory": WriteAhead},
    "postgresql+psycopg": {
        "connect_timeout": 10, "tcp_user_timeout": 30_000, "keepalives_idle": 10, "keepalives_interval": 5,
        "keepalives_count": 4,
    },
    "mysql+pymysql": {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60},
}  # fmt: skip
MAKING = 30.0  # seconds that another process may take to make the tables
LOST = (StorageInternalError, SQLAlchemyError, OSError)
"""What a database that cannot be reached raises."""

T = TypeVar("T")


class NoStudy(UntiedError):
    """The database has no study of this name."""


class Nameless(UntiedError):
    """A study of this name says nothing of itself."""


class NoAnswer(UntiedError):
    """The database did not answer for longer than a worker waits."""


def open_storage(url: str) -> BaseStorage:
    """Open a database: sqlite:///FILE, journal:FILE, postgresql://..., mysql://...

    Raises:
        UntiedError: it cannot be opened; the message does not show a password.
    """
    shown = without_password(url)
    try:
        if url.startswith("journal:"):
            return open_journal(Path(url.removeprefix("journal:")))
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).absolute().parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"pool_pre_ping": True}  # a connection that was cut is replaced
        address = with_driver(url)
        options["connect_args"] = next((args for name, args in WAITING.items() if address.startswith(name)), {})
        kind = SQLite if address.startswith("sqlite") else RDBStorage
        until = time.monotonic() + MAKING
        while True:
            try:
                return kind(address, engine_kwargs=options)
            except (IntegrityError, OperationalError, ProgrammingError) as error:
                made = any(words in reason(error).lower() for words in ("already exists", "unique", "duplicate"))
                if not made or time.monotonic() > until:
                    raise
                time.sleep(random.uniform(0.2, 1.0))  # another process makes the tables in this moment
    except ArgumentError as error:
        raise UntiedError(
            f"cannot read the storage {shown}: possible are sqlite:///FILE, journal:FILE, "
            "postgresql://USER:PASSWORD@HOST/DATABASE, mysql://USER:PASSWORD@HOST/DATABASE"
        ) from error
    except ImportError as error:
        wanted = next((pip for name, pip in DRIVERS.items() if with_driver(url).startswith(name)), None)
        hint = f"; run  pip install '{wanted}'" if wanted else ""
        raise UntiedError(f"storage {shown} needs a driver that cannot be imported: {reason(error)}{hint}") from error
    except LOST as error:
        raise UntiedError(f"cannot open the storage {shown}: {reason(error)}") from error
    except RuntimeError as error:  # another version's tables
        raise UntiedError(f"the storage {shown} is of another version of Optuna: {reason(error)}") from error


def with_driver(url: str) -> str:
    """The URL with the driver that our extras install, where it names none."""
    for scheme, full in (
        ("postgres", "postgresql+psycopg"),
        ("postgresql", "postgresql+psycopg"),
        ("mysql", "mysql+pymysql"),
    ):
        if url.startswith(scheme + "://"):
            return full + url.removeprefix(scheme)
    return url


def reason(error: BaseException) -> str:
    """The innermost of what went wrong, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(getattr(error, "orig", None) or error).split()) or type(error).__name__
    return redacted(words.partition(" (Background on")[0])[:300]


def create(
    storage: BaseStorage, name: str, definition: dict[str, Any], changeable: tuple[str, ...]
) -> tuple[optuna.Study, bool]:
    """Make a study, or open the one of this name. Returns it, and whether it is new.

    Args:
        definition: what the study is, as plain values that JSON can hold.
        changeable: keys of it that may differ from the study that is there; they are replaced then.

    Raises:
        UntiedError: the one there is another study, or the database cannot be written.
    """
    try:
        optuna.create_study(storage=storage, study_name=name, direction="maximize")
        study: optuna.Study = Study(name, storage)
        study.set_user_attr("untied", {"format": FORMAT, "definition": definition})
        return study, True
    except DuplicatedStudyError:
        pass
    except LOST as error:
        raise UntiedError(f"cannot write the study {name}: {reason(error)}") from error
    try:
        study, there = load(storage, name)
    except Nameless:  # whoever made it was killed before it had said what it is
        study, there = Study(name, storage), definition
        if study.user_attrs or study.get_trials(deepcopy=False) or study.direction.name != "MAXIMIZE":
            raise
        patiently(lambda: study.set_user_attr("untied", {"format": FORMAT, "definition": definition}), seconds=0)
    for key in dict.fromkeys([*definition, *there]):
        if key not in changeable and definition.get(key) != there.get(key):
            where, its, mine = _difference(key, there.get(key), definition.get(key))
            raise UntiedError(
                f"the study {name} is there already, with another {where}: {its}; now given: {mine}. "
                "Choose another --name, or give what it was made with"
            )
    if definition != there:
        try:
            study.set_user_attr("untied", {"format": FORMAT, "definition": definition})
        except LOST as error:
            raise UntiedError(f"cannot write the study {name}: {reason(error)}") from error
    return study, False


def load(storage: BaseStorage, name: str) -> tuple[optuna.Study, dict[str, Any]]:
    """A study of ours by name, and its definition.

    Raises:
        UntiedError: there is none, or it is another program's, or of another version, or damaged.
    """
    try:
        study = Study(name, storage)
    except KeyError:
        known = optuna.get_all_study_names(storage)
        raise NoStudy(f"there is no study {name!r} in this storage: it has {', '.join(known) or 'none'}") from None
    except LOST as error:
        raise UntiedError(f"cannot read the study {name}: {reason(error)}") from error
    ours = patiently(lambda: study.user_attrs, seconds=0).get("untied")
    if ours is None:  # another process may have made the study in this moment
        time.sleep(1.0)
        ours = patiently(lambda: study.user_attrs, seconds=0).get("untied")
    if not isinstance(ours, dict):
        raise Nameless(f"the study {name!r} was not made by untied: choose another --name")
    if ours.get("format") != FORMAT:
        raise UntiedError(
            f"the study {name!r} has format {ours.get('format')}, this version of untied has {FORMAT}: "
            "go on with the version that made it, or choose another --name"
        )
    _check(study, storage, ours.get("definition"))
    return study, ours["definition"]


class Attributes(BaseModel):
    """What we note with a trial, as far as something is made of it."""

    key: str | None = None
    attempt: Annotated[int, Field(strict=True, ge=0)] = 0
    before: tuple[str, bool] | None = None
    folder: str | None = None
    worker: dict[str, Any] | None = None
    results: list[dict[str, Any]] = []


def _check(study: optuna.Study, storage: BaseStorage, definition: Any) -> None:
    """Raise UntiedError if a study's database does not hold what we write there."""
    what = f"the study {study.study_name}"
    try:
        if not isinstance(definition, dict):
            raise UntiedError(f"{what}: its definition is {shown(definition)}")
        # not through the study, whose cache has one trial for each number
        trials = patiently(lambda: storage.get_all_trials(study._study_id, deepcopy=False), seconds=0)
        for trial in trials:
            validated(Attributes, trial.user_attrs, f"{what}, trial {trial.number}")
        if len({trial.number for trial in trials} - {None}) < len(trials):
            raise UntiedError(f"{what}: two of its trials have one number, or one has none")
    except NoAnswer:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UntiedError(
            f"{' '.join(str(error).split())}: its database is damaged: untied study recover FOLDER  makes it again "
            "from the folders of its runs"
        ) from error


def _difference(key: str, there: Any, here: Any) -> tuple[str, str, str]:
    """The first place where two nested values differ, and what is there."""
    if isinstance(there, dict) and isinstance(here, dict):
        for inner in dict.fromkeys([*there, *here]):
            if there.get(inner) != here.get(inner):
                return _difference(f"{key}.{inner}", there.get(inner), here.get(inner))
    return key, repr(there)[:80], repr(here)[:80]


def patiently(
    call: Callable[[], T], seconds: float = 900.0, say: Callable[[str], None] = lambda line: None,
    stopped: Callable[[], bool] = lambda: False,
) -> T:  # fmt: skip
    """What a call to the database gives, trying again while it cannot be reached.

    Args:
        seconds: to go on trying. say: for a line, at the first failure. stopped: whether to give up now.

    Raises:
        NoAnswer: it could not be reached for so long.
    """
    began, pause, said = time.monotonic(), 0.5, False
    while True:
        try:
            return call()
        except LOST as error:
            if stopped() or time.monotonic() - began + pause > seconds:
                raise NoAnswer(f"the study's database does not answer: {reason(error)}") from error
            if not said:
                say(f"the study's database does not answer ({reason(error)}); trying again")
                said = True
            until = time.monotonic() + pause
            while time.monotonic() < until and not stopped():
                time.sleep(min(0.2, pause))
            pause = min(2 * pause, 15.0)
