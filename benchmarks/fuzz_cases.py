"""Hostile inputs for `fuzz.py`: what the seed draws is a valid input, and what is done to it.

Bytes are flipped, cut off or repeated; or an array of a file is replaced by one of another shape,
type or value; or an argument by something else.
"""

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from safetensors.torch import save_file

import fasttracks
from fasttracks import Config, Reconstruction, Tracks
from fasttracks.cli.main import main as command
from fasttracks.evaluation.clips import load_clip
from fasttracks.network import TracksTo4D
from fasttracks.trackers.klt import KLT
from fasttracks.video import read_video
from fasttracks.viewers.page import write_page
from fasttracks.viewers.picture import draw
from fasttracks.weights import convert, describe, save

TINY = Config(width=32, heads=2, head_width=16, mlp_width=48, rounds=1, bases=4, frequencies=6)
FORMATS = ("ply", "ply-frames", "colmap", "colmap-text", "tum", "kitti", "gltf")


class Case(NamedTuple):
    """What was done to what, and what is to be called in the folder that has it."""

    name: str
    run: Callable[[], Any]


# Inputs that are right. `make_seeds` writes them once, to be copied and changed.


def make_seeds(folder: Path) -> None:
    """Write one file of each kind."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    tracks = Tracks(
        rng.uniform(0, 99, (6, 20, 2)),
        rng.random((6, 20)) < 0.8,
        np.diag([90.0, 90, 1]),
        (100, 100),
        25,
        colors=rng.integers(0, 256, (20, 3), dtype=np.uint8),
    )
    tracks.save(folder / "tracks.npz")
    points = np.swapaxes(tracks.tracks, 0, 1)
    np.savez(
        folder / "tapvid.npz", points=points / 100, occluded=rng.random((20, 6)) < 0.2,
        video=np.zeros((6, 10, 10, 3), np.uint8),
    )  # fmt: skip
    np.savez(
        folder / "released.npz", pred_tracks=tracks.tracks[None],
        pred_visibility=tracks.visibility[None], Ks_all=tracks.intrinsics,
    )  # fmt: skip
    np.save(folder / "a.npy", tracks.tracks)
    torch.save({"tracks": torch.tensor(tracks.tracks)}, folder / "a.pt")
    with np.load(folder / "tapvid.npz") as file:
        (folder / "a.pkl").write_bytes(pickle.dumps({"clip": dict(file)}))
    network = TracksTo4D(TINY, backend="torch").eval()
    save(network, folder / "weights.safetensors")
    result = fasttracks.reconstruct(tracks, model=network)
    result.save(folder / "reconstruction.npz")
    truth = {
        "true_points_camera": result.points_camera,
        "true_camera_to_world": result.camera_to_world,
        "true_visibility": result.visibility,
        "true_intrinsics": result.intrinsics[0],
        "moving": result.moving,
    }
    known = {name: value for name, value in vars(tracks).items() if value is not None}
    np.savez(folder / "clip.npz", **known, **truth)
    state = {"model_state_dict": {"fc1.bias": torch.zeros(37), "fc1.weight": torch.zeros(37, 256)}}
    torch.save(state, folder / "checkpoint.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    for name, codec in {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "gif": "gif"}.items():
        with av.open(str(folder / f"video.{name}"), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = 64, 96
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for i in range(12):
                image = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
                frame = av.VideoFrame.from_ndarray(np.roll(image, i, 1), format="rgb24")
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode(None))


# What is done to them.


def damage(path: Path, rng: random.Random) -> str:
    """Flip, cut off or repeat bytes of a file."""
    data = bytearray(path.read_bytes())
    way = rng.choice(("flip", "flip many", "cut", "repeat", "zeros", "noise", "empty"))
    at = rng.randrange(len(data))
    if way.startswith("flip"):
        for _ in range(1 if way == "flip" else 40):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del data[at:]
    elif way == "repeat":
        data[at:at] = data[at : at + 200]
    else:
        new = {"zeros": bytes(200), "noise": rng.randbytes(200), "empty": b""}[way]
        data = data[:at] + new + data[at + 200 :] if new else bytearray()
    path.write_bytes(data)
    return way


def odd_array(array: np.ndarray, rng: random.Random) -> tuple[str, np.ndarray]:
    """Another array in its place, and what is odd about it."""
    values = [np.nan, np.inf, -np.inf, 0, -1, 1e30, 1e300, 1e-30, 1e12, 2**62, 0.5]
    kinds = ["f2", "f4", "f8", "g", "i1", "i8", "u8", "c8", "?", "U3", "S3", "M8[s]", "V3"]
    way = rng.choice(("value", "all", "kind", "shape", "axes", "empty", "scalar", "text", "more"))
    if way in ("value", "all"):
        value = rng.choice(values)
        array = array.astype(np.float64) if array.dtype.kind in "bufi" else array
        with contextlib.suppress(ValueError, TypeError, IndexError), np.errstate(all="ignore"):
            array = array.copy()
            array[... if way == "all" else tuple(rng.randrange(n) for n in array.shape)] = value
        return f"{way} {value}", array
    if way == "kind":
        kind = rng.choice(kinds)
        with contextlib.suppress(ValueError, TypeError), np.errstate(all="ignore"):
            return f"kind {kind}", array.astype(kind)
        return f"kind {kind}", np.zeros(array.shape, kind)
    others = {
        "shape": lambda: np.zeros([rng.choice((0, 1, 2, 3, 7)) for _ in range(rng.randrange(5))]),
        "axes": lambda: np.moveaxis(array, 0, -1) if array.ndim else array[None],
        "empty": lambda: array[:0] if array.ndim else np.zeros(0),
        "scalar": lambda: np.float64(rng.choice(values)),
        "text": lambda: np.full(array.shape, "x" * rng.choice((1, 1000))),
        "more": lambda: np.concatenate([array, array]) if array.ndim else np.zeros((2, 2)),
    }
    return way, others[way]()


def odd_npz(path: Path, rng: random.Random) -> str:
    """Replace, drop or add an array of an .npz file."""
    with np.load(path) as file:
        arrays = dict(file)
    name = rng.choice(sorted(arrays))
    way, arrays[name] = odd_array(arrays[name], rng)
    if rng.random() < 0.1:
        del arrays[name]
        way = "dropped"
    np.savez_compressed(path, **arrays)
    return f"{name}: {way}"


def large_npz(path: Path, rng: random.Random) -> str:
    """An array of gigabytes of zeros, as a member that is known, or not."""
    import zipfile

    name = rng.choice(("tracks", "points", "extra", "visibility"))
    header = io.BytesIO()
    shape = rng.choice(((50, 4_000_000, 2), (2, 10**9), (10**15,), (1600, 10**6)))
    about = {"descr": rng.choice(("<f4", "|b1")), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(path) as old:
        members = {m: old.read(m) for m in old.namelist() if m != f"{name}.npy"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for member, data in members.items():
            file.writestr(member, data)
        with file.open(f"{name}.npy", "w", force_zip64=True) as stream:
            stream.write(header.getvalue())
            for _ in range(rng.choice((0, 10))):
                stream.write(bytes(10_000_000))
    return f"{name} of {shape}"


# The kinds of case. Each makes its input in the working folder.


def npz_case(seeds: Path, rng: random.Random, name: str, use: Callable[[str], Any]) -> Case:
    shutil.copy(seeds / name, name)
    ways = [damage, *5 * [odd_npz]] if name.endswith(".npz") else [damage]
    way = large_npz if name.endswith(".npz") and rng.random() < 0.03 else rng.choice(ways)
    done = f"{name}: {way.__name__}: {way(Path(name), rng)}"
    return Case(done, lambda: use(name))


def track_file(seeds: Path, rng: random.Random) -> Case:
    name = rng.choice(("tracks.npz", "tapvid.npz", "released.npz", "a.npy", "a.pt", "a.pkl"))
    model = fasttracks.load(seeds / "weights.safetensors", device="cpu")
    refine = rng.choice(("none", "none", "bundle"))

    def use(path: str) -> None:
        fasttracks.reconstruct(Tracks.load(path), model=model, refine=refine).save("out.npz")

    return npz_case(seeds, rng, name, use)


def reconstruction(seeds: Path, rng: random.Random) -> Case:
    form = rng.choice((*FORMATS, "view", "info"))

    def use(path: str) -> int:
        words = [form, path] if form in ("view", "info") else ["export", path, form]
        return command(words)

    return npz_case(seeds, rng, "reconstruction.npz", use)


def clip(seeds: Path, rng: random.Random) -> Case:
    model = str(seeds / "weights.safetensors")
    if rng.random() < 0.5:
        return npz_case(seeds, rng, "clip.npz", load_clip)
    return npz_case(seeds, rng, "clip.npz", lambda _: command(["evaluate", ".", "--model", model]))


def weights(seeds: Path, rng: random.Random) -> Case:
    path = Path("weights.safetensors")
    shutil.copy(seeds / path, path)
    whole = path.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    way = rng.choice(("damage", "config", "config", "header", "tensor"))
    if way == "damage":
        way = damage(path, rng)
    elif way == "tensor":
        tensors = {
            f"x.{i}" * rng.choice((1, 50)): torch.zeros(rng.choice((0, 1))) for i in range(999)
        }
        save_file(tensors, path, {"config": TINY.to_json()})
    else:
        if way == "config":
            config = json.loads(header["__metadata__"]["config"])
            name = rng.choice(sorted(config))
            config[name] = rng.choice((0, -1, 1, 64, 16384, 10**9, 2.5, "x", None, True, [], 1e400))
            header["__metadata__"]["config"] = json.dumps(config)
            way = f"config {name} {config[name]}"
        else:
            name = rng.choice(sorted(set(header) - {"__metadata__"}))
            field = rng.choice(sorted(header[name]))
            header[name][field] = rng.choice(
                ("F8_E4M3", [0], [-1, 2], [2**62, 2**62], 3, None, "I64")
            )
            way = f"header {name} {field} {header[name][field]}"
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    use = rng.choice((fasttracks.load, describe))
    return Case(f"weights: {way}", lambda: use(str(path)))


def checkpoint(seeds: Path, rng: random.Random) -> Case:
    name = rng.choice(("checkpoint.pt", "legacy.pt"))
    shutil.copy(seeds / name, name)
    odd: dict[str, Callable[[], Any]] = {
        "stride 0": lambda: torch.zeros(1).expand(10**9),
        "float8": lambda: torch.zeros(37, dtype=torch.float8_e4m3fn),
        "sparse": lambda: torch.eye(37).to_sparse(),
        "complex": lambda: torch.zeros(37, dtype=torch.complex64),
        "deep": lambda: _nested(100),
        "text": lambda: "x" * 10**6,
        "lists": lambda: [[] for _ in range(100_000)],
        "key": lambda: {3: torch.zeros(37)},
    }
    way = rng.choice(("damage", "damage", "damage", *odd))
    if way == "damage":
        way = damage(Path(name), rng)
    else:
        state = odd[way]()
        if way not in ("lists", "key"):
            state = {rng.choice(("fc1.bias", "extra")): state}
        old = name == "legacy.pt"
        torch.save({"model_state_dict": state}, name, _use_new_zipfile_serialization=not old)
    return Case(f"{name}: {way}", lambda: convert(name, "out.safetensors"))


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def video(seeds: Path, rng: random.Random) -> Case:
    playlists = {
        "a.m3u8": "#EXTM3U\n#EXTINF:1,\na.m3u8\n",
        "live.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nvideo.ts\n",
        "a.ffconcat": "ffconcat version 1.0\nfile a.ffconcat\n",
        "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
        "a.mpd": '<?xml version="1.0"?><MPD type="dynamic"><Period/></MPD>',
    }
    way = rng.choice(("damage", "damage", "damage", "playlist", "sparse", "screen"))
    if way == "playlist":
        name = rng.choice(sorted(playlists))
        Path(name).write_text(playlists[name])
    elif way == "sparse":
        name = f"zeros.{rng.choice(('h264', 'hevc', 'ts', 'mp4', 'avi', 'mpg', 'm4v', 'mjpeg'))}"
        Path(name).touch()
        os.truncate(name, 10**11)
    else:
        name = f"video.{rng.choice(('mp4', 'mkv', 'avi', 'gif'))}"
        name = "video.gif" if way == "screen" else name
        shutil.copy(seeds / name, name)
        if way == "screen":
            data = bytearray(Path(name).read_bytes())
            data[6:10] = struct.pack(
                "<2H", *rng.choice(((16_000, 16_000), (65_535, 65_535), (0, 9)))
            )
            Path(name).write_bytes(data)
        else:
            way = damage(Path(name), rng)
    options = {"start": rng.choice((0.0, 0.1)), "max_size": rng.choice((None, 64))}
    return Case(f"{name}: {way} {options}", lambda: read_video(name, **options))


def arguments(seeds: Path, rng: random.Random) -> Case:
    """Of the command line."""
    for name in ("tracks.npz", "reconstruction.npz", "video.mp4", "weights.safetensors"):
        shutil.copy(seeds / name, name)
    os.symlink("loop", "loop")
    os.symlink("nowhere/a.npz", "dangling.npz")
    os.mkdir("folder")
    words = [
        "", "-", "0", "-1", "1e400", "nan", "9" * 30, "x" * 300, "a/b/c", "loop", "dangling.npz",
        "folder", "/dev/null", "/proc/a.npz", "tracks.npz", "a\udce9.npz", "кот.npz", "\t", "a.ply",
        "tracks.npz/a.npz", "cpu", "none", "--force", "--help", "a\0b",
    ]  # fmt: skip
    model = ["--model", "weights.safetensors", "--device", "cpu"]
    known = [
        ["track", "video.mp4", "--frames", "4", "--max-size", "64"],
        ["reconstruct", "tracks.npz", *model],
        ["reconstruct", "tracks.npz", *model, "-o", "a.npz", "--focal", "100"],
        ["track", "video.mp4", "--start", "0.1", "--every", "2", "--grid", "4", "-o", "a.npz"],
        ["export", "reconstruction.npz", rng.choice(FORMATS), "-o", "out"],
        ["export", "reconstruction.npz", "splat", "--video", "video.mp4", "-o", "out"],
        ["view", "reconstruction.npz", "-o", "a.html"],
        ["view", "reconstruction.npz", "--video", "video.mp4", "-o", "a.html"],
        ["generate", "-o", "out", "--clips", "1", "--frames", "4", "--tracks", "8"],
        ["info", "tracks.npz"],
        ["convert", "weights.safetensors", "-o", "a.safetensors"],
        ["evaluate", "folder", *model],
    ]
    call = list(rng.choice(known))
    for _ in range(rng.choice((1, 1, 2))):
        call[rng.randrange(1, len(call))] = rng.choice(words)
    return Case(" ".join(call), lambda: command(call))


def functions(seeds: Path, rng: random.Random) -> Case:
    """Arguments of the public functions."""
    good = Tracks.load(seeds / "tracks.npz")
    model = fasttracks.load(seeds / "weights.safetensors", device="cpu")
    result = Reconstruction.load(seeds / "reconstruction.npz")
    tensor = torch.rand(6, 20, 2)
    odd: list[Any] = [
        None, "x", b"x", 3, -1, 1e300, np.nan, [], {}, [[1], [2, 3]], object(), print,
        np.zeros(3), np.float16([1, np.inf]), np.array("x"), tensor.to_sparse(), tensor.to("meta"),
        tensor.to(torch.complex64).conj(), torch._neg_view(tensor), tensor.to(torch.float8_e5m2),
        np.ma.masked_array([1, 2], [True, False]), np.ma.masked_array(["a"]), "a\0b", "\ud800",
    ]  # fmt: skip
    fields = {name: value for name, value in vars(good).items() if value is not None}
    field = rng.choice(sorted(fields))
    value = rng.choice(odd)
    if rng.random() < 0.4:
        _, value = odd_array(np.asarray(fields[field]), rng)
    video = seeds / "video.mp4"
    plain = {"tracks": good.tracks, "image_size": (100, 100), "model": model}
    images = np.zeros((6, 100, 100, 3), np.uint8)

    def option(call: Callable[..., Any], names: str, **others: Any) -> Callable[[], Any]:
        name = rng.choice(names.split())
        return lambda: call(**{**others, name: value})

    runs: dict[str, list[Callable[[], Any]]] = {
        "Tracks": [lambda: Tracks(**{**fields, field: value})],
        "arrays": [option(fasttracks.reconstruct, "tracks visibility intrinsics", **plain)],
        "option": [
            option(fasttracks.reconstruct, "refine precision device model",
                   **{"tracks": good, "model": model}),
            option(fasttracks.load, "model device precision", model="base"),
            option(read_video, "start frames every max_size times", path=video),
            option(fasttracks.track, "start frames every max_size tracker", video=video),
            option(KLT(), "frames queries", frames=images),
            option(result.with_length, "length a b frame", length=2, a=0, b=1),
            option(result.with_camera_height, "height ground", height=1, ground=[0, 1, 2]),
            option(result.to_splat, "folder frames", folder="a", frames=images),
            option(result.to_gltf, "path radius", path="a.glb"),
        ],
        "one": [
            lambda: result.scaled(value), lambda: result.transformed(value),
            lambda: result[value], lambda: write_page(result, "a.html", value),
            lambda: draw(result, "a.png", value),
        ],
        "path": [
            lambda read=read: read(value)
            for read in (
                Tracks.load, Reconstruction.load, read_video, fasttracks.load, load_clip, describe,
                good.save, result.save, result.to_tum, result.to_kitti, result.to_ply,
                result.to_colmap, fasttracks.track,
            )
        ],
    }  # fmt: skip
    call = rng.choice(sorted(runs))
    number = rng.randrange(len(runs[call]))
    name = f"{call} {number}, {field}: {str(value)[:60]!r}"
    return Case(name, runs[call][number])


KINDS = (track_file, reconstruction, clip, weights, checkpoint, video, arguments, functions)
