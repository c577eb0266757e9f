"""`reconstruct`: what goes in, what comes out."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from helpers import relative, tiny_network

import fasttracks
from fasttracks import InputError, Reconstruction, Tracks
from fasttracks.weights import save

SIZE = (480, 640)
FIELDS = (
    "points",
    "points_camera",
    "depth",
    "camera_to_world",
    "intrinsics",
    "reprojection",
    "static_points",
    "basis",
    "coefficients",
    "motion",
    "visibility",
)


@pytest.fixture(scope="module")
def model():
    return tiny_network(dtype=torch.float32)


def clip(frames=7, tracks=9, seed=0):
    rng = np.random.default_rng(seed)
    positions = rng.uniform((0, 0), (640, 480), (frames, tracks, 2)).astype(np.float32)
    visibility = rng.random((frames, tracks)) < 0.8
    visibility[0, 0] = True
    return positions, visibility


def test_fields(model):
    tracks, visibility = clip()
    result = fasttracks.reconstruct(tracks, visibility, image_size=SIZE, model=model)
    shapes = {
        "points": (7, 9, 3),
        "points_camera": (7, 9, 3),
        "depth": (7, 9),
        "camera_to_world": (7, 4, 4),
        "intrinsics": (7, 3, 3),
        "reprojection": (7, 9, 2),
        "reprojection_error": (7, 9),
        "static_points": (9, 3),
        "basis": (4, 9, 3),
        "coefficients": (7, 4),
        "motion": (9,),
        "visibility": (7, 9),
        "tracks": (7, 9, 2),
    }
    for name, shape in shapes.items():
        value = getattr(result, name)
        assert isinstance(value, np.ndarray), name
        assert value.shape == shape, name
        assert value.dtype == (bool if name == "visibility" else np.float32), name
    assert "7 frames, 9 tracks, 4 bases" in repr(result)


def test_fields_agree_with_each_other(model):
    tracks, visibility = clip()
    camera = np.array([[500.0, 2, 320], [0, 520, 240], [0, 0, 1]])
    r = fasttracks.reconstruct(tracks, visibility, intrinsics=camera, model=model)
    rotation, position = r.camera_to_world[:, :3, :3], r.camera_to_world[:, :3, 3]
    assert np.allclose(rotation @ rotation.swapaxes(1, 2), np.eye(3), atol=1e-6)
    assert np.allclose(np.linalg.det(rotation), 1, atol=1e-6)
    assert np.allclose(r.camera_to_world[:, 3], (0, 0, 0, 1))
    composed = np.einsum("tk,knc->tnc", r.coefficients, r.basis)
    assert np.allclose(composed, r.points, atol=1e-4)
    assert (r.coefficients[:, 0] == 1).all()
    in_camera = np.einsum("tji,tnj->tni", rotation, r.points - position[:, None])
    assert np.allclose(in_camera, r.points_camera, atol=1e-4)
    assert (r.depth > 1).all()
    pixels = np.einsum("tij,tnj->tni", r.intrinsics, r.points_camera / r.depth[..., None])
    assert np.allclose(pixels[..., :2], r.reprojection, atol=1e-2)
    error = np.linalg.norm(r.reprojection - tracks, axis=-1)
    assert np.allclose(r.reprojection_error[visibility], error[visibility], rtol=1e-4)
    assert np.isnan(r.reprojection_error[~visibility]).all()
    assert np.array_equal(r.visibility, visibility)


def test_focal_correction_reaches_intrinsics_and_reprojection(model):
    tracks, visibility = clip()
    config = type(model.config)(**{**vars(model.config), "predicts_focal": True})
    corrected = type(model)(config)
    corrected.load_state_dict(model.state_dict())
    with torch.no_grad():
        corrected.camera.bias[3] += 4.0  # focal lengths a fifth longer, about
    r = fasttracks.reconstruct(tracks, visibility, image_size=SIZE, model=corrected)
    assert (r.intrinsics[:, 0, 0] > 650).all()
    assert np.allclose(r.intrinsics[:, :2, 2], (319.5, 239.5))
    pixels = np.einsum("tij,tnj->tni", r.intrinsics, r.points_camera / r.depth[..., None])
    assert np.allclose(pixels[..., :2], r.reprojection, atol=1e-2)


def test_what_is_assumed_of_an_unknown_focal_length_is_the_models(model, tmp_path):
    """A model that knows what it was given is right, and keeps what that is in its file."""
    config = type(model.config)(
        **{**vars(model.config), "predicts_focal": True, "assumed_focal": 0.5}
    )
    short = type(model)(config)
    short.load_state_dict(model.state_dict())
    with torch.no_grad():
        short.camera.weight[3] = 0
        short.camera.bias[3] = 20.0  # focal lengths twice as long, always
    save(short, tmp_path / "short.safetensors", dtype=torch.float32)
    tracks, visibility = clip()
    result = fasttracks.reconstruct(
        tracks, visibility, image_size=SIZE, model=tmp_path / "short.safetensors", device="cpu"
    )
    # Twice 320 px in the first pass, and twice that in the second, which is told of 640.
    assert np.allclose(result.intrinsics[:, 0, 0], 1280, rtol=1e-3)


def test_what_trackers_guess_of_hidden_points_changes_nothing(model):
    tracks, visibility = clip()
    guesses = np.where(visibility[..., None], tracks, tracks[::-1, ::-1])
    a, b = (
        fasttracks.reconstruct(t, visibility, image_size=SIZE, model=model)
        for t in (tracks, guesses)
    )
    assert np.array_equal(a.points, b.points)


def test_a_corrected_focal_length_is_as_if_it_were_given():
    model = fasttracks.load("base", device="cpu", precision="fp32")
    tracks, visibility = clip()
    focal = 640 * model.config.assumed_focal
    guess = np.array([[focal, 0, 319.5], [0, focal, 239.5], [0, 0, 1]])
    first = fasttracks.reconstruct(tracks, visibility, intrinsics=guess, model=model)
    corrected = guess @ np.diag([*first.intrinsics[:, :2, :2].mean(0).diagonal() / focal, 1])
    assert abs(corrected[0, 0] - focal) > 1e-3
    given = fasttracks.reconstruct(tracks, visibility, intrinsics=corrected, model=model)
    found = fasttracks.reconstruct(tracks, visibility, image_size=SIZE, model=model)
    for name in FIELDS:
        assert relative(getattr(found, name), getattr(given, name)) <= 1e-4, name


def test_batches_are_their_clips(model):
    tracks, visibility = (np.stack(x) for x in zip(*(clip(seed=i) for i in range(3)), strict=True))
    cameras = np.tile(np.diag([500.0, 500, 1]), (3, 7, 1, 1)) * (1, 1, 1)
    cameras[:, :, 0, 0] += np.arange(3)[:, None]
    together = fasttracks.reconstruct(tracks, visibility, intrinsics=cameras, model=model)
    assert len(together) == 3
    for i, result in enumerate(together):
        alone = fasttracks.reconstruct(tracks[i], visibility[i], intrinsics=cameras[i], model=model)
        for name in FIELDS:
            assert relative(getattr(result, name), getattr(alone, name)) <= 1e-5, name


def test_torch_in_torch_out(model):
    tracks, visibility = clip()
    plain = fasttracks.reconstruct(tracks, visibility, image_size=SIZE, model=model)
    result = fasttracks.reconstruct(
        torch.from_numpy(tracks).requires_grad_(),
        torch.from_numpy(visibility),
        intrinsics=torch.tensor([[640, 0, 319.5], [0, 640, 239.5], [0, 0, 1]]),
        model=model,
    )
    for name in FIELDS:
        value = getattr(result, name)
        assert isinstance(value, torch.Tensor), name
        assert np.array_equal(value.numpy(), getattr(plain, name)), name
    error = result.reprojection_error.numpy()
    assert np.allclose(error, plain.reprojection_error, equal_nan=True)
    assert repr(result) == repr(plain)


def test_same_input_same_bits(model):
    tracks, visibility = clip(50, 40)
    first, second = (
        fasttracks.reconstruct(tracks, visibility, image_size=SIZE, model=model) for _ in range(2)
    )
    for name in FIELDS:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_unseen_tracks_get_their_row(model):
    tracks, visibility = clip()
    tracks[:, 4] = np.nan
    visibility[:, 5] = False
    result = fasttracks.reconstruct(tracks, visibility, image_size=SIZE, model=model)
    assert np.isfinite(result.points).all()
    assert not result.visibility[:, 4:6].any()


def test_a_tracks_object_brings_what_it_knows(model):
    tracks, visibility = clip()
    known = Tracks(tracks, visibility, image_size=SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = fasttracks.reconstruct(known, model=model)
    b = fasttracks.reconstruct(tracks, visibility, image_size=SIZE, model=model)
    assert np.array_equal(a.points, b.points)
    with pytest.raises(InputError, match="visibility"):
        fasttracks.reconstruct(known, visibility, model=model)


def test_models_by_path_are_read_once_a_version(tmp_path, model):
    tracks, visibility = clip()
    path = tmp_path / "tiny.safetensors"
    save(model, path)
    args = {"image_size": SIZE, "model": path, "device": "cpu"}
    first = fasttracks.reconstruct(tracks, visibility, **args)
    save(tiny_network(seed=1, dtype=torch.float32), path)
    os.utime(path, (1, 1))
    assert not np.array_equal(
        fasttracks.reconstruct(tracks, visibility, **args).points, first.points
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"refine": "magic"}, "refine: expected one of"),
        ({"tracks": np.zeros((0, 7, 9, 2))}, "tracks: expected at least one clip"),
        ({"tracks": np.zeros((2, 7, 9, 2))}, "visibility: expected shape"),
        ({"tracks": np.zeros((2, 2, 7, 9, 2))}, "tracks: expected shape"),
        ({"visibility": np.ones((7, 8), bool)}, "visibility: expected shape"),
        ({"intrinsics": np.zeros((3, 3))}, "intrinsics"),
        ({"model": "nowhere.safetensors"}, "model: no file"),
        ({"model": 5}, "model: expected"),
        ({"tracks": [[[1, 2]], [[3]]]}, "tracks: expected one array"),
        ({"intrinsics": [[1, 2], [3]]}, "intrinsics: expected one array"),
        ({"intrinsics": np.diag([1e39, 1e39, 1])}, "intrinsics: expected pixels"),
        ({"model": "base", "device": "cuda:99"}, "device"),
        ({"model": "base", "precision": "fp12"}, "precision"),
    ],
)
def test_refused(arguments, message, model):
    tracks, visibility = clip()
    with pytest.raises(InputError, match=message) as error:
        fasttracks.reconstruct(
            **{"tracks": tracks, "visibility": visibility, "model": model, **arguments}
        )
    assert "\n" not in str(error.value)


def test_reconstruction_round_trip(tmp_path, model):
    tracks, visibility = clip()
    saved = fasttracks.reconstruct(
        torch.from_numpy(tracks), visibility, image_size=SIZE, model=model
    )
    saved.save(tmp_path / "r.npz")
    loaded = Reconstruction.load(tmp_path / "r.npz")
    assert loaded.image_size == SIZE
    for name in FIELDS:
        assert np.array_equal(getattr(loaded, name), getattr(saved.numpy(), name)), name
    Tracks(tracks).save(tmp_path / "t.npz")
    with pytest.raises(InputError, match="lacks points"):
        Reconstruction.load(tmp_path / "t.npz")


_PEAK = """
import re, numpy as np, fasttracks
tracks = np.random.default_rng(0).uniform(0, 640, (50, 1000, 2))
fasttracks.reconstruct(tracks, image_size=(640, 640), device="cpu")
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_1000_tracks_over_50_frames():
    out = subprocess.run(
        [sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True
    ).stdout
    assert int(out) * 1024 < 1.5e9


def test_weights_that_predict_nonsense_are_refused(model):
    broken = tiny_network(dtype=torch.float32)
    with torch.no_grad():
        broken.points.weight[0, 0] = float("nan")
    tracks, visibility = clip()
    with pytest.raises(InputError, match="not finite"):
        fasttracks.reconstruct(tracks, visibility, image_size=SIZE, model=broken)


def test_reconstruction_files_are_checked(tmp_path, model):
    tracks, visibility = clip()
    result = fasttracks.reconstruct(tracks, visibility, image_size=SIZE, model=model)
    arrays = {name: value for name, value in vars(result).items() if value is not None}
    np.savez(tmp_path / "short.npz", **{**arrays, "motion": result.motion[:-1]})
    with pytest.raises(InputError, match="motion of shape"):
        Reconstruction.load(tmp_path / "short.npz")
    np.savez(tmp_path / "size.npz", **{**arrays, "image_size": "a"})
    with pytest.raises(InputError, match="image_size"):
        Reconstruction.load(tmp_path / "size.npz")


def test_a_path_is_no_array():
    with pytest.raises(InputError, match=r"fasttracks\.track"):
        fasttracks.reconstruct("dog.mp4")


def test_freed_memory_goes_back_to_the_system_after_a_call(monkeypatch):
    from fasttracks import pipeline

    assert pipeline._malloc_trim()(0) in (0, 1)  # the real one, where there is one
    pads = []
    monkeypatch.setattr(pipeline, "_malloc_trim", lambda: pads.append)
    xy = np.random.default_rng(0).uniform(0, 400, (4, 10, 2))
    model = tiny_network(dtype=torch.float32).requires_grad_(False)
    fasttracks.reconstruct(xy, image_size=(400, 400), model=model)
    assert pads == [0]
