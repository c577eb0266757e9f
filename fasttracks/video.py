"""Reading a video file into frames."""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fasttracks.checks import as_numbers
from fasttracks.errors import InputError
from fasttracks.files import existing_file
from fasttracks.image_files import choose_images, find_images, is_image_sequence, read_image

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

ROUNDING = 1e-6  # seconds
CLOSE = 1e-3  # seconds; no two frames are

# Formats are refused by name before anything in the file is followed: a playlist may name itself.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,apng,mxf,nut,ivf,dv,gxf,"
    "rm,swf,nsv,wtv,h261,h263,h264,hevc,vvc,m4v,mpegvideo,vc1,obu,av1,cavsvideo,dirac,dnxhd,mjpeg,"
    "yuv4mpegpipe,wav,mp3,flac,aac,aiff,amr,ac3,"
    "image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,gif_pipe"
)
_MOST_PIXELS = 2**26  # of a frame; 8K has half of them
_PATIENCE = 2**27  # bytes that are read without a packet of video being found
_BLACK = 32  # of 255, that no pixel of a black bar exceeds
_NARROWEST = 0.02  # of the side, that a bar is taken for one


@dataclass(frozen=True)
class Video:
    """Frames of a clip, upright.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        times: (T,) float64, seconds from the file's first frame, by the file's time stamps.
        image_size: (height, width) of the upright source, its pixels made square; `frames` may be
            smaller.
        content: (top, left, bottom, right) of what black bars of equal width surround, in pixels
            of the source, the last two exclusive; None: there are no bars.
    """

    frames: np.ndarray
    times: np.ndarray
    image_size: tuple[int, int]
    content: tuple[int, int, int, int] | None = None

    def __getitem__(self, part: slice) -> Video:
        """Some of the frames."""
        return Video(self.frames[part], self.times[part], self.image_size)

    @property
    def fps(self) -> float:
        """Frames per second by the median time step; NaN where no time passes."""
        steps = np.diff(self.times)
        step = np.median(steps) or np.mean(steps) if len(steps) else 0.0
        return float(1 / step) if step > 0 else math.nan


def probe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a video's header and first frame say, by name; quick, however long it is.

    `image_size` (height, width), upright; `fps`, `seconds` and `frames`, None where it doesn't say.

    Raises:
        InputError: it is no video, or its first frame can't be decoded.
    """
    if is_image_sequence(path):
        images = find_images(path)
        size = read_image(images[0]).shape[:2]
        return {"image_size": size, "fps": None, "seconds": None, "frames": len(images)}
    path = _existing(path)

    import av

    try:
        with _opened(path) as (container, source):
            stream = _video_stream(container, path)
            _, frame = next(_decode(container, stream, source, 0.0))
            size = _square(frame, stream)
            size = size[::-1] if _swaps_axes(_orientation(frame)) else size
            tick = float(stream.time_base or 1)
            seconds = (stream.duration or 0) * tick or (container.duration or 0) / 1e6 or None
            rate = float(stream.average_rate) if stream.average_rate else None
            frames = stream.frames or None
    except (av.error.FFmpegError, EOFError) as error:
        raise _undecodable(path, getattr(error, "strerror", None) or str(error)) from None
    return {"image_size": size, "fps": rate, "seconds": seconds, "frames": frames}


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
        path: any video file that ffmpeg decodes; a folder of images, or a name of numbered ones
            such as frames/%05d.png, which are taken for 25 a second.
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
    _check_options(start, frames, every, max_size, times)
    if times is not None:
        start, frames = max(0.0, float(times[0]) - CLOSE), len(times)
    if is_image_sequence(path):
        chosen, seconds = choose_images(find_images(path), start, frames, every, times)
        return _read_images(chosen, seconds, max_size)
    path = _existing(path)

    import av
    from tqdm import tqdm

    images: list[np.ndarray] = []
    bars = _Bars()
    stamps: list[float] = []
    decoded = 0  # frames at or after start
    problem = ""
    try:
        with (
            _opened(path) as (container, source),
            tqdm(total=frames, desc="decode", unit="frame", disable=not progress) as bar,
        ):
            stream = _video_stream(container, path)
            for time, frame in _decode(container, stream, source, start):
                if time < start - ROUNDING:
                    continue
                due = decoded % every == 0 if times is None else time > times[len(images)] - CLOSE
                if due:
                    if not images:
                        size, matrix = _square(frame, stream), _orientation(frame)
                        height, width = _fit(size, max_size)
                    image = frame.to_ndarray(
                        format="rgb24", height=height, width=width, interpolation="AREA"
                    )
                    images.append(_upright(image, matrix))
                    if bars.possible:
                        grey = frame.to_ndarray(format="gray", height=size[0], width=size[1])
                        bars.look(_upright(grey, matrix))
                    stamps.append(time)
                    bar.update()
                    if len(images) == frames:
                        break
                decoded += 1
    except (av.error.FFmpegError, EOFError) as error:
        problem = getattr(error, "strerror", None) or str(error)

    if problem and len(images) < 2:
        raise _undecodable(path, problem)
    if not images:
        raise InputError(f"start: {start:g} s is past the last frame of {path}, at {time:g} s")
    if problem:
        warnings.warn(f"{path} breaks off after {len(images)} frames ({problem})", stacklevel=2)
    image_size = size[::-1] if _swaps_axes(matrix) else size
    return Video(_stack(images), np.array(stamps), image_size, bars.content())


def _existing(path: str | os.PathLike[str]) -> Path:
    path = existing_file(path, "video", "a video file")
    if path.stat().st_size == 0:
        raise InputError(f"video: {path} is empty; expected a video file")
    return path


def _undecodable(path: Path, problem: str) -> InputError:
    return InputError(
        f"video: {path} can't be decoded ({problem}); "
        "expected a whole video file: mp4, mov, mkv, webm or another that ffmpeg reads"
    )


def _read_images(files: Sequence[Path], times: np.ndarray, max_size: int | None) -> Video:
    """Images, all of the first one's size, as a video."""
    import cv2

    images: list[np.ndarray] = []
    for file in files:
        image = read_image(file)
        if not images:
            source = image.shape[:2]
            height, width = _fit(source, max_size)
        if image.shape[:2] != source:
            raise InputError(
                f"video: {file} has {image.shape[1]}×{image.shape[0]} pixels, {files[0].name} "
                f"{source[1]}×{source[0]}; expected images of one size"
            )
        if (height, width) != source:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        images.append(image)
    return Video(_stack(images), times, (source[0], source[1]))


def _check_options(
    start: float, frames: int | None, every: int, max_size: int | None, times: Any
) -> None:
    seconds = as_numbers(start, "start")
    if seconds.shape != () or not 0 <= seconds < 1e9:
        raise InputError(f"start: expected seconds, 0 or more, found {start}")
    for name, value in (("frames", frames), ("every", every), ("max_size", max_size)):
        check_count(name, value)
    if times is not None:
        wanted = as_numbers(times, "times")
        if wanted.ndim != 1 or not len(wanted) or not (np.abs(wanted) < 1e9).all():
            raise InputError(f"times: expected seconds (T,), found {wanted.dtype} {wanted.shape}")


def check_count(name: str, value: int | None) -> None:
    """Raise InputError unless the option `name` is a whole number above 0, or None."""
    if value is not None and not (isinstance(value, int | np.integer) and value >= 1):
        raise InputError(f"{name}: expected a whole number, 1 or more, found {value}")


class _Source:
    """A file as libav reads it, which ends early where `_PATIENCE` is lost."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.name = str(path.absolute())  # libav chooses some formats by its ending
        self.file, self.left = file, _PATIENCE

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, _Source]]:
    import av

    limits = {"format_whitelist": _FORMATS, "max_pixels": str(_MOST_PIXELS)}
    options: dict[str, Any] = {"options": limits}
    if int(av.__version__.split(".")[0]) < 19:  # which takes any bytes for text by itself
        options["metadata_errors"] = "replace"
    with open(path, "rb") as file:
        source = _Source(file, path)
        with av.open(source, "r", **options) as container:
            yield container, source


class _Bars:
    """Finds black bars of equal width on opposite sides of all frames."""

    def __init__(self) -> None:
        self.lit: list[np.ndarray] = []  # rows and columns that were not black in some frame
        self.possible = True

    def look(self, grey: np.ndarray) -> None:
        """Take in a frame (H, W)."""
        lit = [grey.max(1) > _BLACK, grey.max(0) > _BLACK]
        self.lit = [a | b for a, b in zip(self.lit or lit, lit, strict=True)]
        self.possible = not all(lit[0] or lit[-1] for lit in self.lit)

    def content(self) -> tuple[int, int, int, int] | None:
        """(top, left, bottom, right) of what is between them; None where there are none."""
        spans = []
        for lit in self.lit:
            (where,) = np.nonzero(lit)
            first, last = (int(where[0]), int(where[-1]) + 1) if len(where) else (0, len(lit))
            bars = first, len(lit) - last
            width = len(lit) * _NARROWEST
            are_bars = min(bars) >= width and abs(bars[0] - bars[1]) <= max(2, width)
            spans.append((first, last) if are_bars else (0, len(lit)))
        (top, bottom), (left, right) = spans
        whole = tuple(map(len, self.lit))
        return None if (bottom - top, right - left) == whole else (top, left, bottom, right)


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first video stream that is not the cover picture of a sound file."""
    from av.stream import Disposition

    if container.format.name.endswith(("_pipe", "image2")):
        raise InputError(f"video: {path} is a picture; expected a video file")
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    for stream in films:
        if stream.codec_context is None:
            raise InputError(f"video: {path} can't be decoded (nothing here knows its codec)")
        if not stream.codec_context.width:
            raise InputError(
                f"video: {path} has frames of no size, or of more than {_MOST_PIXELS / 1e6:.0f} "
                "million pixels"
            )
        stream.codec_context.options = {"max_pixels": str(_MOST_PIXELS)}
        stream.thread_type = "AUTO"
        return stream
    kinds: list[str] = sorted({stream.type for stream in container.streams} - {"video"})
    kinds += ["a cover picture"] if container.streams.video else []
    raise InputError(
        f"video: {path} holds {' and '.join(kinds) or 'nothing'} but no video; expected a video "
        "file"
    )


def _decode(
    container: InputContainer, stream: VideoStream, source: _Source, start: float
) -> Iterator[tuple[float, VideoFrame]]:
    """Yield (seconds from the file's first frame, frame), beginning at or before `start`.

    Raises EOFError where the file ends before its header says it does.
    """
    tick = float(stream.time_base or 1)
    rate = float(stream.average_rate or 25)
    origin = stream.start_time or 0
    # AVI tells when frames are decoded, not when they are shown, which are the same times in
    # another order. What libav makes of them is wrong; counting needs all from the beginning.
    unordered = container.format.name == "avi" and stream.codec_context.has_b_frames
    if start > 0 and stream.start_time is not None and not unordered:
        _seek(container, stream, origin + int(start / tick))

    time = -1.0
    stamps: deque[int] = deque()
    for index, frame in enumerate(_frames(container, stream, source, stamps)):
        stamp = frame.pts if not unordered else stamps.popleft() if stamps else None
        # raw streams have no time stamps
        time = index / rate if stamp is None else (stamp - origin) * tick
        yield time, frame

    if time < 0:
        raise EOFError("no frames")
    end = (stream.duration or 0) * tick
    if not end and len(container.streams) == 1:  # else it may be that of a longer sound track
        end = (container.duration or 0) / 1e6
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


def _frames(
    container: InputContainer, stream: VideoStream, source: _Source, stamps: deque[int]
) -> Iterator[VideoFrame]:
    """Decode up to the first damaged packet, what the decoder holds by then included.

    When packets with frames are decoded is added to `stamps`.
    """
    from av.error import FFmpegError

    for packet in container.demux(stream):
        source.left = _PATIENCE
        if packet.size and packet.dts is not None:
            stamps.append(packet.dts)
        try:
            frames = packet.decode()
        except FFmpegError:
            yield from stream.decode(None)
            raise
        yield from frames


def _square(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """(height, width) of a frame with its pixels made square."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 0.1 < aspect < 10:  # no video has such pixels
        aspect = 1.0
    return frame.height, round(frame.width * aspect)


def _orientation(frame: VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d of the display matrix: a stored x, y is shown at a x + c y, b x + d y."""
    side_data: Any = frame.side_data
    try:
        matrix = bytes(side_data["DISPLAYMATRIX"])
    except KeyError:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(matrix, "=i4")[:5].tolist()
    return a, b, c, d


def _swaps_axes(matrix: tuple[int, int, int, int]) -> bool:
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def _upright(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """An image (H, W, ...) as it is to be shown: turned by quarters and mirrored."""
    a, b, c, d = matrix
    if _swaps_axes(matrix):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


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
