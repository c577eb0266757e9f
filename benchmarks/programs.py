"""Exported programs beside the engine on a CPU: `python benchmarks/programs.py -o FILE`.

ONNX by onnxruntime and a package of torch's AOTInductor, as `fasttracks export-program` writes
them, at the size of the demo's clip and two others. Each runs in a process of its own. The
yardstick is the network in float64, the same as the reference to 13 digits, with less memory: a
program that errs more than twice as much as the engine has no time.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import machine
import torch

import fasttracks
from fasttracks import programs
from fasttracks.engine import Engine
from fasttracks.geometry import Prediction
from fasttracks.performance.sample import sample_inputs

SIZES = ((17, 3), (900, 50), (1000, 50))  # tracks, frames; the demo's clip has 900 × 50
KINDS = {"engine": "", "onnx": ".onnx", "pt2": ".pt2"}
ROUNDING = 1e-5  # of a field's largest value
SECONDS = 10  # that a size is timed for, or for one call

Run = Callable[[torch.Tensor], Any]


def network() -> Any:
    """The shipped weights in plain torch."""
    return fasttracks.load("base", device="cpu", precision="fp32", backend="torch")


def runner(kind: str, path: Path) -> Run:
    """What runs a kind's program, or the engine."""
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_cpu_mem_arena = False  # twice the memory, else
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda tracks: [
            torch.from_numpy(field) for field in session.run(None, {"tracks": tracks.numpy()})
        ]
    if kind == "pt2":
        program: Run = torch._inductor.aoti_load_package(str(path))
        return program
    tracks, frames = SIZES[-1]
    return Engine(network(), max_tracks=tracks, max_frames=frames)


def proc(file: str, name: str) -> int:
    """Bytes that Linux tells under a name."""
    lines = Path("/proc", file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """Per size the largest differences from the reference, relative to a field's largest value."""
    most = int(0.8 * proc("meminfo", "MemAvailable"))
    resource.setrlimit(resource.RLIMIT_AS, (most, most))  # fail before the machine does
    run, found = runner(kind, folder / f"program{KINDS[kind]}"), {}
    with torch.no_grad():
        for tracks, frames in SIZES:
            inputs = sample_inputs(tracks, frames, "cpu")
            truth = torch.load(folder / f"{tracks}.pt")
            errors = {
                name: ((mine - true).abs().max() / true.abs().max()).item()
                for name, mine, true in zip(Prediction._fields, run(inputs), truth, strict=True)
            }
            seconds: list[float] = []
            busy: list[float] = []
            while sum(seconds) < SECONDS and len(seconds) < 100:
                start, before = time.perf_counter(), time.process_time()
                run(inputs)
                seconds.append(time.perf_counter() - start)
                busy.append(time.process_time() - before)
            found[f"{tracks} x {frames}"] = {
                "s": float(f"{median(seconds):.3g}"),
                "CPU s": float(f"{median(busy):.3g}"),  # of all threads; other programs add none
                "calls": len(seconds),
                "largest difference": {name: float(f"{e:.2g}") for name, e in errors.items()},
                "peak memory GB": round(proc("self/status", "VmHWM") / 1e9, 2),
            }
    return found


def main() -> None:
    """Export, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.output)))
        return
    record = machine.describe("cpu")
    with TemporaryDirectory() as name:
        folder = Path(name)
        for kind, ending in KINDS.items():
            if ending:
                start = time.perf_counter()
                programs.write(network(), folder / f"program{ending}")
                record[f"{kind}: export s"] = round(time.perf_counter() - start, 1)
                size = (folder / f"program{ending}").stat().st_size
                record[f"{kind}: file MB"] = round(size / 1e6, 1)
        exact = network().double()
        with torch.no_grad():
            for tracks, frames in SIZES:
                inputs = sample_inputs(tracks, frames, "cpu").double()
                torch.save(list(exact(inputs)), folder / f"{tracks}.pt")
        for kind in KINDS:
            command = [sys.executable, __file__, "--kind", kind, "-o", name]
            record[kind] = json.loads(subprocess.check_output(command).splitlines()[-1])
            for size, found in record[kind].items():
                eager = record["engine"][size]["largest difference"]
                mine = found["largest difference"]
                if any(mine[field] > 2 * eager[field] + ROUNDING for field in mine):
                    found |= {"s": None, "CPU s": None}
            options.output.write_text(json.dumps(record, indent=1) + "\n")
            print(kind, json.dumps(record[kind], indent=1), flush=True)


if __name__ == "__main__":
    main()
