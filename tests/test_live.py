"""`fasttracks live`: a video at its own pace, the page that grows, and what is written."""

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from browser import PROGRAM, Browser
from helpers import tiny_network
from test_stream import texture

from fasttracks.cli.main import main
from fasttracks.reconstruction import Reconstruction
from fasttracks.viewers.live import Cloud
from fasttracks.weights import save

pytest.importorskip("viser")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_pan(path, frames=20):
    wide = texture()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 60, (120, 160))
    for t in range(frames):
        writer.write(np.ascontiguousarray(wide[:, 3 * t : 3 * t + 120]))
    writer.release()


def test_cloud_keeps_the_newest():
    cloud = Cloud(3)
    cloud.add(np.array([1, 2]), np.zeros((2, 3)))
    kept = cloud.add(np.array([1, 3, 4]), np.array([[1.0] * 3, [3.0] * 3, [4.0] * 3]))
    assert kept[:, 0].tolist() == [1, 3, 4]


def test_live_writes_a_reconstruction(capsys):
    write_pan(Path("pan.mp4"))
    save(tiny_network(dtype=torch.float32), "tiny.safetensors")
    small = ["--window", "8", "--hop", "2", "--tracks", "16", "--device", "cpu", "--port", "8431"]
    command = ["live", "pan.mp4", "--model", "tiny.safetensors", "-o", "out.npz", *small]
    assert main(command) == 0
    assert "open http://127.0.0.1:" in capsys.readouterr().out
    rec = Reconstruction.load("out.npz")
    assert len(rec) == 20
    assert np.median(np.diff(rec.times)) == pytest.approx(1 / 60, rel=0.01)
    assert Path("out.html").exists()
    assert main(command) == 2
    assert "out.npz exists" in capsys.readouterr().err
    assert main(["live", "nosuch.mp4", "-o", "other.npz"]) == 2
    assert "no file nosuch.mp4" in capsys.readouterr().err


def test_live_records_for_rerun(capsys):
    pytest.importorskip("rerun")
    write_pan(Path("pan.mp4"))
    save(tiny_network(dtype=torch.float32), "tiny.safetensors")
    small = ["--window", "8", "--hop", "2", "--tracks", "16", "--device", "cpu"]
    command = ["live", "pan.mp4", "--model", "tiny.safetensors", "-o", "out.npz", *small]
    assert main([*command, "--rerun", "pan.rrd"]) == 0
    assert "20 frames, " in capsys.readouterr().out
    listing = [sys.executable, "-m", "rerun", "rrd", "print", "pan.rrd"]
    printed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    for entity in ("world/still", "world/path", "world/camera/image", "words"):
        assert f"/{entity}" in printed
    for path, message in (("pan.txt", "a name ending in .rrd"), ("pan.rrd", "pan.rrd exists")):
        assert main([*command, "-o", f"{path}.npz", "--rerun", path]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_page_grows_while_frames_arrive():
    from fasttracks.viewers.live import Newest, Page

    page = Page(8432)
    g = np.random.default_rng(0)
    points = (g.normal(0, 1, (300, 3)) + np.array([0, 0, 6])).astype(np.float32)
    intrinsics = np.array([[120.0, 0, 60], [0, 120, 80], [0, 0, 1]])

    def show(t):
        pose = np.eye(4, dtype=np.float32)
        pose[0, 3] = 0.2 * t
        some = np.arange(30 * (t + 1))
        image = np.full((160, 120, 3), 20 * t, np.uint8)
        words = {"tracks alive": f"{len(some)}"}
        page.show(Newest(pose, intrinsics, some, points[some], some % 10 == 0, image, words))

    show(0)
    try:
        with Browser(800, 600) as browser:
            browser.call("Page.navigate", url=page.url)
            seen = "document.body ? document.body.innerText : ''"
            wait_for(lambda: "30" in browser.run(seen))
            # The scene alone, without the words beside it; it stands still while no frame comes.
            scene = {"clip": {"x": 0, "y": 0, "width": 480, "height": 600, "scale": 1}}
            shots = [b""]

            def settled():
                time.sleep(2)
                shots.append(browser.screenshot(**scene))
                return shots[-1] == shots[-2]

            wait_for(settled)
            before = shots[-1]
            for t in range(1, 10):
                show(t)
            wait_for(lambda: "300" in browser.run(seen))
            wait_for(settled)
            assert shots[-1] != before
    finally:
        page.close()


def wait_for(condition, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.5)
