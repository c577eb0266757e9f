"""Which clips there are, and what their results are called."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fasttracks.errors import InputError
from fasttracks.files import as_path
from fasttracks.image_files import SUFFIXES as IMAGES
from fasttracks.track_files import SUFFIXES as TRACK_FILES

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
          ".wmv", ".flv", ".3gp", ".ogv", ".mxf", ".gif")  # fmt: skip
_LIST = ".txt"


class Clip(NamedTuple):
    """A video, a folder of images or a track file, and what its results are called."""

    path: str  # absolute
    name: str  # below the output folder, without a suffix


def find(source: str, output: Path) -> list[Clip]:
    """The clips of a folder and those below, of a pattern, or of a text file of paths, by path.

    Names are the paths from the folder, or from what comes before the first wildcard; of a list the
    files' own. Where several would have one name, each gets a part of its path's hash as well. In
    the output folder and in hidden ones nothing is looked for.

    Raises:
        InputError: there are none.
    """
    path = as_path(source, "INPUT")
    if path.is_dir():
        base: Path | None = path
        found = _walk(path, output.absolute())
    elif path.suffix.lower() == _LIST and path.is_file():
        base, found = None, _listed(path)
    elif path.exists() or ".pkl:" in path.name:
        base, found = None, iter([str(path)])
    else:
        base = Path(os.path.dirname(re.split(r"[*?[]", source, maxsplit=1)[0]))
        found = glob.iglob(source, recursive=True)
    paths = sorted({os.path.abspath(file) for file in found})
    if not paths:
        raise InputError(
            f"INPUT: {source} has no videos, folders of images or track files; expected a folder, "
            f"a pattern such as 'videos/*.mp4', or a {_LIST} file with a path on each line"
        )
    names = [_name(file, base) for file in paths]
    many = Counter(names)
    return [
        Clip(file, name if many[name] == 1 else f"{name}-{_digest(file):016x}"[: len(name) + 9])
        for file, name in zip(paths, names, strict=True)
    ]


def in_shard(clip: Clip, shard: tuple[int, int]) -> bool:
    """Whether a clip is among the i-th of n parts, which depends on nothing but its name."""
    index, count = shard
    return _digest(clip.name) % count == index


def state(path: str) -> tuple[int, int]:
    """(bytes, nanoseconds of the last change) of a clip's files; (-1, 0) where there are none."""
    if ".pkl:" in path:
        path = path.rpartition(":")[0]
    try:
        known = os.stat(path)
        if not os.path.isdir(path):
            return known.st_size, known.st_mtime_ns
        files = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
        return sum(f.st_size for f in files), max((f.st_mtime_ns for f in files), default=0)
    except OSError:
        return -1, 0


def _walk(folder: Path, output: Path) -> Iterator[str]:
    """Videos and track files in a folder and below; and folders that hold images and none such."""
    for inside, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and Path(inside, name).absolute() != output
        ]
        seen = [name for name in files if not name.startswith(".")]
        clips = [name for name in seen if name.lower().endswith((*VIDEOS, *TRACK_FILES))]
        yield from (os.path.join(inside, name) for name in clips)
        if not clips and any(name.lower().endswith(IMAGES) for name in seen):
            yield inside


def _listed(path: Path) -> Iterator[str]:
    for line in path.read_text(errors="surrogateescape").splitlines():
        if line.strip() and not line.startswith("#"):
            yield os.path.expanduser(line.strip())


def _name(path: str, base: Path | None) -> str:
    name = os.path.basename(path) if base is None else os.path.relpath(path, base.absolute())
    if "%" in name and name.lower().endswith(IMAGES):  # frames/%05d.png
        name = os.path.basename(os.path.dirname(path))
    name = name.replace(".pkl:", "-")
    stem, suffix = os.path.splitext(name)
    name = stem if suffix.lower() in (*VIDEOS, *TRACK_FILES) else name
    return os.path.basename(path) if name == "." else name


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:8], "big")
