"""The program `fasttracks`. Heavy modules are imported by the commands that need them."""

import argparse
import io
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttracks.errors import InputError, printable
from fasttracks.files import replacing
from fasttracks.options import parser

if TYPE_CHECKING:
    import numpy as np

    from fasttracks.network import TracksTo4D
    from fasttracks.reconstruction import Reconstruction
    from fasttracks.tracks import Tracks
    from fasttracks.video import Video

_DEMO = Path(__file__).parent / "data" / "sheep.npz"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 with one line on stderr if the input was at fault."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # "×" on a terminal that has only ASCII
    try:
        options = parser({run.__name__: run for run in _COMMANDS}).parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            options.run(options)
    except (InputError, OSError) as error:
        return _complain(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    return 0


def demo(options: argparse.Namespace) -> None:
    """Reconstruct the bundled tracks."""
    from fasttracks.tracks import Tracks

    _say("Two grazing sheep, filmed by hand: 50 frames, tracked with 'fasttracks track'.")
    output = Path(options.output) / "reconstruction.npz"
    for file in _with_pictures(output):
        _check_writable(file)
    _finish(_reconstruct(Tracks.load(_DEMO), _load(options), options), output)


def track(options: argparse.Namespace) -> None:
    """Video to track file."""
    output = _output(options, "-tracks.npz")
    tracks, _ = _track(options)
    tracks.save(output)
    _say(f"{tracks!r}\nwrote {output}")


def reconstruct(options: argparse.Namespace) -> None:
    """Track file or video to reconstruction."""
    from fasttracks.tracks import Tracks

    output = _output(options, "-reconstruction.npz", pictures=True)
    if Path(options.input).suffix.lower() == ".npz":
        tracks, frames, model = Tracks.load(options.input), None, _load(options)
    else:
        model = _load(options)  # first: what is wrong with it need not wait for the tracker
        tracks, video = _track(options)
        frames = video.frames
    _finish(_reconstruct(tracks, model, options), output, frames)
    if options.open:
        _open(output.with_suffix(".html"))


def view(options: argparse.Namespace) -> None:
    """Reconstruction to a page, or to Rerun."""
    from fasttracks.reconstruction import Reconstruction
    from fasttracks.viewers import rerun
    from fasttracks.viewers.page import write_page

    shown = options.rerun and options.output is None
    output = None if shown else _output(options, ".rrd" if options.rerun else ".html")
    result = Reconstruction.load(options.input)
    frames = _frames_of(result, options.video) if options.video else None
    if output is None:
        return rerun.show(result, frames)
    (rerun.save if options.rerun else write_page)(result, output, frames)
    _say(f"wrote {output}")
    if options.open:
        _open(output)


def export(options: argparse.Namespace) -> None:
    """Reconstruction to a file that other programs read."""
    from fasttracks.export import FORMATS
    from fasttracks.reconstruction import Reconstruction

    if options.format not in FORMATS:
        raise InputError(f"FORMAT: expected one of {', '.join(FORMATS)}, found {options.format!r}")
    wanted = FORMATS[options.format]
    output = _output(options, wanted.ending)
    getattr(Reconstruction.load(options.input), wanted.method)(output, **wanted.options)
    _say(f"wrote {output}")


def train(options: argparse.Namespace) -> None:
    """Train weights, on generated scenes or on tracks without truth."""
    from fasttracks.training.command import run

    run(options)


def evaluate(options: argparse.Namespace) -> None:
    """Judge a model on a folder of clips with truth."""
    import numpy as np

    import fasttracks
    from fasttracks import evaluation

    clips = sorted(Path(options.input).glob("*.npz"))
    if not clips:
        raise InputError(f"FOLDER: {options.input} holds no .npz clips with truth")
    model = fasttracks.load(options.model, device=options.device, precision=options.precision)
    rows = evaluation.evaluate(clips, model)
    refined = []
    if options.refine != "none":
        refined = evaluation.evaluate(clips, model, refine=options.refine)
    over = f" {options.refine:>9} {'median':>9}" if refined else ""
    table: dict[str, Any] = {"": f"{'mean':>9} {'median':>9}{over} {'flat guess':>11}"}

    def summary(rows: list[dict[str, Any]], name: str) -> str:
        values = [row[name] for row in rows]
        return f"{np.nanmean(values):9.4f} {np.nanmedian(values):9.4f} " if rows else ""

    for name in rows[0]:
        if name != "clip" and not name.startswith("flat "):
            flat = [row.get(f"flat {name}", np.nan) for row in rows]
            guess = "" if np.isnan(flat).all() else f"{np.nanmean(flat):11.4f}"
            table[name] = summary(rows, name) + summary(refined, name) + guess
    _table(table)


def convert(options: argparse.Namespace) -> None:
    """Released checkpoint to weights file."""
    output = _output(options, ".safetensors")
    from fasttracks import weights
    from fasttracks.trackers.tapnext import weights as tapnext

    if tapnext.recognises(options.input):
        precision = weights.PRECISIONS[options.precision or "fp16"]
        side = tapnext.convert(options.input, output, dtype=precision)
        _say(f"wrote {output}, for {side} × {side} frames; use it as")
        return _say(f"  fasttracks track VIDEO --tracker tapnext --checkpoint {output}")
    weights.convert(
        options.input,
        output,
        predicts_focal=options.predicts_focal,
        dtype=weights.PRECISIONS[options.precision or "fp32"],
    )
    _say(f"wrote {output}; use it as model={str(output)!r} or --model {output}")


def info(options: argparse.Namespace) -> None:
    """What a file holds."""
    path = Path(options.input)
    if path.suffix.lower() != ".npz":
        from fasttracks.weights import describe

        return _table(describe(options.input))
    from fasttracks.npz import read_npz
    from fasttracks.reconstruction import Reconstruction
    from fasttracks.tracks import Tracks

    if "points_camera" in read_npz(path, "file"):
        _table(_summary(Reconstruction.load(path)))
    else:
        tracks = Tracks.load(path)
        _table(
            {
                "frames": tracks.tracks.shape[0],
                "tracks": tracks.tracks.shape[1],
                "seen": f"{tracks.seen:.1%}",
                "image": _size(tracks.image_size),
                "fps": tracks.fps or "unknown",
                "intrinsics": "unknown" if tracks.intrinsics is None else "known",
            }
        )


def bench(options: argparse.Namespace) -> None:
    """How accurate and how fast the forward is on this machine."""
    from fasttracks.bench import run

    run(options, _say)


def tune(options: argparse.Namespace) -> None:
    """Find this GPU's fastest kernel launches."""
    from fasttracks.tune import run

    options.progress = sys.stderr.isatty()
    run(options, _say)


def env(options: argparse.Namespace) -> None:
    """What this machine runs."""
    from fasttracks.env import report

    _say(report())


def _track(options: argparse.Namespace) -> "tuple[Tracks, Video]":
    from fasttracks.trackers import get_tracker, to_tracks
    from fasttracks.video import read_video

    deep = options.tracker in ("tapnext", "cotracker")
    if options.checkpoint and not deep:
        raise InputError(
            f"--checkpoint: only tapnext and cotracker take one, found --tracker {options.tracker}"
        )
    given = {"checkpoint": options.checkpoint, "device": options.device} if deep else {}
    tracker = get_tracker(options.tracker, **given)
    with _stage("decode"):
        video = read_video(
            options.input,
            start=options.start,
            frames=options.frames,
            every=options.every,
            max_size=options.max_size,
            progress=sys.stderr.isatty(),
        )
    count, height, width, _ = video.frames.shape
    span = f"{video.times[0]:.2f} to {video.times[-1]:.2f} s"
    _say(f"  {count} frames of {width}×{height} px, {span}")
    with _stage(f"track ({options.tracker})"):
        return to_tracks(video, tracker, progress=sys.stderr.isatty()), video


def _frames_of(result: "Reconstruction", path: str) -> "np.ndarray":
    """The frames of a video that a reconstruction was made from, in its order."""
    from fasttracks.video import read_video

    count = len(result.points)
    with _stage("decode"):
        # Where times aren't known it is taken to have been read from the start.
        video = read_video(path, times=result.times, frames=count, max_size=1024)
    if len(video.frames) < count:
        raise InputError(
            f"--video: {path} has {len(video.frames)} of the {count} frames; expected the video "
            "that the reconstruction was made from"
        )
    if result.image_size not in (None, video.image_size):
        raise InputError(
            f"--video: {path} is {_size(video.image_size)}, the reconstruction's is "
            f"{_size(result.image_size)}; expected the video that it was made from"
        )
    return video.frames


def _open(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.absolute().as_uri()):
        _complain(f"warning: no browser to open {page} with", 0)


def _load(options: argparse.Namespace) -> "TracksTo4D":
    with _stage("load model"):
        import fasttracks

        return fasttracks.load(options.model, device=options.device, precision=options.precision)


def _reconstruct(
    tracks: "Tracks", model: "TracksTo4D", options: argparse.Namespace
) -> "Reconstruction":
    import fasttracks

    with _stage("reconstruct"):
        result = fasttracks.reconstruct(
            tracks,
            model=model,
            intrinsics=_intrinsics(tracks, options.focal),
            refine=options.refine,
        )
    assert isinstance(result, fasttracks.Reconstruction)  # one clip went in
    return result


def _intrinsics(tracks: "Tracks", focal: float | None) -> Any:
    if focal is None:
        return None
    if not 0 < focal < math.inf:
        raise InputError(f"--focal: expected pixels above 0, found {focal:g}")
    camera = tracks.camera().copy()
    camera[:, (0, 1), (0, 1)] = focal
    return camera


def _finish(result: "Reconstruction", output: Path, frames: "np.ndarray | None" = None) -> None:
    """Write a reconstruction, its picture and its page: all or none."""
    from fasttracks.viewers.page import page
    from fasttracks.viewers.picture import draw

    files = _with_pictures(output)
    with ExitStack() as stack:
        arrays, picture, web = (stack.enter_context(replacing(file)) for file in files)
        with _stage("write"):
            result.save(arrays)
        with _stage("draw"):
            draw(result, picture)
            name = output.stem.removesuffix("-reconstruction")
            web.write_text(page(result, name, frames), encoding="utf-8")
    _table({**_summary(result), "wrote": ", ".join(map(str, files))})


def _with_pictures(output: Path) -> tuple[Path, Path, Path]:
    return output, output.with_suffix(".png"), output.with_suffix(".html")


def _summary(result: "Reconstruction") -> dict[str, Any]:
    import numpy as np

    error = result.reprojection_error[result.visibility]
    path = np.linalg.norm(np.diff(result.camera_to_world[:, :3, 3], axis=0), axis=1).sum()
    focal = result.intrinsics[:, 0, 0]
    return {
        "frames": result.points.shape[0],
        "tracks": result.points.shape[1],
        "seen": f"{result.visibility.mean():.1%}",
        "image": _size(result.image_size),
        "focal length": f"{np.median(focal):.0f} px",
        "reprojection error": f"{np.median(error):.2f} px median, "
        f"{np.percentile(error, 90):.2f} px 90th percentile",
        **({"refinement": result.refinement} if result.refinement else {}),
        "camera path": f"{path / np.median(result.depth):.2f} × the median depth",
    }


def _size(image_size: tuple[int, int] | None) -> str:
    return f"{image_size[1]}×{image_size[0]} px" if image_size else "unknown"


def _table(rows: dict[str, Any]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        _say(f"{name:<{width}}  {printable(str(value)) if name else value}")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Print how long a part of the work took."""
    start = time.perf_counter()
    yield
    _say(f"{name:<14} {time.perf_counter() - start:6.2f} s")


def _output(options: argparse.Namespace, ending: str, *, pictures: bool = False) -> Path:
    """Where to write, a folder if `ending` has no suffix; InputError if that can't be."""
    path = Path(options.output or Path(options.input).stem + ending)
    suffix = Path(f"name{ending}").suffix
    if suffix and path.is_dir():
        raise InputError(f"-o: {path} is a directory; expected a file name")
    if path.suffix != suffix:
        expected = f"a name ending in {suffix}" if suffix else "a folder's name without a dot"
        raise InputError(f"-o: expected {expected}, found {path}")
    for file in _with_pictures(path) if pictures else (path,):
        if file.exists() and not options.force:
            raise InputError(f"-o: {file} exists; choose another name, or --force to replace it")
        if suffix or not path.is_dir():
            _check_writable(file)
    return path


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"-o: {path} is a directory and can't be replaced by a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"-o: {path} can't be written, as {folder} is no folder to write to")


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read our output has gone; the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, status: int) -> int:
    print(f"fasttracks: {printable(message)}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain(f"warning: {message}", 0)


_COMMANDS = (
    demo, track, reconstruct, view, export, convert, train, evaluate, info, bench, tune, env,
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
