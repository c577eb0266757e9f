"""`Reconstruction`: what `reconstruct` returns, and the files and pages it can be written to."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from fasttracks.reconstruction_data import ArrayT, ReconstructionData


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction(ReconstructionData[ArrayT]):
    """Cameras and 4D points of one clip; fields and shapes are those of `ReconstructionData`."""

    def numpy(self) -> "Reconstruction[np.ndarray]":
        """The same with numpy arrays."""
        return cast("Reconstruction[np.ndarray]", super().numpy())

    def to_ply(self, path: str | os.PathLike[str]) -> None:
        """Write points as binary PLY: x y z in the world, colour if known, motion γ.

        A name ending in .ply is a file of the static points; any other is a folder, of
        frame_00000.ply and so on with the points of each frame, and whether they were seen;
        those of an earlier, longer export are removed from it.
        Rows are in the order of the tracks.
        """
        from fasttracks.export.ply import write

        write(self.numpy(), Path(path))

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
