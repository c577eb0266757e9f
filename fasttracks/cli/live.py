"""`fasttracks live`: a camera or video, followed and reconstructed while one looks on."""

import argparse
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

import fasttracks
from fasttracks.cli.console import check_writable, open_in_browser, output_path, say
from fasttracks.cli.reconstruct import check_focal, finish, load_model
from fasttracks.errors import InputError
from fasttracks.files import as_path
from fasttracks.long.assemble import TOGETHER
from fasttracks.stream.stream import Stream
from fasttracks.trackers.online import OnlineKLT
from fasttracks.tracks import Tracks
from fasttracks.viewers import rerun
from fasttracks.viewers.live import Newest, Page

# Window, hop and tracks that a device keeps up with.
_USUAL = {"cuda": (50, 1, 256), "cpu": (24, 5, 100)}


def live(options: argparse.Namespace) -> None:
    """Show a source until it ends or Ctrl-C, then write the reconstruction."""
    output = output_path(options, ".npz", pictures=True)
    frames = _frames(options.source, options.max_size)
    first = next(frames, None)
    if first is None:
        raise InputError(f"SOURCE: {options.source} gives no frame")
    model = load_model(options)
    usual = _USUAL[model.points.weight.device.type]
    window, hop, count = (
        given or value
        for given, value in zip((options.window, options.hop, options.tracks), usual, strict=True)
    )
    size = first[1].shape[:2]
    height, width = size
    camera = None
    if options.focal is not None:
        check_focal(options.focal)
        camera = np.diag([options.focal, options.focal, 1.0])
        camera[:2, 2] = (width - 1) / 2, (height - 1) / 2
    stream = Stream(
        model, window, hop, count, intrinsics=camera, image_size=size, refine=options.refine
    )
    page = _page(options)
    say(f"Ctrl-C ends it and writes {output}")
    record = _Record()
    begin = time.perf_counter()
    try:
        _run(stream, OnlineKLT(count), page, record, chain([first], frames))
    except KeyboardInterrupt:
        say("")
    finally:
        page.close()
    say(f"  {record.count} frames, {record.count / (time.perf_counter() - begin):.1f} a second")
    tracks = record.tracks(size, camera)
    say(f"reconstructing {tracks!r}")
    result = fasttracks.reconstruct(tracks, model=model, refine="bundle")
    finish(result, output, output.stem)


def _page(options: argparse.Namespace) -> Page | rerun.Live:
    """What shows the stream."""
    if options.rerun is None:
        page = Page(options.port)
        say(f"open {page.url}")
        if options.open:
            open_in_browser(page.url)
        return page
    if not options.rerun:
        return rerun.Live()
    path = as_path(options.rerun, "--rerun")
    if path.suffix != ".rrd":
        raise InputError(f"--rerun: expected a name ending in .rrd, found {path}")
    if path.exists() and not options.force:
        raise InputError(f"--rerun: {path} exists; choose another name, or --force to replace it")
    check_writable(path)
    return rerun.Live(path)


def _run(
    stream: Stream,
    tracker: OnlineKLT,
    page: Page | rerun.Live,
    record: "_Record",
    frames: Iterable[tuple[float, np.ndarray]],
) -> None:
    marks: deque[float] = deque(maxlen=30)
    for seconds, image in frames:
        begin = time.perf_counter()
        ids, positions = tracker.push(image)
        record.add(ids, positions, seconds)
        update = stream.push(ids, positions, time=seconds)
        marks.append(time.perf_counter())
        if update is None:
            continue
        if update.reset:
            page.clear()
        rate = (len(marks) - 1) / max(marks[-1] - marks[0], 1e-9)
        words = {
            "frames a second": f"{rate:.1f}",
            "latency": f"{1e3 * (marks[-1] - begin):.0f} ms",
            "tracks alive": str(len(ids)),
            "scale": f"{update.health.scale:.2f}, by {update.health.shared} still points",
            "world": f"{update.segment + 1}" + (f", as {update.reset}" if update.reset else ""),
        }
        seen = update.visible
        page.show(
            Newest(
                update.camera_to_world,
                update.intrinsics,
                update.ids[seen],
                update.points[seen],
                update.moving[seen],
                image,
                words,
            )
        )


class _Record:
    """The tracks of the last frames, as many as are adjusted together."""

    def __init__(self) -> None:
        self.count = 0
        self._frames: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=TOGETHER)

    def add(self, ids: np.ndarray, positions: np.ndarray, seconds: float) -> None:
        self.count += 1
        self._frames.append((ids, positions, seconds))

    def tracks(self, size: tuple[int, int], camera: Any) -> Tracks:
        """All that are seen twice, or, if none is, all."""
        every, counts = np.unique(np.concatenate([f[0] for f in self._frames]), return_counts=True)
        kept = every[counts > 1] if (counts > 1).any() else every
        places = np.full((len(self._frames), len(kept), 2), np.nan, np.float32)
        for t, (ids, positions, _) in enumerate(self._frames):
            known = np.isin(ids, kept)
            places[t, np.searchsorted(kept, ids[known])] = positions[known]
        times = np.array([seconds for _, _, seconds in self._frames])
        return Tracks(places, intrinsics=camera, image_size=size, times=times)


def _frames(source: str, max_size: int) -> Iterator[tuple[float, np.ndarray]]:
    """Seconds and images (H, W, 3) uint8 RGB: a camera's as they come, a file's at its own pace."""
    import cv2

    camera = source.isdigit()
    if not camera and "://" not in source and not Path(source).exists():
        raise InputError(f"SOURCE: no file {source}, and no camera's number or address of a stream")
    capture = cv2.VideoCapture(int(source) if camera else source)
    if not capture.isOpened():
        raise InputError(f"SOURCE: {source} can't be opened")
    rate = 0.0 if camera or "://" in source else capture.get(cv2.CAP_PROP_FPS)
    begin, count, last = time.perf_counter(), 0, -1.0
    try:
        while True:
            there, image = capture.read()
            if not there:
                return
            seconds = time.perf_counter() - begin
            if rate > 0:
                time.sleep(max(0.0, count / rate - seconds))
                seconds = count / rate
            height, width = image.shape[:2]
            scale = min(1.0, max_size / max(height, width))
            if scale < 1:
                smaller = round(width * scale), round(height * scale)
                image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
            count, last = count + 1, max(seconds, last + 1e-6)
            yield last, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()
