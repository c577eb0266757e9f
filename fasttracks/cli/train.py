"""`fasttracks train`: a run from its options."""

import argparse
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from fasttracks.cli.console import check_writable, claim, say
from fasttracks.config import MOST_ROUNDS, Config
from fasttracks.errors import InputError
from fasttracks.scenes.held_out import validation
from fasttracks.scenes.library import load as load_library
from fasttracks.scenes.variety import ASSUMED_FOCAL, TURNS
from fasttracks.tracks import Tracks
from fasttracks.training.loop import cpu_tokens
from fasttracks.training.loop import train as train_network
from fasttracks.training.run import Run, Schedule, start
from fasttracks.training.sources import Source, recordings, scenes
from fasttracks.weights import resolve_device


def train(options: argparse.Namespace) -> None:
    """Start a run, or go on with the one that is in the output folder.

    Under `torchrun` every process trains on a device of its own.
    """
    for name in ("steps", "validation_clips", "learning_rate", "minutes", "rounds"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            option = name.replace("_", "-")
            raise InputError(f"--{option}: expected a number above 0, found {value:g}")
    if options.rounds and options.rounds > MOST_ROUNDS:
        raise InputError(f"--rounds: expected at most {MOST_ROUNDS}, found {options.rounds}")
    device, folder = resolve_device(options.device), Path(options.output)
    check_writable(folder / "log.jsonl")
    if "LOCAL_RANK" in os.environ:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        claim(folder / "run.pt")
    scratch = options.weights == "none"
    schedule = Schedule(
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
        pose_warm_up=options.steps // 20 if scratch and options.tracks else 0,
    )
    checkpoint = folder / "run.pt"
    going = checkpoint.is_file()
    if going:
        current = Run.load(checkpoint, device)
    else:
        weights = _sizes(options) if scratch else options.weights
        assumed = None if options.tracks else ASSUMED_FOCAL
        current = start(weights, schedule, device, options.rounds, assumed)
    assumed = current.network.config.assumed_focal
    source = _source(options, device, assumed)
    folder.mkdir(parents=True, exist_ok=True)
    if first:
        say(f"{'going on' if going else 'starting'} at step {current.step} on {device}")
        if device.type == "cpu":
            say(f"steps of up to {cpu_tokens()} tokens, for this CPU and its memory")
    held_out = load_library(options.data, "validation", device)
    clips = options.validation_clips or (64 if device.type == "cuda" else 4)
    train_network(
        current,
        source,
        folder,
        validation=validation(held_out, clips, assumed) if first else {},
        minutes=math.inf if options.minutes is None else options.minutes,
        report_every=200 if device.type == "cuda" else 10,
        progress=sys.stderr.isatty(),
        say=say if first else lambda text: None,
    )
    if first:
        say(f"wrote {folder / 'run.pt'}, {folder / 'weights.safetensors'}, {folder / 'log.jsonl'}")
    if dist.is_initialized():
        dist.destroy_process_group()


def _sizes(options: argparse.Namespace) -> Config:
    return Config() if options.rounds is None else Config(rounds=options.rounds)


def _source(options: argparse.Namespace, device: torch.device, assumed_focal: float) -> Source:
    if options.tracks is None:
        library = load_library(options.data, "train", device)
        turns = [replace(variety, assumed_focal=assumed_focal) for variety in TURNS]
        return scenes(library, options.seed, turns, record=device.type == "cuda")
    files = sorted(Path(options.tracks).glob("*.npz"))
    if not files:
        raise InputError(f"--tracks: {options.tracks} holds no .npz track files")
    return recordings([Tracks.load(file) for file in files], options.seed, device, assumed_focal)
