"""Clips of any length: windows, how they are joined, and the adjustment of all together."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import tiny_network
from seen_points import disturbed, image, prediction, world

import fasttracks
from fasttracks.evaluation.metrics import align
from fasttracks.geometry import compose, exponential, rotation_angle
from fasttracks.long import assemble, joint
from fasttracks.long.join import Shared, join, nearest_rotation, weighted_median
from fasttracks.long.motion import fades
from fasttracks.long.windows import LONGEST, choose, look, shown, spans
from fasttracks.refine.cameras import Evidence, Scene, cost, normal_equations, solve

DOUBLE = {"dtype": torch.float64}


def moved(scene, scale, turn, shift):
    """The scene in another world."""
    return scene._replace(
        rotation=turn @ scene.rotation,
        position=scale * scene.position @ turn.mT + shift,
        points=scale * scene.points @ turn.mT + shift,
    )


def born_and_lost(frames, tracks, life=40):
    """Visibility (T, N) of tracks that live for about `life` frames, all along the clip."""
    first = torch.linspace(-life + 8, frames - 8, tracks).round().long()
    frame = torch.arange(frames)[:, None]
    return ((frame >= first) & (frame < first + life)).double()


@pytest.mark.parametrize("frames", [2, 50, 51, 75, 76, 400])
def test_windows_cover_every_frame_and_overlap(frames):
    parts = spans(frames)
    covered = np.zeros(frames, int)
    for part in parts:
        covered[part] += 1
    assert covered.min() >= 1
    assert {part.stop - part.start for part in parts} == {min(frames, 50)}
    assert all(b.start - a.start <= 25 for a, b in pairwise(parts))


@pytest.mark.parametrize("frames", [161, 170, 181, 230, 400])
def test_windows_fade_into_each_other(frames):
    fade = fades(spans(frames), torch.zeros((), dtype=torch.float64))
    assert fade.shape == (len(spans(frames)), frames)
    assert (fade >= 0).all()
    assert (fade.sum(0) - 1).abs().max() < 1e-12
    for part, row in zip(spans(frames), fade, strict=True):
        assert row.nonzero().min() >= part.start
        assert row.nonzero().max() < part.stop
        assert row.diff().abs().max() < 0.25


def test_every_track_is_shown_to_a_window():
    visibility = born_and_lost(120, 30)
    visibility[:, 3] = 0
    visibility[77, 3] = 1  # seen once
    visibility[:, 4] = 0  # never
    parts = spans(120)
    chosen = choose(visibility, parts)
    assert set(torch.cat(chosen).tolist()) == set(range(30))
    assert shown(visibility) == sum(50 * len(which) for which in chosen)
    sizes = {len(w.which) for w in look(lambda x: x, visibility[..., None].repeat(1, 1, 3), 8)}
    assert len(sizes) == 1
    assert sizes.pop() % 8 == 0


def test_weighted_median_is_that_of_repeated_values():
    values = torch.randn(7, 9, **DOUBLE)
    weight = torch.randint(0, 4, (7, 9)).double()
    weight[3] = 0
    found = weighted_median(values, weight)
    for row, w, one in zip(values, weight, found, strict=True):
        repeated = row.repeat_interleave(w.long())
        assert one == (repeated.sort().values[(len(repeated) - 1) // 2] if len(repeated) else 0)


def test_nearest_rotation_of_a_mean():
    turns = exponential(0.3 * torch.randn(20, 3, **DOUBLE))
    mean = turns.mean(0)
    u, _, vt = torch.linalg.svd(mean)
    assert rotation_angle(nearest_rotation(mean).mT @ (u @ vt)) < 1e-3
    assert torch.isfinite(nearest_rotation(torch.zeros(3, 3))).all()


def test_join_finds_the_similarity_in_spite_of_outliers():
    scene, g = world(25, 60)
    turn = exponential(torch.tensor([0.4, -0.2, 0.9], **DOUBLE))
    other = moved(scene, 1.7, turn, torch.tensor([3.0, -2, 5], **DOUBLE))
    points = other.points[0].clone()
    points[:12] += 4 * torch.randn(12, 3, generator=g, **DOUBLE)  # a fifth moved
    rotation = other.rotation[0].clone()
    rotation[:3] = exponential(torch.randn(3, 3, generator=g, **DOUBLE))
    fit = join(
        Shared(scene.rotation[0], scene.position[0], scene.points[0]),
        Shared(rotation, other.position[0], points),
        torch.ones(25, 60, **DOUBLE),
        torch.ones(25, **DOUBLE),
    )
    assert fit.similarity.scale == pytest.approx(1.7, rel=1e-2)
    assert torch.rad2deg(rotation_angle(fit.similarity.rotation.mT @ turn)) < 0.5
    off = fit.similarity.points(scene.points[0]) - other.points[0]
    assert off.norm(dim=-1).median() < 0.15  # of about 20 away
    assert fit.points == 60


def test_join_holds_the_scale_where_too_few_points_tell_it():
    scene, _ = world(10, 5)
    other = moved(scene, 2.0, torch.eye(3, **DOUBLE), torch.zeros(3, **DOUBLE))
    sides = [Shared(s.rotation[0], s.position[0], s.points[0]) for s in (scene, other)]
    weights = torch.ones(10, 5, **DOUBLE), torch.ones(10, **DOUBLE)
    assert join(*sides, *weights).similarity.scale == 1
    held = torch.tensor(0.7, **DOUBLE).log()
    assert join(*sides, *weights, held).similarity.scale == pytest.approx(0.7)


def evidence(scene, visibility, positions=None):
    """What a scene is held against, with priors that are felt."""
    batch, frames = scene.position.shape[:2]
    camera, seen = image(scene)
    steps = torch.eye(3, **DOUBLE).expand(batch, frames - 1, 3, 3)
    one = torch.ones(batch, **DOUBLE)
    return Evidence(
        seen if positions is None else positions,
        visibility[None],
        torch.full(scene.points.shape[:2], 1e-2, **DOUBLE),
        camera[..., 2].clamp(min=0.1).log() + 0.1,
        0.01 * visibility[None],
        steps,
        torch.zeros(batch, frames - 1, 3, **DOUBLE),
        torch.full((batch, frames - 1), 3.0, **DOUBLE),
        torch.full((batch, frames - 1), 2.0, **DOUBLE),
        0 * one,
        one,
        one,
    )


def test_joint_step_is_that_of_the_whole_system(monkeypatch):
    monkeypatch.setattr(joint, "_GROUP", 7)
    truth, g = world(30, 40, path=0.05)
    visibility = born_and_lost(30, 40, 12)
    _, positions = image(truth)
    start = disturbed(truth, g)
    e = evidence(start, visibility, positions)
    whole = joint.Joint(e)
    assert len(whole.groups) > 4
    assert whole.cost(start) == pytest.approx(float(cost(start, e)[0]), rel=1e-9)
    damping = torch.full((1,), 1e-3, **DOUBLE)
    expected = solve(normal_equations(start, e), e.focal_free, damping)
    found = whole._step(start, 1e-3)
    assert torch.allclose(found[0], expected[0], rtol=1e-5, atol=1e-8)
    assert torch.allclose(found[1], expected[1], rtol=1e-5, atol=1e-7)


def test_joint_adjustment_lowers_the_cost_to_the_truth():
    truth, g = world(60, 80, turn=0.01, path=0.1)
    visibility = born_and_lost(60, 80, 30)
    _, positions = image(truth)
    start = disturbed(truth, g, turn=0.01, shift=0.1, depth=0.05)
    e = evidence(truth, visibility, positions)
    e = e._replace(**{name: 0 * getattr(e, name) for name in ("depth_weight", "turn_weight")})
    e = e._replace(step_weight=0 * e.step_weight, focal_free=0 * e.focal_free)
    whole = joint.Joint(e)
    scene, _, gain = whole.adjust(start, 1e-4, 12)
    assert whole.cost(scene) < 1e-6 * whole.cost(start)
    assert 0 <= gain <= 1
    scale, turn, shift = align(scene.position, truth.position)
    off = scale * (scene.position @ turn.mT) + shift[:, None] - truth.position
    assert off.norm(dim=-1).max() < 1e-3


@pytest.fixture(scope="module")
def long_clip():
    """A scene, its tracks (T, N, 3), and a network that says about what is true of each window.

    It does so each time in a world of its own.
    """
    truth, g = world(120, 100, turn=0.004, path=0.05)
    visibility = born_and_lost(120, 100, 60)
    _, positions = image(truth)
    positions = positions + 3e-4 * torch.randn(positions.shape, generator=g, **DOUBLE)
    tracks = torch.cat([positions[0], visibility[..., None]], -1).float()
    parts = spans(120)
    windows = iter(list(zip(parts, choose(visibility, parts), strict=True)) * 3)

    def network(inputs):
        part, which = next(windows)
        scene = Scene(
            truth.rotation[:, part],
            truth.position[:, part],
            truth.log_focal,
            truth.points[:, which],
        )
        scene = disturbed(scene, g, turn=0.004, shift=0.05, depth=0.02)
        scale = 1 + 0.3 * torch.rand(1, generator=g, **DOUBLE)
        turn = exponential(0.5 * torch.randn(3, generator=g, **DOUBLE))
        scene = moved(scene, scale, turn, torch.randn(3, generator=g, **DOUBLE))
        said = prediction(scene, motion=torch.full((1, len(which)), 0.004, **DOUBLE))
        return type(said)(*(value.float() for value in said))

    return truth, tracks, network


def path_error(found, truth):
    """ATE in percent of the path."""
    scale, turn, shift = align(found.position, truth.position)
    off = scale * (found.position.double() @ turn.mT) + shift[:, None] - truth.position
    path = truth.position.diff(dim=1).norm(dim=-1).sum()
    return float(100 * off.square().sum(-1).mean().sqrt() / path)


def test_long_clips_are_joined_and_then_adjusted(long_clip):
    truth, tracks, network = long_clip
    known = torch.ones(1, dtype=torch.bool)
    joined, [nothing] = assemble.predict(network, tracks[None], known, refine=False)
    refined, [outcome] = assemble.predict(network, tracks[None], known, refine=True)
    assert nothing is None
    assert outcome == "converged"
    before, after = path_error(joined, truth), path_error(refined, truth)
    assert before < 3
    assert after < 0.2
    for p in (joined, refined):
        assert all(torch.isfinite(value).all() for value in p)
        again = compose(p.basis, p.coefficients)
        assert torch.allclose(again, p.points, atol=1e-4)
    seen = tracks[None, ..., 2] > 0
    error = (refined.projection - tracks[None, ..., :2]).norm(dim=-1)[seen]
    assert error.median() < 1e-3


def test_what_is_too_long_for_one_system_is_said(long_clip, monkeypatch):
    truth, tracks, network = long_clip
    monkeypatch.setattr(assemble, "TOGETHER", 100)
    known = torch.ones(1, dtype=torch.bool)
    joined, [outcome] = assemble.predict(network, tracks[None], known, refine=True)
    assert outcome == "over 100 frames, windows were adjusted each on its own"
    assert path_error(joined, truth) < 3


def test_reconstruct_takes_any_length():
    network = tiny_network(dtype=torch.float32)
    frames = LONGEST + 20
    g = np.random.default_rng(0)
    tracks = g.uniform(20, 80, (1, 12, 2)) + g.normal(0, 0.3, (frames, 12, 2)).cumsum(0)
    visible = born_and_lost(frames, 12, 90).numpy() > 0
    rec = fasttracks.reconstruct(tracks, visible, model=network, image_size=(200, 200))
    assert rec.points.shape == (frames, 12, 3)
    assert np.isfinite(rec.points).all()
    assert (rec.coefficients[:, 0] == 1).all()
    again = np.einsum("tk,knc->tnc", rec.coefficients, rec.basis)
    np.testing.assert_allclose(again, rec.points, rtol=1e-3, atol=1e-3)
