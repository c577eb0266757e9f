"""Point tracks: reading, checking, completing."""

import os
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fasttracks.checks import FARTHEST, as_numbers, intrinsics_fault
from fasttracks.errors import InputError, warn
from fasttracks.files import Npz, write_npz
from fasttracks.track_files import Arrays, read

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_SIDE = 2**20  # pixels
_LATEST = 1e10  # seconds; Unix times are below


@dataclass(frozen=True, eq=False)
class Tracks:
    """N point tracks over T ≥ 2 frames of one clip, checked and completed on construction.

    Attributes:
        tracks: (T, N, 2) x, y in pixels, (0, 0) at the centre of the top-left pixel. Any
            numbers are taken, float32 kept. NaN counts as unseen and is replaced by the
            track's nearest earlier position, else its first, else the middle of the rest.
        visibility: (T, N), whether the point was seen: bool; or scores, seen where they are
            above `threshold`. None: every finite position was.
        intrinsics: (3, 3) or (T, 3, 3) in pixels, or None if unknown; (T, 3, 3) float64 kept.
        image_size: (height, width) in pixels, or None if unknown.
        fps: frames per second, or None if unknown.
        times: (T,) float64 seconds in the video, never falling; None: by `fps`, if that is known.
        colors: (N, 3) uint8 RGB of what each track follows, or None if unknown.
        content: (top, left, bottom, right) of the part of the image that shows anything, in
            pixels, the last two exclusive, where black bars surround it; None: all of it does.

    Args:
        threshold: of visibility that is not bool. None: 0.5, and scores must be within 0..1. For
            logits give 0, which is a probability of 0.5.

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
    content: tuple[int, int, int, int] | None = None
    threshold: InitVar[float | None] = None

    def __post_init__(self, threshold: float | None) -> None:
        tracks = _check_positions(self.tracks)
        visibility = _check_visibility(self.visibility, tracks.shape[:2], threshold)
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
        checked["content"] = _check_content(self.content, checked["image_size"])
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
        and the principal point in the middle, both of the image's `content`. An unknown size is
        taken from the tracks' extent, with a warning.
        """
        if self.intrinsics is not None:
            return self.intrinsics
        size = self.image_size
        if size is None and self.content is None:
            size = self._extent()
            warn(
                f"neither intrinsics nor image_size given: taking the image for {size[1]}×{size[0]}"
                " pixels from the extent of the tracks"
            )
        guess = guessed_camera(assumed_focal, size, self.content)
        return np.broadcast_to(guess, (len(self.tracks), 3, 3))

    def inputs(self, camera: np.ndarray | None = None) -> "Tensor":
        """The network's input (T, N, 3), float64: normalised image coordinates and visibility.

        Coordinates are pixels through the inverse of intrinsics `camera` (T, 3, 3), by default
        those of `camera()`; where a point was not seen they are held, whatever the tracker guessed.
        Visibility is 1 or 0. For an `Engine` or a model: `inputs().float()[None]`, on its device.
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
    def load(cls, path: str | os.PathLike[str], *, threshold: float | None = None) -> "Tracks":
        """Read a track file: .npy, .pt and .pkl as `track_files.read` says, .npz in three layouts.

        These are told apart by their keys:

        - `tracks` (T, N, 2), `visibility` (T, N), and if known `intrinsics`, `image_size`,
          `fps`, `times`, `colors`; with `layout` "NT2" the first two are (N, T, 2) and (N, T);
        - TracksTo4D's `pred_tracks` (1, T, N, 2), `pred_visibility` (1, T, N), `Ks_all`;
        - TAP-Vid's `points` (N, T, 2) in 0..1 across the image, or else in pixels, `occluded`
          (N, T), and `video` (T, H, W, 3) or (T, 3, H, W) or `image_size` for the image's size.

        Visibility may be scores, seen where above `threshold`, as of `Tracks`; so may
        `occluded`, whose opposite they are: 1 less the score.
        """
        return from_arrays(read(path), threshold)


def guessed_camera(
    focal: float,
    image_size: tuple[int, int] | None,
    content: tuple[int, int, int, int] | None,
) -> np.ndarray:
    """Intrinsics (3, 3) as `Tracks.camera` guesses them, of an image or the `content` of one."""
    top, left, bottom, right = content or (0, 0, *(image_size or (1, 1)))
    height, width = bottom - top, right - left
    pixels = focal * max(height, width)
    x, y = left + (width - 1) / 2, top + (height - 1) / 2
    return np.array([[pixels, 0, x], [0, pixels, y], [0, 0, 1]])


def focal_camera(tracks: Tracks, focal: float) -> np.ndarray:
    """`Tracks.camera`, but with a focal length in pixels."""
    camera = tracks.camera().copy()
    camera[:, (0, 1), (0, 1)] = focal
    return camera


def normalise(pixels: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Pixels (..., N, 2) to normalised image coordinates, by intrinsics (..., 3, 3)."""
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], -1)
    return (homogeneous @ np.linalg.inv(camera).swapaxes(-1, -2))[..., :2]


def from_arrays(file: Npz | Arrays, threshold: float | None = None) -> Tracks:
    """Tracks from a file, in any layout that `Tracks.load` knows."""
    try:
        return _read_layout(file, threshold)
    except InputError:
        raise
    except (ValueError, TypeError, IndexError):  # AxisError is an IndexError
        shapes = ", ".join(f"{name} {file.shape(name)}" for name in file)
        raise InputError(
            f"track file: {file.path} has arrays of unexpected shapes: {shapes}"
        ) from None


def _read_layout(file: Npz | Arrays, threshold: float | None) -> Tracks:
    known: dict[str, Any] = {
        name: file[name]
        for name in ("intrinsics", "image_size", "fps", "times", "colors", "content")
        if name in file
    }
    known["threshold"] = threshold
    if "tracks" in file:
        tracks, visibility = _drop_batch(file["tracks"], 3), file.get("visibility")
        visibility = None if visibility is None else _drop_batch(visibility, 2)
        layout = file.get("layout", np.array("TN2")).item()
        if layout not in ("TN2", "NT2"):
            raise InputError(f"layout: expected 'TN2' or 'NT2', found {layout!r} in {file.path}")
        if layout == "NT2":
            tracks = np.swapaxes(tracks, 0, 1)
            visibility = None if visibility is None else visibility.T
        return Tracks(tracks, visibility, **known)
    if "pred_tracks" in file:
        if "Ks_all" in file:
            known["intrinsics"] = _drop_batch(file["Ks_all"], 3)
        visibility = file.get("pred_visibility")
        return Tracks(
            _drop_batch(file["pred_tracks"], 3),
            None if visibility is None else _drop_batch(visibility, 2),
            **known,
        )
    if "points" in file and "occluded" in file:
        if "video" in file:
            shape = file.shape("video")
            known.setdefault("image_size", shape[2:] if shape[1] == 3 else shape[1:3])
        if "image_size" not in known:
            raise InputError(
                f"track file: {file.path} has TAP-Vid's points but no video or image_size"
            )
        return _from_tapvid(file["points"], file["occluded"], known)
    raise InputError(
        f"track file: {file.path} has {', '.join(file) or 'nothing'}; expected tracks and "
        "visibility, or pred_tracks and pred_visibility, or points and occluded"
    )


def _from_tapvid(points: np.ndarray, occluded: np.ndarray, known: dict[str, Any]) -> Tracks:
    seen = 1 - as_numbers(occluded, "occluded").T
    tracks = np.swapaxes(as_numbers(points, "points"), 0, 1)
    size = np.array(check_image_size(known["image_size"]))[::-1]
    # Well outside the image as shares of it, most of them: they can only be pixels.
    if (np.abs(tracks) > 2).sum() > tracks.size / 2:
        warn("points: most are beyond 2; taking them for pixels, as TAP-Vid's are within 0..1")
        size = np.ones(2)
    return Tracks(tracks * size - 0.5, seen, **known)


def _drop_batch(array: np.ndarray, ndim: int) -> np.ndarray:
    return array[0] if array.ndim == ndim + 1 and len(array) == 1 else array


def _check_positions(value: Any) -> np.ndarray:
    tracks = as_numbers(value, "tracks")
    if tracks.ndim != 3 or tracks.shape[2] != 2 or tracks.shape[1] == 0:
        raise InputError(f"tracks: expected shape (T, N, 2), found {tracks.shape}")
    if len(tracks) < 2:
        raise InputError(f"tracks: expected at least 2 frames, found {len(tracks)}")
    if tracks.dtype.kind != "f":
        tracks = tracks.astype(np.float64)  # in which the smallest integer has an absolute value
    far = int((np.abs(tracks) > FARTHEST).any(-1).sum())
    if far:
        raise InputError(
            f"tracks: {far} positions are infinite or beyond {FARTHEST:g}; expected pixels, or "
            "NaN where unseen"
        )
    return np.array(tracks, np.float32, order="C")


def _check_visibility(
    value: Any, expected: tuple[int, ...], threshold: float | None
) -> np.ndarray | None:
    if value is None:
        return None
    visibility = as_numbers(value, "visibility")
    if visibility.shape != expected:
        raise InputError(
            f"visibility: expected shape {expected} as tracks have, found {visibility.shape}"
        )
    if visibility.dtype == bool:
        return visibility.copy()
    if threshold is None:
        if not ((visibility >= 0) & (visibility <= 1)).all():
            raise InputError(
                "visibility: expected booleans or scores of 0 to 1, found other numbers; for "
                "logits give threshold=0"
            )
        return visibility > 0.5
    if not np.isfinite(visibility).all() or not np.isfinite(as_numbers(threshold, "threshold")):
        raise InputError("visibility: expected finite scores and threshold, found NaN or infinity")
    return visibility > threshold


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
    if fault := intrinsics_fault(intrinsics):
        raise InputError(f"intrinsics: {fault}")
    return np.broadcast_to(intrinsics, (frames, 3, 3))


def check_image_size(value: Any) -> tuple[int, int] | None:
    """(height, width) as whole numbers, or None as it is; InputError otherwise."""
    if value is None:
        return None
    size = as_numbers(value, "image_size")
    if (
        size.shape != (2,)
        or not ((size >= 1) & (size <= _LARGEST_SIDE) & (np.floor(size) == size)).all()
    ):
        raise InputError(f"image_size: expected (height, width) in whole pixels, found {value}")
    return int(size[0]), int(size[1])


def _check_content(
    value: Any, image_size: tuple[int, int] | None
) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    box = as_numbers(value, "content")
    limit = (*(image_size or (_LARGEST_SIDE, _LARGEST_SIDE)),)
    if box.shape != (4,) or not (
        (np.floor(box) == box).all()
        and (box[:2] >= 0).all()
        and (box[:2] < box[2:]).all()
        and (box[2:] <= limit).all()
    ):
        raise InputError(
            f"content: expected (top, left, bottom, right) within the image, found {value}"
        )
    top, left, bottom, right = map(int, box)
    return top, left, bottom, right


def _check_fps(value: Any) -> float | None:
    if value is None:
        return None
    fps = as_numbers(value, "fps").astype(np.float64)
    if fps.shape != () or not 1e-6 <= fps <= 1e6:
        raise InputError(f"fps: expected a number above 0, up to 1e6, found {value!r}")
    return float(fps)


def check_times(value: Any, frames: int) -> np.ndarray | None:
    """(T,) float64 seconds, or None as it is; InputError otherwise."""
    if value is None:
        return None
    times = as_numbers(value, "times").astype(np.float64)
    if (
        times.shape != (frames,)
        or not (np.abs(times) <= _LATEST).all()
        or (np.diff(times) < 0).any()
    ):
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
    return colors.copy()
