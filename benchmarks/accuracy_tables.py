"""The tables of `tables` that tell how accurate answers are."""

import statistics

from tabulating import LATEST, formatted, number, read, read_if_there, table


def clips() -> str:
    """Real clips from video, on a CPU."""
    return formatted(
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
    return table(lines)


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
        f"{formatted(rows, columns)}\n\nWith {speed['tracks']} tracks × {speed['frames']} frames "
        f"bundle adjustment takes {speed['bundle ms, median']:.1f} ms, and fine-tuning does "
        f"{speed['fine-tuning, second call']['steps/s']:.0f} steps a second."
    )


def real_video() -> str:
    """Medians over real clips: a simple guess, the network's answer and bundle-adjusted."""
    record = read_if_there("real_video-base")
    if record is None:
        return "Not measured yet; `python benchmarks/real_video.py FOLDER` writes the figures."

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
    return table(lines)


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
    return table(
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
    return formatted(
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
    return formatted(
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


def long_clips() -> str:
    """Each way through long clips, medians; and what a stream's push takes."""
    record = read(f"long-{LATEST}")
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
                    "still points, px": number(row.get("still_reprojection"), ""),
                    "GPU memory, GB": f"{row['GB']:.1f}",
                }
            )
    order = list(ways.values())
    lines.sort(key=lambda line: (int(line["clips"].split()[2]), order.index(line["way"])))
    ms, adjusted = (record[name]["ms"] for name in ("latency", "latency-bundle"))
    return (
        f"{record['device']}:\n\n{table(lines)}\n\n"
        f"A push of 256 tracks, window 50, takes {ms['p50']:.1f} ms in the "
        f"median (p99 {ms['p99']:.1f}), with bundle adjustment {adjusted['p50']:.1f} "
        f"({adjusted['p99']:.1f}), over {record['latency']['pushes']:,} pushes in memory that "
        "stays the same."
    )
