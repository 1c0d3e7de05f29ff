"""Networks of torchvision, timm, transformers, peft, snnTorch and Norse under several rules: verified by number, or
refused, and why. Packages that are not installed are left out.

    python benchmarks/networks.py [--only WORD ...] [--out docs/networks.md]

Every network is as small as its package lets it be, and randomly initialised. `untied.verify` looks at each on a
few inputs. Some fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import untied
from untied.layers.foreign import ATTENTION, FOREIGN

RULES = ("fa", "sa", "kp")
LARGE = 30_000_000
"""With more parameters than this, a network is looked at in its own type, not in float64."""


@dataclass(frozen=True)
class Network:
    """One row. make: builds it. inputs: of one call."""

    package: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]] | int


def networks() -> Iterator[Network]:
    """Every row, for the packages that are installed."""
    yield from snntorch_networks()
    yield from norse_networks()
    yield from peft_networks()
    yield from transformers_networks()
    yield from timm_networks()
    yield from torchvision_networks()


TORCHVISION: dict[str, dict[str, Any]] = {
    "alexnet": {}, "squeezenet1_1": {}, "googlenet": {"aux_logits": False, "init_weights": False},
    "mobilenet_v2": {"width_mult": 0.25}, "mobilenet_v3_small": {"width_mult": 0.5}, "shufflenet_v2_x0_5": {},
    "mnasnet0_5": {}, "efficientnet_b0": {}, "regnet_x_400mf": {}, "regnet_y_400mf": {},
}  # fmt: skip
SIZE = 64
"""Of their images: of smaller ones nothing is left at the top for batch normalisation to see."""


def torchvision_networks() -> Iterator[Network]:
    try:
        from torchvision import models
        from torchvision.models import resnet
        from torchvision.models import swin_transformer as swin
    except ImportError:
        return
    for name, options in TORCHVISION.items():
        yield Network(
            "torchvision", name, lambda name=name, more=options: getattr(models, name)(num_classes=3, **more), SIZE
        )  # fmt: skip
    one = [1, 1, 1, 1]
    yield Network("torchvision", "ResNet, basic blocks",
                  lambda: models.ResNet(resnet.BasicBlock, one, num_classes=3), SIZE)  # fmt: skip
    yield Network("torchvision", "ResNet, bottlenecks",
                  lambda: models.ResNet(resnet.Bottleneck, one, num_classes=3), SIZE)  # fmt: skip
    yield Network("torchvision", "ResNeXt",
                  lambda: models.ResNet(resnet.Bottleneck, one, num_classes=3, groups=32, width_per_group=4),
                  SIZE)  # fmt: skip
    yield Network("torchvision", "DenseNet", lambda: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=3), SIZE)
    convnext = models.convnext
    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    yield Network("torchvision", "ConvNeXt", lambda: convnext.ConvNeXt(blocks, num_classes=3), 32)
    yield Network("torchvision", "VisionTransformer",
                  lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3), 32)  # fmt: skip
    yield Network("torchvision", "SwinTransformer",
                  lambda: swin.SwinTransformer([2, 2], 8, [1, 1], [1, 2], [4, 4], num_classes=3), 32)  # fmt: skip
    yield Network("torchvision", "SwinTransformer, version 2",
                  lambda: swin.SwinTransformer([2, 2], 8, [1, 1], [1, 2], [4, 4], num_classes=3,
                                               block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2),
                  32)  # fmt: skip
    yield Network("torchvision", "MaxVit",
                  lambda: models.maxvit.MaxVit((32, 32), 8, 4, [8], [1], 8, 0.0, num_classes=3), 32)  # fmt: skip


TIMM = (
    "test_byobnet", "test_convnext", "test_convnext2", "test_convnext3", "test_efficientnet", "test_efficientnet_evos",
    "test_efficientnet_gn", "test_efficientnet_ln", "test_mambaout", "test_nfnet", "test_resnet", "test_vit",
    "test_vit2", "test_vit3", "test_vit4",
)  # fmt: skip


def timm_networks() -> Iterator[Network]:
    try:
        import timm
        from timm.models import beit, cait, eva, mlp_mixer, swin_transformer, swin_transformer_v2, xcit
    except ImportError:
        return
    known = timm.list_models("test_*")
    for name in TIMM:
        if name in known:
            yield Network("timm", name, lambda name=name: timm.create_model(name, num_classes=3), 160)
    padded = "tf_mobilenetv3_small_minimal_100"
    yield Network("timm", padded, lambda: timm.create_model(padded, num_classes=3), SIZE)
    small: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_classes": 3}
    blocks = small | {"depth": 2, "num_heads": 2}
    yield Network("timm", "Beit", lambda: beit.Beit(**blocks, use_rel_pos_bias=True), 32)
    yield Network("timm", "Eva", lambda: eva.Eva(**blocks), 32)
    yield Network("timm", "Cait", lambda: cait.Cait(**blocks), 32)
    yield Network("timm", "Xcit", lambda: xcit.Xcit(**blocks), 32)
    yield Network("timm", "MlpMixer", lambda: mlp_mixer.MlpMixer(
        img_size=32, patch_size=8, embed_dim=16, num_blocks=2, num_classes=3), 32)  # fmt: skip
    windows = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2),
               "window_size": 4, "num_classes": 3}  # fmt: skip
    yield Network("timm", "SwinTransformer", lambda: swin_transformer.SwinTransformer(**windows), 32)
    yield Network("timm", "SwinTransformerV2", lambda: swin_transformer_v2.SwinTransformerV2(**windows), 32)


TEXT = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
ENCODERS = ("Bert", "Roberta", "Electra", "Albert", "Camembert", "MPNet", "Ernie", "ConvBert", "DebertaV2", "RoFormer")
DECODERS = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "GPTNeoX", "Phi", "Olmo", "StableLm", "Cohere", "OPT",
            "Mixtral", "Bloom", "Falcon", "Mamba")  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}),
    "Qwen3Moe": ("Qwen3MoeForCausalLM", {"num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2,
                                         "moe_intermediate_size": 16}),
    "EfficientNet": ("EfficientNetModel", {"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1,
                                           "hidden_dim": 128}),
    "GPTNeo": ("GPTNeoForCausalLM", {"num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}),
    "DistilBert": ("DistilBertModel", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}),
    "ViT": ("ViTModel", {"image_size": 16, "patch_size": 8}),
    "DeiT": ("DeiTModel", {"image_size": 16, "patch_size": 8}),
    "ResNet": ("ResNetModel", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
}  # fmt: skip
IMAGES = ("ViT", "DeiT", "ResNet", "EfficientNet")


def transformers_networks() -> Iterator[Network]:
    try:
        import transformers
    except ImportError:
        return
    transformers.logging.set_verbosity_error()
    kinds = {name: (f"{name}Model", {}) for name in ENCODERS}
    kinds |= {name: (f"{name}ForCausalLM", {"num_key_value_heads": 1}) for name in DECODERS} | OTHERS
    for name, (kind, more) in kinds.items():
        if not hasattr(transformers, kind):
            continue
        settings = TEXT | more if name not in IMAGES else {k: v for k, v in TEXT.items() if "token" not in k} | more

        def make(name: str = name, kind: str = kind, settings: dict[str, Any] = settings) -> nn.Module:
            config = getattr(transformers, f"{name}Config")(**settings)
            return getattr(transformers, kind)(config)  # type: ignore[no-any-return]

        size = settings.get("image_size", 32)
        inputs: Any = (
            (lambda size=size: {"pixel_values": torch.randn(2, 3, size, size)})
            if name in IMAGES
            else (lambda: {"input_ids": torch.randint(3, 30, (2, 6))})
        )
        yield Network("transformers", name, make, inputs)


def peft_networks() -> Iterator[Network]:
    try:
        import peft
        import transformers
    except ImportError:
        return

    def lora(**options: Any) -> nn.Module:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=1))
        return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", **options))  # type: ignore[no-any-return]

    inputs: Any = lambda: {"input_ids": torch.randint(3, 30, (2, 6))}  # noqa: E731
    yield Network("peft", "Llama with LoRA", lora, inputs)
    yield Network("peft", "Llama with DoRA", lambda: lora(use_dora=True), inputs)


def snntorch_networks() -> Iterator[Network]:
    try:
        import snntorch
    except ImportError:
        return

    class Spiking(nn.Module):
        """Units of one kind behind dense layers, ten steps, as snnTorch's first tutorials have them. ``first``: what
        stands before the hidden units. flat: whether it takes vectors.
        """

        def __init__(self, unit: Callable[[], nn.Module], first: nn.Module, flat: bool = True) -> None:
            super().__init__()
            self.first, self.second, self.flat = first, nn.Linear(16, 3), flat
            self.hidden, self.out = unit(), snntorch.Leaky(beta=0.9)

        def forward(self, x: Tensor) -> Tensor:
            x, total = 3 * (x.flatten(1)[:, :12] if self.flat else x), 0
            state, u = None, x.new_zeros(len(x), 3)
            for _ in range(10):
                given = () if state is None else state
                spikes, *state = self.hidden(self.first(x), *given)
                _, u = self.out(self.second(spikes.flatten(1)), u)
                total = total + u
            return total  # type: ignore[return-value]

    def dense() -> nn.Module:
        return nn.Linear(12, 16)

    def convolution() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2))

    units: dict[str, Callable[[], nn.Module]] = {
        "Leaky": lambda: Spiking(lambda: snntorch.Leaky(beta=0.9), dense()),
        "Leaky, convolution": lambda: Spiking(lambda: snntorch.Leaky(beta=0.9), convolution(), flat=False),
        "Lapicque": lambda: Spiking(lambda: snntorch.Lapicque(beta=0.9), dense()),
        "Synaptic": lambda: Spiking(lambda: snntorch.Synaptic(alpha=0.8, beta=0.9), dense()),
        "Alpha": lambda: Spiking(lambda: snntorch.Alpha(alpha=0.9, beta=0.8), dense()),
        "RLeaky": lambda: Spiking(lambda: snntorch.RLeaky(beta=0.9, linear_features=16), dense()),
        "RSynaptic": lambda: Spiking(lambda: snntorch.RSynaptic(alpha=0.8, beta=0.9, linear_features=16), dense()),
        "SLSTM": lambda: Spiking(lambda: snntorch.SLSTM(16, 16), dense()),
    }
    for name, make in units.items():
        yield Network("snntorch", f"{name}, ten steps", make, 4)


def norse_networks() -> Iterator[Network]:
    try:
        import norse.torch as norse
    except ImportError:
        return

    class Spiking(nn.Module):
        """Norse's cells behind dense layers, ten steps."""

        def __init__(self, cell: nn.Module) -> None:
            super().__init__()
            self.first, self.cell, self.second, self.out = nn.Linear(12, 16), cell, nn.Linear(16, 3), norse.LICell()

        def forward(self, x: Tensor) -> Tensor:
            x, total, state, u = 9 * x.flatten(1)[:, :12], 0, None, None
            for _ in range(10):
                spikes, state = self.cell(self.first(x), state)
                v, u = self.out(self.second(spikes), u)
                total = total + v
            return total  # type: ignore[return-value]

    yield Network("norse", "LIFCell, ten steps", lambda: Spiking(norse.LIFCell()), 4)
    yield Network("norse", "LIFRecurrentCell, ten steps", lambda: Spiking(norse.LIFRecurrentCell(16, 16)), 4)


def task(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """A smooth loss of whatever the network returns."""
    output = model(given["image"]) if "image" in given else model(**given)
    found = output if isinstance(output, Tensor) else next(
        output[k] for k in ("logits", "last_hidden_state") if k in output
    )  # fmt: skip
    weights = torch.linspace(-1, 1, found[0].numel(), dtype=found.dtype).view(found[0].shape)
    return (found.sigmoid() * weights).mean()


def cell(network: Network, rule: str) -> str:
    """What becomes of a network under a rule, in words."""
    torch.manual_seed(0)
    model = network.make()
    given = {"image": torch.randn(4, 3, s, s)} if isinstance(s := network.inputs, int) else s()
    try:
        untied.untie_(model, rule)
        large = sum(p.numel() for p in model.parameters()) > LARGE
        report = untied.verify(model, lambda m: task(m, given), dtype=None if large else torch.float64)
    except untied.UntiedError as error:
        return f"refused: {error}"
    return "verified" if report.verified else report.verdict


def page(rows: list[tuple[Network, list[str]]], rules: tuple[str, ...]) -> str:
    """The table in Markdown."""
    counts = [cell.partition(":")[0] for _, cells in rows for cell in cells]
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", *dict.fromkeys(n.package for n, _ in rows))
    )
    lines = [
        "# Networks of other packages",
        "",
        "What `untied.verify` says of networks that others wrote, on a few inputs each: verified by number, or",
        "refused, for the reason below the table that the number names. Refused networks can be untied in part, with",
        "`filter=` or `allow=`.",
        "",
        f"{len(rows)} networks, {len(rules)} rules: {counts.count('verified')} verified, {counts.count('refused')} "
        f"refused, {len(counts) - counts.count('verified') - counts.count('refused')} not verified. Made by "
        f"`python benchmarks/networks.py`, with {versions}.",
        "",
        "| package | network | " + " | ".join(f"`{rule}`" for rule in rules) + " |",
        "| --- | --- |" + " --- |" * len(rules),
    ]
    reasons: list[str] = []
    for network, cells in rows:
        shown = []
        for what, _, why in (cell.partition(": ") for cell in cells):
            if why and why not in reasons:
                reasons.append(why)
            shown.append(f"{what} ({reasons.index(why) + 1})" if why else what)
        lines.append(f"| {network.package} | {network.name} | {' | '.join(shown)} |")
    if reasons:
        lines += ["", *(f"{i}. {why}" for i, why in enumerate(reasons, 1))]
    known: dict[str, list[str]] = {}
    for where, name in (*FOREIGN, *ATTENTION):
        known.setdefault(where.partition(".")[0], []).append(f"`{name}`")
    lines += ["", "Layers of these packages that `untie_` knows, beside PyTorch's own, once they are imported:", ""]
    lines += [f"- {package}: {', '.join(names)}" for package, names in known.items()]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="networks whose package or name contains one of these")
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--out", type=Path, default=Path("docs/networks.md"))
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    rules, rows = tuple(chosen.rules), []
    for network in networks():
        if not any(word in f"{network.package} {network.name}" for word in chosen.only):
            continue
        cells = []
        for rule in rules:
            try:
                cells.append(cell(network, rule))
            except Exception as error:  # a network that does not run at all is no finding of ours
                cells.append(f"does not run: {type(error).__name__}: {' '.join(str(error).split())}")
        print(f"{network.package:<12} {network.name:<28} {' | '.join(dict.fromkeys(cells))}", flush=True)
        rows.append((network, cells))
        chosen.out.write_text(page(rows, rules))
    return int(any("does not run" in c or c.startswith("not verified") for _, cells in rows for c in cells))


if __name__ == "__main__":
    raise SystemExit(main())
