"""Folders of clips: what is found, what becomes of each, and what survives whatever is killed."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_network
from test_video import write_video

import fasttracks
from fasttracks import InputError, Reconstruction, Tracks
from fasttracks.batch import Reconstructor, index, local
from fasttracks.batch.index import TIMES, Index
from fasttracks.batch.inputs import Clip, find, in_shard, state
from fasttracks.batch.settings import Settings
from fasttracks.cli.batch import _Bar, _settings
from fasttracks.cli.main import main
from fasttracks.cli.options import parser
from fasttracks.weights import SHIPPED, save

VIDEO = {"frames": 5, "grid": 4}
OPTIONS = ["--frames", "5", "--grid", "4", "--device", "cpu", "--refine", "none"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(tiny_network(dtype=torch.float32), path)
    return str(path)


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A folder `clips` with four good clips of three kinds and three bad ones, in the cwd."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("clips/walks")
    write_tracks("clips/a.npz", seed=0)
    write_tracks("clips/walks/a.npz", seed=1)
    write_tracks("clips/walks/b.npz", seed=2, tracks=7)
    write_video(Path("clips/dog.mp4"), count=6)
    Path("clips/junk.mp4").write_text("junk")
    Path("clips/walks/cut.npz").write_bytes(Path("clips/a.npz").read_bytes()[:900])
    Path("clips/empty.avi").touch()
    return Path("clips")


def write_tracks(path, seed=0, tracks=20):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 400, (tracks, 2)) + rng.normal(0, 2, (6, tracks, 2)).cumsum(0)
    Tracks(xy, image_size=(400, 400)).save(path)


def settings_for(output, model, **options):
    output = Path(output).absolute()
    (output / "unfinished").mkdir(parents=True)
    folders = {"output": str(output), "unfinished": str(output / "unfinished")}
    return Settings(**folders, model=model, refine="none", **VIDEO, **options)


def rows_of(*clips):
    return [clip._asdict() for clip in clips]


def rows_in(folder):
    return [json.loads(line) for line in Path(folder, "index.jsonl").read_text().splitlines()]


def assert_same(found, expected):
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value)


def test_a_folder(clips, model, capsys):
    arguments = ["batch", "clips", "out", "--model", model, *OPTIONS, "--export", "ply,colmap,tum"]
    threads = torch.get_num_threads()
    assert main([*arguments, "--workers", "1"]) == 0
    assert "wrote 4 reconstructions" in capsys.readouterr().out
    rows = {row["name"]: row for row in rows_in("out")}
    assert list(rows) == ["a", "dog", "empty", "junk", "walks/a", "walks/b", "walks/cut"]
    assert [name for name, row in rows.items() if row["status"] == "failed"] == [
        *("empty", "junk", "walks/cut")
    ]
    assert "is empty" in rows["empty"]["error"]
    assert "can't be decoded" in rows["junk"]["error"]
    assert "not a whole .npz" in rows["walks/cut"]["error"]
    assert all(row.keys() == index.COLUMNS.keys() for row in rows.values())
    assert rows["walks/b"]["tracks"] == 7
    assert rows["dog"]["frames"] == 5

    network = fasttracks.load(model, device="cpu")
    torch.set_num_threads(1)
    for name in ("a", "walks/a", "walks/b"):
        tracks = Tracks.load(clips / f"{name}.npz")
        assert_same(
            Reconstruction.load(f"out/{name}.npz"), fasttracks.reconstruct(tracks, model=network)
        )
    torch.set_num_threads(threads)
    assert main(["reconstruct", "clips/dog.mp4", "-o", "dog.npz", "--model", model, *OPTIONS]) == 0
    assert_same(Reconstruction.load("out/dog.npz"), Reconstruction.load("dog.npz"))
    shown = sorted(path.name for path in Path("out").iterdir() if path.suffix != ".parquet")
    assert shown == ["a-colmap", "a-tum.txt", "a.npz", "a.ply", "dog-colmap", "dog-tum.txt",
                     "dog.npz", "dog.ply", "index.jsonl", "walks"]  # fmt: skip

    # Once more: only what failed, and what changed, is done.
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.npz")}
    write_tracks("clips/walks/b.npz", seed=3)
    write_tracks("clips/walks/cut.npz", seed=4)
    os.unlink("clips/junk.mp4")
    assert main([*arguments, "--workers", "1", "--strict"]) == 2
    told = capsys.readouterr()
    assert "6 clips, 3 of which are done" in told.out
    assert "1 of 6 clips failed" in told.err
    after = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.npz")}
    changed = {path.stem for path, modified in after.items() if before.get(path) != modified}
    assert changed == {"b", "cut"}
    assert [row["name"] for row in rows_in("out") if row["status"] == "failed"] == ["empty", "junk"]

    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    assert parquet.read_table("out/index.parquet").to_pylist() == rows_in("out")


def test_as_on_gpus_and_a_process_that_dies(clips, model):
    """Stages in processes of their own, tracks and results from one to the other."""
    made = [*find("clips", Path("out")), Clip(os.path.abspath("clips/none.npy"), "none")]
    settings = settings_for("out", model)
    Path("between").mkdir()
    run = local._Run(rows_of(*made), settings, ["cpu"], 1, "between")
    try:
        rows = run.rows()
        found = [next(rows)]
        first = run.processes[0]
        first.process.kill()
        found += rows
        assert first not in run.processes
    finally:
        run.end()
    assert os.listdir("between") == []
    status = {row["name"]: row["status"] for row in found}
    assert len(found) == len(made)
    assert {name for name, s in status.items() if s == "done"} == {"a", "walks/a", "walks/b", "dog"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = fasttracks.reconstruct(Tracks.load("clips/walks/a.npz"), model=model, device="cpu")
    torch.set_num_threads(threads)
    assert_same(Reconstruction.load("out/walks/a.npz"), expected)


def test_a_clip_whose_process_dies_each_time(tmp_path, model):
    run = local._Run(rows_of(Clip("/x.npz", "x")), settings_for(tmp_path, model), [], 1, "")
    run.processes[0].slots = 1

    def kill_them(number):
        for process in run.processes:
            if process.tasks:
                process.process.kill()
        return process_wait(number)

    process_wait = local.wait
    try:
        local.wait = kill_them
        (row,) = run.rows()
    finally:
        local.wait = process_wait
        run.end()
    assert row["status"] == "failed"
    assert row["error"].startswith("worker died: 2 processes ended during 'all'")
    assert "-9" in row["error"]


def test_a_model_at_fault_is_told_before_anything_is_done(clips, model, capsys):
    Path("bad.safetensors").write_bytes(b"no weights")
    assert main(["batch", "clips", "out", "--model", "bad.safetensors", "--workers", "1"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("fasttracks: error: model: ")
    assert "not a whole safetensors file" in told


def test_what_is_killed_goes_on(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("clips")
    for i in range(9):
        write_tracks(f"clips/{i}.npz", seed=i)
    command = [sys.executable, "-m", "fasttracks", "batch", "clips", "out", "--model", model]
    command += [*OPTIONS, "--workers", "1"]
    # Where these tests run in the background Ctrl-C is ignored, by what they start as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    lines = Path("out/index.jsonl")
    for signals, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        before = lines.stat().st_size if lines.exists() else 0
        while run.poll() is None and not (lines.exists() and lines.stat().st_size > before):
            time.sleep(0.001)
        if signals == signal.SIGKILL:
            run.kill()  # and not its processes, which notice
        else:
            os.killpg(run.pid, signals)  # as a terminal does
        assert run.wait() == status
        for path in Path("out").glob("*.npz"):
            Reconstruction.load(path)
    assert main(command[3:]) == 0
    assert [row["name"] for row in rows_in("out")] == [str(i) for i in range(9)]
    assert {row["status"] for row in rows_in("out")} == {"done"}
    left = {path.name for path in Path("out").iterdir()} - {"index.parquet"}
    assert left == {"index.jsonl", *(f"{i}.npz" for i in range(9))}


def test_index_with_torn_line_and_full_disk(tmp_path):
    def row(name, **more):
        return {"path": f"/{name}", "name": name, **more}

    with Index(tmp_path) as rows:
        rows.add(row("b", finished=1.0, status="failed"))
        rows.add(row("a", finished=2.0))
    with open(rows.path, "a") as file:
        file.write('{"path": "/c", "na')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Index(tmp_path) as rows:
        size = rows.path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
        try:
            with pytest.raises(OSError):
                rows.add(row("c"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert rows.path.stat().st_size == size
        rows.add(row("b", finished=3.0, status="done"))
        rows.finish()
    assert [(r["name"], r["status"]) for r in rows_in(tmp_path)] == [("a", None), ("b", "done")]


def test_disk_full_while_writing_ends_the_run(clips, model, capsys, monkeypatch):
    def run(todo, *_):
        yield {**todo[0], "status": "stopped", "error": "OSError: [Errno 28] No space left"}

    monkeypatch.setattr(local, "run", run)
    assert main(["batch", "clips", "out", "--model", model, *OPTIONS]) == 2
    assert "No space left" in capsys.readouterr().err
    assert rows_in("out") == []
    assert os.listdir("out") == ["index.jsonl"]


def test_shards_are_merged(clips, model, capsys, monkeypatch):
    found = find("clips", Path("out"))
    parts = [[clip for clip in found if in_shard(clip, (i, 3))] for i in range(3)]
    assert sorted(clip for part in parts for clip in part) == found
    assert all(len(part) < len(found) for part in parts)
    monkeypatch.setattr(local, "run", lambda todo, *_: ({**r, "status": "done"} for r in todo))
    for i in range(3):
        arguments = ["batch", "clips", "out", "--model", model, *OPTIONS, "--shard", f"{i}/3"]
        assert main(arguments) == 0
    assert main(["batch", "--merge", "out"]) == 0
    rows = rows_in("out")
    assert [row["path"] for row in rows] == sorted(clip.path for clip in found)
    assert {row["name"] for row in rows} == {clip.name for clip in found}
    capsys.readouterr()
    assert main(["batch", "--merge", "clips"]) == 2
    assert "has no index" in capsys.readouterr().err


def test_bar_tells_the_stage_that_limits():
    row = {"seconds_decode": 1.0, "seconds_track": 3.0, "seconds_reconstruct": 2.0}
    for workers, gpus, limit in ((2, 0, "track"), (1, 1, "track"), (8, 1, "reconstruct")):
        with _Bar(9, workers, gpus) as bar:
            bar.show(row, 0)
            assert bar._limit() == limit


def test_names_that_are_no_text(clips, model):
    """A file may be called by any bytes, which Parquet and UTF-8 can't hold."""
    os.rename("clips/a.npz", b"clips/\xff.npz")
    rows = find("clips", Path("out"))[-1:] + find("clips", Path("out"))[:1]
    with Index(Path(".")) as made:
        for clip in rows:
            made.add({**clip._asdict(), "status": "done"})
        made.finish()
    assert set(index.read(Path("."))) == {clip.path for clip in rows}


def test_what_is_found(clips):
    names = [clip.name for clip in find("clips", Path("clips/walks"))]
    assert names == ["a", "dog", "empty", "junk"]
    os.mkdir("clips/frames.1")
    Path("clips/frames.1/0001.png").touch()
    Path("clips/.hidden.mp4").touch()
    Path("clips/dog.npy").touch()
    names = [clip.name for clip in find("clips", Path("out"))]
    assert len(names) == 9
    assert {"frames.1", "walks/cut"} < set(names)
    assert [name[:4] for name in names if name.startswith("dog")] == ["dog-", "dog-"]
    for pattern in ("clips/*/a.*", "clips/walk?/a.npz", "clips/**/walks/[a].npz"):
        assert [clip.name for clip in find(pattern, Path("out"))] == ["walks/a"]
    lines = ["clips/a.npz", "", "# a comment", "clips/walks/a.npz", "clips/x.pkl:car"]
    lines += ["clips/frames.1/%04d.png", "clips/a.npz"]
    Path("list.txt").write_text("\n".join(lines))
    listed = find("list.txt", Path("out"))
    assert [clip.name.partition("-")[0] for clip in listed] == ["a", "frames.1", "a", "x"]
    assert len({clip.name for clip in listed}) == 4
    assert state(listed[1].path) == (-1, 0)
    assert state(os.path.abspath("clips/frames.1"))[0] == 0
    for nothing in ("out", "clips/frames.1/x*", "clips/none.mp4"):
        with pytest.raises(InputError, match="has no videos"):
            find(nothing, Path("out"))


def test_fingerprint(clips, model):
    settings = settings_for("out", model)
    path = os.path.abspath("clips/a.npz")
    known = settings.fingerprint(path)
    assert settings_for("elsewhere", model).fingerprint(path) == known
    assert settings_for("c", model, focal=300.0).fingerprint(path) != known
    Path("other.safetensors").write_bytes(Path(model).read_bytes() + b" ")
    assert settings_for("d", "other.safetensors").fingerprint(path) != known
    os.utime(path, ns=(0, 0))
    assert settings.fingerprint(path) != known


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["clips"], "OUTPUT: expected a folder"),
        (["clips", "clips"], "has files and no index"),
        (["nothing", "out"], "has no videos"),
        (["clips", "out", "--shard", "3/3"], "--shard: expected i/n"),
        (["clips", "out", "--export", "ply,doc"], "--export: expected some of"),
        (["clips", "out", "--frames", "0"], "--frames: expected a whole number"),
        (["clips", "out", "--model", "none.safetensors"], "no file"),
        (["clips", "out", "--workers", "0"], "--workers: expected a whole number"),
        (["clips", "out", "--device", "cuda:77"], "device"),
        (["clips", "out", "--gpu-share", "0"], "--gpu-share: expected more than 0"),
    ],
)
def test_bad_calls(arguments, complaint, clips, capsys):
    assert main(["batch", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("out").exists()


def test_reconstructor_takes_columns(clips, model):
    reconstructor = Reconstructor(model, "cpu")
    good = [Tracks.load("clips/a.npz"), Tracks.load("clips/walks/b.npz")]
    bad = Tracks(np.zeros((4, 5, 2)), image_size=(9, 9))
    tracks = np.empty(4, object)
    tracks[:] = [good[0], None, bad, good[1]]
    errors = [None, "it was bad", None, None]
    columns = reconstructor({"tracks": tracks, "error": errors, "id": np.arange(4)})
    assert list(columns) == ["error", "id", "reconstruction", "status", "seconds_reconstruct",
                             "device"]  # fmt: skip
    assert columns["id"] == [0, 1, 2, 3]
    assert columns["error"][1] == "it was bad"
    assert columns["error"][2].startswith("tracks: ")
    assert columns["status"] == [None, None, "failed", None]
    assert columns["reconstruction"][1:3] == [None, None]
    for i, tracks in ((0, good[0]), (3, good[1])):
        expected = fasttracks.reconstruct(tracks, model=reconstructor.model)
        assert_same(columns["reconstruction"][i], expected)


def without_times(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows_in(folder)]


def files_in(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.suffix not in (".jsonl", ".parquet")
    }


@pytest.mark.slow
def test_ray_makes_the_same(clips, model):
    pytest.importorskip("ray", reason="needs Ray")
    arguments = ["--model", model, *OPTIONS, "--export", "ply,gltf"]
    assert main(["batch", "clips", "out", *arguments]) == 0
    assert main(["batch", "clips", "ray", *arguments, "--ray"]) == 0
    assert without_times("ray") == without_times("out")
    assert files_in("ray") == files_in("out")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds Ray's processes as Linux shows them")
def test_ray_on_two_nodes_with_a_process_killed(tmp_path, model, monkeypatch):
    pytest.importorskip("ray", reason="needs Ray")
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    os.mkdir("clips")
    for i in range(12):
        write_tracks(f"clips/{i}.npz", seed=i, tracks=100)
    arguments = ["batch", "clips", "out", "--model", model, *OPTIONS, "--refine", "bundle"]
    assert main(arguments) == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cluster.add_node(num_cpus=2)
        raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
        arguments[2] = "ray"
        command = [sys.executable, "-m", "fasttracks", *arguments, "--ray", cluster.address]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        worked, killed = set(), False
        while run.poll() is None:
            busy = {pid: parent for pid, name, parent in processes() if "ray::" in name}
            worked |= set(busy.values())
            if not killed and (actors := [p for p, n, _ in processes() if "MapWorker" in n]):
                killed = True
                os.kill(actors[0], signal.SIGKILL)
            time.sleep(0.02)
        assert run.returncode == 0, run.stdout.read()
    finally:
        cluster.shutdown()
    assert killed
    assert worked & set(raylets) == set(raylets)
    assert without_times("ray") == without_times("out")
    assert files_in("ray") == files_in("out")


def processes():
    """(id, command, parent's id) of each that runs here."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "cmdline").read_bytes().decode(errors="replace")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        yield int(path.name), name, parent


def test_settings_are_by_default_those_of_the_command(tmp_path):
    options = parser().parse_args(["batch", "in", str(tmp_path / "out")])
    settings = _settings(options, tmp_path / "unfinished")
    assert settings == Settings(settings.output, settings.unfinished, str(SHIPPED["base"]))
