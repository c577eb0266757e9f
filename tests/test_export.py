"""Every export, read back by an independent library, against the reconstruction itself."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fasttracks import InputError, Reconstruction
from fasttracks.export import FORMATS

T, N, K = 6, 40, 4
SIZE = (240, 320)


@pytest.fixture(scope="module")
def rec() -> Reconstruction:
    """A clip with moving points, unseen ones, one never seen and one behind the camera."""
    rng = np.random.default_rng(0)
    pose = np.tile(np.eye(4), (T, 1, 1))
    pose[:, :3, :3] = Rotation.from_euler("zyx", rng.normal(0, 0.3, (T, 3))).as_matrix()
    pose[0, :3, :3] = Rotation.from_euler("y", 178, degrees=True).as_matrix() @ pose[1, :3, :3]
    pose[:, :3, 3] = rng.normal((0, 0, -15), 0.5, (T, 3))
    basis = rng.normal(0, 2, (K, N, 3)) * np.array([1, 0.1, 0.1, 0.1])[:, None, None]
    basis[0, 1, 2] -= 40
    coefficients = rng.normal(0, 1, (T, K))
    coefficients[:, 0] = 1
    points = np.einsum("tk,knc->tnc", coefficients, basis)
    camera = np.array([[300.0, 0, 160.5], [0, 310, 119.5], [0, 0, 1]])
    local = (points - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    projected = local @ camera.T
    reprojection = projected[..., :2] / np.maximum(projected[..., 2:], 0.01)
    visibility = rng.random((T, N)) < 0.8
    visibility[:, 0] = False
    arrays = {
        "points": points,
        "points_camera": local,
        "camera_to_world": pose,
        "intrinsics": np.tile(camera, (T, 1, 1)),
        "reprojection": reprojection,
        "basis": basis,
        "coefficients": coefficients,
        "motion": np.r_[np.full(4, 0.5), rng.uniform(0.004, 0.006, N - 4)],
        "tracks": rng.uniform(0, SIZE[0], (T, N, 2)),
    }
    return Reconstruction(
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        visibility=visibility,
        image_size=SIZE,
        times=np.array([0, 0.04, 0.08, 0.12, 0.5, 0.55]),
        colors=rng.integers(0, 256, (N, 3), dtype=np.uint8),
    )


def test_moving_stands_out(rec):
    # The first was never seen, and so wasn't seen to move.
    assert rec.moving.tolist() == [False] + [True] * 3 + [False] * (N - 4)


@pytest.mark.parametrize("colors", [True, False])
def test_ply(rec, tmp_path, colors):
    plyfile = pytest.importorskip("plyfile")
    rec = rec if colors else replace(rec, colors=None)
    rec.to_ply(tmp_path / "static.ply")
    rec.to_ply(tmp_path / "frames")
    names = [f"frame_{t:05d}.ply" for t in range(T)]
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == names
    files = [tmp_path / "static.ply", *(tmp_path / "frames" / name for name in names)]
    for file, points in zip(files, [rec.static_points, *rec.points], strict=True):
        vertex = plyfile.PlyData.read(file)["vertex"]
        np.testing.assert_array_equal(np.stack([vertex[c] for c in "xyz"], 1), points)
        np.testing.assert_array_equal(vertex["motion"], rec.motion)
        if colors:
            rgb = np.stack([vertex[c] for c in ("red", "green", "blue")], 1)
            np.testing.assert_array_equal(rgb, rec.colors)
    np.testing.assert_array_equal(vertex["seen"], rec.visibility[-1])


@pytest.mark.parametrize("zoom", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_colmap(rec, tmp_path, text, zoom):
    pycolmap = pytest.importorskip("pycolmap")
    if zoom:
        factor = np.linspace(1, 1.2, T, dtype=np.float32)[:, None, None]
        rec = replace(rec, intrinsics=rec.intrinsics * np.where(np.eye(3)[:, :2].any(1), factor, 1))
    rec.to_colmap(tmp_path, text=text, moving=True)
    model = pycolmap.Reconstruction(tmp_path)
    assert len(model.cameras) == (T if zoom else 1)
    assert (model.cameras[1].width, model.cameras[1].height) == SIZE[::-1]

    inverse = np.linalg.inv(rec.camera_to_world.astype(np.float64))
    local = rec.static_points @ inverse[:, :3, :3].swapaxes(1, 2) + inverse[:, None, :3, 3]
    projected = local @ rec.intrinsics.swapaxes(1, 2).astype(np.float64)
    error = np.linalg.norm(projected[..., :2] / projected[..., 2:] - rec.tracks, axis=-1)
    observed = rec.visibility & (local[..., 2] > 0)
    assert sorted(model.points3D) == (np.flatnonzero(observed.any(0)) + 1).tolist()
    for t in range(T):
        image = model.images[t + 1]
        assert image.name == f"frame_{t:05d}.png"
        pose = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
        np.testing.assert_allclose(pose.matrix(), inverse[t, :3], atol=1e-6)
        seen = [point.point3D_id - 1 for point in image.points2D]
        assert seen == np.flatnonzero(observed[t]).tolist()
        for point, n in zip(image.points2D, seen, strict=True):
            np.testing.assert_allclose(point.xy, rec.tracks[t, n] + 0.5, atol=1e-4)
            place = pose * model.points3D[n + 1].xyz
            seen_at = model.cameras[image.camera_id].img_from_cam(place)
            assert np.linalg.norm(seen_at - point.xy) == pytest.approx(error[t, n], rel=1e-5)
    written = {number: point.error for number, point in model.points3D.items()}
    model.update_point_3d_errors()  # COLMAP's own
    for number, point in model.points3D.items():
        n = number - 1
        np.testing.assert_allclose(point.xyz, rec.static_points[n], atol=1e-6)
        assert point.color.tolist() == rec.colors[n].tolist()
        assert written[number] == pytest.approx(point.error, rel=1e-5)
        assert point.error == pytest.approx(error[observed[:, n], n].mean(), rel=1e-5)
        track = {(element.image_id, element.point2D_idx) for element in point.track.elements}
        assert len(track) == observed[:, n].sum()
        for image, place in track:
            assert model.images[image].points2D[place].point3D_id == number


def test_colmap_leaves_moving_points_out(rec, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    rec.to_colmap(tmp_path)
    assert min(pycolmap.Reconstruction(tmp_path).points3D) == 5
    skewed = replace(rec, intrinsics=rec.intrinsics + np.eye(3, k=1, dtype=np.float32))
    with pytest.raises(InputError, match="skew"):
        skewed.to_colmap(tmp_path)


def test_one_camera_for_nearly_equal_ones(rec, tmp_path):
    """As the network's are, whose focal lengths differ by a few thousandths of a percent."""
    pycolmap = pytest.importorskip("pycolmap")
    factor = np.linspace(0.9995, 1.0005, T, dtype=np.float32)[:, None]
    cameras = rec.intrinsics.copy()
    cameras[:, (0, 1), (0, 1)] *= factor
    replace(rec, intrinsics=cameras).to_colmap(tmp_path)
    (camera,) = pycolmap.Reconstruction(tmp_path).cameras.values()
    assert camera.params[0] == pytest.approx(300)


def test_an_image_of_unknown_size_holds_what_is_seen(rec, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    cameras = rec.intrinsics.copy()
    cameras[:, :2, 2] = 100, 400
    replace(rec, intrinsics=cameras, image_size=None).to_colmap(tmp_path)
    camera = pycolmap.Reconstruction(tmp_path).cameras[1]
    width, _ = rec.tracks[rec.visibility].max(0) + 0.5
    assert camera.width == np.ceil(width + 0.5)
    assert camera.height == 801


def test_files_of_an_earlier_export_are_removed(rec, tmp_path):
    longer = replace(
        rec, points=np.tile(rec.points, (2, 1, 1)), visibility=np.tile(rec.visibility, (2, 1))
    )
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    longer.to_ply(tmp_path / "frames")
    rec.to_ply(tmp_path / "frames")
    names = [f"frame_{t:05d}.ply" for t in range(T)]
    assert sorted(os.listdir(tmp_path / "frames")) == [*names, "notes.txt"]

    rec.to_colmap(tmp_path / "model")
    (tmp_path / "model" / "rigs.bin").touch()
    rec.to_colmap(tmp_path / "model", text=True)
    assert sorted(os.listdir(tmp_path / "model")) == ["cameras.txt", "images.txt", "points3D.txt"]


def test_unix_times_stay_apart(rec, tmp_path):
    times = 1.7e9 + np.arange(T) / 30
    replace(rec, times=times).to_tum(tmp_path / "tum.txt")
    np.testing.assert_allclose(np.loadtxt(tmp_path / "tum.txt")[:, 0], times, rtol=0, atol=1e-6)


@pytest.mark.parametrize("radius", [0, -1, np.nan, np.inf, "1", np.ones(2)])
def test_radii_that_are_refused(rec, tmp_path, radius):
    with pytest.raises(InputError, match=r"^radius: expected"):
        rec.to_gltf(tmp_path / "a.glb", radius=radius)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("points", np.nan, "points of float32 that are not numbers"),
        ("basis", 1e30, "basis of float32"),
        ("motion", 0.0, "motion of float32 that are not numbers above 0"),
        ("intrinsics", np.nan, "intrinsics in pixels"),
        ("intrinsics", 0.0, "intrinsics in pixels"),
        ("camera_to_world", 2.0, "rigid camera poses"),
        ("visibility", np.uint8(7), "booleans, or 0 and 1"),
        ("visibility", False, "no position that is seen"),
        ("tracks", np.ones((T, N, 3), np.float32), "tracks of shape"),
        ("visibility", np.ones((1, N), bool), "has 1 frames"),
        ("basis", np.ones((0, N, 3), np.float32), "0 bases"),
        ("points", np.full((T, N, 3), "x"), "expected numbers"),
        ("times", np.full(T, np.nan), "times"),
        ("colors", np.zeros((N, 3)), "colors"),
        ("image_size", [0, 0], "image_size"),
    ],
)
def test_files_whose_values_are_refused(rec, tmp_path, name, value, complaint):
    arrays = dict(vars(rec))
    if np.ndim(value) or name == "image_size":
        arrays[name] = value
    else:
        dtype = np.float32 if isinstance(value, float) else None
        arrays[name] = np.full(arrays[name].shape, value, dtype)
    np.savez(tmp_path / "rec.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=complaint) as error:
        Reconstruction.load(tmp_path / "rec.npz")
    assert "\n" not in str(error.value)


def test_trajectories(rec, tmp_path):
    file_interface = pytest.importorskip("evo.tools.file_interface")
    rec.to_tum(tmp_path / "tum.txt")
    rec.to_kitti(tmp_path / "kitti.txt")
    tum = file_interface.read_tum_trajectory_file(tmp_path / "tum.txt")
    np.testing.assert_allclose(tum.poses_se3, rec.camera_to_world, atol=1e-6)
    np.testing.assert_allclose(tum.timestamps, rec.times)
    kitti = file_interface.read_kitti_poses_file(tmp_path / "kitti.txt")
    np.testing.assert_allclose(kitti.poses_se3, rec.camera_to_world, atol=1e-6)
    replace(rec, times=None).to_tum(tmp_path / "tum.txt")
    tum = file_interface.read_tum_trajectory_file(tmp_path / "tum.txt")
    np.testing.assert_array_equal(tum.timestamps, np.arange(T))


def accessor(gltf, index: int) -> np.ndarray:
    """What the accessor refers to, float64, by the specification's rules."""
    a = gltf.accessors[index]
    view = gltf.bufferViews[a.bufferView]
    dtype = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[a.componentType]
    data = np.frombuffer(
        gltf.binary_blob(), dtype, view.byteLength // int(dtype[-1]), view.byteOffset
    )
    array = data.reshape(a.count, -1).astype(np.float64)
    if a.min:
        np.testing.assert_allclose((array.min(0), array.max(0)), (a.min, a.max))
    return array / 65535 if a.normalized else array


def test_gltf_plays_points_and_camera(rec, tmp_path):
    pygltflib = pytest.importorskip("pygltflib")
    rec.to_gltf(tmp_path / "clip.glb", radius=0.5)
    gltf = pygltflib.GLTF2().load_binary(tmp_path / "clip.glb")
    flip = np.diag([1.0, -1, -1])
    (primitive,) = gltf.meshes[0].primitives
    base = accessor(gltf, primitive.attributes.POSITION)
    targets = np.stack([accessor(gltf, target["POSITION"]) for target in primitive.targets])
    channels = {}
    for channel in gltf.animations[0].channels:
        sampler = gltf.animations[0].samplers[channel.sampler]
        np.testing.assert_allclose(accessor(gltf, sampler.input)[:, 0], rec.times, atol=1e-6)
        channels[channel.target.path] = accessor(gltf, sampler.output)
    weights = channels["weights"].reshape(T, K - 1)
    assert weights.min() >= 0  # Blender clips what is not in 0..1
    assert weights.max() <= 1
    corners = (base + np.einsum("tk,kvc->tvc", weights, targets)).reshape(T, N, 6, 3)
    np.testing.assert_allclose(corners.mean(2) @ flip, rec.points, atol=1e-4)
    np.testing.assert_allclose(
        np.linalg.norm(corners - corners.mean(2)[:, :, None], axis=-1), 0.5, atol=1e-4
    )

    colors = accessor(gltf, primitive.attributes.COLOR_0)[::6, :3]
    srgb = np.where(colors > 0.0031308, 1.055 * colors ** (1 / 2.4) - 0.055, 12.92 * colors)
    assert np.abs(srgb * 255 - rec.colors).max() < 0.5

    rotation = Rotation.from_quat(channels["rotation"]).as_matrix()
    assert (channels["rotation"][1:] * channels["rotation"][:-1]).sum(1).min() > 0
    np.testing.assert_allclose(flip @ rotation @ flip, rec.camera_to_world[:, :3, :3], atol=1e-6)
    np.testing.assert_allclose(
        channels["translation"] @ flip, rec.camera_to_world[:, :3, 3], atol=1e-6
    )
    # A point's image by glTF's camera, which looks along -z, y up, through the middle.
    lens = gltf.cameras[0].perspective
    t, n = 1, 7
    x, y, z = rotation[t].T @ (corners[t, n].mean(0) - channels["translation"][t])
    v = SIZE[0] / 2 * (1 - y / -z / np.tan(lens.yfov / 2)) - 0.5
    u = SIZE[1] / 2 * (1 + x / -z / np.tan(lens.yfov / 2) / lens.aspectRatio) - 0.5
    np.testing.assert_allclose((u - 159.5 + 160.5, v), rec.reprojection[t, n], atol=1e-3)


def test_gltf_mesh_in_trimesh(rec, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    rec.to_gltf(tmp_path / "clip.glb")
    mesh = trimesh.load(tmp_path / "clip.glb").geometry["points"]
    assert len(mesh.faces) == 8 * N
    assert mesh.is_watertight
    assert mesh.volume > 0  # faces look outwards


def test_exports_are_light():
    code = "import fasttracks.export, sys; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_formats_have_names_of_their_own():
    endings = [form.ending for form in FORMATS.values()]
    assert len(set(endings)) == len(endings)


def test_splat(rec, tmp_path):
    """One camera and the very frames; nerfstudio's poses project points where they belong."""
    import json

    import cv2

    pycolmap = pytest.importorskip("pycolmap")
    frames = np.random.default_rng(1).integers(0, 256, (T, *SIZE, 3), dtype=np.uint8)
    focal = np.linspace(0.99, 1.01, T, dtype=np.float32)[:, None]
    intrinsics = rec.intrinsics.copy()
    intrinsics[:, (0, 1), (0, 1)] *= focal
    replace(rec, intrinsics=intrinsics).to_splat(tmp_path / "clip", frames)
    model = pycolmap.Reconstruction(tmp_path / "clip/sparse/0")
    assert len(model.cameras) == 1
    names = {image.name for image in model.images.values()}
    assert names == set(os.listdir(tmp_path / "clip/images"))
    for t in range(T):
        image = cv2.imread(str(tmp_path / f"clip/images/frame_{t:05d}.png"))
        np.testing.assert_array_equal(image[..., ::-1], frames[t])

    known = json.loads((tmp_path / "clip/transforms.json").read_text())
    for t, frame in enumerate(known["frames"]):
        local = np.linalg.inv(frame["transform_matrix"]) @ np.c_[rec.points[t], np.ones(N)].T
        x, y, z = local[:3] * np.array([1, -1, -1])[:, None]
        ahead = z > 1
        pixels = np.c_[known["fl_x"] * x / z + known["cx"], known["fl_y"] * y / z + known["cy"]]
        expected = rec.reprojection[t] + 0.5
        np.testing.assert_allclose(pixels[ahead], expected[ahead], atol=0.05)
    trimesh = pytest.importorskip("trimesh")
    cloud = trimesh.load(tmp_path / "clip" / known["ply_file_path"])
    assert len(cloud.vertices) == (~rec.moving & rec.visibility.any(0)).sum()
    for wrong in (frames[1:], frames[:, 1:], frames.astype(float)):
        with pytest.raises(InputError, match="frames"):
            rec.to_splat(tmp_path / "other", wrong)


def test_names_are_checked_as_on_the_command_line(rec, tmp_path):
    for write, name in (
        (rec.to_gltf, "a.gltf"),
        (rec.to_ply, "a.npz"),
        (rec.to_tum, "a"),
        (rec.to_kitti, "a.npz"),
        (rec.to_colmap, "a.zip"),
    ):
        with pytest.raises(InputError, match="expected"):
            write(tmp_path / name)
    assert not list(tmp_path.iterdir())
