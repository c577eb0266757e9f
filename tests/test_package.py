"""What is shipped, what an import costs, and whether the README tells the truth."""

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
import fasttracks.pipeline
assert callable(fasttracks.reconstruct) and callable(fasttracks.track)
try:
    fasttracks.nothing
except AttributeError as error:
    print(error)
"""
    assert "no attribute 'nothing'" in python(code)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return folder


def test_wheel_and_sdist(archives):
    (wheel,) = archives.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fasttracks", next(t for t in tops if t.endswith(".dist-info"))}
    data = ("py.typed", "viewers/page.html", "kernels/launches.json")
    data += ("data/base.safetensors", "data/skins.npz")
    for name in ("kernels/compose_project.py", *data):
        assert f"fasttracks/{name}" in names
    sources = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("fasttracks/**/*.py")}
    assert sources <= set(names)
    (sdist,) = archives.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert sources | {"kernels/compose_project.py", "README.md", "LICENSE"} <= inside


def test_readme_commands_are_the_ones_ci_runs():
    readme = (ROOT / "README.md").read_text()
    assert "pip install . && fasttracks demo\n" in readme
    test_command = 'pip install -e ".[test]" && pytest\n'
    assert test_command in readme
    assert test_command in (ROOT / ".ci/run").read_text()


def test_readme_python_runs(tmp_path, monkeypatch):
    """The snippet, with the video it names made here from noise."""
    import numpy as np

    from fasttracks import Tracks

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    clip = Tracks(rng.uniform(0, 300, (5, 12, 2)), image_size=(300, 300))
    monkeypatch.setattr("fasttracks.track", lambda path, frames: clip, raising=False)
    names: dict = {}
    exec(code, names)
    assert names["rec"].points.shape == (5, 12, 3)
    assert (tmp_path / "dog.npz").exists()


def test_readme_figures_are_the_measured_ones():
    import json

    record = json.loads((ROOT / "benchmarks/results/real_clips-base.json").read_text())
    readme = (ROOT / "README.md").read_text()
    for clip in record["clips"]:
        assert clip["median px"] < 8
        assert f"| {clip['clip']} " in readme
        assert f" {clip['median px']} px " in readme


def test_readme_tables_are_made_of_the_results():
    import json

    import report

    record = json.loads((report.RESULTS / f"{report.SHOWN}.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert report.readme(record, readme) == readme
