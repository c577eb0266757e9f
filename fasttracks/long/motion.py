"""What moves in a long clip: fitted window by window, and cross-faded."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import Prediction, compose
from fasttracks.long.windows import Window
from fasttracks.refine.bundle import fit_motion, predicted, told
from fasttracks.refine.cameras import Scene
from fasttracks.refine.motion import Motion

_GUIDES = 4  # neighbours that a lost track goes on with


def blend(
    windows: Sequence[Window],
    network: Sequence[Prediction],
    scene: Scene,
    tracks: Tensor,
    static: Tensor,
    scale: Tensor,
    gamma: Tensor,
) -> Prediction:
    """The prediction for a clip (B = 1) from its cameras and still points, and windows' motion.

    Each window adds K bases, whose coefficients fade out where the next one's fade in; the first of
    all is the static scene. A track that a window does not have goes on as its nearest neighbours
    do.

    Args:
        windows: of the clip.
        network: what the network said of each: how far what moves is, beside what stands still.
        scene: float64.
        tracks: (T, N, 3).
        static: (1, N) tracks that their point in the scene explains.
        scale: (1, N) of tracks' offsets from it.
        gamma: (N,) γ as the network sees it.
    """
    frames, count = tracks.shape[:2]
    bases = network[0].basis.shape[1]
    size = 1 + bases * len(windows)
    coefficients = scene.points.new_zeros(frames, size)
    coefficients[:, 0] = 1
    basis = scene.points.new_zeros(size, count, 3)
    moving = ~static[0]
    parts = []
    for window, given in zip(windows, network, strict=True):
        part, which = window.frames, window.which
        own = Scene(
            scene.rotation[:, part],
            scene.position[:, part],
            scene.log_focal,
            scene.points[:, which],
        )
        seen = tracks[part][None, :, which].double()
        motion = fit_motion(own, given, seen, static[:, which], scale[:, which])
        there = torch.zeros_like(moving)
        there[which] = moving[which]
        whole = scene.points.new_zeros(bases, count, 3)
        whole[:, which] = motion.basis[0] * moving[which, None]
        parts.append(_Moving(part, motion.coefficients[0], whole, there))
    for i in range(1, len(parts)):
        parts[i] = _carry(parts[i - 1], parts[i], parts[i - 1].frames.stop - 1)
    for i in reversed(range(len(parts) - 1)):
        parts[i] = _carry(parts[i + 1], parts[i], parts[i + 1].frames.start)

    # Where a moving track is on the whole: the mean over the windows.
    middle = torch.stack([part.basis[0] for part in parts]).mean(0)
    basis[0] = torch.where(moving[:, None], middle, scene.points[0])
    fade_of = fades([part.frames for part in parts], scene.points)
    for i, own_part in enumerate(parts):
        rows = slice(1 + bases * i, 1 + bases * (i + 1))
        fade = fade_of[i, own_part.frames, None]
        coefficients[own_part.frames, rows] = own_part.coefficients * fade
        basis[rows] = own_part.basis
        basis[rows.start] -= moving[:, None] * middle

    motion = Motion(coefficients[None], basis[None])
    return predicted(scene, motion, told(gamma[None].double(), scale, static))


def fades(parts: Sequence[slice], like: Tensor) -> Tensor:
    """What each of W windows, that cover T frames, counts in each: (W, T); in each they sum to 1.

    A window comes and goes without a jolt, as it would by a ramp that begins at once.
    """
    weight = like.new_zeros(len(parts), parts[-1].stop)
    for i, part in enumerate(parts):
        frame = torch.arange(part.start, part.stop, dtype=like.dtype, device=like.device)
        ramp = torch.ones_like(frame)
        if i > 0:
            end = parts[i - 1].stop  # frames from part.start to end are shared
            ramp = ramp.minimum((frame - part.start + 1) / (end - part.start + 1))
        if i + 1 < len(parts):
            begin = parts[i + 1].start
            ramp = ramp.minimum(1 - (frame - begin + 1) / (part.stop - begin + 1))
        ramp = ramp.clamp(0, 1)
        weight[i, part] = ramp.square() * (3 - 2 * ramp)
    return weight / weight.sum(0)  # the last windows may be three to a frame


class _Moving(NamedTuple):
    """What moves in one window, for all N tracks of the clip; 0 where the window has none."""

    frames: slice
    coefficients: Tensor  # (L, K)
    basis: Tensor  # (K, N, 3)
    has: Tensor  # (N,) bool

    def at(self, frame: int) -> Tensor:
        """All tracks (N, 3) in one of the clip's frames."""
        return compose(self.basis[None], self.coefficients[None, frame - self.frames.start, None])[
            0, 0
        ]


def _carry(source: _Moving, target: _Moving, frame: int) -> _Moving:
    """The target with the tracks that only the source has.

    From a frame of both on they move as those tracks of both that are nearest to them there.
    """
    missing = torch.nonzero(source.has & ~target.has)[:, 0]
    if not len(missing):
        return target
    both = torch.nonzero(source.has & target.has)[:, 0]
    here = source.at(frame)
    basis = target.basis.clone()
    if len(both):
        distance = torch.cdist(here[missing], here[both])
        near, guide = distance.topk(min(_GUIDES, len(both)), largest=False)
        weight = 1 / (near + 1e-3 * near.mean() + 1e-12)
        weight = weight / weight.sum(1, keepdim=True)
        basis[1:, missing] = (weight[..., None] * target.basis[1:, both[guide]]).sum(2)
    moved = target._replace(basis=basis).at(frame)
    basis[0, missing] += here[missing] - moved[missing]
    return target._replace(basis=basis, has=target.has | source.has)
