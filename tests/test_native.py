"""`native/`: the C library against the engine's own launches, on a mock of the CUDA driver."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fasttracks
from fasttracks.kernels import embed
from fasttracks.weights import describe, find

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "native"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")), reason="needs CMake and a C++ compiler"
)


def run(*command: Any, environment: dict[str, str] | None = None, **keywords: Any) -> str:
    """A command's output."""
    done = subprocess.run(
        list(map(str, command)),
        env={**ENVIRONMENT, **(environment or {})},
        text=True,
        capture_output=True,
        **keywords,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library for compute capability 8.0 and 9.0, and the mock."""
    triton = pytest.importorskip("triton")
    if os.environ.get("FASTTRACKS_NATIVE_BUILD"):  # to try something without building again
        return Path(os.environ["FASTTRACKS_NATIVE_BUILD"])
    folder = tmp_path_factory.mktemp("native")
    kernels = folder / "kernels"
    architectures = ("80", "90")
    run(sys.executable, NATIVE / "generate.py", "-o", kernels, "--architectures", *architectures)
    run(
        *("cmake", "-S", NATIVE, "-B", folder, f"-DFASTTRACKS_KERNELS={kernels}"),
        f"-DFASTTRACKS_ARCHITECTURES={';'.join(architectures)}",
    )
    run("cmake", "--build", folder)
    (folder / "mock").mkdir()
    headers = Path(triton.__file__).parent / "backends/nvidia/include"
    run(
        *("g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"),
        *(f"-I{headers}", NATIVE / "tests/mock_cuda.cpp", "-o", folder / "mock/libcuda.so.1"),
    )
    (folder / "mock/libcuda.so").symlink_to("libcuda.so.1")
    return folder


def shapes(count: int) -> list[tuple[int, int, int]]:
    """Shapes at every branch, and random ones."""
    number = random.Random(29)
    chosen = [
        *((1, 50, 100), (1, 20, 100), (1, 50, 256), (1, 21, 675), (1, 50, 1000), (1, 50, 4096)),
        *((4, 50, 256), (1, 2, 1), (1, 1, 1), (1, 64, 64), (1, 65, 65), (1, 64, 65), (1, 65, 64)),
        *((3, 17, 3), (1, 1, 70000), (1, 700, 100), (2, 50, 2000), (1, 40, 200), (1, 160, 50)),
        *((1, 1, 128), (1, 1, 129), (5, 1, 9), (1, 8001, 1), (2, 1, 40000)),
    ]
    while len(chosen) < count:
        size = round(2 ** number.uniform(0, 17))
        frames = min(1000, round(2 ** number.uniform(0, 8)))
        chosen.append((number.choice((1, 1, 2, 5)), frames, max(1, size // frames)))
    return chosen


class Matching:
    """Addresses of one side that stand for memory of the other's.

    The engine's side never uses an address again; where the library does, its memory must not be
    read for what it held before.
    """

    def __init__(self) -> None:
        self.ours: dict[int, int] = {}  # by allocation of theirs
        self.theirs: dict[int, int] = {}

    def check(self, theirs: int, ours: int) -> None:
        first, apart = 1 << 44, 1 << 37
        allocation, offset = divmod(theirs - first, apart)
        base = ours - offset
        if allocation not in self.ours:
            self.ours[allocation] = base
            self.theirs[base] = allocation
        assert self.ours[allocation] == base
        assert self.theirs[base] == allocation, "read after it was written over"


def compare(recorded: dict, called: dict, matching: Matching) -> None:
    """A shape's launches, one by one: code, grid, attributes, numbers, tiles and addresses."""
    ours = iter(called["lines"])
    after_copy = False
    for theirs in recorded["lines"]:
        mine = next(ours)
        if "contiguous" in theirs:
            after_copy = True
            compare_copy(theirs, mine["copy"], matching)
            continue
        same = ("launch", "code", "grid", "block", "shared")
        assert {k: mine[k] for k in same} == {k: theirs[k] for k in same}
        assert mine["attributes"] == ([] if after_copy else theirs["attributes"])
        after_copy = False
        assert len(mine["parameters"]) == len(theirs["parameters"])
        for a, b in zip(theirs["parameters"], mine["parameters"], strict=True):
            if isinstance(a, dict):
                matching.check(a.pop("address"), b.pop("address"))
            elif a[0] == 8 and a[1] >= 1 << 44:
                assert b[0] == 8
                matching.check(a[1], b[1])
                continue
            assert a == b
    assert next(ours) == {"graph": True}
    assert next(ours, None) is None
    for name, address in recorded["outputs"].items():
        matching.check(address, called["outputs"][name])


def compare_copy(theirs: dict, mine: list[int], matching: Matching) -> None:
    """Rows that are copied: theirs a strided tensor made contiguous, (B, T, N, C)."""
    source, target, size = theirs["contiguous"]
    (B, T, N, C), strides = theirs["shape"], theirs["strides"]
    assert strides[2:] == [C, 1] and (B == 1 or strides[0] == T * strides[1])
    address, pitch, to, to_pitch, width, height = mine
    assert [pitch, to_pitch, width, height] == [
        strides[1] * size,
        N * C * size,
        N * C * size,
        B * T,
    ]
    matching.check(source, address)
    matching.check(target, to)


@pytest.fixture(scope="session")
def library(build: Path) -> Path:
    return build / "libfasttracks.so"


@pytest.mark.parametrize(("capability", "processors"), [(90, 132), (90, 114), (80, 108)])
def test_launches_are_those_of_the_engine(
    build: Path, library: Path, tmp_path: Path, capability: int, processors: int
) -> None:
    chosen = shapes(80 if processors == 132 else 40)
    environment = {
        "MOCK_CUDA_CAPABILITY": str(capability),
        "MOCK_CUDA_PROCESSORS": str(processors),
    }
    mock, focal = build / "mock/libcuda.so.1", describe("base")["config"]["predicts_focal"]
    recorded = json.loads(
        run(
            *(sys.executable, NATIVE / "tests/record.py", mock, capability, processors),
            input=json.dumps([(*shape, focal) for shape in chosen]),
        )
    )
    dump = tmp_path / "weights"
    called = json.loads(
        run(
            *(sys.executable, NATIVE / "tests/calls.py", mock, library, find("base"), dump),
            input=json.dumps(chosen),
            environment=environment,
        )
    )
    assert called["live"] == 0
    state = fasttracks.load("base", device="cpu", precision="fp16", backend="torch").state_dict()
    state["rates"] = embed._rates(256, torch.device("cpu"))
    packed = dump.read_bytes()
    for shape, theirs, mine in zip(chosen, recorded, called["calls"], strict=True):
        matching = Matching()
        matching.check(theirs["tracks"], first_input(mine))
        compare(theirs, mine, matching)
        assert mine["again"] == [{"graph": True}], shape
        for name, address in theirs["weights"].items():
            at = matching.ours[(address - (1 << 44)) // (1 << 37)] - called["weights"]
            value = state[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
            assert packed[at : at + len(value)] == value, name


def first_input(call: dict) -> int:
    """Where the embedding reads."""
    return call["lines"][0]["parameters"][0][1]
