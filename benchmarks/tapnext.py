"""TAPNext on this machine: is it right, then how fast: `python benchmarks/tapnext.py -o FOLDER`.

Weights are made by the rule of the conformance vectors, as a checkpoint that 'fasttracks convert'
reads. Nothing is timed before its error is known. Prints as it goes and writes
FOLDER/tapnext-DEVICE.json, renewed after each part, so that what is there stays if it is cut off.
"""

import argparse
import json
import math
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import torch.nn.functional as F
from tapnext_rule import save_checkpoint
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fasttracks.graphs import capture
from fasttracks.trackers.tapnext import TAPNext, network, weights
from fasttracks.trackers.tapnext.session import ATTENTION, Session, attend, fastest

VECTORS = Path(__file__).parents[1] / "tests" / "conformance"
BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
LAUNCHES: dict[str, list[dict[str, int]]] = {  # by kernel, to be tried
    "tapnext_recur": [
        {"BLOCK_ROWS": rows, "num_warps": warps}
        for rows, warps in ((16, 4), (16, 8), (32, 4), (32, 8), (64, 8))
    ],
    "tapnext_add_norm": [
        {"BLOCK_ROWS": rows, "num_warps": warps}
        for rows, warps in ((1, 1), (1, 2), (1, 4), (2, 4), (4, 4), (4, 8), (8, 8))
    ],
    "tapnext_activate": [
        {"BLOCK": block, "num_warps": warps}
        for block, warps in ((512, 2), (1024, 4), (1024, 2), (1024, 8), (2048, 4), (4096, 8))
    ],
    "tapnext_heads": [
        {"BLOCK_ROWS": 16, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}
        for k, warps, stages in ((32, 4, 2), (32, 8, 2), (32, 8, 3), (64, 8, 2), (64, 4, 1))
    ],
}
LIMIT = 0.1  # px, of the 99th percentile of half precision's error


class Scene:
    """Frames and queries of some size, of which nothing is like another."""

    def __init__(self, size: int, queries: int, device: torch.device, frames: int = 8) -> None:
        with np.load(VECTORS / "tapnext_c256.npz") as file:
            video = torch.from_numpy(file["video"]).to(device).float() / 127.5 - 1
        video = F.interpolate(video.permute(0, 3, 1, 2), (size, size), mode="bilinear")
        video = video.permute(0, 2, 3, 1).contiguous()
        self.frames = [video[i % 3].roll(5 * i, 1)[None].contiguous() for i in range(frames)]
        generator = torch.Generator().manual_seed(queries)
        self.points = (256 * torch.rand(1, queries, 2, generator=generator)).to(device)
        self.birth = torch.randint(0, 4, (1, queries), generator=generator).to(device)
        self.rows = torch.arange(queries, device=device)

    def follow(self, session: Session) -> Tensor:
        """(T, Q, 4)."""
        session.reset()
        session.declare(self.rows, self.birth, self.points)
        return torch.cat([session.step(frame).clone() for frame in self.frames])

    def error(self, found: Tensor, truth: Tensor) -> dict[str, float]:
        """Pixels of the 256 space, of queries that are born."""
        born = torch.arange(len(found), device=found.device)[:, None] >= self.birth
        off = (found - truth)[born].double()
        pixels = off[:, :2].norm(dim=-1)
        return {
            "px p50": pixels.quantile(0.5).item(),
            "px p99": pixels.quantile(0.99).item(),
            "px max": pixels.max().item(),
            "visible p99": off[:, 2].abs().quantile(0.99).item(),
            "certainty p99": off[:, 3].abs().quantile(0.99).item(),
        }


def conformance(model: network.Network, names: list[str]) -> dict[str, dict[str, float]]:
    """Largest differences from the authors' answers, whatever the model's precision."""
    found = {}
    for name in names:
        with np.load(VECTORS / f"tapnext_{name}.npz") as file:
            v = dict(file)
        queries = torch.from_numpy(v["query"]).to(model.device)
        state = model.begin(len(queries), v["video"].shape[1:3])
        rows = torch.arange(len(queries), device=model.device)
        model.declare(state, rows, queries[None, :, 0], queries[None, :, 1:])
        frames = torch.from_numpy(v["video"]).to(model.device).float() / 127.5 - 1
        operations = fastest(model.device, model.dtype)
        with torch.no_grad():
            out = torch.cat([model.step(frame[None], state, operations) for frame in frames])
        off = out.double().cpu().numpy()
        found[name] = {
            "px": float(np.abs(off[..., :2] - v["tracks"]).max()),
            "visible": float(np.abs(off[..., 2] - v["visible_logits"]).max()),
        }
    return found


def timed(call: Callable[[], Any], calls: int, cuda: bool) -> dict[str, float]:
    """Milliseconds of calls that are each awaited, and of calls back to back."""

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    for _ in range(3):
        call()
    each = []
    for _ in range(calls):
        wait()
        start = time.perf_counter()
        call()
        wait()
        each.append(1000 * (time.perf_counter() - start))
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    together = 1000 * (time.perf_counter() - start) / calls
    return {
        "ms p50": float(np.median(each)),
        "ms p99": float(np.quantile(each, 0.99)),
        "ms back to back": together,
    }


def operations_of(queries: int, size: int) -> float:
    """Floating-point operations of a frame."""
    patches = (size // network.PATCH) ** 2
    tokens = patches + queries
    return 384.6e6 * tokens + 36_864 * tokens**2 + 0.3e6 * patches + 1.3e6 * queries


class Eager(Session):
    """A session that launches kernel by kernel."""

    def __init__(self, *arguments: Any, compiled: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._graph = None
        if compiled:
            self._step = torch.compile(self.model.step, dynamic=False)
            with torch.no_grad():
                self._graph, self._out = capture(self._run_compiled)

    def _run_compiled(self) -> Tensor:
        with sdpa_kernel(list(ATTENTION), set_priority=True):
            return self._step(self._frames, self.state, self.operations)


def ways(cuda: bool, compiled: bool) -> dict[str, Callable[..., Session]]:
    """The ways to step, by name, from a model, queries and a size."""
    found: dict[str, Callable[..., Session]] = {
        "eager torch": partial(Eager, operations=network.TORCH)
    }
    if not cuda:
        return found
    found["torch in a graph"] = partial(Session, operations=network.TORCH)
    found["kernels"] = Session
    for name, backend in BACKENDS.items():
        one = partial(attend, backends=(backend, SDPBackend.MATH))
        ours = fastest(torch.device("cuda"), torch.float16)._replace(attend=one)
        found[f"kernels, {name}"] = partial(Session, operations=ours)
    if compiled:
        found["compiled torch in a graph"] = partial(Eager, operations=network.TORCH, compiled=True)
    return found


def speed(
    half: network.Network, exact: network.Network, queries: int, size: int, options: Any
) -> dict[str, Any]:
    """Error, then time, of every way of stepping."""
    cuda = half.device.type == "cuda"
    scene = Scene(size, queries, half.device)
    plain = network.TORCH
    with_truth = Eager(exact, queries, size, operations=plain)
    truth = scene.follow(with_truth)
    del with_truth
    rows: dict[str, Any] = {}
    compiled = cuda and options.compile and (queries, size) == (max(options.queries), 256)
    for name, make in ways(cuda, compiled).items():
        try:
            before = torch.cuda.memory_allocated() if cuda else 0
            start = time.perf_counter()
            session = make(half, queries, size)
            row: dict[str, Any] = {"ready s": time.perf_counter() - start}
            row |= scene.error(scene.follow(session), truth)
            if cuda:
                row["session GB"] = (torch.cuda.memory_allocated() - before) / 1e9
            row |= timed(partial(session.step, scene.frames[0]), options.calls, cuda)
            row["TFLOP/s"] = operations_of(queries, size) / row["ms back to back"] / 1e9
            row["accurate"] = row["px p99"] <= LIMIT
            del session
        except Exception:  # a backend that can't, say: the others are still of use
            row = {"failed": traceback.format_exc(limit=-3)}
        rows[name] = row
        print(f"{queries} queries at {size}²  {name:26}", _short(row), flush=True)
    return rows


def _short(row: dict[str, Any]) -> str:
    if "failed" in row:
        return row["failed"].strip().splitlines()[-1][:200]
    return "  ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))


def profile(model: network.Network, queries: int, size: int) -> list[dict[str, Any]]:
    """Microseconds of a step by kernel, the longest first."""
    session = Session(model, queries, size)
    scene = Scene(size, queries, model.device, 2)
    session.step(scene.frames[0])
    activities = [torch.profiler.ProfilerActivity.CUDA]
    steps = 10
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(steps):
            session.step(scene.frames[1])
        torch.cuda.synchronize()
    rows = [
        {"kernel": e.key[:120], "calls": e.count / steps, "us": e.self_device_time_total / steps}
        for e in found.key_averages()
    ]
    return sorted(rows, key=lambda row: -row["us"])


def launches(model: network.Network, queries: int) -> dict[str, list[dict[str, Any]]]:
    """Microseconds of each kernel as it may be launched, one call, of a step at 256²."""
    from fasttracks.kernels import launches
    from fasttracks.kernels import tapnext as kernels
    from fasttracks.performance.timing import graph_seconds

    state = model.begin(queries, (256, 256))
    tokens, width = state.hidden.shape[2], model.width
    blocks = list(enumerate(model.layers))

    def noise(channels: int) -> Tensor:
        return torch.randn(1, tokens, channels, device=model.device).half()

    wide, one, x = noise(2 * width), noise(width), noise(width).float()
    big, last = noise(8 * width), noise(width)[:, -queries:].contiguous()

    def recur() -> None:
        for i, b in blocks:
            kernels.recur(
                *(wide, b.branches.bias, b.convolution.weight, b.convolution.bias),
                *(b.gates.weight, b.gates.bias, state.rates[i]),
                *(state.hidden[i], state.taps[i], state.frame),
            )

    def add_norm() -> None:
        for _, b in blocks:
            norm = b.attention_norm
            kernels.add_norm(x, one, b.down.bias, norm.weight, norm.bias, 1e-6, torch.float16)

    def activate() -> None:
        for _, b in blocks:
            kernels.activate(big, b.up.bias, gated=True)

    def heads() -> None:
        kernels.heads(last, model.heads)

    works = {
        "tapnext_recur": recur,
        "tapnext_add_norm": add_norm,
        "tapnext_activate": activate,
        "tapnext_heads": heads,
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, work in works.items():
        calls = 1 if name == "tapnext_heads" else len(blocks)
        before = launches.table(model.device)
        for options in LAUNCHES[name]:
            row: dict[str, Any] = dict(options)
            tried = [(math.inf, {**before[name][-1][1], **options})]
            try:
                with launches.using(model.device, {**before, name: tried}):
                    row["us"] = 1e6 * graph_seconds(work) / calls
            except Exception as error:  # more shared memory than there is
                row["failed"] = str(error)[:200]
            found.setdefault(name, []).append(row)
        found[name].sort(key=lambda row: row.get("us", math.inf))
        print(name, found[name][:3], flush=True)
    return found


def clips(tracker: TAPNext, frames: int, points: int) -> dict[str, Any]:
    """Whole clips by the tracker, pixels in and tracks out, and the memory that they take."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (10 * frames, 120, 214, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    queries = rng.uniform((0, 0, 0), (1, 853, 479), (points, 3))
    cuda = tracker._loaded[2].type == "cuda"
    found: dict[str, Any] = {}
    for name, count, later in (
        ("both ways, first call", frames, frames // 2),
        ("both ways", frames, frames // 2),
        ("forwards", frames, 0),
        ("forwards, ten times as long", 10 * frames, 0),
    ):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        queries[:, 0] = 0
        queries[: points // 2, 0] = later
        start = time.perf_counter()
        tracks, _ = tracker(video[:count], queries=queries)
        seconds = time.perf_counter() - start
        assert tracks.shape == (count, points, 2)
        row = {"frames": count, "seconds": seconds, "ms a frame": 1000 * seconds / count}
        if cuda:
            row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        found[name] = row
        print(f"{points} points, 856×480, {name:28}", _short(row), flush=True)
    return found


class Record:
    """What was measured, on disk from the first part on."""

    def __init__(self, folder: str, device: str) -> None:
        name = torch.cuda.get_device_name().split()[1].lower() if "cuda" in device else "cpu"
        self.path = Path(folder) / f"tapnext-{name}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = machine.describe(device)

    def keep(self, key: str, work: Callable[[], Any]) -> None:
        """Add a part; if it fails, how, and the others are still of use."""
        try:
            self.found[key] = work()
        except Exception:
            self.found[key] = {"failed": traceback.format_exc()}
            print(key, self.found[key]["failed"], flush=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 512, 256, 1])
    parser.add_argument("--calls", type=int, default=100, help="timed, of each way")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="try the script itself, on any machine")
    options = parser.parse_args()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda, most = device.startswith("cuda"), max(options.queries)
    sizes = [(queries, 256) for queries in options.queries] + [(most, 512)]
    names, frames = ["a64", "b96x128", "c256", "d512"], 50
    if options.tiny:
        sizes, names, frames, most, options.calls = [(5, 64)], ["a64"], 2, 5, 2

    record = Record(options.output, device)
    with tempfile.TemporaryDirectory() as folder:
        released, file = Path(folder, "released.pt"), Path(folder, "converted.safetensors")
        save_checkpoint(released)
        weights.convert(released, file, dtype=torch.float32)
        released.unlink()
        exact, _ = weights.load(file, device)
        half, _ = weights.load(file, device, torch.float16 if cuda else torch.bfloat16)
    for name, model in (("float32", exact), ("half", half)):
        record.keep(f"{name} against the authors", partial(conformance, model, names))
        print(name, "against the authors", record.found[f"{name} against the authors"], flush=True)
    for queries, size in sizes:
        work = partial(speed, half, exact, queries, size, options)
        record.keep(f"{queries} queries at {size}²", work)
    del exact
    if cuda:
        record.keep("kernels", partial(profile, half, most, 256))
        for row in record.found["kernels"][:20]:
            print(f"{row['us']:9.1f} us  {row['calls']:5.1f} calls  {row['kernel']}")
        record.keep("launches", partial(launches, half, most))
    if cuda or options.tiny:
        tracker = TAPNext(device=device, few=0)
        tracker.__dict__["_loaded"] = half, 64 if options.tiny else 256, half.device
        record.keep("clips", partial(clips, tracker, frames, most))
    print(f"wrote {record.path}")


if __name__ == "__main__":
    main()
