"""`fasttracks info` and `env`: what a file holds, what this machine runs."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fasttracks.cli.console import image_size_text, say, table
from fasttracks.files import read_npz
from fasttracks.parallax import LEAST
from fasttracks.reconstruction import Reconstruction
from fasttracks.tracks import Tracks


def info(options: argparse.Namespace) -> None:
    """What a file holds."""
    path = Path(options.input)
    if path.suffix.lower() != ".npz":
        from fasttracks.weights import describe

        return table(describe(options.input))
    if "points_camera" in read_npz(path, "file"):
        table(summary(Reconstruction.load(path)))
    else:
        tracks = Tracks.load(path)
        table(
            {
                "frames": tracks.tracks.shape[0],
                "tracks": tracks.tracks.shape[1],
                "seen": f"{tracks.seen:.1%}",
                "image": image_size_text(tracks.image_size),
                "fps": tracks.fps or "unknown",
                "intrinsics": "unknown" if tracks.intrinsics is None else "known",
            }
        )


def summary(result: "Reconstruction[np.ndarray]") -> dict[str, Any]:
    """A reconstruction in a few lines."""
    error = result.reprojection_error[result.visibility]
    path = np.linalg.norm(np.diff(result.camera_to_world[:, :3, 3], axis=0), axis=1).sum()
    focal = result.intrinsics[:, 0, 0]
    return {
        "frames": result.points.shape[0],
        "tracks": result.points.shape[1],
        "seen": f"{result.visibility.mean():.1%}",
        "image": image_size_text(result.image_size),
        "focal length": f"{np.median(focal):.0f} px",
        "reprojection error": f"{np.median(error):.2f} px median, "
        f"{np.percentile(error, 90):.2f} px 90th percentile",
        **({"refinement": result.refinement} if result.refinement else {}),
        "parallax": _parallax_text(result.parallax),
        "camera path": f"{path / np.median(result.depth):.2f} × the median depth",
    }


def _parallax_text(degrees: float) -> str:
    if np.isnan(degrees):
        return "unknown, as no still track is seen twice"
    return f"{degrees:.2g}°" + (", hardly any: depths are a guess" if degrees < LEAST else "")


def env(_: argparse.Namespace) -> None:
    """What this machine runs."""
    from fasttracks.env import report

    say(report())
