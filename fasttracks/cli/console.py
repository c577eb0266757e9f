"""What commands print, and where they may write."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttracks.errors import InputError, printable
from fasttracks.export import check_folder
from fasttracks.files import as_path, claimed, output_target

if TYPE_CHECKING:
    from fasttracks.network import TracksTo4D

claims = ExitStack()  # on what the command that runs is going to write; it lets go at its end
_LOOK = 30  # seconds after which it is said how long the network will take
_BAR = "reconstruct: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"


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


def say_json(values: Any) -> None:
    """Print values for programs to read."""
    say(json.dumps(values, indent=2, ensure_ascii=False))


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how long a part of the work took; on a terminal, also that it goes on."""
    if sys.stdout.isatty():
        print(f"{name} …", end="\r", flush=True)
    start = time.perf_counter()
    yield
    say(f"{name:<14} {time.perf_counter() - start:6.2f} s")


@contextmanager
def progress(model: "TracksTo4D", tokens: int) -> Iterator[None]:
    """Show how far a model on the CPU has come, and how long it will take.

    On a terminal that is a bar, else one line where it takes minutes. `tokens`: positions, seen or
    not, that the model is going to be given. On a GPU it is done too soon.
    """
    if model.points.weight.device.type != "cpu":
        yield
        return
    from tqdm import tqdm

    total, done, told = tokens * len(model.blocks), 0, sys.stderr.isatty()
    start = time.perf_counter()
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=total, bar_format=_BAR, mininterval=0, leave=False, disable=not told)
        )

        def advance(_: Any, __: Any, result: Any) -> None:
            nonlocal done, told
            count = result.shape[:-1].numel()
            bar.update(count)
            done += count
            passed = time.perf_counter() - start
            if not told and done < total and passed > _LOOK:
                told = True
                if (minutes := passed / done * total / 60) > 2:
                    say(f"  about {minutes:.0f} minutes on this CPU")

        for block in model.blocks:
            stack.callback(block.register_forward_hook(advance).remove)
        yield


def output_path(
    options: argparse.Namespace, ending: str, *, pictures: bool = False, remade: str = ""
) -> Path:
    """Where to write, a folder if `ending` has no suffix; InputError if that can't be.

    A file under the default name that begins with the text `remade` is replaced, as this program
    made it.
    """
    path = as_path(options.output or Path(options.input).stem + ending, "-o")
    suffix = Path(ending).suffix or (ending if ending.startswith(".") else "")
    if not suffix:
        check_folder(path, "-o")
    elif path.is_dir():
        raise InputError(f"-o: {path} is a directory; expected a file name")
    elif path.suffix != suffix:
        raise InputError(f"-o: expected a name ending in {suffix}, found {path}")
    for file in with_pictures(path) if pictures else (path,):
        ours = bool(remade) and not options.output and _begins_with(file, remade)
        if file.exists() and not (options.force or ours):
            raise InputError(f"-o: {file} exists; choose another name, or --force to replace it")
        if suffix or not path.is_dir():
            check_writable(file)
        claim(file)
    return path


def claim(path: Path) -> None:
    """Raise InputError where another run is about to write to a path; keep others from it."""
    claims.enter_context(claimed(path))


def _begins_with(file: Path, text: str) -> bool:
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return opened.read(len(text.encode())) == text.encode()


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


def open_in_browser(page: Path | str) -> None:
    """Open a page, a file or an address, or say that there is no browser."""
    import webbrowser

    address = page if isinstance(page, str) else page.absolute().as_uri()
    if not webbrowser.open(address):
        complain(f"warning: no browser to open {page} with")
