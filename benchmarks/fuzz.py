"""Hostile inputs: each is refused in one line or works, soon, in little memory, leaving nothing.

    python benchmarks/fuzz.py --cases 2000 --failures 60

Kinds of case, in turn: track files, reconstructions, weights, checkpoints, clips with truth, videos
and playlists, arguments of the command line, and of the functions. What the seed draws is a valid
input, and what is done to it: bytes flipped, cut off or repeated; or an array of a file replaced by
one of another shape, type or value. Each runs in a process of its own.

The failures are exports of which the disk gets full, or whose process is killed: what was there is
whole, or is what it was before; the next export leaves nothing else.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from safetensors.torch import save_file

import fasttracks
from fasttracks import Config, InputError, Reconstruction, Tracks
from fasttracks.cli.main import main as command
from fasttracks.evaluation.clips import load_clip
from fasttracks.network import TracksTo4D
from fasttracks.video import read_video
from fasttracks.weights import convert, describe, save

SECONDS, BYTES = 10, 2e9  # of computing and of memory, that a case may take
TINY = Config(width=32, heads=2, head_width=16, mlp_width=48, rounds=1, bases=4, frequencies=6)
TARGETS = {
    "ply": "a.ply", "gltf": "a.glb", "npz": "a.npz", "page": "a.html", "tum": "a.txt",
    "kitti": "a.txt",
}  # fmt: skip
FORMATS = ("ply", "ply-frames", "colmap", "colmap-text", "tum", "kitti", "gltf")


class Case(NamedTuple):
    """What was done to what, and what is to be called in the folder that has it."""

    name: str
    run: Callable[[], Any]


class Outcome(NamedTuple):
    """How a case went: "works", "refused", or what was wrong."""

    case: str
    said: str
    seconds: float
    bytes: float


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
    ways = [damage, odd_npz, odd_npz, odd_npz, odd_npz, odd_npz]
    way = large_npz if rng.random() < 0.03 else rng.choice(ways)
    done = f"{name}: {way.__name__}: {way(Path(name), rng)}"
    return Case(done, lambda: use(name))


def track_file(seeds: Path, rng: random.Random) -> Case:
    name = rng.choice(("tracks.npz", "tracks.npz", "tapvid.npz", "released.npz"))
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
        ["export", "reconstruction.npz", rng.choice(FORMATS), "-o", "out"],
        ["view", "reconstruction.npz", "-o", "a.html"],
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
    name = rng.choice(sorted(fields))
    value = rng.choice(odd)
    if rng.random() < 0.4:
        _, value = odd_array(np.asarray(fields[name]), rng)
    call = rng.choice(("Tracks", "Tracks", "reconstruct", "option", "path", "radius"))
    option = rng.choice(("refine", "precision", "device", "model"))
    runs: dict[str, Callable[[], Any]] = {
        "Tracks": lambda: Tracks(**{**fields, name: value}),
        "reconstruct": lambda: fasttracks.reconstruct(
            **{"tracks": good.tracks, "image_size": (100, 100), "model": model,
               **({name: value} if name in ("tracks", "visibility", "intrinsics") else {})}
        ),
        "option": lambda: fasttracks.reconstruct(good, **{"model": model, option: value}),
        "path": lambda: rng.choice(
            [Tracks.load, Reconstruction.load, read_video, fasttracks.load, good.save, load_clip,
             result.to_tum, result.save]
        )(value),
        "radius": lambda: result.to_gltf("a.glb", radius=value),
    }  # fmt: skip
    about = option if call == "option" else name
    return Case(f"{call}({about}={str(value)[:60]!r})", runs[call])


KINDS = (track_file, reconstruction, clip, weights, checkpoint, video, arguments, functions)


# Running them.


def cases(count: int, seed: int = 0) -> Iterator[Outcome]:
    """How so many cases go, of each kind in turn."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder)
        make_seeds(seeds)
        for i in range(count):
            yield run(seeds, i, seed)


def run(seeds: Path, number: int, seed: int) -> Outcome:
    """One case, in a folder and a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        work = Path(folder) / "work"
        work.mkdir()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(seeds, number, seed, work, report)
        while True:
            done, status, usage = os.wait4(child, os.WNOHANG)
            if done or time.monotonic() - began > 30 * SECONDS:  # of waiting, too
                break
            time.sleep(0.002)
        if not done:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
        kind = KINDS[number % len(KINDS)].__name__
        case, said, seconds = kind, f"ended by {status}", time.monotonic() - began
        if report.exists() and report.read_text():
            case, said, taken = json.loads(report.read_text())
            case, seconds = f"{kind} {case}", taken
        memory = 1024.0 * usage.ru_maxrss
        if said in ("works", "refused"):
            if seconds > SECONDS:
                said = f"took {seconds:.1f} s"
            elif memory > BYTES:
                said = f"took {memory / 1e9:.1f} GB"
        return Outcome(f"{number}: {case}", said, seconds, memory)


def _child(seeds: Path, number: int, seed: int, work: Path, report: Path) -> None:
    os.chdir(work)
    out = os.open(os.devnull, os.O_WRONLY)
    case = Case("", lambda: None)
    began = time.process_time()
    try:
        rng = random.Random(f"{seed} {number}")
        case = KINDS[number % len(KINDS)](seeds, rng)
        before = _names(work)
        printed = io.StringIO()
        os.dup2(out, 1)
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
            said = _call(case)
        after = _names(work)
        if said == "refused" and after != before:
            said = f"left {sorted(after - before)}, took {sorted(before - after)}"
        elif any(name.startswith(".fasttracks-") for name in after):
            said = "left a temporary folder"
        elif printed.getvalue().count("\nfasttracks: error") or "Traceback" in printed.getvalue():
            said = f"printed {printed.getvalue()[-300:]!r}"
        elif max(map(len, printed.getvalue().split("\n"))) > 1200:
            said = "printed a long line"
    except BaseException:
        said = "".join(traceback.format_exc())
    report.write_text(json.dumps([case.name, said, time.process_time() - began]))
    os._exit(0)


def _call(case: Case) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter(
            "error", RuntimeWarning
        )  # of numbers that should not have come so far
        try:
            result = case.run()
        except InputError as error:
            message = str(error)
            return "refused" if len(message) < 1100 and "\n" not in message else "long message"
        except SystemExit as stop:
            result = stop.code
    return "refused" if result == 2 else "works"


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Exports of which the disk gets full, or that are killed.


def failures(count: int, seed: int = 0) -> Iterator[Outcome]:
    """How so many exports go."""
    with tempfile.TemporaryDirectory() as folder:
        make_seeds(Path(folder))
        for i in range(count):
            with tempfile.TemporaryDirectory() as work:
                yield fail(Path(folder), Path(work), random.Random(f"{seed} {i}"), i)


def fail(seeds: Path, work: Path, rng: random.Random, number: int) -> Outcome:
    """One export that doesn't come to its end: a file may not grow, or its process is killed."""
    form = (*FORMATS, "npz", "page")[number % 9]
    full = number % 2 == 0
    there = rng.random() < 0.5
    target = work / TARGETS.get(form, "a")
    result = Reconstruction.load(seeds / "reconstruction.npz")
    larger = result.scaled(2)  # another export, as large
    if there:
        export(result, form, target)
    before = _contents(work)
    whole = _whole(larger, form)
    child = os.fork()
    if child == 0:
        if full:  # writing beyond fails, as if the disk were full
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            most = rng.randrange(max(map(len, whole.values())))
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with contextlib.suppress(OSError):
            for _ in range(1 if full else 1000):
                export(larger, form, target)
        os._exit(0)
    if not full:
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, rng.choice((signal.SIGKILL, signal.SIGTERM)))
    os.waitpid(child, 0)
    found = _contents(work)
    left = {name for name in found if ".fasttracks-" in name}
    now = {name: data for name, data in found.items() if name not in left}
    name = f"{number}: {form}, {'full' if full else 'killed'}, {'there' if there else 'new'}"
    if full and left:
        return Outcome(name, f"left {sorted(left)}", 0, 0)
    if now not in (before, whole):
        return Outcome(name, f"half an export: {sorted(now)}", 0, 0)
    export(larger, form, target)
    if _contents(work) != whole:
        return Outcome(name, f"the next left {sorted(_contents(work))}", 0, 0)
    return Outcome(name, "whole" if now == whole else "as before", 0, 0)


def export(result: Reconstruction, form: str, target: Path) -> None:
    """Write a reconstruction in a format."""
    from fasttracks.export import FORMATS as KNOWN
    from fasttracks.viewers.page import write_page

    if form == "npz":
        return result.save(target)
    if form == "page":
        return write_page(result, target)
    getattr(result, KNOWN[form].method)(target, **KNOWN[form].options)


def _whole(result: Reconstruction, form: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        export(result, form, Path(folder) / TARGETS.get(form, "a"))
        return _contents(Path(folder))


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def main() -> int:
    """Run the cases and print those that go wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--failures", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    worst = Outcome("", "", 0, 0)
    for outcome in chain(
        cases(options.cases, options.seed), failures(options.failures, options.seed)
    ):
        good = outcome.said in ("works", "refused", "whole", "as before")
        counts[outcome.said if good else "wrong"] += 1
        worst = max(worst, outcome, key=lambda o: o.seconds)
        if not good:
            print(f"{outcome.case}\n    {outcome.said.strip()}", flush=True)
    print(dict(counts), f"slowest {worst.seconds:.1f} s: {worst.case}")
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
