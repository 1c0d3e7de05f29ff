"""Layers of transformers, torchvision and timm: they train, in their packages' own networks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untied


def swin(version: int) -> nn.Module:
    pytest.importorskip("torchvision")
    from torchvision.models import swin_transformer as module

    second: dict[str, Any] = {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2}
    return module.SwinTransformer(
        [2, 2], 8, [1, 1], [1, 2], [4, 4], num_classes=3, **(second if version == 2 else {})
    )  # fmt: skip


def beit() -> nn.Module:
    module = pytest.importorskip("timm.models.beit")
    return module.Beit(  # type: ignore[no-any-return]
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, use_rel_pos_bias=True,
        qkv_bias=True,
    )  # fmt: skip


def eva() -> nn.Module:
    module = pytest.importorskip("timm.models.eva")
    return module.Eva(  # type: ignore[no-any-return]
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, qkv_fused=True
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["fa", "sa", "kp", "usf"])
@pytest.mark.parametrize("make", [lambda: swin(1), lambda: swin(2), beit, eva], ids=["swin", "swin2", "beit", "eva"])
def test_functional_attention_trains(make: Any, rule: str) -> None:
    torch.manual_seed(0)
    model = make()
    x, before, kinds = torch.randn(2, 3, 32, 32), list(model.state_dict()), [type(m) for m in model.modules()]
    wanted = model.eval()(x)
    untied.untie_(model, rule, allow=True)
    torch.testing.assert_close(model(x), wanted)  # a bias that is made anew is added apart, rounded on its own
    untied.verify(model, lambda m: m(x).square().mean(), strict=True)
    model.train()
    with untied.record(model) as tape:
        loss = model(x).square().mean()
    (loss + tape.penalty()).backward()
    assert len(set(map(id, tape.called))) == len(untied.layers.untied_layers(model))
    with untied.record(copy.deepcopy(model)):
        pass
    assert torch.equal(pickle.loads(pickle.dumps(model.eval()))(x), model(x))
    untied.tie_(model)
    assert list(model.state_dict()) == before and [type(m) for m in model.modules()] == kinds


def test_gpt2_trains() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(20, (2, 6))
    wanted = model(ids).logits
    report = untied.untie_(model, "pfa")
    assert report.converted["transformer.h.0.attn.c_attn"] == "Conv1D, rule pfa"
    untied.tie_(model)
    untied.untie_(model, "sa")
    assert torch.equal(model(ids).logits, wanted)

    def loss(m: Any) -> Tensor:
        return nn.functional.cross_entropy(m(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    untied.verify(model, loss, strict=True)


def tokens(kind: str, **options: Any) -> tuple[Any, Tensor]:
    """A small language model of transformers, and its input."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval(), torch.randint(3, 20, (2, 6))


def timm_layer(module: str, name: str, **options: Any) -> Any:
    where = pytest.importorskip(f"timm.layers.{module}", reason="timm is not installed")
    return getattr(where, name)(4, 6, 3, stride=2, **options)


LAYERS_OF_TIMM = [
    ("conv2d_same", "Conv2dSame"), ("std_conv", "StdConv2d"), ("std_conv", "StdConv2dSame"),
    ("std_conv", "ScaledStdConv2d"), ("std_conv", "ScaledStdConv2dSame"),
]  # fmt: skip


@pytest.mark.parametrize(
    "rule", ["bp", "fa", "sa", "kp", "aa", "pfa", "mkp", "dfa(kernel=position)", "dfa(kernel=dense)"]
)
@pytest.mark.parametrize(("module", "name"), LAYERS_OF_TIMM, ids=[name for _, name in LAYERS_OF_TIMM])
def test_convolutions_of_timm_train(module: str, name: str, rule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), timm_layer(module, name), nn.Flatten(), nn.Linear(54, 3))
    x, before = torch.randn(4, 2, 7, 7), list(model.state_dict())
    wanted = model(x)
    report = untied.untie_(model, rule)
    assert report.converted["2"] == f"{name}, rule {rule}"
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), wanted)
    untied.verify(model, lambda m: m(x).square().mean(), strict=True)
    with untied.record(model.train()) as tape:
        loss = model(x).square().mean()
    (loss + tape.penalty()).backward()
    assert model[2].weight.grad.any()  # type: ignore[union-attr]
    assert torch.equal(pickle.loads(pickle.dumps(model.eval().requires_grad_(False)))(x), model(x))
    assert list(untied.tie_(model).state_dict()) == before and type(model[2]).__name__ == name


def test_the_kernel_of_a_standardised_convolution_is_the_standardised_one() -> None:
    model = timm_layer("std_conv", "StdConv2d")
    untied.untie_(model, "sa")
    rows = model.standard_weight.flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows.var(1, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    B = model.standard_backward_weight
    assert B.shape == model.weight.shape and 0.7 < B.std() < 1.3
    with untied.record(model) as tape:
        model(torch.randn(2, 4, 7, 7))
    tape.penalty().backward()
    torch.testing.assert_close(B.grad, (B - model.standard_weight).detach())


@pytest.mark.parametrize("rule", ["fa", "sa", "kp", "wm", "pfa"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Falcon", {}),
        ("Mixtral", {"num_key_value_heads": 1, "num_local_experts": 3}),
        (
            "Qwen3Moe",
            {"num_key_value_heads": 1, "num_experts": 3, "moe_intermediate_size": 8, "num_experts_per_tok": 2},
        ),
    ],
    ids=["Falcon", "Mixtral", "Qwen3Moe"],
)
def test_language_models_train(kind: str, options: dict[str, Any], rule: str) -> None:
    model, ids = tokens(kind, **options)
    wanted = model(ids).logits
    untied.untie_(model, rule)
    torch.testing.assert_close(model(ids).logits, wanted)

    def loss(m: Any) -> Tensor:
        return nn.functional.cross_entropy(m(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    report = untied.verify(model, loss, strict=True)
    kinds = {f.name.rpartition("layers.0.")[2]: f.gradient for f in report.findings}
    if kind != "Falcon":
        assert kinds["mlp.gate.weight"] == kinds["mlp.experts.gate_up_proj"] == "its own"
    with untied.record(model.train()) as tape:
        J = loss(model)
    (J + tape.penalty()).backward()
    if kind != "Falcon" and rule == "sa":
        layer = next(m for m in model.modules() if hasattr(m, "backward_gate_up_proj"))
        assert layer.backward_gate_up_proj.shape == layer.gate_up_proj.shape
        difference = (layer.backward_gate_up_proj - layer.gate_up_proj).detach()
        for B, wanted_ in zip(layer.backward_gate_up_proj.grad, difference, strict=True):
            if B.any():  # an expert without tokens rests
                torch.testing.assert_close(B, wanted_)
    untied.tie_(model)
    torch.testing.assert_close(model.eval()(ids).logits, wanted)


def test_every_row_names_a_class() -> None:
    """A row whose class has another name by now would do nothing, silently."""
    import importlib

    from untied.layers.foreign import ATTENTION, FOREIGN

    for where, name in [*FOREIGN, *ATTENTION]:
        pytest.importorskip(where.partition(".")[0], reason="its package is not installed")
        assert hasattr(importlib.import_module(where), name), (where, name)
