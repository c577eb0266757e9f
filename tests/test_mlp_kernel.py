"""The fused MLP against float64, with eager torch in the same dtype as the yardstick."""

import math

import pytest
import torch
from test_kernels import poisoned_memory
from torch import Tensor

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fasttracks import ops  # noqa: E402
from fasttracks.kernels import common  # noqa: E402
from fasttracks.kernels import mlp as kernels  # noqa: E402

TINY, RELEASED = (32, 48), (256, 2048)  # width and hidden width
Arguments = tuple[Tensor, ops.Affine, ops.Affine, ops.Affine, ops.Affine]


def arguments(
    shape: tuple[int, ...],
    hidden: int,
    device: torch.device,
    dtype: torch.dtype = torch.float16,
) -> Arguments:
    """Random tokens and weights of the size that training leaves them."""
    C = shape[-1]
    generator = torch.Generator(device).manual_seed(sum(shape) + hidden)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def norm() -> ops.Affine:
        return (1 + 0.1 * normal(C)).to(dtype), (0.1 * normal(C)).to(dtype)

    def linear(inputs: int, outputs: int) -> ops.Affine:
        weight = normal(outputs, inputs) / math.sqrt(inputs)
        return weight.to(dtype), (0.1 * normal(outputs)).to(dtype)

    return normal(*shape).to(dtype), norm(), linear(C, hidden), linear(hidden, C), norm()


def closing(given: Arguments, dtype: torch.dtype) -> Arguments:
    """With the closing norm in a dtype, which is the result's."""
    *rest, (weight, bias) = given
    return *rest, (weight.to(dtype), bias.to(dtype))


def widened(found: Arguments) -> Arguments:
    x, *affine = found
    return x.double(), *((w.double(), b.double()) for w, b in affine)


def check(found: Tensor, given: Arguments) -> None:
    """The kernel errs at most twice as much as eager torch does in its dtype, plus rounding."""
    x, *_, (weight, _) = given
    assert found.dtype == weight.dtype
    assert found.shape == x.shape
    truth = ops.mlp(*widened(given))
    budget = (ops.mlp(*given) - truth).abs()
    error = (found - truth).abs()
    rounding = torch.finfo(found.dtype).eps * truth.abs()
    assert error.max() <= 2 * budget.max() + rounding.max()
    assert error.norm() <= 2 * budget.norm() + rounding.norm()


@triton.jit
def _apply_gelu(x, y, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, common.gelu(tl.load(x + i)))


def test_gelu_is_exact_to_float16(kernel_device: torch.device) -> None:
    """For every float16, before the final rounding, within a fifth of a unit in the last place."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.float16).to(kernel_device, torch.float32)
    y = torch.full_like(x, math.nan)
    _apply_gelu[(64,)](x, y, BLOCK=1024)
    assert y[x.isnan()].isnan().all()
    x, y = x[x.isfinite()].double(), y[x.isfinite()].double()
    truth = x * 0.5 * torch.special.erfc(-x / math.sqrt(2))
    unit = 2.0 ** (truth.abs().clamp(min=2.0**-14).log2().floor() - 10)
    assert ((y - truth).abs() / unit).max() < 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 17), (3, 3, 7), (1, 3, 37)])
def test_mlp(
    shape: tuple[int, ...],
    splits: int,
    dtype: torch.dtype,
    kernel_device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "_splits", lambda *_: splits)
    for width, hidden in (TINY, (48, 80)):
        given = closing(arguments((*shape, width), hidden, kernel_device), dtype)
        with poisoned_memory():
            found = kernels.mlp(*given)
        check(found, given)


@pytest.mark.parametrize(("rows", "splits"), [(1, 16), (5000, 3), (12_800, 1), (50_000, 1)])
def test_few_tokens_fill_the_gpu(rows: int, splits: int) -> None:
    """An H100's 132 multiprocessors, with tiles of 128 rows and 16 steps, as on Hopper."""
    tiles = triton.cdiv(rows, 128)
    assert kernels._splits(rows, tiles, 16, kernels.COST["hopper"], 132) == splits


def test_mlp_of_nothing(kernel_device: torch.device) -> None:
    given = arguments((1, 0, 5, 32), 48, kernel_device)
    assert kernels.mlp(*given).shape == (1, 0, 5, 32)


def test_mlp_of_the_released_width(kernel_device: torch.device) -> None:
    given = arguments((1, 1, 3, RELEASED[0]), RELEASED[1], kernel_device)
    with poisoned_memory():
        found = kernels.mlp(*given)
    check(found, given)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 17, 63, 111, 128, 1000, 5000, 12800, 14175, 50001])
def test_mlp_of_real_sizes(rows: int, dtype: torch.dtype, kernel_device: torch.device) -> None:
    for result in (dtype, torch.float32):
        given = arguments((1, 1, rows, RELEASED[0]), RELEASED[1], kernel_device, dtype)
        given = closing(given, result)
        with poisoned_memory():
            found = kernels.mlp(*given)
        check(found, given)
        assert torch.equal(found, kernels.mlp(*given))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [111, 5000, 50001])
def test_portable_mlp_of_real_sizes(
    rows: int, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What GPUs other than Hopper run."""
    monkeypatch.setattr(kernels, "_hopper", lambda *_: None)
    given = arguments((1, 1, rows, RELEASED[0]), RELEASED[1], kernel_device)
    with poisoned_memory():
        found = kernels.mlp(*given)
    check(found, given)


@pytest.mark.gpu
@pytest.mark.parametrize("hopper", [True, False])
def test_offsets_past_int32(
    hopper: bool, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 2**31 // 256 + 300
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of GPU memory")
    if not hopper:
        monkeypatch.setattr(kernels, "_hopper", lambda *_: None)
    given = arguments((1, 1, rows, 256), 2048, kernel_device)
    with poisoned_memory():
        found = kernels.mlp(*given)
    for part in (slice(0, 500), slice(rows - 500, rows)):
        check(found[:, :, part], (given[0][:, :, part], *given[1:]))
    assert not found.isnan().any()


@pytest.mark.gpu
def test_compiles_once_for_all_lengths(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[dict] = []
    for rows in (1, 17, 64, 111, 5000, 14175, 50000):
        if rows == 17:
            monkeypatch.setattr(
                triton.knobs.runtime,
                "jit_post_compile_hook",
                lambda **event: compiled.append(event),
            )
        kernels.mlp(*arguments((1, 1, rows, 256), 2048, kernel_device))
    assert not compiled
