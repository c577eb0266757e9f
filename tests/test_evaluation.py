"""Metrics against closed forms and against evo."""

import math

import numpy as np
import pytest
import torch
from helpers import tiny_network

import fasttracks
from fasttracks import InputError, Tracks
from fasttracks.evaluation.clips import evaluate, load_clip, save_clip
from fasttracks.evaluation.metrics import Estimate, Truth, align, flat_guess, metrics
from fasttracks.geometry import exponential
from fasttracks.scenes.generator import generate, seeded
from fasttracks.scenes.library import load as load_library


def scene(frames=12, tracks=30, batch=2, seed=0):
    """Random still points and a smooth random camera, with the truth as the estimate."""
    g = torch.Generator().manual_seed(seed)
    world = torch.randn(batch, 1, tracks, 3, generator=g, dtype=torch.float64)
    world = world + torch.tensor([0.0, 0.0, 8.0])
    position = 0.1 * torch.randn(batch, frames, 3, generator=g, dtype=torch.float64).cumsum(1)
    rotation = exponential(
        0.05 * torch.randn(batch, frames, 3, generator=g, dtype=torch.float64).cumsum(1)
    )
    points = (world - position[:, :, None]) @ rotation
    tracks_ = points[..., :2] / points[..., 2:]
    visible = torch.rand(batch, frames, tracks, generator=g) < 0.8
    moving = torch.rand(batch, tracks, generator=g) < 0.3
    truth = Truth(points, rotation, position, visible, moving, tracks_, torch.ones(batch))
    return Estimate(points, rotation, position, tracks_), truth


def test_the_truth_in_another_frame_and_scale_is_perfect():
    estimate, truth = scene()
    turn, shift = exponential(torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)), 7.0
    moved = Estimate(
        0.3 * estimate.points_camera,
        turn @ estimate.rotation,
        0.3 * (estimate.position @ turn.mT) + shift,
        estimate.projection,
    )
    perfect = {"delta": 1, "delta_moving": 1, "apd": 100, "aj": 100}
    for name, value in metrics(moved, truth).items():
        expected = torch.full((2,), float(perfect.get(name, 0)), dtype=torch.float64)
        assert torch.allclose(value.double(), expected, atol=1e-5), name


def test_closed_forms():
    estimate, truth = scene()
    # Half of the depths 10 % too long: the median scale leaves either half as it is.
    points = estimate.points_camera.clone()
    points[:, :, truth.moving[0]] *= 2.0
    found = metrics(estimate._replace(points_camera=points), truth)
    assert (found["absrel"] > 0.1).all()
    assert (found["delta"] < 1).all()

    shifted = estimate._replace(projection=estimate.projection + torch.tensor([3.0, 4.0]) / 525)
    assert torch.allclose(metrics(shifted, truth)["reprojection"], torch.tensor(5.0), atol=1e-4)

    # One degree more about the camera's own y in each frame than in the one before.
    steps = torch.arange(12, dtype=torch.float64)[:, None] * math.radians(1)
    drift = exponential(steps * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    still = torch.eye(3, dtype=torch.float64).expand_as(truth.rotation)
    turned = estimate._replace(rotation=drift.expand_as(still))
    rpe = metrics(turned, truth._replace(rotation=still))["rpe_rotation"]
    assert torch.allclose(rpe, torch.ones(2, dtype=torch.float64), atol=1e-9)

    flat = flat_guess(truth)["absrel"]
    depth = truth.points_camera[0, ..., 2]
    expected = []
    for t in range(12):
        seen = depth[t, truth.visible[0, t]]
        expected.append(((seen.median() - seen).abs() / seen).mean())
    assert torch.allclose(flat[0].double(), torch.stack(expected).mean(), rtol=1e-5)


def test_clips_without_moving_points_have_no_moving_error():
    estimate, truth = scene()
    found = metrics(estimate, truth._replace(moving=torch.zeros_like(truth.moving)))
    assert found["absrel_moving"].isnan().all()
    assert not found["absrel"].isnan().any()


def test_align_recovers_a_similarity():
    g = torch.Generator().manual_seed(3)
    source = torch.randn(4, 9, 3, generator=g, dtype=torch.float64)
    turn = exponential(torch.randn(4, 3, generator=g, dtype=torch.float64))
    target = 2.5 * source @ turn.mT + torch.tensor([1.0, -2.0, 0.5])
    scale, rotation, shift = align(source, target)
    assert torch.allclose(scale, torch.full((4,), 2.5, dtype=torch.float64))
    assert torch.allclose(rotation, turn)
    assert torch.allclose(shift, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).expand(4, 3))


def test_trajectory_metrics_agree_with_evo():
    evo_metrics = pytest.importorskip("evo.core.metrics")
    trajectory = pytest.importorskip("evo.core.trajectory")
    estimate, truth = scene(batch=1, seed=5)
    noise = torch.Generator().manual_seed(1)
    rotation = truth.rotation @ exponential(
        0.02 * torch.randn(1, 12, 3, generator=noise, dtype=torch.float64)
    )
    position = 0.4 * truth.position + 0.01 * torch.randn(
        1, 12, 3, generator=noise, dtype=torch.float64
    )
    found = metrics(estimate._replace(rotation=rotation, position=position), truth)

    def path(rotation, position):
        poses = np.tile(np.eye(4), (12, 1, 1))
        poses[:, :3, :3], poses[:, :3, 3] = rotation[0], position[0]
        return trajectory.PosePath3D(poses_se3=list(poses))

    target, guess = path(truth.rotation, truth.position), path(rotation, position)
    guess.align(target, correct_scale=True)
    length = target.path_length

    def rmse(metric):
        metric.process_data((target, guess))
        return metric.get_statistic(evo_metrics.StatisticsType.rmse)

    relation = evo_metrics.PoseRelation
    expected = {
        "ate": 100 * rmse(evo_metrics.APE(relation.translation_part)) / length,
        "rpe_position": 100 * rmse(evo_metrics.RPE(relation.translation_part)) / length,
        "rpe_rotation": rmse(evo_metrics.RPE(relation.rotation_angle_deg)),
    }
    for name, value in expected.items():
        assert math.isclose(found[name].item(), value, rel_tol=1e-6), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("true_points_camera", np.full((6, 20, 3), np.nan)),
        ("true_points_camera", np.zeros((6, 20, 2))),
        ("true_camera_to_world", np.zeros((6, 4, 4))),
        ("true_camera_to_world", np.tile(np.eye(4), (5, 1, 1))),
        ("true_intrinsics", np.diag([0.0, 1, 1])),
        ("true_intrinsics", np.tile(np.eye(3), (6, 1, 1))),
        ("true_visibility", np.full((6, 20), 2)),
        ("moving", np.zeros((20, 2), bool)),
        ("moving", np.full(20, "x")),
    ],
)
def test_truth_that_cannot_be(tmp_path, name, value):
    truth = {
        "true_points_camera": np.ones((6, 20, 3)),
        "true_camera_to_world": np.tile(np.eye(4), (6, 1, 1)),
        "true_intrinsics": np.diag([100.0, 100, 1]),
        "true_visibility": np.ones((6, 20), bool),
        "moving": np.zeros(20, bool),
    }
    tracks = np.random.default_rng(0).uniform(0, 99, (6, 20, 2))
    np.savez(tmp_path / "right.npz", tracks=tracks, **truth)
    assert load_clip(tmp_path / "right.npz")[1].points_camera.shape == (1, 6, 20, 3)
    np.savez(tmp_path / "wrong.npz", tracks=tracks, **truth | {name: value})
    with pytest.raises(InputError, match=f"{name}"):
        load_clip(tmp_path / "wrong.npz")


def test_clips_are_judged_from_their_files(tmp_path):
    library = load_library(None, "validation", "cpu")
    clip = generate(1, 6, 20, library=library, generator=seeded(0, "validation", "cpu"))
    pixels, focal, truth = 500.0, float(clip.focal[0]), clip.truth
    centre = 400.0
    positions = clip.tracks[0, ..., :2].numpy() * pixels + centre
    camera = np.array([[pixels * focal, 0, centre], [0, pixels * focal, centre], [0, 0, 1]])
    tracks = Tracks(positions, clip.tracks[0, ..., 2].numpy(), camera, (801, 801))
    save_clip(tmp_path / "a.npz", tracks, truth, camera)

    loaded, read, intrinsics = load_clip(tmp_path / "a.npz")
    assert np.array_equal(loaded.tracks, tracks.tracks)
    assert np.array_equal(intrinsics, camera)
    seen = truth.visible
    assert torch.allclose(read.tracks[seen].float(), truth.tracks[seen] / focal, atol=1e-4)

    network = tiny_network(dtype=torch.float32)
    (row,) = evaluate([tmp_path / "a.npz"], network)
    result = fasttracks.reconstruct(tracks, model=network)
    error = np.linalg.norm(
        result.reprojection - (centre + pixels * truth.tracks[0].numpy()), axis=-1
    )
    expected = error[seen[0].numpy()].mean() * 525 / (pixels * focal)
    assert math.isclose(row["reprojection"], expected, rel_tol=1e-3)
    assert math.isclose(row["flat absrel"], flat_guess(truth)["absrel"].item(), rel_tol=1e-4)

    tracks.save(tmp_path / "b.npz")
    with pytest.raises(fasttracks.InputError, match="lacks true_points_camera"):
        load_clip(tmp_path / "b.npz")
