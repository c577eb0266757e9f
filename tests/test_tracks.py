"""Tracks: what is accepted, completed, refused, and read from files."""

import io
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fasttracks import InputError, Tracks


def positions(frames=5, tracks=4):
    return np.random.default_rng(0).uniform(0, 100, (frames, tracks, 2)).astype(np.float32)


def test_defaults():
    tracks = Tracks(positions())
    assert tracks.visibility.all()
    assert tracks.tracks.dtype == np.float32
    assert tracks.intrinsics is None
    assert "5 frames, 4 tracks, 100% seen" in repr(tracks)


def test_integers_lists_and_other_memory_orders_are_accepted():
    whole = np.round(positions()).astype(int)
    expected = whole.astype(np.float32)
    assert np.array_equal(Tracks(whole).tracks, expected)
    assert np.array_equal(Tracks(whole.tolist()).tracks, expected)
    assert np.array_equal(Tracks(np.asfortranarray(whole)).tracks, expected)
    assert Tracks(whole, np.ones((5, 4), int)).visibility.dtype == bool


@given(
    arrays(np.float32, (6, 5, 2), elements=st.floats(-1e4, 1e4, width=32)),
    arrays(bool, (6, 5)),
    arrays(bool, (6, 5)),
)
@settings(max_examples=60, deadline=None)
def test_completion(values, missing, seen):
    seen[0, 0], missing[0, 0] = True, False
    holed = np.where(missing[..., None], np.nan, values)
    tracks = Tracks(holed, seen)
    assert np.array_equal(tracks.visibility, seen & ~missing)
    assert np.isfinite(tracks.tracks).all()
    assert np.array_equal(tracks.tracks[~missing], values[~missing])
    for n in range(5):
        known = np.flatnonzero(~missing[:, n])
        for t in np.flatnonzero(missing[:, n]):
            if len(known):
                earlier = known[known < t]
                source = earlier[-1] if len(earlier) else known[0]
                assert np.array_equal(tracks.tracks[t, n], values[source, n])


def nan_where(*index):
    values = positions()
    values[index] = np.nan
    return values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tracks": np.zeros((5, 4))}, "tracks: expected shape"),
        ({"tracks": np.zeros((5, 4, 3))}, "tracks: expected shape"),
        ({"tracks": np.zeros((5, 0, 2))}, "tracks: expected shape"),
        ({"tracks": np.zeros((1, 4, 2))}, "tracks: expected at least 2 frames, found 1"),
        ({"tracks": np.zeros((0, 4, 2))}, "tracks: expected at least 2 frames, found 0"),
        ({"tracks": "clip.npz"}, "tracks: expected numbers"),
        ({"tracks": [[1, 2], [3]]}, "tracks: expected one array"),
        ({"tracks": positions() + 1j}, "tracks: expected numbers"),
        ({"tracks": np.full((5, 4, 2), np.inf)}, "tracks: 20 positions are infinite"),
        ({"tracks": np.full((5, 4, 2), np.inf, np.float16)}, "tracks: 20 positions are infinite"),
        ({"tracks": np.full((5, 4, 2), np.iinfo(int).min)}, "tracks: 20 positions are infinite"),
        ({"tracks": np.full((5, 4, 2), np.nan)}, "visibility: no position is seen"),
        ({"visibility": np.ones((4, 5), bool)}, r"visibility: expected shape \(5, 4\)"),
        ({"visibility": np.ones((5, 4, 1), bool)}, "visibility: expected shape"),
        ({"visibility": np.zeros((5, 4), bool)}, "visibility: no position is seen"),
        ({"visibility": np.full((5, 4), 1.5)}, "visibility: expected booleans .* threshold=0"),
        ({"visibility": np.full((5, 4), 0.5)}, "visibility: no position is seen"),
        ({"visibility": np.full((5, 4), 0.5), "threshold": np.nan}, "visibility: expected finite"),
        ({"visibility": np.full((5, 4), np.nan)}, "visibility: expected booleans"),
        ({"intrinsics": np.eye(4)}, "intrinsics: expected shape"),
        ({"intrinsics": np.zeros((4, 3, 3))}, "intrinsics: expected shape"),
        ({"intrinsics": np.diag([0.0, 1, 1])}, "intrinsics: .* singular"),
        ({"intrinsics": np.zeros((3, 3))}, "intrinsics: expected rows"),
        ({"intrinsics": np.full((3, 3), np.nan)}, "intrinsics: expected finite"),
        ({"intrinsics": np.diag([500.0, 500, 2])}, "intrinsics: expected rows"),
        ({"image_size": (480,)}, "image_size"),
        ({"image_size": (480, 0)}, "image_size"),
        ({"image_size": (480.5, 640)}, "image_size"),
        ({"image_size": "480p"}, "image_size"),
        ({"image_size": (np.inf, 640)}, "image_size"),
        ({"image_size": (10**12, 640)}, "image_size"),
        ({"content": (0, 0, 0, 10)}, "content"),
        ({"content": (0, 0, 20, 10), "image_size": (10, 10)}, "content"),
        ({"fps": 0}, "fps"),
        ({"fps": 1e300}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"times": np.arange(3.0)}, "times"),
        ({"times": np.full(5, 1e300)}, "times"),
        ({"times": -np.arange(len(positions()))}, "times"),
        ({"colors": np.zeros((2, 3), np.uint8)}, "colors"),
        ({"colors": np.zeros((positions().shape[1], 3))}, "colors"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        Tracks(**{"tracks": positions(), **arguments})
    assert "\n" not in str(error.value)


def test_times_and_colors_stay(tmp_path):
    values = positions()
    frames, points = values.shape[:2]
    np.testing.assert_allclose(Tracks(values, fps=20).times, np.arange(frames) / 20)
    colors = np.arange(3 * points, dtype=np.uint8).reshape(points, 3)
    times = np.linspace(1, 2, frames) ** 2
    Tracks(values, times=times, colors=colors).save(tmp_path / "clip.npz")
    read = Tracks.load(tmp_path / "clip.npz")
    np.testing.assert_array_equal(read.times, times)
    np.testing.assert_array_equal(read.colors, colors)


def test_cameras():
    known = np.array([[500.0, 1, 50], [0, 510, 40], [0, 0, 1]])
    assert np.array_equal(Tracks(positions(), intrinsics=known).camera()[3], known)
    guess = Tracks(positions(), image_size=(480, 640)).camera()[0]
    assert np.array_equal(guess, [[640, 0, 319.5], [0, 640, 239.5], [0, 0, 1]])

    # A 3 × 3 grid of cell centres over 90 × 60 pixels tells the size of the image.
    x, y = np.meshgrid((np.arange(3) + 0.5) * 30 - 0.5, (np.arange(3) + 0.5) * 20 - 0.5)
    grid = np.tile(np.stack([x, y], -1).reshape(-1, 2), (2, 1, 1))
    with pytest.warns(UserWarning, match="90×60"):
        guess = Tracks(grid).camera()[0]
    assert np.array_equal(guess, [[90, 0, 44.5], [0, 90, 29.5], [0, 0, 1]])


def test_save_and_load(tmp_path):
    path = tmp_path / "a clip – ü.npz"
    saved = Tracks(positions(), np.eye(5, 4) > 0, np.diag([500, 500, 1]), (480, 640), 29.97)
    saved.save(path)
    loaded = Tracks.load(path)
    for name, value in vars(saved).items():
        assert np.array_equal(getattr(loaded, name), value), name
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_other_layouts(tmp_path):
    values, seen = positions(), np.eye(5, 4) > 0
    cameras = np.tile(np.diag([500.0, 500, 1]), (5, 1, 1))
    swapped = values.swapaxes(0, 1)
    files = {
        "own": {"tracks": values, "visibility": seen},
        "nt2": {"tracks": swapped, "visibility": seen.T, "layout": "NT2"},
        "tracksto4d": {
            "pred_tracks": values[None],
            "pred_visibility": seen[None],
            "Ks_all": cameras,
        },
        "tapvid": {
            "points": (swapped + 0.5) / (640, 480),
            "occluded": ~seen.T,
            "video": np.zeros((5, 480, 640, 3), np.uint8),
        },
    }
    for name, arrays_ in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays_)
        loaded = Tracks.load(tmp_path / f"{name}.npz")
        assert np.allclose(loaded.tracks, values, atol=1e-4), name
        assert np.array_equal(loaded.visibility, seen), name
    assert np.array_equal(Tracks.load(tmp_path / "tracksto4d.npz").intrinsics, cameras)
    assert Tracks.load(tmp_path / "tapvid.npz").image_size == (480, 640)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x93NUMPY\x01\x00"])
def test_broken_files(content, tmp_path):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="track file") as error:
        Tracks.load(path)
    assert "\n" not in str(error.value)


def test_other_bad_files(tmp_path):
    Tracks(positions()).save(tmp_path / "whole.npz")
    half = (tmp_path / "whole.npz").read_bytes()[:300]
    (tmp_path / "half.npz").write_bytes(half)
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    np.savez(tmp_path / "objects.npz", tracks=np.array([{}, None], dtype=object))
    for name, message in {
        "half.npz": "not a whole",
        "objects.npz": "not a whole",
        "other.npz": "has something; expected tracks",
        "missing.npz": "no file",
        "": "directory",
    }.items():
        with warnings.catch_warnings(), pytest.raises(InputError, match=message):
            Tracks.load(tmp_path / name)


def test_torch_and_masked_arrays():
    import torch

    values = positions()
    for tensor in (torch.tensor(values, requires_grad=True), torch.tensor(values).bfloat16()):
        assert np.allclose(Tracks(tensor).tracks, values, rtol=1e-2)
    masked = np.ma.masked_array(values, mask=np.zeros_like(values, bool))
    masked[2, 1] = np.ma.masked
    assert not Tracks(masked).visibility[2, 1]
    assert Tracks(masked).visibility.sum() == 19
    assert Tracks(values, fps=np.float32(30)).fps == 30


@pytest.mark.parametrize(
    ("arrays_", "message"),
    [
        ({"tracks": positions(), "layout": "nt2"}, "layout: expected 'TN2' or 'NT2'"),
        ({"tracks": np.float32(3), "layout": "NT2"}, "unexpected shapes"),
        ({"tracks": positions(), "fps": np.ones(2)}, "fps"),
        (
            {"points": positions(), "occluded": np.full((5, 4), "x"), "image_size": [9, 9]},
            "numbers",
        ),
        ({"points": np.ones(3), "occluded": np.ones(3), "image_size": [9, 9]}, "shapes"),
        ({"points": positions(), "occluded": np.ones((5, 4)), "video": np.ones(3)}, "shapes|image"),
    ],
)
def test_odd_arrays_in_a_file(arrays_, message, tmp_path):
    np.savez(tmp_path / "odd.npz", **arrays_)
    with pytest.raises(InputError, match=message):
        Tracks.load(tmp_path / "odd.npz")


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path):
    Tracks(positions()).save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 150):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.integers(8)
        (tmp_path / "flipped.npz").write_bytes(flipped)
        try:
            Tracks.load(tmp_path / "flipped.npz")
        except InputError as error:
            assert "\n" not in str(error)


def test_tracks_outside_any_image_need_its_size():
    with pytest.raises(InputError, match="image_size: expected one"):
        Tracks(-positions() - 5).camera()


def tapvid(path, occluded, **others):
    points = (positions().swapaxes(0, 1) + 0.5) / (640, 480)
    np.savez(path, **{"points": points, "occluded": occluded, "image_size": [480, 640], **others})
    return path


def test_scores_are_seen_above_a_threshold(tmp_path):
    scores = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    assert np.array_equal(Tracks(positions(), scores).visibility, scores > 0.5)
    assert np.array_equal(Tracks(positions(), scores, threshold=0.9).visibility, scores > 0.9)
    logits = 10 * scores - 5
    assert np.array_equal(Tracks(positions(), logits, threshold=0).visibility, logits > 0)
    np.savez(tmp_path / "a.npz", tracks=positions(), visibility=logits)
    assert np.array_equal(Tracks.load(tmp_path / "a.npz", threshold=0).visibility, logits > 0)

    hidden = tapvid(tmp_path / "b.npz", 1 - scores.T)
    assert np.array_equal(Tracks.load(hidden).visibility, scores > 0.5)
    assert np.array_equal(Tracks.load(hidden, threshold=0.9).visibility, scores > 0.9)


def test_tapvid_in_pixels_and_with_channels_first(tmp_path):
    seen, pixels = np.ones((4, 5)), positions().swapaxes(0, 1) + 0.5
    with pytest.warns(UserWarning, match="points: most are beyond 2; taking them for pixels"):
        read = Tracks.load(tapvid(tmp_path / "a.npz", 1 - seen, points=pixels))
    assert np.allclose(read.tracks, positions(), atol=1e-4)
    for shape in ((5, 3, 48, 64), (5, 48, 64, 3)):
        video = np.zeros(shape, np.uint8)
        path = tmp_path / "b.npz"
        np.savez(path, points=pixels / 100, occluded=1 - seen, video=video)
        assert Tracks.load(path).image_size == (48, 64)


def test_arrays_are_its_own(tmp_path):
    """Writable and contiguous, whatever was given, so that torch takes them."""
    import torch

    colors = np.arange(12, dtype=np.uint8).reshape(4, 3)[::-1]
    colors.flags.writeable = False
    tracks = Tracks(
        positions()[:, ::-1], np.ones((5, 4), bool), times=np.arange(5.0), colors=colors
    )
    for name in ("tracks", "visibility", "times", "colors"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.from_numpy(getattr(tracks, name))
    assert np.array_equal(tracks.colors, colors)


def test_masked_and_half_precision():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Tracks(positions().astype(np.float16)).tracks.dtype == np.float32
        assert np.allclose(Tracks(np.longdouble(positions())).tracks, positions())


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, that some of these are new or old
def test_tensors_that_are_no_plain_arrays():
    import torch

    tensor = torch.rand(5, 4, 2)
    odd = [
        tensor.to_sparse(),
        tensor.to("meta"),
        tensor.to(torch.complex64).conj(),
        torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8),
        torch.nested.nested_tensor(list(tensor)),
        torch.masked.masked_tensor(tensor, tensor > 0.5),
        np.ma.masked_array(["a"]),
    ]
    for value in odd:
        with pytest.raises(InputError, match=r"^tracks: expected") as error:
            Tracks(value)
        assert "\n" not in str(error.value)
    assert np.allclose(Tracks(tensor.to(torch.float8_e4m3fn)).tracks, tensor, atol=0.1)
    assert np.array_equal(Tracks(torch._neg_view(tensor)).tracks, -tensor.numpy())


def test_only_what_is_needed_is_read(tmp_path):
    """And not before its size is known: 4 GB of zeros are 4 MB in the file."""
    path = tmp_path / "bomb.npz"
    np.savez(path, tracks=positions())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (50, 10_000_000, 2)}
    )
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        for name in ("unused", "visibility"):
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header.getvalue())
                for _ in range(40):
                    member.write(bytes(10_000_000))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"visibility of float32 .* at most 0\.5 GB"):
        Tracks.load(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_long_messages_are_cut():
    with pytest.raises(InputError) as error:
        Tracks(positions(), image_size=np.zeros(100_000).tolist())
    assert len(str(error.value)) < 1100
    assert " … " in str(error.value)


@pytest.mark.parametrize("path", [np.zeros(3), None, 3.5, b"a\0b", "a\ud800.npz"])
def test_paths_that_are_none(path):
    for use in (Tracks.load, Tracks(positions()).save):
        with pytest.raises(InputError, match=r"expected a path|can't be the name"):
            use(path)


def test_bars_leave_the_guess_to_what_is_between_them(tmp_path):
    tracks = Tracks(positions(), image_size=(480, 640), content=(0, 200, 480, 440))
    tracks.save(tmp_path / "a.npz")
    guess = Tracks.load(tmp_path / "a.npz").camera()[0]
    assert np.array_equal(guess, [[480, 0, 319.5], [0, 480, 239.5], [0, 0, 1]])
