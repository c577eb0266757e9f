"""The tables that `report.py` puts into Markdown files, each made from results/."""

from collections.abc import Callable
from typing import Any

import accuracy_tables
from tabulating import LATEST, formatted, number, read, read_if_there, table

from fasttracks.performance.accuracy import LIMITS

SHOWN = "nvidia-h100-80gb-hbm3"
ROOF = 989.0  # TFLOP/s: dense float16 of an H100 SXM
SPEED_SIZES = ((100, 50), (256, 50), (1000, 50), (4096, 50))  # that the README shows
KEYS = {"forward": ("column", "tracks", "frames"),
        "call": ("column", "tracks", "frames"),
        "kernels": ("operation", "backend", "tracks", "frames")}  # fmt: skip
OURS = "engine fp16"
REFERENCE, EAGER, TORCH = "reference fp32", "eager torch fp16", "strongest torch"
BASELINES = ("released code", REFERENCE, "reference tf32", EAGER, TORCH)

Row = dict[str, Any]


def speed() -> str:
    """The README's: the forward at a few sizes on a GPU; whole calls there and on a CPU."""
    lines = []
    for size, columns in sizes(read(SHOWN)).items():
        if size in SPEED_SIZES:
            ms = {name: row["p50 ms"] for name, row in columns.items()}
            line = {
                "tracks × frames": "{} × {}".format(*size),
                "plain torch, float16": number(ms.get(EAGER), " ms"),
                "compiled torch in a CUDA graph": number(ms.get(TORCH), " ms"),
                "fasttracks": f"**{number(ms[OURS], ' ms')}**",
                "memory": "{memory GB:.2f} GB".format_map(columns[OURS]),
            }
            lines.append(line)
    record = read("real_clips-base")
    seconds = [f"{s:.0f}" for s in sorted(clip["reconstruct s"] for clip in record["clips"])]
    span = seconds[0] if seconds[0] == seconds[-1] else f"{seconds[0]} to {seconds[-1]}"
    calls = read(LATEST)["call"]
    whole = [number(r["p50 ms"], "") for r in calls if r["column"] == "numpy, by name"]
    push = read(f"long-{LATEST}")["latency"]["ms"]["p50"]
    return (
        f"{table(lines)}\n\n`reconstruct`, arrays in and out, takes {', '.join(whole)} ms at "
        "the first three sizes (H200), a `Stream` of 256 tracks "
        f"{push:.1f} ms a frame. On two CPU cores, in "
        + "{precision}, {tracks} tracks × {frames} frames".format_map(record["clips"][0])
        + f" take {span} s and {record['peak memory GB']:.1f} GB."
    )


def forward() -> str:
    """A line for each size; times are medians of the whole forward."""
    lines = []
    for (tracks, frames), columns in sizes(read(SHOWN)).items():
        if OURS not in columns:
            continue
        ours = columns[OURS]
        ms = {name: row["p50 ms"] for name, row in columns.items()}
        line = {"tracks × frames": f"{tracks} × {frames}"}
        for name in BASELINES:
            line[name] = number(ms.get(name), " ms")
            off = columns.get(name, {}).get("error of reprojection px", 0.0)
            if off > LIMITS["reprojection px"]:
                line[name] += f" (off by {off:.2g} px)"
        line[OURS] = f"**{number(ms[OURS], ' ms')}**"
        for name in (REFERENCE, TORCH):
            line[f"against {name}"] = number(ms[name] / ms[OURS] if name in ms else None, "×")
        line |= {
            "p99 / p50": f"{ours['p99 ms'] / ours['p50 ms']:.2f}",
            f"TFLOP/s (of {ROOF:.0f})": f"{ours['TFLOP/s']:.0f} ({ours['TFLOP/s'] / ROOF:.0%})",
            "memory": f"{ours['memory GB']:.2f} GB",
        }
        lines.append(line)
    return table(lines)


def calls() -> str:
    """`reconstruct` end to end: p50 and p99 in ms, by what goes in and comes out."""
    lines: dict[str, dict[str, str]] = {}
    record = read(LATEST)
    rows = [row for row in record.get("call", []) if "p50 ms" in row]
    if not rows:
        return "Not measured yet; `python benchmarks/call.py -o FOLDER` writes the figures."
    for row in rows:
        line = lines.setdefault(row["column"], {"p50 (p99), ms": row["column"]})
        line["{tracks} × {frames}".format_map(row)] = "{p50 ms:.3g} ({p99 ms:.3g})".format_map(row)
    many = record.get("clips a second")
    text = f"{record['device']}:\n\n{table(list(lines.values()))}"
    if many:
        text += "\n\nOf 256 × 50, {clips} in a call: {clips a second} clips a second."
        text = text.format_map(many)
    if first := record.get("first calls"):
        of = {k: row["first s"] for k, row in first.items() if k.startswith(("empty", "filled"))}
        text += (
            f" A process's first call takes {of['empty']:.1f} s with empty caches, "
            f"{of['empty, bundle']:.1f} with bundle adjustment; after `fasttracks compile` "
            f"{of['filled, again']:.1f} and {of['filled, bundle, again']:.1f} s."
        )
    return text


def latency() -> str:
    """What one call costs the GPU and its host."""
    rows = [columns[OURS] for columns in sizes(read(SHOWN)).values() if OURS in columns]
    return formatted(
        rows,
        {
            "tracks × frames": "{tracks} × {frames}",
            "p50": "{p50 ms:.3g} ms",
            "p95": "{p95 ms:.3g} ms",
            "p99": "{p99 ms:.3g} ms",
            "host": "{host µs:.0f} µs",
            "host, `copy=False`": "{host µs, copy=False:.0f} µs",
        },
    )


def kernels() -> str:
    """A line for each operation, µs a call, ours and eager torch's, by size."""
    lines: dict[str, dict[str, str]] = {}
    by = {tuple(row[k] for k in KEYS["kernels"]): row for row in read(SHOWN)["kernels"]}
    for operation, _, tracks, frames in by:
        line = lines.setdefault(operation, {"µs: fasttracks / eager torch": operation})
        line[f"{tracks} × {frames}"] = " / ".join(
            number(by.get((operation, backend, tracks, frames), {}).get("µs"), "")
            for backend in ("triton", "torch")
        )
    return table(list(lines.values()))


def viewer() -> str:
    """How large and how quick the page is."""
    record = read("viewer")
    return formatted(
        [page | {"with": "with" if page["video"] else "without"} for page in record["pages"]],
        {
            "{tracks} tracks × {frames} frames".format_map(record): "{with} the video",
            "written in": "{written s:.2f} s",
            "size": "{MB:.2f} MB",
            "plays at": "{frames a second:.0f} frames a second",
            "its own work": "{own work, median ms:.1f} ms a frame",
        },
    )


def tapnext() -> str:
    """A step of the tracker TAPNext, by points and image, each way's median."""
    lines = []
    for name, rows in read("tapnext-h100").items():
        if " queries at " in name:
            ms = {way: row.get("ms p50") for way, row in rows.items()}
            ours = rows["kernels"]
            line = {"points, image": name.replace(" queries at ", ", ")}
            for way in ("eager torch", "torch in a graph", "compiled torch in a graph"):
                line[way] = number(ms.get(way), " ms")
            line |= {
                "fasttracks": f"**{number(ms['kernels'], ' ms')}**",
                "error, p99": number(ours["px p99"], " px"),
                "memory of a stream": number(ours["session GB"], " GB"),
            }
            lines.append(line)
    return table(lines)


def folders() -> str:
    """What `folders.py` found, a line for each part that has been measured."""
    found = {part: read_if_there(f"folders-{part}") for part in ("clips", "kills", "many", "gpus")}
    lines = []
    if clips := found["clips"]:
        lines.append(
            f"- {clips['clips']} short clips, {len(clips['errors'])} of them bad in ten ways, on "
            f"{clips['cores']} cores: {clips['wall / (seconds of stages / cores)']:.2f} × the "
            "seconds that their stages took, divided by the cores. All processes together had at "
            f"most {clips['peak memory of all processes, GB']:.2g} GB of memory. Of the good ones "
            f"{len(clips['unlike reconstruct']) or 'none'} came out unlike `reconstruct`'s."
        )
    if kills := found["kills"]:
        ways = sorted({_WAYS.get(moment["way"], moment["way"]) for moment in kills["moments"]})
        lines.append(
            f"- {len(kills['moments'])} times ended at a random moment ({', '.join(ways)}) and "
            f"started again: {len(kills['wrong']) or 'none'} left a file half written, or a clip "
            "without its row, with two, or with another result."
        )
    if many := found["many"]:
        before, after = (many[f"parent's memory {when}, GB"] for when in _WHEN)
        lines.append(
            f"- {many['clips']:,} track files: the first is done after "
            f"{many['seconds until the first row']:.0f} s, for which all processes had a core for "
            f"{many['CPU seconds of all processes until then']:.0f} s; a run "
            f"where all are done takes {many['seconds of a run where all are done']:.0f} s. The "
            f"parent's memory was {before:.2f} GB after a quarter of {many['rows']:,} clips, "
            f"{after:.2f} GB in the end."
        )
    if gpus := found["gpus"]:
        rates = "; ".join(
            f"on {name} {value['clips a second, from the first finished to the last']:.0f} a second"
            for name, value in gpus.items()
            if isinstance(value, dict)
        )
        lines.append(
            f"- {gpus['clips']:,} track files of 256 × 50, {gpus['device']}, "
            f"{gpus['cores']} cores: {rates}."
        )
    return (
        "\n".join(lines) or "Not measured yet; `python benchmarks/folders.py` writes the figures."
    )


def native() -> str:
    """The C library beside `Engine`, by size."""
    record = read(f"native-{LATEST}")
    lines = []
    for size, row in record["speed"].items():
        if isinstance(row, dict):
            p50, host = row["p50 ms"], row["host us, in a row"]
            lines.append(
                {
                    "tracks × frames": size.replace(" x ", " × "),
                    "`Engine`, p50": f"{p50['engine']:.3g} ms",
                    "library, p50": f"**{p50['native']:.3g} ms**",
                    "`Engine`, host": f"{host['engine, no copy']:.0f} µs",
                    "library, host": f"**{host['native']:.0f} µs**",
                    "bits": record["bits"][size]["bits"],
                }
            )
    grown = record["growth"]["after 100000 calls"]
    return (
        f"{record['device']}:\n\n{table(lines)}\n\nIn 100,000 calls the host's memory grows by "
        f"{grown['host bytes more'] / 1024:.0f} KiB, the GPU's by {grown['device bytes more']}."
    )


def programs() -> str:
    """Exported programs beside the engine on a CPU, and the engine on a GPU."""
    record, gpu = read("programs-cpu"), sizes(read(SHOWN))
    labels = {"engine": "`Engine`, CPU", "onnx": "ONNX", "pt2": "`.pt2`"}
    lines = []
    for size in record["engine"]:
        tracks, frames = map(int, size.split(" x "))
        rows = {kind: record[kind].get(size, {}) for kind in labels}
        errors = [max(row["largest difference"].values()) for row in rows.values() if row]
        lines.append(
            {
                "tracks × frames": size.replace(" x ", " × "),
                "`Engine`, H100": number(
                    gpu.get((tracks, frames), {}).get(OURS, {}).get("p50 ms"), " ms"
                ),
                **{labels[kind]: number(row.get("CPU s"), " s") for kind, row in rows.items()},
                "memory": " / ".join(
                    f"{row['peak memory GB']:.1f}" if row else "–" for row in rows.values()
                )
                + " GB",
                "largest difference": f"{max(errors):.0e}",
            }
        )
    return table(lines)


_WAYS = {"parent": "kill -9 of the parent", "worker": "kill -9 of a worker", "ctrl-c": "Ctrl-C"}
_WHEN = ("after a quarter", "at the end")  # of a run of `folders.py many`

TABLES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "forward": forward,
    "latency": latency,
    "calls": calls,
    "kernels": kernels,
    "clips": accuracy_tables.clips,
    "viewer": viewer,
    "refinement": accuracy_tables.refinement,
    "refinement time": accuracy_tables.refinement_time,
    "real video": accuracy_tables.real_video,
    "tapnext": tapnext,
    "weights": accuracy_tables.weights,
    "clip sizes": accuracy_tables.clip_sizes,
    "ablation": accuracy_tables.ablation,
    "folders": folders,
    "long clips": accuracy_tables.long_clips,
    "native": native,
    "programs": programs,
}


def sizes(record: dict[str, Any]) -> dict[tuple[int, int], dict[str, Row]]:
    """Rows of the forward by (tracks, frames) and column."""
    found: dict[tuple[int, int], dict[str, Row]] = {}
    for row in record["forward"]:
        found.setdefault((row["tracks"], row["frames"]), {})[row["column"]] = row
    return found
