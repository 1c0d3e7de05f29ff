"""Networks by name: their shapes, parameters and initial weights, against torchvision's where it has the same."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from torch import Tensor, nn

from untied import UntiedError
from untied.lab.models import build, names
from untied.lab.models.mlp import ACTIVATIONS
from untied.lab.models.resnet import Block, ResNet

RESNETS = [name for name in names() if name.startswith("resnet")]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def gradients(model: nn.Module, images: Tensor) -> dict[str, float]:
    model(images).square().sum().backward()
    return {name: parameter.grad.abs().sum().item() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_resnets_have_torchvisions_state(depth: int) -> None:
    with torch.device("meta"):
        ours = build(f"resnet{depth}", input_shape=(3, 224, 224), classes=1000)
        theirs = torchvision.models.get_model(f"resnet{depth}")
    assert count(ours) == count(theirs)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("training", [False, True])
def test_resnets_compute_what_torchvisions_do(name: str, training: bool) -> None:
    ours = build(name, input_shape=(3, 224, 224), classes=7).train(training)
    theirs = torchvision.models.get_model(name, num_classes=7).train(training)
    for module in theirs.modules():  # else the blocks that start at zero would hide what they compute
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))
    theirs.load_state_dict(ours.state_dict(), strict=True)


SEQUENCES = ("rnn", "lstm", "gru", "transformer")


@pytest.mark.parametrize("name", [n for n in names() if n not in SEQUENCES])
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 96, 64)], ids=str)
def test_every_name_gives_logits(name: str, input_shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        model = build(name, input_shape=input_shape, classes=11)
        assert model(torch.empty(2, *input_shape)).shape == (2, 11)


@pytest.mark.parametrize("name", RESNETS)
def test_depth_counts_the_layers_with_weights(name: str) -> None:
    with torch.device("meta"):
        model = build(name, input_shape=(3, 32, 32), classes=10)
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    depth = int(name.removeprefix("resnet").removesuffix("v2"))
    assert len([key for key in layers if "downsample" not in key]) == depth


@pytest.mark.parametrize("name", ["resnet18", "resnet18v2", "resnet50", "resnet50v2", "resnet20", "resnet20v2"])
def test_both_versions_run_at_both_stems_and_narrow(name: str) -> None:
    for stem in ("imagenet", "cifar"):
        model = build(f"{name}-w4-{stem}", input_shape=(3, 32, 32), classes=5)
        images = torch.randn(2, 3, 32, 32)
        assert model(images).shape == (2, 5)
        kernel, side = (7, 8) if stem == "imagenet" else (3, 32)
        assert model.conv1.weight.shape == (4, 3, kernel, kernel)  # type: ignore[union-attr]
        assert model.pool(model.conv1(images)).shape == (2, 4, side, side)  # type: ignore[operator]


def test_the_stem_follows_the_size_of_the_images() -> None:
    with torch.device("meta"):
        for name, side, kernel in (("resnet18", 63, 3), ("resnet18", 64, 7), ("resnet20", 224, 3)):
            assert build(name, input_shape=(3, side, 224), classes=2).conv1.kernel_size == (kernel, kernel)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["resnet18-w8", "resnet50-w8", "resnet20"])
def test_v1_blocks_start_as_the_identity(name: str) -> None:
    model = build(name, input_shape=(3, 32, 32), classes=10)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert blocks
    for block in blocks:
        scales = [block.step(number)[1].weight for number in range(1, block.depth + 1)]
        assert all((scale == 1).all() for scale in scales[:-1]) and (scales[-1] == 0).all()
        if block.downsample is None:
            x = torch.rand(2, block.step(1)[0].in_channels, 8, 8)  # type: ignore[operator]
            assert torch.equal(block(x), x)
    plain = build(name, input_shape=(3, 32, 32), classes=10, zero_init=False)
    assert all((m.weight == 1).all() for m in plain.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("name", ["resnet18v2-w8", "resnet50v2-w8"])
def test_v2_has_no_scale_that_could_start_at_zero(name: str) -> None:
    model = build(name, input_shape=(3, 32, 32), classes=10)
    assert isinstance(model, ResNet)
    images = torch.randn(4, 3, 32, 32)
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert min(gradients(model, images).values()) > 0
    # the reason: a zero there cuts the branch off for good
    model.zero_grad()
    block = next(module for module in model.modules() if isinstance(module, Block))
    conv, bn = block.step(block.depth)
    nn.init.zeros_(bn.get_parameter("weight"))
    gradients(model, images)
    for parameter in (*conv.parameters(), *bn.parameters()):
        assert parameter.grad is not None and parameter.grad.count_nonzero() == 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50v2", "cnn"])
def test_convolutions_start_as_in_he_et_al(name: str) -> None:
    model = build(name, input_shape=(3, 32, 32), classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.15)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.momentum, module.eps) == (0.1, 1e-5)


@pytest.mark.parametrize("depth, millions", [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.73)])
def test_the_cifar_family_has_the_papers_size(depth: int, millions: float) -> None:
    """He et al. (2016), Table 6 (which gives 1.7 for the last); their shortcuts have no weights."""
    with torch.device("meta"):
        model = build(f"resnet{depth}", input_shape=(3, 32, 32), classes=10)
    shortcuts = sum(p.numel() for name, p in model.named_parameters() if "downsample" in name)
    assert shortcuts == 2752
    assert (count(model) - shortcuts) / 1e6 == pytest.approx(millions, abs=0.005)


def test_widths_and_activations_in_names() -> None:
    def layers(name: str, **options: object) -> list[str]:
        model = build(name, input_shape=(1, 8, 8), classes=10, **options)
        return [
            f"{key} {tuple(m.weight.shape) if hasattr(m, 'weight') else type(m).__name__}"
            for key, m in model.named_children()
        ]

    assert layers("mlp-32-16-tanh") == [
        "flatten Flatten", "fc1 (32, 64)", "tanh1 Tanh", "fc2 (16, 32)", "tanh2 Tanh", "fc3 (10, 16)",
    ]  # fmt: skip
    assert layers("mlp-32-16-tanh") == layers("mlp", widths=(32, 16), activation="tanh")
    assert layers("mlp") == layers("mlp-256-256-relu")
    assert layers("mlp", widths=()) == ["flatten Flatten", "fc1 (10, 64)"]
    assert layers("cnn-4-6")[3:] == [
        "conv2 (6, 4, 3, 3)", "bn2 (6,)", "relu2 ReLU", "pool AdaptiveAvgPool2d", "flatten Flatten", "fc (10, 6)",
    ]  # fmt: skip
    assert layers("resnet18-w16") == layers("resnet18", width=16)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "selu"])
def test_activity_neither_vanishes_nor_grows_in_a_deep_mlp(activation: str) -> None:
    assert activation in ACTIVATIONS
    torch.manual_seed(0)
    model = build("mlp", input_shape=(1, 8, 8), classes=10, widths=(128,) * 8, activation=activation)
    with torch.no_grad():
        logits = model(torch.randn(64, 1, 8, 8))
    assert 0.05 < logits.std() < 5


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20", "resnet18v2-w8"])
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build(name, input_shape=(1, 8, 8), classes=10).state_dict())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "torchvision:regnet_x_400mf"])
def test_torchvisions_models(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, input_shape=(3, 64, 64), classes=10)
    assert model.training and model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    torch.manual_seed(0)
    stock = torchvision.models.get_model(name.partition(":")[2], num_classes=10)
    torch.manual_seed(0)
    fresh = build(name, input_shape=(3, 64, 64), classes=10).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in stock.state_dict().items())  # trying out left no trace
    with pytest.raises(UntiedError, match="3 channels"):
        build(name, input_shape=(1, 64, 64), classes=10)


def test_options_and_sizes_reach_torchvisions_models() -> None:
    assert len(names("torchvision")) > 50
    model = build("torchvision:squeezenet1_1", input_shape=(3, 32, 32), classes=4, dropout=0.25)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25]
    with pytest.raises(UntiedError, match="cannot build torchvision:squeezenet1_1 for images of"):
        build("torchvision:squeezenet1_1", input_shape=(3, 8, 8), classes=4)


def test_timms_models() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    assert "timm:vit_small_patch16_224" in names("timm")
    model = build("timm:test_vit", input_shape=(1, 32, 32), classes=4, img_size=32)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 4)


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for call in (lambda: names("timm"), lambda: build("timm:resnet18", input_shape=(3, 32, 32), classes=2)):
        with pytest.raises(UntiedError, match="pip install timm"):
            call()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, "unknown model 'resnet19'; nearest: .*resnet18"),
        ("resent50v2", {}, "nearest: resnet50v2"),
        ("transformers", {}, "unknown model 'transformers'"),
        ("resnet18v3", {}, "unknown model"),
        ("mlp-256-softmax", {}, "unknown model"),
        ("mlp-0", {}, "width 0"),
        ("resnet18-w0", {}, "width 0"),
        ("mlp", {"depth": 3}, "mlp has no option 'depth': possible are widths, activation"),
        ("mlp", {"activation": "sine"}, "unknown activation 'sine'"),
        ("resnet18", {"stem": "small"}, "unknown stem 'small'"),
        ("resnet18-w16", {"width": 8}, "already says its width"),
        ("hub:resnet18", {}, "no module hub"),
        ("torchvision:resnet19", {}, "nearest: torchvision:resnet1"),
        ("torchvision:resnet18", {"deep": True}, "cannot build torchvision:resnet18: .*deep"),
        ("torchvision:googlenet", {"init_weights": False}, "aux_logits=False"),
    ],
)
def test_mistakes_are_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UntiedError, match=message) as caught:
        build(name, input_shape=(3, 65, 65), classes=10, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("input_shape, classes", [((3, 32), 10), ((3, 0, 32), 10), ((3, 32, 32), 0)])
def test_impossible_shapes(input_shape: tuple[int, ...], classes: int) -> None:
    with pytest.raises(UntiedError, match="impossible"):
        build("cnn", input_shape=input_shape, classes=classes)  # type: ignore[arg-type]
