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
    """Folders of untied train, untied compare or untied transfer, or a folder of runs; runs of one rule are its seeds.
    LABEL=FOLDER puts a run under a label."""
    recording: tuple[Path, ...] = ()
    """Files of recordings, see docs/neural.md; neurons of one region are pooled."""
    layers: tuple[str, ...] = ("default",)
    """Names of layers, NAME:input for what goes into one; all; or default: blocks, layers outside of them, and what the
    classifier sees."""
    maps: tuple[Literal["pls", "ridge"], ...] = ("pls",)
    """From features to neurons: partial least squares, ridge regression, or both."""
    components: int = 25
    """Of partial least squares."""
    splits: int = 5
    """Train/test splits over pictures."""
    test: float = 0.2
    """Fraction of the pictures that are tested on in a split."""
    inner: int = 3
    """Folds of a split's training pictures, on which layers and penalties are chosen."""
    bootstrap: int = 500
    """Samples of the images for the standard error of dissimilarities."""
    seed: int = 0
    """Of splits and samples."""
    random: bool = False
    """Add each run's network as it was before training, the floor."""
    pixels: bool = False
    """Add the pictures themselves, as the networks see them."""
    checkpoint: Literal["last", "best"] = "last"
    """Of runs of untied train."""
    root: Path | None = None
    """Where the training data lies now, if not where it lay: sizes and normalisation come from there."""
    width: int = 16384
    """Layers wider than this are projected onto so many random orthogonal directions."""
    memory: int = 1024
    """Megabytes that the features of several layers may take."""
    device: str = "cpu"
    """Where networks compute; maps are fitted on the CPU."""
    out: Path | None = None
    """Where to write; runs/neural-TIME if left out."""
    overwrite: bool = False
    """Replace what an earlier call has written there."""

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
    """An .npz file of arrays, brainscore:IDENTIFIER (where Brain-Score is installed), or - for .npy files alone."""
    out: Annotated[Path, tyro.conf.Positional]
    """The recording to write, .npz."""
    images: str = "images"
    """The pictures: an array (n, height, width, 3) or (n, height, width), u1; with --image-offsets, the bytes of image
    files one after another; or a folder of image files, in the order of their names, or of --image-names."""
    image_offsets: str | None = None
    """The array that says where each image file begins and ends, (n + 1,)."""
    image_names: str | None = None
    """The array of file names, in the folder that --images names."""
    responses: str | None = None
    """The array of responses. Left out: responses, if there is one of that name."""
    axes: tuple[Literal["image", "neuron", "repeat"], ...] = ("image", "neuron", "repeat")
    """What its axes are, in their order; the third may be missing."""
    missing: float | None = None
    """The number that stands for a response that was not measured, beside NaN."""
    region: str = ""
    """Of the neurons: an array, or the name itself, such as IT."""
    subject: str = ""
    """Likewise, the animal."""
    neuron: str | None = None
    """The array of the neurons' names."""
    stimulus: str | None = None
    """The array that has the same value for rows that show one picture; identical pictures are found anyway."""
    reliability: str | None = None
    """The array of the neurons' reliability, if repeats are not given."""
    rdm: tuple[str, ...] = ()
    """Arrays of dissimilarities (n, n), (subject, n, n) or (subject, session, n, n), averaged over sessions."""
    rdm_region: tuple[str, ...] = ()
    """A name for each of them, such as "monkey IT"."""
    drop: Literal["nothing", "neurons", "images"] = "nothing"
    """Leave out the neurons, or the images, that have NaN where a number is needed; neurons: also those that answer
    every image alike."""
    name: str | None = None
    """For display; the name of the file if left out."""
    about: str = ""
    """Where it comes from, and under what licence."""
