"""What a reconstruction says of its clip: which tracks move, and what parallax there is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fasttracks
from fasttracks.parallax import LEAST, ray_spread
from fasttracks.performance.sample import CLIP
from fasttracks.reconstruction import Reconstruction

T, N = 8, 200
rng = np.random.default_rng(0)


def log_normal(median: float, deviation: float, count: int) -> np.ndarray:
    return median * np.exp(deviation * rng.standard_normal(count))


def reconstruction(gamma: np.ndarray, step: float = 1.0) -> Reconstruction:
    """N still points 10 away before a camera that goes sideways by so much a frame, and γ."""
    pose = np.tile(np.eye(4), (T, 1, 1))
    pose[:, 0, 3] = step * np.arange(T)
    points = rng.uniform((-3, -3, 9), (3, 3, 11), (N, 3))
    local = points - pose[:, None, :3, 3]
    pixels = 500 * local[..., :2] / local[..., 2:]
    camera = np.array([[500.0, 0, 0], [0, 500, 0], [0, 0, 1]])
    return Reconstruction(
        points=np.tile(points, (T, 1, 1)),
        points_camera=local,
        camera_to_world=pose,
        intrinsics=np.tile(camera, (T, 1, 1)),
        reprojection=pixels,
        basis=points[None],
        coefficients=np.ones((T, 1)),
        motion=gamma,
        tracks=pixels,
        visibility=np.ones((T, N), bool),
    )


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.8])
def test_as_many_move_as_do(share):
    moves = np.arange(N) < share * N
    gamma = np.where(moves, log_normal(0.05, 0.4, N), log_normal(0.002, 0.4, N))
    rec = reconstruction(gamma)
    assert (rec.moving == moves).mean() > 0.99
    there = replace(rec, motion=torch.tensor(gamma)).moving
    assert there.dtype == torch.bool
    assert there.tolist() == rec.moving.tolist()


@pytest.mark.parametrize("median", [0.001, 0.005, 0.05])
@pytest.mark.parametrize("deviation", [0.0, 0.3, 0.6])
def test_nothing_moves_where_all_is_alike(median, deviation):
    assert reconstruction(log_normal(median, deviation, N)).moving.mean() < 0.01


def test_a_few_that_are_slow_stand_out():
    moves = np.arange(N) < 10
    gamma = np.where(moves, log_normal(0.008, 0.2, N), log_normal(0.0015, 0.2, N))
    assert reconstruction(gamma).moving.tolist() == moves.tolist()


def test_what_is_seen_once_does_not_move():
    gamma = np.where(np.arange(N) < 60, 0.1, 0.002)
    rec = reconstruction(gamma)
    rec.visibility[1:, :30] = False
    assert rec.moving.tolist() == [False] * 30 + [True] * 30 + [False] * (N - 60)
    rec.visibility[1:] = False
    assert not rec.moving.any()
    assert np.isnan(rec.parallax)


def test_parallax_is_the_spread_of_views():
    gamma = np.full(N, 0.002)
    # Steps of 1 seen from 9 to 11 away, up to 3.5 to either side: by 12.9° to 10.5° on the axis.
    assert 10 < reconstruction(gamma).parallax < 15
    assert reconstruction(gamma, 0.01).parallax == pytest.approx(
        reconstruction(gamma, 0.001).parallax * 10, rel=0.05
    )
    assert reconstruction(gamma, 0.0).parallax < 1e-3 < LEAST < reconstruction(gamma, 0.1).parallax


def test_what_moves_has_no_say_in_parallax():
    gamma = np.where(np.arange(N) < 80, 0.1, 0.002)
    rec = reconstruction(gamma, 0.001)
    rec.basis[0, :80, 2] = 0.1  # close by, where rays would spread
    assert rec.parallax < LEAST


def test_ray_spread_in_numpy_and_torch():
    points, position = rng.normal((0, 0, 9), 1, (2, 5, 3)), rng.normal(0, 1, (2, 4, 3))
    seen = rng.random((2, 4, 5)) < 0.7
    here = ray_spread(points, position, seen)
    there = ray_spread(*(torch.tensor(v) for v in (points, position)), torch.tensor(seen).double())
    np.testing.assert_allclose(there.numpy(), here, atol=1e-9)
    rays = points[:, None] - position[:, :, None]
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    n, some = 3, seen[0, :, 3]
    mean = rays[0, some, n].mean(0)
    expected = np.sqrt((np.linalg.norm(rays[0, some, n] - mean, axis=-1) ** 2).mean())
    assert here[0, n] == pytest.approx(expected)


def test_the_demo_s_sheep_move():
    """A clip without parallax in which nothing moves fast: nearly half of the tracks are theirs."""
    clip = fasttracks.Tracks.load(CLIP)
    rec = fasttracks.reconstruct(
        clip.tracks[:, ::9], clip.visibility[:, ::9], image_size=clip.image_size, device="cpu"
    )
    assert 0.3 < rec.moving.mean() < 0.6
