"""Device functions that several kernels share, Gluon's too."""
# mypy: allow-untyped-defs

import triton
import triton.language as tl

EPS = tl.constexpr(1e-5)  # of every LayerNorm


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
