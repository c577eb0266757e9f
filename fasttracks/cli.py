"""The program `fasttracks`. Heavy modules are imported by the commands that need them."""

import argparse
import io
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fasttracks import __version__
from fasttracks.errors import InputError, printable
from fasttracks.files import replacing

if TYPE_CHECKING:
    import numpy as np

    from fasttracks.reconstruction import Reconstruction
    from fasttracks.tracks import Tracks
    from fasttracks.video import Video

_DEMO = Path(__file__).parent / "data" / "sheep.npz"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 with one line on stderr if the input was at fault."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # "×" on a terminal that has only ASCII
    try:
        options = _parser().parse_args(arguments)
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
    _finish(_reconstruct(Tracks.load(_DEMO), options), output)


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
        tracks, frames = Tracks.load(options.input), None
    else:
        tracks, video = _track(options)
        frames = video.frames
    _finish(_reconstruct(tracks, options), output, frames)
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

    weights.convert(
        options.input,
        output,
        predicts_focal=options.predicts_focal,
        dtype=weights.PRECISIONS[options.precision],
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

    if options.checkpoint and options.tracker != "cotracker":
        raise InputError(
            f"--checkpoint: only cotracker takes one, found --tracker {options.tracker}"
        )
    cotracker = {"checkpoint": options.checkpoint, "device": options.device}
    tracker = get_tracker(options.tracker, **cotracker if options.tracker == "cotracker" else {})
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


def _reconstruct(tracks: "Tracks", options: argparse.Namespace) -> "Reconstruction":
    with _stage("load model"):
        import fasttracks

        model = fasttracks.load(options.model, device=options.device, precision=options.precision)
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


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SystemExit(_complain(f"error: {message}; see '{self.prog} --help'", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fasttracks", description="Point tracks to cameras and 4D points.")
    parser.add_argument("--version", action="version", version=f"fasttracks {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            run.__name__,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=_Help,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command(demo, "reconstruct the bundled tracks of a real clip; needs nothing")
    sub.add_argument(
        "-o", "--output", default="fasttracks-demo", metavar="FOLDER", help="where to write"
    )
    _model_options(sub)

    sub = command(track, "follow points through a video and write a track file")
    sub.add_argument("input", metavar="VIDEO")
    _output_options(sub, "VIDEO-tracks.npz")
    _video_options(sub)
    sub.add_argument("--device", default="auto", help="of cotracker: auto, cpu, cuda, cuda:1")

    sub = command(reconstruct, "turn tracks or a video into cameras and 4D points")
    sub.add_argument("input", metavar="TRACKS|VIDEO", help="a track file (.npz) or a video")
    _output_options(sub, "INPUT-reconstruction.npz, a picture and a page beside it")
    sub.add_argument("--open", action="store_true", help="open the page in a browser")
    _model_options(sub)
    _video_options(sub)

    _add_viewing(command)

    sub = command(convert, "turn a released TracksTo4D checkpoint (.pt) into a weights file")
    sub.add_argument("input", metavar="CHECKPOINT")
    _output_options(sub, "CHECKPOINT.safetensors")
    sub.add_argument(
        "--precision", default="fp32", choices=("fp32", "fp16", "bf16"), help="of the weights"
    )
    sub.add_argument(
        "--predicts-focal",
        action="store_true",
        help="the checkpoint was trained to correct the focal length",
    )

    _add_training(command)

    sub = command(info, "say what a track file, reconstruction or weights file holds")
    sub.add_argument("input", metavar="FILE", help="a file, or a shipped model's name")

    sub = command(bench, "check the forward's accuracy on this machine, then time it")
    sub.add_argument(
        "sizes", nargs="*", metavar="TRACKSxFRAMES", help="such as 256x50; else the usual ones"
    )
    sub.add_argument("--calls", type=int, default=100, help="timed, of each size")
    _network_options(sub)
    sub.add_argument("--backend", default="auto", help="auto, triton, torch")

    sub = command(tune, "find the kernel launches that are fastest on this GPU, in half a minute")
    sub.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="for FASTTRACKS_LAUNCHES to name; else the user's cache, where it is found by itself",
    )
    _network_options(sub)

    command(env, "print versions and devices, for a bug report")
    return parser


def _add_viewing(command: Callable[..., argparse.ArgumentParser]) -> None:
    from fasttracks.export import FORMATS

    sub = command(view, "write a page that shows a reconstruction in any browser")
    sub.add_argument("input", metavar="RECONSTRUCTION", help="as 'reconstruct' writes it (.npz)")
    sub.add_argument("--video", metavar="VIDEO", help="that it was made from, to show its frames")
    _output_options(sub, "RECONSTRUCTION.html")
    sub.add_argument("--open", action="store_true", help="open the page in a browser")
    sub.add_argument(
        "--rerun", action="store_true", help="open it in Rerun instead; with -o, write an .rrd file"
    )

    sub = command(export, "write a reconstruction as a file that other programs read")
    sub.add_argument("input", metavar="RECONSTRUCTION", help="as 'reconstruct' writes it (.npz)")
    formats = "; ".join(f"{name}: {form.text}" for name, form in FORMATS.items())
    sub.add_argument("format", metavar="FORMAT", help=formats)
    _output_options(sub, "named like RECONSTRUCTION")


def _add_training(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(train, "train weights on generated scenes, or on tracks without truth")
    sub.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="a run that is there goes on"
    )
    sub.add_argument(
        "--data", metavar="FOLDER", help="with mocap_cmu.npz and camera_paths.npz, if any"
    )
    sub.add_argument("--tracks", metavar="FOLDER", help="train on these track files, without truth")
    sub.add_argument("--weights", default="base", help="to start from: a name, a file, or 'none'")
    sub.add_argument("--steps", type=int, default=20_000)
    sub.add_argument("--minutes", type=float, help="stop after this long, to go on later")
    sub.add_argument("--validation-clips", type=int, default=64, help="of each of three kinds")
    sub.add_argument("--learning-rate", type=float, default=4e-4)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    sub = command(evaluate, "judge a model on a folder of clips with truth")
    sub.add_argument(
        "input", metavar="FOLDER", help="of clips as fasttracks.evaluation.save_clip writes them"
    )
    _network_options(sub)
    _refine_option(sub)


def _output_options(sub: argparse.ArgumentParser, default: str) -> None:
    sub.add_argument("-o", "--output", metavar="FILE", help=f"where to write, else here: {default}")
    sub.add_argument("--force", action="store_true", help="replace the output if it exists")


def _network_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", default="base", help="a shipped name or a weights file")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    sub.add_argument("--precision", default="auto", help="auto, fp32, fp16, bf16")


def _model_options(sub: argparse.ArgumentParser) -> None:
    _network_options(sub)
    sub.add_argument("--focal", type=float, metavar="PX", help="focal length in pixels, if known")
    _refine_option(sub)


def _refine_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--refine",
        default="none",
        choices=("none", "bundle", "finetune"),
        help="bundle: adjust cameras and points; finetune: tune a copy of the model to the clip",
    )


def _video_options(sub: argparse.ArgumentParser) -> None:
    video = sub.add_argument_group("video")
    video.add_argument("--tracker", default="klt", help="klt or cotracker")
    video.add_argument("--checkpoint", metavar="FILE", help="CoTracker's weights")
    video.add_argument("--start", type=float, default=0.0, metavar="SECONDS", help="skip these")
    video.add_argument("--frames", type=int, default=50, help="read at most this many")
    video.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth frame")
    video.add_argument(
        "--max-size", type=int, default=1024, metavar="PX", help="shrink the longer side to this"
    )


if __name__ == "__main__":
    sys.exit(main())
