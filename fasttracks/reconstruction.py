"""`Reconstruction`: what `reconstruct` returns, and the files and pages it can be written to."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from fasttracks.checks import LARGEST, as_numbers
from fasttracks.errors import InputError
from fasttracks.export import check_ending, check_folder
from fasttracks.files import as_path
from fasttracks.reconstruction_data import ArrayT, ReconstructionData

if TYPE_CHECKING:
    from typing_extensions import Self

_BY_FRAME = (
    "points", "points_camera", "camera_to_world", "intrinsics", "reprojection", "coefficients",
    "tracks", "visibility", "times",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction(ReconstructionData[ArrayT]):
    """Cameras and 4D points of one clip; fields and shapes are those of `ReconstructionData`."""

    def numpy(self) -> "Reconstruction[np.ndarray]":
        """The same with numpy arrays."""
        return cast("Reconstruction[np.ndarray]", super().numpy())

    def __len__(self) -> int:
        """Frames."""
        return len(self.camera_to_world)

    def __getitem__(self, frames: slice) -> "Self":
        """Some of the frames, such as rec[10:20] or rec[::2]; points and basis stay whole.

        Raises:
            InputError: fewer than two frames are left, or it is no slice.
        """
        if not isinstance(frames, slice):
            raise InputError(f"frames: expected a slice such as rec[10:20], found {frames!r}")
        self.check()
        left = len(range(len(self))[frames])
        if left < 2:
            raise InputError(f"frames: expected at least 2, found {left} of {len(self)}")
        chosen = np.arange(len(self))[frames]
        return replace(self, **{
            name: value[chosen]
            for name, value in vars(self).items() if name in _BY_FRAME and value is not None
        })  # fmt: skip

    def scaled(self, scale: float) -> "Self":
        """The same, everything `scale` times as large and as far away.

        Images stay as they are: a clip doesn't tell the scale, but one known length does
        (`with_length`), or the camera's height (`with_camera_height`).
        """
        scale = _number(scale, "scale")
        self.check()
        poses = np.ones((4, 4), np.float32)
        poses[:3, 3] = scale
        return replace(
            self,
            points=self.points * scale,
            points_camera=self.points_camera * scale,
            basis=self.basis * scale,
            camera_to_world=self.camera_to_world * self._like(poses),
        )

    def transformed(self, transform: ArrayLike) -> "Self":
        """The same in another world: `transform` (4, 4) takes points of this one there.

        Raises:
            InputError: it is not a rotation and a shift.
        """
        matrix = as_numbers(transform, "transform").astype(np.float64)
        rigid = matrix.shape == (4, 4) and np.isfinite(matrix).all()
        if rigid:
            r = matrix[:3, :3]
            rigid = np.abs(r @ r.T - np.eye(3)).max() < 1e-4 and np.linalg.det(r) > 0
            rigid = rigid and np.abs(matrix[3] - (0, 0, 0, 1)).max() < 1e-6
        if not rigid:
            raise InputError(
                "transform: expected a rigid (4, 4) matrix, of a rotation and a shift, found "
                f"{matrix.tolist() if matrix.shape == (4, 4) else matrix.shape}; "
                "scaled(s) changes the scale"
            )
        self.check()
        rotation = self._like(matrix[:3, :3].T.astype(np.float32))
        shift = self._like(matrix[:3, 3].astype(np.float32))
        basis = self.basis @ rotation
        basis[0] += shift  # the static scene, whose coefficients are 1
        return replace(
            self,
            points=self.points @ rotation + shift,
            basis=basis,
            camera_to_world=self._like(matrix.astype(np.float32)) @ self.camera_to_world,
        )

    def with_length(self, length: float, a: int, b: int, frame: int | None = None) -> "Self":
        """The same at the scale at which the points of tracks `a` and `b` are `length` apart.

        In a frame, or, with None, in the static scene.
        """
        if frame is None:
            points = self.static_points
        else:
            points = self.points[_index(frame, len(self), "frame")]
        a, b = (_index(i, len(points), name) for name, i in (("a", a), ("b", b)))
        found = float(((points[a] - points[b]) ** 2).sum() ** 0.5)
        if not found > 0:
            raise InputError(f"a, b: expected two points apart from each other, found {a} and {b}")
        return self.scaled(_number(length, "length") / found)

    def with_camera_height(self, height: float, ground: Sequence[int]) -> "Self":
        """The same at the scale at which the camera's mean height above the ground is `height`.

        The ground is the plane nearest to the static points of the tracks `ground`, three or more.
        """
        tracks = as_numbers(ground, "ground")
        if tracks.ndim != 1 or len(tracks) < 3:
            raise InputError(f"ground: expected three tracks or more, found {tracks.shape}")
        all_points = self.numpy().static_points.astype(np.float64)
        points = all_points[[_index(i, len(all_points), "ground") for i in tracks]]
        centre = points.mean(0)
        normal = np.linalg.svd(points - centre)[2][2]
        cameras = self.numpy().camera_to_world[:, :3, 3]
        found = float(np.abs((cameras - centre) @ normal).mean())
        if not found > 0:
            raise InputError("ground: expected tracks of a plane that the camera is above")
        return self.scaled(_number(height, "height") / found)

    def _like(self, array: np.ndarray) -> Any:
        """A numpy array as this one's arrays are, numpy or torch."""
        if isinstance(self.points, np.ndarray):
            return array
        return self.points.new_tensor(array)

    def to_ply(self, path: str | os.PathLike[str]) -> None:
        """Write points as binary PLY: x y z in the world, colour if known, motion γ.

        A name ending in .ply is a file of the static points; any other is a folder, of
        frame_00000.ply and so on with the points of each frame, and whether they were seen;
        those of an earlier, longer export are removed from it.
        Rows are in the order of the tracks.
        """
        from fasttracks.export.ply import write

        path = as_path(path, "path")
        if path.suffix.lower() != ".ply":
            check_folder(path, "path")
        write(self.numpy(), path)

    def to_colmap(
        self, folder: str | os.PathLike[str], *, text: bool = False, moving: bool = False
    ) -> None:
        """Write COLMAP's sparse model: cameras, images and points3D, as .bin or .txt.

        One that is in the folder is removed; other files there stay. One camera serves all frames
        unless that would move a pixel by over half its width.

        COLMAP's points don't move, so these are the static points, with the observations of
        their tracks; those that are `moving` are left out unless asked for. Point n + 1 is track
        n, image t + 1 is frame t and is called frame_0000t.png. Errors are those of the static
        points, in pixels.

        Raises:
            InputError: the intrinsics have skew, for which COLMAP has no camera.
        """
        from fasttracks.export.colmap import write

        write(self.numpy(), check_folder(folder), text, moving)

    def to_splat(self, folder: str | os.PathLike[str], frames: np.ndarray) -> None:
        """Write what programs for Gaussian splatting train on, with one camera for all frames.

        `images/`, the video's `frames` (T, H, W, 3) uint8 RGB at its full size, as .png;
        `sparse/0/`, COLMAP's model, as 3D Gaussian Splatting reads it; `transforms.json` with
        `points.ply`, as nerfstudio does. Points that move are left out, but not from the images.
        The camera's intrinsics are the medians over the frames.

        Raises:
            InputError: the frames are others, or have another size than the image.
        """
        from fasttracks.export.splat import write

        write(self.numpy(), check_folder(folder), frames)

    def to_tum(self, path: str | os.PathLike[str]) -> None:
        """Write the camera path in TUM's format: time tx ty tz qx qy qz qw, camera to world.

        Times are seconds in the video, or the frame's number if they aren't known.
        """
        from fasttracks.export.trajectory import write_tum

        write_tum(self.numpy(), check_ending(path, ".txt", ".tum"))

    def to_kitti(self, path: str | os.PathLike[str]) -> None:
        """Write the camera path in KITTI's format: 3 × 4 matrices, camera to world."""
        from fasttracks.export.trajectory import write_kitti

        write_kitti(self.numpy(), check_ending(path, ".txt", ".kitti"))

    def to_gltf(self, path: str | os.PathLike[str], *, radius: float | None = None) -> None:
        """Write an animated point cloud and camera as binary glTF (.glb), for Blender and others.

        Axes are glTF's: x right, y up, z backward, thus (x, -y, -z) of ours. Each point is an
        octahedron of `radius`, in world units; None: 0.6% of the median depth. The camera's
        field of view is the median one, its principal point the middle.
        """
        from fasttracks.export.gltf import write

        write(self.numpy(), check_ending(path, ".glb"), radius)

    def _repr_html_(self) -> str:
        """The page that shows it, in a notebook."""
        from html import escape

        from fasttracks.viewers.page import page

        style = "width:100%;height:560px;border:0"
        return f'<iframe srcdoc="{escape(page(self))}" style="{style}"></iframe>'


def _number(value: Any, name: str) -> float:
    """A number above 0; InputError, naming the argument, otherwise."""
    number = as_numbers(value, name)
    if number.shape != () or not 0 < number <= LARGEST:
        raise InputError(f"{name}: expected a number above 0, found {value!r}")
    return float(number)


def _index(value: Any, count: int, name: str) -> int:
    """A whole number from -count to count - 1; InputError, naming the argument, otherwise."""
    number = as_numbers(value, name)
    if number.shape != () or number.dtype.kind not in "iu" or not -count <= number < count:
        raise InputError(f"{name}: expected a whole number below {count}, found {value!r}")
    return int(number)
