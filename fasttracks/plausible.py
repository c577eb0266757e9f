"""Whether tracks can be pixels of their image, and hang together over time."""

from typing import NamedTuple

import numpy as np

from fasttracks.errors import InputError, warn
from fasttracks.tracks import Tracks

_OUTSIDE = 0.1  # of a side that a tracker may guess beyond the border
_WIDEST = 10.0  # focal lengths that positions span: 157 degrees
_LINKS = 8  # tracks, but no more than a twentieth, that two parts of a clip should share


class Counts(NamedTuple):
    """What the kernel `count` says of a clip, in its order; of seen positions but for the first."""

    far: float  # positions beyond `checks.FARTHEST`
    not_scores: float  # visibility that is not within 0..1
    seen: float
    outside: float  # of the image, as `_check_image` has it
    outside_turned: float  # of the image with its sides exchanged
    unknown: float  # tracks without any position
    low_x: float
    low_y: float
    high_x: float
    high_y: float
    repeated: float  # at most: of (x, y) ≤ 0, how many are the same
    linked: float  # what `weakest_link` finds
    faulty: float  # frames whose intrinsics are none
    shortest: float  # focal length
    longest: float
    drift: float  # about the median distance from frame to frame over that from track to track


def unremarkable(
    counts: Counts, frames: int, tracks: int, image_size: tuple[int, int] | None, known: bool
) -> bool:
    """Whether neither `Tracks` nor `check` can have anything to say of a clip.

    By counts alone, so that usual clips need not be looked at on the host. False where they may
    have; `known` says whether the intrinsics were given.
    """
    c = counts
    height, width = image_size or (0, 0)
    normalised = max(abs(c.low_x), abs(c.low_y), abs(c.high_x), abs(c.high_y)) <= 1
    focal = c.longest if known else 0.0
    wide = max(c.high_x - c.low_x, c.high_y - c.low_y) > 0.99 * _WIDEST * c.shortest
    small = c.high_x < 0.56 * width and c.high_y < 0.56 * height
    return not (
        c.far
        or c.not_scores
        or not c.seen
        or c.faulty
        or c.repeated > max(2, 0.01 * c.seen)
        or c.linked < max(1, min(_LINKS, 0.05 * tracks))
        or (c.drift > 2 and min(frames, tracks) >= 4)  # of 4, by a sample
        or (normalised and max(height, width, focal) > 8)
        or (known and wide)
        or (image_size and (small or c.outside > 0.1 * c.seen))
        or (image_size and c.outside > 0.05 * c.seen and c.outside_turned < 0.1 * c.outside)
    )


def check(clip: Tracks) -> None:
    """Warn of tracks that are hardly pixels of the clip's image; refuse those that can't be.

    Raises:
        InputError: saying what the tracks, the image's size or the intrinsics look like.
    """
    assert clip.visibility is not None
    seen = clip.tracks[clip.visibility]
    _check_layout(clip)
    _check_marks(seen)
    _check_units(clip, seen)
    if clip.image_size is not None:
        _check_image(seen, *clip.image_size)
    _check_links(clip.visibility)


def _check_layout(clip: Tracks) -> None:
    """(N, T, 2) in place of (T, N, 2): then frames are further apart than tracks are."""
    frames, tracks = clip.tracks.shape[:2]
    if min(frames, tracks) < 4:
        return
    by_frame, by_track = (
        np.median(np.linalg.norm(np.diff(clip.tracks, axis=axis), axis=-1)) for axis in (0, 1)
    )
    if by_frame > 4 * by_track:
        warn(
            f"tracks: shape {clip.tracks.shape} looks like (N, T, 2), as positions differ more "
            f"from frame to frame ({by_frame:.3g} px) than from track to track ({by_track:.3g} px);"
            " expected (T, N, 2)"
        )


def _check_marks(seen: np.ndarray) -> None:
    """One position again and again, below the image or in its very corner, marks unseen points."""
    values, counts = np.unique(seen[(seen <= 0).all(-1)], axis=0, return_counts=True)
    most = int(np.max(counts, initial=0))
    if most > 2 and 0.01 * len(seen) < most < len(seen):
        x, y = values[np.argmax(counts)]
        raise InputError(
            f"tracks: {most} positions that count as seen are exactly ({x:g}, {y:g}), as if"
            " to say that the point was not; expected NaN there, or visibility that is False"
        )


def _check_units(clip: Tracks, seen: np.ndarray) -> None:
    """Parts of the image, or normalised image coordinates, in place of pixels; or intrinsics so."""
    focal = None if clip.intrinsics is None else float(np.median(clip.intrinsics[:, 0, 0]))
    size = clip.image_size
    within = f"{seen.min():.3g} to {seen.max():.3g}"
    if np.abs(seen).max() <= 1 and (max(size or (0,)) > 8 or (focal or 0) > 8):
        raise InputError(
            f"tracks: all positions lie in {within}, as shares of the image's sides do; expected "
            "pixels: multiply x by the width and y by the height"
        )
    if focal is not None and np.ptp(seen, axis=0).max() > _WIDEST * focal:
        raise InputError(
            f"intrinsics: a focal length of {focal:.3g} px with positions of {within} px would see "
            "half the world; expected pixels: normalised ones are to be multiplied by the image's "
            "size, or by its focal length"
        )


def _check_image(seen: np.ndarray, height: int, width: int) -> None:
    """Positions of another image, a larger, a smaller, or one that lies on its side."""
    size = np.array([width, height])

    def outside(size: np.ndarray) -> float:
        margin = _OUTSIDE * size
        return float(((seen < -0.5 - margin) | (seen > size - 0.5 + margin)).any(-1).mean())

    here, image = outside(size), f"the image of {width}×{height} px"
    extent = "×".join(f"{v:.0f}" for v in seen.max(0))
    if here > 0.05 and outside(size[::-1]) < 0.1 * here:
        raise InputError(
            f"image_size: {here:.0%} of the positions lie outside {image}, but not of {height}×"
            f"{width}; expected (height, width), and positions of (x, y)"
        )
    if here > 0.5:
        raise InputError(
            f"tracks: {here:.0%} of the positions lie outside {image}, up to {extent}; expected "
            "pixels of this image: are they of a larger one?"
        )
    if here > 0.1:
        warn(f"tracks: {here:.0%} of the positions that count as seen lie outside {image}")
    elif (seen.max(0) < 0.55 * size).all() and len(seen) > 1:
        warn(
            f"tracks: no position lies beyond {extent} in {image}; are they of a smaller one, that "
            "a tracker was given?"
        )


def _check_links(visibility: np.ndarray) -> None:
    """A clip whose parts share no track has no one answer; few leave it uncertain."""
    frame, shared = weakest_link(visibility)
    if shared == 0:
        raise InputError(
            f"tracks: none is seen both before frame {frame} and from it on, as after a cut or"
            " where the tracker lost all; expected one shot: reconstruct each part on its own"
        )
    if shared < min(_LINKS, 0.05 * visibility.shape[1]):
        warn(
            f"tracks: only {shared} are seen both before frame {frame} and from it on (a cut?), "
            "too few to tell how cameras of both parts lie to each other"
        )


def weakest_link(visibility: np.ndarray) -> tuple[int, int]:
    """The frame that fewest tracks lead to from earlier ones, and how many do.

    visibility (T, N). Frames in which nothing is seen, and those before and after all is, part
    nothing.
    """
    first = visibility.argmax(0)
    last = len(visibility) - 1 - visibility[::-1].argmax(0)
    frame = np.arange(1, len(visibility))[:, None]
    shared = ((first < frame) & (last >= frame) & visibility.any(0)).sum(1)
    some = np.flatnonzero(visibility.any(1))
    begin, end = int(some[0]), int(some[-1])
    if begin == end:
        return begin + 1, 0
    weakest = begin + int(np.argmin(shared[begin:end]))
    return weakest + 1, int(shared[weakest])
