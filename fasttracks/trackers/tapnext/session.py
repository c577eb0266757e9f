"""A clip followed frame by frame: TAPNext's state, and on CUDA each step as one CUDA graph."""

from __future__ import annotations

import warnings
from functools import cache, lru_cache, partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fasttracks.backends import missing
from fasttracks.graphs import capture
from fasttracks.trackers.tapnext import network
from fasttracks.trackers.tapnext.network import Network, Operations

# In this order: the first that can.
ATTENTION = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
_STEP = 16 * 2**20  # numbers of source images that are resized at once


class Session:
    """B clips of Q rows of queries.

    On CUDA a step is captured as a CUDA graph when the session is made, so that a step costs a
    copy of the frame and one launch, and takes no memory.
    """

    def __init__(
        self,
        model: Network,
        queries: int,
        size: int = 256,
        *,
        batch: int = 1,
        operations: Operations | None = None,
    ) -> None:
        """Take all memory.

        Args:
            model: from `weights.load`.
            queries: Q, spare rows included.
            size: S, the side of the frames in pixels.
            batch: B.
            operations: by default the fastest that run on the model's device.
        """
        self.model = model
        self.size = size
        self.device = model.device
        self.operations = operations or fastest(model.device, model.dtype)
        self.state = model.begin(queries, (size, size), batch)
        self._frames = torch.zeros(batch, size, size, 3, device=self.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if self.device.type == "cuda":
            with torch.cuda.device(self.device), torch.no_grad():
                self._graph, self._out = capture(self._run)
            self.state.reset()

    def reset(self) -> None:
        """Begin new clips, with spare rows only."""
        self.state.reset()

    def declare(self, rows: Tensor, birth: Tensor, points: Tensor) -> None:
        """Fill in spare rows, as `Network.declare` says."""
        with torch.no_grad():
            self.model.declare(self.state, rows, birth, points)

    def step(self, frames: Tensor) -> Tensor:
        """The next frames (B, S, S, 3) to positions and certainties (B, Q, 4); see `Network.step`.

        The result is overwritten by the next step.
        """
        with torch.no_grad():
            self._frames.copy_(frames)
            if self._graph is None:
                return self._run()
            with torch.cuda.device(self.device):
                self._graph.replay()
            return self._out

    def _run(self) -> Tensor:
        return self.model.step(self._frames, self.state, self.operations)


def fastest(device: torch.device, dtype: torch.dtype) -> Operations:
    """Our kernels on a GPU that they run on, in half precision; else plain torch."""
    if device.type != "cuda":
        return network.TORCH
    lacking = missing(device)
    if lacking:
        _fall_back(lacking)
    if lacking or dtype not in (torch.float16, torch.bfloat16):
        return network.TORCH._replace(attend=attend)
    from fasttracks.kernels import tapnext

    return Operations(tapnext.add_norm, tapnext.recur, tapnext.activate, attend, tapnext.heads)


def attend(qkv: Tensor, first: int, backends: tuple[SDPBackend, ...] = ATTENTION) -> Tensor:
    """`network.attend` by the first of some backends that can."""
    with sdpa_kernel(list(backends), set_priority=True):
        return network.attend(qkv, first)


@cache  # once a reason
def _fall_back(missing: str) -> None:
    warnings.warn(f"tapnext: plain torch, as {missing}", stacklevel=4)


def resized(frames: Tensor, size: int, *, antialias: bool = True) -> Tensor:
    """Frames (T, H, W, 3) in 0..255 to the network's input (T, S, S, 3) in -1..1.

    By Lanczos's filter and rounded, as Pillow does and as the published figures were made; or
    without `antialias` bilinearly, as the released frame wrapper does.
    """
    height, width = frames.shape[1:3]
    kind = partial(_resampling, antialias=antialias, device=frames.device)
    across, down = kind(width, size), kind(height, size)
    parts = []
    for part in frames.split(max(1, _STEP // (3 * height * width))):
        rows = torch.matmul(down, part.float().flatten(2))  # (T, S, W · 3)
        columns = rows.unflatten(2, (width, 3)).mT @ across.mT  # (T, S, 3, S)
        parts.append(columns.round().clamp(0, 255) if antialias else columns)
    return torch.cat(parts).mT / 127.5 - 1


@lru_cache(maxsize=16)
def _resampling(count: int, size: int, antialias: bool, device: torch.device) -> Tensor:
    """(size, count) weights of samples, at pixel centres, in each of the new ones."""
    scale = count / size
    reach = max(scale, 1.0) if antialias else 1.0
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale - 0.5
    x = (torch.arange(count, dtype=torch.float64) - centre[:, None]) / reach
    if antialias:
        weight = torch.sinc(x) * torch.sinc(x / 3) * (x.abs() < 3)
    else:
        weight = (1 - x.abs()).clamp(min=0)
    return (weight / weight.sum(1, keepdim=True)).float().to(device)


def out_of_memory(error: Exception) -> bool:
    """Whether that is what an error of torch's says."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
