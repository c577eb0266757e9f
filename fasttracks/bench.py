"""`fasttracks bench`: is this machine's forward accurate, and how fast is it?

Nothing is timed before its accuracy is in order. `benchmarks/` measures with the same functions.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasttracks.config import Config
from fasttracks.engine import Engine
from fasttracks.errors import InputError
from fasttracks.geometry import Prediction, rotation_angle
from fasttracks.network import TracksTo4D
from fasttracks.pipeline import normalise
from fasttracks.reference import forward as reference
from fasttracks.tracks import Tracks
from fasttracks.weights import load

CLIP = Path(__file__).parent / "data" / "sheep.npz"
SIZES = ((100, 20), (100, 50), (256, 50), (675, 21), (1000, 50), (2048, 50), (4096, 50))
FOCAL = 525.0  # px, at which reprojection is judged
LIMITS = {"points": 2e-3, "rotation °": 0.05, "reprojection px": 0.25}
_SCORES = 1 << 30  # of one layer's attention, that the reference may keep


def clip(tracks: int, frames: int, device: torch.device | str) -> Tensor:
    """A real clip's tracks (1, T, N, 3), float32, as the network takes them, at some size.

    From 900 tracks of 50 frames: more tracks repeat with half a pixel of noise, more frames run
    back and forth.
    """
    source = Tracks.load(CLIP)
    inputs = normalise(source, source.camera()).float()
    rng = np.random.default_rng(0)
    length, count = inputs.shape[:2]
    rows = rng.permutation(count)[np.arange(tracks) % count]
    there_and_back = np.abs((np.arange(frames) + length - 1) % (2 * length - 2) - (length - 1))
    inputs = inputs[there_and_back][:, rows]
    noise = rng.normal(0, 0.5 / FOCAL, (frames, max(0, tracks - count), 2))
    inputs[:, count:, :2] += torch.from_numpy(noise).float()
    return inputs[None].to(device)


def truth(network: TracksTo4D, inputs: Tensor) -> Prediction:
    """The reference's answer in float64, or in float32 where attention scores would fill the GPU.

    `network` is in float32; that differs from float64 by 1e-6, which no bound here notices.
    """
    _, frames, tracks, _ = inputs.shape
    if frames * tracks * max(frames, tracks) * network.config.heads > _SCORES:
        return network(inputs)
    weights = {name: p.double() for name, p in network.state_dict().items()}
    return reference(weights, network.config, inputs.double())


def errors(prediction: Prediction, exact: Prediction) -> dict[str, float]:
    """Relative error of world points, the largest of rotations, and p99 of reprojection."""
    p, q = (Prediction(*(t.double() for t in both)) for both in (prediction, exact))
    angle = torch.rad2deg(rotation_angle(p.rotation.mT @ q.rotation))
    moved = FOCAL * (p.projection - q.projection).norm(dim=-1)
    rank = max(1, round(0.99 * moved.numel()))
    return {
        "points": ((p.points - q.points).norm() / q.points.norm()).item(),
        "rotation °": angle.max().item(),
        "reprojection px": moved.flatten().kthvalue(rank).values.item(),
    }


def operations(config: Config, tracks: int, frames: int) -> float:
    """Floating-point operations of the trunk's matrix products, which are nearly all there are."""
    inner = config.heads * config.head_width
    linear = 2 * config.width * (4 * inner + 2 * config.mlp_width)
    scores = 4 * inner * (frames + tracks) / 2  # on average over both kinds of block
    return 2 * config.rounds * tracks * frames * (linear + scores)


def wall_times(call: Callable[[], Any], calls: int, device: torch.device) -> list[float]:
    """Seconds from each call until its result is there."""

    def finished() -> float:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(3):
        finished()
    marks = [finished() for _ in range(calls + 1)]
    return np.diff(marks).tolist()


def host_time(call: Callable[[], Any], calls: int = 200) -> float:
    """Median seconds that a call keeps the host; on CUDA, of an idle GPU."""
    marks = []
    for _ in range(calls):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        marks.append(time.perf_counter() - start)
    return float(np.median(marks))


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    return {f"p{q} ms": round(1e3 * float(np.percentile(seconds, q)), 4) for q in (50, 95, 99)}


def run(options: Any, say: Callable[[str], None]) -> None:
    """The command: a line for each size."""
    network = load(
        options.model,
        device=options.device,
        precision=options.precision,
        backend=options.backend,
    )
    exact = load(options.model, device=options.device, precision="fp32", backend="torch")
    device = network.points.weight.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    dtype = next(network.blocks.parameters()).dtype
    say(f"{name}, {str(dtype).removeprefix('torch.')}, backend {network.backend.name}")
    say(f"{'tracks × frames':>15} {'points':>8} {'rotation °':>10} {'reproj. px':>10} "
        f"{'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} {'host µs':>8} {'TFLOP/s':>8}")  # fmt: skip
    sizes = SIZES if device.type == "cuda" else SIZES[:2]
    for tracks, frames in [_size(text) for text in options.sizes] or sizes:
        inputs = clip(tracks, frames, device)
        engine = Engine(network, max_tracks=tracks, max_frames=frames)
        found = errors(engine(inputs), truth(exact, inputs))
        check(found, dtype)
        times = percentiles(wall_times(lambda: engine(inputs), options.calls, device))  # noqa: B023
        host = f"{1e6 * host_time(lambda: engine(inputs)):8.0f}" if device.type == "cuda" else ""  # noqa: B023
        speed = operations(network.config, tracks, frames) / times["p50 ms"] / 1e9
        say(
            f"{tracks:>8} × {frames:<4} {found['points']:8.1e} {found['rotation °']:10.4f} "
            f"{found['reprojection px']:10.3f} "
            + " ".join(f"{ms:9.3f}" for ms in times.values())
            + f" {host:>8} {speed:8.1f}"
        )


def check(found: dict[str, float], dtype: torch.dtype = torch.float16) -> None:
    """The gate: InputError if an error is beyond its limit, or is no number.

    bfloat16, whose rounding is 8 times coarser, is allowed 16 times as much: plain torch's own
    reprojection differs by up to 1.6 px.
    """
    allowance = 16 if dtype == torch.bfloat16 else 1
    limits = {name: allowance * most for name, most in LIMITS.items()}
    bad = [f"{k} {found[k]:.2g} > {most:g}" for k, most in limits.items() if not found[k] <= most]
    if bad:
        raise InputError(f"accuracy against float64: {', '.join(bad)}; not timed")


def _size(text: str) -> tuple[int, int]:
    tracks, _, frames = text.partition("x")
    if not (tracks.isdecimal() and frames.isdecimal() and int(tracks) and int(frames)):
        raise InputError(f"SIZE: expected TRACKSxFRAMES such as 256x50, found {text!r}")
    return int(tracks), int(frames)
