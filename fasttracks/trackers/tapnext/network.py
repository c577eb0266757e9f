"""TAPNext's network, one frame at a time.

Zholus et al., arXiv 2504.05579; TAPNext++, arXiv 2604.10582, has the same network with other
weights. It runs on any device, in any precision: large matrices and what they multiply are in one
dtype, and everything else, such as tokens, norms and the recurrent state, in float32, or in
float64 if the weights are.

Shapes: B clips, S × S pixels of a frame, Q queries, N tokens of a frame ((S/8)² of the image, row
by row, then Q of the queries), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPACE = 256  # positions are in a 256 × 256 space whatever the frame's size
PATCH = 8
HEAD = 64  # channels of an attention head, and of a block of the recurrent gates
TAPS = 4  # frames that the causal convolution sees
HIDDEN = 256  # channels inside the two heads
REACH = 20  # bins on each side of the best that a position is the mean of
RADIUS = 8.0  # in 256 space; certainty is that the point is within it
UNBORN = 2**30  # frame of a query that is not there yet

_GRID = 32  # patches along each side of the learned position grid
_EPS, _LAST_EPS = 1e-6, 1e-5  # of all norms, and of the last one and those in the heads


class Affine(nn.Module):
    """Weight and bias of any shape."""

    def __init__(self, weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(weight))
        self.bias = nn.Parameter(torch.empty(bias))


def _linear(channels: int, outputs: int) -> Affine:
    return Affine((outputs, channels), (outputs,))


class Block(nn.Module):
    """Parameters of one block: along time, then over a frame's tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = width // HEAD
        self.time_norm = nn.Parameter(torch.empty(width))
        self.branches = _linear(width, 2 * width)  # the gate, then the recurrent branch
        self.convolution = Affine((TAPS, width), (width,))
        self.gates = Affine((2, heads, HEAD, HEAD), (2, width))  # input gate, recurrence gate
        self.decay = nn.Parameter(torch.empty(width))
        self.merge = _linear(width, width)
        self.channel_norm = nn.Parameter(torch.empty(width))
        self.up = _linear(width, 8 * width)  # the gate, then what it gates
        self.down = _linear(4 * width, width)
        self.attention_norm = Affine((width,), (width,))
        self.qkv = _linear(width, 3 * width)
        self.project = _linear(width, width)
        self.mlp_norm = Affine((width,), (width,))
        self.mlp_up = _linear(width, 4 * width)
        self.mlp_down = _linear(4 * width, width)


class Heads(nn.Module):
    """Parameters of the coordinate head and the visibility head, in this order side by side."""

    reach, radius = REACH, RADIUS

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Affine((2, HIDDEN, width), (2, HIDDEN))
        self.first_norm = Affine((2, HIDDEN), (2, HIDDEN))
        self.second = Affine((2, HIDDEN, HIDDEN), (2, HIDDEN))
        self.second_norm = Affine((2, HIDDEN), (2, HIDDEN))
        self.coordinates = _linear(HIDDEN, 2 * SPACE)  # bins of y, then of x
        self.visible = Affine((HIDDEN,), (1,))


@dataclass
class State:
    """What a clip's frames so far leave behind. `Network.step` updates it in place.

    Attributes:
        frame: () int32, frames seen so far.
        birth: (B, Q) int32, the frame that each query's position is given in; `UNBORN` for a
            spare row, to be filled in before that frame.
        born: (B, Q, C), the query's token in that frame.
        hidden: (blocks, B, N, C) float32 (float64 if the weights are), the recurrent state.
        taps: (blocks, B, N, 3, C) in the matrices' dtype, the convolution's last inputs, oldest
            first.
        image: ((S/8)², C), added to the image's tokens: position and bias.
        rates: (blocks, C), of the recurrent state's decay.
    """

    frame: Tensor
    birth: Tensor
    born: Tensor
    hidden: Tensor
    taps: Tensor
    image: Tensor
    rates: Tensor

    def reset(self) -> None:
        """Begin a clip anew, with spare rows only."""
        self.frame.zero_()
        self.birth.fill_(UNBORN)
        self.born.zero_()
        self.hidden.zero_()
        self.taps.zero_()


class Operations(NamedTuple):
    """What surrounds the matrix products, by one backend. The signatures are those below."""

    add_norm: Callable[..., tuple[Tensor, Tensor]]
    recur: Callable[..., Tensor]
    activate: Callable[..., Tensor]
    attend: Callable[..., Tensor]
    heads: Callable[..., Tensor]


class Network(nn.Module):
    """The network."""

    def __init__(self, width: int = 768, depth: int = 12) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(width))
        self.unknown_token = nn.Parameter(torch.empty(width))
        self.query_token = nn.Parameter(torch.empty(width))
        self.image_position = nn.Parameter(torch.empty(_GRID, _GRID, width))
        self.patch = _linear(3 * PATCH**2, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = Affine((width,), (width,))
        self.heads = Heads(width)

    @property
    def width(self) -> int:
        """C."""
        return self.norm.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the large matrices."""
        return self.heads.coordinates.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    @property
    def layers(self) -> list[Block]:
        """The blocks, by their type."""
        return cast("list[Block]", list(self.blocks))

    def begin(self, queries: int, size: tuple[int, int], batch: int = 1) -> State:
        """The state before the first frame, with all queries spare.

        Args:
            queries: Q, 1 or more; none can be added later.
            size: (height, width) of the frames, multiples of 8; (256, 256) and (512, 512) are
                what networks were trained for.
            batch: B.
        """
        wide, device = self.norm.weight.dtype, self.device
        height, width = (side // PATCH for side in size)
        grid: Tensor = self.image_position
        if (height, width) != grid.shape[:2]:
            grid = F.interpolate(grid.permute(2, 0, 1)[None], (height, width), mode="bicubic")
            grid = grid[0].permute(1, 2, 0)
        shape = len(self.blocks), batch, height * width + queries
        decay = torch.stack([block.decay for block in self.layers])
        state = State(
            frame=torch.empty((), dtype=torch.int32, device=device),
            birth=torch.empty(batch, queries, dtype=torch.int32, device=device),
            born=torch.empty(batch, queries, self.width, dtype=wide, device=device),
            hidden=torch.empty(*shape, self.width, dtype=wide, device=device),
            taps=torch.empty(*shape, TAPS - 1, self.width, dtype=self.dtype, device=device),
            image=grid.flatten(0, 1) + self.patch.bias,
            rates=8 * F.softplus(decay),
        )
        state.reset()
        return state

    def declare(self, state: State, rows: Tensor, birth: Tensor, points: Tensor) -> None:
        """Fill in queries, before the frame that they are born in.

        Args:
            state: changed in place.
            rows: (n,) of the state's Q rows, in each clip of the batch.
            birth: (B, n) frame numbers from the clip's start.
            points: (B, n, 2) (y, x) in 256 space.
        """
        state.birth[:, rows] = birth.to(state.birth)
        state.born[:, rows] = self.query_token + encode(points.to(state.born), self.width)

    def step(self, frames: Tensor, state: State, operations: Operations | None = None) -> Tensor:
        """Go on by one frame.

        Args:
            frames: (B, S, S, 3) RGB in -1..1.
            state: changed in place.
            operations: what runs all but the matrix products, by default plain torch.

        Returns:
            (B, Q, 4): y and x in 256 space, the visibility's logit (visible above 0) and the
            certainty, a probability. Ignore those of unborn queries.
        """
        operations = operations or TORCH
        return operations.heads(self.tokens(frames, state, operations), self.heads)

    def tokens(self, frames: Tensor, state: State, operations: Operations) -> Tensor:
        """`step` up to its last norm: the queries' tokens (B, Q, C)."""
        add_norm, recur, activate, attend, _ = operations
        dtype, blocks = self.dtype, self.layers
        patches = state.image.shape[0]
        x = torch.cat([self._image(frames, state), self._queries(state)], 1)
        x, u = add_norm(x, None, None, blocks[0].time_norm, None, _EPS, dtype)
        for i, block in enumerate(blocks):
            mixed = recur(
                F.linear(u, block.branches.weight),
                block.branches.bias,
                block.convolution.weight,
                block.convolution.bias,
                block.gates.weight,
                block.gates.bias,
                state.rates[i],
                state.hidden[i],
                state.taps[i],
                state.frame,
            )
            delta = F.linear(mixed, block.merge.weight)
            x, u = add_norm(x, delta, block.merge.bias, block.channel_norm, None, _EPS, dtype)
            inner = activate(F.linear(u, block.up.weight), block.up.bias, gated=True)
            delta = F.linear(inner, block.down.weight)
            norm = block.attention_norm
            x, u = add_norm(x, delta, block.down.bias, norm.weight, norm.bias, _EPS, dtype)

            # Nothing asks for the image's tokens after the last attention.
            last = i == len(blocks) - 1
            first = patches if last else 0
            attended = attend(F.linear(u, block.qkv.weight, block.qkv.bias), first)
            delta = F.linear(attended, block.project.weight)
            x = x[:, first:].contiguous()
            norm = block.mlp_norm
            x, u = add_norm(x, delta, block.project.bias, norm.weight, norm.bias, _EPS, dtype)
            inner = activate(F.linear(u, block.mlp_up.weight), block.mlp_up.bias, gated=False)
            delta, bias = F.linear(inner, block.mlp_down.weight), block.mlp_down.bias
            if last:
                norm = self.norm
                x, u = add_norm(x, delta, bias, norm.weight, norm.bias, _LAST_EPS, dtype)
            else:
                scale = blocks[i + 1].time_norm
                x, u = add_norm(x, delta, bias, scale, None, _EPS, dtype)
        state.frame += 1
        return u

    def _image(self, frames: Tensor, state: State) -> Tensor:
        """Tokens of the image (B, patches, C)."""
        patches = frames.unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH))
        patches = patches.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)  # rgb, rows, columns
        return F.linear(patches.to(state.image.dtype), self.patch.weight) + state.image

    def _queries(self, state: State) -> Tensor:
        """Tokens of the queries (B, Q, C): not there yet, being born, or older."""
        birth = state.birth[..., None]
        token = torch.where(birth > state.frame, self.unknown_token, self.mask_token)
        return torch.where(birth == state.frame, state.born, token)


def encode(points: Tensor, width: int = 768) -> Tensor:
    """The position code (..., C) of points (..., 2) (y, x) in 256 space.

    A fixed table of sines and cosines at 256 × 256 pixel centres, read bilinearly and taken to be
    0 outside. Its channels are those of the column, then those of the row, so that it is never
    built: one line of it is read along each axis.
    """
    table = _waves(width, points.device).to(points.dtype)
    low = (points - 0.5).floor()
    part = points - 0.5 - low
    line = within = torch.zeros(1).to(points)
    for index, weight in ((low, 1 - part), (low + 1, part)):
        inside = (weight * ((index >= 0) & (index < SPACE)))[..., None]
        line = line + inside * table[index.clamp(0, SPACE - 1).long()]
        within = within + inside  # less than 1 beside the border
    (of_y, of_x), (within_y, within_x) = line.unbind(-2), within.unbind(-2)
    return torch.cat([of_x * within_y, of_y * within_x], -1)


@lru_cache(maxsize=8)
def _waves(width: int, device: torch.device) -> Tensor:
    """(256, C / 2): sines, then cosines, of a row's or a column's number at all rates."""
    quarter = width // 4
    rate = 10000 ** (-torch.arange(quarter, dtype=torch.float64) / (quarter - 1))
    angle = torch.arange(SPACE, dtype=torch.float64)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1).float().to(device)


def add_norm(
    x: Tensor,
    delta: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    shift: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The sum x + delta + bias, and its norm in `dtype`, over the last axis.

    The norm is a LayerNorm; without `shift` x / rms(x) · (1 + weight).
    """
    if delta is not None and bias is not None:
        x = x + (delta + bias)
    if shift is not None:
        return x, F.layer_norm(x, x.shape[-1:], weight, shift, eps).to(dtype)
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x, (x * scale * (1 + weight)).to(dtype)


def recur(
    branches: Tensor,
    bias: Tensor,
    taps_weight: Tensor,
    taps_bias: Tensor,
    gates_weight: Tensor,
    gates_bias: Tensor,
    rate: Tensor,
    hidden: Tensor,
    taps: Tensor,
    frame: Tensor,
) -> Tensor:
    """One frame of the convolution, the RG-LRU and its gate.

    Args:
        branches: (B, N, 2 C), the gate and the recurrent branch, without their bias.
        bias: (2 C,).
        taps_weight: (4, C) of the causal convolution, the last for the present.
        taps_bias: (C,).
        gates_weight: (2, C / 64, 64, 64): input gate and recurrence gate, by blocks of channels;
            inputs before outputs.
        gates_bias: (2, C).
        rate: (C,), of the decay.
        hidden: (B, N, C), updated in place.
        taps: (B, N, 3, C), updated in place.
        frame: (), 0 in a clip's first frame.

    Returns:
        (B, N, C) in the dtype of `branches`.
    """
    gate, new = (branches + bias).chunk(2, -1)
    window = torch.cat([taps, new[..., None, :].to(taps.dtype)], -2)
    taps.copy_(window[..., 1:, :])
    mixed = (window * taps_weight).sum(-2) + taps_bias
    blocks = mixed.to(gates_weight.dtype).unflatten(-1, (-1, HEAD))
    gates = torch.einsum("bnhi,ghij->gbnhj", blocks, gates_weight).flatten(-2)
    opened, kept = (gates + gates_bias[:, None, None]).sigmoid()
    log_a = -rate * kept
    scale = (-torch.expm1(2 * log_a)).sqrt()
    scale = torch.where(frame == 0, 1, scale)
    hidden.mul_(log_a.exp()).add_(scale * opened * mixed)
    return (hidden * F.gelu(gate, approximate="tanh")).to(branches.dtype)


def activate(x: Tensor, bias: Tensor, *, gated: bool) -> Tensor:
    """GELU of x + bias; or if gated its first half, by tanh's GELU, times its second half."""
    y = x + bias
    if not gated:
        return F.gelu(y).to(x.dtype)
    gate, value = y.chunk(2, -1)
    return (F.gelu(gate, approximate="tanh") * value).to(x.dtype)


def attend(qkv: Tensor, first: int) -> Tensor:
    """Attention of the tokens from `first` on to all: (B, N, 3 C) to (B, N - first, C)."""
    q, k, v = qkv.unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q[:, :, first:], k, v).transpose(1, 2).flatten(2)


def heads(x: Tensor, weights: Heads) -> Tensor:
    """Both heads on tokens (B, Q, C): (B, Q, 4), as `Network.step` returns it."""
    coordinates, visible = logits(x, weights)
    position, certainty = decode(coordinates).split((2, 1), -1)
    return torch.cat([position, visible[..., None], certainty], -1)


def logits(x: Tensor, weights: Heads) -> tuple[Tensor, Tensor]:
    """Of the bins (B, Q, 512), those of y first, and of visibility (B, Q)."""
    w = weights
    wide, shape = w.visible.weight.dtype, x.shape[:-1]
    h = x.flatten(0, -2).expand(2, -1, -1)
    for layer, norm in ((w.first, w.first_norm), (w.second, w.second_norm)):
        h = h.to(layer.weight.dtype) @ layer.weight.mT + layer.bias[:, None]
        h = F.layer_norm(h, h.shape[-1:], eps=_LAST_EPS)
        h = F.gelu(h * norm.weight[:, None] + norm.bias[:, None])
    coordinates = F.linear(h[0].to(w.coordinates.weight.dtype), w.coordinates.weight)
    coordinates = coordinates.to(wide) + w.coordinates.bias
    return coordinates.unflatten(0, shape), (h[1] @ w.visible.weight + w.visible.bias).view(shape)


def decode(bins: Tensor) -> Tensor:
    """Position y, x and certainty (..., 3) from logits (..., 512).

    Certainty is the probability that a point lies within `RADIUS` of the position.
    """
    bins = bins.unflatten(-1, (2, SPACE))
    bin = torch.arange(SPACE, device=bins.device)
    best = bins.argmax(-1, keepdim=True)
    near = (bin - best).abs() <= REACH
    share = (0.5 * bins).masked_fill(~near, -math.inf).softmax(-1)
    position = (share * bin).sum(-1) + 0.5

    # All bins that the disc can meet, along each axis.
    start = (position - RADIUS - 0.5).floor().clamp(0, SPACE - 2 * RADIUS - 1).long()
    index = start[..., None] + torch.arange(int(2 * RADIUS) + 1, device=bins.device)
    chance = bins.softmax(-1).gather(-1, index)
    offset = (index + 0.5 - position[..., None]).square()
    inside = offset[..., 0, :, None] + offset[..., 1, None, :] <= RADIUS**2 + 1e-8
    certainty = (chance[..., 0, :, None] * chance[..., 1, None, :] * inside).sum((-1, -2))
    return torch.cat([position, certainty[..., None]], -1)


TORCH = Operations(add_norm, recur, activate, attend, heads)
