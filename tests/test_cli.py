"""The command line as a person uses it: in its own process, from an empty folder."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from helpers import TINY, rule_weights, tiny_network

import fasttracks
from fasttracks import Reconstruction, Tracks
from fasttracks.cli.main import main
from fasttracks.export import FORMATS
from fasttracks.files import claimed
from fasttracks.training.run import Schedule
from fasttracks.weights import save


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tracks_file():
    rng = np.random.default_rng(0)
    Tracks(rng.uniform(0, 400, (6, 20, 2)), image_size=(400, 400)).save("clip.npz")
    save(tiny_network(dtype=torch.float32), "tiny.safetensors")
    return "clip.npz"


def fails(arguments, capsys):
    """The one line that a bad call prints."""
    before = sorted(os.listdir())
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    _, err = capsys.readouterr()
    assert status == 2
    assert err.startswith("fasttracks: error: "), err
    assert err.count("\n") == 1, err
    assert sorted(os.listdir()) == before
    return err


@pytest.mark.slow
def test_demo_in_a_fresh_process():
    out = subprocess.run(
        [sys.executable, "-m", "fasttracks", "demo", "--device", "cpu"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "reprojection error" in out.stdout
    assert not out.stderr
    files = [f"reconstruction.{suffix}" for suffix in ("html", "npz", "png")]
    assert sorted(os.listdir("fasttracks-demo")) == files
    result = Reconstruction.load("fasttracks-demo/reconstruction.npz")
    assert result.points.shape == (50, 900, 3)
    assert result.median_reprojection_error < 4
    assert result.refinement is not None  # by default
    assert os.path.getsize("fasttracks-demo/reconstruction.png") > 50_000


def test_reconstruct_info_and_force(tracks_file, capsys):
    arguments = ["reconstruct", tracks_file, "--model", "tiny.safetensors", "--device", "cpu"]
    assert main(arguments) == 0
    assert "wrote" in capsys.readouterr().out
    assert sorted(os.listdir()) == [
        "clip-reconstruction.html",
        "clip-reconstruction.npz",
        "clip-reconstruction.png",
        "clip.npz",
        "tiny.safetensors",
    ]
    assert "exists" in fails(arguments, capsys)
    assert main([*arguments, "--force"]) == 0
    for name in ("clip.npz", "clip-reconstruction.npz", "tiny.safetensors", "base"):
        capsys.readouterr()
        assert main(["info", name]) == 0
        assert len(capsys.readouterr().out.splitlines()) >= 4


def test_video_to_page_and_exports(capsys, monkeypatch):
    """A name with spaces and Cyrillic letters, from the video to each file in one go."""
    from test_video import write_video

    name = Path("два котика на прогулке.mp4")
    write_video(name, count=12, size=(96, 128), pts=[0, 4, 8, 12, 40, 44, 48, 52, 56, 60, 64, 90])
    save(tiny_network(dtype=torch.float32), "tiny.safetensors")
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    model = ["--model", "tiny.safetensors", "--device", "cpu"]
    taken = ["--every", "2", "--start", "0.04", "--frames", "5", "--max-size", "128", "--open"]
    assert main(["reconstruct", str(name), *model, *taken]) == 0
    stages = capsys.readouterr().out
    for stage in ("decode", "track (klt)", "reconstruct", "write", "draw"):
        assert f"\n{stage} " in f"\n{stages}"
    result = f"{name.stem}-reconstruction"
    rec = Reconstruction.load(f"{result}.npz")
    np.testing.assert_allclose(rec.times, (0.04, 0.12, 0.44, 0.52, 0.6))
    assert rec.image_size == (96, 128)
    assert rec.colors is not None
    assert [Path(result).stem in unquote(url) for url in opened] == [True]
    page = Path(f"{result}.html").read_text(encoding="utf-8")
    assert f"<title>{name.stem}</title>" in page

    assert main(["view", f"{result}.npz", "--video", str(name), "-o", "again.html"]) == 0
    clips = [
        json.loads(text.split('type="application/json">')[1].split("</script>")[0])
        for text in (page, Path("again.html").read_text(encoding="utf-8"))
    ]
    assert clips[0]["images"] == clips[1]["images"]
    assert len(clips[0]["images"]) == 5

    write_video(Path("short.mp4"), count=5, size=(96, 128))
    write_video(Path("large.mp4"), size=(128, 128))
    for other, complaint in (("short.mp4", "has 2 of the 5 frames"), ("large.mp4", "128×128")):
        arguments = ["view", f"{result}.npz", "--video", other, "-o", "other.html"]
        capsys.readouterr()
        assert complaint in fails(arguments, capsys)

    assert main(["view", f"{result}.npz"]) == 0  # replaces the page that `reconstruct` wrote
    assert "images" not in Path(f"{result}.html").read_text(encoding="utf-8").split("clip")[-1]
    Path(f"{result}.html").write_text("mine")
    capsys.readouterr()
    assert "exists" in fails(["view", f"{result}.npz"], capsys)

    for form, wanted in FORMATS.items():
        arguments = ["export", f"{result}.npz", form]
        arguments += ["--video", str(name)] if wanted.needs_video else []
        assert main(arguments) == 0
        assert Path(result + wanted.ending).exists()
        capsys.readouterr()
        assert "exists" in fails(arguments, capsys)
        assert main([*arguments, "--force"]) == 0


def test_a_folder_with_a_dot_in_its_name(tracks_file, capsys):
    options = ["--model", "tiny.safetensors", "--device", "cpu", "-o", "dog.v2-reconstruction.npz"]
    assert main(["reconstruct", tracks_file, *options]) == 0
    assert main(["export", "dog.v2-reconstruction.npz", "colmap"]) == 0
    assert Path("dog.v2-reconstruction-colmap/images.bin").exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--frames", "50"),
        ("--start", "1"),
        ("--tracker", "klt"),
        ("--checkpoint", "x"),
        ("--every", "1"),
        ("--max-size", "1024"),
    ],
    ids=lambda option: option[0],
)
def test_options_of_a_video_are_refused_for_tracks(option, tracks_file, capsys):
    assert "track file, which is taken whole" in fails(
        ["reconstruct", tracks_file, *option], capsys
    )


def test_info_of_each_kind_of_file(tracks_file, capsys):
    from test_video import write_video

    np.save("clip.npy", Tracks.load(tracks_file).tracks)
    write_video(Path("clip.mp4"), count=12, size=(96, 128))
    for name, words in (("clip.npy", "20"), ("clip.mp4", "128×96"), ("base", "12802514")):
        assert main(["info", name]) == 0
        assert words in capsys.readouterr().out
        assert main(["info", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
    assert "no file nosuch, nor a shipped model" in fails(["info", "nosuch"], capsys)


def test_track_says_what_it_leaves_out(capsys):
    from test_video import write_video

    write_video(Path("clip.mp4"), count=12, size=(96, 128))
    for frames, left in (("5", True), ("12", False)):
        assert main(["track", "clip.mp4", "--frames", frames, "--force"]) == 0
        assert ("left out what follows" in capsys.readouterr().out) is left


def test_whole_videos_are_read_up_to_what_is_adjusted_together(capsys):
    from fasttracks.cli.reconstruct import VIDEO
    from fasttracks.long.assemble import TOGETHER

    assert VIDEO["frames"] == TOGETHER
    with pytest.raises(SystemExit):
        main(["reconstruct", "--help"])
    assert f"at most this many (default: {TOGETHER})" in " ".join(capsys.readouterr().out.split())


def test_how_long_it_will_take_is_said_once(tracks_file, monkeypatch, capsys):
    from fasttracks.cli import console

    monkeypatch.setattr(console, "_LOOK", 0)
    model = fasttracks.load("tiny.safetensors", device="cpu")
    for tokens, times in ((10**12, 1), (1, 0)):
        with console.progress(model, tokens):
            fasttracks.reconstruct(Tracks.load(tracks_file), model=model)
        assert capsys.readouterr().out.count("minutes on this CPU") == times


def test_completion(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "refine" in script
    assert main(["completion", "bash"]) == 0
    Path("complete.sh").write_text(capsys.readouterr().out)
    for words, expected in (
        (["re"], "reconstruct"),
        (["export", "a.npz", "gl"], "gltf"),
        (["demo", "--refine", "b"], "bundle"),
        (["info", "--j"], "--json"),
    ):
        typed = " ".join(["fasttracks", *words])
        line = f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _fasttracks; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(
            ["bash", "-c", f"source complete.sh; {line}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [expected]


def test_progress_of_the_network_on_a_terminal(tracks_file, monkeypatch, capsys):
    """Blocks report as they end, and no hook stays."""
    from fasttracks.cli.console import progress

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    model = fasttracks.load("tiny.safetensors", device="cpu")
    tracks = Tracks.load(tracks_file)
    with progress(model, tracks.visibility.size):
        fasttracks.reconstruct(tracks, model=model)
    assert "100%" in capsys.readouterr().err
    assert not any(block._forward_hooks for block in model.blocks)


def test_focal_length_is_used(tracks_file):
    options = ["--model", "tiny.safetensors", "--device", "cpu", "-o", "a.npz"]
    assert main(["reconstruct", tracks_file, *options, "--focal", "777"]) == 0
    assert (Reconstruction.load("a.npz").intrinsics[:, (0, 1), (0, 1)] == 777).all()


def test_convert(capsys):
    torch.save({"model_state_dict": rule_weights()}, "released.pt")
    assert main(["convert", "released.pt", "--precision", "fp16", "--predicts-focal"]) == 0
    model = fasttracks.load("released.safetensors", device="cpu")
    assert model.config.predicts_focal
    assert os.path.getsize("released.safetensors") < 26e6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["fly"], "fly"),
        (["reconstruct"], "TRACKS"),
        (["reconstruct", "nowhere.npz"], "no file nowhere.npz"),
        (["reconstruct", "nowhere.mp4"], "nowhere.mp4"),
        (["reconstruct", "folder"], "folder"),
        (["reconstruct", "empty.npz"], "empty.npz"),
        (["reconstruct", "empty.mp4"], "empty.mp4"),
        (["reconstruct", "clip.npz", "-o", "folder"], "directory"),
        (["reconstruct", "clip.npz", "-o", "a.txt"], ".npz"),
        (["reconstruct", "clip.npz", "-o", "clip.npz"], "exists"),
        (["reconstruct", "clip.npz", "--model", "nowhere"], "nowhere"),
        (["reconstruct", "empty.mp4", "--model", "nowhere"], "empty.mp4"),
        (["reconstruct", "clip.npz", "--device", "warp"], "device"),
        (["reconstruct", "clip.npz", "--precision", "fp1"], "precision"),
        (["reconstruct", "clip.npz", "--focal", "-3"], "focal"),
        (["reconstruct", "clip.npz", "--focal", "x"], "focal"),
        (["reconstruct", "clip.npz", "-o", "clip.npz/a.npz"], "-o"),
        (["track", "empty.mp4", "--checkpoint", "x"], "--checkpoint"),
        (["track", "empty.mp4", "--start", "1e30"], "start"),
        (["reconstruct", "clip.npz", "--device", "meta"], "device"),
        (["reconstruct", "empty.mp4", "--tracker", "eyes"], "eyes"),
        (["track", "empty.mp4", "--frames", "0"], "frames"),
        (["convert", "nowhere.pt"], "nowhere.pt"),
        (["convert", "folder"], "folder"),
        (["convert", "empty.mp4"], "empty.mp4"),
        (["evaluate", "folder"], "folder"),
        (["evaluate", "clips.npz"], "clips.npz"),
        (["train", "-o", "run", "--tracks", "folder"], "folder"),
        (["train", "-o", "run", "--weights", "nowhere"], "nowhere"),
        (["train"], "--output"),
        (["train", "-o", "run", "--steps", "0"], "--steps"),
        (["train", "-o", "run", "--learning-rate", "nan"], "--learning-rate"),
        (["info", "nowhere.npz"], "nowhere.npz"),
        (["view", "nowhere.npz"], "nowhere.npz"),
        (["view", "clip.npz"], "lacks"),
        (["view", "clip.npz", "-o", "a.rrd"], ".html"),
        (["export", "clip.npz", "obj"], "ply-frames"),
        (["export", "clip.npz", "ply"], "lacks"),
        (["export", "clip.npz", "colmap", "-o", "a.txt"], "folder"),
        (["export", "clip.npz", "splat"], "--video"),
        (["export", "clip.npz", "ply", "--video", "x.mp4"], "--video"),
        (["info", "empty.mp4"], "empty.mp4"),
    ],
    ids=" ".join,
)
def test_bad_calls(arguments, complaint, tracks_file, capsys):
    os.mkdir("folder")
    for name in ("empty.npz", "empty.mp4"):
        open(name, "wb").close()
    assert complaint in fails(arguments, capsys)


def test_train_goes_on_and_evaluate_judges(capsys, monkeypatch):
    monkeypatch.setattr("fasttracks.cli.train.Config", lambda **k: replace(TINY, **k))
    monkeypatch.setattr("fasttracks.scenes.held_out.VALIDATION_TRACKS", 20)
    shape = ((1, 6, 12),)
    monkeypatch.setattr("fasttracks.cli.train.Schedule", lambda **k: Schedule(**k, shapes=shape))
    options = ["--weights", "none", "--rounds", "1", "--device", "cpu", "--validation-clips", "1"]
    assert main(["train", "-o", "run", "--steps", "3", "--minutes", "1e-9", *options]) == 0
    assert "starting at step 0" in capsys.readouterr().out
    assert main(["train", "-o", "run", *options]) == 0
    assert "going on at step 1" in capsys.readouterr().out
    assert sorted(os.listdir("run")) == ["log.jsonl", "run.pt", "weights.safetensors"]
    assert fasttracks.load("run/weights.safetensors", device="cpu").config.rounds == 1

    wanted = ["-o", "clips", "--clips", "2", "--frames", "6", "--tracks", "20"]
    assert main(["generate", *wanted]) == 0
    judge = ["evaluate", "clips", "--model", "run/weights.safetensors", "--device", "cpu"]
    assert main(judge) == 0
    table = capsys.readouterr().out
    assert "flat guess" in table
    assert "rpe_rotation (° a frame)" in table
    assert main([*judge, "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["clips"] == 2
    assert judged["none"]["ate"]["mean"] > 0


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "track",
        "reconstruct",
        "train",
        "evaluate",
        "convert",
        "info",
        "env",
        "view",
        "export",
    ],
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_env_where_the_import_is_broken(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('broken torch')")
    out = subprocess.run(
        [sys.executable, "-m", "fasttracks.env"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ).stdout
    assert "broken torch" in out
    assert "numpy" in out


def test_a_picture_that_is_there_is_kept(tracks_file, capsys):
    Path("a.png").write_text("mine")
    arguments = ["reconstruct", tracks_file, "--model", "tiny.safetensors", "-o", "a.npz"]
    assert "a.png exists" in fails(arguments, capsys)
    assert Path("a.png").read_text() == "mine"


def test_nothing_is_left_where_the_picture_fails(tracks_file, capsys, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("fasttracks.viewers.picture.draw", fail)
    arguments = ["reconstruct", tracks_file, "--model", "tiny.safetensors", "-o", "a.npz"]
    assert "no space left" in fails(arguments, capsys)


def test_a_reader_that_leaves_stops_nothing(tracks_file):
    command = f"{sys.executable} -m fasttracks reconstruct {tracks_file} --model tiny.safetensors"
    subprocess.run(f"{command} --device cpu -o a.npz | true", shell=True, check=True)
    assert Path("a.npz").exists()
    assert Path("a.png").exists()


def test_of_two_runs_to_one_name_the_later_is_refused(tracks_file, capsys):
    wanted = ["reconstruct", tracks_file, "--model", "tiny.safetensors", "-o", "out.npz"]
    for file in ("out.npz", "out.png"):
        with claimed(file):
            assert f"another run is about to write {file}" in fails(wanted, capsys)
    assert main(wanted) == 0
    assert main([*wanted, "--force"]) == 0


def test_generate_shows_how_far_it_is_and_says_where_clips_are(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    wanted = ["generate", "-o", "clips", "--clips", "2", "--frames", "4", "--tracks", "8"]
    assert main(wanted) == 0
    printed = capsys.readouterr()
    assert "generate: 100%" in printed.err
    assert "2/2" in printed.err
    assert "wrote 2 clips to clips" in printed.out


@pytest.mark.parametrize("option", ["--clips", "--frames", "--tracks"])
def test_generate_refuses_numbers_of_nothing(option, capsys):
    assert f"{option}: expected" in fails(["generate", "-o", "clips", option, "0"], capsys)
