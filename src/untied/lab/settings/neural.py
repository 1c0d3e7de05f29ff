"""The settings of untied neural, and of untied neural convert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from untied.errors import UntiedError

__all__ = ["ConvertConfig", "NeuralConfig", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How layers are fitted.

    Attributes:
        maps: of "pls" and "ridge". components: of PLS. splits: their number. test: fraction of pictures tested on.
        inner: folds of the training images, for choosing layers and penalties. seed: of all of it.
        bootstrap: samples of the images, for dissimilarities. width: wider layers are projected.
    """

    maps: tuple[str, ...] = ("pls",)
    components: int = 25
    splits: int = 5
    test: float = 0.2
    inner: int = 3
    seed: int = 0
    bootstrap: int = 500
    width: int = 16384


@dataclass(frozen=True)
class NeuralConfig:
    """How well trained networks predict what neurons answer to pictures (Fig. 6 of the paper).

    untied neural convert makes a recording from arrays. The same command with the same --out goes on where it stopped.
    """

    command: ClassVar[str] = "neural"

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The folders of untied train, untied compare or untied transfer, or a folder of runs. Runs of one rule count as
    its seeds. LABEL=FOLDER puts a run under a label."""
    recording: tuple[Path, ...] = ()
    """The files of recordings, which docs/neural.md describes. Neurons of one region are pooled."""
    layers: tuple[str, ...] = ("default",)
    """The layers by name; NAME:input is what goes into one, and all is every layer. The default is the blocks, layers
    outside of them, and what the classifier sees."""
    maps: tuple[Literal["pls", "ridge"], ...] = ("pls",)
    """How features are mapped to neurons: by partial least squares (pls), ridge regression (ridge), or both."""
    components: int = 25
    """How many components partial least squares has."""
    splits: int = 5
    """How many times the pictures are split into training and test."""
    test: float = 0.2
    """The fraction of the pictures that are tested on in a split."""
    inner: int = 3
    """How many folds a split's training pictures have. Layers and penalties are chosen on them."""
    bootstrap: int = 500
    """How many samples of the images give the standard error of dissimilarities."""
    seed: int = 0
    """The seed of splits and samples."""
    random: bool = False
    """Whether each run's network as it was before training is added, as the floor."""
    pixels: bool = False
    """Whether the pictures themselves are added, as the networks see them."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of a run of untied train is used: the last, or the best on validation."""
    root: Path | None = None
    """Where the training data lies now, if it was moved. Sizes and normalisation come from there."""
    width: int = 16384
    """How wide a layer may be. Wider ones are projected onto so many random orthogonal directions."""
    memory: int = 1024
    """How many megabytes the features of several layers may take."""
    device: str = "cpu"
    """Where networks compute: cpu, cuda, cuda:1, mps. Maps are fitted on the CPU."""
    out: Path | None = None
    """The run folder. By default it is runs/neural-TIME."""
    overwrite: bool = False
    """Whether what an earlier call has written there is replaced."""

    def __post_init__(self) -> None:
        least = {"components": 1, "splits": 1, "inner": 2, "bootstrap": 2, "seed": 0, "width": 64, "memory": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {value}")
        if self.width % 2:
            raise UntiedError(f"width is {self.width}: it must be even")
        if not 0 < self.test <= 0.5:
            raise UntiedError(f"test is {self.test}: it is a fraction of the pictures, above 0 and at most 0.5")
        if not self.maps or not self.layers:
            raise UntiedError("maps and layers need a name each at least: leave them out for the defaults")

    @property
    def settings(self) -> Settings:
        """What fits depend on."""
        return Settings(
            tuple(m for m in ("pls", "ridge") if m in self.maps), self.components, self.splits, self.test, self.inner,
            self.seed, self.bootstrap, self.width,
        )  # fmt: skip


@dataclass(frozen=True)
class ConvertConfig:
    """Make a recording from arrays. An array is named as FILE names it, or is the path of an .npy file."""

    source: Annotated[str, tyro.conf.Positional]
    """An .npz file of arrays; or brainscore:IDENTIFIER, where Brain-Score is installed; or - if all arrays are .npy
    files."""
    out: Annotated[Path, tyro.conf.Positional]
    """The recording that is written, an .npz file."""
    images: str = "images"
    """The pictures: an array (n, height, width, 3) or (n, height, width) of bytes, or a folder of image files. Files
    are taken in the order of their names, or of --image-names. With --image-offsets the array holds the bytes of image
    files, one after another."""
    image_offsets: str | None = None
    """The array (n + 1,) that says where each image file begins and ends."""
    image_names: str | None = None
    """The array of file names in the folder that --images names."""
    responses: str | None = None
    """The array of responses. By default it is the one that is called responses, if there is one."""
    axes: tuple[Literal["image", "neuron", "repeat"], ...] = ("image", "neuron", "repeat")
    """What the axes of the responses are, in their order. The third may be missing."""
    missing: float | None = None
    """The number that, like NaN, stands for a response that was not measured."""
    region: str = ""
    """The neurons' region: an array, or the name itself, such as IT."""
    subject: str = ""
    """The animal: an array, or the name itself."""
    neuron: str | None = None
    """The array of the neurons' names."""
    stimulus: str | None = None
    """The array that has the same value for rows that show one picture. Identical pictures are found without it."""
    reliability: str | None = None
    """The array of the neurons' reliability, if repeats are not given."""
    rdm: tuple[str, ...] = ()
    """The arrays of dissimilarities (n, n), (subject, n, n) or (subject, session, n, n). They are averaged over
    sessions."""
    rdm_region: tuple[str, ...] = ()
    """A name for each of these arrays, such as "monkey IT"."""
    drop: Literal["nothing", "neurons", "images"] = "nothing"
    """What is left out where NaN stands and a number is needed: nothing, the neurons, or the images. With neurons,
    those that answer every image alike are left out too."""
    name: str | None = None
    """The name that tables and figures show. By default it is that of the file."""
    about: str = ""
    """Where the recording comes from, and under what licence."""
