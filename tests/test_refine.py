"""Bundle adjustment against numerical derivatives, SciPy and the truth."""

import math
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import tiny_network
from seen_points import (
    DOUBLE,
    consistent,
    disturbed,
    errors,
    evidence,
    image,
    prediction,
    tracks_of,
    world,
)

import fasttracks
from fasttracks.evaluation.metrics import Estimate, metrics
from fasttracks.geometry import Prediction, exponential
from fasttracks.refine.bundle import bundle, outcome
from fasttracks.refine.cameras import Scene
from fasttracks.refine.evidence import NOISE, fit_of
from fasttracks.refine.finetune import finetune


def test_time_grows_as_frames_do():
    def seconds(frames):
        truth, g = world(frames, 16, turn=0.004, path=0.025)
        start = prediction(disturbed(truth, g, turn=0.003, shift=0.03), bases=12)
        tracks = tracks_of(image(truth)[1])
        began = time.process_time()
        bundle(start, tracks, torch.tensor([True]))
        return time.process_time() - began

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several that wait for each other take time, too
    try:
        seconds(20)
        assert seconds(400) < 9 * seconds(100)  # some 3 times; 19 times with whole systems
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("outliers", [0.0, 0.4])
def test_finds_the_truth_despite_outliers(outliers):
    truth, g = world(12, 80, batch=2, seed=1)
    positions = image(truth)[1]
    astray = torch.rand(2, 80, generator=g) < outliers
    wander = torch.randn(positions.shape, generator=g, **DOUBLE).cumsum(1) * 0.05
    positions = torch.where(astray[:, None, :, None], positions + wander, positions)
    start = prediction(disturbed(truth, g, turn=0.02, shift=0.1))
    result, report = bundle(start, tracks_of(positions), torch.tensor([True, True]))
    consistent(result)
    assert (report.cost_after < report.cost_before).all()
    assert torch.allclose(result.rotation[:, 0], start.rotation[:, 0].float(), atol=1e-6)
    assert torch.allclose(result.position[:, 0], start.position[:, 0].float(), atol=1e-5)
    found = errors(result, truth)
    # What the network expects of the cameras still pulls where half of the tracks don't count.
    assert found["rpe_rotation"] < (0.05 if outliers else 0.03)
    assert found["ate"] < (0.1 if outliers else 0.05)
    assert found["ate"] < 0.05 * errors(start, truth)["ate"]
    if not outliers:
        assert found["absrel"] < 1e-3
        assert found["reprojection"] < 0.05


def test_a_reversed_relief_is_put_right():
    truth, g = world(16, 80, seed=2, turn=0.0, path=0.0)
    # Around the points, which are rather shallow: near and far are easily exchanged.
    angle = torch.linspace(-0.2, 0.2, 16, **DOUBLE)
    zero = torch.zeros_like(angle)
    rotation = exponential(torch.stack([zero, angle, zero], -1))[None]
    centre = torch.tensor([0.0, 0.0, 16.0], **DOUBLE)
    points = truth.points - torch.tensor([0.0, 0.0, 12.0], **DOUBLE) + centre
    truth = Scene(rotation, centre - 16 * rotation[..., 2], truth.log_focal, points)
    mirror = torch.tensor([1.0, 1.0, -1.0], **DOUBLE)
    wrong = Scene(
        rotation.mT,
        centre - 16 * rotation.mT[..., 2],
        truth.log_focal,
        (points - centre) * mirror + centre,
    )
    noise = 1e-4 * torch.randn(1, 16, 80, 2, generator=g, **DOUBLE)
    result, _ = bundle(prediction(wrong), tracks_of(image(truth)[1] + noise), torch.ones(1) > 0)
    assert errors(prediction(wrong), truth)["rpe_rotation"] > 1
    found = errors(result, truth)
    assert found["rpe_rotation"] < 0.05
    assert found["absrel"] < 0.01


def test_the_focal_length_is_found_unless_it_is_known():
    truth, g = world(16, 80, batch=2, seed=4, turn=0.08, path=1.0)
    truth = truth._replace(log_focal=torch.full((2,), math.log(1.1), **DOUBLE))
    start = disturbed(truth, g, 0.02, 0.1)._replace(log_focal=torch.zeros(2, **DOUBLE))
    known = torch.tensor([False, True])
    result, _ = bundle(prediction(start), tracks_of(image(truth)[1]), known)
    assert math.isclose(result.focal[0, 0].item(), 1.1, rel_tol=0.01)
    assert (result.focal[1] == 1).all()


def test_moving_points_are_followed():
    truth, g = world(20, 60, seed=5)
    time = torch.linspace(0, 1, 20, **DOUBLE)
    paths = torch.stack([torch.sin(3 * time), time, torch.cos(2 * time)], -1)
    moves = torch.arange(60) < 20
    points = truth.points[:, None] + moves[None, None, :, None] * paths[None, :, None]
    positions = image(truth, points)[1]
    motion = torch.where(moves, 0.2, 0.01).double()[None]
    start = prediction(disturbed(truth, g, turn=0.02, shift=0.1), motion=motion)
    result, _ = bundle(start, tracks_of(positions), torch.ones(1) > 0)
    consistent(result)
    found = errors(result, truth, points)
    assert found["ate"] < 0.1
    assert found["reprojection"] < 0.5
    assert errors(start, truth, points)["reprojection"] > 10
    # Still points stay still.
    assert result.basis[:, 1:, ~moves].abs().max() < 0.02


@pytest.mark.parametrize("drifting", [0, 1])
def test_static_points_are_the_points_where_hardly_anything_moves(drifting):
    truth, g = world(20, 80, seed=3)
    positions = image(truth)[1] + 1e-3 * torch.randn(1, 20, 80, 2, generator=g, **DOUBLE)
    positions[:, :, :drifting] += torch.linspace(0, 0.3, 20, **DOUBLE)[:, None, None]
    start = prediction(disturbed(truth, g, turn=0.02, shift=0.1), bases=12)
    result, _ = bundle(start, tracks_of(positions), torch.ones(1) > 0)
    consistent(result)
    assert torch.equal(result.basis[:, :1, drifting:].expand(-1, 20, -1, -1).float(),
                       result.points[:, :, drifting:])  # fmt: skip
    offset = 525 * (result.projection - positions).norm(dim=-1)
    assert offset.median() < 1
    # Coefficients that nothing holds run away; those in use have a mean square of 1.
    assert result.coefficients.abs().max() <= 20**0.5
    assert result.coefficients[..., 1:].mean(1).abs().max() < 1e-5
    assert (result.basis[:, 1:].abs().max() > 0.1) == (drifting > 0)


def _rotating():
    truth, _ = world(8, 30, path=0.0)
    return truth, image(truth)[1], None, "no parallax"


def _still():
    truth, _ = world(8, 30, turn=0.0, path=0.0)
    return truth, image(truth)[1], None, "no parallax"


def _all_moving():
    truth, g = world(10, 40)
    positions = image(truth)[1]
    walk = 0.1 * torch.randn(positions.shape, generator=g, **DOUBLE).cumsum(1)
    return truth, positions + walk, None, "static|kept"


def _few(frames, tracks):
    truth, _ = world(frames, tracks)
    return truth, image(truth)[1], None, ""


def _doubled():
    truth, _ = world(8, 20)
    truth = truth._replace(points=truth.points[:, torch.arange(20) // 10])
    return truth, image(truth)[1], None, ""


def _unseen(share):
    truth, g = world(8, 20)
    seen = torch.rand(1, 1, 20, generator=g).expand(1, 8, 20) >= share
    return truth, image(truth)[1], seen, "kept" if share == 1 else ""


def _behind():
    truth, _ = world(8, 20)
    return truth._replace(points=-truth.points), image(truth)[1], None, ""


@pytest.mark.parametrize(
    "clip",
    [
        _rotating(),
        _still(),
        _all_moving(),
        _few(10, 3),
        _few(2, 20),
        _few(1, 20),
        _few(6, 1),
        _doubled(),
        _unseen(0.5),
        _unseen(1),
        _behind(),
    ],
    ids=[
        "rotation",
        "still",
        "moving",
        "3 tracks",
        "2 frames",
        "1 frame",
        "1 track",
        "duplicates",
        "half unseen",
        "unseen",
        "behind the cameras",
    ],
)
def test_degenerate_clips_end_finite_and_say_so(clip):
    truth, positions, seen, said = clip
    g = torch.Generator().manual_seed(9)
    noise = 1e-3 * torch.randn(positions.shape, generator=g, **DOUBLE)
    start = prediction(disturbed(truth, g))
    result, report = bundle(start, tracks_of(positions + noise, seen), torch.ones(1) > 0)
    consistent(result)
    assert (report.cost_after <= report.cost_before).all()
    assert any(word in report.outcome[0] for word in said.split("|"))
    # Neither scale nor distances run away.
    spread = result.points_camera.abs().max() / start.points_camera.abs().max()
    assert spread < 20


def test_without_parallax_depths_stay_about_those_given():
    truth, positions, _, _ = _rotating()
    g = torch.Generator().manual_seed(2)
    start = disturbed(truth, g, shift=0.0)
    result, _ = bundle(prediction(start), tracks_of(positions), torch.ones(1) > 0)
    assert errors(result, truth)["rpe_rotation"] < 0.2
    before, after = errors(prediction(start), truth)["absrel"], errors(result, truth)["absrel"]
    assert after < 1.1 * before


def _tripod(noise):
    """Errors before and after where a camera turns and hardly moves, and tracks drift."""
    truth, g = world(30, 80, path=0.004)
    drift = noise * torch.randn(1, 30, 80, 2, generator=g, **DOUBLE).cumsum(1) / 5
    jitter = noise * torch.randn(1, 30, 80, 2, generator=g, **DOUBLE)
    start = disturbed(truth, g, turn=0.002, shift=0.004, depth=0.05)
    result, report = bundle(
        prediction(start), tracks_of(image(truth)[1] + drift + jitter), torch.ones(1) > 0
    )
    return errors(prediction(start), truth), errors(result, truth), report.outcome[0]


def test_without_parallax_depths_are_held():
    before, after, outcome = _tripod(2e-3)
    assert "no parallax" in outcome
    assert after["absrel"] < 1.05 * before["absrel"]
    assert after["reprojection"] < before["reprojection"]


def test_without_parallax_a_change_of_the_last_digits_changes_no_more():
    truth, g = world(60, 20, turn=0.002, path=0.002)
    start = prediction(disturbed(truth, g, turn=0.002, shift=0.02, depth=0.1))
    positions = image(truth)[1]
    positions = positions + 1e-3 * torch.randn(positions.shape, generator=g, **DOUBLE)
    found = []
    for change in (0, 1e-6, 1e-6):
        other = positions * (1 + change * torch.randn(positions.shape, generator=g, **DOUBLE))
        result, report = bundle(start, tracks_of(other), torch.tensor([False]))
        assert "no parallax" in report.outcome[0]
        found.append(result)
    for result in found[1:]:
        assert torch.allclose(result.focal, found[0].focal, rtol=1e-5)
        assert torch.allclose(result.projection, found[0].projection, atol=1e-4)


def test_exact_tracks_tell_depth_by_little_parallax():
    before, after, outcome = _tripod(1e-6)
    assert "no parallax" not in outcome
    assert after["absrel"] < 0.6 * before["absrel"]


@pytest.mark.parametrize("guess", [20.0, 40.0])
def test_points_at_infinity_leave_scale_alone(guess):
    truth, g = world(30, 100, turn=0.02, path=0.1)
    sky = (torch.arange(100) < 15)[:, None]
    direction = truth.points / truth.points.norm(dim=-1, keepdim=True)
    truth = truth._replace(points=torch.where(sky, 5000 * direction, truth.points))
    start = disturbed(truth, g, turn=0.005, shift=0.05, depth=0.05)
    start = start._replace(points=torch.where(sky, guess * direction, start.points))
    positions = image(truth)[1] + 1e-3 * torch.randn(1, 30, 100, 2, generator=g, **DOUBLE)
    result, _ = bundle(prediction(start), tracks_of(positions), torch.ones(1) > 0)
    found = errors(result, truth)
    assert found["ate"] < 0.4
    assert found["rpe_rotation"] < 0.1
    depth = result.points_camera[..., 2]
    near = (depth / image(truth)[0][..., 2])[:, :, ~sky[:, 0]]
    assert abs(near.median() - 1) < 0.03
    assert depth[:, :, sky[:, 0]].median() > 100


def test_frames_with_few_tracks_do_not_keep_the_others_from_being_adjusted():
    truth, g = world(30, 80, seed=6)
    seen = torch.ones(1, 30, 80, dtype=torch.bool)
    seen[:, 8:18, 5:] = False  # ten frames in which only five are seen
    start = disturbed(truth, g, turn=0.02, shift=0.1)
    result, report = bundle(prediction(start), tracks_of(image(truth)[1], seen), torch.ones(1) > 0)
    assert "few static tracks in 3" in report.outcome[0]
    assert errors(result, truth)["ate"] < 0.2 * errors(prediction(start), truth)["ate"]


def test_a_clip_in_two_parts_is_not_said_to_converge():
    truth, g = world(20, 80)
    seen = torch.ones(1, 20, 80, dtype=torch.bool)
    seen[:, 10:, :40] = False
    seen[:, :10, 40:] = False
    start = prediction(disturbed(truth, g))
    _, report = bundle(start, tracks_of(image(truth)[1], seen), torch.ones(1) > 0)
    assert "converged" not in report.outcome[0]
    assert "share hardly any static tracks" in report.outcome[0]


def test_what_is_found_to_move_has_a_larger_gamma():
    truth, g = world(20, 80)
    positions = image(truth)[1] + 5e-4 * torch.randn(1, 20, 80, 2, generator=g, **DOUBLE)
    positions[:, :, :4] += torch.linspace(0, 0.2, 20, **DOUBLE).square()[:, None, None]
    start = prediction(disturbed(truth, g, turn=0.005, shift=0.05, depth=0.03))
    start = start._replace(motion=torch.full_like(start.motion, 0.003))
    result, _ = bundle(start, tracks_of(positions), torch.ones(1) > 0)
    assert (result.motion[:, :4] > 2 * result.motion[:, 4:].max()).all()
    assert torch.allclose(result.motion[:, 4:].median(), torch.tensor(0.003), rtol=0.05)


def test_clips_of_a_batch_are_adjusted_alone():
    truth, g = world(8, 30, batch=3, seed=7)
    start, tracks = prediction(disturbed(truth, g)), tracks_of(image(truth)[1])
    known = torch.tensor([True, False, True])
    together, _ = bundle(start, tracks, known)
    for i in range(3):
        one = Prediction(*(value[i : i + 1] for value in start))
        alone, _ = bundle(one, tracks[i : i + 1], known[i : i + 1])
        # Rounding may choose another start, which ends in the same place but for the scale.
        assert torch.allclose(alone.rotation[0], together.rotation[i], atol=2e-3)
        assert torch.allclose(alone.projection[0], together.projection[i], atol=1e-3)


def test_likelihood_prefers_the_truth():
    truth, g = world(8, 30)
    e = evidence(truth, g, noise=1e-3)

    def likelihood(scene, e):  # minus its logarithm, each track at its best scale
        scale = torch.full_like(e.scale, 10 * NOISE)
        return fit_of(scene, e, e.weight, scale, 20).misfit.sum(1)

    assert likelihood(truth, e) < likelihood(disturbed(truth, g), e)


@pytest.mark.slow
def test_errors_of_shipped_weights_are_cut():
    from fasttracks.scenes.generator import generate, seeded
    from fasttracks.scenes.library import load as load_library
    from fasttracks.scenes.variety import CASUAL

    orbit = replace(CASUAL, cameras=(1, 0, 0, 0, 0, 0, 0), unknown_focal=0, swing=(20, 60))
    library = load_library(None, "validation", "cpu")
    clips = generate(
        24,
        24,
        96,
        library=library,
        generator=seeded(5, "validation", "cpu"),
        variety=orbit,
    )
    with torch.no_grad():
        start = fasttracks.load("base", device="cpu", precision="fp32")(clips.tracks)
    result, _ = bundle(start, clips.tracks, clips.focal == 1)
    before, after = (
        metrics(Estimate(p.points_camera, p.rotation, p.position, p.projection), clips.truth)
        for p in (start, result)
    )
    for found, p in ((before, start), (after, result)):
        offset = (p.projection - clips.truth_tracks).norm(dim=-1)
        offset = offset.masked_fill(~clips.visible, float("nan")).flatten(1)
        found["median reprojection"] = offset.nanmedian(1).values
    # A clip's mean is mostly of points that the tracker had lost or was wrong about.
    shares = {"ate": 0.5, "median reprojection": 0.5, "reprojection": 0.6, "rpe_rotation": 0.7}
    for name, share in shares.items():
        assert (after[name] < 1.02 * before[name]).sum() >= 22, name
        assert after[name].median() < share * before[name].median(), name
    assert after["rpe_rotation"].median() < 0.15


@pytest.mark.parametrize("refine", ["bundle", "finetune"])
def test_reconstruct_refines_batches(refine, monkeypatch):
    monkeypatch.setattr("fasttracks.refine.finetune.finetune", partial(finetune, steps=8))
    # An untrained network is too unsure for its answer to be adjusted.
    monkeypatch.setattr("fasttracks.refine.bundle.LEAST_STATIC", 0)
    monkeypatch.setattr("fasttracks.refine.bundle.DOUBTED_SHARE", 0.0)
    truth, _ = world(8, 20, batch=2)
    pixels = (640 * image(truth)[1] + torch.tensor([319.5, 239.5], **DOUBLE)).numpy()
    camera = np.array([[640, 0, 319.5], [0, 640, 239.5], [0, 0, 1]])
    network = tiny_network(dtype=torch.float32)
    results = fasttracks.reconstruct(pixels, intrinsics=camera, model=network, refine=refine)
    plain = fasttracks.reconstruct(pixels, intrinsics=camera, model=network)
    for result, without in zip(results, plain, strict=True):
        assert result.refinement
        assert without.refinement is None
        composed = np.einsum("tk,knc->tnc", result.coefficients, result.basis)
        assert np.allclose(composed, result.points, atol=1e-3)
        flat = np.einsum(
            "tij,tnj->tni", result.intrinsics, result.points_camera / result.depth[..., None]
        )
        assert np.allclose(flat[..., :2], result.reprojection, atol=0.05)
        if refine == "bundle":
            assert result.median_reprojection_error < without.median_reprojection_error


def test_an_adjustment_that_still_gained_is_no_failure():
    kept, doubtful, flat, static, thin, apart = 0, 0, 0, 1, 0, 0
    rows = [(kept, doubtful, gain, flat, static, thin, apart) for gain in (1e-4, 0.1)]
    assert [outcome(row) for row in rows] == ["converged", "not fully converged"]


def test_how_refinement_went_is_saved(tmp_path):
    tracks = np.random.default_rng(0).uniform(0, 640, (5, 9, 2))
    result = fasttracks.reconstruct(
        tracks, image_size=(640, 640), model=tiny_network(dtype=torch.float32), refine="bundle"
    )
    result.save(tmp_path / "r.npz")
    assert fasttracks.Reconstruction.load(tmp_path / "r.npz").refinement == result.refinement


@pytest.mark.gpu
def test_cuda_adjusts_as_the_cpu_does():
    truth, g = world(30, 200, batch=2, seed=8)
    start, tracks = prediction(disturbed(truth, g)), tracks_of(image(truth)[1])
    known = torch.tensor([True, False])
    cuda = Prediction(*(value.cuda() for value in start))
    result, report = bundle(cuda, tracks.cuda(), known.cuda())
    expected, _ = bundle(start, tracks, known)
    assert report.outcome == ["converged"] * 2
    assert torch.allclose(result.rotation.cpu(), expected.rotation, atol=1e-3)
    assert errors(Prediction(*(value.cpu() for value in result)), truth)["ate"] < 0.05
