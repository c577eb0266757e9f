"""Bundle adjustment's kernels against its plain torch in the same dtype; its graphs."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import poisoned_memory
from seen_points import disturbed, evidence, prediction, tracks_of, world
from seen_points import image as image_of
from torch import Tensor

pytest.importorskip("triton")

from fasttracks import graphs
from fasttracks.kernels import adjust as adjust_kernel
from fasttracks.kernels import adjust_motion as motion_kernel
from fasttracks.kernels import cholesky, fit_scale
from fasttracks.refine import bundle as bundling
from fasttracks.refine import cameras
from fasttracks.refine import motion as moving
from fasttracks.refine.evidence import NOISE


def system(batch: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positive definite S (B, n, n) and b (B, n)."""
    g = torch.Generator().manual_seed(n)
    x = torch.randn(batch, n, 2 * n, generator=g, dtype=torch.float64)
    b = torch.randn(batch, n, generator=g, dtype=torch.float64)
    return (x @ x.mT / n + 0.1 * torch.eye(n)).to(device), b.to(device)


@pytest.mark.parametrize(
    ("batch", "n"),
    [
        (3, 1),
        (2, 16),
        pytest.param(1, 20, marks=pytest.mark.slow),
        pytest.param(1, 37, marks=pytest.mark.gpu),
    ],
)
def test_factor(batch: int, n: int, kernel_device: torch.device) -> None:
    S, b = system(batch, n, kernel_device)
    whole = torch.full((batch, n + 1, n + 1), torch.nan, dtype=torch.float64, device=S.device)
    whole[:, :n, :n], whole[:, n, :n] = S, b
    with poisoned_memory():
        found = cholesky.factor(whole)
    inverse = found[:, 1:].triu()
    exact = torch.linalg.inv(torch.linalg.cholesky(S)).mT
    torch.testing.assert_close(inverse, exact, rtol=1e-6, atol=1e-6)  # 1e-9 on the diagonal
    x = (inverse * found[:, :1]).sum(-1)
    torch.testing.assert_close(x, torch.linalg.solve(S, b), rtol=1e-6, atol=1e-6)


def test_factor_of_what_is_not_positive_definite_is_nan(kernel_device: torch.device) -> None:
    S, _ = system(2, 5, kernel_device)
    S[1, 3, 3] = -1.0
    half = cholesky.inverse_factor(S)
    assert half[0].isfinite().all()
    assert half[1, :, 3:].triu(-2).isnan().any()


def problem(frames: int, tracks: int, dtype: torch.dtype, batch: int = 2) -> tuple:
    """A scene off its evidence; of the two clips one has its focal length held."""
    truth, g = world(frames, tracks, batch, seed=frames)
    e = evidence(truth, g, noise=0.01, seen=0.8)
    e = e._replace(focal_free=(torch.arange(batch) % 2 == 0).double())
    e = e._replace(turn_weight=30 * e.turn_weight, step_weight=20 * e.step_weight)
    e.weight[:, :, 0] = 0  # a track never seen
    e.depth_weight[:, :, 0] = 0
    start = disturbed(truth, g, turn=0.1)
    parts = (type(p)(*(v.to(dtype).contiguous() for v in p)) for p in (start, e))
    return *parts, torch.full((batch,), 1e-3, dtype=dtype)


def check(scene, e, damping: Tensor, iterations: int, device: torch.device, rtol: float) -> None:
    expected = cameras.adjust(scene, e, damping, iterations)
    there = (type(p)(*(v.to(device) for v in p)) for p in (scene, e))
    with poisoned_memory():
        found, after, gain = adjust_kernel.adjust(*there, damping.to(device), iterations)
    for name, value, exact in zip(scene._fields, found, expected.scene, strict=True):
        scale = exact.abs().max().item()
        torch.testing.assert_close(
            value.cpu(), exact, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
    torch.testing.assert_close(after.cpu(), expected.damping)
    torch.testing.assert_close(gain.cpu(), expected.gain, rtol=10 * rtol, atol=10 * rtol)


@pytest.mark.parametrize(
    ("frames", "tracks", "iterations"),
    [
        (1, 5, 2),
        pytest.param(3, 9, 1, marks=pytest.mark.slow),
        pytest.param(3, 9, 2, marks=pytest.mark.gpu),
    ],
)
def test_steps_are_those_of_torch(frames, tracks, iterations, kernel_device) -> None:
    check(*problem(frames, tracks, torch.float64), iterations, kernel_device, 1e-6)


def test_steps_in_float32(kernel_device) -> None:
    check(*problem(2, 9, torch.float32), 1, kernel_device, 2e-3)


def test_a_step_that_raises_the_cost_is_not_taken(kernel_device) -> None:
    scene, e, damping = problem(2, 9, torch.float64)
    scene.points[1, 2] = torch.nan
    found, after, gain = adjust_kernel.adjust(
        *(type(p)(*(v.to(kernel_device) for v in p)) for p in (scene, e)),
        damping.to(kernel_device),
        1,
    )
    assert after.tolist() == pytest.approx([2e-4, 4e-3])
    assert gain[0] > 0
    assert gain[1] == 0
    for value, given in zip(found, scene, strict=True):
        torch.testing.assert_close(value[1].cpu(), given[1], equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 70, 3)])
def test_fit_scale(shape, dtype, kernel_device) -> None:
    g = torch.Generator().manual_seed(1)
    square = (1e-2 * torch.randn(shape, generator=g)).square().to(dtype)
    weight = (torch.rand(shape, generator=g) < 0.7).to(dtype)
    weight[..., 0] = 0
    scale = torch.full((shape[0], shape[2]), 0.01, dtype=dtype)
    there = (v.to(kernel_device) for v in (square, weight, scale))
    with poisoned_memory():
        found = fit_scale.fit_scale(*there, 5, NOISE)
    variance = scale.square()[:, None]
    for _ in range(5):
        mean = (weight * variance * square / (variance + square)).sum(1, keepdim=True)
        variance = 2 * mean / weight.sum(1, keepdim=True).clamp(min=1)
        variance = variance.clamp(min=NOISE**2)
    torch.testing.assert_close(found.cpu(), variance[:, 0].sqrt())


@pytest.mark.parametrize(("frames", "tracks", "bases"), [(2, 5, 3), (18, 9, 1), (3, 9, 2)])
def test_motion(frames, tracks, bases, kernel_device) -> None:
    truth, g = world(frames, tracks, batch=2, seed=1)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    coefficients = normal(2, frames, bases)
    coefficients[..., 0] = 1
    basis = 0.5 * normal(2, bases, tracks, 3)
    basis[:, 0] = truth.points
    basis[:, 0, 0, 2] = -5  # behind the cameras
    each = torch.rand(3, 2, tracks, generator=g, dtype=torch.float64) + 0.1
    sight = moving.Sight(
        truth.rotation,
        truth.position,
        1 + 0.1 * normal(2, frames),
        image_of(truth)[1] + 0.1 * normal(2, frames, tracks, 2),
        (normal(2, frames, tracks) > 0).double(),
        each[0],
        2 + 0.1 * normal(2, frames, tracks),
        normal(2, frames, tracks).square(),
        *each[1:],
    )
    motion = moving.Motion(coefficients, basis)
    expected = [*moving._by_point(motion, sight), moving.cost(motion, sight)]
    there = [type(p)(*(v.to(kernel_device) for v in p)) for p in (motion, sight)]
    with poisoned_memory():
        found = [*motion_kernel.by_point(*there), motion_kernel.cost(*there)]
    for value, exact in zip(found, expected, strict=True):
        assert exact.abs().max() > 0
        torch.testing.assert_close(value.cpu(), exact)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_at_real_size(dtype, kernel_device) -> None:
    check(*problem(50, 1000, dtype), 1, kernel_device, 5e-2 if dtype is torch.float32 else 1e-5)


@pytest.mark.gpu
def test_a_batch_is_adjusted_as_its_clips_are(kernel_device) -> None:
    scene, e, damping = problem(20, 100, torch.float64, batch=3)
    scene, e = (type(p)(*(v.to(kernel_device) for v in p)) for p in (scene, e))
    damping = damping.to(kernel_device)
    all_three = adjust_kernel.adjust(scene, e, damping, 5)[0]
    for i in range(3):
        one = (type(p)(*(v[i : i + 1].contiguous() for v in p)) for p in (scene, e))
        alone = adjust_kernel.adjust(*one, damping[i : i + 1], 5)[0]
        for a, b in zip(all_three, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-6, atol=1e-6)


def clip(frames: int, tracks: int, device: str, seed: int = 0) -> tuple:
    truth, g = world(frames, tracks, seed=seed)
    start = prediction(disturbed(truth, g, turn=0.02, shift=0.1))
    tracks_seen = tracks_of(image_of(truth)[1])
    given = type(start)(*(v.to(device) for v in start))
    return given, tracks_seen.to(device), torch.tensor([True], device=device)


@pytest.mark.gpu
def test_replays_are_the_same_bit_for_bit_and_from_threads() -> None:
    clips = [clip(frames, 40, "cuda", seed) for frames in (6, 9) for seed in (0, 1)]
    first = [bundling.bundle(*c) for c in clips]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda c: bundling.bundle(*c), 3 * clips))
    for i, (result, report) in enumerate(again):
        expected, told = first[i % len(clips)]
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
        assert report.outcome == told.outcome
    assert len(graphs._replays) <= graphs._replays.size


@pytest.mark.gpu
def test_graphs_are_bounded() -> None:
    for tracks in range(5, 6 + graphs._replays.size):
        bundling.bundle(*clip(4, tracks, "cuda"))
    assert len(graphs._replays) == graphs._replays.size
    result, _ = bundling.bundle(*clip(4, 5, "cuda"))  # one that had gone
    assert result.points.isfinite().all()
