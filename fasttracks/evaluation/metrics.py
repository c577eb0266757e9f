"""The field's metrics, for batches of clips with truth.

AbsRel and δ as in TracksTo4D (arXiv 2404.07097, section 4), ATE and RPE as in Sturm et al.,
"A Benchmark for the Evaluation of RGB-D SLAM Systems" (IROS 2012) after Sim(3) alignment,
APD and 3D-AJ as in TAPVid-3D (arXiv 2407.05921).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import camera_steps, rotation_angle

FOCAL_LENGTH = 525.0  # pixels, at which reprojection errors are stated
TAPVID_PIXELS = (1, 2, 4, 8, 16)


class Truth(NamedTuple):
    """What is known of B clips."""

    points_camera: Tensor  # (B, T, N, 3)
    rotation: Tensor  # (B, T, 3, 3) camera to world
    position: Tensor  # (B, T, 3)
    visible: Tensor  # (B, T, N) bool
    moving: Tensor  # (B, N) bool: moves in the world
    tracks: Tensor  # (B, T, N, 2) exact projections, normalised by the assumed focal length
    focal: Tensor  # (B,) true over assumed focal length
    body: Tensor | None = None  # (B, N) int64 which body or thing a moving point is on, if known

    def during(self, frames: slice) -> "Truth":
        """That of some of the frames; what moves in any moves."""
        by_frame = {
            name: value[:, frames]
            for name, value in self._asdict().items()
            if name not in ("moving", "focal", "body")
        }
        return self._replace(**by_frame)


class Estimate(NamedTuple):
    """What is judged; world frame and scale are free. Shapes as in `Truth`."""

    points_camera: Tensor
    rotation: Tensor
    position: Tensor
    projection: Tensor


def metrics(estimate: Estimate, truth: Truth) -> dict[str, Tensor]:
    """Each metric by name, one value a clip (B,); NaN where a clip has nothing to judge.

    `absrel` and `delta` (share within 1.25) after a scale per frame, `_moving` with the same
    scale over moving points alone; `ate` in percent of the path, `rpe_rotation` in degrees a
    frame, `rpe_position` in percent of the path; `apd` and `aj` in percent; `reprojection`
    in pixels at a focal length of 525.
    """
    visible, moving = truth.visible, truth.moving[:, None] & truth.visible
    depth = truth.points_camera[..., 2]
    guess = estimate.points_camera[..., 2]
    guess = guess * (_median(depth, visible) / _median(guess, visible))
    absrel = (guess - depth).abs() / depth
    delta = torch.maximum(guess / depth, depth / guess.clamp(min=1e-6)) < 1.25
    offset = torch.linalg.vector_norm(estimate.projection - truth.tracks, dim=-1)
    # A projection in units of the assumed focal length, in pixels of a true 525.
    pixels = offset * (FOCAL_LENGTH / truth.focal)[:, None, None]
    return {
        "absrel": _mean_over_frames(absrel, visible),
        "absrel_moving": _mean_over_frames(absrel, moving),
        "delta": _mean_over_frames(delta, visible),
        "delta_moving": _mean_over_frames(delta, moving),
        **_trajectory(estimate, truth),
        **_tapvid3d(estimate, truth),
        "reprojection": _mean(pixels, visible, (1, 2)),
    }


def flat_guess(truth: Truth) -> dict[str, Tensor]:
    """AbsRel of the guess that all depths of a frame are equal: what any method must beat."""
    points = torch.ones_like(truth.points_camera)
    flat = metrics(Estimate(points, truth.rotation, truth.position, truth.tracks), truth)
    return {name: flat[name] for name in ("absrel", "absrel_moving", "delta", "delta_moving")}


def align(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale (B,), rotation (B, 3, 3), shift (B, 3) that best bring points (B, T, 3) together.

    Minimises Σ |s R a + t − b|². Umeyama, "Least-squares estimation of transformation
    parameters between two point patterns", PAMI 1991.
    """
    source, target = source.double(), target.double()
    a, b = source - source.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    u, d, vt = torch.linalg.svd(b.mT @ a)
    flip = torch.ones_like(d)
    flip[:, 2] = torch.det(u @ vt).sign()
    rotation = u @ (flip[..., None] * vt)
    scale = (d * flip).sum(1) / (a**2).sum((1, 2)).clamp(min=1e-20)
    shift = target.mean(1) - scale[:, None] * (rotation @ source.mean(1)[..., None])[..., 0]
    return scale, rotation, shift


def _trajectory(estimate: Estimate, truth: Truth) -> dict[str, Tensor]:
    scale, rotation, shift = align(estimate.position, truth.position)
    target = truth.position.double()
    aligned = scale[:, None, None] * (estimate.position.double() @ rotation.mT) + shift[:, None]
    path = target.diff(dim=1).norm(dim=-1).sum(1).clamp(min=1e-9)
    turn, step = camera_steps(rotation[:, None] @ estimate.rotation.double(), aligned)
    true_turn, true_step = camera_steps(truth.rotation.double(), target)
    angle = torch.rad2deg(rotation_angle(turn.mT @ true_turn))
    return {
        "ate": 100 * _rms((aligned - target).norm(dim=-1)) / path,
        "rpe_rotation": _rms(angle),
        "rpe_position": 100 * _rms((step - true_step).norm(dim=-1)) / path,
    }


def _tapvid3d(estimate: Estimate, truth: Truth) -> dict[str, Tensor]:
    """APD and 3D-AJ, the estimate's visibility being the truth's: trackers set it, not we."""
    norm, guess = truth.points_camera.norm(dim=-1), estimate.points_camera.norm(dim=-1)
    scale = _median((norm / guess.clamp(min=1e-9)).flatten(1), truth.visible.flatten(1))
    points = estimate.points_camera * scale[..., None, None]
    distance = (points - truth.points_camera).norm(dim=-1)
    pixel = truth.points_camera[..., 2] / FOCAL_LENGTH  # at the true depth
    within = [_mean(distance < k * pixel, truth.visible, (1, 2)) for k in TAPVID_PIXELS]
    # With visibility given, a visible point outside is both a false positive and a miss.
    jaccard = [w / (2 - w) for w in within]
    return {
        "apd": 100 * torch.stack(within).mean(0),
        "aj": 100 * torch.stack(jaccard).mean(0),
    }


def _median(values: Tensor, mask: Tensor) -> Tensor:
    """Median along the last axis where the mask holds, kept as an axis."""
    return values.masked_fill(~mask, float("nan")).nanmedian(-1, keepdim=True).values


def _mean(values: Tensor, mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    return values.float().masked_fill(~mask, float("nan")).nanmean(axes)


def _mean_over_frames(values: Tensor, mask: Tensor) -> Tensor:
    return _mean(values, mask, (2,)).nanmean(1)


def _rms(values: Tensor) -> Tensor:
    return (values**2).mean(1).sqrt()
