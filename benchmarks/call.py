"""`reconstruct` end to end on a GPU: answers, times, cold starts, memory: `call.py -o FOLDER`.

Answers come first: a size whose answer is not within the accuracy gate is not timed. Writes
FOLDER/call.json, which `report.py` keeps, and FOLDER/profile.json and profile.txt, which say where
the host's and the GPU's time goes. A part or row that fails is recorded, and the others go on.
`--smoke` runs all of it at a small size, on a CPU too, to see that it works.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

import fasttracks
from fasttracks import clips, engine, pipeline
from fasttracks.geometry import Prediction
from fasttracks.performance import accuracy
from fasttracks.performance.sample import sample_clip
from fasttracks.performance.timing import percentiles
from fasttracks.tracks import Tracks, normalise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {(100, 50): 400, (256, 50): 300, (1000, 50): 150}  # tracks and frames: calls
BARS: dict[str, dict[int, float]] = {  # ms at p50 by column and tracks
    "engine alone": {},
    "numpy, engine": {100: 0.95, 256: 1.6, 1000: 5.6},
    "numpy, by name": {100: 0.95, 256: 1.6, 1000: 5.6},
    "CUDA tensors": {100: 0.75, 256: 1.35, 1000: 5.0},
    "no intrinsics": {100: 1.6, 256: 2.3, 1000: 6.6},
    "bundle": {100: 8.0, 256: 9.5, 1000: 15.0},
}
TAIL = 1.3  # p99 over p50, at most
CLIPS, CLIPS_A_SECOND = 32, 900
COLD = {"empty": 8.0, "empty, bundle": 12.0, "filled": 1.0, "filled, bundle": 1.5}  # seconds


def prediction_of(rec: Any, camera: np.ndarray) -> Prediction:
    """What `accuracy.errors` compares, of a result."""
    pose = torch.from_numpy(rec.camera_to_world)
    image = normalise(rec.reprojection.astype(np.float64), camera)
    fields = dict.fromkeys(Prediction._fields, torch.zeros(1))
    fields |= {
        "points": torch.from_numpy(rec.points)[None],
        "rotation": pose[None, :, :3, :3],
        "projection": torch.from_numpy(image)[None],
    }
    return Prediction(**{name: value.to(DEVICE) for name, value in fields.items()})


def calls_of(clip: Tracks, camera: np.ndarray, network: Any, kept: Any) -> dict[str, Any]:
    """What is timed, by column; each returns what it made."""
    given: dict[str, Any] = {"visibility": clip.visibility, "image_size": clip.image_size}
    known = {**given, "intrinsics": camera[0]}
    on_gpu: dict[str, Any] = {
        "tracks": torch.from_numpy(clip.tracks).to(DEVICE),
        "visibility": torch.from_numpy(np.asarray(clip.visibility)).to(DEVICE),
        "intrinsics": torch.from_numpy(camera[0].copy()).to(DEVICE),
        "image_size": clip.image_size,
    }
    inputs = clip.inputs(camera).float()[None].to(DEVICE)
    run = fasttracks.reconstruct
    return {
        "engine alone": lambda: kept(inputs),
        "numpy, engine": lambda: run(clip.tracks, **known, model=kept),
        "numpy, by name": lambda: run(clip.tracks, **known),
        "CUDA tensors": lambda: run(**on_gpu),
        "no intrinsics": lambda: run(clip.tracks, **given),
        "bundle": lambda: run(clip.tracks, **known, refine="bundle"),
    }


def finished() -> float:
    """The time once the GPU is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def milliseconds(call: Callable[[], Any], calls: int) -> list[float]:
    """Of each call until its result is there."""
    for _ in range(min(10, calls)):
        call()
    gc.collect()
    found = []
    for _ in range(calls):
        start = finished()
        call()
        found.append(1e3 * (finished() - start))
    return found


def answers_and_times() -> list[dict[str, Any]]:
    """A row for each size and column: errors, then times."""
    network = fasttracks.load("base", device=DEVICE)
    exact = fasttracks.load("base", device=DEVICE, precision="fp32", backend="torch")
    rows = []
    for (tracks, frames), calls in SIZES.items():
        clip = sample_clip(tracks, frames)
        camera = clip.camera()
        kept = fasttracks.Engine(network, max_tracks=tracks, max_frames=frames)
        inputs = clip.inputs(camera).float()[None].to(DEVICE)
        with torch.no_grad():
            truth = accuracy.truth(exact, inputs)
        by_hand = kept(inputs)
        for column, call in calls_of(clip, camera, network, kept).items():
            row: dict[str, Any] = {"column": column, "tracks": tracks, "frames": frames}
            rows.append(row)
            try:
                row |= _row(column, call, calls, truth, by_hand, camera)
            except Exception:
                row["failed"] = traceback.format_exc()
                traceback.print_exc()
                continue
            bar = BARS[column].get(tracks)
            row |= {"bar ms": bar, "p99 / p50": round(row["p99 ms"] / row["p50 ms"], 2)}
            met = bar is None or row["p50 ms"] <= bar
            good = ("" if met else "  OVER") + ("" if row["p99 / p50"] <= TAIL else "  TAIL")
            print(f"{tracks:>5} × {frames} {column:15} p50 {row['p50 ms']:7.3f} p99 "
                  f"{row['p99 ms']:7.3f} bar {bar or 0:5.2f}{good}", flush=True)  # fmt: skip
    return rows


def _row(
    column: str,
    call: Callable[[], Any],
    calls: int,
    truth: Prediction,
    by_hand: Prediction,
    camera: np.ndarray,
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for _ in range(3):  # the second call captures
        found = call()
    if column == "engine alone":
        accuracy.check(accuracy.errors(found, truth))
    elif column not in ("bundle", "no intrinsics"):
        host = found.numpy()
        row |= accuracy.errors(prediction_of(host, camera), truth)
        accuracy.check({k: row[k] for k in accuracy.LIMITS})
        same = torch.from_numpy(host.points).to(DEVICE) == by_hand.points[0]
        row["bits as by hand"] = round(same.double().mean().item(), 4)
    else:
        row["median px"] = round(found.median_reprojection_error, 3)
    times = milliseconds(call, calls if column != "bundle" else max(2, calls // 5))
    slowest = sorted(range(len(times)), key=times.__getitem__)[-5:]
    return {
        **row,
        **percentiles([1e-3 * ms for ms in times]),
        "slowest": {i: round(times[i], 3) for i in slowest},
    }


def same_as_before() -> dict[str, Any]:
    """A result by the kernel against one by `Tracks` on the host, in all its fields."""
    network = fasttracks.load("base", device=DEVICE)
    found = {}
    for tracks, frames in (*SIZES, (33, 150), (20, 200)):  # the last is seen in windows
        clip = sample_clip(tracks, frames)
        result = fasttracks.reconstruct(clip, model=network)
        with replaced(clips, "_has_kernels", lambda network: False):
            plain = fasttracks.reconstruct(clip, model=network)
        found[f"{tracks} × {frames}"] = {
            name: float(f"{_relative(getattr(result, name), value):.2g}")
            for name, value in vars(plain).items()
            if isinstance(value, np.ndarray)
        }
    print(found)
    return found


def _relative(value: np.ndarray, truth: np.ndarray) -> float:
    a, b = value.astype(np.float64), truth.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Something else in place of a module's attribute meanwhile."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def clips_a_second() -> dict[str, Any]:
    """Many clips of 256 × 50 in one call, as one array and as a list of unequal ones."""
    tracks, frames = min(SIZES, key=lambda size: abs(size[0] - 256))
    clip = sample_clip(tracks, frames)
    camera = clip.camera()[0]
    many = np.stack([clip.tracks] * CLIPS)
    seen = np.stack([np.asarray(clip.visibility)] * CLIPS)
    size = clip.image_size

    def call() -> Any:
        return fasttracks.reconstruct(many, seen, intrinsics=camera, image_size=size)

    ms = milliseconds(call, 20 if DEVICE == "cuda" else 1)
    alone = fasttracks.reconstruct(clip, intrinsics=camera)
    apart = max(_relative(rec.points, alone.points) for rec in call())
    rate = 1e3 * CLIPS / float(np.median(ms))
    print(f"{CLIPS} clips of {tracks} × {frames}: {rate:.0f} a second (bar {CLIPS_A_SECOND})")
    unequal: Any = [sample_clip(tracks - 3 * (i % 4), frames - i % 3) for i in range(CLIPS)]
    mixed = milliseconds(lambda: fasttracks.reconstruct(unequal), 5 if DEVICE == "cuda" else 1)
    return {
        "clips": CLIPS, "clips a second": round(rate), "bar": CLIPS_A_SECOND, "apart": apart,
        "p99 / p50": round(float(np.percentile(ms, 99) / np.median(ms)), 2),
        "unequal clips a second": round(1e3 * CLIPS / float(np.median(mixed))),
    }  # fmt: skip


def threads() -> dict[str, Any]:
    """Eight at once get the bits that one alone gets."""
    calls = 40 if DEVICE == "cuda" else 2
    clips = [sample_clip(*size) for size in [*SIZES][:2]] + [sample_clip(60, 30)]
    for _ in range(3):
        expected = [fasttracks.reconstruct(clip) for clip in clips]

    def work(i: int) -> int:
        own = DEVICE == "cuda" and i % 2
        wrong = 0
        with torch.cuda.stream(torch.cuda.Stream()) if own else contextlib.nullcontext():
            for step in range(calls):
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
        rate = 8 * calls / (time.perf_counter() - start)
    print(f"eight threads: {wrong} of {8 * calls} answers differ; {rate:.0f} calls a second")
    return {"calls": 8 * calls, "different": wrong, "calls a second": round(rate)}


def memory() -> dict[str, Any]:
    """Of calls of random shapes: MB of the host and of the GPU, along the way."""
    calls = 2000 if DEVICE == "cuda" else 40
    rng = np.random.default_rng(0)
    most_tracks, most_frames = (400, 60) if DEVICE == "cuda" else (20, 10)
    whole = sample_clip(most_tracks, most_frames)
    marks = {}
    for i in range(calls + 1):
        if i % (calls // 4) == 0:
            status = Path("/proc/self/status").read_text()
            mark = {"host MB": int(status.split("VmRSS:")[1].split()[0]) // 1024}
            if DEVICE == "cuda":
                mark["GPU MB, reserved"] = torch.cuda.memory_reserved() >> 20
                mark["GPU MB, free"] = torch.cuda.mem_get_info()[0] >> 20
            marks[str(i)] = mark
            print(f"memory after {i} calls: {mark}", flush=True)
        frames, tracks = int(rng.integers(4, most_frames)), int(rng.integers(8, most_tracks))
        some, size = whole.tracks[:frames, :tracks], (720, 1280)
        if i % 3 == 0:
            fasttracks.reconstruct(torch.from_numpy(some).to(DEVICE), image_size=size)
        else:
            fasttracks.reconstruct(some, image_size=size)
    return marks


_CHILD = """
import json, sys, time
start = time.perf_counter()
import numpy as np, torch, fasttracks, triton
from fasttracks.performance.sample import sample_clip
tracks, frames, refine = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
clip = sample_clip(tracks, frames)
if torch.cuda.is_available():
    torch.cuda.init()
compiled = []
def listener(*, src, cache_hit, times, **_):
    if not cache_hit:
        compiled.append((src.name, round(times.total / 1e6, 2)))
triton.knobs.compilation.listener = listener
marks = {"imports s": time.perf_counter() - start}
for name in ("first s", "second s", "third s"):
    start = time.perf_counter()
    fasttracks.reconstruct(clip, refine=refine)
    marks[name] = time.perf_counter() - start
    marks[name + ", compiled"] = len(compiled)
marks = {name: round(value, 3) for name, value in marks.items()}
slowest = sorted(compiled, key=lambda job: -job[1])[:8]
print(json.dumps({**marks, "slowest": slowest}))
"""


def cold_starts(folder: Path) -> dict[str, Any]:
    """The first call of fresh processes, by the state of Triton's cache; leaves one filled."""
    found: dict[str, Any] = {"bars s": COLD}

    def first(name: str, cache: str | Path) -> None:
        size = map(str, next(iter(SIZES)))
        child = [sys.executable, "-c", _CHILD, *size, "bundle" if "bundle" in name else "none"]
        environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
        try:
            out = subprocess.run(
                child, env=environment, timeout=120, check=True, capture_output=True, text=True
            )
            found[name] = json.loads(out.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, ValueError) as error:
            found[name] = f"failed: {error}\n{getattr(error, 'stderr', '')}"
        print(f"cold start, {name}: {found[name]}", flush=True)

    for name in ("empty", "empty, bundle"):
        with tempfile.TemporaryDirectory() as empty:
            first(name, empty)
    if DEVICE == "cuda":
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
        command = [sys.executable, "-m", "fasttracks", "compile", "--arch", arch]
        start = time.perf_counter()
        done = subprocess.run(
            command,
            env={**os.environ, "TRITON_CACHE_DIR": str(folder)},
            timeout=150, check=False, capture_output=True, text=True,
        )  # fmt: skip
        found["compile s"] = round(time.perf_counter() - start, 1)
        said = f"{done.stdout}{done.stderr}".replace(str(folder), "a new cache")
        found["compile"] = f"{done.returncode}: {said}"[-3000:]
        print(f"compile: {found['compile s']} s, {found['compile']}", flush=True)
        for name in ("filled", "filled, bundle", "filled, again", "filled, bundle, again"):
            first(name, folder)
        os.environ["TRITON_CACHE_DIR"] = str(folder)  # for the parts to come
    return found


def profile(folder: Path) -> None:
    """Where a call's time goes: by stage on the host, and by kernel.

    Of each stage, µs from the call's begin to its own, and how many it takes.
    """
    stages: dict[str, Any] = {}
    repeats = 100 if DEVICE == "cuda" else 1
    network = fasttracks.load("base", device=DEVICE)
    tables = (folder / "profile.txt").open("w")
    for tracks, frames in SIZES:
        clip = sample_clip(tracks, frames)
        kept = fasttracks.Engine(network, max_tracks=tracks, max_frames=frames)
        camera = clip.camera()
        for column, call in calls_of(clip, camera, network, kept).items():
            name = f"{column}, {tracks} × {frames}"
            try:
                for _ in range(5):
                    call()
                stages[name] = _stages(call, repeats)
                if DEVICE == "cuda":
                    busy, table = _kernels(call)
                    stages[name]["GPU busy"] = busy
                    tables.write(f"{name}, ten calls\n{table}\n")
            except Exception:
                stages[name] = traceback.format_exc()
            print(f"µs, {name}: {stages[name]}", flush=True)
            (folder / "profile.json").write_text(json.dumps(stages, indent=1) + "\n")
    tables.close()


def _stages(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    begins: dict[str, float] = {}
    spent: dict[str, float] = {}
    start = 0.0

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call_timed(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            begins[name] = begins.get(name, 0.0) + began - start
            try:
                return function(*arguments, **keywords)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

        return call_timed

    places = [
        (pipeline, "_clips"), (pipeline, "_load_once"), (pipeline, "start"), (pipeline, "finish"),
        (clips, "_on_device"), (clips, "do"), (engine._Kept, "fits"), (engine._Replays, "replay"),
        (clips, "_sent_back"), (torch.cuda.Event, "synchronize"), (clips, "_unpacked"),
        (clips, "_judge"), (clips, "_result"),
    ]  # fmt: skip
    whole = 0.0
    with contextlib.ExitStack() as stack:
        for module, name in places:
            stack.enter_context(replaced(module, name, timed(getattr(module, name), name)))
        for _ in range(repeats):
            start = finished()
            call()
            whole += finished() - start
    found: dict[str, Any] = {
        name: [round(1e6 * value / repeats, 1) for value in (begins[name], spent[name])]
        for name in sorted(spent, key=begins.__getitem__)
    }
    return {"whole call": round(1e6 * whole / repeats, 1), **found}


def _kernels(call: Callable[[], Any]) -> tuple[float, str]:
    """µs a call that the GPU is busy, and tables of ten calls."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(10):
            call()
        torch.cuda.synchronize()
    averages = profiler.key_averages()
    gpu = [event for event in averages if event.device_type != torch.autograd.DeviceType.CPU]
    busy = sum(event.self_device_time_total for event in gpu) / 10
    tables = [
        averages.table(sort_by=key, row_limit=25, max_name_column_width=60)
        for key in ("self_device_time_total", "self_cpu_time_total")
    ]
    return round(busy, 1), "\n".join(tables)


def main() -> None:
    """Run the parts and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--parts", nargs="*", help="by name; default: all")
    parser.add_argument("--smoke", action="store_true", help="small sizes, few calls")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.smoke:
        global SIZES, CLIPS
        SIZES, CLIPS = {(20, 8): 3, (24, 9): 3}, 4
    cache = tempfile.TemporaryDirectory()
    parts: dict[str, Callable[[], Any]] = {
        "first calls": lambda: cold_starts(Path(cache.name)),
        "call": answers_and_times,
        "same answers": same_as_before,
        "profile": lambda: profile(options.output),
        "clips a second": clips_a_second,
        "threads": threads,
        "memory": memory,
    }
    record: dict[str, Any] = machine.describe(DEVICE)
    for name, part in parts.items():
        if options.parts and name not in options.parts:
            continue
        start = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            if (found := part()) is not None:
                record[name] = found
        except Exception:
            record[f"{name}, failed"] = traceback.format_exc()
            traceback.print_exc()
        print(f"   {time.perf_counter() - start:.1f} s", flush=True)
        (options.output / "call.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
