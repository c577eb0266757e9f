"""What moves in a long clip: fitted window by window, and cross-faded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fasttracks.geometry import Prediction, compose, project, to_camera
from fasttracks.long.windows import Window
from fasttracks.refine.bundle import fit_motion, told
from fasttracks.refine.cameras import Scene


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
    all is the static scene. A track that a window does not have stays where the nearest one that
    has it leaves it.

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
    has, first, last = [], [], []
    for i, (window, given) in enumerate(zip(windows, network, strict=True)):
        part, which = window.frames, window.which
        own = Scene(
            scene.rotation[:, part],
            scene.position[:, part],
            scene.log_focal,
            scene.points[:, which],
        )
        seen = tracks[part][None, :, which].double()
        motion = fit_motion(own, given, seen, static[:, which], scale[:, which])
        rows = slice(1 + bases * i, 1 + bases * (i + 1))
        coefficients[part, rows] = motion.coefficients[0] * _fade(windows, i, scene.points)
        basis[rows, which] = motion.basis[0] * moving[which, None]
        points = compose(motion.basis, motion.coefficients)[0]
        there = torch.zeros(count, dtype=torch.bool, device=tracks.device)
        there[which] = moving[which]
        has.append(there)
        for ends, at in ((first, 0), (last, -1)):
            place = torch.zeros_like(basis[0])
            place[which] = points[at]
            ends.append(place)
    _hold(basis, bases, has, first, last)
    # Where a moving track is on the whole: the mean over the windows that have it.
    rows = torch.arange(len(windows), device=tracks.device) * bases + 1
    middle = basis[rows].mean(0)
    basis[0] = torch.where(moving[:, None], middle, scene.points[0])
    basis[rows] -= moving[:, None] * middle

    basis, coefficients = basis.float()[None], coefficients.float()[None]
    rotation, position = scene.rotation.float(), scene.position.float()
    focal = scene.log_focal.exp().float()[:, None].expand(1, frames)
    points = compose(basis, coefficients)
    points_camera = to_camera(points, rotation, position)
    return Prediction(
        rotation,
        position,
        focal,
        coefficients,
        basis,
        told(gamma[None].double(), scale, static).float(),
        points,
        points_camera,
        project(points_camera, focal),
    )


def _fade(windows: Sequence[Window], i: int, like: Tensor) -> Tensor:
    """What the i-th window counts in each of its frames: (L, 1); windows' sum to 1 everywhere."""
    part = windows[i].frames
    frame = torch.arange(part.start, part.stop, dtype=like.dtype, device=like.device)
    weight = torch.ones_like(frame)
    if i > 0:
        end = windows[i - 1].frames.stop  # frames from part.start to end are shared
        weight = weight.minimum((frame - part.start + 1) / (end - part.start + 1))
    if i + 1 < len(windows):
        begin = windows[i + 1].frames.start
        weight = weight.minimum(1 - (frame - begin + 1) / (part.stop - begin + 1))
    return weight.clamp(0, 1)[:, None]


def _hold(
    basis: Tensor, bases: int, has: list[Tensor], first: list[Tensor], last: list[Tensor]
) -> None:
    """Let moving tracks stay, in windows without them, where the nearest window leaves them."""
    order = range(len(has))
    for i in order:
        missing = torch.stack(has).any(0) & ~has[i]
        for distance in range(1, len(has)):
            for j, ends in ((i - distance, last), (i + distance, first)):
                if 0 <= j < len(has):
                    take = missing & has[j]
                    basis[1 + bases * i, take] = ends[j][take]
                    missing = missing & ~take
            if not missing.any():
                break
