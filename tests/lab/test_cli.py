"""The command line: what a user types, and the one line that a mistake gives."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

import untied
from untied.lab import arguments
from untied.lab.cli import main


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["comprae"], ["unknown command 'comprae'", "'compare'"]),
        (["compare", "--epoch", "3"], ["unknown option '--epoch'", "--epochs"]),
        (["compare", "--data.nam", "digits"], ["unknown option '--data.nam'", "--data.name"]),
        (["train", "--lr", "0.1"], ["did you mean --forward.lr or --backward.lr? "]),
        (["compare", "--learning-rate", "0.1"], ["did you mean --forward.lr or --backward.lr? "]),
        (["diagnose", "--learning_rate=0.1"], ["did you mean --forward.lr or --backward.lr? "]),
        (["search", "--lr", "0.1"], ["did you mean --run.forward.lr or --run.backward.lr? "]),
        (["train", "--optimizer", "Adam"], ["did you mean --forward.name or --backward.name? "]),
        (["train", "--bs", "8"], ["did you mean --data.batch-size? "]),
        (["train", "--rules", "sa"], ["did you mean --rule? "]),
        (["diagnose", "--model", "X"], ["give it without --model, as in untied diagnose VALUE; "]),
        (["compare", "--epochs", "x"], ["--epochs", "'x'"]),
        (["compare", "--epochs", "0"], ["epochs is 0", "at least 1"]),
        (["compare", "--seeds"], ["--seeds"]),
        (["compare", "--workers", "-1"], ["workers is -1: it must be at least 0"]),
        (["train", "--epochs", "0"], ["epochs is 0: it must be at least 1"]),
        (["noise", "--sigmas", "-1"], ["sigmas is (-1.0,): give standard deviations"]),
        (["search", "--run.epochs", "0"], ["epochs is 0"]),
        (["transfer", "--models"], ["no models are given"]),
        (["bench", "--rules", "xx"], [">>>xx<<<", "possible are rules bp"]),
        (["compare", "extra"], ["unknown option 'extra'"]),
        (["compare", "--data", "mnits"], ["mnits", "mnist"]),
        (["compare", "--data.batch-size", "-4"], ["batch_size is -4"]),
        (["compare", "--data", "mnist", "--data.root", "nowhere"], ["no train-images-idx3-ubyte", "nowhere"]),
        (["compare", "--rules", "sa", "xx"], ["'xx'", "possible are", "amp"]),
        (["compare", "--rules", "ia(amq=1)"], [">>>amq<<<", "amp"]),
        (["compare", "--rules"], ["no rules"]),
        (["compare", "--rules", "sa", "sa"], ["'sa' is given twice"]),
        (["compare", "--rules", "sa @ Adan(lr=1)"], ["unknown optimizer 'Adan'", "'Adam'"]),
        (["compare", "--rules", "sa @ Adam(rl=1)"], ["unknown key rl", "lr"]),
        (["compare", "--rules", "sa @ Adam(lr)"], ["'lr'", "key=value"]),
        (["compare", "--rules", "sa @ @"], ["'sa @ @'"]),
        (["compare", "--rules", "bp @ Adam"], ["leave out @"]),
        (["compare", "--rules", "wm(amp=linear(0))"], [">>>linear<<<", "linear(first, last"]),
        (["compare", "--model", "resnt18"], ["unknown model 'resnt18'", "resnet18"]),
        (["compare", "--forward.name", "Nope"], ["unknown optimizer 'Nope'", "SGD"]),
        (["compare", "--forward.lr", "-1"], ["lr is -1.0", "above 0"]),
        (["compare", "--device", "nowhere"], ["device 'nowhere'"]),
        (["compare", "--evaluate-on", "validation", "--data.validation", "0"], ["hold some images out"]),
        (["compare", "--config"], ["--config needs"]),
        (["compare", "--rules", "bp,xx,sa"], ["'xx'", "possible are"]),
        (["compare", "--rules=sa,sa"], ["'sa' is given twice"]),
        (["compare", "--rules", "tuned:bp"], ["no tuned settings for 'bp'", "tuned are kp"]),
        (["train", "--ema", "0.9"], ["--ema is not a flag any more: write --set ema=0.9"]),
        (["train", "--devices.no-channels-last"], ["write --set devices.channels_last=false"]),
        (["train", "--data.synthetic-shape", "1", "4", "4"], ["write --set data.synthetic_shape=[1,4,4]"]),
        (["train", "--forward.arguments", "nesterov", "True"], ["write --set forward.arguments.nesterov=True"]),
        (["search", "--run.phases.align=0.5"], ["write --set run.phases.align=0.5"]),
        (["train", "--set"], ["--set needs path.to.field=value"]),
        (["train", "--set", "--epochs", "3"], ["--set needs path.to.field=value"]),
        (["train", "--set", "forward.lrr=1"], ["unknown key forward.lrr", "'lr'"]),
        (["train", "--set", "forwad.lr=1"], ["nothing below forwad", "'forward'"]),
        (["train", "--set", "epochs=many"], ["epochs is 'many'"]),
        (["train", "--set", "ema=2"], ["ema is 2"]),
        (["train", "--model", "mlp-1000000-1000000"], ["has 1e+12 weights", "GiB, and this machine has"]),
        (["--print-completion", "tcsh"], ["tcsh", "bash, zsh, fish"]),
        (["compare", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["rules", "--loud"], ["unknown option '--loud'"]),
        (["report", "nowhere"], ["nowhere is not a run folder"]),
        (["report"], ["run"]),
    ],
)
def test_a_mistake_is_one_line_and_a_code(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("untied: ") and err.count("\n") == 1
    assert not any(mark in err for mark in "│╭╰\x1b")
    for text in expected:
        assert text in err
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_an_output_folder_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("")
    for out, words in (("mine", "not empty"), ("file/below", "cannot write")):
        code, _, err = said(capsys, "compare", "--model", "mlp-8", "--out", str(tmp_path / out))
        assert code == 2 and words in err and err.count("\n") == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_config_keys_are_checked(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    file = tmp_path / "c.yaml"
    for text, expected in (
        ("epoks: 3", "unknown key epoks: did you mean 'epochs'?"),
        ("forward: {lrr: 3}", "unknown key forward.lrr: did you mean 'lr'?"),
        ("epochs: many", "epochs is 'many'"),
        ("forward: 3", "forward is 3"),
        ("data: {batch_size: -1}", "batch_size is -1"),
        ("[1, 2]", "keys and values"),
        ("a: [", "cannot read config"),
    ):
        file.write_text(text)
        code, _, err = said(capsys, "compare", "--config", str(file))
        assert code == 2 and expected in err and err.count("\n") == 1


def test_the_command_line_goes_over_the_file(tmp_path, monkeypatch) -> None:
    from untied.lab.settings.compare import CompareConfig

    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7\nrules: [sa]\nforward: {lr: 0.5}\n")
    words = ["--config", str(file), "--data", "synthetic", "--forward.momentum", "0.5", "--rules", "aa", "bp"]
    config = arguments.read_config(CompareConfig, words, "untied compare")
    assert (config.epochs, config.rules, config.data.name) == (7, ("aa", "bp"), "synthetic")
    assert (config.forward.lr, config.forward.momentum) == (0.5, 0.5)


def test_lists_take_commas_and_any_field_can_be_set() -> None:
    from untied.lab.settings.compare import CompareConfig

    words = ["--rules", "bp,ia(amp=1, null=2),tuned:sa", "fa", "--epochs", "3", "--set", "data.synthetic_shape=[1,4,4]"]
    words += ["forward.arguments.nesterov=true", "--seeds", "2", "--set=backward.lr=1e-3"]
    config = arguments.read_config(CompareConfig, words, "untied compare")
    assert config.rules == ("bp", "ia(amp=1, null=2)", "tuned:sa", "fa") and (config.epochs, config.seeds) == (3, 2)
    assert config.data.synthetic_shape == (1, 4, 4) and config.forward.arguments == {"nesterov": True}
    assert config.backward.lr == 1e-3
    assert arguments.take_pairs(["--rule", "", "--set", "a=1", "b.c=[1, 2]", "--out", "x=y"]) == (
        ["--rule", "", "--out", "x=y"], ["a=1", "b.c=[1, 2]"]
    )  # fmt: skip
    assert arguments.read_config(CompareConfig, ["--rules=bp,fa"], "untied compare").rules == ("bp", "fa")


def test_train_and_search_have_far_fewer_flags_than_settings(capsys: pytest.CaptureFixture[str]) -> None:
    from untied.lab.reading.fields import settings_of
    from untied.lab.settings.run import TrainConfig
    from untied.lab.study.config import SearchConfig

    for kind, most in ((TrainConfig, 43), (SearchConfig, 57)):
        settings = list(settings_of(kind))
        assert len(arguments.flags_of(kind)) <= most < len(settings) - 20
        assert all(text for _, _, text, _ in settings), [path for path, _, text, _ in settings if not text]
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    assert "phases.mirror_epochs = 1: How many epochs of alignment alone" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "--help-all" in shown and "mirror-epochs" not in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_their_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    code, out, err = said(capsys, "--print-completion", shell)
    assert code == 0 and err == "" and "compare" in out and ("--rules" in out or "-l rules" in out)
    if shell == "bash" and shutil.which("bash"):
        ask = 'COMP_WORDS=(untied train --forward.l); COMP_CWORD=2; _untied; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", f"{out}\n{ask}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--forward.lr"]


def test_version_help_and_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--version") == (0, f"untied {untied.__version__}\n", "")
    assert said(capsys, "--help")[0] == 0 and said(capsys)[0] == 2
    code, out, _ = said(capsys, "rules")
    assert code == 0
    for text in (
        *untied.rules.NAMED,
        *untied.primitives.KNOWN,
        *(f"transport({name}" for name in untied.rules.FEEDBACK),
        untied.primitives.copy.formula,
        "½‖B‖²",
        "1.67",
        "fraction",
        "@ Adam",
        "noise",
        "tuned:ia",
    ):
        assert text in out


def test_rules_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = said(capsys, "rules")
    assert "information alignment" in " ".join(out.split()) and max(map(len, out.splitlines())) <= 80


def test_help_shows_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    from untied.lab.settings.compare import CompareConfig

    with pytest.raises(SystemExit) as left:
        main(["compare", "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in arguments.flags_of(CompareConfig) if flag != "--config")


def test_interruption_and_surprises(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    def surprised(words: list[str]) -> int:
        raise RuntimeError("a bug\nof ours")

    monkeypatch.setattr("untied.lab.commands.rules.run", interrupted)
    assert said(capsys, "rules")[::2] == (130, "untied: interrupted\n")
    monkeypatch.setattr("untied.lab.commands.rules.run", surprised)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # where no crash file can be written
    code, _, err = said(capsys, "rules")
    assert code == 3 and "RuntimeError" in err and "--debug" in err and err.count("\n") == 1
    assert "Traceback" in said(capsys, "--debug", "rules")[2]


def test_a_surprise_leaves_a_file(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path) -> None:
    from untied.lab.study.config import SearchConfig

    url = "postgresql://me:secret@host/d"

    def surprised(words: list[str]) -> int:
        arguments.read_config(SearchConfig, words, "untied search")
        raise RuntimeError(f"cannot do with {url}")

    monkeypatch.setattr("untied.lab.commands.search.run", surprised)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, _, err = said(capsys, "search", "--trials", "7", "--storage", url)
    [file] = tmp_path.iterdir()
    assert code == 3 and f"the file {file} says where" in err and err.count("\n") == 1
    text = file.read_text()
    for part in ("== command", "search --trials 7", "in surprised", "RuntimeError", "trials: 7", '"torch":'):
        assert part in text
    assert "secret" not in text + err and "me:***@host/d" in text


def test_a_terminal_of_no_width(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert "alignment" in said(capsys, "rules")[1]


def test_without_docstrings() -> None:
    words = [sys.executable, "-OO", "-m", "untied"]
    done = subprocess.run([*words, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "compare" in done.stdout


@pytest.mark.parametrize("module", ["torch", "tyro"])
def test_ctrl_c_while_it_imports_is_a_line(module: str, tmp_path) -> None:
    source = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / f"{module}.py").write_text(source)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-m", "untied", "rules"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "untied: interrupted\n")


def test_a_pytorch_that_cannot_be_loaded_is_a_line(tmp_path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: failed to map segment')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-m", "untied", "rules"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    words = "untied: PyTorch cannot be loaded: libtorch_cpu.so: failed to map segment\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", words)


def test_a_library_leaves_ctrl_c_alone() -> None:
    code = "import signal, untied; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_work_goes_on_where_nobody_reads() -> None:
    code = (
        "from rich.console import Console\nfrom untied.lab.console import say\nimport sys\n"
        "console = Console()\nfor i in range(20000): say(console, 'a line')\nprint('done', file=sys.stderr)"
    )
    work = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert work.stdout and work.stderr and work.stdout.readline() == "a line\n"
    work.stdout.close()
    said = work.stderr.read()
    work.stderr.close()
    assert work.wait() == 0
    assert said == "untied: nobody reads the output any more: going on without it\ndone\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is full")
@pytest.mark.parametrize("streams", ["out", "out and err"])
@pytest.mark.parametrize("words", [["--help"], ["rules"], ["list"]])
def test_an_output_that_cannot_be_written_is_a_line(words: list[str], streams: str) -> None:
    program = "import sys, untied_command; sys.exit(untied_command.main())"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program, *words], stdout=full, text=True,
                              stderr=full if "err" in streams else subprocess.PIPE)  # fmt: skip
    assert done.returncode == 2
    if streams == "out":
        assert done.stderr.count("\n") == 1 and "the output cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["rules"]])
def test_a_reader_that_has_seen_enough_is_no_mistake(words: list[str]) -> None:
    program = "import sys, untied_command; sys.exit(untied_command.main())"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program, *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_training_goes_on_where_its_output_cannot_be_written(tmp_path) -> None:
    words = ["train", "--model", "mlp-4", "--epochs", "1", "--set", "data.name=synthetic", "data.synthetic_count=60",
             "data.batch_size=10", "--out", str(tmp_path / "run")]  # fmt: skip
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "untied", *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 0 and (tmp_path / "run/index.html").is_file()
    assert done.stderr.count("nobody reads the output any more") == 1


@pytest.mark.parametrize("given", ["", "first", "-1", "1" * 5000])
def test_a_clusters_variable_that_is_no_number_is_a_line(given: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("LOCAL_RANK", given)
    code, out, err = said(capsys, "rules")
    assert (code, out, err.count("\n")) == (2, "", 1) and "LOCAL_RANK" in err and len(err) < 300


def test_figures_need_no_backend() -> None:
    code = "import untied.__main__ as it; it.main(); import untied.lab.showing.plots"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True,
                          env=os.environ | {"MPLBACKEND": "no-such-backend"})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_was_deleted_is_a_line(tmp_path) -> None:
    code = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, '-m', 'untied', 'rules'])"
    (tmp_path / "here").mkdir()
    path = os.path.dirname(os.path.dirname(untied.__file__))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "here", capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "untied: the folder that this command works in is gone: cd to another one\n"


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "untied", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"untied {untied.__version__}\n"


FAILS_AS_ONE_OF_SEVERAL = """
import atexit, sys, torch.distributed as dist
from untied.errors import UntiedError
from untied.lab import cli, commands
def fails(words):
    print("said before")
    raise UntiedError("another process has ended")
commands.command("rules").run = fails
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
atexit.register(print, "Python ended as usual")
sys.exit(cli.main(["rules"]))
"""


@pytest.mark.slow
def test_one_process_of_several_that_fails_does_not_wait_for_pythons_end() -> None:
    """In which its backend's threads could abort it: see test_resume.py, a lost process."""
    done = subprocess.run([sys.executable, "-c", FAILS_AS_ONE_OF_SEVERAL], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "said before\n")
    assert done.stderr == "untied: another process has ended\n"
