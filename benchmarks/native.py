"""libfasttracks beside `Engine` on one GPU: `python benchmarks/native.py -o FILE`.

Whether their outputs are the same bits, how long calls take, whether memory grows, what threads
get, and how long it takes from a fresh process to the first result. Each part is a process of its
own and each finding is saved when it is made, so what fails ends nothing else and is told in the
result. Where bits differ, the stage that begins it is named.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "native" / "examples"))

from poses import FIELDS, Outputs, check, load  # noqa: E402

# Clips, frames, tracks
SHAPES = (
    *((1, 20, 100), (1, 50, 100), (1, 50, 256), (1, 21, 675), (1, 50, 1000), (1, 50, 4096)),
    (4, 50, 256),
)
BUSY = 7
SECONDS = 200  # that a part may take
Findings = Iterator[tuple[str, Any]]  # by name


class Native:
    """An engine of the library, called with torch's tensors."""

    def __init__(self, library: str, clips: int, frames: int, tracks: int) -> None:
        self.library, self.engine = load(library), ctypes.c_void_p()
        weights = str(ROOT / "fasttracks" / "data" / "base.safetensors").encode()
        limits = (clips, frames, tracks)
        self.check(self.library.ft_create(weights, 0, *limits, ctypes.byref(self.engine)))
        self.outputs = Outputs()
        self.pointer = ctypes.byref(self.outputs)

    def check(self, status: int) -> None:
        """Raise what the library says."""
        check(self.library, status)

    def __call__(self, inputs: Any, stream: int = 0) -> None:
        """Queue; the results are in `fields`."""
        shape = inputs.shape[:3]
        address = inputs.data_ptr()
        self.check(self.library.ft_run(self.engine, stream, address, *shape, self.pointer))

    def fields(self, inputs: Any) -> dict[str, Any]:
        """Results of the last call, copied."""
        import torch

        B, T, N = inputs.shape[:3]
        sizes = dict(
            zip(
                FIELDS,
                (
                    *((B, T, 3, 3), (B, T, 3), (B, T), (B, T, 12), (B, 12, N, 3), (B, N)),
                    *((B, T, N, 3), (B, T, N, 3), (B, T, N, 2)),
                ),
                strict=True,
            )
        )
        torch.cuda.synchronize()
        return {
            name: memory(getattr(self.outputs, name), sizes[name], "<f4").clone() for name in FIELDS
        }

    def stage(self, inputs: Any, stages: int) -> Any:
        """The bytes that the first stages end with."""
        result, size = ctypes.c_void_p(), ctypes.c_uint64()
        address = ctypes.c_void_p(inputs.data_ptr())
        arguments = (*inputs.shape[:3], stages, ctypes.byref(result), ctypes.byref(size))
        self.check(self.library.ft_debug_run(self.engine, address, *arguments))
        return memory(result.value, (size.value,), "|u1").clone()

    def destroy(self) -> None:
        """Free all."""
        self.library.ft_destroy(self.engine)


def memory(address: int | None, shape: tuple[int, ...], kind: str) -> Any:
    """Device memory as a torch tensor."""
    import torch

    array = SimpleNamespace(
        __cuda_array_interface__={
            **{"data": (address, False), "shape": shape, "typestr": kind, "version": 3},
        }
    )
    return torch.as_tensor(array, device="cuda")


def inputs_of(shape: tuple[int, int, int]) -> Any:
    """A real clip's tracks at a size; further clips are mirrored or reversed in time."""
    import torch

    from fasttracks.performance.sample import sample_inputs

    clips, frames, tracks = shape
    one = sample_inputs(tracks, frames, "cuda")
    some = [one, one.flip(1), one * one.new_tensor((-1, 1, 1)), one.flip(2)]
    return torch.cat(some[:clips]).contiguous()


def each_shape(measure: Callable[[tuple[int, int, int]], Any]) -> Findings:
    """What is measured of each shape, or why it was not."""
    for shape in SHAPES:
        try:
            found = measure(shape)
        except Exception as error:
            found = {"error": repr(error)[:500]}
        yield "{2} x {1}, B = {0}".format(*shape), found


def bits(library: str) -> Findings:
    """For each shape "equal", or how the fields and the stages differ."""
    import torch

    import fasttracks
    from fasttracks.engine import Engine

    model = fasttracks.load("base", device="cuda")

    def compare(shape: tuple[int, int, int]) -> dict[str, Any]:
        clips, frames, tracks = shape
        engine = Engine(model, max_clips=clips, max_frames=frames, max_tracks=tracks)
        inputs = inputs_of(shape)
        expected = dict(zip(FIELDS, engine(inputs), strict=True))
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0]
        native = Native(library, *shape)
        stream = torch.cuda.current_stream().cuda_stream
        for _ in range(3):
            native(inputs, stream)
        taken = before - torch.cuda.mem_get_info()[0]
        fields = native.fields(inputs)
        different = {
            field: (fields[field] - value).abs().max().item()
            for field, value in expected.items()
            if not same(fields[field], value)
        }
        found: dict[str, Any] = {
            "bits": "different" if different else "equal",
            "memory GB": round(taken / 1e9, 3),
        }
        if different:
            found |= {"fields": different, "stages": stages(native, model, inputs)}
        native.destroy()
        return found

    yield from each_shape(compare)


def same(a: Any, b: Any) -> bool:
    """Whether two float32 tensors are the same bits."""
    import torch

    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def stages(native: Native, model: Any, inputs: Any) -> list[str]:
    """Stage by stage, whether the library's is the network's own."""
    import torch

    run = model.backend
    lines: list[str] = []
    with torch.no_grad():
        x = model.embedding(inputs, torch.float16, run)
        results = [("embedding", x)]
        for i, block in enumerate(model.blocks):
            x = block.attend(x, run)
            results.append((f"attention {i}", x))
            x = block.transform(x, run)
            results.append((f"mlp {i}", x))
    for i, (name, value) in enumerate(results):
        try:
            mine = native.stage(inputs, i + 1).view(value.dtype).view(value.shape)
        except Exception as error:
            return [*lines, f"{name}: {error!r}"]
        off = (mine.float() - value.float()).abs().max().item()
        lines.append(f"{name}: largest difference {off:.3g}, {(mine != value).sum().item()} values")
    return lines


def speed(library: str) -> Findings:
    """Medians in ms, and of the host in µs: a call, without waiting for its result.

    Each call is awaited before the next; the host is also timed for calls that are not, ten in a
    row, whose code and data are in its caches.
    """
    import torch

    import fasttracks
    from fasttracks.engine import Engine

    model = fasttracks.load("base", device="cuda")

    def measure(shape: tuple[int, int, int]) -> dict[str, Any]:
        clips, frames, tracks = shape
        engine = Engine(model, max_clips=clips, max_frames=frames, max_tracks=tracks)
        native, inputs = Native(library, *shape), inputs_of(shape)
        stream = torch.cuda.current_stream().cuda_stream
        calls: dict[str, Callable[[], Any]] = {
            "engine": partial(engine, inputs),
            "engine, no copy": partial(engine, inputs, copy=False),
            "native": partial(native, inputs, stream),
        }
        rounds = 200 if frames * tracks * clips < 60_000 else 40
        times: dict[str, list[float]] = {name: [] for name in calls}
        host: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(rounds + 10):
            for name, call in calls.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                call()
                queued = time.perf_counter()
                torch.cuda.synchronize()
                if i >= 10:
                    times[name].append((time.perf_counter() - start) * 1e3)
                    host[name].append((queued - start) * 1e6)
        row: dict[str, list[float]] = {name: [] for name in calls}
        for name, call in calls.items():
            for _ in range(rounds // 10):
                torch.cuda.synchronize()
                for _ in range(10):
                    start = time.perf_counter()
                    call()
                    row[name].append((time.perf_counter() - start) * 1e6)
        torch.cuda.synchronize()
        native.destroy()
        return {
            "p50 ms": {name: round(median(values), 4) for name, values in times.items()},
            "p99 ms": {
                name: round(sorted(values)[int(len(values) * 0.99)], 4)
                for name, values in times.items()
            },
            "host us": {name: round(median(values), 2) for name, values in host.items()},
            "host us, in a row": {name: round(median(v), 2) for name, v in row.items()},
        }

    yield from each_shape(measure)


def growth(library: str) -> Findings:
    """Memory before and after 100,000 calls, some of them of more shapes than are kept."""
    import torch

    native = Native(library, 1, 20, 100)
    inputs = inputs_of((1, 10, 20))
    others = [inputs_of((1, 10, n)) for n in range(21, 71)]
    stream = torch.cuda.current_stream().cuda_stream

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for some in (*others, *others):
        native(some, stream)
    for _ in range(1000):
        native(inputs, stream)
    torch.cuda.synchronize()
    free, held, start = torch.cuda.mem_get_info()[0], resident(), time.perf_counter()
    for i in range(100_000):
        native(others[i // 100 % 50] if i % 100 == 0 else inputs, stream)
        if i + 1 in (10_000, 50_000, 100_000):
            torch.cuda.synchronize()
            yield (
                f"after {i + 1} calls",
                {
                    "s": round(time.perf_counter() - start, 2),
                    "device bytes more": free - torch.cuda.mem_get_info()[0],
                    "host bytes more": resident() - held,
                },
            )
    native.destroy()


def threads(library: str) -> Findings:
    """What two threads get: of an engine each, and of one engine."""
    import torch

    shapes = ((1, 20, 100), (1, 30, 80))
    inputs = [inputs_of(shape) for shape in shapes]
    expected = []
    for some in inputs:
        alone = Native(library, *some.shape[:3])
        alone(some, torch.cuda.current_stream().cuda_stream)
        expected.append(alone.fields(some))
        alone.destroy()

    def work(name: str, native: Native, which: int, counts: dict[str, int]) -> None:
        stream = torch.cuda.Stream()
        some, outputs = inputs[which], Outputs()
        position = torch.empty(expected[which]["position"].shape, device="cuda")
        for _ in range(500):
            address = ctypes.c_void_p(some.data_ptr())
            status = native.library.ft_run(
                native.engine, stream.cuda_stream, address, *some.shape[:3], ctypes.byref(outputs)
            )
            if status == BUSY:
                counts["refused"] += 1
                continue
            native.check(status)
            counts["done"] += 1
            if name == "an engine each":  # of one engine the other thread writes over the results
                with torch.cuda.stream(stream):
                    shape = tuple(position.shape)
                    position.copy_(memory(outputs.position, shape, "<f4"))
                stream.synchronize()
                if not same(position, expected[which]["position"]):
                    counts["wrong"] += 1

    each = [Native(library, *some.shape[:3]) for some in inputs]
    one = Native(library, 1, 30, 100)
    for name, natives in (("an engine each", each), ("one engine", [one, one])):
        counts = [dict.fromkeys(("done", "refused", "wrong"), 0) for _ in range(2)]
        running = [
            threading.Thread(target=work, args=(name, natives[i], i, counts[i])) for i in range(2)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        yield name, counts
    one(inputs[0], 0)
    fields = one.fields(inputs[0])
    yield "one engine afterwards is right", all(same(fields[k], v) for k, v in expected[0].items())


def start(library: str) -> Findings:
    """From a process's start to its first result: the C++ example, then Python without torch."""
    import numpy as np

    weights, poses = ROOT / "fasttracks/data/base.safetensors", Path(library).parent / "poses"
    with TemporaryDirectory() as folder, np.load(ROOT / "fasttracks/data/sheep.npz") as clip:
        tracks = np.dstack([clip["tracks"], clip["visibility"]])[:, :100]
        np.save(f"{folder}/tracks.npy", tracks.astype(np.float32))
        Path(folder, "libfasttracks.so.1").symlink_to(library)
        libraries = os.pathsep.join([folder, os.environ.get("LD_LIBRARY_PATH", "")])
        for i in range(4):
            begin = time.perf_counter()
            done = subprocess.run(
                [poses, weights, f"{folder}/tracks.npy", "600", "640", "480"],
                env={**os.environ, "LD_LIBRARY_PATH": libraries},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            seconds = round(time.perf_counter() - begin, 3)
            says = done.stderr[-600:].splitlines()
            yield f"C++, run {i}", {"whole process s": seconds, "says": says}
    for i in range(2):
        begun = str(time.time())
        done = subprocess.run(
            [*command("first_result", library), "--begun", begun],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        yield f"Python, run {i}", findings(done.stdout) or {"error": done.stderr[-800:]}


def first_result(library: str, begun: float) -> Findings:
    """The process that `start` times: 100 tracks of 50 frames; seconds since it was started."""
    yield "python", round(time.time() - begun, 4)
    native = Native(library, 1, 50, 100)
    yield "create", round(time.time() - begun, 4)
    for name in ("first result", "second result"):
        from_host(native, 50, 100)
        yield name, round(time.time() - begun, 4)
    native.destroy()


def from_host(native: Native, T: int, N: int) -> None:
    """A call with pixels from host memory."""
    pixels = (ctypes.c_float * (T * N * 2))(*(float(37 * i % 640) for i in range(T * N * 2)))
    camera = (ctypes.c_double * 9)(600, 0, 320, 0, 600, 240, 0, 0, 1)
    position = (ctypes.c_float * (T * 3))()
    outputs = Outputs(position=ctypes.addressof(position))
    native.check(
        native.library.ft_run_host(
            native.engine, pixels, None, camera, 0, T, N, ctypes.byref(outputs)
        )
    )


def exact(library: str) -> Findings:
    """Calls in engines with no more memory than the shape needs, for `sanitizer` to watch."""
    for T, N in ((50, 100), (3, 17), (21, 675)):
        native = Native(library, 1, T, N)
        for _ in range(2):
            from_host(native, T, N)
        native.destroy()
        yield f"{N} x {T}", "done"


def sanitizer(library: str) -> Findings:
    """What compute-sanitizer's memcheck says of `exact`, if it is there."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        yield "memcheck", "compute-sanitizer is not installed"
        return
    done = subprocess.run(
        [tool, "--tool", "memcheck", "--error-exitcode", "99", *command("exact", library)],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    yield "shapes", findings(done.stdout)
    yield "clean", done.returncode == 0 and any("ERROR SUMMARY: 0 errors" in s for s in lines)
    yield "memcheck", [line for line in lines if line.startswith("=========")][:20]
    yield "exit", done.returncode
    yield "stderr", done.stderr[-800:]


PARTS = {f.__name__: f for f in (start, bits, speed, growth, threads, sanitizer)}


def command(part: str, library: str) -> list[str]:
    """What runs a part in a process of its own."""
    return [sys.executable, str(Path(__file__).resolve()), "--library", library, "--part", part]


def findings(output: str) -> dict[str, Any]:
    """What a part's process printed, one JSON object a line."""
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


def run(part: str, library: str) -> Findings:
    """What a part's process finds, as it finds it; then its seconds, and its error if it fails."""
    begin = time.perf_counter()
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command(part, library), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        limit = threading.Timer(SECONDS, process.kill)
        limit.start()
        assert process.stdout
        for line in process.stdout:
            yield from findings(line).items()
        status = process.wait()
        limit.cancel()
        errors.seek(0)
        if status:
            yield "error", f"exit status {status}: {errors.read()[-1500:]}"
    yield "seconds", round(time.perf_counter() - begin, 1)


def main() -> None:
    """Run the parts and write what they find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--library", help="default: the one in native/build")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    built = sorted((ROOT / "native" / "build").glob("libfasttracks.so*"))
    if not (options.library or built):
        parser.error("no native/build/libfasttracks.so: build the library, see native/README.md")
    library = str(Path(options.library or built[-1]).resolve())
    if options.part:
        parts: dict[str, Callable[[str], Findings]] = {
            **PARTS,
            "exact": exact,
            "first_result": partial(first_result, begun=options.begun),
        }
        for name, value in parts[options.part](library):
            print(json.dumps({name: value}), flush=True)
        return
    import machine

    record = {**machine.describe("cuda"), "library bytes": Path(library).stat().st_size}
    for part in options.only:
        record[part] = {}
        for name, value in run(part, library):
            record[part][name] = value
            print(f"{part}: {name}: {json.dumps(value)}", flush=True)
            if options.output:
                options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
