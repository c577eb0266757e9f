"""Figures of a tracker and of a reconstruction against clips with Stereo4D's annotations.

Jin et al., "Stereo4D: Learning How Things Move in 3D from Internet Stereo Videos", 2024. Of each
clip are known: cameras, and tracks of points that move, in pixels and in metres.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fasttracks.trackers import Tracker

SIZE = 512  # pixels, each side of the image
FOCAL = SIZE / 2 / np.tan(np.radians(30))
CENTER = (SIZE - 1) / 2
INTRINSICS = np.array([[FOCAL, 0, CENTER], [0, FOCAL, CENTER], [0, 0, 1]])
NEAR = 3.0  # pixels within which a track follows a point,
SHARE = 0.6  # in at least this share of the frames that both are seen in,
COMMON = 5  # which are at least so many
FAR = 20.0  # pixels from all points that move: it may be a still one's track
LEAST_PARALLAX = 0.5  # degrees between a still point's views that tell its depth
LEAST_PATH = 0.2  # metres that what moves goes


@dataclass
class Truth:
    """T frames of a clip, N points.

    Attributes:
        position: (T, 3) of the cameras, metres.
        rotation: (T, 3, 3) camera to world, NaN where unknown.
        tracks: (T, N, 2) pixels, (0, 0) at the centre of the top-left one.
        world: (T, N, 3) metres.
        visible: (T, N) bool, where all of a point is known.
    """

    position: np.ndarray
    rotation: np.ndarray
    tracks: np.ndarray
    world: np.ndarray
    visible: np.ndarray

    @classmethod
    def load(cls, path: Path, frames: np.ndarray) -> "Truth":
        """From a clip's .npz. The camera's roll is what the points in the image say."""
        arrays = np.load(path)
        position = arrays["cam_pos"][frames].astype(float)
        world = arrays["pts3d"][:, frames].swapaxes(0, 1).astype(float)
        tracks = arrays["tracks2d"][frames].astype(float) - 0.5
        visible = arrays["vis2d"][frames] & arrays["vis3d"][:, frames].T
        rotation = np.full((len(frames), 3, 3), np.nan)
        for t, seen in enumerate(visible):
            if seen.sum() >= 6:
                way = world[t, seen] - position[t]
                way /= np.linalg.norm(way, axis=1, keepdims=True)
                forward = 1e3 * arrays["cam_fwd"][frames[t]]  # is known far better
                image = np.vstack([rays(tracks[t, seen]), [0, 0, 1e3]])
                rotation[t] = rotation_between(image, np.vstack([way, forward]))
        truth = cls(position, rotation, tracks, world, visible)
        truth.visible &= truth.depth > 0.1  # nor where the camera is unknown
        return truth

    @property
    def depth(self) -> np.ndarray:
        """(T, N) metres, NaN where the camera is unknown."""
        way = self.world - self.position[:, None]
        return np.einsum("tj,tnj->tn", self.rotation[:, :, 2], way)

    @property
    def path(self) -> float:
        """Metres that the camera goes."""
        return float(np.linalg.norm(np.diff(self.position, axis=0), axis=1).sum())


def rays(pixels: np.ndarray, focal: float = FOCAL) -> np.ndarray:
    """Directions (..., 3) of unit length that pixels (..., 2) look in."""
    ray = np.insert((pixels - CENTER) / focal, 2, 1.0, axis=-1)
    return ray / np.linalg.norm(ray, axis=-1, keepdims=True)


def rotation_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) that best takes rows (n, 3) to others, by least squares."""
    u, _, vt = np.linalg.svd(target.T @ source)
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation and shift that best take points (n, 3) to others (Umeyama, 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    rotation = rotation_between(a, b)
    scale = float((b * (a @ rotation.T)).sum() / max((a**2).sum(), 1e-20))
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0)


def mean(values: Any) -> float:
    """Their mean, NaN of none."""
    return float(np.mean(values)) if len(values) else np.nan


def median(values: Any) -> float:
    """Their median, NaN of none."""
    return float(np.median(values)) if len(values) else np.nan


def absrel(guess: np.ndarray, depth: np.ndarray, scale: float | None = None) -> float:
    """Mean of |scale · guess − depth| / depth in percent; None: the median of their quotients."""
    scale = median(depth / guess) if scale is None else scale
    return 100 * mean(np.abs(scale * guess - depth) / depth)


def flat(depth: np.ndarray) -> float:
    """`absrel` of the guess that all depths are equal."""
    return absrel(np.ones_like(depth), depth, median(depth))


def partners(
    tracks: np.ndarray, visible: np.ndarray, truth: Truth
) -> tuple[np.ndarray, np.ndarray]:
    """For each track (N,) the truth's point that it follows, −1: none; and if it is far from all.

    A point has one track, the nearest in the mean.
    """
    shape = tracks.shape[1], truth.tracks.shape[1]
    common, close, total = (np.zeros(shape, np.float32) for _ in range(3))
    far = np.ones(shape[0], bool)
    for t in range(len(tracks)):
        both = np.ix_(visible[t], truth.visible[t])
        ours, theirs = tracks[t, visible[t]], truth.tracks[t, truth.visible[t]]
        gap = np.linalg.norm(ours[:, None] - theirs, axis=-1)
        common[both] += 1
        close[both] += gap <= NEAR
        total[both] += gap.clip(max=2 * NEAR)
        far[visible[t]] &= ~(gap < FAR).any(1)
    pairs = np.argwhere((common >= COMMON) & (close >= SHARE * common))
    cost = (total / common.clip(1) - 1e-3 * common)[tuple(pairs.T)]
    partner = np.full(shape[0], -1)
    for track, point in pairs[np.argsort(cost, kind="stable")]:
        if partner[track] < 0 and point not in partner:
            partner[track] = point
    return partner, far


def triangulate(
    tracks: np.ndarray,
    visible: np.ndarray,
    rotation: np.ndarray,
    position: np.ndarray,
    focal: float = FOCAL,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points that would explain tracks (T, N, 2) if they stood still.

    Returns:
        Their depths (T, N), the median errors (N,) in pixels, infinite where seen in under 10
        frames, and the degrees (N,) over which the views of each spread.
    """
    visible = visible & np.isfinite(rotation[:, :1, 0])
    rotation = np.nan_to_num(rotation)
    way = np.einsum("tij,tnj->tni", rotation, rays(tracks, focal))
    weight = visible.astype(float)
    for _ in range(8):  # nearest to all rays, then by errors in pixels, outliers held back
        total = (weight.sum(0) * (1 + 1e-9) + 1e-20)[:, None, None] * np.eye(3)
        normal = total - np.einsum("tn,tni,tnj->nij", weight, way, way)
        along = weight * np.einsum("tni,ti->tn", way, position)
        right = weight.T @ position - np.einsum("tn,tni->ni", along, way)
        offset = np.linalg.solve(normal, right[..., None])[..., 0] - position[:, None]
        camera = np.einsum("tji,tnj->tni", rotation, offset)
        pixels = focal * camera[..., :2] / camera[..., 2:].clip(1e-4) + CENTER
        error = np.linalg.norm(pixels - tracks, axis=-1)
        weight = visible / (offset**2).sum(-1).clip(1e-6, 1e6) / (1 + error.clip(max=1e3) ** 2)
    often = visible.sum(0) >= 10
    errors = np.full(tracks.shape[1], np.inf)
    errors[often] = np.nanmedian(np.where(visible, error, np.nan)[:, often], axis=0)
    least, most = (np.where(visible[..., None], way, v) for v in (np.inf, -np.inf))
    spread = np.linalg.norm(most.max(0) - least.min(0), axis=-1)
    return camera[..., 2], errors, np.degrees(np.where(often, spread, 0))


def judge(rec: Any, truth: Truth, partner: np.ndarray, far: np.ndarray) -> dict[str, float]:
    """Figures of a `Reconstruction`; whom its tracks follow and if far from all: `partners`."""
    pose = rec.camera_to_world.astype(float)
    scale, turn, shift = similarity(pose[:, :3, 3], truth.position)
    rotation, position = turn @ pose[:, :3, :3], scale * pose[:, :3, 3] @ turn.T + shift
    focal = float(np.median(rec.intrinsics[:, 0, 0]))
    return {
        **_cameras(rotation, position, truth),
        **_moving(rec, truth, partner, scale),
        **_still(rec, truth, far & (partner < 0), (rotation, position, focal), scale),
        "focal": focal / FOCAL,
        "reprojection": float(rec.median_reprojection_error),
    }


def _cameras(rotation: np.ndarray, position: np.ndarray, truth: Truth) -> dict[str, float]:
    """ATE and RPE, and the ATE of the best straight line and parabola in time."""

    def ate(guess: np.ndarray) -> float:
        return 100 * _rms(guess - truth.position) / truth.path

    powers = np.linspace(-1, 1, len(position))[:, None] ** np.arange(3)
    best = [m @ np.linalg.lstsq(m, truth.position)[0] for m in (powers[:, :2], powers)]
    pair = np.isfinite(truth.rotation[1:, 0, 0] + truth.rotation[:-1, 0, 0])
    ways = [(rotation, position), (truth.rotation, truth.position)]
    turns = [(r[:-1].swapaxes(1, 2) @ r[1:])[pair] for r, _ in ways]
    steps = [np.einsum("tji,tj->ti", r[:-1], np.diff(p, axis=0))[pair] for r, p in ways]
    # An arccos would take the rounding of float32 for 0.04°.
    sine = np.linalg.norm(turns[0] - turns[1], axis=(1, 2)) / 8**0.5
    return {
        "ate": ate(position),
        "line": ate(best[0]),
        "parabola": ate(best[1]),
        "rpe_rotation": float(np.degrees(_rms(2 * np.arcsin(sine.clip(max=1))[:, None]))),
        "rpe_position": 100 * _rms(steps[0] - steps[1]) / truth.path,
    }


def _rms(rows: np.ndarray) -> float:
    return float(np.sqrt((rows**2).sum(-1).mean())) if len(rows) else np.nan


def _moving(rec: Any, truth: Truth, partner: np.ndarray, scale: float) -> dict[str, float]:
    """AbsRel of what moves: with a scale a clip, a frame, the cameras'; and if it is found."""
    ours, theirs = np.flatnonzero(partner >= 0), partner[partner >= 0]
    gap = np.linalg.norm(rec.tracks[:, ours] - truth.tracks[:, theirs], axis=-1)
    both = rec.visibility[:, ours] & truth.visible[:, theirs] & (gap <= NEAR)
    depth, guess = truth.depth[:, theirs], rec.depth[:, ours].astype(float)
    frames = [(guess[t, m], depth[t, m]) for t, m in enumerate(both) if m.sum() >= 5]
    world = np.where(both[..., None], truth.world[:, theirs], np.nan)
    seen = both.any(0)
    reach = np.nanmax(world[:, seen], 0) - np.nanmin(world[:, seen], 0)
    moves = ours[seen][np.linalg.norm(reach, axis=-1) > LEAST_PATH]
    return {
        "movers": len(ours),
        "clip": absrel(guess[both], depth[both]),
        "clip_flat": flat(depth[both]),
        "frame": mean([absrel(*pair) for pair in frames]),
        "frame_flat": mean([flat(z) for _, z in frames]),
        "cameras": absrel(guess[both], depth[both], scale),
        "recall": 100 * mean(rec.moving[moves]),
    }


def _still(
    rec: Any, truth: Truth, candidates: np.ndarray, ours: tuple, scale: float
) -> dict[str, float]:
    """Tracks that a still point explains under the truth's cameras, at the depth it then has."""
    tracks, visible = rec.tracks, rec.visibility
    depth, error, spread = triangulate(tracks, visible, truth.rotation, truth.position)
    still = candidates & (error < 1) & (spread > LEAST_PARALLAX)
    seen = visible[:, still]
    z, guess = depth[:, still][seen], rec.depth[:, still][seen].astype(float)
    own = triangulate(tracks[:, still], seen, *ours)[1]
    return {
        "still_tracks": int(still.sum()),
        "still": absrel(guess, z),
        "still_flat": flat(z),
        "still_cameras": absrel(guess, z, scale),
        "alarm": 100 * mean(rec.moving[still]),
        "px": median(own),
        "px_true": median(error[still]),
    }


def judge_tracker(
    tracker: Tracker, frames: np.ndarray, truth: Truth, points: np.ndarray, stride: int = 1
) -> dict[str, float]:
    """How a tracker follows the truth's `points` (n,) from where each is first seen.

    Args:
        tracker: to judge.
        frames: (T · stride, H, W, 3); the truth is of each `stride`-th.
        truth: of the clip.
        points: the numbers of points to follow.
        stride: frames of the video to one of the truth.

    Returns:
        In percent of the later frames in which the truth sees them: `alive`, seen by the
        tracker, and within 2, 4 and 8 px; and of those alive the median error in pixels.
    """
    if not len(points):
        return dict.fromkeys(("alive", "within_2", "within_4", "within_8", "error"), np.nan)
    visible, true_tracks = truth.visible[:, points], truth.tracks[:, points]
    first = visible.argmax(0)
    start = true_tracks[first, np.arange(len(points))]
    tracks, alive = tracker(frames, np.column_stack([first * stride, start]))
    tracks, alive = tracks[::stride], alive[::stride]
    due = visible & (np.arange(len(tracks))[:, None] > first)
    gap = np.linalg.norm(tracks - true_tracks, axis=-1)
    within = {f"within_{r}": 100 * mean((alive & (gap < r))[due]) for r in (2, 4, 8)}
    return {"alive": 100 * mean(alive[due]), **within, "error": median(gap[due & alive])}
