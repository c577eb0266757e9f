"""The options of the program `fasttracks`."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from fasttracks import __version__
from fasttracks.errors import InputError

_VIDEO = "a video, a folder of images, or numbered ones: frames/%%05d.png"
_TRACKS = "a track file: .npz, .npy, .pt, TAP-Vid's .pkl or one clip of it, FILE.pkl:NAME"
_Command = Callable[[str, str], argparse.ArgumentParser]


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see '{self.prog} --help'")


def parser() -> argparse.ArgumentParser:
    """The program's options; `command` of what it parses is the command's name.

    It raises InputError where the options are at fault.
    """
    program = _Parser(prog="fasttracks", description="Point tracks to cameras and 4D points.")
    program.add_argument("--version", action="version", version=f"fasttracks {__version__}")
    subparsers = program.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )

    def command(name: str, text: str) -> argparse.ArgumentParser:
        description = text[0].upper() + text[1:] + "."
        return subparsers.add_parser(
            name, help=text, description=description, formatter_class=_Help
        )

    sub = command("demo", "reconstruct the bundled tracks of a real clip; needs nothing")
    sub.add_argument(
        "-o", "--output", default="fasttracks-demo", metavar="FOLDER", help="where to write"
    )
    _model_options(sub)

    sub = command("track", "follow points through a video and write a track file")
    sub.add_argument("input", metavar="VIDEO", help=f"{_VIDEO}")
    _output_options(sub, "VIDEO-tracks.npz")
    _video_options(sub)
    sub.add_argument("--device", default="auto", help="of tapnext and cotracker: auto, cpu, cuda")

    sub = command("reconstruct", "turn tracks or a video into cameras and 4D points")
    sub.add_argument("input", metavar="TRACKS|VIDEO", help=f"{_TRACKS}; or {_VIDEO}")
    _output_options(sub, "INPUT-reconstruction.npz, a picture and a page beside it")
    sub.add_argument("--open", action="store_true", help="open the page in a browser")
    _model_options(sub)
    _video_options(sub)

    for add in (_add_batch, _add_live, _add_viewing):
        add(command)

    _add_conversion(command)
    _add_training(command)

    sub = command("info", "say what a track file, reconstruction, weights file or video holds")
    sub.add_argument("input", metavar="FILE", help="a file, or a shipped model's name")
    _json_option(sub)

    sub = command("bench", "check the forward's accuracy on this machine, then time it")
    sub.add_argument(
        "sizes", nargs="*", metavar="TRACKSxFRAMES", help="such as 256x50; else the usual ones"
    )
    sub.add_argument("--calls", type=int, default=100, help="timed, of each size")
    _network_options(sub)
    sub.add_argument("--backend", default="auto", help="auto, triton, torch")

    sub = command("tune", "find the kernel launches that are fastest on this GPU, in half a minute")
    sub.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="for FASTTRACKS_LAUNCHES to name; else the user's cache, where it is found by itself",
    )
    _network_options(sub)

    sub = command("compile", "compile kernels ahead, so that first calls need not: for images")
    sub.add_argument(
        "--arch",
        metavar="sm_90",
        help="compute capability of a GPU that is not here (default: the GPU that is)",
    )
    sub.add_argument("--model", default="base", help="base, or a weights file")
    sub.add_argument("--precision", default="auto", help="auto (fp16), fp32, fp16, bf16")

    command("env", "print versions and devices, for a bug report")

    sub = command("completion", "print a script that completes commands and options in a shell")
    sub.add_argument("shell", choices=("bash", "zsh", "fish"), help="eval it, or save it")
    return program


def _add_batch(command: _Command) -> None:
    sub = command("batch", "reconstruct a folder of videos and track files, on all cores and GPUs")
    sub.add_argument(
        "input",
        metavar="INPUT",
        help="a folder, a pattern such as 'videos/*.mp4', or a .txt file with a path on each line",
    )
    sub.add_argument(
        "output", nargs="?", metavar="OUTPUT", help="a folder for NAME.npz of each and the index"
    )
    sub.add_argument(
        "--export", metavar="FORMATS", help="as 'export' names them, with commas between: ply,tum"
    )
    sub.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out what is done already with the same input, options and weights",
    )
    sub.add_argument(
        "--strict", action="store_true", help="end with an error if a clip failed, when all is done"
    )
    sub.add_argument(
        "--workers", type=int, metavar="N", help="processes on the CPU, else one for each core"
    )
    sub.add_argument(
        "--shard", metavar="I/N", help="do the part I of N, from 0 on, with an index of its own"
    )
    sub.add_argument(
        "--merge", action="store_true", help="only make one index of those in the folder INPUT"
    )
    sub.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on Ray: its cluster here ('auto') or elsewhere, else one that is started for it",
    )
    sub.add_argument(
        "--gpu-share", type=float, default=1.0, help="of a GPU, that each of Ray's actors takes"
    )
    _model_options(sub)
    _video_options(sub)


def _add_live(command: _Command) -> None:
    sub = command("live", "reconstruct a camera or a video while it runs, in a page that grows")
    sub.add_argument(
        "source", metavar="SOURCE", help="a camera's number, a video, or a stream's address"
    )
    sub.add_argument(
        "-o", "--output", default="live-reconstruction.npz", metavar="FILE", help="where to write"
    )
    sub.add_argument("--force", action="store_true", help="replace the output if it exists")
    sub.add_argument("--open", action="store_true", help="open the page in a browser")
    sub.add_argument("--port", type=int, default=8080, help="of the page")
    sub.add_argument(
        "--rerun",
        nargs="?",
        const="",
        metavar="FILE",
        help="show it in Rerun instead; with FILE, record it there (.rrd)",
    )
    sub.add_argument("--window", type=int, help="frames seen at once; 50, or 24 on a CPU")
    sub.add_argument("--hop", type=int, help="frames from a look to the next; 1, or 5 on a CPU")
    sub.add_argument("--tracks", type=int, help="followed at once; 256, or 100 on a CPU")
    sub.add_argument(
        "--max-size", type=int, default=640, metavar="PX", help="shrink the longer side to this"
    )
    _network_options(sub)
    sub.add_argument("--focal", type=float, metavar="PX", help="in the shrunk frames, if known")
    sub.add_argument(
        "--refine", default="none", choices=("none", "bundle"), help="bundle: adjust each window"
    )


def _add_viewing(command: _Command) -> None:
    from fasttracks.export import FORMATS

    sub = command("view", "write a page that shows a reconstruction in any browser")
    sub.add_argument("input", metavar="RECONSTRUCTION", help="as 'reconstruct' writes it (.npz)")
    sub.add_argument("--video", metavar="VIDEO", help="that it was made from, to show its frames")
    _output_options(sub, "RECONSTRUCTION.html")
    sub.add_argument("--open", action="store_true", help="open the page in a browser")
    sub.add_argument(
        "--rerun", action="store_true", help="open it in Rerun instead; with -o, write an .rrd file"
    )

    sub = command("export", "write a reconstruction as a file that other programs read")
    sub.add_argument("input", metavar="RECONSTRUCTION", help="as 'reconstruct' writes it (.npz)")
    formats = "; ".join(f"{name}: {form.text}" for name, form in FORMATS.items())
    sub.add_argument("format", metavar="FORMAT", help=formats)
    sub.add_argument("--video", metavar="VIDEO", help="that it was made from, for its frames")
    _output_options(sub, "named like RECONSTRUCTION")


def _add_conversion(command: _Command) -> None:
    sub = command(
        "convert", "turn a released checkpoint of TracksTo4D or TAPNext into a weights file"
    )
    sub.add_argument("input", metavar="CHECKPOINT")
    _output_options(sub, "CHECKPOINT.safetensors")
    sub.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        help="of the weights, else fp32, and fp16 for TAPNext",
    )
    sub.add_argument(
        "--predicts-focal",
        action="store_true",
        help="the checkpoint was trained to correct the focal length",
    )

    sub = command("export-program", "write the network for other runtimes: ONNX, or CPUs in C++")
    sub.add_argument("output", metavar="OUT", help="OUT.onnx, or OUT.pt2 of torch's AOTInductor")
    sub.add_argument("--model", default="base", help="base, or a .safetensors file")
    sub.add_argument("--force", action="store_true", help="replace OUT if it exists")


def _add_training(command: _Command) -> None:
    sub = command("train", "train weights on generated scenes, or on tracks without truth")
    sub.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="a run that is there goes on"
    )
    sub.add_argument(
        "--data", metavar="FOLDER", help="with mocap_cmu.npz and camera_paths.npz, if any"
    )
    sub.add_argument("--tracks", metavar="FOLDER", help="train on these track files, without truth")
    sub.add_argument("--weights", default="base", help="to start from: a name, a file, or 'none'")
    sub.add_argument(
        "--rounds", type=int, help="deepen the network to so many of a time and a track block each"
    )
    sub.add_argument("--steps", type=int, default=20_000)
    sub.add_argument("--minutes", type=float, help="stop after this long, to go on later")
    sub.add_argument(
        "--validation-clips", type=int, help="of each of three kinds; 64, or 4 on a CPU"
    )
    sub.add_argument("--learning-rate", type=float, default=4e-4)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    sub = command("generate", "write held-out generated clips with truth, for 'evaluate'")
    sub.add_argument("-o", "--output", required=True, metavar="FOLDER")
    sub.add_argument(
        "--data", metavar="FOLDER", help="with mocap_cmu.npz and camera_paths.npz, if any"
    )
    sub.add_argument("--kind", default="casual", help="all, casual, handheld, walk, long")
    sub.add_argument("--clips", type=int, default=16)
    sub.add_argument("--frames", type=int, default=50)
    sub.add_argument("--tracks", type=int, default=256)
    sub.add_argument("--seed", type=int, default=2)

    sub = command("evaluate", "judge a model on a folder of clips with truth")
    sub.add_argument(
        "input",
        metavar="FOLDER",
        help="of clips as fasttracks.evaluation.clips.save_clip writes them",
    )
    _network_options(sub)
    _refine_option(sub, "none")
    _json_option(sub)


def _output_options(sub: argparse.ArgumentParser, default: str) -> None:
    sub.add_argument("-o", "--output", metavar="FILE", help=f"where to write, else here: {default}")
    sub.add_argument("--force", action="store_true", help="replace the output if it exists")


def _network_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", default="base", help="base, or a weights file")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    sub.add_argument("--precision", default="auto", help="auto, fp32, fp16, bf16")


def _model_options(sub: argparse.ArgumentParser) -> None:
    _network_options(sub)
    sub.add_argument("--focal", type=float, metavar="PX", help="focal length in pixels, if known")
    _refine_option(sub, "bundle")


def _refine_option(sub: argparse.ArgumentParser, default: str) -> None:
    sub.add_argument(
        "--refine",
        default=default,
        choices=("none", "bundle", "finetune"),
        help="bundle: adjust cameras and points; finetune: tune a copy of the model to the clip",
    )


def _json_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print it for programs to read")


def _video_options(sub: argparse.ArgumentParser) -> None:
    """Options that stay None where they aren't given: `cli.reconstruct.VIDEO` says what is then."""
    video = sub.add_argument_group("video")
    video.add_argument(
        "--tracker",
        help="klt, tapnext, or cotracker, which is downloaded and for non-commercial use only "
        "(default: klt)",
    )
    video.add_argument("--checkpoint", metavar="FILE", help="TAPNext's or CoTracker's weights")
    video.add_argument("--grid", type=int, metavar="N", help="start N × N tracks at a time, evenly")
    video.add_argument(
        "--mask", metavar="IMAGE", help="start tracks where this image is bright, as many as else"
    )
    video.add_argument("--start", type=float, metavar="SECONDS", help="skip these (default: 0)")
    video.add_argument("--frames", type=int, help="read at most this many (default: 3000)")
    video.add_argument("--every", type=int, metavar="N", help="keep every Nth frame (default: 1)")
    video.add_argument(
        "--max-size", type=int, metavar="PX", help="shrink the longer side to this (default: 1024)"
    )
