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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


_compiler = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile for other GPUs beside the tests, most of which leave a core idle."""
    wanted = any("compiled" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly:
        session.config.stash[_compiler] = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "cross_compile.py"],
            env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
            stdout=subprocess.PIPE,
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing running where the tests that wait for it didn't."""
    if _compiler in config.stash:
        config.stash[_compiler].kill()


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> list[dict]:
    """What `cross_compile.py` prints."""
    compiler = request.config.stash[_compiler]
    output, _ = compiler.communicate()
    assert compiler.returncode == 0
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
