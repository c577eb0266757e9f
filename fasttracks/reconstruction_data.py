"""What a reconstruction holds, and its .npz file."""

import os
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from fasttracks.checks import as_numbers, check_arrays
from fasttracks.errors import InputError, printable
from fasttracks.files import Npz, write_npz
from fasttracks.parallax import SHARE, ray_spread
from fasttracks.tracks import check_colors, check_image_size, check_times

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

_RULES = {
    "points": "TN3 finite",
    "points_camera": "TN3 finite",
    "camera_to_world": "T44 poses",
    "intrinsics": "T33 cameras",
    "reprojection": "TN2 finite",
    "basis": "KN3 finite",
    "coefficients": "TK finite",
    "motion": "N positive",
    "tracks": "TN2 finite",
    "visibility": "TN flags",
}

# Of the mean log γ of moving tracks over that of still ones, and of it alone, in radians: what
# generated clips in which something moves have at least, and those in which nothing does have not.
_APART, _MOVES = np.log(5), np.log(0.009)
# Where at least a twentieth of the tracks lie this far above the others, the level doesn't matter.
_FAR_APART, _MANY = np.log(7), 0.05

ArrayT = TypeVar("ArrayT", np.ndarray, "Tensor")  # all arrays of one are of one kind


@dataclass(frozen=True, eq=False, repr=False)
class ReconstructionData(Generic[ArrayT]):
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
            basis[0] is the static scene, coefficients[:, 0] is 1. Each window of a long clip has
            bases of its own.
        motion: (N,) γ, in radians about how far a point's track is from any static point's, as the
            network sees it and, after bundle adjustment, as was found.
        tracks: (T, N, 2) pixels and visibility (T, N) bool, as they were used.
        image_size: (height, width) in pixels, or None if it was not known.
        times: (T,) float64 seconds in the video, or None if they were not known.
        colors: (N, 3) uint8 RGB of each point in the video, or None if they were not known.
        refinement: how refinement went and what it says of the clip; None if there was none.
    """

    points: ArrayT
    points_camera: ArrayT
    camera_to_world: ArrayT
    intrinsics: ArrayT
    reprojection: ArrayT
    basis: ArrayT
    coefficients: ArrayT
    motion: ArrayT
    tracks: ArrayT
    visibility: ArrayT
    image_size: tuple[int, int] | None = None
    times: ArrayT | None = None
    colors: ArrayT | None = None
    refinement: str | None = None

    def check(self) -> None:
        """Raise or warn of what only values tell, where `reconstruct` did not wait for a GPU's.

        Methods that bring values to the host do so first; on others' results it does nothing.
        """
        if look := vars(self).get("_unchecked"):
            look()
            vars(self).pop("_unchecked", None)

    def __repr__(self) -> str:
        frames, tracks = self.points.shape[:2]
        return (
            f"Reconstruction({frames} frames, {tracks} tracks, {len(self.basis)} bases, "
            f"median reprojection error {self.median_reprojection_error:.2f} px)"
        )

    @property
    def depth(self) -> ArrayT:
        """(T, N) z in each frame's camera."""
        return self.points_camera[..., 2]

    @property
    def static_points(self) -> ArrayT:
        """(N, 3) world points of the static scene."""
        return self.basis[0]

    @property
    def moving(self) -> ArrayT:
        """(N,) bool: γ is in the upper of the two classes that the clip's fall into; or, where they
        don't part clearly, stands out by three robust standard deviations of log γ.

        Tracks seen in one frame tell of no motion and are not among them.
        """
        self.check()
        moving = tell_moving(_numpy(self.motion), _numpy(self.visibility))
        if isinstance(self.motion, np.ndarray):
            return moving
        return self.motion.new_tensor(moving).bool()

    @property
    def parallax(self) -> float:
        """Degrees that a still point's views are spread over (RMS), of the tenth that is seen best.

        Below about `fasttracks.parallax.LEAST` the clip tells hardly any depth: it is the network's
        guess. NaN where no still track is seen twice.
        """
        rec = self.numpy()
        still = ~rec.moving & (rec.visibility.sum(0) > 1)
        if not still.any():
            return np.nan
        points, position = rec.static_points[still], rec.camera_to_world[:, :3, 3]
        spread = ray_spread(points.astype(float), position.astype(float), rec.visibility[:, still])
        return float(np.degrees(np.quantile(spread, SHARE)))

    @property
    def reprojection_error(self) -> ArrayT:
        """(T, N) distance in pixels from track to reprojection, NaN where unseen."""
        error = ((self.reprojection - self.tracks) ** 2).sum(-1) ** 0.5
        error[~self.visibility] = float("nan")
        return error

    @property
    def median_reprojection_error(self) -> float:
        """Over the seen positions, in pixels."""
        self.check()
        return float(np.nanmedian(_numpy(self.reprojection_error)))

    def numpy(self) -> "ReconstructionData[np.ndarray]":
        """The same with numpy arrays."""
        self.check()
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if name not in ("image_size", "refinement") and value is not None:
                values[name] = _numpy(value)
        return type(self)(**values)  # type: ignore[return-value]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz of the attributes, read back by `load`."""
        write_npz(path, vars(self.numpy()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Self":
        """Read what `save` wrote; InputError if the file is anything else."""
        file: Npz = Npz(path, "reconstruction")
        where = f"reconstruction: {file.path}"
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in file]
        if missing:
            raise InputError(f"{where} lacks {', '.join(missing)}")
        sizes = dict(
            zip("TNK", (*file.shape("visibility"), *file.shape("basis")[:1]), strict=False)
        )
        if len(sizes) < 3 or sizes["T"] < 2 or min(sizes.values()) < 1:
            raise InputError(
                f"{where} has {sizes.get('T', 0)} frames, {sizes.get('N', 0)} tracks and "
                f"{sizes.get('K', 0)} bases; expected at least 2, 1 and 1"
            )
        arrays: dict[str, Any] = check_arrays(file, _RULES, sizes, where)
        arrays["image_size"] = check_image_size(file.get("image_size"))
        arrays["times"] = check_times(file.get("times"), sizes["T"])
        arrays["colors"] = check_colors(file.get("colors"), sizes["N"])
        if "refinement" in file:
            arrays["refinement"] = printable(str(file["refinement"]))
        if not arrays["visibility"].any():
            raise InputError(f"{where} has no position that is seen; expected at least one")
        return cls(**arrays)


def frames_of(rec: ReconstructionData, frames: Any) -> np.ndarray:
    """A video's frames (T, H, W, 3) uint8 RGB, once they are as many as a reconstruction's.

    Raises:
        InputError: they are anything else.
    """
    images, count = as_numbers(frames, "frames"), len(rec.points)
    if (
        images.dtype != np.uint8
        or images.shape != (count, *images.shape[1:3], 3)
        or not images.size
    ):
        raise InputError(
            f"frames: expected uint8 ({count}, H, W, 3), found {images.dtype} {images.shape}"
        )
    return images


def tell_moving(motion: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """`ReconstructionData.moving` by γ (N,) and visibility (T, N)."""
    moving = visibility.sum(0) > 1
    level = np.log(motion)
    return moving & (level > _split(level[moving]))


def _split(level: np.ndarray) -> float:
    """What parts values (n,) of log γ into those of still and of moving tracks.

    Otsu's threshold ("A threshold selection method from gray-level histograms", 1979), which parts
    the values of any clip; where too little lies between the classes, one for outliers.
    """
    if len(level) < 2:
        return np.inf
    x = np.sort(level.astype(np.float64))
    below = np.arange(1, len(x))
    above = len(x) - below
    total = np.cumsum(x)
    lower, upper = total[:-1] / below, (total[-1] - total[:-1]) / above
    i = int((below * above * (upper - lower) ** 2).argmax())
    apart = upper[i] - lower[i]
    many = above[i] >= _MANY * len(x)
    if (apart > _APART and upper[i] > _MOVES) or (apart > _FAR_APART and many):
        return float(x[i] + x[i + 1]) / 2
    median = np.median(x)
    deviation = 1.4826 * np.median(np.abs(x - median))
    return float(median + max(3 * deviation, np.log(2)))


def _numpy(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
