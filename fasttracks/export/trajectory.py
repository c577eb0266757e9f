"""Camera paths as TUM and KITTI write them: camera to world, a line a frame."""

from pathlib import Path

import numpy as np

from fasttracks.export.rotations import quaternions
from fasttracks.files import replacing
from fasttracks.reconstruction_data import ReconstructionData

_DIGITS = "%.9g"


def write_tum(rec: ReconstructionData, path: Path) -> None:
    """See `Reconstruction.to_tum`."""
    times = np.arange(len(rec.points)) if rec.times is None else rec.times
    w, x, y, z = quaternions(rec.camera_to_world[:, :3, :3]).T
    # Nine digits of a Unix time would all be the same.
    _write(path, np.column_stack([times, rec.camera_to_world[:, :3, 3], x, y, z, w]), "%.6f")


def write_kitti(rec: ReconstructionData, path: Path) -> None:
    """See `Reconstruction.to_kitti`."""
    _write(path, rec.camera_to_world[:, :3].reshape(len(rec.points), 12))


def _write(path: Path, rows: np.ndarray, first: str = _DIGITS) -> None:
    with replacing(path) as temporary:
        np.savetxt(temporary, rows, fmt=[first] + [_DIGITS] * (rows.shape[1] - 1))
