"""`native/`: the C library against the engine's own launches, on a mock of the CUDA driver."""

import json
import operator
import os
import random
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fasttracks
from fasttracks.config import Config
from fasttracks.kernels import embed
from fasttracks.kernels.common import GLUON
from fasttracks.network import TracksTo4D
from fasttracks.weights import describe, find, save

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "native"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def tools() -> None:
    """Skip where the library can't be built."""
    pytest.importorskip("triton", reason="the library's kernels need Triton")
    if not GLUON:
        pytest.skip("the library is built with Triton 3.6 or newer")
    maker = shutil.which("ninja") or shutil.which("make")
    if not (maker and shutil.which("cmake") and shutil.which("g++")):
        pytest.skip("the library is built with CMake, Ninja or Make, and g++")


def run(*command: Any, environment: dict[str, str] | None = None, **keywords: Any) -> str:
    """A command's output."""
    done = subprocess.run(
        list(map(str, command)),
        env={**ENVIRONMENT, **(environment or {})},
        text=True,
        capture_output=True,
        check=False,
        **keywords,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


def make(folder: Path, architecture: int) -> Path:
    """Build the library for one compute capability, and the mock, unoptimised."""
    tools()
    import triton

    kernels = folder / "kernels"
    run(sys.executable, NATIVE / "generate.py", "-o", kernels, "--architectures", architecture)
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    run(
        *("cmake", "-S", NATIVE, "-B", folder, *generator, f"-DFASTTRACKS_KERNELS={kernels}"),
        *(f"-DFASTTRACKS_ARCHITECTURES={architecture}", "-DCMAKE_BUILD_TYPE=Debug"),
    )
    run("cmake", "--build", folder)
    (folder / "mock").mkdir()
    headers = Path(triton.__file__).parent / "backends/nvidia/include"
    run(
        *("g++", "-std=c++17", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{headers}"),
        *(NATIVE / "tests/mock_cuda.cpp", "-o", folder / "mock/libcuda.so.1"),
    )
    (folder / "mock/libcuda.so").symlink_to("libcuda.so.1")
    return folder


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library for compute capability 9.0, the C++ example and the mock."""
    return make(tmp_path_factory.mktemp("native"), 90)


@pytest.fixture(scope="session")
def build_80(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for 8.0."""
    return make(tmp_path_factory.mktemp("native_80"), 80)


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
                theirs_patched, patched = a.pop("patched", False), b.pop("patched", False)
                assert patched or not theirs_patched  # Triton does it from 3.9 on
                ends = [n - 1 for n in b["shape"]]
                size = 1 + 2 * ends[0] + sum(map(operator.mul, ends[1:], b["strides"]))
                assert patched == (size < 128 * 1024)
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


def test_launches_are_those_of_the_engine(build: Path, tmp_path: Path) -> None:
    compare_launches(build, tmp_path, 90, 132, shapes(36))


@pytest.mark.slow
def test_launches_on_fewer_processors(build: Path, tmp_path: Path) -> None:
    compare_launches(build, tmp_path, 90, 114, shapes(100))


@pytest.mark.slow
def test_launches_on_older_gpus(build_80: Path, tmp_path: Path) -> None:
    compare_launches(build_80, tmp_path, 80, 108, shapes(60))


def compare_launches(
    build: Path, folder: Path, capability: int, processors: int, chosen: list[tuple[int, int, int]]
) -> None:
    """Triton's own launcher beside the library, shape by shape, on a GPU of such a kind."""
    library = build / "libfasttracks.so"
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
    dump = folder / "weights"
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
    values = {
        name: value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, value in state.items()
    }
    packed = dump.read_bytes()
    for shape, theirs, mine in zip(chosen, recorded, called["calls"], strict=True):
        matching = Matching()
        matching.check(theirs["tracks"], first_input(mine))
        compare(theirs, mine, matching)
        assert mine["again"] == [{"graph": True}], shape
        for name, address in theirs["weights"].items():
            at = matching.ours[(address - (1 << 44)) // (1 << 37)] - called["weights"]
            assert packed[at : at + len(values[name])] == values[name], name


def first_input(call: dict) -> int:
    """Where the embedding reads."""
    return call["lines"][0]["parameters"][0][1]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Path]:
    """Weights of one round in every type, among them numbers that float16 can't hold."""
    torch.manual_seed(29)
    network = TracksTo4D(Config(rounds=1), backend="torch")
    with torch.no_grad():
        spread = torch.exp(torch.empty(2048 * 256).uniform_(-25, 12)).view(2048, 256)
        network.blocks[0].up.weight.copy_(spread * network.blocks[0].up.weight.sign())
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        found[dtype] = folder / f"{dtype}.safetensors"
        if dtype == torch.float16:
            network.blocks[0].up.weight.data.clamp_(-6e4, 6e4)
        save(network, found[dtype], dtype=dtype)
    return found


@pytest.fixture(scope="session")
def fuzzer(build: Path) -> Path:
    """`fuzz_weights`, with AddressSanitizer."""
    run(
        *("g++", "-std=c++17", "-fsanitize=address,undefined"),
        *("-fno-sanitize-recover=all", f"-I{NATIVE / 'src'}", f"-I{NATIVE / 'include'}"),
        *(f"-I{build / 'kernels'}", NATIVE / "tests/fuzz_weights.cpp", NATIVE / "src/weights.cpp"),
        *(NATIVE / "src/json.cpp", "-o", build / "fuzz_weights"),
    )
    return build / "fuzz_weights"


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float16, torch.bfloat16, torch.float32),
        pytest.param(torch.float64, marks=pytest.mark.slow),
    ],
)
def test_weights_are_rounded_as_the_engine_rounds_them(
    fuzzer: Path, small: dict[torch.dtype, Path], dtype: torch.dtype
) -> None:
    packed = subprocess.run([fuzzer, small[dtype], "0"], capture_output=True, check=True).stdout
    model = fasttracks.load(small[dtype], device="cpu", precision="fp16", backend="torch")
    values = [p.detach().flatten().view(torch.uint8) for p in in_order(model)]
    assert packed == torch.cat(values).numpy().tobytes()


def in_order(model: TracksTo4D) -> list[torch.Tensor]:
    """A model's weights in the order of weights.cpp."""
    state = model.state_dict()
    blocks = [
        f"blocks.{i}.{name}"
        for i in range(len(model.blocks))
        for name in (
            *("attention_norm.weight", "attention_norm.bias", "qkv.weight", "out.weight"),
            *("mlp_norm.weight", "mlp_norm.bias", "up.weight", "up.bias"),
            *("down.weight", "down.bias", "norm.weight", "norm.bias"),
        )
    ]
    rest = [name for name in state if not name.startswith("blocks.")]
    embedding = [name for name in rest if name.startswith("embedding.")]
    heads = [name for name in rest if not name.startswith("embedding.")]
    return [state[name] for name in (*embedding, *blocks, *heads)]


@pytest.mark.parametrize("files", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_weights_are_refused(
    fuzzer: Path, small: dict[torch.dtype, Path], files: int
) -> None:
    read, refused = map(int, run(fuzzer, small[torch.float16], files).split())
    assert read > files / 20
    assert refused > files / 2


def test_a_driver_call_that_fails_is_said_and_leaves_nothing(
    build: Path, library: Path, small: dict[torch.dtype, Path]
) -> None:
    mock = build / "mock/libcuda.so.1"
    found = json.loads(
        run(sys.executable, NATIVE / "tests/faults.py", mock, library, small[torch.float16])
    )
    hit = 0
    for fault in found["faults"]:
        assert fault["live"] == 0, fault
        assert fault["again"] == [0, 0, 0, 0], fault
        wrong = [status for status in fault["statuses"] if status[0]]
        hit += bool(wrong)
        for status, message in wrong:
            assert status == {2: 6, 700: 8}[fault["result"]]
            name = {2: "CUDA_ERROR_OUT_OF_MEMORY", 700: "CUDA_ERROR_ILLEGAL_ADDRESS"}
            assert message.endswith(name[fault["result"]])
        if fault["after"] == 0:
            assert wrong, fault
    assert hit > 40


def statuses(library: Path, *mock: Path, capability: int = 90) -> dict[str, Any]:
    environment = {"MOCK_CUDA_CAPABILITY": str(capability)}
    script = NATIVE / "tests/statuses.py"
    output = run(*(sys.executable, script, library, find("base"), *mock), environment=environment)
    return json.loads(output)


def test_without_a_driver(library: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    found = statuses(library)
    assert found["abi"] == 1
    assert found["create"] == [
        2,
        "no CUDA driver: libcuda.so.1 was not found; expected an NVIDIA GPU's driver",
    ]


def test_refused_calls(build: Path, library: Path) -> None:
    found = statuses(library, build / "mock/libcuda.so.1")
    assert found["supported"][0] == found["create"][0] == found["run"][0] == found["stage"][0] == 0
    assert found["stage bytes"] >= 9 * 9 * 8 * 4
    assert found["supported 1"] == [3, "device: no GPU 1, the driver sees 1"]
    assert found["device 1"][0] == 3
    assert found["no file"] == [5, "weights: /none?.safetensors: No such file or directory"]
    assert found["folder"] == [5, "weights: /: not a file"]
    assert found["too many"] == [1, "tracks: expected 1 to 9, found 10"]
    assert found["none"] == [1, "clips: expected 1 to 1, found 0"]
    assert found["no limit"][0] == found["no stage"][0] == 1
    for name in ("null path", "null engine", "null tracks", "no engine"):
        assert found[name] == [1, "a null pointer was given"]


def test_a_gpu_without_kernels_is_named(build: Path, library: Path) -> None:
    mock = build / "mock/libcuda.so.1"
    assert statuses(library, mock, capability=75)["create"] == [
        4,
        "device: Mock GPU has compute capability 7.5, and this library has kernels for 9.0",
    ]
    assert statuses(library, mock, capability=103)["create"][0] == 4
    assert statuses(library, mock, capability=89)["create"][0] == 4


@pytest.mark.slow
def test_kernels_of_8_0_run_on_8_9(build_80: Path) -> None:
    library, mock = build_80 / "libfasttracks.so", build_80 / "mock/libcuda.so.1"
    assert statuses(library, mock, capability=89)["create"][0] == 0
    assert statuses(library, mock, capability=90)["create"][0] == 4


@pytest.mark.parametrize("per_frame", [False, True])
def test_input_from_pixels_is_that_of_tracks(
    build: Path, library: Path, tmp_path: Path, per_frame: bool
) -> None:
    number = np.random.default_rng(29)
    tracks = number.uniform(-50, 700, (9, 40, 2)).astype(np.float32)
    seen = number.random((9, 40)) < 0.6
    seen[:, 0] = False
    tracks[number.random((9, 40)) < 0.1] = np.nan
    camera = np.array([[610.5, 0.7, 319.25], [0, 590.25, 241.5], [0, 0, 1]])
    cameras = np.stack([camera * np.array([[1 + t / 50], [1 + t / 30], [1]]) for t in range(9)])
    given = cameras if per_frame else camera
    np.savez(tmp_path / "clip.npz", tracks=tracks, visibility=seen, intrinsics=given)
    out = tmp_path / "out.npy"
    mock = build / "mock/libcuda.so.1"
    result = run(
        *(sys.executable, NATIVE / "tests/host.py", mock, library, find("base")),
        *(tmp_path / "clip.npz", out),
    )
    assert json.loads(result) == [0, ""]
    expected = fasttracks.Tracks(tracks, seen, given).inputs().float().numpy()
    found = np.load(out)
    assert (found[..., 2] == expected[..., 2]).all()
    assert np.abs(found - expected).max() <= 2e-7 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tracks": np.inf}, "pixels: a position is infinite"),
        ({"visibility": 2}, "visibility: expected 0 or 1, found 2"),
        ({"intrinsics": np.nan}, "intrinsics: expected finite numbers"),
        ({"intrinsics": -1.0}, "intrinsics: expected rows"),
    ],
)
def test_wrong_pixels_are_refused(
    build: Path, library: Path, tmp_path: Path, change: dict, message: str
) -> None:
    clip: dict[str, Any] = {
        "tracks": np.ones((3, 4, 2), np.float32),
        "visibility": np.ones((3, 4), np.uint8),
        "intrinsics": np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]),
    }
    for name, value in change.items():
        clip[name].flat[-1 if name != "intrinsics" else 8] = value
    np.savez(tmp_path / "clip.npz", **clip)
    mock = build / "mock/libcuda.so.1"
    status, text = json.loads(
        run(
            *(sys.executable, NATIVE / "tests/host.py", mock, library, find("base")),
            *(tmp_path / "clip.npz", tmp_path / "out.npy"),
        )
    )
    assert status == 1
    assert text.startswith(message)


def test_the_manifest_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(NATIVE)
    digests = import_module("kernel_sources").digests()
    manifest = json.loads((NATIVE / "manifest.json").read_text())
    assert digests == manifest["sources"], "run: python native/generate.py --manifest -o DIR"


def test_the_driver_is_declared_as_in_its_header(build: Path) -> None:
    import triton

    headers = Path(triton.__file__).parent / "backends/nvidia/include"
    run(
        *("g++", "-std=c++17", "-fsyntax-only", f"-I{headers}", f"-I{NATIVE / 'include'}"),
        NATIVE / "tests/abi_check.cpp",
    )


def test_nothing_else_is_exported_or_linked(library: Path) -> None:
    names = run("nm", "-D", "--defined-only", "--format=posix", library).split("\n")
    header = (NATIVE / "include/fasttracks.h").read_text()
    assert {name.split()[0] for name in names if name} == set(re.findall(r"\bft_\w+(?=\()", header))
    needed = re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", library))
    assert set(needed) <= {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux-x86-64.so.2"}


def test_an_installed_library_is_found(build: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    run("cmake", "--install", build, "--prefix", prefix)
    project = tmp_path / "project"
    project.mkdir()
    (project / "main.c").write_text(
        "#include <fasttracks.h>\nint main(void) { return ft_abi_version() != FT_ABI_VERSION; }\n"
    )
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(user C)\n"
        "find_package(fasttracks 1 REQUIRED)\nadd_executable(user main.c)\n"
        "target_link_libraries(user PRIVATE fasttracks::fasttracks)\n"
    )
    run("cmake", "-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", project / "build")
    run(project / "build/user")
    if not shutil.which("pkg-config"):
        pytest.skip("pkg-config is not installed: its file was not tried")
    folder = next(prefix.rglob("fasttracks.pc")).parent
    found = run(
        *("pkg-config", "--cflags", "--libs", "fasttracks"),
        environment={"PKG_CONFIG_PATH": str(folder)},
    )
    run("gcc", project / "main.c", *found.split(), "-o", project / "user")
    run(project / "user", environment={"LD_LIBRARY_PATH": str(folder.parent)})


def test_examples_are_short() -> None:
    for path in (NATIVE / "examples").iterdir():
        if path.is_file():
            assert len(path.read_text().splitlines()) < 60, path


@pytest.mark.parametrize("language", ["C++", "Rust"])
def test_examples_run(build: Path, tmp_path: Path, language: str) -> None:
    tracks = np.zeros((5, 7, 3), np.float32) + np.float32([10, 20, 1])
    np.save(tmp_path / "tracks.npy", tracks)
    folders = f"{build / 'mock'}:{build}"
    arguments = (find("base"), tmp_path / "tracks.npy", 600, 640, 480)
    program = build / "poses"
    if language == "Rust":
        if not shutil.which("rustc"):
            pytest.skip("the Rust example is built with rustc")
        program = tmp_path / "poses"
        source = NATIVE / "examples/poses.rs"
        run("rustc", "--edition=2021", source, "-L", build, "-o", program)
    output = run(program, *arguments, environment={"LD_LIBRARY_PATH": folders})
    assert [line.split()[0] for line in output.splitlines()] == ["0", "1", "2", "3", "4"]
