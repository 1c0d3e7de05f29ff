"""Studies at their edges: full disks, other people's files, passwords, GPUs, Ctrl-C, two commands at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from safetensors import SafetensorError
from sqlalchemy import text

from runs import DATA, command, pictures, silent, small, state, until
from untied.errors import UntiedError
from untied.lab.cli import main
from untied.lab.data import DataConfig
from untied.lab.devices.devices import single_device
from untied.lab.keeping import record
from untied.lab.keeping.processes import here, is_gone
from untied.lab.reading.secrets import without_password
from untied.lab.study import gpus, report
from untied.lab.study import queue as queues
from untied.lab.study import run as studies
from untied.lab.study import worker as workers
from untied.lab.study.config import CHANGEABLE, NoiseConfig, SearchConfig, TransferConfig
from untied.lab.study.queue import Queue
from untied.lab.study.run import join, named, open_folder, run, show
from untied.lab.study.storage import create, open_storage


def common(**changes):
    return small(**({"data": DataConfig(**{**DATA.__dict__, "validation": 0.2}), "angles": "weights"} | changes))


def transfer(out, **changes):
    return TransferConfig(
        **(
            {"run": common(), "rules": ("bp", "sa"), "models": ("mlp-8",), "seeds": 1, "workers": 0, "out": out}
            | changes
        )
    )


def rows(out):
    return json.loads((out / "results.json").read_text())


def test_a_full_disk_gives_no_run_up(tmp_path, monkeypatch):
    """The worker ends with a line, its run is put back, and the same command goes on."""
    real, calls = record.safetensors.torch.save_file, []

    def full(*given):
        calls.append(1)
        if len(calls) == 3:
            raise SafetensorError("I/O error: No space left on device")
        return real(*given)

    monkeypatch.setattr(record.safetensors.torch, "save_file", full)
    with pytest.raises(UntiedError, match="No space left"):
        run(transfer(tmp_path / "s"), silent())
    assert run(transfer(tmp_path / "s"), silent()) == 0
    assert [(r["failure"], r["attempts"]) for r in rows(tmp_path / "s")] == [(None, 2), (None, 1)]


@pytest.mark.parametrize("kind", ["search", "transfer", "noise"])
def test_a_study_of_which_nothing_has_ended_is_drawn(kind, tmp_path):
    f = record.RunFolder.create(tmp_path / "x", {"name": "n"})
    report.write(f, kind, [], 3, silent())


@pytest.mark.parametrize("kind", ["transfer", "noise"])
def test_a_study_of_which_all_was_refused_ends(kind, tmp_path):
    c = (TransferConfig if kind == "transfer" else NoiseConfig)(
        run=common(),
        rules=("bp",),
        models=("mlp-8x",),
        seeds=1,
        workers=0,
        out=tmp_path / "s",
        **({"sigmas": (0.0,)} if kind == "noise" else {}),
    )
    assert run(c, silent()) == 0
    assert rows(tmp_path / "s")[0]["failure"]


def test_nearly_equal_noise_is_another_run():
    c = NoiseConfig(run=common(), rules=("bp",), models=("mlp-8",), seeds=1, sigmas=(0.1, 0.10000001))
    assert len(c.plan(c.define())) == 2


def test_labels_that_look_alike_are_other_runs():
    c = transfer(None, rules=("amp + decay", "amp+decay"))
    d = c.define()
    assert len(c.plan(d)) == 2


def test_a_password_in_the_query_is_not_shown():
    for url in ("postgresql://h/d?user=u&password=secret", "postgresql:/u:secret@h/d", "postgresql//u:secret@h/d",
                "postgresql:///u:secret@h/d", "postgresql:u:secret@h/d", "u:secret@h/d", "mysql://u:a@secret@h/d",
                "postgresql://u@h/d?sslmode=on&sslpassword=secret", "mysql://h/d?Passwd=secret;x=1",
                "'postgresql://u:secret@h/d'"):  # fmt: skip
        shown = without_password(url)
        assert "secret" not in shown and "***" in shown, url
    for url in ("sqlite:////a/b@c.db", "journal:/a/b", "postgresql://u@h/d?sslkey=/a"):
        assert without_password(url) == url


def test_a_study_that_was_stopped_is_the_one_that_was_not(tmp_path, monkeypatch):
    assert run(transfer(tmp_path / "a"), silent()) == 0
    real, n = workers.Run.look, []

    def look(self):
        n.append(1)
        if len(n) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(workers.Run, "look", look)
    assert run(transfer(tmp_path / "b"), silent()) == 143
    monkeypatch.undo()
    assert run(transfer(tmp_path / "b"), silent()) == 0
    for r in rows(tmp_path / "a"):
        n = r["results"][0]["folder"]
        assert state(tmp_path / "a/runs" / n) == state(tmp_path / "b/runs" / n)
    ra, rb = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert [r["run"] for r in ra] == [r["run"] for r in rb]


def test_a_pruned_run_is_an_ordinary_run_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: self.number == 1)
    c = SearchConfig(run=common(), trials=3, workers=0, out=tmp_path / "s")
    assert run(c, silent()) == 0
    r = rows(tmp_path / "s")
    assert [x["state"] for x in r] == ["complete", "pruned", "complete"]
    f = tmp_path / "s/runs" / r[1]["results"][0]["folder"]
    assert main(["train", "--resume", str(f)]) == 0
    assert main(["evaluate", str(f), "--accelerator", "cpu"]) == 0
    assert main(["report", str(f)]) == 0
    done = tmp_path / "s/runs" / r[0]["results"][0]["folder"]
    assert main(["evaluate", str(done), "--accelerator", "cpu"]) == 0
    assert main(["report", str(done)]) == 0


def test_a_worker_of_a_study_that_has_ended(tmp_path, capsys):
    c = named(transfer(tmp_path / "s"))
    run(c, silent())
    assert main(["study", "worker", "--study", c.name, "--storage", c.storage]) == 0


def test_a_folder_that_is_something_else_stays(tmp_path):
    d = tmp_path / "s/runs/bp-mlp-8-seed0"
    d.mkdir(parents=True)
    (d / "thesis.tex").write_text("mine")
    with pytest.raises(UntiedError, match=r"has thesis\.tex in it"):
        run(transfer(tmp_path / "s"), silent())
    assert (d / "thesis.tex").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["study"],
        ["study", "bogus"],
        ["study", "run", "missing.yaml"],
        ["search", "--space", "wn"],
        ["study", "show"],
        ["study", "show", "nowhere"],
        ["study", "worker", "--study", "x"],
        ["search", "--run.epochs", "0"],
        ["transfer", "--models"],
        ["noise", "--sigmas", "-1"],
    ],
)
def test_a_mistake_is_one_line(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNTIED_STORAGE", raising=False)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "unexpected" not in err


def test_a_file_that_is_no_study(capsys, tmp_path):
    (tmp_path / "f.yaml").write_text("kind: serch\n")
    assert main(["study", "run", str(tmp_path / "f.yaml")]) == 2
    (tmp_path / "g.yaml").write_text("kind: search\ntrails: 3\n")
    assert main(["study", "run", str(tmp_path / "g.yaml")]) == 2
    err = capsys.readouterr().err.splitlines()
    assert "kind is 'serch'" in err[0] and "did you mean 'trials'" in err[1] and len(err) == 2


def test_a_study_goes_on_from_its_own_configuration(tmp_path):
    run(transfer(tmp_path / "s"), silent())
    assert main(["study", "run", str(tmp_path / "s/config.yaml")]) == 0


def test_a_journal_is_a_database(tmp_path):
    assert run(transfer(tmp_path / "s", storage=f"journal:{tmp_path / 'j.log'}"), silent()) == 0


def test_several_seeds_count_as_their_mean(tmp_path):
    c = SearchConfig(run=common(seed=3), trials=2, seeds=2, workers=0, prune="none", out=tmp_path / "s")
    run(c, silent())
    for r in rows(tmp_path / "s"):
        assert [x["folder"][-6:] for x in r["results"]] == ["-seed3", "-seed4"]
        assert r["value"] == pytest.approx(sum(x["value"] for x in r["results"]) / 2)


def test_a_run_that_has_ended_is_not_trained_again(tmp_path, monkeypatch):
    c = named(transfer(tmp_path / "s", rules=("bp",)))
    run(c, silent())
    before = rows(tmp_path / "s")
    (tmp_path / "s/study.db").unlink()
    monkeypatch.setattr(workers.Run, "train", None)
    run(c, silent())
    assert [r["value"] for r in rows(tmp_path / "s")] == [r["value"] for r in before]


def two_gpus(tmp_path, monkeypatch):
    b = tmp_path / "bin"
    b.mkdir()
    s = b / "nvidia-smi"
    s.write_text("#!/bin/sh\necho '0, GPU-aa'\necho '1, GPU-bb'\n")
    s.chmod(0o755)
    monkeypatch.setenv("PATH", f"{b}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


GPU = "from untied.lab.study.gpus import claim_gpu; print(claim_gpu('auto'), flush=True); input()"


def test_a_gpu_has_one_worker(tmp_path, monkeypatch):
    two_gpus(tmp_path, monkeypatch)
    ps = []
    got = []
    for _ in range(2):
        p = subprocess.Popen([sys.executable, "-c", GPU], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ps.append(p)
        got.append(p.stdout.readline().strip())
    assert got == ["GPU-aa", "GPU-bb"]
    e = subprocess.run([sys.executable, "-c", GPU], input="\n", capture_output=True, text=True).stderr
    assert "all 2 GPUs" in e
    assert gpus.claim_gpu("cpu") is None
    ps[0].kill()
    ps[0].wait()
    p = subprocess.Popen(
        [sys.executable, "-c", GPU],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0"},
    )
    assert p.stdout.readline().strip() == "GPU-aa"
    for x in [*ps, p]:
        x.kill()
        x.wait()
        x.stdin.close()
        x.stdout.close()


def test_workers_share_a_gpu_where_that_is_asked_for(tmp_path, monkeypatch):
    two_gpus(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    third = GPU.replace("'auto'", "'auto', 3")
    command, pipe = [sys.executable, "-c", third], subprocess.PIPE
    ps = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    try:
        assert [p.stdout.readline().strip() for p in ps] == ["GPU-aa"] * 3
        for code in (third, GPU):  # a fourth, and one that shares with nobody
            e = subprocess.run([sys.executable, "-c", code], input="\n", capture_output=True, text=True).stderr
            assert "all 1 GPUs" in e and "--workers-per-gpu" in e
        for p in ps[:2]:
            p.communicate("\n")
        e = subprocess.run([sys.executable, "-c", GPU], input="\n", capture_output=True, text=True).stderr
        assert "all 1 GPUs" in e
    finally:
        ps[2].communicate("\n")
    assert subprocess.run([sys.executable, "-c", GPU], input="\n", capture_output=True, text=True).stdout == "GPU-aa\n"


def test_a_silent_worker_is_taken_for_dead_as_often_as_retries_allow(tmp_path, monkeypatch):
    c = named(transfer(tmp_path / "s", rules=("bp",), retries=1))
    d = c.define()
    study, _ = create(open_storage(c.storage), c.name, d, CHANGEABLE)
    now = [0.0]
    monkeypatch.setattr(queues.time, "monotonic", lambda: now[0])
    qu = Queue(study, c.plan(d), 10.0, 1)
    for i in range(2):
        qu.fill()
        claim = qu.take()
        assert claim.attempt == i
        study._storage.set_trial_user_attr(
            claim.trial._trial_id, "worker", {"host": "elsewhere", "space": "", "pid": 1, "began": "1"}
        )
        assert qu.bury() == 0
        for _ in range(4):
            now[0] += 4
            qu.bury()
        assert qu.progress().running == 0
    qu.fill()
    assert qu.progress().refused == 1 and qu.take() is None


def test_a_worker_of_another_machine_of_this_name_is_not_taken_for_dead(tmp_path):
    """Containers and clones share host names, and numbers of processes: only the boot tells them apart."""
    c = named(transfer(tmp_path / "s", rules=("bp",)))
    d = c.define()
    study, _ = create(open_storage(c.storage), c.name, d, CHANGEABLE)
    qu = Queue(study, c.plan(d), 10.0, 1)
    qu.fill()
    claim = qu.take()
    number = 2**22 + 1  # no process of this machine has it
    for boot, dead in (("another", 0), (here()["boot"], 1)):
        claim.trial.set_user_attr("worker", here() | {"boot": boot, "pid": number})
        assert qu.bury() == dead


@pytest.mark.slow
def test_two_workers_and_ctrl_c(tmp_path):
    words = [
        "transfer",
        "--workers",
        "2",
        "--rules",
        "bp",
        "sa",
        "--models",
        "mlp-16",
        "--seeds",
        "3",
        "--run.epochs",
        "40",
        "--out",
        str(tmp_path / "s"),
    ]
    p = command(*words)
    end = time.monotonic() + 120
    while not list((tmp_path / "s/runs").glob("*/checkpoints/last.safetensors")) and time.monotonic() < end:
        assert p.poll() is None, p.communicate()
        time.sleep(0.05)
    p.send_signal(signal.SIGINT)
    so, se = p.communicate(timeout=120)
    assert p.returncode == 130, (p.returncode, so, se)
    p = command(*words)
    so, se = p.communicate(timeout=300)
    assert p.returncode == 0, (so, se)
    r = rows(tmp_path / "s")
    assert len({x["run"] for x in r}) == len(r) == 6 and all(x["state"] == "complete" for x in r)


@pytest.mark.slow
def test_workers_end_with_their_supervisor(tmp_path):
    """Also with one that was killed: the run is saved and put back."""
    c = named(transfer(tmp_path / "s"))
    words = ["transfer", "--rules", "bp", "--models", "mlp-16", "--seeds", "1", "--run.epochs", "4000"]
    p = command(*words, "--out", str(tmp_path / "s"))
    until(lambda: list((tmp_path / "s/runs").glob("*/checkpoints/last.safetensors")), p)
    study = optuna.load_study(storage=open_storage(c.storage), study_name=c.name.replace("synthetic", "digits"))
    [trial] = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    p.kill()
    p.communicate()
    end = time.monotonic() + 120
    while not is_gone(trial.user_attrs["worker"]):
        assert time.monotonic() < end
        time.sleep(0.1)
    [same] = [t for t in study.get_trials() if t.number == trial.number]
    assert same.user_attrs["released"]


def test_ctrl_c_while_the_database_is_away_ends_it(tmp_path, monkeypatch):
    real = workers.Run.look

    def away(*given, **named):
        raise OSError("the cable is out")

    def look(self):
        for name in ("get_trials", "tell"):
            monkeypatch.setattr(optuna.Study, name, away)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(workers.Run, "look", look)
    console = silent()
    began = time.monotonic()
    assert run(transfer(tmp_path / "s"), console) == 143
    assert time.monotonic() - began < 60
    assert "does not answer: the cable is out" in console.file.getvalue()


@pytest.mark.slow
def test_same_command_twice_at_once(tmp_path):
    words = [
        "transfer",
        "--workers",
        "0",
        "--rules",
        "bp",
        "sa",
        "--models",
        "mlp-16",
        "--seeds",
        "3",
        "--run.epochs",
        "10",
        "--out",
        str(tmp_path / "s"),
    ]
    ps = [command(*words) for _ in range(2)]
    out = [(p.communicate(timeout=300), p.returncode) for p in ps]
    assert all(code == 0 for _, code in out), out
    r = rows(tmp_path / "s")
    assert len({x["run"] for x in r}) == len(r) == 6


def test_show_with_a_password(tmp_path, monkeypatch):
    """config.yaml keeps no password: does the folder still lead back to the database with UNTIED_STORAGE set?"""
    monkeypatch.setenv("UNTIED_STORAGE", "postgresql://u:secret@127.0.0.1:1/d")
    open_folder(tmp_path / "s", named(transfer(tmp_path / "s", storage="postgresql://u:secret@127.0.0.1:1/d")).define())
    seen = []
    monkeypatch.setattr(
        studies, "open_storage", lambda url: seen.append(url) or (_ for _ in ()).throw(UntiedError("x"))
    )
    with pytest.raises(UntiedError):
        show(tmp_path / "s", None, None, silent())
    assert "secret" in seen[0], seen


def test_a_folder_that_another_command_makes_in_this_moment(tmp_path, monkeypatch):
    definition = named(transfer(tmp_path / "s")).define()
    real = Path.iterdir

    def iterdir(folder):
        monkeypatch.undo()
        open_folder(tmp_path / "s", definition)
        (tmp_path / "s/results.json").write_text("[]")
        return real(folder)

    (tmp_path / "s").mkdir()
    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert open_folder(tmp_path / "s", definition).config()["kind"] == "transfer"


def test_a_command_that_was_killed_before_it_had_begun(tmp_path):
    (tmp_path / "s").mkdir()
    for name in ("environment.json", ".config.yaml-1.partial"):
        (tmp_path / "s" / name).touch()
    assert run(transfer(tmp_path / "s"), silent()) == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    with pytest.raises(UntiedError, match="not empty and does not hold a study"):
        run(transfer(tmp_path / "other"), silent())


def failing(monkeypatch, rules=("bp", "sa")):
    real = workers.Run.train

    def train(self, report):
        if self.config.rule in rules:
            raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")
        return real(self, report)

    monkeypatch.setattr(workers.Run, "train", train)


def test_an_unexpected_error_ends_its_run_and_not_the_worker(tmp_path, monkeypatch):
    """The run is tried as often as if its worker had died, and says why it was given up."""
    failing(monkeypatch, rules=("bp",))
    assert run(transfer(tmp_path / "s", retries=1), silent()) == 0
    bp, sa = rows(tmp_path / "s")
    assert bp["failure"] == "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB" and bp["attempts"] == 2
    assert sa["state"] == "complete"
    assert "in train" in (tmp_path / "s/runs/bp-mlp-8-seed0/traceback.txt").read_text()


def test_a_worker_in_which_every_run_fails_ends(tmp_path, monkeypatch):
    failing(monkeypatch)
    study = transfer(tmp_path / "s", seeds=2)
    with pytest.raises(
        UntiedError, match=r"3 runs in a row could not be trained; the last, \S+: RuntimeError: CUDA out"
    ):
        run(study, silent())
    monkeypatch.undo()
    assert run(study, silent()) == 0
    assert [row["failure"] for row in rows(tmp_path / "s")] == [None] * 4


@pytest.mark.parametrize("what", ["data", "device"])
def test_a_machine_without_what_the_runs_need_gives_them_back(what, tmp_path, monkeypatch):
    """A worker there ends with a line, and the run that it took is trained elsewhere."""
    data = DataConfig("folder", root=pictures(tmp_path / "data"), validation=0.25, batch_size=4)
    config = named(transfer(tmp_path / "s", rules=("bp",), run=common(data=data)))
    queue = Queue(create(open_storage(config.storage), config.name, config.define(), CHANGEABLE)[0],
                  config.plan(config.define()), 10.0, 0)  # fmt: skip
    if what == "device":
        monkeypatch.setattr(workers, "fabric_for", lambda config: single_device("cuda:99"))
    with pytest.raises(UntiedError, match=r"cannot be trained here, bp-mlp-8-seed0 was put back: .*(nowhere|cuda:99)"):
        join(config.storage, config.name, root=tmp_path / "nowhere" if what == "data" else None, console=silent())
    monkeypatch.undo()
    assert queue.progress().refused == 0
    assert join(config.storage, config.name, console=silent()) == 0
    assert queue.progress().complete == 1


def of_another_optuna(url):
    with open_storage(url).engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = 'v99'"))


def of_another_untied(url):
    optuna.create_study(storage=open_storage(url), study_name="s").set_user_attr("untied", {"format": 99})


def of_another_program(url):
    optuna.create_study(storage=open_storage(url), study_name="s")


def no_database(url):
    Path(url.removeprefix("sqlite:///")).write_text("Dear diary, " * 99)


@pytest.mark.parametrize("make, words", [
    (of_another_optuna, "is of another version of Optuna"), (no_database, "file is not a database"),
    (of_another_untied, "has format 99, this version of untied has 1"),
    (of_another_program, "was not made by untied: choose another --name"),
])  # fmt: skip
def test_somebody_elses_database_is_one_line(make, words, tmp_path, capsys):
    url = f"sqlite:///{tmp_path / 's.db'}"
    make(url)
    assert main(["study", "worker", "--storage", url, "--study", "s"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize("url, package", [("postgresql://u@h/d", "psycopg[binary]"), ("mysql://u@h/d", "pymysql")])
def test_a_driver_that_is_not_installed_is_one_line(url, package, monkeypatch, capsys):
    for name in ("pymysql", "psycopg"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert main(["study", "worker", "--storage", url, "--study", "s"]) == 2
    said = capsys.readouterr().err
    assert "needs a driver that cannot be imported" in said and f"run pip install '{package}'" in said
    assert said.count("\n") == 1


def test_a_study_whose_maker_was_killed_before_it_said_what_it_is(tmp_path):
    """Between the two writes that make a study: the same command goes on, and others' studies stay refused."""
    storage = open_storage(f"sqlite:///{tmp_path / 's.db'}")
    optuna.create_study(storage=storage, study_name="s", direction="maximize")
    study, new = create(storage, "s", {"kind": "search"}, ())
    assert not new and study.user_attrs["untied"]["definition"] == {"kind": "search"}
    assert create(storage, "s", {"kind": "search"}, ())[1] is False
    optuna.create_study(storage=storage, study_name="other", direction="maximize").set_user_attr("theirs", 1)
    with pytest.raises(UntiedError, match="was not made by untied"):
        create(storage, "other", {"kind": "search"}, ())


def test_a_study_of_another_task_is_refused_before_it_begins(capsys, tmp_path, monkeypatch):
    """What data of one's own are for is known once they are there: before a folder, a database or a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n\n\ndef load():\n"
        "    x = torch.randn(60, 4)\n    return TensorDataset(x, x[:, :1]), TensorDataset(x, x[:, :1])\n\n\n"
        "def said():\n    return dict(zip(('train', 'test'), load()), task='regression')\n"
    )
    model, rest = ["--run.model", "mlp-8"], ["--models", "mlp-8", "--rules", "bp"]
    for words in (["search", *model], ["transfer", *rest], ["noise", *rest]):
        for function, reason in (("load", "task classification needs"), ("said", "is for regression, but studies")):
            data = ["--run.data.name", f"sets.py:{function}", "--run.data.batch-size", "8", "--workers", "0"]
            assert main([*words, *data]) == 2
            err = capsys.readouterr().err
            assert reason in err and f"sets.py:{function}" in err and err.count("\n") == 1
            assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["sets.py"]
