"""Kernels run natively where there is CUDA, else in Triton's interpreter on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton when it decorates a kernel

if count := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # these processes share the cores
    threads = max(1, (os.cpu_count() or 1) // int(count))
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of what tests start


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """With pytest-xdist's `-n`, a file's tests share a process: their fixtures are made once."""
    if config.getoption("numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadfile"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


_compiler = pytest.StashKey[subprocess.Popen[bytes]]()


def start_compiler(session: pytest.Session) -> None:
    """Compile for other GPUs, in a process of its own, if a test wants that."""
    wanted = [item for item in session.items if "compiled" in getattr(item, "fixturenames", ())]
    architectures = [str(item.callspec.params["architecture"]) for item in wanted]
    if architectures:
        session.config.stash[_compiler] = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "cross_compile.py", *architectures],
            env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
            stdout=subprocess.PIPE,
        )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile beside the tests, which leave a core idle unless they are several processes."""
    if not session.config.option.collectonly and not hasattr(session.config, "workerinput"):
        start_compiler(session)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing running where the tests that wait for it didn't."""
    if _compiler in config.stash:
        config.stash[_compiler].kill()


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> list[dict]:
    """What `cross_compile.py` prints, for the architectures of the tests that are run."""
    stash = request.config.stash
    if _compiler not in stash:
        start_compiler(request.session)
    output, _ = stash[_compiler].communicate()
    assert stash[_compiler].returncode == 0
    return json.loads(output)


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where Triton kernels run in this process."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda")
    for module, least in (triton, (3, 7)), (np, (2, 4)):
        if tuple(int(part) for part in module.__version__.split(".")[:2]) < least:
            pytest.skip(f"the interpreter needs {module.__name__} ≥ {least[0]}.{least[1]}")
    return torch.device("cpu")


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's wheel and sdist, built from here."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [
            *(sys.executable, "-m", "build", "--no-isolation", "-o", str(folder)),
            str(Path(__file__).parents[1]),
        ],
        check=True,
        capture_output=True,
    )
    return folder
