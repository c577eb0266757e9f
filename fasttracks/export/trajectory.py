"""Camera paths as TUM and KITTI write them: camera to world, a line a frame."""

from pathlib import Path

import numpy as np

from fasttracks.export.rotations import quaternions
from fasttracks.files import replacing
from fasttracks.reconstruction_data import ReconstructionData


def write_tum(rec: ReconstructionData, path: Path) -> None:
    """See `Reconstruction.to_tum`."""
    times = np.arange(len(rec.points)) if rec.times is None else rec.times
    w, x, y, z = quaternions(rec.camera_to_world[:, :3, :3]).T
    _write(path, np.column_stack([times, rec.camera_to_world[:, :3, 3], x, y, z, w]))


def write_kitti(rec: ReconstructionData, path: Path) -> None:
    """See `Reconstruction.to_kitti`."""
    _write(path, rec.camera_to_world[:, :3].reshape(len(rec.points), 12))


def _write(path: Path, rows: np.ndarray) -> None:
    with replacing(path) as temporary:
        np.savetxt(temporary, rows, fmt="%.9g")
