"""Reconstructions as files that other programs read: what `Reconstruction.to_ply` and the like do.

World coordinates are the reconstruction's own, whose frame and scale are free, with OpenCV's
axes (x right, y down, z forward as cameras see it). Only glTF asks for others.
"""

from pathlib import Path
from typing import Any, NamedTuple

from fasttracks.errors import InputError


class Format(NamedTuple):
    """One that `fasttracks export` offers: written by a method of Reconstruction."""

    text: str
    method: str
    ending: str  # of the output's name; a folder's has no dot
    options: dict[str, Any]
    needs_video: bool = False


_FILES = {".bin", ".glb", ".gltf", ".html", ".json", ".npz", ".png", ".ply", ".rrd", ".txt", ".zip"}


FORMATS = {
    "ply": Format("the static points with colour and motion", "to_ply", ".ply", {}),
    "ply-frames": Format("a folder with one .ply a frame", "to_ply", "-ply", {}),
    "colmap": Format("COLMAP's sparse model", "to_colmap", "-colmap", {}),
    "colmap-text": Format("the same as text", "to_colmap", "-colmap-text", {"text": True}),
    "tum": Format("camera path: time, position, quaternion", "to_tum", "-tum.txt", {}),
    "kitti": Format("camera path: 3 × 4 matrices", "to_kitti", "-kitti.txt", {}),
    "gltf": Format("animated points and camera, for Blender", "to_gltf", ".glb", {}),
    "splat": Format(
        "a folder for Gaussian splatting, with the frames of --video",
        "to_splat",
        "-splat",
        {},
        True,
    ),
}


def check_folder(path: Any, argument: str = "folder") -> Path:
    """A folder's name as a path; InputError if it is no path, or the name of a file."""
    from fasttracks.files import as_path  # numpy, which naming formats needs not

    path = as_path(path, argument)
    if path.suffix.lower() in _FILES:
        raise InputError(f"{argument}: expected a folder's name, found {path}")
    return path


def check_ending(path: Any, *endings: str) -> Path:
    """A file's name as a path; InputError if it is no path, or doesn't end as its format does."""
    from fasttracks.files import as_path

    path = as_path(path, "path")
    if path.suffix.lower() not in endings:
        raise InputError(f"path: expected a name ending in {' or '.join(endings)}, found {path}")
    return path
