"""Random draws and smooth random signals, and 3D algebra that never rounds to TF32."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

Range = tuple[float, float]


@cache
def constant(values: Any, device: torch.device) -> Tensor:
    """Nested tuples of numbers as a tensor, copied to a device once: each copy waits for it."""
    return torch.tensor(values, device=device)


class Draw:
    """Draws from one seeded generator, on its device, in float32. Never waits for a GPU."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.device = generator, generator.device

    def unit(self, *shape: int) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def uniform(self, bounds: Range, *shape: int) -> Tensor:
        return bounds[0] + (bounds[1] - bounds[0]) * self.unit(*shape)

    def log_uniform(self, bounds: Range, *shape: int) -> Tensor:
        return self.uniform((math.log(bounds[0]), math.log(bounds[1])), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def chance(self, probability: float | Tensor, *shape: int) -> Tensor:
        return self.unit(*shape) < probability

    def sign(self, *shape: int) -> Tensor:
        return self.chance(0.5, *shape) * 2.0 - 1

    def index(self, count: int, *shape: int) -> Tensor:
        """Integers in [0, count)."""
        return torch.randint(count, shape, generator=self.generator, device=self.device)

    def pick(self, weights: Sequence[float], *shape: int) -> Tensor:
        """Integers in [0, len(weights)), as often as their weights say."""
        level, picked = self.unit(*shape) * sum(weights), 0.0
        choice = torch.zeros(shape, dtype=torch.long, device=self.device)
        for weight in weights[:-1]:
            picked += weight
            choice += level >= picked
        return choice

    def waves(self, times: Tensor, shape: tuple[int, ...], band: Range, slope: float) -> Tensor:
        """Smooth noise (B, *shape, T): one random wave each half octave of a band.

        times (B, T) in seconds, band in Hz. Amplitudes fall with frequency as f^-slope and
        are 1 at 1 Hz; a wave of amplitude a has an RMS of a/√2.
        """
        count = max(2, round(2 * math.log2(band[1] / band[0])))
        lead = (times.shape[0], *shape)
        place = torch.arange(count, device=self.device) + self.unit(*lead, count)
        frequency = band[0] * (band[1] / band[0]) ** (place / count)
        phase = 2 * math.pi * self.unit(*lead, count)
        amplitude = frequency**-slope * self.normal(*lead, count)
        times = times.reshape(-1, *[1] * (len(shape) + 1), times.shape[1])
        angle = 2 * math.pi * frequency[..., None] * times + phase[..., None]
        return (amplitude[..., None] * angle.sin()).sum(-2)


# Matrix products may run in TF32, which rounds to 11 bits: the trainer allows it, geometry
# can't bear it. These are sums of products.


def rotate(rotation: Tensor, vector: Tensor) -> Tensor:
    """R v: (..., 3, 3) on (..., 3)."""
    return (rotation * vector[..., None, :]).sum(-1)


def rotate_back(rotation: Tensor, vector: Tensor) -> Tensor:
    """Rᵀ v: (..., 3, 3) on (..., 3)."""
    return (rotation * vector[..., :, None]).sum(-2)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """A B: (..., 3, 3) on (..., 3, 3)."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def upright(heading: Tensor) -> Tensor:
    """Rotations (..., 3, 3) by an angle (...) about the vertical, z."""
    sin, cos, zero = heading.sin(), heading.cos(), torch.zeros_like(heading)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def frame_along(axis: Tensor, side: Tensor) -> Tensor:
    """Frames (..., 3, 3) whose z column is along `axis` and whose x is as near `side` as can be."""
    z = normalize(axis, dim=-1)
    x = normalize(side - (side * z).sum(-1, keepdim=True) * z, dim=-1)
    return torch.stack([x, torch.linalg.cross(z, x), z], -1)


def orthonormal(matrix: Tensor) -> Tensor:
    """Near-rotations (..., 3, 3), such as means of two, to rotations."""
    return frame_along(matrix[..., 2], matrix[..., 0])


def at_times(values: Tensor, where: Tensor) -> Tensor:
    """Rows of values (F, ...) at fractional rows `where` (...), linearly between neighbours."""
    low = where.floor().clamp(0, values.shape[0] - 2)
    weight = (where - low).reshape(*where.shape, *[1] * (values.ndim - 1))
    low = low.long()
    return torch.lerp(values[low], values[low + 1], weight)


def pick_frames(values: Tensor, index: Tensor) -> Tensor:
    """Rows of values (B, F, ...) at index (B, N): (B, N, ...)."""
    clip = torch.arange(values.shape[0], device=values.device)
    return values[clip.reshape(-1, *[1] * (index.ndim - 1)), index]
