"""The kernels of both heads against plain torch in float64."""

import pytest
import torch
from helpers import assert_within_budget, poisoned_memory

pytest.importorskip("triton")

from fasttracks import ops
from fasttracks.kernels.heads import heads


def scene(shape, width, bases, device, dtype, kernel=31):
    """Tokens (B, T, N, C), and the weights of both heads."""
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    camera = normal(bases + 9, width, kernel) / (width * kernel) ** 0.5, normal(bases + 9)
    points = normal(3 * bases + 1, width) / width**0.5, normal(3 * bases + 1)
    return normal(*shape, width).to(dtype), camera, points


def check(x, camera, points, predicts_focal=True):
    with poisoned_memory():
        found = heads(x, camera, points, predicts_focal=predicts_focal)
    eager = ops.heads(x, camera, points, predicts_focal=predicts_focal)
    weights = ((w.double(), b.double()) for w, b in (camera, points))
    truth = ops.heads(x.double(), *weights, predicts_focal=predicts_focal)
    assert_within_budget(found, eager, truth)


@pytest.mark.parametrize(
    ("shape", "width", "bases", "dtype"),
    [
        ((1, 1, 1), 256, 12, torch.float32),
        ((3, 2, 17), 48, 1, torch.float16),
        ((1, 40, 33), 64, 12, torch.float32),
        ((1, 9, 111), 32, 30, torch.float16),
    ],
)
def test_heads(shape, width, bases, dtype, kernel_device):
    check(*scene(shape, width, bases, kernel_device, dtype))


def test_focal_correction_is_1_unless_predicted(kernel_device):
    arguments = scene((2, 3, 5), 32, 4, kernel_device, torch.float32)
    check(*arguments, predicts_focal=False)
    assert (heads(*arguments, predicts_focal=False)[2] == 1).all()


def test_any_strides(kernel_device):
    x, camera, points = scene((2, 6, 9), 32, 4, kernel_device, torch.float32)
    check(x.transpose(1, 2), camera, points)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 50, 1000), (4, 17, 111), (1, 1000, 63), (1, 2, 20_000)])
def test_sizes(shape, dtype, kernel_device):
    check(*scene(shape, 256, 12, kernel_device, dtype))


@pytest.mark.gpu
def test_offsets_past_int32(kernel_device):
    x, camera, points = scene((1, 1, 1), 256, 12, kernel_device, torch.float16)
    x = x.repeat(1, 450, 20_000, 1)
    assert x.numel() > 2**31
    x[:, -1] += 1  # and so the last frame moves every point and the cameras around it
    once = x[:, :, :1].contiguous()
    found, exact = (heads(y, camera, points, predicts_focal=True) for y in (x, once))
    for name, (y, z) in enumerate(zip(found, exact, strict=True)):
        torch.testing.assert_close(y, z.expand_as(y), rtol=1e-4, atol=1e-4, msg=str(name))
