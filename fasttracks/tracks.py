"""Point tracks: reading, checking, completing."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fasttracks.errors import InputError
from fasttracks.files import read_npz, write_npz

if TYPE_CHECKING:
    from torch import Tensor

_FARTHEST = 1e7  # pixels from the image's corner that a position may be


@dataclass(frozen=True, eq=False)
class Tracks:
    """N point tracks over T ≥ 2 frames of one clip, checked and completed on construction.

    Attributes:
        tracks: (T, N, 2) x, y in pixels, (0, 0) at the centre of the top-left pixel. Any
            numbers are taken, float32 kept. NaN counts as unseen and is replaced by the
            track's nearest earlier position, else its first, else the middle of the rest.
        visibility: (T, N), whether the point was seen: bool, or numbers that are 0 or 1.
            None: every finite position was.
        intrinsics: (3, 3) or (T, 3, 3) in pixels, or None if unknown; (T, 3, 3) float64 kept.
        image_size: (height, width) in pixels, or None if unknown.
        fps: frames per second, or None if unknown.
        times: (T,) float64 seconds in the video, never falling; None: by `fps`, if that is known.
        colors: (N, 3) uint8 RGB of what each track follows, or None if unknown.

    Raises:
        InputError: naming the argument, what was found and what was expected.
    """

    tracks: np.ndarray
    visibility: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    image_size: tuple[int, int] | None = None
    fps: float | None = None
    times: np.ndarray | None = None
    colors: np.ndarray | None = None

    def __post_init__(self) -> None:
        tracks = _check_positions(self.tracks)
        visibility = _check_visibility(self.visibility, tracks.shape[:2])
        tracks, visibility = _complete(tracks, visibility)
        checked: dict[str, Any] = {
            "tracks": tracks,
            "visibility": visibility,
            "intrinsics": _check_intrinsics(self.intrinsics, len(tracks)),
            "image_size": check_image_size(self.image_size),
            "fps": _check_fps(self.fps),
            "times": check_times(self.times, len(tracks)),
            "colors": check_colors(self.colors, tracks.shape[1]),
        }
        if checked["times"] is None and checked["fps"] is not None:
            checked["times"] = np.arange(len(tracks)) / checked["fps"]
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        frames, points = self.tracks.shape[:2]
        size = f", image {self.image_size[1]}×{self.image_size[0]}" if self.image_size else ""
        return f"Tracks({frames} frames, {points} tracks, {self.seen:.0%} seen{size})"

    @property
    def seen(self) -> float:
        """Share of positions that were seen."""
        assert self.visibility is not None
        return float(self.visibility.mean())

    def camera(self, assumed_focal: float = 1.0) -> np.ndarray:
        """Intrinsics (T, 3, 3): the known ones, else a guess from the image's size.

        The guess is a focal length of `assumed_focal` longer sides, which are 53° across at 1,
        and the principal point in the middle. An unknown size is taken from the tracks' extent,
        with a warning.
        """
        if self.intrinsics is not None:
            return self.intrinsics
        if self.image_size is not None:
            height, width = self.image_size
        else:
            height, width = self._extent()
            warnings.warn(
                f"neither intrinsics nor image_size given: taking the image for {width}×{height} "
                "pixels from the extent of the tracks",
                stacklevel=3,
            )
        focal = assumed_focal * max(height, width)
        guess = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        return np.broadcast_to(guess, (len(self.tracks), 3, 3))

    def inputs(self, camera: np.ndarray | None = None) -> "Tensor":
        """The network's input (T, N, 3), float64: normalised image coordinates and visibility.

        Coordinates are pixels through the inverse of intrinsics `camera` (T, 3, 3), by default
        those of `camera()`; where a point was not seen they are held, whatever the tracker guessed.
        Visibility is 1 or 0.
        """
        import torch

        from fasttracks.inputs import hold

        positions = normalise(self.tracks, self.camera() if camera is None else camera)
        return hold(torch.from_numpy(np.dstack([positions, np.asarray(self.visibility)])))

    def _extent(self) -> tuple[int, int]:
        seen = self.tracks[self.visibility]
        low, high = seen.min(0), seen.max(0)
        if (high < 1).any():
            raise InputError(
                "image_size: expected one, as no track lies in an image from (0, 0) on"
            )
        # Trackers start their points at the same distance from opposite borders.
        width, height = np.ceil(high + np.maximum(low, 0) + 1).astype(int)
        return max(1, int(height)), max(1, int(width))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a track file: .npz of the attributes that are known."""
        write_npz(path, vars(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tracks":
        """Read a track file (.npz) in any of three layouts, told apart by their keys.

        - `tracks` (T, N, 2), `visibility` (T, N), and if known `intrinsics`, `image_size`,
          `fps`, `times`, `colors`; with `layout` "NT2" the first two are (N, T, 2) and (N, T);
        - TracksTo4D's `pred_tracks` (1, T, N, 2), `pred_visibility` (1, T, N), `Ks_all`;
        - TAP-Vid's `points` (N, T, 2) in 0..1 across the image, `occluded` (N, T), and
          `video` or `image_size` for the image's size.
        """
        return from_arrays(read_npz(path, "track file"), path)


def normalise(pixels: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Pixels (..., N, 2) to normalised image coordinates, by intrinsics (..., 3, 3)."""
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], -1)
    return (homogeneous @ np.linalg.inv(camera).swapaxes(-1, -2))[..., :2]


def from_arrays(arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> Tracks:
    """Tracks from the arrays of a file, in any layout that `Tracks.load` knows."""
    try:
        return _read_layout(arrays, path)
    except InputError:
        raise
    except (ValueError, TypeError, IndexError):  # AxisError is an IndexError
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InputError(f"track file: {path} has arrays of unexpected shapes: {shapes}") from None


def _read_layout(arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> Tracks:
    known: dict[str, Any] = {
        name: arrays[name]
        for name in ("intrinsics", "image_size", "fps", "times", "colors")
        if name in arrays
    }
    if "tracks" in arrays:
        tracks, visibility = arrays["tracks"], arrays.get("visibility")
        layout = arrays.get("layout", np.array("TN2")).item()
        if layout not in ("TN2", "NT2"):
            raise InputError(f"layout: expected 'TN2' or 'NT2', found {layout!r} in {path}")
        if layout == "NT2":
            tracks = np.swapaxes(tracks, 0, 1)
            visibility = None if visibility is None else visibility.T
        return Tracks(tracks, visibility, **known)
    if "pred_tracks" in arrays:
        if "Ks_all" in arrays:
            known["intrinsics"] = _drop_batch(arrays["Ks_all"], 3)
        visibility = arrays.get("pred_visibility")
        return Tracks(
            _drop_batch(arrays["pred_tracks"], 3),
            None if visibility is None else _drop_batch(visibility, 2),
            **known,
        )
    if "points" in arrays and "occluded" in arrays:
        if "video" in arrays:
            known.setdefault("image_size", arrays["video"].shape[1:3])
        if "image_size" not in known:
            raise InputError(f"track file: {path} has TAP-Vid's points but no video or image_size")
        size = np.asarray(known["image_size"])[::-1]
        tracks = np.swapaxes(arrays["points"], 0, 1) * size - 0.5
        return Tracks(tracks, 1 - arrays["occluded"].T.astype(int), **known)
    raise InputError(
        f"track file: {path} has {', '.join(arrays) or 'nothing'}; expected tracks and visibility, "
        "or pred_tracks and pred_visibility, or points and occluded"
    )


def _drop_batch(array: np.ndarray, ndim: int) -> np.ndarray:
    return array[0] if array.ndim == ndim + 1 and len(array) == 1 else array


def as_numbers(value: Any, name: str) -> np.ndarray:
    """A numpy array from numpy, torch or lists; InputError, naming the argument, otherwise."""
    if hasattr(value, "detach"):  # a torch tensor; torch need not be here for those without
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ma.MaskedArray):
        value = np.ma.filled(value.astype(np.float64), np.nan)
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"{name}: expected one array of numbers, found ragged lists") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected numbers, found {array.dtype}")
    return array


def _check_positions(value: Any) -> np.ndarray:
    tracks = as_numbers(value, "tracks")
    if tracks.ndim != 3 or tracks.shape[2] != 2 or tracks.shape[1] == 0:
        raise InputError(f"tracks: expected shape (T, N, 2), found {tracks.shape}")
    if len(tracks) < 2:
        raise InputError(f"tracks: expected at least 2 frames, found {len(tracks)}")
    far = int((np.abs(tracks) > _FARTHEST).any(-1).sum())
    if far:
        raise InputError(
            f"tracks: {far} positions are infinite or beyond {_FARTHEST:g}; expected pixels, or "
            "NaN where unseen"
        )
    return tracks.astype(np.float32)


def _check_visibility(value: Any, expected: tuple[int, ...]) -> np.ndarray | None:
    if value is None:
        return None
    visibility = as_numbers(value, "visibility")
    if visibility.shape != expected:
        raise InputError(
            f"visibility: expected shape {expected} as tracks have, found {visibility.shape}"
        )
    if not np.isin(visibility, (0, 1)).all():
        raise InputError("visibility: expected booleans or 0 and 1, found other numbers")
    return visibility.astype(bool)


def _complete(tracks: np.ndarray, visibility: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Visibility of every position, and a position for those that are NaN."""
    finite = np.isfinite(tracks).all(-1)
    visibility = finite if visibility is None else visibility & finite
    if not visibility.any():
        raise InputError("visibility: no position is seen; expected at least one")
    if finite.all():
        return tracks, visibility
    # The latest finite frame up to each frame; before the first one, the first one itself.
    frames = np.arange(len(tracks))[:, None]
    latest = np.maximum.accumulate(np.where(finite, frames, -1), 0)
    source = np.where(latest < 0, finite.argmax(0), latest)
    filled = np.take_along_axis(tracks, source[..., None], 0)
    return np.where(np.isnan(filled), tracks[visibility].mean(0), filled), visibility


def _check_intrinsics(value: Any, frames: int) -> np.ndarray | None:
    if value is None:
        return None
    intrinsics = as_numbers(value, "intrinsics").astype(np.float64)
    if intrinsics.shape not in ((3, 3), (frames, 3, 3)):
        raise InputError(
            f"intrinsics: expected shape (3, 3) or ({frames}, 3, 3), found {intrinsics.shape}"
        )
    if not np.isfinite(intrinsics).all():
        raise InputError("intrinsics: expected finite numbers, found NaN or infinity")
    if (intrinsics[..., 2, :] != (0, 0, 1)).any() or (intrinsics[..., 1, 0] != 0).any():
        raise InputError("intrinsics: expected rows (fx, skew, cx), (0, fy, cy), (0, 0, 1)")
    focal = intrinsics[..., (0, 1), (0, 1)]
    if (focal <= 0).any():
        raise InputError("intrinsics: expected focal lengths above 0, or the matrix is singular")
    if (focal < 1e-6).any() or (np.abs(intrinsics) > 1e9).any():
        raise InputError("intrinsics: expected pixels, found numbers below 1e-6 or beyond 1e9")
    return np.broadcast_to(intrinsics, (frames, 3, 3))


def check_image_size(value: Any) -> tuple[int, int] | None:
    """(height, width) as whole numbers, or None as it is; InputError otherwise."""
    if value is None:
        return None
    size = as_numbers(value, "image_size")
    if size.shape != (2,) or (size < 1).any() or (size != size.astype(int)).any():
        raise InputError(f"image_size: expected (height, width) in whole pixels, found {value}")
    return int(size[0]), int(size[1])


def _check_fps(value: Any) -> float | None:
    if value is None:
        return None
    fps = as_numbers(value, "fps").astype(np.float64)
    if fps.shape != () or not 0 < fps < np.inf:
        raise InputError(f"fps: expected a number above 0, found {value!r}")
    return float(fps)


def check_times(value: Any, frames: int) -> np.ndarray | None:
    """(T,) float64 seconds, or None as it is; InputError otherwise."""
    if value is None:
        return None
    times = as_numbers(value, "times").astype(np.float64)
    if times.shape != (frames,) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise InputError(
            f"times: expected {frames} seconds that never fall, found shape {times.shape}"
        )
    return times


def check_colors(value: Any, points: int) -> np.ndarray | None:
    """(N, 3) uint8 RGB, or None as it is; InputError otherwise."""
    if value is None:
        return None
    colors = as_numbers(value, "colors")
    if colors.shape != (points, 3) or colors.dtype != np.uint8:
        raise InputError(
            f"colors: expected uint8 ({points}, 3), found {colors.dtype} {colors.shape}"
        )
    return colors
