"""Whether the documents tell the truth: their code runs, their links lead somewhere, their figures
are the measured ones.
"""

import ast
import json
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import accuracy_tables
import gpu_tests
import pytest
import report
import tables
import tabulating
import torch
from helpers import tiny_network

import fasttracks
from fasttracks.cli.main import main
from fasttracks.cli.options import parser
from fasttracks.weights import SHIPPED, save

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(report.documents())
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Files beside dog.mp4 that a document takes for granted.
GIVEN = {"latency.md": ["dog-tracks.npz"], "training.md": ["dog-tracks.npz"]}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(document: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(document.read_text()) if found == language]


def commands(code: str) -> list[list[str]]:
    """The arguments of each line that calls the program."""
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    return [words[1:] for words in lines if words[:1] == ["fasttracks"]]


@pytest.fixture(scope="module")
def dog(tmp_path_factory):
    """A folder with a small video, its tracks, and small weights to take for `base`."""
    from test_video import write_video

    folder = tmp_path_factory.mktemp("dog")
    video = write_video(folder / "dog.mp4", count=6, size=(96, 128))
    fasttracks.track(video).save(folder / "dog-tracks.npz")
    save(tiny_network(dtype=torch.float32), folder / "tiny.safetensors")
    return folder


@pytest.fixture
def folder(dog, tmp_path, monkeypatch):
    """Where a document's code runs, on the CPU and with a small network: it is quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SHIPPED, "base", dog / "tiny.safetensors")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    shutil.copy(dog / "dog.mp4", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if blocks(d, "python") or blocks(d, "bash")], ids=name
)
def test_code_runs_as_it_stands(document, dog, folder, capsys):
    """Python and bash blocks, in order, in one folder; of bash the lines that call `fasttracks`."""
    for file in GIVEN.get(document.name, ()):
        shutil.copy(dog / file, folder)
    names: dict = {}
    for language, code in BLOCK.findall(document.read_text()):
        if language == "python":
            exec(compile(code, name(document), "exec"), names)
        elif language == "bash":
            for arguments in commands(code):
                assert main(arguments) == 0, (arguments, capsys.readouterr().err)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_have_the_options_that_documents_name(document):
    """In the blocks that are too long to run as well."""
    for _, code in BLOCK.findall(document.read_text()):
        for arguments in commands(code):
            parser().parse_args(arguments)


def test_notebook_runs(folder):
    notebook = json.loads((ROOT / "docs/notebook.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    names: dict = {}
    for cell in cells:
        exec(compile(ast.parse("".join(cell["source"])), "notebook", "exec"), names)
    assert names["rec"].points.shape == (*names["tracks"].tracks.shape[:2], 3)
    assert (folder / "sheep.glb").exists()


def test_readme_is_a_page():
    assert len(README.splitlines()) <= 120


def test_readme_commands_are_the_ones_ci_runs():
    assert "pip install . && fasttracks demo\n" in README
    for document in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        assert 'pip install -e ".[test]" && pytest -n 2\n' in document
    ci = (ROOT / ".ci/run").read_text()
    assert 'pip install -e ".[test]" && pytest -n 2\n' in ci
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    assert ".ci/run" in workflow
    oldest = re.search(r'requires-python = ">=(\S+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest and f'python: "{oldest[1]}"' in workflow


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_tables_are_made_of_the_results(document):
    text = document.read_text()
    marks = re.findall(r"<!-- (/?)([\w ]+) -->", text)
    assert [m for m in marks if not m[0]] == [("", m[1]) for m in marks if m[0]]
    assert {m[1] for m in marks} <= set(tables.TABLES)
    assert report.filled(text) == text, "run: python benchmarks/report.py"


def test_a_wrong_figure_is_found():
    number = f" {tabulating.read('real_clips-base')['clips'][0]['median px']:.2f} px "
    text = (ROOT / "benchmarks/README.md").read_text()
    assert number in text
    changed = text.replace(number, " 0.01 px ")
    assert report.filled(changed) == text


def test_figures_of_real_video_are_those_that_the_benchmark_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(tabulating, "RESULTS", tmp_path)
    assert "Not measured yet" in accuracy_tables.real_video()
    known, unknown = "refine none, intrinsics known", "refine bundle, intrinsics unknown"
    record = {
        "clips": 3,
        "medians": {known: {"ate": 0.25, "line": 0.913}},
        "by clip": {unknown: [{"focal": focal} for focal in (0.9, 1.2, 1.01)]},
    }
    (tmp_path / "real_video-base.json").write_text(json.dumps(record))
    head, _, ate, *_, focal = accuracy_tables.real_video().splitlines()
    assert head.startswith("| medians over 3 clips |")
    assert ate.endswith("| 0.91 (straight line) | 0.25 | – |")
    assert focal.endswith("| – | 10 |")


def test_every_table_is_shown():
    texts = "".join(document.read_text() for document in DOCUMENTS)
    assert [table for table in tables.TABLES if f"<!-- {table} -->" not in texts] == []


def test_real_clips_are_met():
    assert all(clip["median px"] < 8 for clip in tabulating.read("real_clips-base")["clips"])


def anchors(text: str) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document):
    for link in LINK.findall(BLOCK.sub("", document.read_text())):
        if link.startswith(("https:", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_relative_to(ROOT)
        assert target.is_file(), f"{name(document)}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{name(document)}: {link}"


def test_links_lead_somewhere_in_the_sdist_and_on_pypi(archives):
    """Of all documents in the sdist; what an index shows has no link into the repository."""
    (sdist,) = archives.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {member.split("/", 1)[-1] for member in archive.getnames()}
        (info,) = [m for m in archive.getnames() if m.count("/") == 1 and m.endswith("/PKG-INFO")]
        shown = archive.extractfile(info).read().decode().split("\n\n", 1)[1]
    assert {name(document) for document in DOCUMENTS} <= inside
    for document in DOCUMENTS:
        for link in LINK.findall(BLOCK.sub("", document.read_text())):
            path = link.partition("#")[0]
            if path and not link.startswith(("https:", "mailto:")):
                target = (document.parent / path).resolve()
                assert name(target) in inside, f"{name(document)}: {link}"
    assert "fasttracks demo" in shown
    links = LINK.findall(shown)
    assert "https://arxiv.org/abs/2404.07097" in links
    assert [link for link in links if not link.startswith("https:")] == []


def test_version_is_told_once():
    assert f"\n## {fasttracks.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {fasttracks.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r'^dynamic = .*"version"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_tracked_files_are_small():
    """As pre-commit holds it; weights and the page are the exceptions."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    files = [ROOT / file for file in listed.stdout.split("\0") if file]
    large = {name(file) for file in files if file.is_file() and file.stat().st_size > 600_000}
    assert large <= {"fasttracks/data/base.safetensors", "fasttracks/viewers/page.html"}


def test_last_run_on_a_gpu_is_not_too_old(request):
    """CI has no GPU: a quarter of the kernels may have changed since, or of the tests be new."""
    record = json.loads(gpu_tests.RECORD.read_text())
    assert record["failed"] == 0
    now, then = gpu_tests.kernels(), record["kernels"]
    changed = [file for file in then if now.get(file) != then[file]]
    assert len(changed) <= len(then) / 4, f"run benchmarks/gpu_tests.py on a GPU: {changed} changed"
    wanted = [item for item in request.session.items if item.get_closest_marker("gpu")]
    assert len(wanted) <= 1.25 * record["passed"], "run benchmarks/gpu_tests.py on a GPU"
