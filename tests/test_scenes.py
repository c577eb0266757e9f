"""Generated scenes: their truth is the truth, whatever was drawn."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fasttracks.scenes import generator, library, rays
from fasttracks.scenes.sampling import Draw, multiply, rotate, rotate_back
from fasttracks.scenes.variety import ASSUMED_FOCAL, CASUAL, TRIPOD, WALK, Variety

B, T, N = 6, 20, 60
RIGID = Variety(soft=0.0, relief=(0.0, 0.0))
PERFECT = replace(RIGID, clean=1.0)


@pytest.fixture(scope="module")
def stock() -> library.Library:
    return library.load(None, "train", "cpu")


def make(stock: library.Library, seed: int = 0, variety: Variety | None = None) -> generator.Clips:
    chance = generator.seeded(seed, stock.split, "cpu")
    return generator.generate(B, T, N, library=stock, generator=chance, variety=variety)


def world(clips: generator.Clips) -> Tensor:
    """World points (B, T, N, 3) in float64."""
    camera, rotation = clips.points_camera.double(), clips.rotation.double()
    return rotate(rotation[:, :, None], camera) + clips.position.double()[:, :, None]


def values(clips: generator.Clips) -> dict[str, Tensor]:
    return {f.name: getattr(clips, f.name) for f in fields(clips)}


def test_seed_decides(stock: library.Library) -> None:
    first, again, other = make(stock, 1), make(stock, 1), make(stock, 2)
    for name, value in values(first).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(first.tracks, other.tracks)


@pytest.mark.parametrize(("frames", "tracks"), [(1, 1), (2, 17), (111, 3), (15, 300), (1, 700)])
def test_any_shape_is_finite(stock: library.Library, frames: int, tracks: int) -> None:
    chance = generator.seeded(3, "train", "cpu")
    clips = generator.generate(3, frames, tracks, library=stock, generator=chance)
    assert clips.tracks.shape == (3, frames, tracks, 3)
    for name, value in values(clips).items():
        assert value.isfinite().all(), name


def test_what_is_visible(stock: library.Library) -> None:
    clips = make(stock, 4, PERFECT)
    depth = clips.points_camera[..., 2]
    assert (depth[clips.visible] > 0).all()
    assert (
        (clips.truth_tracks.abs() <= clips.extent[:, None, None]).all(-1) | ~clips.visible
    ).all()
    # Every track starts at what its camera sees.
    assert clips.visible.gather(1, clips.query[:, None]).float().mean() > 0.99
    assert 0.4 < clips.visible.float().mean() < 0.95

    image = clips.focal[:, None, None, None] * clips.points_camera[..., :2] / depth[..., None]
    front = depth > 0.01
    torch.testing.assert_close(clips.truth_tracks[front], image[front])
    half_pixels = clips.extent * clips.pixels[:, None]
    assert ((half_pixels.amax(1) >= 180) & (half_pixels.amax(1) <= 640)).all()


def test_cameras_are_rigid_and_above_ground(stock: library.Library) -> None:
    clips = make(stock, 5)
    identity = torch.eye(3).expand_as(clips.rotation)
    torch.testing.assert_close(clips.rotation.mT @ clips.rotation, identity, atol=1e-5, rtol=0)
    assert (torch.linalg.det(clips.rotation) > 0).all()
    assert (clips.position[..., 2] > 0).all()


def test_moving_tells_what_moves(stock: library.Library) -> None:
    clips = make(stock, 6)
    points = world(clips)
    travel = (points - points[:, :1]).norm(dim=-1).amax(1)
    scale = clips.points_camera.norm(dim=-1).amax((1, 2))[:, None]
    assert 0.02 < clips.moving.float().mean() < 0.9
    assert (travel > 1e-5 * scale)[clips.moving].all()
    assert (travel < 1e-3 * scale)[~clips.moving].all()
    assert not make(stock, 6, Variety(frozen=1.0)).moving.any()


def test_bones_are_rigid(stock: library.Library) -> None:
    """Points on one bone keep their distances, those on different bones don't."""
    with torch.no_grad():
        scene, _ = generator._shoot(
            B, T, N, stock, Draw(generator.seeded(7, "train", "cpu")), PERFECT
        )
    rotation = scene.solids.rotation
    identity = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(multiply(rotation.mT, rotation), identity, atol=1e-4, rtol=0)
    joint = scene.solids.position[:, :, : scene.body_bones].double()
    parent = scene.parent[:, : scene.body_bones]
    clip = torch.arange(B)[:, None]
    arm = rotate_back(
        rotation.transpose(1, 2)[clip, parent].double(),
        joint.transpose(1, 2) - joint.transpose(1, 2)[clip, parent],
    )
    drift = (arm - arm[:, :, :1]).norm(dim=-1).amax(-1) / scene.distance[:, None]
    here = joint[:, 0, :, 2] > -100  # those that the clip has
    assert drift[here].max() < 1e-5


def test_visibility_by_walking_the_lines_of_sight(stock: library.Library) -> None:
    """Another way to see: is any of 1000 places between camera and point inside a solid?"""
    # Skin lies in or over the cones that hide; here points are to be on them.
    bare = replace(stock.skeletons, skin=torch.zeros_like(stock.skeletons.skin))
    stock = replace(stock, skeletons=bare)
    seed = Draw(generator.seeded(8, "train", "cpu"))
    with torch.no_grad():
        scene, clips = generator._shoot(B, T, N, stock, seed, PERFECT)
    seen = rays.in_sight(
        scene.solids, scene.planes, scene.position, world(clips).float(), torch.zeros(B, N, 1)
    )
    solids, checked, hidden = scene.solids, 0, 0
    points, rng = world(clips).numpy(), np.random.default_rng(0)
    share = np.linspace(0, 1, 1001)[1:-1, None]
    rows = [rng.permutation(np.argwhere(seen.numpy() == value))[:100] for value in (False, True)]
    for b, t, n in np.concatenate(rows):
        eye = scene.position[b, t].double().numpy()
        line = eye + share * (points[b, t, n] - eye)
        depth = _depth_inside(solids, b, t, line)
        # Hits right at the point are the surface it is on; grazes are within rounding.
        length = np.linalg.norm(points[b, t, n] - eye)
        clearly = depth[share[:, 0] < 1 - 3e-3].max()
        if abs(clearly) < 2e-3 * length:
            continue
        normal, offset = scene.planes.normal[b].numpy(), scene.planes.offset[b].numpy()
        beyond = (normal @ points[b, t, n] - offset).max()
        if abs(beyond - rays.TOLERANCE * length) < 1e-4 * length:
            continue
        expected = clearly <= 0 and beyond <= rays.TOLERANCE * length
        assert bool(seen[b, t, n]) == expected, (b, t, n, clearly, beyond)
        checked, hidden = checked + 1, hidden + (not expected)
    assert checked > 150
    assert hidden > 60


def _depth_inside(solids: rays.Solids, b: int, t: int, places: np.ndarray) -> np.ndarray:
    """How deep places (P, 3) lie inside any solid, negative outside, up to the scales."""
    rotation = solids.rotation[b, t].double().numpy()
    away = places[:, None] - solids.position[b, t].double().numpy()
    scale = solids.scale[b].double().numpy()
    local = np.einsum("mij,pmi->pmj", rotation, away) / scale
    cones = solids.cones[b].double().numpy()
    count = len(cones)
    length, start, end = cones.T
    # A rounded cone is all balls from one end to the other; this one reaches the place furthest.
    x, y, z = (local[:, :count, i] for i in range(3))
    slope = (start - end) / length
    along = z / length - np.hypot(x, y) / length * slope / np.sqrt(1 - slope**2)
    along = np.clip(along, 0, 1)
    reach = start + along * (end - start) - np.sqrt(x**2 + y**2 + (z - along * length) ** 2)
    cone = (reach * np.minimum(scale[:count, :2].min(1), 1)).max(1)
    box = ((1 - np.abs(local[:, count:])) * scale[count:]).min(-1).max(1)
    return np.maximum(cone, box)


def test_trackers_fail_and_truth_stays(stock: library.Library) -> None:
    clean, spoiled = make(stock, 9, PERFECT), make(stock, 9, replace(RIGID, clean=0.0))
    for name, value in values(clean).items():
        if name != "tracks":
            assert torch.equal(value, getattr(spoiled, name)), name
    observed = clean.tracks[..., 2] > 0
    assert torch.equal(observed, clean.visible)
    assert torch.equal(clean.tracks[..., :2][observed], clean.truth_tracks[observed])

    both = observed & (spoiled.tracks[..., 2] > 0)
    error = (spoiled.tracks[..., :2] - clean.truth_tracks).norm(dim=-1)[both] * 500
    assert 0.2 < error.median() < 4
    assert error.max() > 20
    assert (spoiled.tracks[..., :2].abs() <= 1.5 * spoiled.extent[:, None, None] + 1e-6).all()
    assert 0.2 < (spoiled.tracks[..., 2] > 0).float().mean() < observed.float().mean()


def test_unknown_focal_length(stock: library.Library) -> None:
    known = make(stock, 10, Variety(unknown_focal=0.0))
    assert (known.focal == 1).all()
    guessed = make(stock, 10, Variety(unknown_focal=1.0))
    sides = guessed.focal * ASSUMED_FOCAL
    torch.testing.assert_close(guessed.extent.amax(1), torch.full((B,), 0.5 / ASSUMED_FOCAL))
    assert ((sides > 0.59) & (sides < 2.21)).all()
    # Nothing else depends on what is assumed.
    torch.testing.assert_close(guessed.points_camera, known.points_camera)
    scale = torch.cat([guessed.focal[:, None].expand(-1, 2), torch.ones(B, 1)], 1)[:, None, None]
    torch.testing.assert_close(guessed.tracks, known.tracks * scale, atol=1e-5, rtol=1e-5)
    # No known lens makes tracks as wide as a guessed one does.
    for variety in (CASUAL, TRIPOD, WALK, Variety()):
        assert 0.85 * variety.focal[0] > ASSUMED_FOCAL


def test_splits_share_nothing(stock: library.Library) -> None:
    held_out = library.load(None, "validation", "cpu")
    assert not torch.equal(stock.skeletons.shape, held_out.skeletons.shape)
    assert not torch.equal(make(stock).tracks, make(held_out).tracks)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Twelve invented recordings of each sort, in the files' form."""
    rng = np.random.default_rng(0)
    limbs = "Collar Shldr ForeArm Hand Mid2 Buttock Thigh Shin Foot"
    names = ["hip", "abdomen", "chest", "neck", "head", "leftEye", "rightEye"]
    names += [side + limb for side in "rl" for limb in limbs.split()]
    place = rng.normal(size=(1, len(names), 3)) * 300 + [0, 1000, 0]
    motion = {
        f"dance/{i:02}": (place + 20 * rng.normal(size=(40 + i, len(names), 3))).astype(np.int16)
        for i in range(12)
    }
    np.savez(tmp_path / "mocap_cmu.npz", names=np.array(names), parents=0, **motion)
    pose = np.concatenate([np.eye(3), np.zeros((3, 1))], 1)[None].repeat(16, 0)
    paths = {f"re10k/{i:02}/P": pose.astype(np.float32) for i in range(12)}
    tum = {"t": np.arange(90) / 30, "C": np.zeros((90, 3), np.float32)}
    tum["R_c2w"] = np.eye(3, dtype=np.float32)[None].repeat(90, 0)
    tum = {f"tum_fr1_xyz/{key}": value for key, value in tum.items()}
    np.savez(tmp_path / "camera_paths.npz", **paths, **tum)
    return tmp_path


def test_recordings(recordings: Path) -> None:
    train, held_out = (library.load(recordings, split, "cpu") for split in library.SPLITS)
    assert not set(train.names) & set(held_out.names)
    assert len(train.names) + len(held_out.names) == 12 + 12 + 2
    clips = make(train, 11, Variety(person=1.0, cameras=(0, 0, 0, 0, 0, 0, 1)))
    for name, value in values(clips).items():
        assert value.isfinite().all(), name
    assert train.people is not None
    length = train.people.rotation.det()
    torch.testing.assert_close(length, torch.ones_like(length), atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    stock = library.load(None, "train", "cuda")
    chance = generator.seeded(0, "train", "cuda")
    clips = generator.generate(2, 8, 16, library=stock, generator=chance)
    for name, value in values(clips).items():
        assert value.is_cuda, name
        assert value.isfinite().all(), name


@pytest.mark.gpu
def test_sight_on_a_gpu_is_that_on_a_cpu() -> None:
    stock = library.load(None, "train", "cuda")
    draw = Draw(generator.seeded(0, "train", "cuda"))
    scene, clips = generator._shoot(4, 20, 60, stock, draw, Variety())
    points = clips.points_camera @ clips.rotation.mT + clips.position[:, :, None]
    slack = points.new_zeros(4, 60, scene.solids.scale.shape[1])
    seen = rays.in_sight(scene.solids, scene.planes, scene.position, points, slack)
    solids = rays.Solids(*(value.cpu() for value in scene.solids))
    planes = rays.Planes(*(value.cpu() for value in scene.planes))
    there = rays.in_sight(solids, planes, *(x.cpu() for x in (scene.position, points, slack)))
    assert (seen.cpu() == there).float().mean() > 0.99  # some lie on what they are seen through


def test_seeds_differ_beyond_32_bits():
    seeds = [
        (0, "train"),
        (0, "validation"),
        (1, "train"),
        (1 << 32, "train"),
        ((1 << 32) + 1, "train"),
    ]
    drawn = [torch.rand(3, generator=generator.seeded(*s, "cpu")) for s in seeds]
    assert torch.equal(drawn[0], torch.rand(3, generator=generator.seeded(*seeds[0], "cpu")))
    assert len({tuple(d.tolist()) for d in drawn}) == len(seeds)
