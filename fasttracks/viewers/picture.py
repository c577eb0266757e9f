"""One picture of a reconstruction, for a person to judge it by."""

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from fasttracks.files import replacing
from fasttracks.reconstruction import Reconstruction

_COLOURS = "turbo"


def draw(rec: Reconstruction, path: str | os.PathLike[str]) -> None:
    """Write a picture (.png, .pdf, .svg) of a reconstruction.

    Above: the tracks of three frames, each joined to its reprojection. Below: points and
    cameras from above and from the side, and the reprojection error over time. Points are
    coloured by their motion γ; lines show where the most mobile tenth went.
    """
    rec = rec.numpy()
    height, width = rec.image_size or np.ptp(rec.tracks.reshape(-1, 2), 0)[::-1] + 1
    above = 4.6 * np.clip(height / width, 0.4, 2)  # inches of a frame 4.6 inches wide
    figure = Figure(figsize=(15, above + 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, height_ratios=(above, 4.6))
    low, high = np.percentile(rec.motion, (5, 95))
    norm = LogNorm(low, max(high, 1.001 * low))

    frames = len(rec.points)
    for axis, t in zip(axes[0], (0, frames // 2, frames - 1), strict=True):
        _draw_frame(axis, rec, t, norm)
    _draw_scene(axes[1, 0], rec, (0, 2), ("right", "forward"), norm)
    axes[1, 0].set_title("from above")
    colours = _draw_scene(axes[1, 1], rec, (2, 1), ("forward", "down"), norm)
    axes[1, 1].invert_yaxis()
    axes[1, 1].set_title("from the side")
    _draw_error(axes[1, 2], rec)

    figure.colorbar(colours, ax=axes[1, 1], label="motion γ", location="bottom", shrink=0.7)
    figure.suptitle(repr(rec))
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=100)


def _draw_frame(axis: Axes, rec: Reconstruction, t: int, norm: LogNorm) -> None:
    seen = rec.visibility[t]
    start, end = rec.tracks[t, seen], rec.reprojection[t, seen]
    axis.add_collection(LineCollection(np.stack([start, end], 1), colors="0.5", linewidths=0.8))
    axis.scatter(*start.T, s=14, facecolors="none", edgecolors="0.3", linewidths=0.6)
    axis.scatter(*end.T, s=7, c=rec.motion[seen], cmap=_COLOURS, norm=norm)
    if rec.image_size:
        height, width = rec.image_size
        axis.set(xlim=(0, width), ylim=(height, 0))
    else:
        axis.invert_yaxis()
    axis.set_aspect("equal")
    axis.set_title(f"frame {t}: tracks (rings), reprojection (dots)")


def _draw_scene(
    axis: Axes, rec: Reconstruction, plane: tuple[int, int], names: tuple[str, str], norm: LogNorm
) -> ScalarMappable:
    """Points and cameras along two axes of the middle frame's camera."""
    middle = len(rec.points) // 2
    rotation, centre = rec.camera_to_world[middle, :3, :3], rec.camera_to_world[middle, :3, 3]
    points = ((rec.points - centre) @ rotation)[..., plane]
    cameras = ((rec.camera_to_world[:, :3, 3] - centre) @ rotation)[:, plane]

    mobile = np.argsort(rec.motion)[-max(1, rec.motion.size // 10) :]
    axis.add_collection(
        LineCollection(
            points[:, mobile].swapaxes(0, 1),
            array=rec.motion[mobile],
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
    margin = 0.1 * (high - low).max()
    axis.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
    axis.set(xlabel=names[0], ylabel=names[1], aspect="equal")
    return dots


def _draw_error(axis: Axes, rec: Reconstruction) -> None:
    error = np.where(rec.visibility.any(1)[:, None], rec.reprojection_error, 0)
    for q, style in ((50, "-"), (90, "--")):
        axis.plot(np.nanpercentile(error, q, axis=1), f"k{style}", label=f"{q}th percentile")
    axis.set(xlabel="frame", ylabel="pixels", ylim=(0, None))
    axis.set_title("reprojection error")
    axis.legend()
