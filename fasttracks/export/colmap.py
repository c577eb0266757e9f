"""COLMAP's sparse model. Format: https://colmap.github.io/format.html.

COLMAP's cameras have our axes, but its pixels have (0.5, 0.5) at the centre of the top-left one.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fasttracks.errors import InputError
from fasttracks.export.rotations import quaternions
from fasttracks.files import filling
from fasttracks.reconstruction_data import ReconstructionData

_PINHOLE = 1  # the model's number; its parameters are fx, fy, cx, cy
_SHARED = 0.5  # pixels that any may be moved by, for one camera to serve all frames
# All that a model may consist of: readers take binary files before text.
OWN = r"(cameras|images|points3D|frames|rigs)\.(bin|txt)"


@dataclass(frozen=True)
class _Model:
    """What the three files hold. Points are numbered by track, all from 1 on."""

    size: tuple[int, int]  # width, height
    cameras: np.ndarray  # (C, 4), one for all frames or one for each
    poses: np.ndarray  # (T, 7) quaternion w x y z and translation, world to camera
    pixels: np.ndarray  # (T, N, 2)
    visibility: np.ndarray  # (T, N) bool
    points: np.ndarray  # (N, 3)
    colors: np.ndarray  # (N, 3) uint8
    error: np.ndarray  # (N,) mean over the observations, in pixels; NaN: not in the model

    def camera(self, t: int) -> int:
        return 1 + min(t, len(self.cameras) - 1)


def write(rec: ReconstructionData, folder: Path, text: bool, moving: bool) -> None:
    """See `Reconstruction.to_colmap`."""
    model = _model(rec, moving)
    suffix, mode = (".txt", _Text) if text else (".bin", _Binary)
    with filling(folder, OWN) as new:
        for name in ("cameras", "images", "points3D"):
            (new / f"{name}{suffix}").write_bytes(getattr(mode, name)(model))


def _model(rec: ReconstructionData, moving: bool) -> _Model:
    if np.any(rec.intrinsics[:, 0, 1]):
        raise InputError("intrinsics: COLMAP's cameras have no skew, and these do")
    world_to_camera = np.linalg.inv(rec.camera_to_world.astype(np.float64))
    rotation, translation = world_to_camera[:, :3, :3], world_to_camera[:, :3, 3]
    camera = rec.intrinsics.astype(np.float64)
    points = rec.static_points.astype(np.float64)
    local = points @ rotation.swapaxes(1, 2) + translation[:, None]
    depth = local[..., 2:]
    in_front = depth[..., 0] > 1e-6
    with np.errstate(divide="ignore", invalid="ignore"):
        projected = (local / depth) @ camera.swapaxes(1, 2)
    visibility = rec.visibility & in_front
    if not moving:
        visibility &= ~rec.moving
    distance = np.linalg.norm(projected[..., :2] - rec.tracks, axis=-1)
    count = visibility.sum(0)
    total = np.where(visibility, distance, 0).sum(0)
    parameters = camera[:, (0, 1, 0, 1), (0, 1, 2, 2)] + (0, 0, 0.5, 0.5)
    height, width = rec.image_size or _image_size(rec, parameters)
    shared = np.median(parameters, axis=0)
    moved = np.abs(parameters - shared) * [width / shared[0], height / shared[1], 2, 2] / 2
    return _Model(
        size=(width, height),
        cameras=shared[None] if moved.max() <= _SHARED else parameters,
        poses=np.concatenate([quaternions(rotation), translation], 1),
        pixels=rec.tracks.astype(np.float64) + 0.5,
        visibility=visibility,
        points=points,
        colors=np.full(points.shape, 128, np.uint8) if rec.colors is None else rec.colors,
        error=np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0),
    )


def _image_size(rec: ReconstructionData, parameters: np.ndarray) -> tuple[int, int]:
    """(height, width) that have the principal point in the middle, or more to hold what is seen."""
    middle = 2 * parameters[:, 2:].max(0)
    width, height = np.ceil(np.maximum(middle, rec.tracks[rec.visibility].max(0) + 1)).clip(1)
    return int(height), int(width)


def image_name(t: int) -> str:
    return f"frame_{t:05d}.png"


def _tracks(model: _Model) -> list[tuple[int, np.ndarray]]:
    """Of each point in the model: its index, and (L, 2) rows of image number, place in it."""
    place = np.cumsum(model.visibility, 1) - 1
    return [
        (int(n), np.stack([frames + 1, place[frames, n]], 1))
        for n in np.flatnonzero(~np.isnan(model.error))
        for (frames,) in [np.nonzero(model.visibility[:, n])]
    ]


class _Text:
    @staticmethod
    def cameras(model: _Model) -> bytes:
        width, height = model.size
        lines = [
            f"{i} PINHOLE {width} {height} {_join(parameters)}"
            for i, parameters in enumerate(model.cameras, 1)
        ]
        return _lines(lines)

    @staticmethod
    def images(model: _Model) -> bytes:
        lines = []
        for t, pose in enumerate(model.poses):
            (seen,) = np.nonzero(model.visibility[t])
            lines.append(f"{t + 1} {_join(pose)} {model.camera(t)} {image_name(t)}")
            lines.append(" ".join(f"{_join(model.pixels[t, n])} {n + 1}" for n in seen))
        return _lines(lines)

    @staticmethod
    def points3D(model: _Model) -> bytes:
        return _lines(
            [
                f"{n + 1} {_join(model.points[n])} {' '.join(map(str, model.colors[n]))} "
                f"{model.error[n]:.9g} {' '.join(map(str, track.ravel()))}"
                for n, track in _tracks(model)
            ]
        )


class _Binary:
    @staticmethod
    def cameras(model: _Model) -> bytes:
        parts = [struct.pack("<Q", len(model.cameras))]
        for i, parameters in enumerate(model.cameras, 1):
            parts.append(struct.pack("<iiQQ4d", i, _PINHOLE, *model.size, *parameters))
        return b"".join(parts)

    @staticmethod
    def images(model: _Model) -> bytes:
        parts = [struct.pack("<Q", len(model.poses))]
        for t, pose in enumerate(model.poses):
            (seen,) = np.nonzero(model.visibility[t])
            rows = np.empty(len(seen), [("pixel", "<f8", 2), ("point", "<i8")])
            rows["pixel"], rows["point"] = model.pixels[t, seen], seen + 1
            parts.append(struct.pack("<i7di", t + 1, *pose, model.camera(t)))
            parts.append(image_name(t).encode() + b"\0")
            parts.append(struct.pack("<Q", len(seen)) + rows.tobytes())
        return b"".join(parts)

    @staticmethod
    def points3D(model: _Model) -> bytes:
        tracks = _tracks(model)
        parts = [struct.pack("<Q", len(tracks))]
        for n, track in tracks:
            values = (n + 1, *model.points[n], *model.colors[n], model.error[n], len(track))
            parts.append(struct.pack("<Q3d3BdQ", *values) + track.astype("<i4").tobytes())
        return b"".join(parts)


def _join(values: np.ndarray) -> str:
    return " ".join(f"{value:.12g}" for value in values)


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
