"""Tracks from the files that people have, and what is refused in them."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fasttracks import InputError, Tracks

RANDOM = np.random.default_rng(0)
TRACKS = RANDOM.uniform(0, 200, (6, 20, 2)).astype(np.float32)
VISIBILITY = RANDOM.random((6, 20)) < 0.8


def tapvid() -> dict:
    points = (TRACKS.swapaxes(0, 1) + 0.5) / (320, 240)
    video = np.zeros((6, 240, 320, 3), np.uint8)
    return {"points": points, "occluded": ~VISIBILITY.T, "video": video}


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("a.npy", TRACKS, False),
        ("a.npy", TRACKS[None], False),
        ("a.npy", np.dstack([TRACKS, VISIBILITY]), True),
        ("a.pt", torch.tensor(TRACKS)[None], False),
        ("a.pt", (torch.tensor(TRACKS)[None], torch.tensor(VISIBILITY)[None]), True),
        ("a.pt", {"tracks": torch.tensor(TRACKS), "visibility": torch.tensor(VISIBILITY)}, True),
        (
            "a.pth",
            {
                "pred_tracks": torch.tensor(TRACKS)[None],
                "pred_visibility": torch.tensor(VISIBILITY)[None],
            },
            True,
        ),
        ("a.pkl", {"dog": tapvid()}, True),
        ("a.pkl", [tapvid()], True),
        ("a.pkl:cat", {"dog": {}, "cat": tapvid()}, True),
    ],
)
def test_layouts(name, value, known, tmp_path):
    path = tmp_path / name.partition(":")[0]
    if path.suffix == ".npy":
        np.save(path, value)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path)
    tracks = Tracks.load(tmp_path / name)
    np.testing.assert_allclose(tracks.tracks, TRACKS, atol=1e-3)
    np.testing.assert_array_equal(tracks.visibility, VISIBILITY if known else True)
    if path.suffix == ".pkl":
        assert tracks.image_size == (240, 320)


class Harm:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("name", ["a.pkl", "a.pt"])
def test_no_code_is_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = {"tracks": Harm()}
    torch.save(value, name) if name == "a.pt" else Path(name).write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match="refused"):
        Tracks.load(name)
    assert not Path("harmed").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.pt", "a.pkl"])
@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
def test_damaged_files(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        Tracks.load(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"x": 1}, "holds no clips"),
        ({"dog": tapvid(), "cat": tapvid()}, "2 clips; give one as"),
        ({"dog": {"points": TRACKS}}, "has points; expected"),
        ([], "holds no clips"),
    ],
)
def test_pickles_of_something_else(value, complaint, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=complaint):
        Tracks.load(tmp_path / "a.pkl")
