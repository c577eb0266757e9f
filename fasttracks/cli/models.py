"""`fasttracks evaluate` and `convert`: weights judged on clips, and made from checkpoints."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fasttracks import programs
from fasttracks.cli.console import output_path, say, say_json, table
from fasttracks.errors import InputError
from fasttracks.evaluation import clips as evaluation
from fasttracks.trackers.tapnext import weights as tapnext
from fasttracks.weights import PRECISIONS, load
from fasttracks.weights import convert as convert_checkpoint

UNITS = {
    "absrel": "share of the depth",
    "absrel_moving": "share of the depth",
    "delta": "share within 1.25",
    "delta_moving": "share within 1.25",
    "ate": "% of the path",
    "rpe_rotation": "° a frame",
    "rpe_position": "% of the path",
    "apd": "%",
    "aj": "%",
    "reprojection": "px at f = 525",
}


def evaluate(options: argparse.Namespace) -> None:
    """Judge a model on a folder of clips with truth."""
    clips = sorted(Path(options.input).glob("*.npz"))
    if not clips:
        raise InputError(f"FOLDER: {options.input} holds no .npz clips with truth")
    model = load(options.model, device=options.device, precision=options.precision)

    def judged(refine: str) -> list[dict[str, Any]]:
        shown = tqdm(clips, desc="evaluate", unit="clip", disable=not sys.stderr.isatty())
        return evaluation.evaluate(shown, model, refine=refine)

    rows = judged("none")
    refined = judged(options.refine) if options.refine != "none" else []
    names = [name for name in rows[0] if name != "clip" and not name.startswith("flat ")]
    if options.json:
        ways = {"none": rows} | ({options.refine: refined} if refined else {})
        return say_json({"clips": len(rows), "units": UNITS, **_means(ways, names)})
    over = f" {options.refine:>9} {'median':>9}" if refined else ""
    lines: dict[str, Any] = {"": f"{'mean':>9} {'median':>9}{over} {'flat guess':>11}"}

    def words(rows: list[dict[str, Any]], name: str) -> str:
        values = [row[name] for row in rows if not np.isnan(row[name])] or [np.nan]
        return f"{np.mean(values):9.4f} {np.median(values):9.4f} " if rows else ""

    for name in names:
        flat = [row.get(f"flat {name}", np.nan) for row in rows]
        guess = "" if np.isnan(flat).all() else f"{np.nanmean(flat):11.4f}"
        unit = f" ({UNITS[name]})" if name in UNITS else ""
        lines[name + unit] = words(rows, name) + words(refined, name) + guess
    table(lines)


def _means(ways: dict[str, list[dict[str, Any]]], names: list[str]) -> dict[str, Any]:
    """Of each way to refine: mean and median over the clips; None where no clip has the metric."""

    def over(rows: list[dict[str, Any]], name: str) -> dict[str, float | None]:
        values = np.array([row[name] for row in rows], float)
        known = values[~np.isnan(values)]
        if not len(known):
            return {"mean": None, "median": None}
        return {"mean": float(known.mean()), "median": float(np.median(known))}

    return {way: {name: over(rows, name) for name in names} for way, rows in ways.items()}


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


def export_program(options: argparse.Namespace) -> None:
    """The network as ONNX or a package of torch's AOTInductor."""
    suffix = Path(options.output).suffix
    output = output_path(options, suffix if suffix in programs.ENDINGS else ".onnx")
    programs.write(load(options.model, device="cpu", precision="fp32", backend="torch"), output)
    say(f"wrote {output}: tracks (B, T, N, 3) in, the fields of a Prediction out")
