"""What a reconstruction holds."""

import os
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fasttracks.errors import InputError
from fasttracks.npz import read_npz, write_npz
from fasttracks.tracks import check_colors, check_image_size, check_times

_SHAPES = {
    "points": "TN3",
    "points_camera": "TN3",
    "camera_to_world": "T44",
    "intrinsics": "T33",
    "reprojection": "TN2",
    "basis": "KN3",
    "coefficients": "TK",
    "motion": "N",
    "tracks": "TN2",
    "visibility": "TN",
}

Array = Any  # numpy.ndarray or torch.Tensor; all of one reconstruction are of one kind


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction:
    """Cameras and 4D points of one clip of T frames and N tracks, K basis clouds.

    Cameras follow OpenCV: x right, y down, z forward; pixels have (0, 0) at the centre of
    the top-left pixel. World frame and scale are free (a clip doesn't tell them). float32.

    Attributes:
        points: (T, N, 3) world points, frame by frame.
        points_camera: (T, N, 3) the same in each frame's camera.
        camera_to_world: (T, 4, 4) rigid.
        intrinsics: (T, 3, 3) pixels, after any correction by the model.
        reprojection: (T, N, 2) pixels.
        basis: (K, N, 3) and coefficients (T, K): points = coefficients · basis.
            basis[0] is the static scene, coefficients[:, 0] is 1.
        motion: (N,) γ, large where a point moves on its own.
        tracks: (T, N, 2) pixels and visibility (T, N) bool, as they were used.
        image_size: (height, width) in pixels, or None if it was not known.
        times: (T,) float64 seconds in the video, or None if they were not known.
        colors: (N, 3) uint8 RGB of each point in the video, or None if they were not known.
        refinement: how refinement went and what it says of the clip; None if there was none.
    """

    points: Array
    points_camera: Array
    camera_to_world: Array
    intrinsics: Array
    reprojection: Array
    basis: Array
    coefficients: Array
    motion: Array
    tracks: Array
    visibility: Array
    image_size: tuple[int, int] | None = None
    times: Array | None = None
    colors: Array | None = None
    refinement: str | None = None

    def __repr__(self) -> str:
        frames, tracks = self.points.shape[:2]
        return (
            f"Reconstruction({frames} frames, {tracks} tracks, {len(self.basis)} bases, "
            f"median reprojection error {self.median_reprojection_error:.2f} px)"
        )

    @property
    def depth(self) -> Array:
        """(T, N) z in each frame's camera."""
        return self.points_camera[..., 2]

    @property
    def static_points(self) -> Array:
        """(N, 3) world points of the static scene."""
        return self.basis[0]

    @property
    def moving(self) -> Array:
        """(N,) bool: γ stands out by three robust standard deviations of log γ."""
        level = np.log(_numpy(self.motion))
        median = np.median(level)
        moving = level > median + 3 * 1.4826 * np.median(np.abs(level - median))
        is_numpy = isinstance(self.motion, np.ndarray)
        return moving if is_numpy else self.motion.new_tensor(moving).bool()

    @property
    def reprojection_error(self) -> Array:
        """(T, N) distance in pixels from track to reprojection, NaN where unseen."""
        error = ((self.reprojection - self.tracks) ** 2).sum(-1) ** 0.5
        error[~self.visibility] = float("nan")
        return error

    @property
    def median_reprojection_error(self) -> float:
        """Over the seen positions, in pixels."""
        return float(np.nanmedian(_numpy(self.reprojection_error)))

    def numpy(self) -> "Reconstruction":
        """The same with numpy arrays."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if name not in ("image_size", "refinement") and value is not None:
                values[name] = _numpy(value)
        return Reconstruction(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz of the attributes, read back by `load`."""
        write_npz(path, vars(self.numpy()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Reconstruction":
        """Read what `save` wrote; InputError if the file is anything else."""
        arrays: dict[str, Any] = read_npz(path, "reconstruction")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in arrays]
        if missing:
            raise InputError(f"reconstruction: {path} lacks {', '.join(missing)}")
        shape = (*arrays["tracks"].shape, 0, 0)
        sizes = {"T": shape[0], "N": shape[1], "K": (*arrays["basis"].shape, 0)[0]}
        for name, axes in _SHAPES.items():
            expected = tuple(sizes[a] if a in sizes else int(a) for a in axes)
            if arrays[name].shape != expected or arrays[name].dtype.kind not in "bf":
                raise InputError(
                    f"reconstruction: {path} has {name} of {arrays[name].dtype} "
                    f"{arrays[name].shape}, expected {expected}"
                )
        arrays["image_size"] = check_image_size(arrays.get("image_size"))
        arrays["times"] = check_times(arrays.get("times"), sizes["T"])
        arrays["colors"] = check_colors(arrays.get("colors"), sizes["N"])
        if "refinement" in arrays:
            arrays["refinement"] = str(arrays["refinement"])
        return cls(**{f.name: arrays[f.name] for f in fields(cls) if f.name in arrays})

    def to_ply(self, path: str | os.PathLike[str]) -> None:
        """Write points as binary PLY: x y z in the world, colour if known, motion γ.

        A name ending in .ply is a file of the static points; any other is a folder, of
        frame_00000.ply and so on with the points of each frame, and whether they were seen.
        Rows are in the order of the tracks.
        """
        from fasttracks.export.ply import write

        write(self.numpy(), Path(path))

    def to_colmap(
        self, folder: str | os.PathLike[str], *, text: bool = False, moving: bool = False
    ) -> None:
        """Write COLMAP's sparse model: cameras, images and points3D, as .bin or .txt.

        COLMAP's points don't move, so these are the static points, with the observations of
        their tracks; those that are `moving` are left out unless asked for. Point n + 1 is track
        n, image t + 1 is frame t and is called frame_0000t.png. Errors are those of the static
        points, in pixels.

        Raises:
            InputError: the intrinsics have skew, for which COLMAP has no camera.
        """
        from fasttracks.export.colmap import write

        write(self.numpy(), Path(folder), text, moving)

    def to_tum(self, path: str | os.PathLike[str]) -> None:
        """Write the camera path in TUM's format: time tx ty tz qx qy qz qw, camera to world.

        Times are seconds in the video, or the frame's number if they aren't known.
        """
        from fasttracks.export.trajectory import write_tum

        write_tum(self.numpy(), Path(path))

    def to_kitti(self, path: str | os.PathLike[str]) -> None:
        """Write the camera path in KITTI's format: 3 × 4 matrices, camera to world."""
        from fasttracks.export.trajectory import write_kitti

        write_kitti(self.numpy(), Path(path))

    def to_gltf(self, path: str | os.PathLike[str], *, radius: float | None = None) -> None:
        """Write an animated point cloud and camera as binary glTF (.glb), for Blender and others.

        Axes are glTF's: x right, y up, z backward, thus (x, -y, -z) of ours. Each point is an
        octahedron of `radius`, in world units; None: 0.6% of the median depth. The camera's
        field of view is the median one, its principal point the middle.
        """
        from fasttracks.export.gltf import write

        write(self.numpy(), Path(path), radius)

    def _repr_html_(self) -> str:
        """The page that shows it, in a notebook."""
        from html import escape

        from fasttracks.viewers.page import page

        style = "width:100%;height:560px;border:0"
        return f'<iframe srcdoc="{escape(page(self))}" style="{style}"></iframe>'


def _numpy(array: Array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
