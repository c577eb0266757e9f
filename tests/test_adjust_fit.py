"""How a scene fits its evidence: the kernel against plain torch."""

import pytest
import torch
from helpers import poisoned_memory
from seen_points import disturbed, evidence, world

pytest.importorskip("triton")

from fasttracks.kernels import adjust_fit
from fasttracks.refine.evidence import DEPTH, NOISE, fit_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("frames", "tracks"), [(1, 5), (7, 6), (70, 3)])
def test_fit(frames, tracks, dtype, kernel_device) -> None:
    truth, g = world(frames, tracks, batch=2, seed=1)
    e = evidence(truth, g, noise=0.01, seen=0.7)
    e.weight[:, :, 0] = 0  # a track never seen
    e.depth_weight[:, :, 0] = 0
    scene = disturbed(truth, g, turn=0.1)
    scene.points[1, 1, 2] = -5  # behind the cameras
    scene, e = (type(p)(*(v.to(dtype) for v in p)) for p in (scene, e))
    expected = fit_of(scene, e, e.weight.sign(), e.scale, 5)
    there = (type(p)(*(v.to(kernel_device) for v in p)) for p in (scene, e))
    more = (v.to(kernel_device) for v in (e.weight.sign(), e.scale))
    with poisoned_memory():
        found = adjust_fit.fit(*there, *more, 5, NOISE, DEPTH)
    rtol = 1e-9 if dtype is torch.float64 else 1e-4
    for name, value, exact in zip(expected._fields, found, expected, strict=True):
        # Of an angle by the square of its cosine, half of the digits are left.
        atol = 40 * torch.finfo(dtype).eps ** 0.5 if name == "spread" else rtol
        torch.testing.assert_close(
            value.cpu(), exact, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
