"""Reconstructions as files that other programs read: what `Reconstruction.to_ply` and the like do.

World coordinates are the reconstruction's own, whose frame and scale are free, with OpenCV's
axes (x right, y down, z forward as cameras see it). Only glTF asks for others.
"""

from typing import Any, NamedTuple


class Format(NamedTuple):
    """One that `fasttracks export` offers: written by a method of Reconstruction."""

    text: str
    method: str
    ending: str  # of the output's name; a folder's has no dot
    options: dict[str, Any]


FORMATS = {
    "ply": Format("the static points with colour and motion", "to_ply", ".ply", {}),
    "ply-frames": Format("a folder with one .ply a frame", "to_ply", "-ply", {}),
    "colmap": Format("COLMAP's sparse model", "to_colmap", "-colmap", {}),
    "colmap-text": Format("the same as text", "to_colmap", "-colmap-text", {"text": True}),
    "tum": Format("camera path: time, position, quaternion", "to_tum", "-tum.txt", {}),
    "kitti": Format("camera path: 3 × 4 matrices", "to_kitti", "-kitti.txt", {}),
    "gltf": Format("animated points and camera, for Blender", "to_gltf", ".glb", {}),
}
