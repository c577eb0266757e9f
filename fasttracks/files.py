"""Files written whole or not at all, and .npz files of plain arrays."""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fasttracks.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it when the block succeeds.

    The temporary name keeps the suffix, for writers that choose a format by it. On an
    error the temporary file is removed and `path` is as it was. A symbolic link is followed.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write those of the arrays that are not None, whole or not at all."""
    known = {name: value for name, value in arrays.items() if value is not None}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **known)


def read_npz(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz; InputError in the words of `what` if it is anything else."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{what}: {path} is a directory; expected an .npz file")
    if not path.is_file():
        raise InputError(f"{what}: no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file}
    except PermissionError:
        raise InputError(f"{what}: {path} may not be read") from None
    except Exception:  # a damaged file makes numpy, zipfile and zlib raise whatever there is
        raise InputError(
            f"{what}: {path} is not a whole .npz file of plain arrays ({path.stat().st_size} bytes)"
        ) from None
