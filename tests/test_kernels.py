"""Kernels against the closed form in float64, and what the compiler makes of them."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_within_budget, poisoned_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton")

from fasttracks.geometry import MIN_DEPTH  # noqa: E402
from fasttracks.kernels.common import GLUON  # noqa: E402
from fasttracks.kernels.compose_project import compose_project  # noqa: E402

ROOT = Path(__file__).parents[1]
Shape = tuple[int, int, int, int]  # B clips, T frames, N tracks, K bases


def closed_form(
    basis: Tensor, coefficients: Tensor, rotation: Tensor, position: Tensor, focal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `compose_project` computes, in the arguments' dtype."""
    points = torch.einsum("btk,bknc->btnc", coefficients, basis)
    camera = torch.einsum("btij,btni->btnj", rotation, points - position[:, :, None])
    depth = camera[..., 2:].clamp(min=MIN_DEPTH)
    return points, camera, focal[..., None, None] * camera[..., :2] / depth


def scene(shape: Shape, device: torch.device, layout: str = "BNK3") -> tuple[Tensor, ...]:
    """Arguments of `compose_project`: points around the origin, cameras near (0, 0, -15).

    `layout` is the order of the basis in memory. As in the network, the basis is a view of a
    tensor with a channel over ("BNK3"), and what belongs to frames is slices of another.
    """
    B, T, N, K = shape
    generator = torch.Generator(device).manual_seed(B + 10 * T + 100 * N + 1000 * K)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    if layout == "BNK3":
        basis = normal(B, N, K * 3 + 1)[..., :-1].unflatten(-1, (K, 3)).transpose(1, 2)
    elif layout == "BN3K":
        basis = normal(B, N, 3, K).permute(0, 3, 1, 2)
    else:
        basis = normal(B, K, N, 3)
    head = normal(B, T, 4 + K)
    position = head[..., :3] + torch.tensor([0.0, 0.0, -15.0], device=device)
    focal = 1 + 0.05 * head[..., 3]
    spin = 0.1 * normal(B, T, 3, 3)
    rotation = torch.linalg.matrix_exp(spin - spin.mT)
    return basis / math.sqrt(K), head[..., 4:], rotation, position, focal


def check(*arguments: Tensor) -> None:
    """The kernel errs at most twice as much as plain torch does in float32, plus rounding."""
    with poisoned_memory():
        found = compose_project(*arguments)
    eager = closed_form(*arguments)
    truth = closed_form(*(x.double() for x in arguments))
    assert_within_budget(found, eager, truth)
    assert all(y.is_contiguous() for y in found)


@pytest.mark.parametrize("layout", ["BKN3", "BNK3", "BN3K"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 2, 17, 2), (1, 15, 63, 12), (2, 17, 111, 30), (1, 8, 32, 12)]
)
def test_compose_project(shape: Shape, layout: str, kernel_device: torch.device) -> None:
    check(*scene(shape, kernel_device, layout))


def test_compose_project_of_many_tracks(kernel_device: torch.device) -> None:
    check(*scene((1, 2, 1000, 12), kernel_device))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.tuples(*(st.integers(1, most) for most in (3, 20, 70, 6))))
def test_compose_project_of_any_shape(kernel_device: torch.device, shape: Shape) -> None:
    check(*scene(shape, kernel_device))


def test_projection_divides_by_no_less_than_the_least_depth(kernel_device: torch.device) -> None:
    depth = torch.tensor([-5.0, 0.0, 0.5 * MIN_DEPTH, MIN_DEPTH, 2 * MIN_DEPTH, 5.0])
    basis = torch.stack([torch.ones(6), -2 * torch.ones(6), depth], -1)[None, None]
    ones = torch.ones(1, 1)
    rotation = torch.eye(3)[None, None]
    arguments = (basis, ones[..., None], rotation, torch.zeros(1, 1, 3), 1.5 * ones)
    arguments = tuple(x.to(kernel_device) for x in arguments)
    check(*arguments)
    u, v = compose_project(*arguments)[2][0, 0].cpu().unbind(-1)
    torch.testing.assert_close(u, 1.5 / torch.tensor([0.01, 0.01, 0.01, 0.01, 0.02, 5.0]))
    torch.testing.assert_close(v, -2 * u)


@pytest.mark.gpu
def test_offsets_past_int32(kernel_device: torch.device) -> None:
    B, T, N, K = 1, 36_000, 20_000, 2
    assert B * T * N * 3 > 2**31
    if torch.cuda.mem_get_info()[0] < 26 * 2**30:
        pytest.skip("needs 26 GiB of GPU memory")
    basis, *per_frame = scene((B, T, N, K), kernel_device)
    found = compose_project(basis, *per_frame)
    rows = torch.randint(T, (64,), device=kernel_device)
    rows[:2] = torch.tensor([0, T - 1])
    exact = closed_form(basis.double(), *(x[:, rows].double() for x in per_frame))
    for y, truth in zip(found, exact, strict=True):
        torch.testing.assert_close(y[:, rows].double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_more_frames_than_a_grid_axis_holds(kernel_device: torch.device) -> None:
    check(*scene((3, 200_000, 1, 2), kernel_device))  # 75,000 blocks


@pytest.mark.gpu
def test_compiles_once_for_all_lengths(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda **event: compiled.append(event)
    )
    K = 7  # which no other test has compiled
    for B, T, N in (1, 1, 1), (1, 2, 17), (2, 15, 64), (1, 16, 111), (3, 50, 1000):
        compose_project(*scene((B, T, N, K), kernel_device))
    assert len(compiled) == 1


# Bytes of shared memory per block that a kernel may take, and whether it is to use Hopper's matrix
# instruction. How many registers it takes differs from compiler to compiler.
LIMITS = {
    "compose_project K=12": (4096, False),
    "compose_project K=32": (4096, False),
    "embed": (1 << 15, False),
    "embed many": (1 << 15, True),
    "heads sum": (8192, False),
    "heads points": (8192, False),
    "heads taps": (4096, False),
    "heads cameras": (4096, False),
    "mlp": (99 << 10, True),  # the shared memory of sm_86
    "mlp finish": (4096, False),
    "mlp hopper": (227 << 10, True),
    "mlp hopper wide": (227 << 10, True),
    "norm_project fp16": (99 << 10, True),
    "norm_project hopper fp16": (227 << 10, True),
    "attend fp16": (99 << 10, True),
    "attend hopper fp16": (74 << 10, True),  # three programs share a processor
    "attend_project fp16": (99 << 10, True),
    "attend_project few fp16": (227 << 10, True),
    "attend_project many fp16": (112 << 10 | 512, True),  # two do
    "project fp16": (99 << 10, True),
    "project few fp16": (227 << 10, True),
    "project many fp16": (227 << 10, True),
    "adjust points": (4096, False),
    "adjust cameras": (4096, False),
    "adjust move": (4096, False),
    "adjust cost": (4096, False),
    "adjust fit": (4096, False),
    "adjust accept": (4096, False),
    "motion by point": (4096, False),
    "motion cost": (4096, False),
    "fit_scale": (4096, False),
    "cholesky": (1 << 14, False),
    "prepare fp32 u8": (8192, False),
    "prepare fp32 fp64": (8192, False),
    "prepare fp64 u8": (8192, False),
    "prepare fp64 fp64": (8192, False),
    "count": (8192, False),
    "world show": (8192, False),
    "world weigh": (8192, False),
    "world join": (8192, False),
    "tapnext add_norm": (8192, False),
    "tapnext recur": (1 << 14, False),
    "tapnext activate": (4096, False),
    "tapnext heads": (99 << 10, False),
}
# Bytes of stack per thread, where spills are: a few are harmless, and kernels with large angles
# have some for the sines of those. Triton 3.5 spills far more, which costs time alone.
STACK = 64 if GLUON else 2048


@pytest.mark.parametrize(
    "architecture", [90, *(pytest.param(a, marks=pytest.mark.slow) for a in (80, 100))]
)
def test_compiled_kernels(compiled: list[dict], architecture: int) -> None:
    found = [usage for usage in compiled if usage["architecture"] == architecture]
    expected = {name for name in LIMITS if GLUON or "hopper" not in name}
    if architecture == 90:  # for which each is compiled
        assert {usage["name"] for usage in found} == expected
    assert found and {usage["name"] for usage in found} <= expected
    for usage in found:
        shared, wgmma = LIMITS[usage["name"]]
        assert not usage["empty"], usage
        assert usage["shared"] <= shared, usage
        assert usage["stack"] <= STACK, usage
        assert not usage["specialised"], usage
        assert usage["overlaps"] == (architecture >= 90), usage
        assert usage["wgmma"] == (wgmma and architecture == 90), usage


def test_kernels_refuse_another_name() -> None:
    command = [sys.executable, "-c", "import kernels"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert child.stderr.endswith("import fasttracks.kernels instead\n")
