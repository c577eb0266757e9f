"""Clips that are prepared by the kernel, and judged by counts; interpreted where no GPU is."""

import warnings

import numpy as np
import pytest
import torch
from helpers import relative, tiny_network
from test_plausible import K, N, T, pixels

import fasttracks
from fasttracks import InputError, clips
from fasttracks.tracks import Tracks

SIZE = (480, 640)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def model():
    return tiny_network(dtype=torch.float32).to(DEVICE)


@pytest.fixture
def quick(monkeypatch, kernel_device):
    """As on a GPU with kernels; to call for the usual way again."""
    from fasttracks.kernels import launches  # here, as it needs Triton

    monkeypatch.setattr(clips, "_has_kernels", lambda network: True)
    if kernel_device.type == "cpu":  # the interpreter takes half as long for fewer, wider tiles
        for side in ("FRAMES", "TRACKS"):
            monkeypatch.setitem(launches.launch("prepare", 1, kernel_device), side, 32)
    return monkeypatch.undo


def both(quick, *arguments, **given):
    found = fasttracks.reconstruct(*arguments, **given)
    quick()
    return found, fasttracks.reconstruct(*arguments, **given)


def assert_same(found, expected):
    """The same but for rounding: the kernel divides by the focal length, numpy inverts matrices."""
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert getattr(found, name).dtype == value.dtype, name
            assert relative(getattr(found, name), value) <= 2e-5, name
        else:
            assert getattr(found, name) == value, name


@pytest.mark.parametrize("frames", [7, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("seen", ["all", "some", "scores"])
def test_answers_are_those_of_tracks(quick, model, frames, dtype, seen):
    rng = np.random.default_rng(0)
    xy = rng.uniform((0, 0), (640, 480), (frames, 13, 2)).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        xy[rng.random((frames, 13)) < 0.1] = np.nan
        xy[:4, 1] = np.nan
    score = rng.random((frames, 13)) ** 0.5
    visibility = {"all": None, "some": score > 0.3, "scores": score}[seen]
    camera = np.tile(np.array([[500.0, 2, 320], [0, 520, 240], [0, 0, 1]]), (frames, 1, 1))
    camera[:, 0, 0] += np.arange(frames)
    assert_same(*both(quick, xy, visibility, intrinsics=camera, image_size=SIZE, model=model))


def test_a_track_that_is_never_known_gets_the_mean(quick, model):
    xy = pixels()[:7, :9]
    xy[:, 3] = np.nan
    found, expected = both(quick, xy, image_size=SIZE, model=model)
    assert np.allclose(found.tracks, expected.tracks, rtol=1e-6)
    assert relative(found.points, expected.points) <= 2e-5


def test_unknown_focal_length_and_a_batch(quick):
    model = fasttracks.load("base", device=DEVICE, precision="fp32", backend="torch")
    xy = np.stack([pixels()[:6, :9], pixels()[6:12, :9]])
    for found, expected in zip(*both(quick, xy, image_size=SIZE, model=model), strict=True):
        assert_same(found, expected)


def test_a_tracks_keeps_what_it_knows(quick, model):
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 255, (N, 3)).astype(np.uint8)
    whole = Tracks(pixels(), image_size=SIZE, fps=25, colors=colors, content=(10, 0, 470, 640))
    assert_same(*both(quick, whole, model=model))


def test_torch_in_torch_out(quick, model):
    found, expected = both(quick, torch.from_numpy(pixels()), image_size=SIZE, model=model)
    assert isinstance(found.points, torch.Tensor)
    assert_same(found.numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tracks": pixels() / (640, 480)}, "shares of the image"),
        ({"image_size": (640, 480)}, "expected \\(height, width\\)"),
        ({"tracks": pixels() * 4}, "larger one"),
        ({"tracks": np.where(np.arange(N)[:, None] < 20, 1e8, pixels())}, "positions are infinite"),
        ({"tracks": np.where(np.arange(N)[:, None] < 20, -1, pixels())}, "are exactly"),
        ({"visibility": np.zeros((T, N), bool)}, "no position is seen"),
        ({"visibility": np.full((T, N), 3.0)}, "scores of 0 to 1"),
        ({"visibility": np.arange(T)[:, None] // 10 == np.arange(N) % 2}, "from it on"),
        ({"intrinsics": np.diag([0.94, 1.25, 1.0])}, "normalised"),
        ({"intrinsics": np.diag([500.0, -500, 1])}, "focal lengths above 0"),
        ({"intrinsics": np.full((3, 3), np.nan)}, "found NaN"),
        ({"tracks": pixels()[0]}, "expected shape \\(T, N, 2\\)"),
        ({"visibility": np.ones((T, 3), bool)}, "visibility: expected shape"),
    ],
)
def test_what_is_wrong_is_said(quick, model, arguments, message):
    given = {"tracks": pixels(), "image_size": SIZE, **arguments}
    with pytest.raises(InputError, match=message) as error:
        fasttracks.reconstruct(model=model, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tracks", "said"),
    [(pixels() / 4, "smaller one"), (pixels().swapaxes(0, 1), "looks like \\(N, T, 2\\)")],
)
def test_what_can_hardly_be_is_warned_of_at_the_call(quick, model, tracks, said):
    with pytest.warns(UserWarning, match=said) as caught:
        fasttracks.reconstruct(tracks, image_size=SIZE, model=model)
    assert caught[0].filename == __file__


def test_usual_tracks_are_not_looked_at(quick, model, monkeypatch):
    monkeypatch.setattr(clips, "check", lambda clip: pytest.fail("looked at"))
    outside = pixels()
    outside[:, :5] += 300
    normalised = (pixels() - (319.5, 239.5)) / 600
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # numpy's are of memory that nothing depends on
        for given in (
            {"tracks": pixels(), "image_size": SIZE},
            {"tracks": pixels(), "intrinsics": K, "image_size": SIZE},
            {"tracks": outside, "image_size": SIZE},
            {"tracks": normalised, "intrinsics": np.eye(3)},
        ):
            fasttracks.reconstruct(model=model, **given)


def test_clips_of_several_shapes_come_back_in_their_order(model):
    clips = [pixels()[:9, :n] for n in (20, 9, 20)]
    seen = [np.ones(c.shape[:2], bool) for c in clips]
    together = fasttracks.reconstruct(clips, seen, image_size=SIZE, model=model)
    known = [Tracks(c, image_size=SIZE) for c in clips]
    for found, again, clip in zip(
        together, fasttracks.reconstruct(known, model=model), clips, strict=True
    ):
        alone = fasttracks.reconstruct(clip, image_size=SIZE, model=model)
        assert np.allclose(found.points, alone.points, rtol=1e-4, atol=1e-4)
        assert relative(again.points, found.points) <= 1e-5
    with pytest.raises(InputError, match="visibility: expected 3 clips as tracks have, found 2"):
        fasttracks.reconstruct(clips, seen[:2], image_size=SIZE, model=model)


def test_a_result_not_waited_for_says_what_is_wrong_when_looked_at(
    model, monkeypatch, kernel_device
):
    monkeypatch.setattr(clips, "_has_kernels", lambda network: True)
    monkeypatch.setattr(clips, "_is_host", lambda home: False)
    rec = fasttracks.reconstruct(torch.from_numpy(pixels() * 4), image_size=SIZE, model=model)
    for look in (rec.check, rec.numpy, rec.__repr__, lambda: rec[:5], lambda: rec.scaled(2)):
        with pytest.raises(InputError, match="larger one"):
            look()
    rec = fasttracks.reconstruct(torch.from_numpy(pixels()), image_size=SIZE, model=model)
    rec.check()
    assert "100 tracks" in repr(rec)
    assert "_unchecked" not in vars(rec)


def test_of_tensors_only_new_image_sizes_come_from_the_host(model):
    xy, camera = (torch.from_numpy(value).to(DEVICE) for value in (pixels(), K))

    def work(image_size):
        clip = clips.Clip(xy, None, camera, image_size)
        return clips._on_device([clip], model, "none", whole=True)

    given = work(SIZE).room()
    images, cameras, visible, positions = given.places
    work(SIZE).fill(given)
    assert images.tolist() == [[640, 480, 1, 0]]
    assert (cameras == camera).all()
    assert (visible == 1).all()
    assert torch.equal(positions[0], xy.to(positions.dtype))
    images.fill_(-1)
    work(SIZE).fill(given)
    assert (images == -1).all()
    work((240, 320)).fill(given)
    assert images.tolist() == [[320, 240, 1, 0]]


@pytest.mark.gpu
def test_cuda_tensors_are_not_waited_for():
    model = fasttracks.load("base", device="cuda", backend="triton")
    given = {"intrinsics": torch.from_numpy(K).cuda(), "image_size": SIZE, "model": model}
    tracks = torch.from_numpy(pixels()).cuda()
    for _ in range(3):
        expected = fasttracks.reconstruct(pixels(), intrinsics=K, image_size=SIZE, model=model)
        fasttracks.reconstruct(tracks, **given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = fasttracks.reconstruct(tracks, **given)
        wrong = fasttracks.reconstruct(tracks * 4, **given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.points.is_cuda
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(found.numpy(), name), value), name
    with pytest.raises(InputError, match="larger one"):
        wrong.numpy()


@pytest.mark.gpu
def test_graphs_follow_the_weights():
    model = fasttracks.load("base", device="cuda", backend="triton")
    before = [fasttracks.reconstruct(pixels(), image_size=SIZE, model=model) for _ in range(3)]
    model.load_state_dict({k: 1.1 * v for k, v in model.state_dict().items()}, assign=True)
    after = [fasttracks.reconstruct(pixels(), image_size=SIZE, model=model) for _ in range(3)]
    for same in (before, after):
        assert all(np.array_equal(rec.points, same[0].points) for rec in same)
    assert not np.allclose(before[0].points, after[0].points)
