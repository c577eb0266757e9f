"""A clip as a folder of images, or as numbered ones: frames/%05d.png."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fasttracks.errors import InputError
from fasttracks.files import as_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FPS = 25.0  # of images, which don't tell
_NUMBER = re.compile(r"%0?\d*d")


def is_image_sequence(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder, or an image's name with a number such as %05d in it."""
    path = as_path(path, "video")
    numbered = path.suffix.lower() in SUFFIXES and _NUMBER.search(path.name) is not None
    return path.is_dir() or (numbered and not path.is_file())


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder or a numbered name, in the order of the numbers in their names.

    Raises:
        InputError: there are none.
    """
    path = as_path(path, "video")
    folder, wanted = path, re.compile(".*")
    if not path.is_dir():
        folder = path.parent
        before, after = _NUMBER.split(path.name, maxsplit=1)
        wanted = re.compile(re.escape(before) + r"\d+" + re.escape(after))
        if not folder.is_dir():
            raise InputError(f"video: no folder {folder}")
    found = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and wanted.fullmatch(file.name) and file.is_file()
    ]
    if not found:
        raise InputError(f"video: {path} has no images ({', '.join(SUFFIXES)})")
    return sorted(found, key=lambda file: _numbers_of(file.name))


def choose_images(
    images: Sequence[Path],
    start: float,
    frames: int | None,
    every: int,
    times: Sequence[float] | np.ndarray | None,
) -> tuple[list[Path], np.ndarray]:
    """Those that `video.read_video`'s arguments ask for, and their times at `FPS`."""
    if times is not None:
        wanted = np.rint(np.asarray(times) * FPS).astype(int)
        wanted = wanted[wanted < len(images)]
    else:
        wanted = np.arange(int(np.ceil(start * FPS - 1e-6)), len(images), every)[:frames]
    if not len(wanted):
        raise InputError(f"start: {start:g} s is past the last of {len(images)} images")
    return [images[i] for i in wanted], wanted / FPS


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright; InputError if it is no image."""
    import cv2

    data = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise InputError(f"video: {path} is not a whole image")
    return image[..., ::-1]


def _numbers_of(name: str) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
