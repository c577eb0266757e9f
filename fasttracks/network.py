"""TracksTo4D, lean: the network of arXiv 2404.07097 for inference and fine-tuning."""

from functools import partial

import torch
from torch import Tensor, nn

from fasttracks import ops
from fasttracks.backends import TORCH, Backend, choose
from fasttracks.config import Config
from fasttracks.geometry import Prediction

# Tokens that a block of plain torch works on at a time. Sequences don't see each other, so this
# changes no result; it bounds the memory of the widest activations (3072 channels), which on a CPU
# shall be used again rather than be asked of the system anew each time.
_TOKENS_AT_ONCE = {"cpu": 1 << 11, "cuda": 1 << 17}
_compiled: set[tuple[torch.device, torch.dtype]] = set()  # whose kernels are there


class TracksTo4D(nn.Module):
    """Point tracks to cameras and points.

    The transformer blocks may be float32, float16 or bfloat16 (`blocks.to(dtype)`), best with
    their last norm in float32, as `weights.load` has it; the embedding, the heads and all geometry
    stay in float32, or float64 after `.double()`. In plain torch, tokens are in the dtype of the
    blocks' norms, and each product is in that of its weights.

    `backend` is "auto", "triton" or "torch", as `backends.choose` takes it. Where gradients are
    needed, on the CPU, in float64, and for attention and MLP in float32, plain torch runs.
    """

    def __init__(self, config: Config | None = None, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config = config or Config()
        self.backend = choose(backend, config)
        self.embedding = _Embedding(config)
        self.blocks = nn.ModuleList(
            _Block(config, axis) for _ in range(config.rounds) for axis in (ops.TIME, ops.TRACK)
        )
        self.camera = nn.Conv1d(config.width, sum(config.camera_channels), config.camera_kernel)
        self.points = nn.Linear(config.width, 3 * config.bases + 1)

    def forward(self, tracks: Tensor) -> Prediction:
        """Cameras and points of B clips, any T ≥ 1 and N ≥ 1.

        tracks (B, T, N, 3): image coordinates u, v (pixels through K⁻¹) and visibility, 1 or 0,
        in the heads' dtype (`points.weight.dtype`). Where a point was not seen u, v are those that
        `inputs.hold` leaves, as in training.
        """
        dtype = next(self.blocks.parameters()).dtype
        grad = torch.is_grad_enabled() and (
            tracks.requires_grad or any(p.requires_grad for p in self.parameters())
        )
        run = runnable(self.backend, tracks.device, dtype, grad)
        kernels = run is self.backend and run is not TORCH  # and no compiler looks on
        if kernels and (tracks.device, dtype) not in _compiled:
            self._compile(tracks, run)
        return self.by(tracks, run)

    def by(self, tracks: Tensor, run: Backend) -> Prediction:
        """`forward` by the operations of a backend."""
        x = self.embedding(tracks, next(self.blocks.parameters()).dtype, run)
        for block in self.blocks:
            x = block(x, run)
        return self.read(x, run)

    def _compile(self, tracks: Tensor, run: Backend) -> None:
        """Have Triton compile what tracks of this size need, side by side."""
        if not torch.cuda.is_current_stream_capturing():
            from fasttracks.kernels.ahead import compile_ahead

            compile_ahead(partial(self.by, tracks, run), tracks.device)
            _compiled.add((tracks.device, next(self.blocks.parameters()).dtype))

    def read(self, x: Tensor, run: Backend = TORCH) -> Prediction:
        """Heads and geometry: what the tokens (B, T, N, C) of the last block say."""
        rotation, position, focal, coefficients, basis, motion = run.heads(
            x,
            ops.affine(self.camera),
            ops.affine(self.points),
            predicts_focal=self.config.predicts_focal,
        )
        return Prediction(
            rotation,
            position,
            focal,
            coefficients,
            basis,
            motion,
            *run.compose_project(basis, coefficients, rotation, position, focal),
        )


class _Embedding(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(config.features)
        self.linear = nn.Linear(config.features, config.width)
        self.norm_out = nn.LayerNorm(config.width)

    def forward(
        self, tracks: Tensor, dtype: torch.dtype | None = None, run: Backend = TORCH
    ) -> Tensor:
        norm_in, linear, norm_out = map(ops.affine, (self.norm_in, self.linear, self.norm_out))
        return run.embed(tracks, norm_in, linear, norm_out, dtype)


class _Block(nn.Module):
    """Attention along one axis of (B, T, N, C), then an MLP and a closing norm."""

    def __init__(self, config: Config, axis: int) -> None:
        super().__init__()
        self.heads, self.axis = config.heads, axis
        inner = config.heads * config.head_width
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, run: Backend = TORCH) -> Tensor:
        rows = ops.TRACK if self.axis == ops.TIME else ops.TIME
        limit = _TOKENS_AT_ONCE.get(x.device.type, _TOKENS_AT_ONCE["cpu"])
        at_once = max(1, limit // (x.shape[0] * x.shape[self.axis]))
        if run.attention is not ops.attention or at_once >= x.shape[rows]:
            return self._sequences(x, run)
        return torch.cat([self._sequences(part, run) for part in x.split(at_once, rows)], rows)

    def _sequences(self, x: Tensor, run: Backend) -> Tensor:
        return self.transform(self.attend(x, run), run)

    def attend(self, x: Tensor, run: Backend) -> Tensor:
        """Attention with its norm and residual, of tokens (B, T, N, C)."""
        return run.attention(
            x,
            ops.affine(self.attention_norm),
            self.qkv.weight,
            self.out.weight,
            heads=self.heads,
            axis=self.axis,
        )

    def transform(self, x: Tensor, run: Backend) -> Tensor:
        """MLP with its norms and residual, of tokens (B, T, N, C)."""
        return run.mlp(
            x,
            ops.affine(self.mlp_norm),
            ops.affine(self.up),
            ops.affine(self.down),
            ops.affine(self.norm),
        )


def runnable(backend: Backend, device: torch.device, dtype: torch.dtype, grad: bool) -> Backend:
    """The part of a backend that can run one call; plain torch stands in for the rest.

    The kernels run on CUDA, forward only, and those of attention and MLP in half precision
    only. `dtype` is that of the blocks; `grad` says whether gradients are needed. Compilers and
    exporters see them as torch operators (`fasttracks.operators`).
    """
    if backend is TORCH or device.type != "cuda" or grad:
        return TORCH
    if torch.compiler.is_compiling():
        from fasttracks.operators import OPERATORS  # which take 0.2 s to register

        backend = OPERATORS
    if dtype == torch.float32:
        return backend._replace(attention=ops.attention, mlp=ops.mlp)
    return backend if dtype in (torch.float16, torch.bfloat16) else TORCH
