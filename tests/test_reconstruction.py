"""What a reconstruction can be turned into: some frames, another scale, another world."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_viewers import clip

from fasttracks import InputError, Reconstruction
from fasttracks.video import read_video
from fasttracks.viewers.page import write_page
from fasttracks.viewers.picture import draw


def as_torch(rec: Reconstruction) -> Reconstruction:
    values = {f.name: getattr(rec, f.name) for f in fields(rec)}
    arrays = {k: torch.tensor(v) for k, v in values.items() if isinstance(v, np.ndarray)}
    return replace(rec, **arrays)


def check(rec: Reconstruction) -> None:
    """Points, cameras, low-rank model and pixels agree."""
    rec = rec.numpy()
    composed = np.einsum("tk,knc->tnc", rec.coefficients, rec.basis)
    np.testing.assert_allclose(composed, rec.points, atol=1e-3)
    pose = rec.camera_to_world
    local = (rec.points - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    np.testing.assert_allclose(local, rec.points_camera, rtol=1e-3, atol=1e-3)
    projected = local @ rec.intrinsics.swapaxes(1, 2)
    np.testing.assert_allclose(projected[..., :2] / projected[..., 2:], rec.reprojection, atol=0.05)


@pytest.fixture(params=["numpy", "torch"])
def rec(request):
    return clip() if request.param == "numpy" else as_torch(clip())


def test_some_frames(rec, tmp_path):
    assert len(rec) == 12
    some = rec[2:10:2]
    assert len(some) == 4
    check(some)
    np.testing.assert_array_equal(some.numpy().times, rec.numpy().times[2:10:2])
    np.testing.assert_array_equal(some.numpy().points, rec.numpy().points[2:10:2])
    assert some.basis.shape == rec.basis.shape
    some.save(tmp_path / "some.npz")
    assert len(Reconstruction.load(tmp_path / "some.npz")) == 4
    for wrong in (3, slice(3, 4), slice(20, 30), "a"):
        with pytest.raises(InputError, match="frames"):
            rec[wrong]


def test_scale(rec):
    large = rec.scaled(2.5)
    check(large)
    np.testing.assert_allclose(large.numpy().points, 2.5 * rec.numpy().points, rtol=1e-6)
    known = rec.with_length(1.7, 8, 9)
    points = known.numpy().static_points
    assert np.linalg.norm(points[8] - points[9]) == pytest.approx(1.7, rel=1e-5)
    points = rec.with_length(1.7, 0, 9, frame=3).numpy().points[3]
    assert np.linalg.norm(points[0] - points[9]) == pytest.approx(1.7, rel=1e-5)
    for wrong in (0, -1, np.nan, np.inf, "2", None, [1, 2]):
        with pytest.raises(InputError, match="scale"):
            rec.scaled(wrong)
    with pytest.raises(InputError, match="apart"):
        rec.with_length(1, 5, 5)


def test_camera_height(rec):
    basis = rec.basis * 1
    basis[0, 10:20, 1] = 4.0  # on the ground: y is down
    level = replace(rec, basis=basis).with_camera_height(1.6, range(10, 20))
    height = level.numpy().static_points[10, 1] - level.numpy().camera_to_world[:, 1, 3]
    assert height.mean() == pytest.approx(1.6, rel=1e-4)
    with pytest.raises(InputError, match="three tracks"):
        rec.with_camera_height(1.6, [1, 2])


def test_another_world(rec):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (20, -50, 100), degrees=True).as_matrix()
    matrix[:3, 3] = 1, -2, 3
    moved = rec.transformed(matrix)
    check(moved)
    expected = rec.numpy().points @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(moved.numpy().points, expected, atol=1e-4)
    check(moved.transformed(np.linalg.inv(matrix)))
    for wrong in (2 * np.eye(4), np.eye(3), np.diag([1, 1, -1, 1]), np.full((4, 4), np.nan), "a"):
        with pytest.raises(InputError, match="transform"):
            rec.transformed(wrong)


@pytest.mark.parametrize("value", [object(), np.zeros(3), 1.5, torch.zeros(2).to("meta")])
def test_what_is_no_path_track_or_video_is_refused(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rec = clip()
    for write in (rec.to_ply, rec.to_colmap, rec.to_tum, rec.to_kitti, rec.to_gltf, read_video):
        with pytest.raises(InputError, match="expected a path"):
            write(value)
    for use in (
        lambda: rec.to_splat("a", value),
        lambda: write_page(rec, "a.html", value),
        lambda: draw(rec, "a.png", value),
        lambda: rec.with_length(1, value, 0),
        lambda: rec.with_length(1, 0, 1, frame=value),
        lambda: rec.with_camera_height(1, [value] * 3),
    ):
        with pytest.raises(InputError, match=r"expected (uint8|a whole|one array|numbers|three)"):
            use()
    assert list(tmp_path.iterdir()) == []
