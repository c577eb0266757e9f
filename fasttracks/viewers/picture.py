"""One picture of a reconstruction, for a person to judge it by."""

import os

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from fasttracks.files import replacing
from fasttracks.reconstruction_data import ReconstructionData, frames_of
from fasttracks.summary import summary

_COLOURS = "turbo"
_MOTION = "motion γ: how far a track strays\nfrom any still point's, in radians"


def draw(
    rec: ReconstructionData, path: str | os.PathLike[str], frames: np.ndarray | None = None
) -> None:
    """Write a picture (.png, .pdf, .svg) of a reconstruction.

    Above: the tracks of three frames, each joined to its reprojection, on the video's `frames`
    (T, H, W, 3) uint8 RGB if they are given. Middle: points and cameras from three sides,
    coloured by their motion γ; lines show where the moving points went. Below: the reprojection
    error over time and how much points move.
    """
    rec = rec.numpy()
    if frames is not None:
        frames = frames_of(rec, frames)
    height, width = rec.image_size or np.ptp(rec.tracks.reshape(-1, 2), 0)[::-1] + 1
    above = 4.6 * np.clip(height / width, 0.4, 2)  # inches of a frame 4.6 inches wide
    figure = Figure(figsize=(15, above + 8), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(3, 1, height_ratios=(above, 4.6, 2.8))
    low, high = np.percentile(rec.motion, (5, 95))
    norm = LogNorm(low, max(high, 1.001 * low))

    count = len(rec.points)
    for axis, t in zip(rows[0].subplots(1, 3), (0, count // 2, count - 1), strict=True):
        _draw_frame(axis, rec, t, norm, None if frames is None else frames[t])
    sides = rows[1].subplots(1, 3)
    _draw_scene(sides[0], rec, (0, 2), ("right", "forward"), norm)
    sides[0].set_title("from above")
    _draw_scene(sides[1], rec, (2, 1), ("forward", "down"), norm)
    sides[1].invert_yaxis()
    sides[1].set_title("from the side")
    colours = _draw_scene(sides[2], rec, (0, 1), ("right", "down"), norm)
    sides[2].invert_yaxis()
    sides[2].set_title("from behind the camera")
    rows[1].colorbar(colours, ax=sides, label=_MOTION, shrink=0.8)
    error, motion = rows[2].subplots(1, 2, width_ratios=(2, 1))
    _draw_error(error, rec)
    _draw_motion(motion, rec, norm)
    figure.suptitle(_title(rec))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _title(rec: ReconstructionData) -> str:
    known = summary(rec)
    above = [f"{len(rec.points)} frames, {len(rec.motion)} tracks"]
    above += [f"{name}: {known[name]}" for name in ("reprojection error", "focal length")]
    below = [f"{name}: {known[name]}" for name in ("refinement", "scale")]
    return "\n".join("   ·   ".join(line) for line in (above, below))


def _draw_frame(
    axis: Axes, rec: ReconstructionData, t: int, norm: LogNorm, frame: np.ndarray | None
) -> None:
    seen = rec.visibility[t]
    start, end = rec.tracks[t, seen], rec.reprojection[t, seen]
    axis.add_collection(LineCollection(np.stack([start, end], 1), colors="0.5", linewidths=0.8))
    axis.scatter(*start.T, s=14, facecolors="none", edgecolors="0.3", linewidths=0.6)
    axis.scatter(*end.T, s=7, c=rec.motion[seen], cmap=_COLOURS, norm=norm)
    if rec.image_size:
        height, width = rec.image_size
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # whole pixels are at their centres
        if frame is not None:
            axis.imshow(frame // 2 + 100, extent=extent)  # pale, for tracks to stand out
        axis.set(xlim=extent[:2], ylim=extent[2:])
    else:
        axis.invert_yaxis()
    axis.set_aspect("equal")
    axis.set_title(f"frame {t}: tracks (rings), reprojection (dots)")


def _draw_scene(
    axis: Axes,
    rec: ReconstructionData,
    plane: tuple[int, int],
    names: tuple[str, str],
    norm: LogNorm,
) -> ScalarMappable:
    """Points and cameras along two axes of the middle frame's camera."""
    middle = len(rec.points) // 2
    rotation, centre = rec.camera_to_world[middle, :3, :3], rec.camera_to_world[middle, :3, 3]
    points = ((rec.points - centre) @ rotation)[..., plane]
    cameras = ((rec.camera_to_world[:, :3, 3] - centre) @ rotation)[:, plane]

    axis.add_collection(
        LineCollection(
            points[:, rec.moving].swapaxes(0, 1),
            array=rec.motion[rec.moving],
            cmap=_COLOURS,
            norm=norm,
            linewidths=0.6,
            alpha=0.5,
        )
    )
    order = np.argsort(rec.motion)
    dots = axis.scatter(
        *points[middle, order].T, s=6, c=rec.motion[order], cmap=_COLOURS, norm=norm
    )
    axis.plot(*cameras.T, color="k", linewidth=1)
    looks = rec.camera_to_world[:, :3, 2] @ rotation
    for t in np.linspace(0, len(cameras) - 1, min(8, len(cameras))).astype(int):
        length = 0.08 * np.median(rec.depth)
        tip = cameras[t] + length * looks[t, plane]
        axis.annotate("", tip, cameras[t], arrowprops={"arrowstyle": "->", "color": "k"})

    # A few far strays must not shrink the scene.
    shown = np.concatenate([points[middle], cameras])
    low, high = np.percentile(shown, (2, 98), axis=0)
    low, high = np.minimum(low, cameras.min(0)), np.maximum(high, cameras.max(0))
    mid, half = (low + high) / 2, 0.6 * (high - low).max()
    (left, bottom), (right, top) = mid - half, mid + half
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axis.set(xlabel=names[0], ylabel=names[1])
    return dots


def _draw_error(axis: Axes, rec: ReconstructionData) -> None:
    error = np.where(rec.visibility.any(1)[:, None], rec.reprojection_error, 0)
    middle, high = np.nanpercentile(error, (50, 90), axis=1)
    frames = np.arange(len(error))
    axis.fill_between(frames, high, color="0.88", label="nine in ten below")
    axis.plot(frames, middle, "k", label="median")
    axis.set(xlabel="frame", ylabel="pixels", xlim=(0, frames[-1]), ylim=(0, None))
    axis.set_title("reprojection error")
    axis.legend()


def _draw_motion(axis: Axes, rec: ReconstructionData, norm: LogNorm) -> None:
    edges = np.geomspace(rec.motion.min(), 1.001 * rec.motion.max(), 41)
    counts, _ = np.histogram(rec.motion, edges)
    middles = np.sqrt(edges[1:] * edges[:-1])
    axis.bar(
        edges[:-1], counts, np.diff(edges), align="edge", color=colormaps[_COLOURS](norm(middles))
    )
    axis.set(xscale="log", yscale="symlog", xlabel=_MOTION, ylabel="points")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title(f"{rec.moving.sum()} of {len(rec.motion)} points move on their own")
    if rec.moving.any():
        threshold = rec.motion[rec.moving].min()
        axis.axvline(threshold, color="k", linestyle=":", label=f"moving from γ = {threshold:.2g}")
        axis.legend()
