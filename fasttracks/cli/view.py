"""`fasttracks view` and `export`: from a reconstruction to pages and other programs' files."""

import argparse

import numpy as np

from fasttracks.cli.console import open_in_browser, output_path, say, stage
from fasttracks.errors import InputError
from fasttracks.export import FORMATS
from fasttracks.reconstruction import Reconstruction
from fasttracks.summary import image_size_text
from fasttracks.viewers import rerun
from fasttracks.viewers.page import BEGINNING, write_page


def view(options: argparse.Namespace) -> None:
    """Reconstruction to a page, or to Rerun."""
    shown = options.rerun and options.output is None
    ending = ".rrd" if options.rerun else ".html"
    output = None if shown else output_path(options, ending, remade=BEGINNING)
    result = Reconstruction.load(options.input)
    frames = _frames_of(result, options.video) if options.video else None
    if output is None:
        return rerun.show(result, frames)
    (rerun.save if options.rerun else write_page)(result, output, frames)
    say(f"wrote {output}")
    if options.open:
        open_in_browser(output)


def export(options: argparse.Namespace) -> None:
    """Reconstruction to a file that other programs read."""
    if options.format not in FORMATS:
        raise InputError(f"FORMAT: expected one of {', '.join(FORMATS)}, found {options.format!r}")
    wanted = FORMATS[options.format]
    if wanted.needs_video != bool(options.video):
        need = "needed for" if wanted.needs_video else "of no use to"
        raise InputError(f"--video: {need} {options.format}")
    output = output_path(options, wanted.ending)
    result = Reconstruction.load(options.input)
    frames = [_frames_of(result, options.video, max_size=None)] if options.video else []
    getattr(result, wanted.method)(output, *frames, **wanted.options)
    say(f"wrote {output}")


def _frames_of(
    result: "Reconstruction[np.ndarray]", path: str, max_size: int | None = 1024
) -> np.ndarray:
    """The frames of a video that a reconstruction was made from, in its order."""
    from fasttracks.video import read_video

    count = len(result.points)
    with stage("decode"):
        # Where times aren't known it is taken to have been read from the start.
        video = read_video(path, times=result.times, frames=count, max_size=max_size)
    if len(video.frames) < count:
        raise InputError(
            f"--video: {path} has {len(video.frames)} of the {count} frames; expected the video "
            "that the reconstruction was made from"
        )
    if result.image_size not in (None, video.image_size):
        raise InputError(
            f"--video: {path} is {image_size_text(video.image_size)}, the reconstruction's is "
            f"{image_size_text(result.image_size)}; expected the video that it was made from"
        )
    return video.frames
