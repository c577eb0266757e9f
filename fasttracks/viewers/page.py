"""One HTML file that shows a reconstruction in any browser, without a network."""

import base64
import html
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from fasttracks.errors import printable
from fasttracks.files import as_path, replacing
from fasttracks.reconstruction_data import ReconstructionData, frames_of
from fasttracks.summary import summary

BEGINNING = "<!doctype html>\n<!--\nA reconstruction by fasttracks"  # of each page
_TEMPLATE = Path(__file__).parent / "page.html"
_IMAGE_SIDE = 640  # pixels of the longer side that video frames are shrunk to, and of more than
_IMAGES = 160  # frames to so much less that the page stays of a size
_UNSEEN = -(2**15)
_SHOWN = ("frames", "tracks", "reprojection error")  # facts that the page says elsewhere
_FPS = 25.0  # where a clip doesn't know its times


def write_page(
    rec: ReconstructionData,
    path: str | os.PathLike[str],
    frames: np.ndarray | None = None,
) -> None:
    """Write `page(rec, name, frames)`, named like the file."""
    path = as_path(path, "path")
    with replacing(path) as temporary:
        temporary.write_text(page(rec, path.stem, frames), encoding="utf-8")


def page(
    rec: ReconstructionData,
    name: str = "reconstruction",
    frames: np.ndarray | None = None,
) -> str:
    """The page's text: points, trails and cameras in 3D, and the tracks beside them.

    Args:
        rec: what to show.
        name: its heading.
        frames: (T, H, W, 3) uint8 RGB, the video's frames that it was made from; None leaves
            the video out.
    """
    name = printable(name)  # a file's name may hold what is no text
    clip = json.dumps(_pack(rec.numpy(), name, frames)).replace("<", "\\u003c")
    before, between, after = _template()
    return f"{before}{html.escape(name)}{between}{clip}{after}"


def _template() -> tuple[str, str, str]:
    before, rest = _TEMPLATE.read_text(encoding="utf-8").split("{{title}}")
    between, after = rest.split("{{clip}}")
    return before, between, after


def _pack(rec: ReconstructionData, name: str, frames: Any) -> dict[str, Any]:
    """What clip.js unpacks. The points travel as the low-rank model that they are."""
    count, points = rec.visibility.shape
    extent = np.ceil(rec.tracks[rec.visibility].max(0)).clip(1) + 1
    height, width = rec.image_size or (int(extent[1]), int(extent[0]))
    # A step of int16 such that the image and as much on each of its sides can be told.
    step = 2 * max(height, width) / (2**15 - 1)
    tracks = np.rint(rec.tracks / step).clip(_UNSEEN + 1, -_UNSEEN - 1)
    tracks[~rec.visibility] = _UNSEEN
    motion, threshold = _motion_levels(rec)
    packed = {
        "name": name,
        "facts": {fact: text for fact, text in summary(rec).items() if fact not in _SHOWN},
        "frames": count,
        "points": points,
        "bases": len(rec.basis),
        "image_size": [height, width],
        "median_error": rec.median_reprojection_error,
        "times": (np.arange(count) / _FPS if rec.times is None else rec.times).tolist(),
        "basis": _base64(rec.basis, "<f4"),
        "coefficients": _base64(rec.coefficients, "<f4"),
        "cameras": _base64(rec.camera_to_world[:, :3], "<f4"),
        "intrinsics": _base64(rec.intrinsics.reshape(count, 9)[:, (0, 1, 2, 4, 5)], "<f4"),
        "tracks": _base64(tracks, "<i2"),
        "track_step": step,
        "motion": _base64(motion, "u1"),
        "threshold": threshold,
        "colors": None if rec.colors is None else _base64(rec.colors, "u1"),
    }
    if frames is not None:
        side = _IMAGE_SIDE * min(1.0, (_IMAGES / count) ** 0.5)
        images = [_jpeg(frame, side) for frame in frames_of(rec, frames)]
        packed["images"] = [base64.b64encode(image).decode() for image in images]
    return packed


def _motion_levels(rec: ReconstructionData) -> tuple[np.ndarray, int]:
    """Log γ as 0..255 between its 2nd and 99th percentiles; the level that moving starts at."""
    level = np.log(rec.motion)
    low, high = np.percentile(level, (2, 99))
    levels = ((level - low) / max(high - low, 1e-6) * 255).clip(0, 255).round()
    threshold = int(levels[rec.moving].min(initial=255))
    # A track that was seen once has some γ, but is not moving.
    return np.where(rec.moving, levels, levels.clip(max=threshold - 1)), threshold


def _jpeg(frame: np.ndarray, longest: float) -> bytes:
    import cv2

    scale = min(1.0, longest / max(frame.shape[:2]))
    size = [max(1, round(side * scale)) for side in frame.shape[1::-1]]
    small = cv2.resize(np.ascontiguousarray(frame[..., ::-1]), size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _base64(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).data).decode()
