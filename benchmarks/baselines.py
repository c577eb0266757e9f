"""What the engine is compared with: the reference, the best that torch does, the released code."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fasttracks
from fasttracks import ops, reference
from fasttracks.config import Config
from fasttracks.geometry import Prediction
from fasttracks.network import TracksTo4D
from fasttracks.performance.timing import graph_seconds
from fasttracks.released import regrouped, released_name, released_shape

SDPA = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
COMPILE_MODE = "max-autotune-no-cudagraphs"  # of the blocks; the rest has no large products


class StrongestTorch(nn.Module):
    """The network in float16, compiled, with the SDPA backend that is fastest along each axis."""

    def __init__(self, network: TracksTo4D, inputs: Tensor) -> None:
        super().__init__()
        self.network, self.points = network, network.points
        x = torch.randn(*inputs.shape[:3], network.config.width, device=inputs.device).half()
        self.sdpa: dict[int, SDPBackend] = {}
        first: Any = network.blocks[:2]  # one along each axis
        for block in first:
            seconds = {backend: _seconds(block, x, backend) for backend in SDPA}
            self.sdpa[block.axis] = min(seconds, key=seconds.__getitem__)
        self.embed = torch.compile(network.embedding, dynamic=False)
        for block in network.blocks:  # those along one axis share a compilation, but for the last
            block.compile(mode=COMPILE_MODE, dynamic=False)
        self.read = torch.compile(network.read, dynamic=False)

    def forward(self, tracks: Tensor) -> Prediction:
        x = self.embed(tracks, torch.float16)
        blocks: Any = self.network.blocks
        for block in blocks:
            with sdpa_kernel(self.sdpa[block.axis]):
                x = block(x)
        return self.read(x)


def _seconds(block: nn.Module, x: Tensor, backend: SDPBackend) -> float:
    try:
        with torch.no_grad(), sdpa_kernel(backend):
            return graph_seconds(lambda: block(x))
    except RuntimeError:  # this backend can't
        return float("inf")


def strongest_torch(inputs: Tensor) -> tuple[Callable[[Tensor], Prediction], dict[str, Any]]:
    """Compiled for this very shape and put into a CUDA graph; and what it is made of.

    TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS=ATEN leaves products to cuBLAS, where trying all of
    Triton's takes too long: over five minutes at 4096 × 50.
    """
    network = fasttracks.load("base", device=inputs.device, precision="fp16", backend="torch")
    strongest = StrongestTorch(network, inputs)
    _, frames, tracks, _ = inputs.shape
    engine = fasttracks.Engine(cast(TracksTo4D, strongest), max_tracks=tracks, max_frames=frames)
    used = {
        "sdpa over time": strongest.sdpa[ops.TIME].name,
        "sdpa over tracks": strongest.sdpa[ops.TRACK].name,
        "compiled": f"{COMPILE_MODE}, in a CUDA graph",
        "matrix products": inductor.max_autotune_gemm_backends,
    }
    return engine, used


def eager_torch(inputs: Tensor) -> tuple[Callable[[Tensor], Prediction], dict[str, Any]]:
    """The network in float16 by plain torch, nothing more."""
    return fasttracks.load("base", device=inputs.device, precision="fp16", backend="torch"), {}


def eager_reference(
    inputs: Tensor, *, tf32: bool
) -> tuple[Callable[[Tensor], Prediction], dict[str, Any]]:
    """`reference.py` in float32, if wanted with TF32 matrix products."""
    network = fasttracks.load("base", device=inputs.device, precision="fp32", backend="torch")
    weights = network.state_dict()

    def call(tracks: Tensor) -> Prediction:
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        before = products.allow_tf32, convolutions.allow_tf32
        products.allow_tf32 = convolutions.allow_tf32 = tf32  # torch's default for the latter: yes
        try:
            return reference.forward(weights, network.config, tracks)
        finally:
            products.allow_tf32, convolutions.allow_tf32 = before

    return call, {}


def released(inputs: Tensor) -> tuple[Callable[[Tensor], Prediction], dict[str, Any]]:
    """TracksTo4D's released code, in float32 as it comes, with our weights.

    $TRACKSTO4D is its checkout, set up as its README says (its licence is non-commercial).
    """
    checkout = os.environ["TRACKSTO4D"]
    sys.path.append(checkout)
    try:
        code = importlib.import_module("inference")
    finally:
        sys.path.remove(checkout)
    ours = fasttracks.load("base", device=inputs.device, precision="fp32", backend="torch")
    theirs = code.TracksTo4DNet(
        width1=ours.config.width,
        conv2_kernel_size=ours.config.camera_kernel,
        K=ours.config.bases,
        inputdim=3,
        positional_dim=ours.config.frequencies,
        predict_focal_length=ours.config.predicts_focal,
    ).to(inputs.device)
    theirs.load_state_dict(released_layout(ours))

    def call(tracks: Tensor) -> Prediction:
        out = theirs(tracks.permute(0, 2, 3, 1))
        focal, projection, _, rotation, position, basis, points = out[:7]
        coefficients, points_camera, motion = out[11], out[14], out[15]
        return Prediction(
            rotation=rotation,
            position=position,
            focal=focal[..., 0],
            coefficients=coefficients.mT,
            basis=basis.permute(0, 3, 1, 2),
            motion=motion,
            points=points.mT,
            points_camera=points_camera.mT,
            projection=projection.mT,
        )

    return call, {}


def released_layout(network: TracksTo4D) -> dict[str, Tensor]:
    """A network's weights as the released code loads them; `convert` is the way back.

    What that code computes and never reads is 0.
    """
    return {
        released_name(name): _to_released(name, tensor, network.config)
        for name, tensor in network.state_dict().items()
    }


def _to_released(name: str, tensor: Tensor, config: Config) -> Tensor:
    if name.startswith("camera."):
        whole = tensor.new_zeros(released_shape(name, tuple(tensor.shape)))
        whole[:4], whole[5 : config.bases + 10] = tensor[:4], tensor[4:]
        return whole
    return regrouped(tensor, config.bases) if name.startswith("points.") else tensor
