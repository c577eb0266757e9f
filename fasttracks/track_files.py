"""The arrays of files that trackers and their users save: .npz, .npy, .pt and TAP-Vid's .pkl."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fasttracks.checks import as_numbers
from fasttracks.errors import InputError
from fasttracks.files import Npz, as_path

SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".pkl")
_LARGEST = 2**31  # bytes of a file that is read
# What a pickle of numpy arrays calls, under the names that numpy has had for it.
_HARMLESS = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"),
                         ("numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}  # fmt: skip


class Arrays(dict[str, Any]):
    """A file's arrays by name, as `Npz` has them."""

    def __init__(self, arrays: Mapping[Any, Any], path: Path) -> None:
        super().__init__((name, value) for name, value in arrays.items() if isinstance(name, str))
        self.path = path

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array."""
        return tuple(np.shape(self[name]))


def read(path: str | os.PathLike[str]) -> Npz | Arrays:
    """Read a track file's arrays by its suffix; no code that it may hold is run.

    - .npz, in the layouts that `Tracks.load` tells apart;
    - .npy: tracks (T, N, 2) or (1, T, N, 2) in pixels, or (T, N, 3) with visibility as the third;
    - .pt, .pth: the same as a tensor, a pair of tracks and visibility, or a dict of arrays called
      as in an .npz, as `torch.save` writes them;
    - .pkl: TAP-Vid's clips; FILE.pkl:NAME is the one of that name where there are several.

    Raises:
        InputError: the file can't be read, or holds something else.
    """
    path = as_path(path, "track file")
    clip = ""
    if ".pkl:" in path.name:
        name, _, clip = path.name.rpartition(":")
        path = path.with_name(name)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES[1:]:
        return Npz(path, "track file")
    _check_file(path)
    value = {".npy": _array, ".pkl": _unpickled}.get(suffix, _tensors)(path)
    if suffix == ".pkl":
        value = _one_clip(value, path, clip)
    return _by_name(value, path)


def is_track_file(path: str | os.PathLike[str]) -> bool:
    """Whether a name is one of a track file, by its suffix."""
    name = Path(path).name.lower()
    return name.endswith(SUFFIXES) or ".pkl:" in name


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"track file: {path} is a directory; expected {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"track file: no file {path}")
    if path.stat().st_size > _LARGEST:
        raise InputError(f"track file: {path} is larger than {_LARGEST / 1e9:.0f} GB")


def _by_name(value: Any, path: Path) -> Arrays:
    """Arrays by name from an array, a pair of arrays or a mapping of them."""
    if isinstance(value, list | tuple) and len(value) == 2:
        value = dict(zip(("tracks", "visibility"), value, strict=True))
    if not isinstance(value, Mapping):
        value = {"tracks": value}
    arrays = {
        name: as_numbers(array, str(name))
        for name, array in value.items()
        if hasattr(array, "shape") or isinstance(array, int | float | list | tuple)
    }
    tracks = arrays.get("tracks")
    if tracks is not None and "visibility" not in arrays and tracks.shape[2:] == (3,):
        arrays["tracks"], arrays["visibility"] = tracks[..., :2], tracks[..., 2]
    return Arrays(arrays, path)


def _array(path: Path) -> Any:
    try:
        # Mapped, as its header may speak of more than there is.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception:  # a damaged file makes numpy raise whatever there is
        raise InputError(f"track file: {path} is not a whole .npy file of numbers") from None


def _tensors(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # likewise
        raise InputError(
            f"track file: {path} is not a whole torch file of tensors and plain values; anything "
            "else could run code when read and is refused"
        ) from None


class _ArrayUnpickler(pickle.Unpickler):
    """Makes plain values and numpy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise InputError(f"track file: it names {module}.{name}, which could run code")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> NoReturn:
        raise InputError("track file: it refers to something outside")


def _unpickled(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{error}; {path} is refused") from None
    except Exception:  # likewise
        raise InputError(f"track file: {path} is not a whole pickle of TAP-Vid's arrays") from None


def _one_clip(value: Any, path: Path, wanted: str) -> Mapping[Any, Any]:
    """The one that is wanted of TAP-Vid's clips: a mapping by name, a list, or a single one."""
    clips = {"": value} if isinstance(value, Mapping) and "points" in value else value
    if isinstance(clips, list | tuple):
        clips = dict(enumerate(clips))
    if not isinstance(clips, Mapping) or not clips:
        raise InputError(f"track file: {path} holds no clips of TAP-Vid")
    by_name = {str(name): clip for name, clip in clips.items()}
    if not wanted and len(by_name) == 1:
        (wanted,) = by_name
    if wanted not in by_name:
        some = ", ".join(list(by_name)[:6]) + (", …" if len(by_name) > 6 else "")
        raise InputError(
            f"track file: {path} holds {len(by_name)} clips; give one as {path}:NAME, of {some}"
        )
    if not isinstance(by_name[wanted], Mapping):
        raise InputError(f"track file: {path} holds no clips of TAP-Vid")
    return by_name[wanted]
