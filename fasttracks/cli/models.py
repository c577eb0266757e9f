"""`fasttracks evaluate` and `convert`: weights judged on clips, and made from checkpoints."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fasttracks.cli.console import output_path, say, table
from fasttracks.errors import InputError
from fasttracks.evaluation import clips as evaluation
from fasttracks.trackers.tapnext import weights as tapnext
from fasttracks.weights import PRECISIONS, load
from fasttracks.weights import convert as convert_checkpoint


def evaluate(options: argparse.Namespace) -> None:
    """Judge a model on a folder of clips with truth."""
    clips = sorted(Path(options.input).glob("*.npz"))
    if not clips:
        raise InputError(f"FOLDER: {options.input} holds no .npz clips with truth")
    model = load(options.model, device=options.device, precision=options.precision)
    rows = evaluation.evaluate(clips, model)
    refined = []
    if options.refine != "none":
        refined = evaluation.evaluate(clips, model, refine=options.refine)
    over = f" {options.refine:>9} {'median':>9}" if refined else ""
    lines: dict[str, Any] = {"": f"{'mean':>9} {'median':>9}{over} {'flat guess':>11}"}

    def summary(rows: list[dict[str, Any]], name: str) -> str:
        values = [row[name] for row in rows]
        return f"{np.nanmean(values):9.4f} {np.nanmedian(values):9.4f} " if rows else ""

    for name in rows[0]:
        if name != "clip" and not name.startswith("flat "):
            flat = [row.get(f"flat {name}", np.nan) for row in rows]
            guess = "" if np.isnan(flat).all() else f"{np.nanmean(flat):11.4f}"
            lines[name] = summary(rows, name) + summary(refined, name) + guess
    table(lines)


def convert(options: argparse.Namespace) -> None:
    """Released checkpoint to weights file."""
    output = output_path(options, ".safetensors")
    if tapnext.recognises(options.input):
        side = tapnext.convert(options.input, output, dtype=PRECISIONS[options.precision or "fp16"])
        say(f"wrote {output}, for {side} × {side} frames; use it as")
        return say(f"  fasttracks track VIDEO --tracker tapnext --checkpoint {output}")
    convert_checkpoint(
        options.input,
        output,
        predicts_focal=options.predicts_focal,
        dtype=PRECISIONS[options.precision or "fp32"],
    )
    say(f"wrote {output}; use it as model={str(output)!r} or --model {output}")
