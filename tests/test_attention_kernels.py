"""Attention kernels against the network's plain torch in float64."""

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from fasttracks import ops  # noqa: E402
from fasttracks.kernels import attention as kernels  # noqa: E402
from fasttracks.kernels import attention_triton, launches  # noqa: E402
from fasttracks.kernels.attention import attention  # noqa: E402
from fasttracks.ops import TIME, TRACK  # noqa: E402

Shape = tuple[int, int, int]  # B clips, T frames, N tracks
WIDTH, HEADS, HEAD = 256, 16, 64
TINY = (32, 2, 16)  # the same of a network small enough for the interpreter


def arguments(
    shape: Shape,
    device: torch.device,
    size: tuple[int, int, int] = (WIDTH, HEADS, HEAD),
    dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, ...]:
    """Tokens, the norm's weight and bias, and the weights of both projections."""
    width, heads, head = size
    generator = torch.Generator(device).manual_seed(sum(shape))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    tensors = (
        normal(*shape, width) + 0.5,
        1 + 0.1 * normal(width),
        0.1 * normal(width),
        1.5 * normal(3 * heads * head, width) / width**0.5,
        normal(width, heads * head) / (heads * head) ** 0.5,
    )
    return tuple(tensor.to(dtype) for tensor in tensors)


def call(function, tensors: tuple[Tensor, ...], axis: int, dtype: torch.dtype | None = None):
    x, weight, bias, qkv, out = (tensor.to(dtype or tensor.dtype) for tensor in tensors)
    heads = {1024: HEADS, 32: 2}[out.shape[1]]
    return function(x, (weight, bias), qkv, out, heads=heads, axis=axis)


def check(tensors: tuple[Tensor, ...], axis: int) -> None:
    """The kernels err at most twice as much as eager torch in their dtype, plus rounding."""
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    try:
        assert torch.empty(1).isnan()
        found = call(attention, tensors, axis)
        again = call(attention, tensors, axis)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.dtype == tensors[0].dtype
    assert found.is_contiguous()
    assert torch.equal(found, again)
    truth = call(ops.attention, tensors, axis, torch.float64)
    eager = (call(ops.attention, tensors, axis) - truth).abs()
    error = (found - truth).abs()
    rounding = torch.finfo(found.dtype).eps * truth.abs().max()
    assert error.max() <= 2 * eager.max() + rounding
    assert error.mean() <= 1.2 * eager.mean() + 0.1 * rounding


@pytest.mark.parametrize("axis", [TIME, TRACK])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 17, 3), (1, 3, 63), (2, 2, 65), (1, 65, 2), (1, 111, 1), (1, 21, 7)]
)
def test_attention(shape: Shape, axis: int, kernel_device: torch.device) -> None:
    check(arguments(shape, kernel_device, TINY), axis)


@pytest.mark.parametrize("axis", [TIME, TRACK])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 3, 66), (1, 66, 3)])
def test_attention_in_parts(
    shape: Shape, axis: int, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "TOKENS_AT_ONCE", shape[0] * shape[axis] * 2 + 1)
    check(arguments(shape, kernel_device, TINY), axis)


@pytest.mark.parametrize("axis", [TIME, TRACK])
def test_attention_over_many_processors(
    axis: int, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_triton, "multiprocessors", lambda device: 4)
    options = launches.launch("norm_project", 1, kernel_device)
    monkeypatch.setitem(options, "BLOCK_N", 16)
    assert attention_triton.splits_of(1, 6, 4) == 3
    check(arguments((1, 3, 5), kernel_device, TINY), axis)


def test_attention_of_a_slice(kernel_device: torch.device) -> None:
    x, *weights = arguments((1, 6, 10), kernel_device, TINY)
    for part, axis in (x[:, 1:4], TRACK), (x[:, :, 2:7], TIME), (x[:, :, 2:7], TRACK):
        check((part, *weights), axis)


def test_attention_of_nothing(kernel_device: torch.device) -> None:
    assert call(attention, arguments((1, 0, 3), kernel_device, TINY), TIME).shape == (1, 0, 3, 32)


def test_splits() -> None:
    """Those that were fastest on an H100 with 5,000, 12,800, 14,175 and 50,000 tokens."""
    found = [attention_triton.splits_of(-(-n // 128), 48, 132) for n in (5000, 12800, 14175, 50000)]
    assert found == [3, 1, 1, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axis", [TIME, TRACK])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (2, 17, 63),
        (1, 63, 111),
        (2, 65, 17),
        (3, 50, 111),
        (1, 21, 675),
        (1, 111, 130),
        (1, 50, 256),
        (2, 8, 1000),
        (1, 50, 1000),
        (1, 1000, 20),
    ],
)
@pytest.mark.parametrize("everywhere", [False, True], ids=["fastest", "portable"])
def test_attention_at_its_size(
    shape: Shape,
    axis: int,
    dtype: torch.dtype,
    everywhere: bool,
    kernel_device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = launches.table(kernel_device)
    if everywhere:
        monkeypatch.setattr(kernels, "is_hopper", lambda device: False)
        table = launches.shipped()["default"]
    with launches.using(kernel_device, table):
        check(arguments(shape, kernel_device, dtype=dtype), axis)


@pytest.mark.gpu
@pytest.mark.parametrize("axis", [TIME, TRACK])
@pytest.mark.parametrize("shape", [(1, 50, 20_000), (1, 1000, 100), (1, 5000, 3)])
def test_attention_of_large_clips(shape: Shape, axis: int, kernel_device: torch.device) -> None:
    """Offsets past 2³¹ elements, more than 65,535 sequences of a head, sequences split up."""
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    tensors = arguments(shape, kernel_device)
    found = call(attention, tensors, axis)
    rows = torch.tensor([0, 1, shape[3 - axis] // 2, shape[3 - axis] - 1], device=kernel_device)
    x = tensors[0].index_select(3 - axis, rows)
    truth = call(ops.attention, (x, *tensors[1:]), axis, torch.float32)
    torch.testing.assert_close(
        found.index_select(3 - axis, rows).float(), truth, rtol=2e-3, atol=1e-2
    )


@pytest.mark.gpu
def test_offsets_past_int32_in_one_part(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "TOKENS_AT_ONCE", 1 << 40)
    assert 50 * 20_000 * 3 * HEADS * HEAD > 2**31
    for axis in TIME, TRACK:
        test_attention_of_large_clips((1, 50, 20_000), axis, kernel_device)


@pytest.mark.gpu
def test_attention_compiles_once_for_all_lengths(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    for shape in (2, 17, 63), (1, 66, 70):
        for axis in TIME, TRACK:
            call(attention, arguments(shape, kernel_device), axis)
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda **event: compiled.append(event)
    )
    for shape in (1, 1, 1), (1, 16, 16), (2, 50, 64), (1, 65, 111), (1, 90, 70):
        for axis in TIME, TRACK:
            call(attention, arguments(shape, kernel_device), axis)
    assert not compiled
