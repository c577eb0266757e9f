"""A reconstruction in the Rerun viewer. Needs `rerun-sdk`, which the extra "rerun" brings."""

import os
from typing import Any

import numpy as np

from fasttracks.errors import InputError
from fasttracks.files import replacing
from fasttracks.reconstruction_data import ReconstructionData


def show(rec: ReconstructionData, frames: np.ndarray | None = None) -> None:
    """Open the Rerun viewer with a reconstruction; `frames` as for `save`."""
    stream = _rerun().RecordingStream("fasttracks")
    stream.spawn(default_blueprint=_layout())
    _log(stream, rec.numpy(), frames)
    stream.flush()


def save(
    rec: ReconstructionData, path: str | os.PathLike[str], frames: np.ndarray | None = None
) -> None:
    """Write a Rerun recording (.rrd).

    Args:
        rec: what to show.
        path: where to write.
        frames: (T, H, W, 3) uint8 RGB, the video's frames that it was made from, if wanted.

    Raises:
        InputError: rerun-sdk is not installed.
    """
    stream = _rerun().RecordingStream("fasttracks")
    with replacing(path) as temporary:
        stream.save(temporary, default_blueprint=_layout())
        _log(stream, rec.numpy(), frames)
        stream.disconnect()


def _rerun() -> Any:
    try:
        import rerun
    except ImportError:
        raise InputError(
            "rerun: the package rerun-sdk is not installed; 'pip install rerun-sdk' brings it"
        ) from None
    return rerun


def _layout() -> Any:
    import rerun.blueprint as layout

    return layout.Blueprint(
        layout.Horizontal(
            layout.Spatial3DView(origin="world", name="scene"),
            layout.Vertical(
                layout.Spatial2DView(origin="world/camera/image", name="video"),
                layout.TimeSeriesView(origin="error", name="reprojection error, pixels"),
            ),
            column_shares=[2, 1],
        )
    )


def _log(stream: Any, rec: ReconstructionData, frames: np.ndarray | None) -> None:
    import rerun as rr

    stream.log("world", rr.ViewCoordinates.RDF, static=True)
    colors = _colors(rec)
    radius = 0.004 * float(np.median(np.abs(rec.depth)))
    static = rr.Points3D(rec.static_points, colors=colors // 3, radii=radius / 2)
    stream.log("world/static", static, static=True)
    stream.log(
        "world/path", rr.LineStrips3D([rec.camera_to_world[:, :3, 3]], colors=[160]), static=True
    )
    for t in range(len(rec.points)):
        stream.set_time("frame", sequence=t)
        if rec.times is not None:
            stream.set_time("video", duration=float(rec.times[t]))
        stream.log("world/points", rr.Points3D(rec.points[t], colors=colors, radii=radius))
        _log_camera(stream, rec, t, None if frames is None else frames[t])
        seen = rec.visibility[t]
        image = "world/camera/image"
        # Rerun's pixels have (0.5, 0.5) at the centre of the top-left one.
        tracks, reprojection = rec.tracks[t, seen] + 0.5, rec.reprojection[t, seen] + 0.5
        stream.log(f"{image}/tracks", rr.Points2D(tracks, colors=[255, 255, 255]))
        stream.log(f"{image}/reprojection", rr.Points2D(reprojection, colors=colors[seen]))
        pairs = np.stack([tracks, reprojection], 1)
        stream.log(f"{image}/error", rr.LineStrips2D(pairs, colors=[200, 200, 200]))
        if seen.any():
            error = rec.reprojection_error[t, seen]
            stream.log("error/p50", rr.Scalars(np.median(error)))
            stream.log("error/p90", rr.Scalars(np.percentile(error, 90)))


def _log_camera(stream: Any, rec: ReconstructionData, t: int, frame: np.ndarray | None) -> None:
    import rerun as rr

    pose = rec.camera_to_world[t]
    stream.log("world/camera", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
    matrix = rec.intrinsics[t].copy()
    matrix[:2, 2] += 0.5
    height, width = rec.image_size or np.rint(2 * matrix[1::-1, 2])
    distance = 0.16 * float(np.median(rec.depth))
    stream.log(
        "world/camera/image",
        rr.Pinhole(
            image_from_camera=matrix, resolution=[width, height], image_plane_distance=distance
        ),
    )
    if frame is not None:
        import cv2

        whole = cv2.resize(frame, (int(width), int(height)))
        stream.log("world/camera/image", rr.Image(whole).compress(80))


def _colors(rec: ReconstructionData) -> np.ndarray:
    """(N, 3) uint8: those of the video, else by motion."""
    if rec.colors is not None:
        return rec.colors
    from matplotlib import colormaps

    level = np.log(rec.motion)
    low, high = np.percentile(level, (5, 95))
    return colormaps["turbo"]((level - low) / max(high - low, 1e-6), bytes=True)[:, :3]
