"""Clips with truth: their files, and how well they are reconstructed."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasttracks.checks import check_arrays
from fasttracks.errors import InputError
from fasttracks.evaluation.metrics import Estimate, Truth, flat_guess, metrics
from fasttracks.files import Npz, write_npz
from fasttracks.network import TracksTo4D
from fasttracks.pipeline import reconstruct
from fasttracks.reconstruction import Reconstruction
from fasttracks.tracks import Tracks, from_arrays, normalise

_RULES = {
    "true_points_camera": "TN3 finite",
    "true_camera_to_world": "T44 poses",
    "true_visibility": "TN flags",
    "true_intrinsics": "33 cameras",
    "moving": "N flags",
}


def save_clip(
    path: str | os.PathLike[str], tracks: Tracks, truth: Truth, intrinsics: np.ndarray
) -> None:
    """Write a track file with truth beside it, for `evaluate`.

    truth of this one clip (B = 1); intrinsics (3, 3), the true ones, in pixels.
    """
    arrays = {
        **vars(tracks),
        "true_points_camera": truth.points_camera[0].cpu().numpy(),
        "true_camera_to_world": _poses(truth),
        "true_visibility": truth.visible[0].cpu().numpy(),
        "true_intrinsics": intrinsics,
        "moving": truth.moving[0].cpu().numpy(),
    }
    write_npz(path, arrays)


def load_clip(path: str | os.PathLike[str]) -> tuple[Tracks, Truth, np.ndarray]:
    """Read what `save_clip` wrote; the truth's tracks are normalised by the true intrinsics.

    A file of other origin needs, beside the tracks, true_points_camera (T, N, 3),
    true_camera_to_world (T, 4, 4), true_intrinsics (3, 3), and moving (N,); true_visibility
    (T, N) is the tracks' own if it isn't given.
    """
    file = Npz(path, "clip")
    tracks = from_arrays(file)
    missing = [name for name in _RULES if name not in file and name != "true_visibility"]
    if missing:
        raise InputError(f"clip: {file.path} lacks {', '.join(missing)}")
    frames, number, _ = tracks.tracks.shape
    arrays = check_arrays(file, _RULES, {"T": frames, "N": number}, f"clip: {file.path}")
    points, poses = (
        torch.from_numpy(arrays[name]).double()[None]
        for name in ("true_points_camera", "true_camera_to_world")
    )
    visible = torch.from_numpy(arrays.get("true_visibility", tracks.visibility))[None]
    truth = Truth(
        points,
        poses[..., :3, :3],
        poses[..., :3, 3],
        visible,
        torch.from_numpy(arrays["moving"])[None],
        points[..., :2] / points[..., 2:].clamp(min=1e-6),
        torch.ones(1, dtype=points.dtype),
    )
    return tracks, truth, arrays["true_intrinsics"].astype(np.float64)


def judge(result: Reconstruction, truth: Truth, intrinsics: np.ndarray) -> dict[str, float]:
    """Each metric of one clip's reconstruction; intrinsics (3, 3) are the true ones."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.float64))[None]

    estimate = Estimate(
        tensor(result.points_camera),
        tensor(result.camera_to_world[:, :3, :3]),
        tensor(result.camera_to_world[:, :3, 3]),
        tensor(normalise(result.reprojection, intrinsics)),
    )
    return {name: float(value) for name, value in metrics(estimate, truth).items()}


def evaluate(
    clips: Iterable[str | os.PathLike[str]], model: TracksTo4D, **options: Any
) -> list[dict[str, Any]]:
    """A row of metrics for each clip file, `flat` ones those of the flat guess.

    options go to `reconstruct`.
    """
    rows = []
    for path in clips:
        tracks, truth, intrinsics = load_clip(path)
        result = reconstruct(tracks, model=model, **options)
        flat = {f"flat {name}": float(value) for name, value in flat_guess(truth).items()}
        rows.append({"clip": Path(path).name, **judge(result.numpy(), truth, intrinsics), **flat})
    return rows


def _poses(truth: Truth) -> np.ndarray:
    poses = np.tile(np.eye(4), (truth.rotation.shape[1], 1, 1))
    poses[:, :3, :3] = truth.rotation[0].cpu()
    poses[:, :3, 3] = truth.position[0].cpu()
    return poses
