"""`fasttracks info` and `env`: what a file holds, what this machine runs."""

import argparse
from pathlib import Path
from typing import Any

from fasttracks.cli.console import say, say_json, table
from fasttracks.errors import InputError
from fasttracks.files import Npz
from fasttracks.reconstruction import Reconstruction
from fasttracks.summary import image_size_text, numbers, summary
from fasttracks.track_files import is_track_file
from fasttracks.tracks import Tracks


def info(options: argparse.Namespace) -> None:
    """What a file holds."""
    known, words = _describe(options.input)
    if options.json:
        say_json(known)
    else:
        table(words)


def _describe(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file in numbers, and in words."""
    from fasttracks.weights import SHIPPED, describe

    path = Path(name)
    suffix = path.suffix.lower()
    if name in SHIPPED or suffix == ".safetensors":
        known = describe(name)
        return known, known
    if not path.exists() and ".pkl:" not in name:
        raise InputError(
            f"info: no file {name}, nor a shipped model of that name ({', '.join(SHIPPED)})"
        )
    if suffix == ".npz" and "points_camera" in Npz(path, "file"):
        result = Reconstruction.load(path)
        return numbers(result), summary(result)
    if suffix in (".pt", ".pth"):
        try:
            return _tracks(Tracks.load(path))
        except InputError as error:
            raise InputError(
                f"{error}; weights are turned into .safetensors by 'fasttracks convert'"
            ) from None
    return _tracks(Tracks.load(path)) if is_track_file(path) else _video(path)


def _tracks(tracks: Tracks) -> tuple[dict[str, Any], dict[str, Any]]:
    frames, count = tracks.tracks.shape[:2]
    known = {
        "frames": frames,
        "tracks": count,
        "seen": tracks.seen,
        "image_size": tracks.image_size,
        "fps": tracks.fps,
        "intrinsics_known": tracks.intrinsics is not None,
    }
    return known, {
        "frames": frames,
        "tracks": count,
        "seen": f"{tracks.seen:.1%} of positions",
        "image": image_size_text(tracks.image_size),
        "frames a second": f"{tracks.fps:.4g}" if tracks.fps else "unknown",
        "intrinsics": "known" if known["intrinsics_known"] else "unknown",
    }


def _video(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from fasttracks.video import probe

    known = probe(path)
    words = {"image": image_size_text(known["image_size"])}
    for name, text in (("frames", "frames"), ("fps", "frames a second"), ("seconds", "seconds")):
        words[text] = "unknown" if known[name] is None else f"{known[name]:.6g}"
    return known, words


def env(_: argparse.Namespace) -> None:
    """What this machine runs."""
    from fasttracks.env import report

    say(report())
