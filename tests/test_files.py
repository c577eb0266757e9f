"""Files and folders appear whole or not at all, whatever happens while they are written."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import tiny_network
from test_video import write_video

from fasttracks import InputError
from fasttracks.files import claimed, filling, replacing, write_npz
from fasttracks.weights import save

OWN = r"\d\.txt"
WRITE = """
import sys, time
from fasttracks.files import filling, replacing
way = filling(sys.argv[1], r"\\d") if sys.argv[2] == "folder" else replacing(sys.argv[1])
with way as new:
    (new / "1" if sys.argv[2] == "folder" else new).write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_leaves_goes_with_the_next_write(tmp_path, kind, number):
    def start(name):
        command = [sys.executable, "-c", WRITE, str(tmp_path / name), kind]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"writing\n"
        return process

    killed, living = start("a"), start("b")
    killed.send_signal(number)
    killed.wait()
    killed.stdout.close()
    assert not (tmp_path / "a").exists()
    write_npz(tmp_path / "c.npz", {"x": np.ones(1)})
    left = [name for name in os.listdir(tmp_path) if name != "c.npz"]
    assert len(left) == 1  # of the process that still writes
    living.kill()
    living.wait()
    living.stdout.close()
    write_npz(tmp_path / "c.npz", {"x": np.ones(1)})
    assert os.listdir(tmp_path) == ["c.npz"]


def test_an_error_leaves_all_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    for way in (
        replacing(tmp_path / "a.txt"),
        replacing(tmp_path / "new" / "folder" / "a.txt"),
        filling(tmp_path / "new", OWN),
    ):
        with pytest.raises(OSError, match="full"), way as new:
            (new if new.suffix else new / "1.txt").write_text("half")
            raise OSError("full")
        assert tree(tmp_path) == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_keeps_its_mode_and_its_link(tmp_path):
    file, link = tmp_path / "a.npz", tmp_path / "link.npz"
    file.touch()
    file.chmod(0o640)
    link.symlink_to(file)
    write_npz(link, {"x": np.ones(3)})
    assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert np.load(file)["x"].sum() == 3


def test_one_in_another(tmp_path):
    with replacing(tmp_path / "a.npz") as first, replacing(tmp_path / "b.npz") as second:
        for path in (first, second):
            write_npz(path, {"x": np.ones(1)})
    with filling(tmp_path / "folder", OWN) as new:
        write_npz(new / "1.txt", {"x": np.ones(1)})
    assert tree(tmp_path) == ["a.npz", "b.npz", "folder", "folder/1.txt"]


def test_filling_a_folder_that_exists(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("1.txt", "2.txt", "mine.txt", "below/1.txt", "below/2.txt"):
        (tmp_path / name).write_text("old")
    with filling(tmp_path, rf"{OWN}|below/{OWN}") as new:
        (new / "below").mkdir()
        for name in ("1.txt", "3.txt", "below/1.txt"):
            (new / name).write_text("new")
    assert tree(tmp_path) == ["1.txt", "3.txt", "below", "below/1.txt", "mine.txt"]
    assert (tmp_path / "below" / "1.txt").read_text() == "new"


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "file.txt").touch()
    for path, way, complaint in (
        ("loop.txt", replacing, "leads back to itself"),
        ("loop.txt", lambda path: filling(path, OWN), "leads back to itself"),
        ("file.txt", lambda path: filling(path, OWN), "is a file"),
        ("a\ud800.txt", replacing, "can't be the name"),
        ("", replacing, "is a directory"),
    ):
        with pytest.raises(InputError, match=complaint), way(tmp_path / path):
            pass
    (tmp_path / "dangling.txt").symlink_to("elsewhere.txt")
    with replacing(tmp_path / "dangling.txt") as new:
        new.write_text("new")
    assert (tmp_path / "elsewhere.txt").read_text() == "new"


NAMES = """
import os, sys
from pathlib import Path
import numpy as np
from fasttracks import Tracks
from fasttracks.cli.main import main
for name in map(os.fsdecode, sys.argv[1:]):
    result = name.rpartition(".")[0] + "-reconstruction.npz"
    if name.endswith(".npz"):
        rng = np.random.default_rng(0)
        Tracks(rng.uniform(0, 400, (6, 20, 2)), image_size=(400, 400)).save(name)
    options = ["--model", "tiny.safetensors", "--device", "cpu"]
    for command in (
        ["reconstruct", name, *options],
        ["view", result, "-o", "again.html", "--force"],
        *(["export", result, form] for form in ("ply", "ply-frames", "colmap", "tum", "gltf")),
    ):
        assert main(command) == 0, command
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_file_names_that_are_no_text_here(tmp_path, locale):
    """Latin-1 bytes, and Cyrillic in a locale that has only ASCII."""
    save(tiny_network(dtype=torch.float32), tmp_path / "tiny.safetensors")
    names = [b"caf\xe9.npz", b"film\xe9.mp4"] + ["кот.npz".encode()] * (locale == "C")
    write_video(tmp_path / "clip.mp4", count=6, size=(96, 128))
    os.rename(tmp_path / "clip.mp4", os.path.join(os.fsencode(tmp_path), names[1]))
    utf8 = str(int(locale != "C"))
    done = subprocess.run(
        [sys.executable, "-c", NAMES, *names],
        cwd=tmp_path,
        env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": utf8},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))


def test_a_claim_keeps_others_away_until_it_ends(tmp_path):
    (tmp_path / "link").symlink_to("a")
    with claimed(tmp_path / "a"):
        for other in (tmp_path / "a", tmp_path / "link"):
            with pytest.raises(InputError, match="another run is about to write"), claimed(other):
                pass
        with claimed(tmp_path / "b"):
            pass
    with claimed(tmp_path / "link"):
        assert os.listdir(tmp_path) == ["link"]
