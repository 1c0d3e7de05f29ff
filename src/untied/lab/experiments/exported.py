"""A trained network as a folder that others can load: `untied export RUN --out FOLDER`, `untied.lab.load`.

    model.json            what the network is, the run's own result, and a digest of each other file
    weights.safetensors   W, B and buffers; the result is in its header too
    card.md               the run's card
    verify.txt            what `untied.verify` says of the network, a line for each parameter

Nothing in it is code, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

import untied
from untied.errors import UntiedError
from untied.lab import models
from untied.lab.data import Dataset
from untied.lab.experiments.check import looked_at
from untied.lab.keeping.record import RunFolder, open_tensors, write_atomically, write_tensors
from untied.lab.reading.edges import load_json
from untied.lab.rules.signs import trained_as
from untied.lab.tasks.trees import first, to
from untied.lab.training.setup import task_of

__all__ = ["load", "write"]

DESCRIPTION, WEIGHTS = "model.json", "weights.safetensors"
OTHERS = ("card.md", "verify.txt")
NEEDS = ("model", "rule", "input_shape", "outputs", "vocabulary", "result", "digests")
HUB = re.compile(r"[\w.-]+/[\w.-]+")


def write(run: Path, out: Path, model: nn.Module, data: Dataset, config: Any) -> untied.Verification:
    """Write the folder of a run's network. Returns what `untied.verify` says of it.

    Args:
        run: the run's folder. out: the folder to write.
        model: untied, as `untied.lab.experiments.evaluate.load_run` gives it with ``data`` and ``config``.

    Raises:
        UntiedError: the folder is there already, or the run has no result yet.
    """
    if out.exists():
        raise UntiedError(f"{out} is there already: name another folder with --out")
    source = RunFolder.open(run)
    if not (source.path / "results.json").is_file():
        raise UntiedError(f"{run} has not ended, so it has no result to record: finish it with  untied train --resume")
    task = task_of(config, data)
    result = {k: v for k, v in source.read_json("results.json").items() if isinstance(v, int | float | str)}
    x, y = (to(first(part, 4), "cpu") for part in task.batch(next(iter(data.train.epoch(0)))))
    report: untied.Verification = looked_at(model, task, x, y)
    write_tensors(out / WEIGHTS, model.state_dict(), {"format": "pt", "result": json.dumps(result, sort_keys=True)})
    card = source.path / "card.md"
    texts = {"card.md": card.read_text(encoding="utf-8") if card.is_file() else "", "verify.txt": f"{report}\n"}
    for name, text in texts.items():
        write_atomically(out / name, text.encode(errors="backslashreplace"))
    description = {
        "format": 1, "untied": untied.__version__, "model": config.model, "rule": str(config.parsed),
        "input_shape": data.input_shape, "outputs": task.outputs(data), "vocabulary": data.vocabulary,
        "result": result, "digests": {name: digest(out / name) for name in (WEIGHTS, *OTHERS)},
    }  # fmt: skip
    write_atomically(out / DESCRIPTION, json.dumps(description, indent=2).encode())
    return report


def load(where: str | Path, model: nn.Module | None = None) -> nn.Module:
    """A network that ``untied export`` wrote, untied, in evaluation mode. Its ``untied_record`` is the run's result.

    Args:
        where: the folder, or the id of one on the Hugging Face hub, ``name/repository``.
        model: the plain network, where it is not one that the lab knows by name.

    Raises:
        UntiedError: there is no such folder or id; a file is not the one that was written; the record differs between
            the description and the weights; the weights are of another network.

    >>> try:
    ...     load("nowhere")
    ... except UntiedError as error:
    ...     print(str(error).partition(":")[0])
    there is no folder nowhere
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = from_hub(str(where))
    about = described(folder)
    for name, wanted in about["digests"].items():
        if name not in (WEIGHTS, *OTHERS) or not (folder / name).is_file():
            raise UntiedError(f"{where} has no {name}, which its {DESCRIPTION} lists: it was not copied whole")
        if digest(folder / name) != wanted:
            raise UntiedError(f"{folder / name} is not the file that was exported: its digest differs; copy it again")
    tensors, record = read_weights(folder / WEIGHTS)
    if record != about["result"]:
        raise UntiedError(f"{where}: the result in {DESCRIPTION} is not the one that the weights were exported with")
    if model is None:
        if models.is_own(about["model"]):
            raise UntiedError(
                f"{where} is a {about['model']}, whose code is not in the folder: give the plain network, load(..., "
                "model=Net())"
            )
        shape = about["input_shape"]
        model = models.build(
            about["model"], input_shape=tuple(shape), classes=about["outputs"], vocabulary=about["vocabulary"]
        )
    untied.untie_(model, trained_as(untied.rules.parse(about["rule"])))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UntiedError(f"{where}: the weights are of another network: {reason}") from error
    model.untied_record = record
    return model.eval()


def described(folder: Path) -> dict[str, Any]:
    """What model.json says.

    Raises:
        UntiedError: it is not there, or says too little.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UntiedError(f"{folder} has no {DESCRIPTION}: untied export RUN --out FOLDER writes one")
    about = load_json(path.read_text(encoding="utf-8"), str(path))
    missing = [key for key in NEEDS if not isinstance(about, dict) or key not in about]
    if missing or WEIGHTS not in about["digests"]:
        raise UntiedError(f"{path} says nothing of {', '.join(missing) or WEIGHTS}: untied export did not write it")
    return dict(about)


def from_hub(name: str) -> Path:
    """The files of a repository on the hub, downloaded.

    Raises:
        UntiedError: it is no id, there is no such repository, or the hub's client is not installed.
    """
    if not HUB.fullmatch(name):
        raise UntiedError(f"there is no folder {name}: give one, or the id of a repository on the hub, name/repository")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UntiedError(f"there is no folder {name}; to look on the hub, install huggingface_hub")
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=[DESCRIPTION, WEIGHTS, *OTHERS]))
    except Exception as error:  # of the network, of the hub, of its client
        reason = " ".join(str(error).split())[:200]
        raise UntiedError(
            f"there is no folder {name}, and the hub did not give it: {type(error).__name__}: {reason}"
        ) from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors by name, and the result in the header."""
    try:
        with open_tensors(path) as file:
            record = json.loads((file.metadata() or {}).get("result", "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, ValueError) as error:
        raise UntiedError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
