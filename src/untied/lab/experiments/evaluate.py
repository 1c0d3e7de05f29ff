"""What a trained run is worth, and its weights for other programs: `untied evaluate` and `untied export`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from untied.errors import UntiedError
from untied.lab.console import say
from untied.lab.data import Dataset
from untied.lab.devices.devices import fabric_of, prepared
from untied.lab.experiments.train import open_run
from untied.lab.keeping.record import write_tensors
from untied.lab.rules.targets import ByTargets
from untied.lab.settings.run import TrainConfig
from untied.lab.showing import writers
from untied.lab.training import checkpoint
from untied.lab.training.identity import identity, same_run
from untied.lab.training.learners import learner
from untied.lab.training.scoring import alignment, evaluate
from untied.lab.training.setup import dataset, network, task_of

__all__ = ["Which", "evaluate_run", "export", "load_run"]

Which = Literal["last", "best"]


def load_run(path: Path, which: Which, config: TrainConfig | None = None) -> tuple[nn.Module, Dataset, TrainConfig]:
    """The trained network of a run (the moving average where there is one), its data, and its configuration.

    Args:
        path: the run folder. which: the last checkpoint, or the best one on validation.
        config: in place of the run's own.

    Raises:
        UntiedError: it is no run, has no such checkpoint, or the checkpoint is of another model or rule.
    """
    _, own = open_run(path)
    config = config or own
    file = path / "checkpoints" / f"{which}.safetensors"
    tensors, position, _ = checkpoint.read(file)
    data = dataset(config.data, config.seed, "cpu")
    here = identity(own, data)
    same_run(file, position.identity, {what: here[what] for what in ("model", "rule", "classes")})
    model = network(dataclasses.replace(own, data=config.data), data)
    checkpoint.load(model, tensors, "ema." if own.ema is not None else "model.", str(file))
    return model, data, config


def evaluate_run(
    path: Path,
    split: Literal["test", "validation", "train"] = "test",
    which: Which = "last",
    root: Path | None = None,
    accelerator: str = "auto",
    console: Console | None = None,
) -> int:
    """Print and keep a run's top-1, top-5 and loss on a split, and every angle by layer. Returns the exit code.

    Args:
        path: the run folder. split: which images. which: the last or the best checkpoint.
        root: where the data lies now, if not where it lay.
        accelerator: where to compute.
    """
    console = console or Console()
    folder, config = open_run(path)
    if root is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))
    one = dataclasses.replace(config.devices, devices=1, nodes=1, strategy="auto", accelerator=accelerator)
    config = dataclasses.replace(config, devices=one)
    fabric = fabric_of(one, config.data.batch_size)
    fabric.launch()
    model, _, _ = load_run(path, which, config)
    data = dataset(config.data, config.seed, str(fabric.device))
    loader = data.train.still(data.test) if split == "train" else getattr(data, split)
    if not loader.size:
        raise UntiedError(f"the run's {split} split has no images (data.validation is {config.data.validation:g})")
    model = prepared(model, one, fabric).to(fabric.device)
    task = task_of(config, data)
    scores = evaluate(model, loader, task, fabric)
    angles = alignment(model, data, fabric, dataclasses.replace(config, angles="all"))
    result: dict[str, Any] = {
        "checkpoint": which, "split": split, "images": loader.size - len(loader.damaged),
        "damaged": len(loader.damaged), **scores.metrics, "loss": scores.loss, **angles,
    }  # fmt: skip
    file = folder.write_json(f"evaluation-{split}-{which}.json", result)
    say(console, f"{config.model}, {config.rule}: {which} checkpoint on {result['images']:,} {split} examples")
    shown = [f"{m.title} {m.shown(scores.metrics[m.name])} {m.unit}".rstrip() for m in task.metrics]
    say(console, "   ".join([*shown, f"loss {scores.loss:.4f}"]))
    console.print(layers_table(angles))
    say(console, f"written to {file}")
    return 0


def layers_table(angles: dict[str, Any]) -> Table:
    """Angles in degrees and norm ratios, a row a layer."""
    columns = {
        "weight °": "weight_angle", "projection °": "projection_angle", "local gradient °": "local_gradient_angle",
        "gradient °": "layer_gradient_angle", "‖B‖/‖W‖": "norm_ratio", "‖gradient‖": "gradient_norm",
        "growth": "growth",
    }  # fmt: skip
    lines = []
    for layer in angles["weight_angle"]:
        numbers = ((angles[key][layer], FORMS.get(key, ".1f")) for key in columns.values())
        lines.append([layer, *("–" if math.isnan(v) else f"{v:{form}}" for v, form in numbers)])
    lines.append(["whole network", "", "", "", f"{angles['gradient_angle']:.1f}", "", "", ""])
    titles = {"weight °": "weight\n°", "projection °": "proj.\n°", "local gradient °": "local\ngrad. °",
              "gradient °": "grad.\n°", "‖gradient‖": "‖grad.‖"}  # fmt: skip
    return writers.terminal(["layer", *columns], lines, ["layer"], titles=titles, wrapped=["layer"])


FORMS = {"gradient_norm": ".0e", "norm_ratio": ".2f", "growth": ".2f"}


def export(path: Path, out: Path, which: Which = "last", console: Console | None = None) -> int:
    """Write a run's weights as a plain (tied) state dict, which the stock model loads, or all that it takes to load the
    untied network. Returns the exit code.

    Args:
        path: the run folder. out: a .safetensors file, or a folder (`untied.lab.experiments.exported`).
        which: the last or the best checkpoint.
    """
    console = console or Console()
    if out.suffix not in ("", ".safetensors"):
        raise UntiedError(
            f"{out} is not a name for weights: they are written as .safetensors, or to a folder, "
            "which is a name without a suffix"
        )
    model, data, config = load_run(path, which)
    if not out.suffix:
        if config.parsed.motion == ByTargets.motion:
            raise UntiedError(
                f"{out} would be a folder of untied layers, and {config.rule} has none: name a .safetensors"
            )
        from untied.lab.experiments import exported

        report = exported.write(path, out, model, data, config)
        say(console, f"{out}: {config.model} under {config.rule}, {report.verdict}")
        say(console, f"load it with:  model = untied.lab.load({str(out)!r})")
        return 0
    state = learner(model).plain(model).state_dict()
    about = {"model": config.model, "rule": config.rule, "checkpoint": which, "format": "pt"}
    write_tensors(out, state, about)
    say(console, f"{out}: {len(state)} tensors of {config.model}, for {data.outputs} outputs")
    stock = stock_model(config.model, state)
    if stock:
        say(console, "load it with:  "
            f"model = torchvision.models.get_model({stock!r}, num_classes={len(data.classes)}); "
            f"model.load_state_dict(safetensors.torch.load_file({str(out)!r}))")  # fmt: skip
    return 0


def stock_model(name: str, state: dict[str, torch.Tensor]) -> str | None:
    """The torchvision model that takes this state dict as it is, if there is one."""
    import torchvision

    candidate = name.removeprefix("torchvision:").removesuffix("-imagenet").removesuffix("v1")
    if candidate not in torchvision.models.list_models():
        return None
    with torch.device("meta"):
        classes = next(reversed(state.values())).shape[0]
        stock = torchvision.models.get_model(candidate, weights=None, num_classes=classes).state_dict()
    fits = stock.keys() == state.keys() and all(stock[k].shape == state[k].shape for k in stock)
    return candidate if fits else None
