"""The step of bundle adjustment's cameras and points, against closed forms and scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from seen_points import (
    DOUBLE,
    disturbed,
    evidence,
    image,
    world,
)

from fasttracks.geometry import exponential, logarithm
from fasttracks.refine.cameras import adjust, cost, dense, moved, normal_equations, solve
from fasttracks.refine.positive_definite import solve_chain


def test_exponential_and_logarithm_are_inverse():
    vector = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), **DOUBLE) * 3 - 1.5
    assert torch.allclose(logarithm(exponential(vector)), vector, atol=1e-9)
    small = 1e-7 * vector
    assert torch.allclose(logarithm(exponential(small)), small, atol=1e-12)
    turn = exponential(torch.tensor([0.0, 0.0, math.pi / 2], **DOUBLE))
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], **DOUBLE)
    assert torch.allclose(turn, quarter, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(
    frames=st.integers(1, 5),
    tracks=st.integers(1, 6),
    seed=st.integers(0, 99),
    noise=st.sampled_from([0.001, 0.1]),
)
def test_gradients_are_those_of_the_cost(frames, tracks, seed, noise):
    truth, g = world(frames, tracks, batch=2, seed=seed)
    e = evidence(truth, g, noise, seen=0.8)
    # The camera-to-camera terms are exact to first order in what they leave.
    scene = disturbed(truth, g, turn=1e-4)
    normal = normal_equations(scene, e)
    zero = torch.zeros(2, 6 * frames + 1, **DOUBLE), torch.zeros(2, tracks, 3, **DOUBLE)
    by_camera, by_point = torch.autograd.functional.jacobian(
        lambda *step: cost(moved(scene, *step), e).sum(), zero
    )
    assert torch.allclose(normal.cameras_right, -by_camera / 2, rtol=1e-6, atol=1e-4)
    assert torch.allclose(normal.points_right, -by_point / 2, rtol=1e-6, atol=1e-9)


def test_normal_equations_are_half_the_second_derivatives_where_nothing_is_left():
    truth, g = world(4, 6)
    e = evidence(truth, g, seen=0.8)
    normal = normal_equations(truth, e)
    zero = torch.zeros(1, 25, **DOUBLE), torch.zeros(1, 6, 3, **DOUBLE)
    (cc, cp), (_, pp) = torch.autograd.functional.hessian(
        lambda *step: cost(moved(truth, *step), e)[0], zero
    )
    scale = normal.cameras.abs().max()
    assert torch.allclose(dense(normal)[0], cc[0, :, 0] / 2, atol=1e-9 * scale)
    assert torch.allclose(normal.mixed[0], cp[0, :, 0] / 2, atol=1e-9 * scale)
    blocks = pp[0, :, :, 0].diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    assert torch.allclose(normal.points[0], blocks / 2, atol=1e-9 * scale)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 8, 13])
def test_a_chain_is_solved_as_the_whole_system_is(frames):
    g = torch.Generator().manual_seed(frames)
    x = torch.randn(2, frames, 3, 6, generator=g, **DOUBLE)
    own = x @ x.mT + 3 * torch.eye(3, **DOUBLE)
    beside = 0.3 * torch.randn(2, frames - 1, 3, 3, generator=g, **DOUBLE)
    right = torch.randn(2, frames, 3, 2, generator=g, **DOUBLE)
    whole = torch.zeros(2, frames, 3, frames, 3, **DOUBLE)
    whole.diagonal(dim1=1, dim2=3).copy_(own.permute(0, 2, 3, 1))
    for offset, blocks in ((1, beside), (-1, beside.mT)) if frames > 1 else ():
        whole.diagonal(offset, dim1=1, dim2=3).copy_(blocks.permute(0, 2, 3, 1))
    expected = torch.linalg.solve(whole.flatten(3).flatten(1, 2), right.flatten(1, 2))
    assert torch.allclose(solve_chain(own, beside, right).flatten(1, 2), expected)


@pytest.mark.parametrize(("frames", "tracks"), [(5, 6), (12, 8), (20, 30)])
def test_either_elimination_gives_the_same_step(frames, tracks):
    truth, g = world(frames, tracks, batch=2)
    e = evidence(truth, g, noise=1e-3, seen=0.8)
    normal = normal_equations(disturbed(truth, g, 0.02, 0.2, 0.1), e)
    # As many tracks again, never seen, have the points eliminated instead of the cameras.
    more = normal._replace(
        mixed=torch.cat([normal.mixed, normal.mixed.new_zeros(2, 6 * frames + 1, 99, 3)], 2),
        points=torch.cat([normal.points, normal.points.new_zeros(2, 99, 3, 3)], 1),
        points_right=torch.cat([normal.points_right, normal.points_right.new_zeros(2, 99, 3)], 1),
    )
    free, damping = torch.tensor([1.0, 0.0], **DOUBLE), torch.full((2,), 1e-4, **DOUBLE)
    step, shift = solve(normal, free, damping)
    expected, moved_points = solve(more, free, damping)
    assert torch.allclose(step, expected, rtol=1e-6, atol=1e-9)
    assert torch.allclose(shift, moved_points[:, :tracks], rtol=1e-6, atol=1e-9)
    assert (step[:, :6] == 0).all()
    assert step[1, -1] == 0


def test_agrees_with_scipy():
    truth, g = world(5, 20, seed=3)
    # Offsets far below the scale: the cost is a sum of squares, which SciPy minimises as well.
    e = evidence(truth, g, noise=2e-3, scale=1.0, seen=0.85)
    e = e._replace(depth_weight=1e-6 * e.weight, turn_weight=0 * e.turn_weight)
    e = e._replace(step_weight=0 * e.step_weight, focal_weight=torch.full((1,), 1e-3, **DOUBLE))
    start = disturbed(truth, g)

    def residuals(x):
        step = torch.zeros(1, 31, **DOUBLE)
        step[0, 6:] = torch.from_numpy(x[:25])
        scene = moved(start, step, torch.from_numpy(x[25:]).view(1, 20, 3))
        camera, positions = image(scene)
        parts = [
            e.weight[..., None] * (positions - e.positions),
            e.depth_weight.sqrt() * (camera[..., 2].log() - e.log_depth),
            e.focal_weight.sqrt() * (scene.log_focal - e.log_focal),
        ]
        return torch.cat([part.flatten() for part in parts]).numpy()

    best = least_squares(residuals, np.zeros(85), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    ours = adjust(start, e, torch.full((1,), 1e-3, **DOUBLE), 60).scene
    assert math.isclose(cost(ours, e).item(), 2 * best.cost, rel_tol=1e-4)
    step = torch.zeros(1, 31, **DOUBLE)
    step[0, 6:] = torch.from_numpy(best.x[:25])
    theirs = moved(start, step, torch.from_numpy(best.x[25:]).view(1, 20, 3))
    assert torch.allclose(image(ours)[1], image(theirs)[1], atol=1e-5)
    assert torch.allclose(ours.rotation, theirs.rotation, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 99), outliers=st.sampled_from([0.0, 0.3]), seen=st.sampled_from([0.5, 1])
)
def test_no_step_raises_the_cost(seed, outliers, seen):
    truth, g = world(6, 15, batch=2, seed=seed)
    e = evidence(truth, g, noise=1e-3, seen=seen)
    astray = torch.rand(2, 1, 15, 1, generator=g) < outliers
    e = e._replace(positions=e.positions + astray * torch.randn(2, 6, 15, 2, generator=g))
    scene, damping = disturbed(truth, g, 0.2, 1.0, 0.5), torch.full((2,), 1e-3, **DOUBLE)
    last = cost(scene, e)
    for _ in range(8):
        scene, damping, _ = adjust(scene, e, damping, 1)
        now = cost(scene, e)
        assert (now <= last).all()
        last = now
