"""What several kernels share: device functions, Gluon's too, and how launches overlap."""
# mypy: allow-untyped-defs

import functools
import re
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from fasttracks.kernels.device import capability

EPS = tl.constexpr(1e-5)  # of every LayerNorm
GLUON = tuple(int(n) for n in triton.__version__.split(".")[:2]) >= (3, 6)  # as used here


class EmptyKernel(RuntimeError):
    """The compiler left nothing of a kernel; launching it would end all work on the GPU."""


def is_empty(ptx: str) -> bool:
    """Whether a compiled kernel stores nothing, as where the compiler left a bare trap of it."""
    return re.search(r"\b(st|cp|red|atom)\.\S*global", ptx) is None


def refuse_empty(*loading) -> None:
    """A hook for Triton to call before it loads a kernel: raises EmptyKernel for one.

    `loading` is the module and function, which are not there yet, the kernel's name, the paths of
    its compiled forms by file name, and its hash.
    """
    name, paths = loading[2:4]
    for file, path in (paths or {}).items():
        if file.endswith(".ptx") and is_empty(Path(path).read_text()):
            raise EmptyKernel(f"Triton {triton.__version__} compiled the kernel {name} to nothing")


@functools.cache
def overlap(device: torch.device) -> dict[str, bool]:
    """Keywords of a launch that may begin while the one before it ends, from Hopper on.

    That is CUDA's programmatic dependent launch; the kernel has to call `wait_for_previous`. Some
    kernels read weights before they do, which only the launch right before may still be writing:
    never in the network, where every forward begins with an embedding, which writes no weights.
    """
    can = capability(device) >= (9, 0)
    return {"OVERLAP": can, "launch_pdl": can}


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Wait until the launch before this one is done and its results are there; let the next begin.

    In this order, so that before it waits a launch can rely on all but the one before it.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def gelu(x):
    """GELU, x Φ(x), of float32: within a fifth of a unit of float16's last place of the truth.

    As max(x, 0) - |x| Φ(-|x|), where log2 Φ(-|x|) is a polynomial fitted on |x| ≤ 5, weighted for
    float16's spacing; beyond, it falls fast enough. It takes one MUFU instruction and nine others.
    """
    n = -tl.abs(x)
    q = tl.fma(n, 0.00032039125452105614, 0.0058258625069568665)
    q = tl.fma(q, n, 0.04823108167683682)
    q = tl.fma(q, n, -0.46413263648572356)
    q = tl.fma(q, n, 1.1491667160143975)
    q = tl.fma(q, n, -1.0001227860099664)
    return tl.fma(n, tl.exp2(q), tl.maximum(x, 0.0))


@triton.jit
def layer_norm(x, weight, bias, c, C: tl.constexpr):
    """LayerNorm of the rows of `x`, float32, whose columns are channels `c`; x = 0 where c ≥ C."""
    inside = c < C
    mean = tl.sum(x, 1) * (1.0 / C)
    x = tl.where(inside[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(x * x, 1) * (1.0 / C)
    weight = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    return x * tl.rsqrt(variance + EPS)[:, None] * weight[None, :] + bias[None, :]
