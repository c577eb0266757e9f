"""Files and folders written whole or not at all, and .npz files of plain arrays."""

import fcntl
import hashlib
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fasttracks.errors import InputError

_SCRATCH = ".fasttracks-"  # how the names of folders begin in which files are written at first
_LARGEST = 2**29  # bytes of arrays that are read from one .npz


def as_path(value: Any, what: str) -> Path:
    """A path from text, bytes or a path; InputError if it is none, or no file can be called so."""
    try:
        path = Path(os.fsdecode(value))
        os.fsencode(path)
    except TypeError:
        raise InputError(f"{what}: expected a path, found {type(value).__name__}") from None
    except UnicodeError:
        raise InputError(f"{what}: {value!r} can't be the name of a file here") from None
    if "\0" in str(path):
        raise InputError(f"{what}: {value!r} can't be the name of a file")
    return path


def existing_file(path: Any, what: str, expected: str) -> Path:
    """`as_path` of a file that is there; InputError if there is none."""
    path = as_path(path, what)
    if path.is_dir():
        raise InputError(f"{what}: {path} is a directory; expected {expected}")
    if not path.is_file():
        raise InputError(f"{what}: no file {path}")
    return path


def output_target(path: str | os.PathLike[str]) -> Path:
    """What writing to `path` makes or replaces, links followed; InputError if nothing can."""
    target = Path(os.path.realpath(as_path(path, "output")))
    if target.is_symlink():  # which are all followed, unless they lead back to themselves
        raise InputError(f"output: {path} is a link that leads back to itself")
    return target


@contextmanager
def claimed(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from claiming `path` while this one makes what goes there.

    By a locked file among the machine's temporary ones, so that nothing beside `path` is left by a
    process that is killed. Where none can be had there is no claim.

    Raises:
        InputError: another process has claimed it.
    """
    target = output_target(path)
    name = hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
    with ExitStack() as stack:
        try:
            stack.enter_context(_lock_file(f"fasttracks-{os.getuid()}-{name}"))
        except BlockingIOError:
            raise InputError(
                f"output: another run is about to write {path}; wait for it, or choose another name"
            ) from None
        except OSError:
            pass
        yield


@contextmanager
def _lock_file(name: str) -> Iterator[None]:
    """Hold a temporary file of this name; BlockingIOError if another process does."""
    path = Path(tempfile.gettempdir(), name)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            os.unlink(path)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path in a new folder beside `path`; a file made there takes its place at the end.

    It is called like `path`, for writers that choose a format by the name, and gets the mode of a
    file that is replaced. On an error nothing is left, and `path` is as it was. A symbolic link is
    followed.
    """
    target = output_target(path)
    if target.is_dir():
        raise InputError(f"output: {path} is a directory; expected a file's name")
    with scratch_folder(target.parent) as scratch:
        yield scratch / target.name
        _sync(scratch / target.name)
        _take_mode(scratch / target.name, target)
        os.replace(scratch / target.name, target)


@contextmanager
def filling(folder: str | os.PathLike[str], own: str) -> Iterator[Path]:
    """Yield a new folder; the files made in it and below are those of `folder` at the end.

    A folder that is new appears whole. In one that exists, the files are replaced one by one when
    all are written; of the others beside them, those are removed whose path from `folder` matches
    the regular expression `own`, as they are of an earlier export. A process that is killed among
    these steps leaves old and new files, each whole: a folder that was swapped for another would
    lose what else is in it, and whoever works in it.
    """
    target = output_target(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"output: {folder} is a file; expected a folder's name")
    with scratch_folder(target if target.is_dir() else target.parent) as new:
        yield new
        files = {path.relative_to(new) for path in new.rglob("*") if path.is_file()}
        for file in files:
            _sync(new / file)
        if not target.exists():
            return os.rename(new, target)
        for file in files:  # all that takes long first, as what comes then is in between
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            _take_mode(new / file, target / file)
        for file in files:
            os.replace(new / file, target / file)
        for parent in {file.parent for file in files}:
            for other in (path.relative_to(target) for path in (target / parent).iterdir()):
                if re.fullmatch(own, other.as_posix()) and other not in files:
                    os.unlink(target / other)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A new, hidden folder below `folder`, removed at the end, as are those of killed processes."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            # Or another process might sweep what isn't held yet; in a scratch folder of a writer
            # around this one, which holds it already, none does.
            inside = folder.name.startswith(_SCRATCH)
            with nullcontext() if inside else _locked(folder, wait=True):
                for left in folder.glob(f"{_SCRATCH}*"):
                    with suppress(OSError), _locked(left):
                        shutil.rmtree(left)
                scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))
                held.callback(shutil.rmtree, scratch, ignore_errors=True)
                held.enter_context(_locked(scratch, wait=True))
            new = scratch / "new"  # unlike `scratch` not held, as others may come to be in it
            new.mkdir()
            yield new
    except BaseException:
        with suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


@contextmanager
def _locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder, as long as its process lives; OSError if another does and we don't `wait`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # there are file systems without locks
            if not wait:
                raise
        yield
    finally:
        os.close(handle)


def _take_mode(file: Path, target: Path) -> None:
    """Give a file the mode of the one that it is going to replace."""
    with suppress(FileNotFoundError):
        os.chmod(file, target.stat().st_mode & 0o7777)


def _sync(file: Path) -> None:
    """Wait until a file is on disk, so that no crash can leave its name without its content."""
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write those of the arrays that are not None, whole or not at all."""
    known = {name: value for name, value in arrays.items() if value is not None}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **known)


class Npz(Mapping[str, np.ndarray]):
    """The arrays of an .npz file, each read when it is asked for.

    What nobody needs is never inflated, and nothing is before its size is known to be sensible.

    Raises:
        InputError: in the words of `what`, where the file is anything else or holds too much.
    """

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        self.path, self.what = existing_file(path, what, "an .npz file"), what
        with self._opened() as file:
            self._members = {m.filename.removesuffix(".npy"): m for m in file.infolist()}
        self._left = _LARGEST

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, which isn't read."""
        return self._header(name)[0]

    def __getitem__(self, name: str) -> np.ndarray:
        shape, dtype = self._header(name)
        size, member = math.prod(shape) * dtype.itemsize, self._members[name]
        self._left -= max(size, member.file_size)
        if self._left < 0:
            raise InputError(
                f"{self.what}: {self.path} has {name} of {dtype} {shape}; expected arrays of at "
                f"most {_LARGEST / 1e9:.1f} GB in all"
            )
        with self._opened() as file, file.open(member) as stream:
            if size > member.file_size:
                raise ValueError("cut off")
            return np.lib.format.read_array(stream, allow_pickle=False)

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        member = self._members[name]
        with self._opened() as file, file.open(member) as stream:
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                np.lib.format.read_magic(stream), np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(stream)
            return shape, dtype

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as file:
                yield file
        except PermissionError:
            raise InputError(f"{self.what}: {self.path} may not be read") from None
        except Exception:  # a damaged file makes numpy, zipfile and zlib raise whatever there is
            raise InputError(
                f"{self.what}: {self.path} is not a whole .npz file of plain arrays "
                f"({self.path.stat().st_size} bytes)"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)
