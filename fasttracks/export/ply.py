"""PLY, binary little-endian: x y z in the world, red green blue if known, motion γ."""

from pathlib import Path

import numpy as np

from fasttracks.files import filling, replacing
from fasttracks.reconstruction_data import ReconstructionData


def write(rec: ReconstructionData, path: Path) -> None:
    """See `Reconstruction.to_ply`."""
    if path.suffix.lower() == ".ply":
        with replacing(path) as temporary:
            temporary.write_bytes(_ply(rec, rec.static_points))
        return
    with filling(path, r"frame_\d{5,}\.ply") as folder:
        for t, points in enumerate(rec.points):
            (folder / f"frame_{t:05d}.ply").write_bytes(_ply(rec, points, rec.visibility[t]))


def _ply(rec: ReconstructionData, points: np.ndarray, seen: np.ndarray | None = None) -> bytes:
    columns = [(axis, "<f4", "float", points[:, i]) for i, axis in enumerate("xyz")]
    if rec.colors is not None:
        names = ("red", "green", "blue")
        columns += [(name, "u1", "uchar", rec.colors[:, i]) for i, name in enumerate(names)]
    columns.append(("motion", "<f4", "float", rec.motion))
    if seen is not None:
        columns.append(("seen", "u1", "uchar", seen))
    vertices = np.empty(len(points), [(name, dtype) for name, dtype, _, _ in columns])
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    for name, _, kind, values in columns:
        vertices[name] = values
        header.append(f"property {kind} {name}")
    header.append("end_header\n")
    return "\n".join(header).encode() + vertices.tobytes()
