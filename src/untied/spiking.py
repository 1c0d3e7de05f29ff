"""What spikes say of a layer's weights: the discontinuity at a unit's threshold, compared with what follows downstream.

Legend, as in geometry.py and mirror.py
    v   membrane of an input unit: τ dv = u∞ − v, reset to 0 by a spike      θ  its threshold
    z   the highest drive of a window: what v would have reached without resets; the unit has spiked where z ≥ θ
    S   the unit's own synaptic trace in the window: its mean less its value before
    R   T_W S, the same of what arrives at each output
    ω   of each window, for one unit: ω·R is the jump at θ between two lines, fitted to R against z on either side
    i   how many inputs reach one output

Just above θ a unit has spiked, just below it has not, and nothing else differs: the jump is what its spike does
(Lansdell and Kording 2019), whatever else drives the network. Divided by the jump of its own trace it is the weight:

    Ŵ = correlate(ω, T_W S) / (ω·S)     =  W  +  Σ over other inputs k of W_k (ω·S_k) / (ω·S)

(Guerguiev et al. 2019, who scale the jump to B's size instead; the ratio is a fuzzy design, Imbens and Lemieux 2008.)
So it is the mirror's correlation with ω in the place of noise: `Geometry.patch` serves dense layers and convolutions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UntiedError
from .geometry import DENSE, Geometry

__all__ = ["Estimate", "Neurons", "Windows", "estimate"]

STRETCH = 4  # windows that follow one another; the other stretches run beside them
ENOUGH = 3  # windows on either side of the threshold that a line and its error need


@dataclass(frozen=True)
class Neurons:
    """Leaky integrate-and-fire units under noise, and the windows in which they are watched. Times in milliseconds.

    The published form dv = −g_L v + g_D (b − v) has τ = 1 / (g_L + g_D) and u∞ = g_D τ b.

    Attributes:
        threshold: θ; a spike resets v to 0. membrane: τ. refractory: how long v then stays there.
        rise, fall: of the synaptic trace of a spike, (e^(−t/fall) − e^(−t/rise)) / (fall − rise), whose area is 1.
        mean, std: that the noise would give to v if there were no threshold.
        shared: share of the noise's variance that all units have in common, 0 up to 1: a confounder.
        window: its length. step: of the simulation. bandwidth: windows with |z − θ| up to this count.

    Raises:
        UntiedError: a value is impossible, or the window is not longer than the refractory time.

    >>> import torch
    >>> from untied.spiking import Neurons
    >>> _ = torch.manual_seed(0)
    >>> windows = Neurons().run(units=5, windows=200)
    >>> bool(((windows.drive >= 1) == (windows.spikes > 0)).all())
    True
    """

    threshold: float = 1.0
    membrane: float = 10.0
    refractory: float = 3.0
    rise: float = 3.0
    fall: float = 10.0
    mean: float = 0.6
    std: float = 0.3
    shared: float = 0.0
    window: float = 30.0
    step: float = 1.0
    bandwidth: float = 0.3

    def __post_init__(self) -> None:
        for name in ("threshold", "membrane", "rise", "fall", "window", "step", "bandwidth"):
            if not getattr(self, name) > 0 or not math.isfinite(getattr(self, name)):
                raise UntiedError(f"{name}={getattr(self, name)!r} is not possible: give a number above 0")
        if self.refractory < 0 or self.std < 0 or not 0 <= self.shared <= 1:
            raise UntiedError(
                f"refractory={self.refractory:g}, std={self.std:g}, shared={self.shared:g} is not possible: the first "
                "two are 0 or more, shared is from 0 to 1"
            )
        if self.rise >= self.fall:
            raise UntiedError(f"rise={self.rise:g} is not below fall={self.fall:g}: a trace rises faster than it falls")
        if self.window <= self.refractory:
            raise UntiedError(
                f"window={self.window:g} ms is not longer than the refractory time of {self.refractory:g} ms, in which "
                "no unit can spike: give a longer window, such as 30, or a shorter refractory time"
            )
        if self.step > min(self.rise, self.membrane, self.window):
            raise UntiedError(f"step={self.step:g} ms is longer than what happens: give at most {self.rise:g}, or 1")

    def run(
        self, units: int, windows: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Windows:
        """Simulate units that do not know one another, all of them and all stretches of time side by side.

        Args:
            units: how many. windows: how many of each are watched; rounded up to whole stretches of 4.
        """
        stretches, length = math.ceil(windows / STRETCH), round(self.window / self.step)
        keep, fall, rise = (math.exp(-self.step / t) for t in (self.membrane, self.fall, self.rise))
        pause = round(self.refractory / self.step)
        own, common = math.sqrt(1 - self.shared), math.sqrt(self.shared)

        def noise() -> Tensor:
            n = torch.randn(stretches, units, dtype=dtype, device=device) * own
            return n.add_(torch.randn(stretches, 1, dtype=dtype, device=device), alpha=common) if common else n

        v = self.mean + self.std * noise()
        held = torch.zeros_like(v)  # steps for which a unit is refractory still
        falling, rising, trace = torch.zeros_like(v), torch.zeros_like(v), torch.zeros_like(v)
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        for number in range(1 + STRETCH):  # the first settles what was set
            u, waits, before = v.clone(), held.clone(), trace.clone()
            peak, total, spikes = torch.full_like(v, -math.inf), torch.zeros_like(v), torch.zeros_like(v)
            for _ in range(length):
                drive = noise().mul_(self.std * math.sqrt(1 - keep**2)).add_((1 - keep) * self.mean)
                u.mul_(keep).add_(drive).mul_(waits <= 0)  # as v, but for the resets of this window
                v.mul_(keep).add_(drive).mul_(held <= 0)
                spike = v >= self.threshold
                v.mul_(~spike)
                held.sub_(1).masked_fill_(spike, float(pause))
                waits.sub_(1)
                torch.maximum(peak, u, out=peak)
                falling.mul_(fall).add_(spike)
                rising.mul_(rise).add_(spike)
                torch.sub(falling, rising, out=trace).mul_(1 / (self.fall - self.rise))
                total.add_(trace)
                spikes.add_(spike)
            if number:
                seen.append((peak, total / length - before, spikes))
        drives, traces, counts = zip(*seen, strict=True)
        return Windows(torch.cat(drives), torch.cat(traces), torch.cat(counts), self)


@dataclass(frozen=True)
class Windows:
    """What units did in each window: of `Neurons.run`, or of any other simulator or recording.

    Attributes:
        drive: [n, units], z: the highest drive without the window's own resets. Where it is θ or more, it has spiked.
        trace: [n, units], S: the unit's effect on what follows, its mean over the window less its value before.
        spikes: [n, units], how many. neurons: threshold, bandwidth and length of the windows.

    >>> import torch
    >>> from untied.spiking import Neurons, Windows
    >>> drive, spikes = torch.rand(200, 3) * 2, torch.ones(200, 3)
    >>> Windows(drive, torch.rand(200, 3), spikes, Neurons(window=50.0)).rate
    tensor([20., 20., 20.])
    """

    drive: Tensor
    trace: Tensor
    spikes: Tensor
    neurons: Neurons

    @property
    def rate(self) -> Tensor:
        """[units], in spikes a second."""
        return self.spikes.mean(0) * (1000 / self.neurons.window)

    def jump(self, name: str = "") -> tuple[Tensor, Tensor]:
        """(ω [n, units], ω·ω [units]): ω·R is the jump at the threshold of two lines fitted to any R.

        Raises:
            UntiedError: a unit never spikes, or in every window, or too rarely near its threshold.
        """
        x = (self.drive - self.neurons.threshold) / self.neurons.bandwidth
        near, above = x.abs() <= 1, x >= 0
        omega, size = torch.zeros_like(x), torch.zeros_like(x[0])
        for side, sign in ((near & above, 1.0), (near & ~above, -1.0)):
            count = side.sum(0)
            if bool((count < ENOUGH).any()):
                raise UntiedError(self._why(int(count.argmin()), int(count.min()), sign > 0, name))
            x_, n = torch.where(side, x, 0.0), count.to(x.dtype)
            first, second = x_.sum(0), x_.square().sum(0)
            inverse = 1 / (n * second - first.square())
            omega += sign * torch.where(side, (second - first * x_) * inverse, 0.0)
            size += second * inverse
        return omega, size

    def _why(self, unit: int, count: int, above: bool, name: str) -> str:
        """What is wrong with a unit that has too few windows on one side."""
        n, spiked = len(self.spikes), int((self.spikes[:, unit] > 0).sum())
        who = f"{f'layer {name}, ' if name else ''}unit {unit}"
        rate = f"{float(self.rate[unit]):.3g} Hz"
        if spiked == 0:
            return f"{who} never spikes ({rate} in {n} windows): raise the drive's mean or std, or lower the threshold"
        if spiked == n:
            return f"{who} spikes in every window ({rate} in {n} windows): lower the drive's mean or shorten the window"
        side = "above" if above else "below"
        return (
            f"{who} has {count} of {n} windows just {side} its threshold ({rate}), and a line needs {ENOUGH}: give "
            f"more windows, or a wider bandwidth than {self.neurons.bandwidth:g}"
        )


@dataclass(frozen=True)
class Estimate:
    """W as spikes tell it.

    Attributes:
        weight: Ŵ in W's layout. error: its standard error, synapse by synapse. rate: [units] of a patch, in Hz.

    >>> import torch
    >>> from untied.spiking import Estimate
    >>> round(Estimate(torch.full((1, 2), 2.0), torch.ones(1, 2), torch.zeros(2)).variance, 3)  # 2 / (8 − 2)
    0.333
    """

    weight: Tensor
    error: Tensor
    rate: Tensor

    @property
    def variance(self) -> float:
        """Of the whole estimate, relative to W: squared errors over ‖W‖², which is estimated too; at least 1e-12."""
        noise = float(self.error.double().square().sum())
        signal = float(self.weight.double().square().sum()) - noise
        return max(noise / max(signal, 1e-12 * noise, 1e-300), 1e-12) if noise else 1e-12


def estimate(
    W: Tensor,
    geometry: Geometry = DENSE,
    windows: int | Windows = 2000,
    neurons: Neurons | None = None,
    name: str = "",
) -> Estimate:
    """Ŵ from the discontinuity at each input unit's threshold, with its error. Local: each synapse needs its own input
    unit's drive and trace, and what arrives at its output.

    The error counts the other inputs of an output as noise, as for independent drives; a shared drive makes it too
    large rather than too small. It falls with √windows and grows with √i.

    Args:
        W: in its layer's layout, as the geometry's legend says.
        windows: how many to simulate, or those of another simulator: [n, units] of the geometry's patch, which are
            the inputs of a dense layer, or inputs × taps of a convolution at one position.
        neurons: for the simulation. name: of the layer, for errors.

    Raises:
        UntiedError: as `Windows.jump`; or windows of another number of units.

    >>> import torch
    >>> from untied.spiking import estimate
    >>> _ = torch.manual_seed(0)
    >>> W = torch.randn(3, 1)
    >>> bool(torch.allclose(estimate(W, windows=200).weight, W, atol=1e-4))  # exact where an output has one input
    True
    """
    W = W.detach()
    wide = W.to(torch.promote_types(W.dtype, torch.float32))
    bare, shape, _ = geometry.patch(W)
    width = math.prod(shape)
    if not isinstance(windows, Windows):
        if isinstance(windows, bool) or not isinstance(windows, int) or windows < 2 * ENOUGH:
            raise UntiedError(f"windows={windows!r} is not possible: give a whole number, {2 * ENOUGH} or more")
        windows = (neurons or Neurons()).run(width, windows, wide.dtype, W.device)
    if windows.trace.shape[1:] != (width,):
        raise UntiedError(
            f"{f'layer {name}: ' if name else ''}windows of {windows.trace.shape[1]} units are given, and the kernel "
            f"of shape {tuple(W.shape)} has {width} inputs at a position: give as many"
        )
    omega, size = windows.jump(name)
    S = windows.trace.to(wide.dtype)
    own = (omega * S).sum(0)  # the jump of each unit's own trace
    R = bare.project(S.view(-1, *shape), wide)
    found = bare.correlate((omega / own).to(wide.dtype).view(-1, *shape), R)
    factor = (size / own.square()).to(wide.dtype)
    # The variance of what the unit itself does not explain, R − Ŵ S, for every synapse.
    S, R = S - S.mean(0), R - R.mean(0)
    spread = R.square().sum(0, keepdim=True)
    noise = bare.correlate(factor.view(1, *shape), spread)
    noise -= 2 * found * bare.correlate((factor * S).view(-1, *shape), R)
    noise += found.square() * bare.correlate((factor * S.square().sum(0)).view(1, *shape), torch.ones_like(spread))
    noise = (noise / (len(S) - 1)).clamp(min=0)
    return Estimate(found.to(W.dtype), noise.sqrt().to(W.dtype), windows.rate)
