"""The model card of a run: what was trained, on what, with what result, and how to use it."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from untied.lab.keeping.record import RunFolder
from untied.lab.reading.edges import printable
from untied.lab.settings.run import TrainConfig
from untied.lab.showing.tables import long_name
from untied.lab.tasks import metrics_of

__all__ = ["write"]

CARD = """\
# {model}, trained with {rule}

{rule_name}: `{rule}`. {locality}
Data: {data}. {epochs} epochs, batches of {batch}, seed {seed}.

| | |
| :-- | --: |
{rows}

{remark}
Made by `untied train` {version} (commit {commit}) on {machine}, torch {torch}, {date}.

## Use it

```bash
untied evaluate {path}                  # accuracy, and every angle between W and B, by layer
untied export {path} --out model.safetensors    # plain weights, without backward ones
```

`checkpoints/last.safetensors` is the state after the last step, `checkpoints/best.safetensors` that of the epoch with
the best accuracy on validation images, which are a part of the training images. The test split chose nothing.

## Configuration

```yaml
{config}```
"""


def write(folder: RunFolder, config: TrainConfig) -> None:
    """Write card.md from what the run folder holds."""
    result, environment = folder.read_json("results.json"), folder.environment()
    rule = config.parsed
    git, machine = environment["git"], environment["machine"]
    folder.write_text(
        "card.md",
        CARD.format(
            model=config.model,
            rule=config.rule,
            rule_name=long_name(rule.name) or "a combination of primitives",
            locality="A local rule." if rule.local else "Not a local rule.",
            data=config.data.name,
            epochs=config.epochs,
            batch=config.data.batch_size,
            seed=config.seed,
            rows="\n".join(f"| {name} | {value} |" for name, value in rows(result).items()),
            remark=f"**Training failed: {result['failure']}**\n" if result.get("failure") else "",
            version=environment["packages"]["untied"],
            commit="unknown" if git is None else git["commit"][:9] + (", changed" if git["dirty"] else ""),
            machine=", ".join([f"{machine['cores']} cores of {machine['cpu']}", *machine["gpus"]]),
            torch=environment["packages"]["torch"],
            date=environment["date"],
            path=printable(shlex.quote(str(folder.path))),
            config=yaml.safe_dump(folder.config(), sort_keys=False, allow_unicode=True),
        ),
    )


def rows(result: dict[str, Any]) -> dict[str, str]:
    """The result in words."""
    metrics = metrics_of(result)
    best = metrics[0]
    scores = {f"{result.get('split')} {m.head}": m.shown(result.get(m.name)) for m in metrics}
    scores[f"best validation {best.head}"] = best.shown(result.get(f"best_validation_{best.name}"))
    degrees = {
        "mean angle between W and B (°)": result.get("weight_angle"),
        "angle between pseudogradient and gradient (°)": result.get("gradient_angle"),
    }
    return {name: shown for name, shown in scores.items() if shown != "–"} | {
        name: f"{value:.1f}" for name, value in degrees.items() if value is not None
    }
