"""Reading a video file into frames."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fasttracks.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

ROUNDING = 1e-6  # seconds
CLOSE = 1e-3  # seconds; no two frames are


@dataclass(frozen=True)
class Video:
    """Frames of a clip, upright.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        times: (T,) float64, seconds from the file's first frame, by the file's time stamps.
        image_size: (height, width) of the upright source; `frames` may be smaller.
    """

    frames: np.ndarray
    times: np.ndarray
    image_size: tuple[int, int]

    def __getitem__(self, part: slice) -> Video:
        """Some of the frames."""
        return Video(self.frames[part], self.times[part], self.image_size)

    @property
    def fps(self) -> float:
        """Frames per second by the median time step; NaN for a single frame."""
        return float(1 / np.median(np.diff(self.times))) if len(self.times) > 1 else math.nan


def read_video(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    frames: int | None = None,
    every: int = 1,
    max_size: int | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    progress: bool = False,
) -> Video:
    """Decode a video, or a part of it, into upright RGB frames.

    Args:
        path: any video file that ffmpeg decodes.
        start: seconds from the first frame; what comes earlier is left out.
        frames: keep at most this many; None keeps all.
        every: keep one frame in this many.
        max_size: shrink the frames so that neither side has more pixels than this.
        times: keep the frames at these seconds, as `Video.times` told them, and leave
            `start`, `frames` and `every` alone.
        progress: show a progress bar.

    Raises:
        InputError: the file or an option can't be used. A video that breaks off is kept as
            far as it goes, with a warning, unless that is less than two frames.
    """
    if times is not None:
        start, frames = max(0.0, float(times[0]) - CLOSE), len(times)
    _check_options(start, frames, every, max_size)
    path = Path(path)
    _check_file(path)

    import av
    from tqdm import tqdm

    images: list[np.ndarray] = []
    stamps: list[float] = []
    decoded = 0  # frames at or after start
    problem = ""
    try:
        # An absolute path: libav would take the name "a:b.mp4" for a protocol.
        with (
            av.open(str(path.absolute()), metadata_errors="replace") as container,
            tqdm(total=frames, desc="decode", unit="frame", disable=not progress) as bar,
        ):
            for time, frame in _decode(container, _video_stream(container, path), start):
                if time < start - ROUNDING:
                    continue
                due = decoded % every == 0 if times is None else time > times[len(images)] - CLOSE
                if due:
                    if not images:
                        source = frame.height, frame.width
                        height, width = _fit(source, max_size)
                        turns = round(frame.rotation / 90)  # counterclockwise
                    image = frame.to_ndarray(
                        format="rgb24", height=height, width=width, interpolation="AREA"
                    )
                    images.append(np.rot90(image, turns))
                    stamps.append(time)
                    bar.update()
                    if len(images) == frames:
                        break
                decoded += 1
    except (av.error.FFmpegError, EOFError) as error:
        problem = getattr(error, "strerror", None) or str(error)

    if problem and len(images) < 2:
        raise InputError(
            f"video: {path} can't be decoded ({problem}); "
            "expected a whole video file: mp4, mov, mkv, webm or another that ffmpeg reads"
        )
    if not images:
        raise InputError(f"start: {start:g} s is past the last frame of {path}, at {time:g} s")
    if problem:
        warnings.warn(f"{path} breaks off after {len(images)} frames ({problem})", stacklevel=2)
    return Video(_stack(images), np.array(stamps), source[::-1] if turns % 2 else source)


def _check_options(start: float, frames: int | None, every: int, max_size: int | None) -> None:
    if not 0 <= start < 1e9:
        raise InputError(f"start: expected seconds, 0 or more, found {start}")
    for name, value in (("frames", frames), ("every", every), ("max_size", max_size)):
        check_count(name, value)


def check_count(name: str, value: int | None) -> None:
    """Raise InputError unless the option `name` is a whole number above 0, or None."""
    if value is not None and not (isinstance(value, int | np.integer) and value >= 1):
        raise InputError(f"{name}: expected a whole number, 1 or more, found {value}")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"video: {path} is a directory; expected a video file")
    if not path.is_file():
        raise InputError(f"video: no file {path}")
    if path.stat().st_size == 0:
        raise InputError(f"video: {path} is empty; expected a video file")


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first video stream that is not the cover picture of a sound file."""
    from av.stream import Disposition

    if container.format.name.endswith(("_pipe", "image2")):
        raise InputError(f"video: {path} is a picture; expected a video file")
    if container.format.name.split(",")[0] in ("concat", "hls", "dash", "sdp"):
        raise InputError(f"video: {path} is a list of other files; expected a video file")
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            stream.thread_type = "AUTO"
            return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams}))
    raise InputError(
        f"video: {path} holds {kinds or 'nothing'} but no video; expected a video file"
    )


def _decode(
    container: InputContainer, stream: VideoStream, start: float
) -> Iterator[tuple[float, VideoFrame]]:
    """Yield (seconds from the file's first frame, frame), beginning at or before `start`.

    Raises EOFError where the file ends before its header says it does.
    """
    tick = float(stream.time_base or 1)
    rate = float(stream.average_rate or 25)
    origin = stream.start_time or 0
    if start > 0 and stream.start_time is not None:
        _seek(container, stream, origin + int(start / tick))

    time = -1.0
    for index, frame in enumerate(_frames(container, stream)):
        # raw streams have no time stamps
        time = index / rate if frame.pts is None else (frame.pts - origin) * tick
        yield time, frame

    if time < 0:
        raise EOFError("no frames")
    end = (stream.duration or 0) * tick or (container.duration or 0) / 1e6
    if end - time > max(0.5, 2 / rate):
        raise EOFError(f"the last frame is at {time:g} s of {end:g} s")


def _seek(container: InputContainer, stream: VideoStream, pts: int) -> None:
    """Go to a key frame at or before `pts`: the beginning, where the format misses it."""
    container.seek(pts, stream=stream)
    first = next(container.decode(stream), None)
    if first is None or first.pts is None or first.pts > pts:
        container.seek(0)
    else:
        container.seek(pts, stream=stream)


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode up to the first damaged packet, what the decoder holds by then included."""
    from av.error import FFmpegError

    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except FFmpegError:
            yield from stream.decode(None)
            raise
        yield from frames


def _fit(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    scale = min(1.0, (max_size or math.inf) / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _stack(images: list[np.ndarray]) -> np.ndarray:
    """`np.stack`, letting go of each image once it is copied."""
    stacked = np.empty((len(images), *images[0].shape), images[0].dtype)
    images.reverse()
    for target in stacked:
        target[:] = images.pop()
    return stacked
