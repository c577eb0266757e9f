"""The tables that `report.py` puts into Markdown files, each made from results/."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fasttracks.performance.accuracy import LIMITS

RESULTS = Path(__file__).parent / "results"
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


def read(name: str) -> Any:
    """The results called `name`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def speed() -> str:
    """The README's: the forward at a few sizes on a GPU, and the whole on a CPU."""
    lines = []
    for size, columns in sizes(read(SHOWN)).items():
        if size in SPEED_SIZES:
            ms = {name: row["p50 ms"] for name, row in columns.items()}
            line = {
                "tracks × frames": "{} × {}".format(*size),
                "plain torch, float16": _number(ms.get(EAGER), " ms"),
                "compiled torch in a CUDA graph": _number(ms.get(TORCH), " ms"),
                "fasttracks": f"**{_number(ms[OURS], ' ms')}**",
                "memory": "{memory GB:.2f} GB".format_map(columns[OURS]),
            }
            lines.append(line)
    record = read("real_clips-base")
    seconds = [f"{s:.0f}" for s in sorted(clip["reconstruct s"] for clip in record["clips"])]
    span = seconds[0] if seconds[0] == seconds[-1] else f"{seconds[0]} to {seconds[-1]}"
    return (
        f"{_table(lines)}\n\nOn two CPU cores "
        + "{tracks} tracks × {frames} frames".format_map(record["clips"][0])
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
            line[name] = _number(ms.get(name), " ms")
            off = columns.get(name, {}).get("error of reprojection px", 0.0)
            if off > LIMITS["reprojection px"]:
                line[name] += f" (off by {off:.2g} px)"
        line[OURS] = f"**{_number(ms[OURS], ' ms')}**"
        for name in (REFERENCE, TORCH):
            line[f"against {name}"] = _number(ms[name] / ms[OURS] if name in ms else None, "×")
        line |= {
            "p99 / p50": f"{ours['p99 ms'] / ours['p50 ms']:.2f}",
            f"TFLOP/s (of {ROOF:.0f})": f"{ours['TFLOP/s']:.0f} ({ours['TFLOP/s'] / ROOF:.0%})",
            "memory": f"{ours['memory GB']:.2f} GB",
        }
        lines.append(line)
    return _table(lines)


def calls() -> str:
    """`reconstruct` end to end: p50 and p99 in ms, by what goes in and comes out."""
    lines: dict[str, dict[str, str]] = {}
    record = read(SHOWN)
    rows = [row for row in record.get("call", []) if "p50 ms" in row]
    if not rows:
        return "Not measured yet; `python benchmarks/call.py -o FOLDER` writes the figures."
    for row in rows:
        line = lines.setdefault(row["column"], {"p50 (p99), ms": row["column"]})
        line["{tracks} × {frames}".format_map(row)] = "{p50 ms:.3g} ({p99 ms:.3g})".format_map(row)
    many = record.get("clips a second")
    text = _table(list(lines.values()))
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
    """What one call costs the GPU and its host, and the first calls of a process."""
    record = read(SHOWN)
    rows = [columns[OURS] for columns in sizes(record).values() if OURS in columns]
    empty, warm = (record["cold start"][cache]["first call s"] for cache in ("empty", "warm"))
    return (
        _formatted(
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
        + f"\n\nThe first call of a process takes {empty:.1f} s where Triton's cache is empty, as "
        f"kernels are compiled then, and {warm:.1f} s where it is warm."
    )


def kernels() -> str:
    """A line for each operation, µs a call, ours and eager torch's, by size."""
    lines: dict[str, dict[str, str]] = {}
    by = {tuple(row[k] for k in KEYS["kernels"]): row for row in read(SHOWN)["kernels"]}
    for operation, _, tracks, frames in by:
        line = lines.setdefault(operation, {"µs: fasttracks / eager torch": operation})
        line[f"{tracks} × {frames}"] = " / ".join(
            _number(by.get((operation, backend, tracks, frames), {}).get("µs"), "")
            for backend in ("triton", "torch")
        )
    return _table(list(lines.values()))


def clips() -> str:
    """Real clips from video, on a CPU."""
    return _formatted(
        read("real_clips-base")["clips"],
        {
            "clip": "{clip}",
            "image": "{image}",
            "tracks × frames": "{tracks} × {frames}",
            "seen": "{seen:.0%}",
            "reprojection error: median": "{median px:.2f} px",
            "90 %": "{p90 px:.2f} px",
            "decode": "{decode s:.2f} s",
            "track": "{track s:.2f} s",
            "reconstruct": "{reconstruct s:.1f} s",
        },
    )


def viewer() -> str:
    """How large and how quick the page is."""
    record = read("viewer")
    return _formatted(
        [page | {"with": "with" if page["video"] else "without"} for page in record["pages"]],
        {
            "{tracks} tracks × {frames} frames".format_map(record): "{with} the video",
            "written in": "{written s:.2f} s",
            "size": "{MB:.2f} MB",
            "plays at": "{frames a second:.0f} frames a second",
            "its own work": "{own work, median ms:.1f} ms a frame",
        },
    )


def refinement() -> str:
    """Medians of each kind of generated clips, the network's answer → bundle-adjusted."""
    columns = {
        "AbsRel": "{absrel:.3f}",
        "of still points": "{absrel_still:.3f}",
        "ATE, % of the path": "{ate:.2f}",
        "RPE, ° a frame": "{rpe_rotation:.2f}",
        "reprojection, px": "{reprojection_median:.2f}",
    }
    lines = []
    for kind, ways in read("refinement-cpu")["kinds"].items():
        before, after = ways["forward"]["median"], ways["forward + bundle"]["median"]
        line = {"clips": kind}
        for label, form in columns.items():
            line[label] = f"{form.format_map(before)} → {form.format_map(after)}"
        line["tracker's own error, px"] = f"{after['tracks_median']:.2f}"
        line["seconds"] = f"{before['seconds']:.1f} → {after['seconds']:.1f}"
        lines.append(line)
    return _table(lines)


def refinement_time() -> str:
    """Means over the same clips on a GPU: what each way costs and brings."""
    record = read("refinement-h100")
    names = {"forward": "feed-forward", "finetune 100": "fine-tuned, 100 steps"}
    names["finetune 500"] = "fine-tuned, 500 steps"
    rows = []
    for way, found in record["error against seconds, on the same clips"].items():
        first, _, second = way.partition(" + ")
        rows.append(found["mean"] | {"way": names[first] + (", bundle-adjusted" if second else "")})
    columns = {
        "": "{way}",
        "seconds": "{seconds:.3f}",
        "AbsRel": "{absrel:.3f}",
        "of what moves": "{absrel_moving:.3f}",
        "ATE, % of the path": "{ate:.2f}",
        "RPE, ° a frame": "{rpe_rotation:.3f}",
        "reprojection, px": "{reprojection:.2f}",
    }
    speed = record["speed"]
    return (
        f"{_formatted(rows, columns)}\n\nWith {speed['tracks']} tracks × {speed['frames']} frames "
        f"bundle adjustment takes {speed['bundle ms, median']:.1f} ms, and fine-tuning does "
        f"{speed['fine-tuning, second call']['steps/s']:.0f} steps a second."
    )


def real_video() -> str:
    """Medians over real clips: a simple guess, the network's answer and bundle-adjusted."""
    if not (RESULTS / "real_video-base.json").is_file():
        return "Not measured yet; `python benchmarks/real_video.py FOLDER` writes the figures."
    record = read("real_video-base")

    def median(refine: str, column: str, lens: str = "known") -> str:
        table = f"refine {refine}, intrinsics {lens}"
        if column == "focal":  # found / true
            rows = record["by clip"].get(table, [])
            off = [100 * abs(row["focal"] - 1) for row in rows]
            value = statistics.median(off) if off else None
        else:
            value = record["medians"].get(table, {}).get(column)
        return "–" if value is None else f"{value:.2g}"

    lines = [
        {
            f"medians over {record['clips']} clips": label,
            "a simple guess": f"{median('none', guess)} ({says})" if guess else "",
            "feed-forward": median("none", column, lens),
            "bundle-adjusted": median("bundle", column, lens),
        }
        for label, column, guess, says, lens in (
            ("cameras: ATE, % of the path", "ate", "line", "straight line", "known"),
            ("cameras: RPE, ° a frame", "rpe_rotation", "", "", "known"),
            ("still points: AbsRel, %", "still", "still_flat", "equal depths", "known"),
            ("moving: AbsRel, %, a scale a frame", "frame", "frame_flat", "equal depths", "known"),
            ("moving: AbsRel, %, a scale a clip", "clip", "clip_flat", "equal depths", "known"),
            ("focal length, if not given: off by, %", "focal", "", "", "unknown"),
        )
    ]
    return _table(lines)


def tapnext() -> str:
    """A step of the tracker TAPNext, by points and image, each way's median."""
    lines = []
    for name, rows in read("tapnext-h100").items():
        if " queries at " in name:
            ms = {way: row.get("ms p50") for way, row in rows.items()}
            ours = rows["kernels"]
            line = {"points, image": name.replace(" queries at ", ", ")}
            for way in ("eager torch", "torch in a graph", "compiled torch in a graph"):
                line[way] = _number(ms.get(way), " ms")
            line |= {
                "fasttracks": f"**{_number(ms['kernels'], ' ms')}**",
                "error, p99": _number(ours["px p99"], " px"),
                "memory of a stream": _number(ours["session GB"], " GB"),
            }
            lines.append(line)
    return _table(lines)


def weights() -> str:
    """Held-out generated clips: means (medians)."""
    columns = {
        "AbsRel": "{absrel:.3f}",
        "of what moves": "{absrel_moving:.3f}",
        "all depths equal": "{flat:.3f}",
        "RPE, ° a frame": "{rpe_rotation:.2f}",
        "ATE, % of the path": "{ate:.1f}",
        "reprojection, px": "{reprojection:.1f}",
    }
    return _table(
        [
            {"clips": kind}
            | {
                label: f"{form.format_map(found['mean'])} ({form.format_map(found['median'])})"
                for label, form in columns.items()
            }
            for kind, found in read("sweeps-base")["kinds"].items()
        ]
    )


def clip_sizes() -> str:
    """Held-out casual clips by their number of tracks and frames: means."""
    sweeps = read("sweeps-base")["sweeps"]
    return _formatted(
        [
            found | {"size": f"{value} {name}"}
            for name in ("tracks", "frames")
            for value, found in sweeps[name].items()
        ],
        {
            "casual clips": "{size}",
            "AbsRel": "{absrel:.3f}",
            "RPE, ° a frame": "{rpe_rotation:.2f}",
            "ATE, % of the path": "{ate:.1f}",
        },
    )


def ablation() -> str:
    """Short training runs, one thing changed in each."""
    return _formatted(
        [found["all"] | {"name": name} for name, found in read("ablation")["runs"].items()],
        {
            "": "{name}",
            "AbsRel": "{absrel:.3f}",
            "of what moves": "{absrel_moving:.3f}",
            "RPE, ° a frame": "{rpe_rotation:.2f}",
            "ATE, % of the path": "{ate:.1f}",
            "reprojection, px": "{reprojection:.1f}",
        },
    )


def folders() -> str:
    """What `folders.py` found, a line for each part that has been measured."""
    found = {}
    for part in ("clips", "kills", "many", "gpus"):
        path = RESULTS / f"folders-{part}.json"
        found[part] = json.loads(path.read_text()) if path.is_file() else None
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


def long_clips() -> str:
    """Each way through long clips, medians; and what a stream's push takes."""
    record = read("long-h100")
    ways = {
        "whole": "`reconstruct`, bundle-adjusted",
        "unrefined": '`reconstruct`, `refine="none"`',
        "stream-bundle": "`Stream`, bundle-adjusted",
        "stream": "`Stream`",
        "one-pass": "one pass over all frames",
        "stitched": "windows of 20, stitched plainly",
    }
    lines = []
    for length in ("400 frames", "2000 frames"):
        found = record[length]["medians"]
        for way in ways.keys() & found.keys():
            row = found[way]
            lines.append(
                {
                    "clips": f"{row['clips']} of {length}",
                    "way": ways[way],
                    "ATE, % of the path": f"{row['ate']:.2f}",
                    "RPE, °": f"{row['rpe_rotation']:.3f}",
                    "scale drift, %": f"{row['scale_drift']:.1f}",
                    "still points, px": _number(row.get("still_reprojection"), ""),
                    "GPU memory, GB": f"{row['GB']:.1f}",
                }
            )
    order = list(ways.values())
    lines.sort(key=lambda line: (int(line["clips"].split()[2]), order.index(line["way"])))
    ms, adjusted = (record[name]["ms"] for name in ("latency", "latency-bundle"))
    return (
        f"{_table(lines)}\n\nA push of 256 tracks, window 50, takes {ms['p50']:.1f} ms in the "
        f"median (p99 {ms['p99']:.1f}), with bundle adjustment {adjusted['p50']:.1f} "
        f"({adjusted['p99']:.1f}), over {record['latency']['pushes']:,} pushes in memory that "
        "stays the same."
    )


def native() -> str:
    """The C library beside `Engine`, by size."""
    record = read("native-h100")
    lines = []
    for size, row in record["speed"].items():
        if isinstance(row, dict):
            p50, host = row["p50 ms"], row["host us"]
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
    return _table(lines)


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
                "`Engine`, H100": _number(
                    gpu.get((tracks, frames), {}).get(OURS, {}).get("p50 ms"), " ms"
                ),
                **{labels[kind]: _number(row.get("CPU s"), " s") for kind, row in rows.items()},
                "memory": " / ".join(
                    f"{row['peak memory GB']:.1f}" if row else "–" for row in rows.values()
                )
                + " GB",
                "largest difference": f"{max(errors):.0e}",
            }
        )
    return _table(lines)


_WAYS = {"parent": "kill -9 of the parent", "worker": "kill -9 of a worker", "ctrl-c": "Ctrl-C"}
_WHEN = ("after a quarter", "at the end")  # of a run of `folders.py many`

TABLES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "forward": forward,
    "latency": latency,
    "calls": calls,
    "kernels": kernels,
    "clips": clips,
    "viewer": viewer,
    "refinement": refinement,
    "refinement time": refinement_time,
    "real video": real_video,
    "tapnext": tapnext,
    "weights": weights,
    "clip sizes": clip_sizes,
    "ablation": ablation,
    "folders": folders,
    "long clips": long_clips,
    "native": native,
    "programs": programs,
}


def sizes(record: dict[str, Any]) -> dict[tuple[int, int], dict[str, Row]]:
    """Rows of the forward by (tracks, frames) and column."""
    found: dict[tuple[int, int], dict[str, Row]] = {}
    for row in record["forward"]:
        found.setdefault((row["tracks"], row["frames"]), {})[row["column"]] = row
    return found


def _formatted(rows: Iterable[Mapping[str, Any]], columns: dict[str, str]) -> str:
    """A line for each row; columns say by label how a row's values are written."""
    return _table(
        [{label: form.format_map(row) for label, form in columns.items()} for row in rows]
    )


def _table(lines: list[dict[str, str]]) -> str:
    """Markdown, without the columns that no line has anything in."""
    names = [name for name in lines[0] if any(line[name] != "–" for line in lines)]
    rows = [names, ["---"] * len(names), *([line[name] for name in names] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.3g}{unit}" if value < 100 else f"{value:.0f}{unit}"
