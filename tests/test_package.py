"""What is shipped, and what an import costs."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return out.stdout


def test_import_is_quick_and_light():
    code = """
import sys, time
start = time.perf_counter()
import fasttracks
print(time.perf_counter() - start)
print(sorted({"torch", "triton", "numpy", "cv2", "av", "matplotlib"} & set(sys.modules)))
"""
    seconds, heavy = python(code).splitlines()
    assert float(seconds) < 0.2
    assert heavy == "[]"


def test_public_names():
    code = """
import fasttracks
assert all(getattr(fasttracks, name) is not None for name in fasttracks.__all__)
assert set(fasttracks.__all__) <= set(dir(fasttracks))
assert not {"Any", "TYPE_CHECKING", "importlib"} & set(dir(fasttracks))
assert callable(fasttracks.trackers.get_tracker)
import fasttracks.pipeline
assert callable(fasttracks.reconstruct) and callable(fasttracks.track)
try:
    fasttracks.nothing
except AttributeError as error:
    print(error)
"""
    assert "no attribute 'nothing'" in python(code)


def test_wheel_and_sdist(archives):
    (wheel,) = archives.glob("*.whl")
    assert wheel.stat().st_size < 35e6
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fasttracks", next(t for t in tops if t.endswith(".dist-info"))}
    data = ("py.typed", "viewers/page.html", "kernels/launches.json")
    data += ("data/base.safetensors", "data/skins.npz")
    for name in ("kernels/compose_project.py", *data):
        assert f"fasttracks/{name}" in names
    sources = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("fasttracks/**/*.py")}
    assert sources <= set(names)
    assert "fasttracks/kernels/README.md" not in names  # READMEs are for the sdist
    (sdist,) = archives.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert sources | {"kernels/compose_project.py", "README.md", "LICENSE"} <= inside


@pytest.mark.slow
def test_types_reach_a_user(tmp_path):
    """The README's Python passes mypy, as this environment's packages have it, and has types."""
    readme = (ROOT / "README.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE))
    (tmp_path / "snippet.py").write_text(code + "\nreveal_type(rec)\n")
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "snippet.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "Reconstruction[numpy.ndarray" in said.stdout
