"""Target propagation as rules of the lab: the commands, a run that goes on, and what nonsense gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import untied
from runs import small
from untied.errors import UntiedError
from untied.lab.cli import main
from untied.lab.data import DataConfig
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.settings.phases import PhaseConfig
from untied.lab.settings.run import TrainConfig
from untied.lab.training.learners import learner
from untied.lab.training.loop import Run
from untied.lab.training.setup import dataset, network, plain_network
from untied.rules import NAMED, parse
from untied.targets.propagation import KINDS, TargetPropagation


class Operations(TorchDispatchMode):
    """PyTorch's own counts of products."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


FAMILY = ("tp", "dtp", "sdtp", "drl", "ldrl", "ddtp")
DIGITS = DataConfig("digits", batch_size=64, validation=0.2)
SHORT = ["--data.batch-size", "64", "--epochs", "1"]
by_rule = pytest.mark.parametrize("rule", FAMILY)


def test_every_member_has_a_name() -> None:
    assert [NAMED[rule].kind for rule in FAMILY] == list(KINDS)  # type: ignore[attr-defined]


@by_rule
def test_text(rule: str) -> None:
    found = parse(f"{rule}(beta=0.3, noise=0.2)")
    assert str(found) == f"{rule}(beta=0.3, noise=0.2)" and parse(str(found)) == found != parse(rule)
    assert str(parse(rule)) == rule and found.title == KINDS[NAMED[rule].kind].title  # type: ignore[attr-defined]


@by_rule
def test_the_loop_of_the_lab_is_a_step_of_the_librarys(rule: str) -> None:
    """With one step of feedback a batch, of plain SGD: the same update as J and R by hand."""
    still = OptimizerConfig(lr=0.1, momentum=0.0)
    config = small(rule=rule, model="mlp-8-7-tanh", epochs=1, forward=still, backward=still)
    run, twin = Run(config), network(config, dataset(config.data, config.seed, "cpu"))
    assert isinstance(twin, TargetPropagation)
    images, labels = next(iter(run.data.train.epoch(0)))
    before = [p.detach().clone() for p in twin.parameters()]
    torch.manual_seed(0)
    with twin.recording() as heard:
        (nn.functional.cross_entropy(twin(images), labels) + heard.penalty()).backward()
    torch.manual_seed(0)
    J, R, _ = run.objective(images, labels, True, True, 0.0, 0)
    (J + R).backward()
    run.optimizers.step()
    moved = 0
    for p, q, old in zip(run.model.parameters(), twin.parameters(), before, strict=True):
        torch.testing.assert_close(p, old - 0.1 * q.grad)
        moved += int(not torch.equal(p, old))
    assert moved >= 4  # direct feedback begins at 0, so hidden blocks wait for it


@pytest.mark.parametrize("model", ["cnn-3-4", "resnet20-w2", "resnet18v2-w2"])
def test_convolutional_networks_are_cut(model: str) -> None:
    config = TrainConfig(rule="ldrl", model=model, data=DIGITS)
    data = dataset(config.data, 0, "cpu")
    net: Any = network(config, data)
    blocks = {"cnn-3-4": 3, "resnet20-w2": 11, "resnet18v2-w2": 10}
    assert net.depth == blocks[model]
    plain, x = plain_network(config, data).eval(), torch.randn(4, *data.input_shape)
    torch.testing.assert_close(net.eval()(x), plain(x))
    assert learner(net).plain(net).state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(("rule", "layers"), [("tp", 6), ("sdtp", 7), ("dtp", 7), ("ldrl", 11)])
def test_the_counted_cost_is_what_one_more_hidden_layer_takes(rule: str, layers: int) -> None:
    counted = {}
    for depth in (3, 4):
        torch.manual_seed(0)
        model = nn.Sequential(*(p for _ in range(depth) for p in (nn.Linear(6, 6), nn.Tanh())), nn.Linear(6, 6))
        net: Any = parse(rule).of_blocks(model, lambda: torch.randn(8, 6))
        x, labels = torch.randn(8, 6), torch.randint(6, (8,))
        with Operations() as seen:
            with net.recording() as heard:
                J = nn.functional.cross_entropy(net(x), labels)
            (J + heard.penalty()).backward()
        counted[depth] = seen.total
    assert counted[4] - counted[3] == layers * 2 * 8 * 36
    assert parse(rule).cost == pytest.approx(layers / 3)


def test_train_evaluate_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way of a run, as a user goes it; its plain weights load into the stock model."""
    run, out = tmp_path / "run", tmp_path / "w.safetensors"
    words = ["--rule", "ldrl @ Adam(lr=0.003)", "--model", "mlp-16-tanh", "--phases.align-steps", "2", *SHORT]
    assert main(["train", *words, "--out", str(run)]) == 0
    assert "blocks learn by their own targets alone" in capsys.readouterr().out
    result = json.loads((run / "results.json").read_text())
    assert 0 < result["gradient_angle"] < 90 and result["weight_angle"] is None and (run / "index.html").is_file()
    assert main(["evaluate", str(run)]) == 0 and "block 2" in capsys.readouterr().out
    assert main(["export", str(run), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path / "folder")]) == 2
    assert "would be a folder of untied layers, and ldrl has none" in capsys.readouterr().err
    config = TrainConfig(model="mlp-16-tanh", data=DIGITS)
    plain_network(config, dataset(DIGITS, 0, "cpu")).load_state_dict(safetensors.torch.load_file(out))


def test_compare_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rules", "bp,ldrl", "--model", "mlp-8-tanh", "--seeds", "1", "--workers", "0", "--timing-steps", "1",
             "--align-steps", "2", "--no-frozen", *SHORT]  # fmt: skip
    assert main(["compare", *words, "--out", str(tmp_path / "c")]) == 0
    rows = {row["rule"]: row for row in json.loads((tmp_path / "c/results.json").read_text())}
    assert rows["ldrl"]["failure"] is None and rows["ldrl"]["gradient_angle"] > rows["bp"]["gradient_angle"]
    assert main(["check", "resnet20-w2", "--rule", "ldrl"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "block 2: BlockV1" in out and "2 kernels, backpropagation between them" in out and "verified" in out


class Straight(nn.Module):
    """Cannot be cut: what its forward pass does between its parts is no part."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.flatten(1))))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rule", "ldrl", "--model", f"{__file__}:Straight"], "Straight cannot be cut into blocks: its parts"),
        (["--rule", "dtp", "--model", "mlp-16-16"], "block 2 has ReLU, which cannot be inverted"),
        (["--rule", "tp", "--model", "mlp"], "block 2 has ReLU, which cannot be inverted"),
        (["--rule", "sdtp", "--model", "resnet20-w2"], "which cannot be inverted"),
        (["--rule", "ldrl(beta=0)", "--model", "mlp-8"], "beta=0"),
        (["--rule", "ldrl(gamma=1)"], "ldrl takes beta, noise, output_noise"),
        (["--rule", "dtp(output_noise=1)"], "dtp takes beta, noise "),
        (["--rule", "ldrl", "--init", "copy"], "has no B that could start so"),
        (["--rule", "ldrl", "--devices.compile"], "devices.compile is set: targets are made in the backward pass"),
        (["--rule", "ldrl", "--model", "mlp-8", "--phases.calibrate", "4"], "calibrate"),
        (["--rule", "rdd(windows=3)"], "windows=3 is not possible"),
        (["--rule", "ldrl + decay"], "ldrl"),
    ],
)
def test_what_is_impossible_is_one_line(words: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["train", *words, *SHORT, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and "Traceback" not in err


def test_layers_are_no_place_for_it() -> None:
    for rule in FAMILY:
        with pytest.raises(UntiedError, match=r"rule of a network of blocks, not of layers: use untied.targets"):
            untied.untie_(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), rule)


def test_compare_takes_steps_of_feedback() -> None:
    config = CompareConfig(rules=("ldrl",), align_steps=5, frozen=False)
    assert config.run("ldrl", 0).phases == PhaseConfig(align_steps=5) and not config.about_entries
