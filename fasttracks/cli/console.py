"""What commands print, and where they may write."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fasttracks.errors import InputError, printable
from fasttracks.files import as_path, output_target


def say(text: str) -> None:
    """Print a line."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read our output has gone; the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(message: str, status: int = 0) -> int:
    """Print a line on stderr and return the exit status."""
    print(f"fasttracks: {printable(message)}", file=sys.stderr)
    return status


def table(rows: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        say(f"{name:<{width}}  {printable(str(value)) if name else value}")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how long a part of the work took."""
    start = time.perf_counter()
    yield
    say(f"{name:<14} {time.perf_counter() - start:6.2f} s")


def output_path(options: argparse.Namespace, ending: str, *, pictures: bool = False) -> Path:
    """Where to write, a folder if `ending` has no suffix; InputError if that can't be."""
    path = as_path(options.output or Path(options.input).stem + ending, "-o")
    suffix = Path(f"name{ending}").suffix
    if suffix and path.is_dir():
        raise InputError(f"-o: {path} is a directory; expected a file name")
    if path.suffix != suffix and (options.output or suffix):
        expected = f"a name ending in {suffix}" if suffix else "a folder's name without a dot"
        raise InputError(f"-o: expected {expected}, found {path}")
    for file in with_pictures(path) if pictures else (path,):
        if file.exists() and not options.force:
            raise InputError(f"-o: {file} exists; choose another name, or --force to replace it")
        if suffix or not path.is_dir():
            check_writable(file)
    return path


def with_pictures(output: Path) -> tuple[Path, Path, Path]:
    """A reconstruction's file, its picture and its page."""
    return output, output.with_suffix(".png"), output.with_suffix(".html")


def check_writable(path: Path) -> None:
    """Raise InputError where a file can't be written."""
    if path.is_dir():
        raise InputError(f"-o: {path} is a directory and can't be replaced by a file")
    folder = next(parent for parent in output_target(path).parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"-o: {path} can't be written, as {folder} is no folder to write to")


def open_in_browser(page: Path) -> None:
    """Open a page, or say that there is no browser."""
    import webbrowser

    if not webbrowser.open(page.absolute().as_uri()):
        complain(f"warning: no browser to open {page} with")


def image_size_text(image_size: tuple[int, int] | None) -> str:
    """(height, width) as people write it."""
    return f"{image_size[1]}×{image_size[0]} px" if image_size else "unknown"
