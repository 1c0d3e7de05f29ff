"""Recipes: every one is a configuration whose network and optimizers can be made."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

import untied
from untied.errors import UntiedError
from untied.lab import arguments, cli
from untied.lab.data import DataConfig
from untied.lab.models import build
from untied.lab.settings.recipes import folder, over, recipe, recipes
from untied.lab.settings.run import TrainConfig
from untied.lab.training.optim import Optimizers
from untied.lab.training.phases import Plan
from untied.rules import parse

NAMES = list(recipes())


def test_the_papers_tables_are_there() -> None:
    assert {f"table3/resnet18-{rule}" for rule in ("wm", "wm-ad", "wm-ad-ops", "ia")} <= set(NAMES)
    models = ("resnet18", "resnet50", "resnet50v2", "resnet101v2", "resnet152v2")
    assert {f"table4/{model}-{rule}" for model in models for rule in ("bp", "sa", "aa")} <= set(NAMES)
    for name in ("bp", "fa", "kp", "wm", "ia", "sa", "aa"):
        assert f"cifar10/resnet18-{name}" in NAMES
    assert "two-cores/resnet18-bp" in NAMES


def test_names_are_unique() -> None:
    """A key that YAML has twice would win silently, and a-b-c could be two pairs."""

    class Strict(yaml.SafeLoader):
        pass

    def unique(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: {Counter(keys).most_common(1)}"
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique)
    count = 0
    for path in folder().glob("*.yaml"):
        table = yaml.load(path.read_text(), Strict)
        assert set(table) <= {"base", "models", "rules"}
        count += len(table["models"]) * len(table["rules"])
    assert count == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_configuration_and_its_rule_fits_its_optimizers(name: str) -> None:
    config = recipe(name)
    rule = parse(config.rule)
    plan = Plan(config.phases, rule, config.epochs, 100)
    model = build("resnet20-w2", input_shape=(3, 8, 8), classes=10)
    untied.untie_(model, rule)
    optimizers = Optimizers(model, rule, config.forward, config.backward, *plan.counts(), config.data.batch_size)
    assert (optimizers.backward is not None) == (rule.aligns and not rule.copies_gradient)
    task, align = plan.counts()
    assert task > 0 and (align > 0) == (rule.aligns and rule.forward_decay is None)  # else decay is the optimizer's
    assert math.isclose(optimizers.forward.lr, config.forward.lr * config.data.batch_size / (
        config.forward.base_batch or config.data.batch_size))  # fmt: skip


@pytest.mark.parametrize(
    "of", sorted({(c.model, c.data.name, c.data.size if c.data.name == "folder" else 32) for c in map(recipe, NAMES)})
)
def test_a_recipes_network_can_be_built(of: tuple[str, str, int]) -> None:
    model, data, size = of
    with torch.device("meta"):  # without its weights' memory
        built = build(model, input_shape=(3, size, size), classes=1000 if data == "folder" else 10)
    assert sum(p.numel() for p in built.parameters()) > 100_000
    if data == "folder":
        millions = {"resnet18": 11.69, "resnet50": 25.56, "resnet50v2": 25.55, "resnet101v2": 44.54,
                    "resnet152v2": 60.19}  # fmt: skip
        assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(millions[model], abs=0.02)


def test_any_field_can_be_set_over_a_recipe() -> None:
    words = ["--data.root", "elsewhere", "--epochs", "3", "--forward.lr", "0.3", "--rule", "fa"]
    config = arguments.read_config(TrainConfig, words, "untied train", recipe("table4/resnet50-aa"))
    base = recipe("table4/resnet50-aa")
    assert config == dataclasses.replace(
        base,
        rule="fa",
        epochs=3,
        data=dataclasses.replace(base.data, root=Path("elsewhere")),
        forward=dataclasses.replace(base.forward, lr=0.3),
    )
    assert base.data.image_size == 299 and base.backward.name == "Adam"


def test_the_innermost_table_wins() -> None:
    assert over({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": {"e": 5}}) == {
        "a": {"b": 4, "c": 2},
        "d": {"e": 5},
    }
    assert recipe("table4/resnet50v2-sa").data == DataConfig(
        "folder", root=Path("data/imagenet"), batch_size=256, augment="standard", validation=0.01, workers=8,
        preprocessing="inception",
    )  # fmt: skip


def test_an_unknown_recipe_gives_the_nearest() -> None:
    with pytest.raises(UntiedError, match=r"unknown recipe 'table4/resnet50-as': did you mean table4/resnet50-[as]"):
        recipe("table4/resnet50-as")
    with pytest.raises(UntiedError, match=r"unknown recipe 'zzz': untied recipes lists them"):
        recipe("zzz")


def test_recipes_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    for path in folder().glob("*.yaml"):
        assert path.stem in out
        for rule in yaml.safe_load(path.read_text())["rules"]:
            assert f"{path.stem}/MODEL-{rule}" in out
    assert "resnet152v2" in out and max(map(len, out.splitlines())) <= 80
