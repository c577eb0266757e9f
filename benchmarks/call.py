"""`reconstruct` end to end on a GPU: answers, times, cold starts, memory: `call.py -o FOLDER`.

Answers come first: a size whose answer is not within the accuracy gate is not timed. Writes
FOLDER/call.json, whose rows `report.py` keeps, and FOLDER/call-profile.txt, which says where the
host's and the GPU's time goes. A part that fails is reported, and the others go on.
"""

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

import fasttracks
from fasttracks import batch, engine, pipeline
from fasttracks.geometry import Prediction
from fasttracks.performance import accuracy
from fasttracks.performance.sample import sample_clip
from fasttracks.performance.timing import percentiles
from fasttracks.tracks import Tracks, normalise

SIZES = ((100, 50), (256, 50), (1000, 50))
CALLS = {100: 400, 256: 300, 1000: 150}
BARS = {  # ms at p50 by column and tracks
    "engine alone": {},
    "numpy, engine": {100: 0.95, 256: 1.6, 1000: 5.6},
    "numpy, by name": {100: 0.95, 256: 1.6, 1000: 5.6},
    "CUDA tensors": {100: 0.75, 256: 1.35, 1000: 5.0},
    "no intrinsics": {100: 1.6, 256: 2.3, 1000: 6.6},
    "bundle": {100: 8.0, 256: 9.5, 1000: 15.0},
}
TAIL = 1.3  # p99 over p50, at most
BATCH, CLIPS_A_SECOND = 32, 900
COLD = {"empty": 8.0, "empty, bundle": 12.0, "filled": 1.0, "filled, bundle": 1.5}  # seconds


def prediction_of(rec: Any, clip: Tracks, camera: np.ndarray) -> Prediction:
    """What `accuracy.errors` compares, of a result."""
    pose = torch.from_numpy(rec.camera_to_world)
    image = normalise(rec.reprojection.astype(np.float64), camera)
    fields = dict.fromkeys(Prediction._fields, torch.zeros(1))
    fields |= {
        "points": torch.from_numpy(rec.points)[None],
        "rotation": pose[None, :, :3, :3],
        "projection": torch.from_numpy(image)[None],
    }
    return Prediction(**{name: value.cuda() for name, value in fields.items()})


def calls_of(clip: Tracks, camera: np.ndarray, network: Any, kept: Any) -> dict[str, Any]:
    """What is timed, by column; each returns what it made."""
    given: dict[str, Any] = {"visibility": clip.visibility, "image_size": clip.image_size}
    known = {**given, "intrinsics": camera[0]}
    on_gpu: dict[str, Any] = {
        "tracks": torch.from_numpy(clip.tracks).cuda(),
        "visibility": torch.from_numpy(np.asarray(clip.visibility)).cuda(),
        "intrinsics": torch.from_numpy(camera[0].copy()).cuda(),
        "image_size": clip.image_size,
    }
    inputs = clip.inputs(camera).float()[None].cuda()
    run = fasttracks.reconstruct
    return {
        "engine alone": lambda: kept(inputs),
        "numpy, engine": lambda: run(clip.tracks, **known, model=kept),
        "numpy, by name": lambda: run(clip.tracks, **known),
        "CUDA tensors": lambda: run(**on_gpu),
        "no intrinsics": lambda: run(clip.tracks, **given),
        "bundle": lambda: run(clip.tracks, **known, refine="bundle"),
    }


def milliseconds(call: Callable[[], Any], calls: int) -> list[float]:
    """Of each call until its result is there."""
    for _ in range(10):
        call()
    torch.cuda.synchronize()
    gc.collect()
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def answers_and_times() -> list[dict[str, Any]]:
    """A row for each size and column: errors, then times."""
    network = fasttracks.load("base", device="cuda")
    exact = fasttracks.load("base", device="cuda", precision="fp32", backend="torch")
    rows = []
    for tracks, frames in SIZES:
        clip = sample_clip(tracks, frames)
        camera = clip.camera(network.config.assumed_focal)
        kept = fasttracks.Engine(network, max_tracks=tracks, max_frames=frames)
        inputs = clip.inputs(camera).float()[None].cuda()
        with torch.no_grad():
            truth = accuracy.truth(exact, inputs)
        by_hand = kept(inputs)
        for column, call in calls_of(clip, camera, network, kept).items():
            row: dict[str, Any] = {"column": column, "tracks": tracks, "frames": frames}
            for _ in range(3):  # the second call captures
                found = call()
            if column == "engine alone":
                accuracy.check(accuracy.errors(found, truth))
            elif column not in ("bundle", "no intrinsics"):
                host = found.numpy()
                row |= accuracy.errors(prediction_of(host, clip, camera), truth)
                accuracy.check({k: row[k] for k in accuracy.LIMITS})
                same = torch.from_numpy(host.points).cuda() == by_hand.points[0]
                row["bits as by hand"] = round(same.double().mean().item(), 4)
            else:
                row["median px"] = round(found.median_reprojection_error, 3)
            times = milliseconds(call, CALLS[tracks] if column != "bundle" else 60)
            row |= percentiles([1e-3 * ms for ms in times])
            bar = BARS[column].get(tracks)
            row["bar ms"] = bar
            row["p99 / p50"] = round(row["p99 ms"] / row["p50 ms"], 2)
            met = bar is None or row["p50 ms"] <= bar
            good = ("" if met else "  OVER") + ("" if row["p99 / p50"] <= TAIL else "  TAIL")
            print(f"{tracks:>5} × {frames} {column:15} p50 {row['p50 ms']:7.3f} p99 "
                  f"{row['p99 ms']:7.3f} bar {bar or 0:5.2f}{good}", flush=True)  # fmt: skip
            rows.append(row)
    return rows


def same_as_before() -> dict[str, Any]:
    """A result by the kernel against one by `Tracks` on the host, in all its fields."""
    network = fasttracks.load("base", device="cuda")
    found = {}
    for tracks, frames in (*SIZES, (33, 300)):
        clip = sample_clip(tracks, frames)
        result = fasttracks.reconstruct(clip, model=network)
        with replaced(batch, "_has_kernels", lambda network: False):
            plain = fasttracks.reconstruct(clip, model=network)
        found[f"{tracks} × {frames}"] = {
            name: float(f"{_relative(getattr(result, name), value):.2g}")
            for name, value in vars(plain).items()
            if isinstance(value, np.ndarray)
        }
    return found


def _relative(value: np.ndarray, truth: np.ndarray) -> float:
    a, b = value.astype(np.float64), truth.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def clips_a_second() -> dict[str, Any]:
    """32 clips of 256 × 50 in one call, as one array and as a list of unequal ones."""
    clip = sample_clip(256, 50)
    camera = clip.camera()[0]
    many = np.stack([clip.tracks] * BATCH)
    seen = np.stack([np.asarray(clip.visibility)] * BATCH)
    size = clip.image_size

    def call() -> Any:
        return fasttracks.reconstruct(many, seen, intrinsics=camera, image_size=size)

    ms = milliseconds(call, 20)
    alone = fasttracks.reconstruct(clip, intrinsics=camera)
    apart = max(_relative(rec.points, alone.points) for rec in call())
    rate = 1e3 * BATCH / float(np.median(ms))
    print(f"{BATCH} clips of 256 × 50: {rate:.0f} clips a second (bar {CLIPS_A_SECOND})")
    unequal: Any = [sample_clip(200 + 8 * (i % 4), 40 + i % 3) for i in range(BATCH)]
    mixed = milliseconds(lambda: fasttracks.reconstruct(unequal), 5)
    return {
        "clips": BATCH, "clips a second": round(rate), "bar": CLIPS_A_SECOND, "apart": apart,
        "unequal clips a second": round(1e3 * BATCH / float(np.median(mixed))),
    }  # fmt: skip


def threads() -> dict[str, Any]:
    """Eight at once get the bits that one alone gets."""
    shapes = ((100, 50), (60, 30), (256, 50))
    clips = [sample_clip(*shape) for shape in shapes]
    for _ in range(3):
        expected = [fasttracks.reconstruct(clip) for clip in clips]

    def work(i: int) -> int:
        wrong = 0
        with torch.cuda.stream(torch.cuda.Stream() if i % 2 else torch.cuda.default_stream()):
            for step in range(40):
                j = (i + step) % len(clips)
                found = fasttracks.reconstruct(clips[j])
                wrong += not all(
                    np.array_equal(getattr(found, name), value, equal_nan=True)
                    for name, value in vars(expected[j]).items()
                    if isinstance(value, np.ndarray)
                )
        return wrong

    with ThreadPoolExecutor(8) as pool:
        start = time.perf_counter()
        wrong = sum(pool.map(work, range(8)))
        seconds = time.perf_counter() - start
    print(f"eight threads: {wrong} of 320 answers differ; {320 / seconds:.0f} calls a second")
    return {"calls": 320, "different": wrong, "calls a second": round(320 / seconds)}


def memory(calls: int = 2000) -> dict[str, Any]:
    """Of calls of random shapes: MB of the host and of the GPU, along the way."""
    rng = np.random.default_rng(0)
    whole = sample_clip(400, 60)
    marks = {}
    for i in range(calls + 1):
        if i % 500 == 0:
            status = Path("/proc/self/status").read_text()
            marks[str(i)] = {
                "host MB": int(status.split("VmRSS:")[1].split()[0]) // 1024,
                "GPU MB, reserved": torch.cuda.memory_reserved() >> 20,
                "GPU MB, free": torch.cuda.mem_get_info()[0] >> 20,
            }
            print(f"memory after {i} calls: {marks[str(i)]}", flush=True)
        frames, tracks = int(rng.integers(4, 60)), int(rng.integers(8, 400))
        clip = Tracks(
            whole.tracks[:frames, :tracks], np.ones((frames, tracks), bool), image_size=(720, 1280)
        )
        if i % 3 == 0:
            fasttracks.reconstruct(torch.from_numpy(clip.tracks).cuda(), image_size=(720, 1280))
        else:
            fasttracks.reconstruct(clip)
    return marks


_CHILD = """
import json, sys, time
start = time.perf_counter()
import numpy as np, torch, fasttracks
from fasttracks.performance.sample import sample_clip
clip = sample_clip(100, 50)
torch.cuda.init()
import triton
compiled = []
def listener(*, src, cache_hit, times, **_):
    if not cache_hit:
        compiled.append((src.name, round(times.total / 1e6, 2)))
triton.knobs.compilation.listener = listener
marks = {"imports s": time.perf_counter() - start}
for name in ("first s", "second s", "third s"):
    start = time.perf_counter()
    fasttracks.reconstruct(clip, refine=sys.argv[1])
    marks[name] = time.perf_counter() - start
marks = {name: round(value, 3) for name, value in marks.items()}
slowest = sorted(compiled, key=lambda job: -job[1])[:8]
print(json.dumps({**marks, "compiled": len(compiled), "slowest": slowest}))
"""


def cold_starts() -> dict[str, Any]:
    """The first call of fresh processes, by the state of Triton's cache."""
    found: dict[str, Any] = {}

    def first(name: str, folder: str) -> None:
        child = [sys.executable, "-c", _CHILD, "bundle" if "bundle" in name else "none"]
        environment = {**os.environ, "TRITON_CACHE_DIR": folder}
        out = subprocess.check_output(child, env=environment, timeout=120)
        found[name] = json.loads(out.splitlines()[-1])
        print(f"cold start, {name}: {found[name]}", flush=True)

    for name in ("empty", "empty, bundle"):
        with tempfile.TemporaryDirectory() as folder:
            first(name, folder)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
        command = [sys.executable, "-m", "fasttracks", "compile", "--arch", arch]
        environment = {**os.environ, "TRITON_CACHE_DIR": folder}
        subprocess.run(command, env=environment, check=True, timeout=150)
        found["compile s"] = round(time.perf_counter() - start, 1)
        for name in ("filled", "filled, bundle", "filled, again", "filled, bundle, again"):
            first(name, folder)
    found["bars s"] = COLD
    return found


def profile(folder: Path) -> dict[str, Any]:
    """Where a call's time goes: by stage on the host, and by kernel."""
    clip = sample_clip(100, 50)
    network = fasttracks.load("base", device="cuda")
    kept = fasttracks.Engine(network, max_tracks=100, max_frames=50)
    camera = clip.camera(network.config.assumed_focal)
    stages: dict[str, Any] = {}
    with (folder / "call-profile.txt").open("w") as out:
        for column, call in calls_of(clip, camera, network, kept).items():
            for _ in range(5):
                call()
            spent: dict[str, float] = defaultdict(float)
            with contextlib.ExitStack() as stack:
                for module, name in (
                    (batch, "start"), (batch, "_on_device"), (batch, "_predict"), (batch, "run"),
                    (batch, "_fields"), (batch, "_sent_back"), (batch, "finish"),
                    (batch, "_unpacked"), (batch, "_judge"), (batch, "_result"),
                    (engine._Replays, "replay"), (torch.cuda.Event, "synchronize"),
                ):  # fmt: skip
                    timed = _timed(getattr(module, name), name, spent)
                    stack.enter_context(replaced(module, name, timed))
                stack.enter_context(replaced(pipeline, "start", batch.start))
                stack.enter_context(replaced(pipeline, "finish", batch.finish))
                start = time.perf_counter()
                for _ in range(100):
                    call()
                torch.cuda.synchronize()
                spent["whole call"] = time.perf_counter() - start
            stages[column] = {name: round(1e4 * value, 1) for name, value in spent.items()}
            print(f"µs a call, {column}: {stages[column]}", flush=True)
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as profiler:
                for _ in range(10):
                    call()
                torch.cuda.synchronize()
            for key in ("self_cuda_time_total", "self_cpu_time_total"):
                table = profiler.key_averages().table(sort_by=key, row_limit=30)
                out.write(f"{column}, ten calls, by {key}\n{table}\n")
    return stages


def _timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            spent[name] += time.perf_counter() - start

    return timed


def main() -> None:
    """Run the parts and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--parts", nargs="*", help="by name; default: all")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], Any]] = {
        "call": answers_and_times,
        "same answers": same_as_before,
        "profile": lambda: profile(options.output),
        "clips a second": clips_a_second,
        "threads": threads,
        "first calls": cold_starts,
        "memory": memory,
    }
    record: dict[str, Any] = machine.describe("cuda")
    for name, part in parts.items():
        if options.parts and name not in options.parts:
            continue
        start = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            record[name] = part()
        except Exception:
            record[f"{name}, failed"] = traceback.format_exc()
            traceback.print_exc()
        print(f"   {time.perf_counter() - start:.1f} s", flush=True)
        (options.output / "call.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
