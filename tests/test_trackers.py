"""Trackers against motions that are known."""

import pickle
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from street import Street, street

from fasttracks.errors import InputError
from fasttracks.trackers import get_tracker, grid_queries, to_tracks
from fasttracks.trackers.cotracker import CoTracker
from fasttracks.trackers.klt import KLT, _longest
from fasttracks.trackers.klt import _starts as starts_of_klt
from fasttracks.video import Video


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0]),
        (2, [0, 1]),
        (20, [0, 19]),
        (21, [0, 20]),
        (50, [0, 20, 40, 49]),
        (100, [0, 20, 40, 60, 80, 99]),
    ],
)
def test_grids_start_regularly(count: int, expected: list[int]) -> None:
    queries = grid_queries(count, 30, 45)
    assert queries.dtype == np.float32
    assert queries.shape == (225 * len(expected), 3)
    assert queries[::225, 0].tolist() == expected


def test_grids_lie_between_each_other() -> None:
    """Four in turn make one twice as fine."""
    points = grid_queries(50, 30, 45)[:, 1:]
    fine = np.unique(points, axis=0)
    assert len(fine) == len(points) == 900
    np.testing.assert_allclose(np.unique(fine[:, 0]), 0.25 + 1.5 * np.arange(30))
    np.testing.assert_allclose(np.unique(fine[:, 1]), np.arange(30))


@pytest.mark.parametrize(("frames", "share"), [(50, 0.4), (149, 0.4), (2000, 0.05)])
def test_a_long_clip_has_as_many_starts_late_as_early(frames: int, share: float) -> None:
    start = starts_of_klt(frames, 1000)
    assert np.mean(start == 0) == pytest.approx(share, abs=0.003)
    later = np.bincount(start)[10:]
    assert np.ptp(later[later > 0]) <= 1


@pytest.mark.parametrize("count", [181, 1000, 100_000])
def test_grids_stay_few(count: int) -> None:
    starts = np.unique(grid_queries(count, 30, 45)[:, 0])
    assert 8 <= len(starts) <= 10
    assert (starts[0], starts[-1]) == (0, count - 1)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise, (height, width, 3) uint8."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def affine(t: float) -> np.ndarray:
    """(2, 3): where a point of the first frame is in frame t."""
    turn, scale = 0.004 * t, 1 + 0.003 * t
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    return np.array([[c, -s, 1.3 * t], [s, c, 4 * np.sin(0.2 * t)]])


def moving_clip(count: int, height: int = 160, width: int = 200) -> np.ndarray:
    """A texture that moves by `affine`; it goes on beyond the image."""
    margin = 60
    image = texture(height + 2 * margin, width + 2 * margin)
    frames = []
    for t in range(count):
        matrix = affine(t)
        matrix[:, 2] -= matrix[:, :2] @ [margin, margin]
        frames.append(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC))
    return np.stack(frames)


def true_tracks(queries: np.ndarray, count: int) -> np.ndarray:
    """(T, N, 2): where `affine` takes each query."""
    motion = np.tile(np.eye(3), (count, 1, 1))
    motion[:, :2] = [affine(t) for t in range(count)]
    points = np.insert(queries[:, 1:].astype(float), 2, 1, axis=1)
    since = motion[:, None] @ np.linalg.inv(motion)[queries[:, 0].astype(int)]
    return (since @ points[..., None])[..., :2, 0]


def test_klt_follows_a_known_motion() -> None:
    count = 24
    frames = moving_clip(count)
    queries = grid_queries(count, *frames.shape[1:3])
    truth = true_tracks(queries, count)
    tracks, visible = KLT()(frames, queries)

    assert tracks.shape == (count, 3 * 225, 2)
    assert tracks.dtype == np.float32
    assert visible.shape == tracks.shape[:2]
    assert visible.dtype == bool
    error = np.linalg.norm(tracks - truth, axis=-1)[visible]
    assert np.median(error) < 0.05
    assert np.quantile(error, 0.99) < 0.6

    size = np.array(frames.shape[2:0:-1])
    inside = ((truth > 5) & (truth < size - 6)).all(-1)
    always = np.logical_and.accumulate(inside, 0) & (queries[:, 0] == 0)
    assert visible[always].mean() > 0.97
    assert not visible[((truth < -1) | (truth > size)).any(-1)].any()


def test_klt_does_not_drift() -> None:
    """Each frame shows the texture up to 4 px elsewhere, so that a chain of steps would stray."""
    image = texture(200, 240)
    shift = np.random.default_rng(0).uniform(-4, 4, (60, 2))
    shift[0] = 0
    frames = np.stack(
        [
            cv2.warpAffine(image, np.float32([[1, 0, x - 20], [0, 1, y - 20]]), (200, 160))
            for x, y in shift
        ]
    )
    noise = np.random.default_rng(1).normal(0, 3, frames.shape)
    frames = np.clip(frames + noise, 0, 255).astype(np.uint8)
    queries = grid_queries(60, 160, 200)[:225]
    tracks, visible = KLT()(frames, queries)
    assert visible.mean() > 0.97
    error = np.linalg.norm(tracks - (queries[:, 1:] + shift[:, None]), axis=-1)
    early, late = (np.median(error[part][visible[part]]) for part in (np.s_[1:10], np.s_[50:]))
    assert late < 0.1
    assert late < 1.3 * early


def test_klt_loses_what_is_covered_and_finds_it_again() -> None:
    still = texture(120, 160)
    frames = np.stack([still] * 16)
    frames[6:10, 40:80, 50:110] = texture(40, 60, seed=1)
    x, y = np.meshgrid(np.arange(8, 160, 9), np.arange(8, 120, 9))
    queries = np.stack([0 * x, x, y], -1).reshape(-1, 3)
    tracks, visible = KLT()(frames, queries)

    _, x, y = queries.T
    covered = (x > 55) & (x < 105) & (y > 45) & (y < 75)
    free = (x < 35) | (x > 125) | (y < 25) | (y > 95)
    assert visible[:6].all()
    assert visible[:, free].all()
    assert not visible[6:10, covered].any()
    np.testing.assert_array_equal(tracks[6:10, covered], np.tile(tracks[5, covered], (4, 1, 1)))
    assert visible[11:, covered].mean() > 0.9
    again = np.linalg.norm(tracks[11:, covered] - queries[covered, 1:], axis=-1)
    assert again[visible[11:, covered]].max() < 0.5
    # What is on the cover is not seen without it.
    queries[:, 0] = 8
    tracks, visible = KLT()(frames, queries)
    assert visible[6:10, covered].all()
    assert visible[:6, covered].mean() < 0.1
    assert visible[10:, covered].mean() < 0.1


def test_klt_repeats_itself() -> None:
    frames = moving_clip(6)
    for one, other in zip(KLT()(frames), KLT()(frames), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(1, 40, 50), (2, 40, 50), (3, 7, 5), (3, 1, 1), (2, 17, 130)])
def test_klt_takes_tiny_clips(shape: tuple[int, int, int]) -> None:
    frames = np.zeros((*shape, 3), np.uint8)  # nothing to hold on to, either
    queries = grid_queries(*shape)
    queries[:, 1:] = queries[:, 1:].clip(0, [shape[2] - 1, shape[1] - 1])
    tracks, visible = KLT()(frames, queries)
    assert np.isfinite(tracks).all()
    start = queries[:, 0].astype(int)
    np.testing.assert_array_equal(tracks[start, np.arange(len(start))], queries[:, 1:])
    assert visible[start, np.arange(len(start))].all()
    tracks, visible = KLT(tracks=30)(frames)
    assert tracks.shape == (shape[0], 30, 2)
    assert ((tracks >= 0) & (tracks <= np.array(shape[2:0:-1]) - 1)).all()
    assert visible.any(0).all()


@pytest.fixture(scope="module")
def walk() -> Street:
    return street(count=20, size=(240, 320), people=2, seed=1)


def test_klt_follows_what_moves_most(walk: Street) -> None:
    """A third of the tracks or more are on people, who are few pixels; still points are exact."""
    tracks, visible = KLT()(walk.frames)
    assert tracks.shape == (20, 450, 2)
    assert (visible.sum(0) > 1).all()
    start = visible.argmax(0)
    queries = np.column_stack([start, tracks[start, np.arange(450)]])
    truth, seen, person = walk.tracks(queries)
    area = walk.moves[walk.layers].mean()
    assert area < 0.03
    assert person.mean() > 0.37
    gap = np.linalg.norm(tracks - truth, axis=-1)
    still = visible & seen & ~person
    assert np.median(gap[still]) < 0.15
    assert (gap[still] < 1).mean() > 0.75
    assert visible[seen & ~person].mean() > 0.9
    moving = visible & seen & person
    assert np.median(gap[moving]) < 1.5


def test_klt_starts_where_others_thin_out(walk: Street) -> None:
    """No two start together, and every part of the picture has some."""
    tracks, visible = KLT()(walk.frames)
    start = visible.argmax(0)
    for t in np.unique(start):
        points = tracks[t, start == t]
        assert len(np.unique(points, axis=0)) == len(points)
    last = tracks[-1, visible[-1]]
    counts, _, _ = np.histogram2d(*last.T, bins=(4, 3), range=((0, 320), (0, 240)))
    assert counts.min() >= 5


def test_tracks_of_every_nth_frame_go_through_those_between() -> None:
    frames = moving_clip(13)
    video = Video(frames, np.arange(13) / 30, frames.shape[1:3])
    whole = KLT(tracks=100)(frames)
    found = to_tracks(video, KLT(tracks=100), every=4)
    often = whole[1][::4].sum(0) > 1
    assert 0.9 < often.mean() <= 1
    np.testing.assert_array_equal(found.visibility, whole[1][::4][:, often])
    np.testing.assert_allclose(found.tracks, whole[0][::4][:, often], atol=1e-4)
    np.testing.assert_allclose(found.times, np.arange(0, 13, 4) / 30)
    with pytest.raises(InputError, match="expected at least 2 frames, found 1"):
        to_tracks(video, KLT(), every=13)


def test_klt_keeps_the_longest_of_each_start() -> None:
    start = np.array([0, 0, 0, 0, 9, 9])
    seen = np.array([3, 20, 1, 8, 2, 5])
    np.testing.assert_array_equal(_longest(start, seen, 3), [1, 3, 5])
    np.testing.assert_array_equal(_longest(start, seen, 6), [0, 1, 3, 4, 5])
    np.testing.assert_array_equal(_longest(start, np.ones(6, int), 2), [0, 4])


@pytest.mark.parametrize("tracker", [KLT(), CoTracker()])
@pytest.mark.parametrize(
    "queries",
    [
        np.zeros((4, 2)),
        np.zeros(3),
        np.zeros((1, 3), bool),
        [[2, 0, 0]],
        [[0.5, 0, 0]],
        [[0, 30, 0]],
        [[0, np.nan, 0]],
    ],
)
def test_queries_are_checked(tracker: KLT | CoTracker, queries: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^queries: expected"):
        tracker(clip_numbered(2), np.asarray(queries))


@pytest.mark.parametrize("tracker", [KLT(), CoTracker()])
@pytest.mark.parametrize(
    "frames", [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), np.uint8), np.zeros((0, 8, 8, 3), "u1")]
)
def test_frames_are_checked(tracker: KLT | CoTracker, frames: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^frames: expected"):
        tracker(frames)


def test_names() -> None:
    assert get_tracker("klt", window=15) == KLT(window=15)
    assert get_tracker("cotracker", checkpoint="a.pth") == CoTracker("a.pth")
    with pytest.raises(
        InputError, match=r"^tracker: expected 'klt', 'tapnext' or 'cotracker', found 'sift'$"
    ):
        get_tracker("sift")


def test_tracks_are_in_pixels_of_the_source() -> None:
    frames = np.stack([texture(60, 80)] * 2)
    small, _ = KLT(tracks=20)(frames)
    tracks = to_tracks(Video(frames, np.array([0, 0.1]), (120, 160)), KLT(tracks=20))
    np.testing.assert_allclose(tracks.tracks, 2 * small + 0.5)
    assert tracks.image_size == (120, 160)
    assert tracks.fps == pytest.approx(10)


def test_nothing_heavy_is_imported_early() -> None:
    code = (
        "import sys, fasttracks.trackers.klt, fasttracks.trackers.cotracker;"
        "assert not {'cv2', 'torch', 'av', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def drift(t: np.ndarray) -> np.ndarray:
    """(..., 2): the analytic motion that the fake CoTracker sees."""
    return np.stack([t, 5 * np.sin(t / 9)], axis=-1)


def clip_numbered(count: int) -> np.ndarray:
    """(T, 24, 30, 3): every pixel says its frame's number, so that the fake knows the time."""
    return np.tile(np.arange(count, dtype=np.uint8)[:, None, None, None], (1, 24, 30, 3))


class FakePredictor(torch.nn.Module):
    """Moves points by `drift`; a point is seen where `sees` says so."""

    def __init__(self, checkpoint: str, offline: bool, window_len: int) -> None:
        super().__init__()
        assert Path(checkpoint).is_file()
        assert offline
        assert window_len == 60
        self.calls: list[tuple[int, int]] = []  # frames, queries

    @staticmethod
    def sees(time: np.ndarray, home: np.ndarray) -> np.ndarray:
        """(T, n) from frame numbers (T, 1) and where drift-free points are (n, 2)."""
        return (time + np.floor(home[:, 0])) % 5 != 0

    def forward(
        self, video: torch.Tensor, queries: torch.Tensor, backward_tracking: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert backward_tracking
        assert video.dtype == queries.dtype == torch.float32
        assert video.ndim == 5
        assert video.shape[0] == queries.shape[0] == 1
        assert video.shape[2:] == (3, 24, 30)
        assert queries.shape[2] == 3
        self.calls.append((video.shape[1], queries.shape[1]))
        time = video[0, :, 0, 0, 0].numpy()  # 0..255, not scaled
        frame, point = queries[0, :, 0].numpy(), queries[0, :, 1:].numpy()
        assert (frame == frame.astype(int)).all()
        home = point - drift(time[frame.astype(int)])
        tracks = home + drift(time)[:, None]
        visible = self.sees(time[:, None], home)
        return torch.tensor(tracks).float()[None], torch.tensor(visible)[None]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to give as checkpoint, with the fake package installed."""
    package, module = types.ModuleType("cotracker"), types.ModuleType("cotracker.predictor")
    module.CoTrackerPredictor = FakePredictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cotracker", package)
    monkeypatch.setitem(sys.modules, "cotracker.predictor", module)
    path = tmp_path / "scaled_offline.pth"
    path.touch()
    return path


def truth_of(queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    time = np.arange(count)
    home = queries[:, 1:] - drift(queries[:, 0])
    return home + drift(time)[:, None], FakePredictor.sees(time[:, None], home)


def test_cotracker_takes_a_short_clip_in_one_call(checkpoint: Path) -> None:
    tracker = CoTracker(checkpoint, device="cpu")
    tracks, visible = tracker(clip_numbered(50))
    queries = grid_queries(50, 24, 30)
    truth, seen = truth_of(queries, 50)
    assert tracker._model[0].calls == [(50, 900)]
    assert tracks.dtype == np.float32
    assert visible.dtype == bool
    np.testing.assert_allclose(tracks, truth, atol=1e-4)
    np.testing.assert_array_equal(visible, seen)


@pytest.mark.parametrize(
    ("count", "segment", "overlap"), [(120, 120, 16), (121, 120, 16), (200, 48, 12), (90, 20, 15)]
)
def test_cotracker_takes_a_long_clip_in_segments(
    checkpoint: Path, count: int, segment: int, overlap: int
) -> None:
    tracker = CoTracker(checkpoint, device="cpu", segment=segment, overlap=overlap)
    tracks, visible = tracker(clip_numbered(count))
    truth, seen = truth_of(grid_queries(count, 24, 30), count)
    np.testing.assert_allclose(tracks, truth, atol=1e-3)
    np.testing.assert_array_equal(visible, seen)
    frames = [frames for frames, _ in tracker._model[0].calls]
    assert max(frames) <= segment
    assert (len(frames) == 1) == (count <= segment)


def test_cotracker_loses_what_is_hidden_between_segments(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = range(28, 45)  # more than the frames 30..39 that both segments have

    def sees(time: np.ndarray, home: np.ndarray) -> np.ndarray:
        left = home[:, 0] < 5
        return ~(left & (time >= hidden.start) & (time < hidden.stop))

    monkeypatch.setattr(FakePredictor, "sees", staticmethod(sees))
    tracks, visible = CoTracker(checkpoint, device="cpu", segment=40, overlap=10)(clip_numbered(70))
    queries = grid_queries(70, 24, 30)
    truth, seen = truth_of(queries, 70)
    lost = ~seen.all(0)

    np.testing.assert_allclose(tracks[:, ~lost], truth[:, ~lost], atol=1e-3)
    early, late = lost & (queries[:, 0] < 40), lost & (queries[:, 0] >= 40)
    assert early.any()
    assert late.any()
    np.testing.assert_array_equal(visible[:40, early], seen[:40, early])
    assert not visible[40:, early].any()
    assert (tracks[40:, early] == tracks[39, early]).all()
    np.testing.assert_array_equal(visible[30:, late], seen[30:, late])
    assert not visible[:30, late].any()
    assert (tracks[:30, late] == tracks[30, late]).all()


@pytest.mark.parametrize("path", [None, "nowhere.pth"])
def test_cotracker_asks_for_its_checkpoint(checkpoint: Path, path: str | None) -> None:
    with pytest.raises(InputError, match=r"^checkpoint: .*scaled_offline\.pth.*CC-BY-NC"):
        CoTracker(path, device="cpu")(clip_numbered(2))


def test_cotracker_refuses_a_damaged_checkpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakePredictor, **_: object) -> None:
        raise EOFError("Ran out\nof input")

    monkeypatch.setattr(FakePredictor, "__init__", fail)
    with pytest.raises(InputError, match=r"can't be loaded \(Ran out of input\)$"):
        CoTracker(checkpoint, device="cpu")(clip_numbered(2))


def test_cotracker_never_advises_to_run_what_a_checkpoint_holds(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakePredictor, **_: object) -> None:
        raise pickle.UnpicklingError("re-running with weights_only=False will likely succeed")

    monkeypatch.setattr(FakePredictor, "__init__", fail)
    with pytest.raises(InputError, match="is no file of weights") as caught:
        CoTracker(checkpoint, device="cpu")(clip_numbered(2))
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("path", [None, "a.pth"])
def test_cotracker_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("<urlopen error\nno network>")

    monkeypatch.setitem(sys.modules, "cotracker", None)  # not importable
    monkeypatch.setattr(torch.hub, "load", fail)
    with pytest.raises(InputError, match=r"pip install git\+https.*CC-BY-NC") as caught:
        CoTracker(path, device="cpu")(clip_numbered(2))
    assert "\n" not in str(caught.value)


def test_cotracker_from_the_hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*args: str, skip_validation: bool, trust_repo: bool) -> FakePredictor:
        asked.append(args)
        return FakePredictor(str(checkpoint), offline=True, window_len=60)

    monkeypatch.setitem(sys.modules, "cotracker.predictor", None)
    monkeypatch.setattr(torch.hub, "load", load)
    tracker = CoTracker(device="cpu")
    with pytest.warns(UserWarning, match=r"non-commercial use only \(CC-BY-NC\)"):
        tracker(clip_numbered(3))
    tracker(clip_numbered(3))
    ((repository, name),) = asked
    assert re.fullmatch(r"facebookresearch/co-tracker:[0-9a-f]{40}", repository)
    assert name == "cotracker3_offline"


def test_cotracker_says_its_licence_before_it_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cotracker", None)
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: pytest.fail("downloaded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="non-commercial"):
            CoTracker(device="cpu")(clip_numbered(2))


def test_cotracker_checks_its_options() -> None:
    with pytest.raises(InputError, match=r"^overlap: expected"):
        CoTracker(segment=16, overlap=16)
    with pytest.raises(InputError, match=r"^device: "):
        CoTracker(device="abacus")(clip_numbered(2))
