"""Clips for `folders.py`: cuts of videos, generated tracks, and files that are bad in ten ways."""

import struct
import wave
import zlib
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np

from fasttracks.cli.generate import in_pixels
from fasttracks.scenes.generator import generate, seeded
from fasttracks.scenes.held_out import kind
from fasttracks.scenes.library import load as load_library
from fasttracks.tracks import Tracks
from fasttracks.video import read_video

FRAMES, TRACKS, SIZE = 12, 100, 256  # of the short ones


def short_clips(folder: Path, videos: Sequence[Path], data: str | None, count: int) -> None:
    """`count` good clips, half of them cut from videos, and 20 bad ones."""
    folder.mkdir()
    half = count // 2
    cuts = [(video, i) for i in range(half) for video in videos][:half]
    frames = {video: read_video(video, max_size=SIZE).frames for video in videos}
    for video, i in cuts:
        start = i % (len(frames[video]) - FRAMES)
        write_video(folder / f"{video.stem}-{i:03}.mp4", frames[video][start : start + FRAMES])
    for i, tracks in enumerate(generated(count - half, FRAMES, TRACKS, data)):
        tracks.save(folder / f"generated-{i:03}.npz")
    for i in range(2):
        bad_clips(folder, f"bad-{i}", frames[videos[i]])


def generated(
    count: int, frames: int, tracks: int, data: str | None, device: str = "cpu"
) -> list[Tracks]:
    """Tracks of scenes by the generator."""
    library = load_library(data, "validation", device)
    variety = kind("casual", frames)
    assert variety is not None
    made = []
    for i in range(count):
        clip = generate(
            1,
            frames,
            tracks,
            library=library,
            generator=seeded(i, library.split, device),
            variety=variety,
        )
        made.append(in_pixels(clip)[0])
    return made


def many_copies(folder: Path, made: Sequence[Tracks], count: int, processes: int) -> None:
    """`count` track files, each of one of the clips with noise of its own, a tenth of a pixel."""
    folder.mkdir()
    with get_context("spawn").Pool(processes) as pool:
        pool.map(partial(_save_noisy, folder, list(made)), range(count), chunksize=64)


def _save_noisy(folder: Path, made: Sequence[Tracks], i: int) -> None:
    clip = made[i % len(made)]
    noise = np.random.default_rng(i).normal(0, 0.1, clip.tracks.shape).astype(np.float32)
    known: dict[str, Any] = {"visibility": clip.visibility, "image_size": clip.image_size}
    if clip.intrinsics is not None:
        known["intrinsics"] = clip.intrinsics
    np.savez_compressed(folder / f"{i:05}.npz", tracks=clip.tracks + noise, **known)


def write_video(path: Path, frames: np.ndarray) -> None:
    """Frames (T, H, W, 3) as H.264, 25 a second, nearly without loss."""
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames[:, :height, :width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def bad_clips(folder: Path, name: str, frames: np.ndarray) -> None:
    """Files that no result comes of, in ten ways."""
    some = np.random.default_rng(0).uniform(9, 90, (8, 20, 2))

    def file(what: str) -> Path:
        return folder / f"{name}-{what}"

    file("empty.mp4").touch()
    file("junk.mp4").write_bytes(np.random.default_rng(1).bytes(5000))
    write_video(file("cut.mp4"), frames[:FRAMES])
    file("cut.mp4").write_bytes(file("cut.mp4").read_bytes()[:2000])
    write_video(file("one-frame.mp4"), frames[:1])
    file("picture.mp4").write_bytes(_png())
    with wave.open(str(file("sound.avi")), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    np.savez(file("others.npz"), points=some)
    Tracks(some, image_size=(99, 99)).save(file("cut.npz"))
    file("cut.npz").write_bytes(file("cut.npz").read_bytes()[:600])
    np.savez(file("shares.npz"), tracks=some / 99, image_size=(99, 99))
    np.savez(file("unseen.npz"), tracks=some, visibility=np.zeros((8, 20), bool))


def _png() -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(8 * (1 + 8 * 3)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
