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
