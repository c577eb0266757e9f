"""Tracks that can't be pixels of their image, and clips that fall apart."""

import warnings

import numpy as np
import pytest

from fasttracks.errors import InputError
from fasttracks.plausible import check
from fasttracks.tracks import Tracks

H, W, T, N = 480, 640, 20, 100
K = np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]])


def pixels(height: int = H, width: int = W) -> np.ndarray:
    """Points all over an image that drift by a few pixels."""
    rng = np.random.default_rng(0)
    start = rng.uniform((5, 5), (width - 30, height - 30), (N, 2))
    return start + rng.normal(0, 1, (T, N, 2)).cumsum(0).clip(-4, 4) + np.arange(T)[:, None, None]


def silent(tracks, **given) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(Tracks(tracks, **given))


def test_usual_tracks_pass_without_a_word():
    silent(pixels(), image_size=(H, W))
    silent(pixels(), intrinsics=K, image_size=(H, W))
    silent(pixels(), intrinsics=K)
    outside = pixels()
    outside[:, :5] += 300  # that a tracker guesses beyond the border
    silent(outside, image_size=(H, W))
    fast = pixels() + 15 * np.arange(T)[:, None, None]
    silent(fast, image_size=(2 * H, 2 * W))
    silent(np.zeros((2, 1, 2)), intrinsics=np.eye(3))
    normalised = (pixels() - (319.5, 239.5)) / 600
    silent(normalised, intrinsics=np.eye(3))


@pytest.mark.parametrize(
    ("tracks", "given", "said"),
    [
        (pixels() / (W, H), {"image_size": (H, W)}, "shares of the image"),
        (2 * pixels() / (W, H) - 1, {"intrinsics": K}, "shares of the image"),
        (pixels(), {"image_size": (W, H)}, "image_size.*expected \\(height, width\\)"),
        (pixels()[..., ::-1], {"image_size": (H, W)}, "positions of \\(x, y\\)"),
        (4 * pixels(), {"image_size": (H, W)}, "larger one"),
        (pixels(), {"intrinsics": np.diag([0.94, 1.25, 1.0])}, "normalised"),
    ],
    ids=["0..1", "-1..1", "portrait", "y, x", "four times", "normalised intrinsics"],
)
def test_what_cannot_be_is_refused(tracks, given, said):
    with pytest.raises(InputError, match=said) as error:
        check(Tracks(tracks, **given))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mark", [-1, np.iinfo(np.int16).min, -1e6, 0])
def test_marks_of_unseen_points_are_refused(mark):
    tracks = pixels()
    tracks[5:, :20] = mark
    with pytest.raises(InputError, match=r"are exactly .* NaN"):
        check(Tracks(tracks, image_size=(H, W)))
    seen = np.ones((T, N), bool)
    seen[5:, :20] = False
    silent(tracks, visibility=seen, image_size=(H, W))


@pytest.mark.parametrize(
    ("tracks", "said"),
    [
        (pixels() / 4, "smaller one"),
        (pixels() + (0.2 * W * (np.arange(N) < 30))[:, None] * (3, 0), "lie outside"),
        (pixels().swapaxes(0, 1), "looks like \\(N, T, 2\\)"),
    ],
    ids=["a quarter", "a third outside", "(N, T, 2)"],
)
def test_what_can_hardly_be_is_warned_of(tracks, said):
    with pytest.warns(UserWarning, match=said):
        check(Tracks(tracks, image_size=(H, W)))


@pytest.mark.parametrize("cut", [1, 7, T - 1])
def test_a_clip_that_falls_apart_is_refused(cut):
    tracks, seen = pixels(), np.ones((T, N), bool)
    seen[cut:, :60] = False
    seen[:cut, 60:] = False
    with pytest.raises(InputError, match=f"before frame {cut} and from it on"):
        check(Tracks(tracks, seen, image_size=(H, W)))
    seen[cut - 1 : cut + 1, 0] = True
    with pytest.warns(UserWarning, match=f"only 1 .* frame {cut}"):
        check(Tracks(tracks, seen, image_size=(H, W)))
    seen[cut - 1 : cut + 1, :5] = True
    silent(tracks, visibility=seen, image_size=(H, W))


def test_frames_without_tracks_part_nothing():
    seen = np.ones((T, N), bool)
    seen[[0, 1, 9, T - 1]] = False  # black at both ends, and once in between
    silent(pixels(), visibility=seen, image_size=(H, W))


def test_tracks_of_one_frame_each_are_refused():
    seen = np.zeros((T, N), bool)
    seen[np.arange(N) % T, np.arange(N)] = True
    with pytest.raises(InputError, match="none is seen both before frame 1"):
        check(Tracks(pixels(), seen, image_size=(H, W)))
