"""A reconstruction in numbers and in a few lines, for people and for programs."""

from typing import Any

import numpy as np

from fasttracks.parallax import LEAST
from fasttracks.reconstruction_data import ReconstructionData


def numbers(rec: ReconstructionData) -> dict[str, Any]:
    """What there is to say of a reconstruction, as JSON knows it; pixels unless said otherwise."""
    rec = rec.numpy()
    error = rec.reprojection_error[rec.visibility]
    frames, tracks = rec.visibility.shape
    path = np.linalg.norm(np.diff(rec.camera_to_world[:, :3, 3], axis=0), axis=1).sum()
    focal = float(np.median(rec.intrinsics[:, 0, 0]))
    width = rec.image_size[1] if rec.image_size else 2 * np.median(rec.intrinsics[:, 0, 2]) + 1
    return {
        "frames": frames,
        "tracks": tracks,
        "seen": float(rec.visibility.mean()),
        "moving": int(rec.moving.sum()),
        "image_size": list(rec.image_size) if rec.image_size else None,
        "focal_length": focal,
        "field_of_view_degrees": float(np.degrees(2 * np.arctan(width / 2 / focal))),
        "reprojection_error_median": float(np.median(error)),
        "reprojection_error_90th_percentile": float(np.percentile(error, 90)),
        "camera_path_in_median_depths": float(path / np.median(rec.depth)),
        "parallax_degrees": None if np.isnan(rec.parallax) else rec.parallax,
        "refinement": rec.refinement,
    }


def summary(rec: ReconstructionData) -> dict[str, str]:
    """The same in words, by name."""
    known = numbers(rec)
    return {
        "frames": str(known["frames"]),
        "tracks": f"{known['tracks']}, of which {known['moving']} move on their own",
        "seen": f"{known['seen']:.1%} of positions",
        "image": image_size_text(rec.image_size),
        "focal length": f"{known['focal_length']:.0f} px, "
        f"{known['field_of_view_degrees']:.0f}° across",
        "reprojection error": f"{known['reprojection_error_median']:.2f} px median, "
        f"{known['reprojection_error_90th_percentile']:.2f} px 90th percentile",
        "camera path": f"{known['camera_path_in_median_depths']:.2f} × the median depth",
        "parallax": _parallax(known["parallax_degrees"]),
        "refinement": known["refinement"] or "none, the network's answer as it is",
        "scale": "free, as the world's frame is",
    }


def _parallax(degrees: float | None) -> str:
    if degrees is None:
        return "unknown, as no still point is seen twice"
    little = ": too little to tell depths, they are the network's" if degrees < LEAST else ""
    return f"{degrees:.2g}° between views of a still point{little}"


def image_size_text(image_size: tuple[int, int] | None) -> str:
    """(height, width) as people write it."""
    return f"{image_size[1]}×{image_size[0]} px" if image_size else "unknown"
