"""A reconstruction, or a stream, in the Rerun viewer. Needs `rerun-sdk`, the extra "rerun"."""

import os
from typing import Any

import numpy as np

from fasttracks.errors import InputError
from fasttracks.files import replacing
from fasttracks.reconstruction_data import ReconstructionData
from fasttracks.viewers.live import MOVING, STILL, Cloud, Newest


def show(rec: ReconstructionData, frames: np.ndarray | None = None) -> None:
    """Open the Rerun viewer with a reconstruction; `frames` as for `save`."""
    stream = _rerun().RecordingStream("fasttracks")
    stream.spawn(default_blueprint=_layout(of_errors=True))
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
        stream.save(temporary, default_blueprint=_layout(of_errors=True))
        _log(stream, rec.numpy(), frames)
        stream.disconnect()


class Live:
    """A stream's cameras and points while frames arrive, as `viewers.live.Page` shows them.

    Raises:
        InputError: rerun-sdk is not installed.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """path: where to record (.rrd); None: open the viewer."""
        self._stream = _rerun().RecordingStream("fasttracks")
        layout = _layout(of_errors=False)
        if path is None:
            self._stream.spawn(default_blueprint=layout)
        else:
            self._stream.save(path, default_blueprint=layout)
        import rerun as rr

        self._stream.log("world", rr.ViewCoordinates.RDF, static=True)
        self._cloud, self._path, self._frame = Cloud(), np.zeros((0, 3), np.float32), 0

    def show(self, newest: Newest) -> None:
        """Show the newest frame."""
        import rerun as rr

        stream = self._stream
        pose, intrinsics, ids, points, moving, image, words = newest
        distance = newest.distance
        radius = 0.004 * distance
        still = self._cloud.add(ids[~moving], points[~moving])
        self._path = np.concatenate([self._path, pose[None, :3, 3]])
        stream.set_time("frame", sequence=self._frame)
        self._frame += 1
        stream.log("world/still", rr.Points3D(still, colors=STILL, radii=radius))
        stream.log("world/moving", rr.Points3D(points[moving], colors=MOVING, radii=1.5 * radius))
        stream.log("world/path", rr.LineStrips3D([self._path], colors=[160]))
        stream.log("world/camera", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        _log_image(stream, intrinsics, image.shape[:2], 0.16 * distance, image)
        text = "  \n".join(f"{name}: **{word}**" for name, word in words.items())
        stream.log("words", rr.TextDocument(text, media_type="text/markdown"))

    def clear(self) -> None:
        """Forget all, as another world begins."""
        self._cloud.clear()
        self._path = self._path[:0]

    def close(self) -> None:
        """Write what is left."""
        self._stream.disconnect()


def _rerun() -> Any:
    try:
        import rerun
    except ImportError:
        raise InputError(
            "rerun: the package rerun-sdk is not installed; 'pip install rerun-sdk' brings it"
        ) from None
    return rerun


def _layout(of_errors: bool) -> Any:
    """The scene, beside it the video, and below that errors in time, or a stream's words."""
    import rerun.blueprint as layout

    below = (
        layout.TimeSeriesView(origin="error", name="reprojection error, pixels")
        if of_errors
        else layout.TextDocumentView(origin="words", name="stream")
    )
    return layout.Blueprint(
        layout.Horizontal(
            layout.Spatial3DView(origin="world", name="scene"),
            layout.Vertical(layout.Spatial2DView(origin="world/camera/image", name="video"), below),
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
    height, width = rec.image_size or np.rint(2 * rec.intrinsics[t, 1::-1, 2] + 1)
    distance = 0.16 * float(np.median(rec.depth))
    _log_image(stream, rec.intrinsics[t], (int(height), int(width)), distance, frame)


def _log_image(
    stream: Any,
    intrinsics: np.ndarray,
    size: tuple[int, int],
    distance: float,
    frame: np.ndarray | None,
) -> None:
    """A camera's pyramid, and the frame (H, W, 3) on it, stretched to `size` (height, width)."""
    import rerun as rr

    matrix = intrinsics.copy()
    matrix[:2, 2] += 0.5  # Rerun's pixels have (0.5, 0.5) at the centre of the top-left one
    height, width = size
    stream.log(
        "world/camera/image",
        rr.Pinhole(
            image_from_camera=matrix, resolution=[width, height], image_plane_distance=distance
        ),
    )
    if frame is not None:
        import cv2

        whole = cv2.resize(frame, (width, height))
        stream.log("world/camera/image", rr.Image(whole).compress(80))


def _colors(rec: ReconstructionData) -> np.ndarray:
    """(N, 3) uint8: those of the video, else by motion."""
    if rec.colors is not None:
        return rec.colors
    from matplotlib import colormaps

    level = np.log(rec.motion)
    low, high = np.percentile(level, (5, 95))
    return colormaps["turbo"]((level - low) / max(high - low, 1e-6), bytes=True)[:, :3]
