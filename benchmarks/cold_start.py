"""From a fresh process to the second answer: `python benchmarks/cold_start.py -o FILE`.

Twice, with an empty Triton cache and with the one that this left; 100 tracks × 50 frames.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine

_CHILD = """
import json, sys, time
seconds, start = {}, time.perf_counter()

def mark(name):
    global start
    seconds[name + " s"] = round(time.perf_counter() - start, 3)
    start = time.perf_counter()

import torch
mark("import torch")
import fasttracks
fasttracks.load
mark("import fasttracks")
backend = "torch" if sys.argv[1] == "cpu" else "triton"
model = fasttracks.load("base", device=sys.argv[1], backend=backend)
mark("load")
from fasttracks.performance.sample import sample_inputs
inputs = sample_inputs(100, 50, sys.argv[1])
start = time.perf_counter()
for name in ("first call", "second call"):
    with torch.no_grad():
        model(inputs).points.sum().item()
    mark(name)
print(json.dumps(seconds))
"""


def cold_start(device: str) -> dict[str, dict[str, Any]]:
    """Seconds of each step, by the state of the cache."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            cache: json.loads(
                subprocess.check_output(
                    [sys.executable, "-c", _CHILD, device],
                    env={**os.environ, "TRITON_CACHE_DIR": folder},
                )
            )
            for cache in ("empty", "warm")
        }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    record = {**machine.describe(options.device), "cold start": cold_start(options.device)}
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["cold start"], indent=1))


if __name__ == "__main__":
    main()
