"""A clip for Gaussian splatting: images, COLMAP's model and nerfstudio's transforms.json.

Format of the latter: https://docs.nerf.studio/quickstart/data_conventions.html. Its cameras are
OpenGL's, x right, y up, z backward; its world is ours.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from fasttracks.errors import InputError
from fasttracks.export import colmap, ply
from fasttracks.files import filling
from fasttracks.reconstruction_data import ReconstructionData, frames_of


def write(rec: ReconstructionData, folder: Path, frames: np.ndarray) -> None:
    """See `Reconstruction.to_splat`."""
    frames = frames_of(rec, frames)
    rec = _with_one_camera(rec, frames)
    with filling(folder, rf"images/frame_\d+\.png|sparse/0/{colmap.OWN}") as new:
        (new / "images").mkdir()
        for t, frame in enumerate(frames):
            _write_image(new / "images" / colmap.image_name(t), frame)
        colmap.write(rec, new / "sparse" / "0", text=False, moving=False)
        ply.write(_still(rec), new / "points.ply")
        text = json.dumps(_transforms(rec), indent=1)
        (new / "transforms.json").write_text(text, encoding="utf-8")


def _with_one_camera(rec: ReconstructionData, frames: np.ndarray) -> ReconstructionData:
    size = frames.shape[1:3]
    if rec.image_size not in (None, size):
        raise InputError(f"frames: expected (height, width) {rec.image_size}, found {size}")
    camera = np.median(rec.intrinsics.astype(np.float64), axis=0)
    return replace(rec, intrinsics=np.tile(camera, (len(frames), 1, 1)), image_size=size)


def _still(rec: ReconstructionData) -> ReconstructionData:
    """What the static points' file is made from, without those that move or are never seen."""
    still = ~rec.moving & rec.visibility.any(0)
    colors = None if rec.colors is None else rec.colors[still]
    return replace(rec, basis=rec.basis[:, still], motion=rec.motion[still], colors=colors)


def _write_image(path: Path, frame: np.ndarray) -> None:
    import cv2

    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(frame[..., ::-1]))[1].tobytes())


def _transforms(rec: ReconstructionData) -> dict[str, object]:
    assert rec.image_size
    fx, fy, cx, cy = rec.intrinsics[0, (0, 1, 0, 1), (0, 1, 2, 2)].tolist()
    height, width = rec.image_size
    poses = rec.camera_to_world.astype(np.float64) * (1, -1, -1, 1)
    return {
        "camera_model": "OPENCV",
        "fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5, "w": width, "h": height,
        "ply_file_path": "points.ply",
        "frames": [
            {"file_path": f"images/{colmap.image_name(t)}", "transform_matrix": pose.tolist()}
            for t, pose in enumerate(poses)
        ],
    }  # fmt: skip
