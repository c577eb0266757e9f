"""What tracks are like, real and generated: `python benchmarks/track_statistics.py [FOLDER ...]`.

Each folder holds track files (.npz). With their columns come those of the generator's varieties,
and for these also what takes the truth of cameras and points. A cell is the 10, 50 and 90 %
quantile over clips. Pixels are those of a camera with a focal length of 500 px; jitter is told
from third differences along time, which smooth motion hardly has.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fasttracks import Tracks
from fasttracks.evaluation.metrics import Truth
from fasttracks.geometry import camera_steps, rotation_angle
from fasttracks.scenes.generator import generate, seeded
from fasttracks.scenes.library import load as load_library
from fasttracks.scenes.variety import CASUAL, TRIPOD, WALK, Variety

VARIETIES = {"all": Variety(), "casual": CASUAL, "tripod": TRIPOD, "walk": WALK}
PIXELS = 500.0
_AT_ONCE = 8  # clips
LATER = (5, 20, 49)  # frames


def of_tracks(tracks: Tensor) -> dict[str, float]:
    """What tracks (T, N, 3) of normalised u, v and visibility alone say."""
    place, seen = PIXELS * tracks[..., :2], tracks[..., 2] > 0
    step = place.diff(dim=0).norm(dim=-1)[seen[1:] & seen[:-1]]
    rough = place.diff(n=3, dim=0)[seen[3:] & seen[2:-1] & seen[1:-2] & seen[:-3]]
    found = {
        "motion, px a frame": step.median(),
        "jitter, px": 1.4826 * rough.abs().median() / 20**0.5,
    }
    for frames in LATER:
        if frames < len(tracks):
            found[f"seen {frames} frames on, %"] = (
                100 * seen[frames:][seen[:-frames]].float().mean()
            )
    found["seen in every frame, % of tracks"] = 100 * seen.all(0).float().mean()
    found["seen in under six frames, % of tracks"] = 100 * (seen.sum(0) < 6).float().mean()
    return {name: float(value) for name, value in found.items()}


def of_truth(truth: Truth) -> dict[str, float]:
    """What the truth of one clip (B = 1) says of its cameras, and of points where visible."""
    turn, step = camera_steps(truth.rotation.double(), truth.position.double())
    span = rotation_angle(truth.rotation[:, :1].mT @ truth.rotation[:, -1:])
    length = step.norm(dim=-1)
    path = length.sum()
    points, visible = truth.points_camera[0], truth.visible[0]
    ray = (truth.rotation[0] @ points.mT).mT
    ray = ray / ray.norm(dim=-1, keepdim=True)
    spread = ray.masked_fill(~visible[..., None], -torch.inf).amax(0)
    spread = spread - ray.masked_fill(~visible[..., None], torch.inf).amin(0)
    spread = torch.rad2deg(spread.norm(dim=-1))
    moving = truth.moving[0]
    near = ~moving & (spread > 0.5) & (visible.sum(0) >= 10)
    depth = points[..., 2][visible & near]
    of_movers = points[..., 2][visible & moving]
    found = {
        "camera rotation, ° a frame": torch.rad2deg(rotation_angle(turn)).median(),
        "camera rotation over the clip, °": torch.rad2deg(span),
        "steps along the view axis, %": 100 * (step[..., 2].abs() / (length + 1e-9)).median(),
        "straightness": (truth.position[0, -1] - truth.position[0, 0]).norm() / (path + 1e-9),
        "path / median still depth": path / _quantile(depth, 0.5),
        "parallax of still tracks, °": _quantile(spread[~moving & (visible.sum(0) >= 10)], 0.5),
        "still depth, 95 % / 5 %": _quantile(depth, 0.95) / _quantile(depth, 0.05),
        **{
            f"still depth, {share} %, over movers'": _quantile(depth, share / 100)
            / _quantile(of_movers, 0.5)
            for share in (5, 50, 95)
        },
        "tracks that move, %": 100 * moving.float().mean(),
    }
    return {name: float(value) for name, value in found.items()} | _of_bodies(truth)


def _of_bodies(truth: Truth) -> dict[str, float]:
    """Of each body with eight tracks or more, then the median over bodies."""
    assert truth.body is not None
    points, visible = truth.points_camera[0], truth.visible[0]
    world = points @ truth.rotation[0].mT + truth.position[0, :, None]
    rows = []
    for body in truth.body[0].unique():
        mine = truth.moving[0] & (truth.body[0] == body) & (visible.sum(0) >= 5)
        if mine.sum() < 8:
            continue
        depth, shown = points[:, mine, 2], visible[:, mine]
        image, row = truth.tracks[0][:, mine], {}
        middle = depth.masked_fill(~shown, torch.nan).nanmedian(1, keepdim=True).values
        row["flat"] = 100 * ((depth - middle).abs() / depth)[shown].mean()
        extent = [
            (part[s].quantile(0.95, 0) - part[s].quantile(0.05, 0)).amax()
            for part, s in zip(image, shown, strict=True)
            if s.sum() >= 5
        ]
        row["size"] = torch.stack(extent).median() if extent else torch.tensor(torch.nan)
        centre = world[:, mine].mean(1)
        row["speed"] = 100 * centre.diff(dim=0).norm(dim=-1).median() / middle.nanmedian()
        if len(world) > 10:
            moves = world[10:, mine] - world[:-10, mine]
            rigid = _rigid_part(world[:-10, mine], world[10:, mine])
            own = (moves - rigid).norm(dim=-1).mean() / moves.norm(dim=-1).mean()
            row["non-rigid"] = 100 * own
        rows.append({name: float(value) for name, value in row.items()})
    names = {
        "size": "a body's size, % of the focal length",
        "flat": "a body against a flat plane, AbsRel %",
        "non-rigid": "non-rigid share of its motion in 10 frames, %",
        "speed": "its speed a frame / distance, %",
    }
    scale = {"size": 100.0 / float(truth.focal)}
    return {
        label: scale.get(name, 1.0) * float(np.nanmedian([row.get(name, np.nan) for row in rows]))
        if rows
        else np.nan
        for name, label in names.items()
    }


def _rigid_part(before: Tensor, after: Tensor) -> Tensor:
    """Moves (T, N, 3) of the rigid motion that best takes points (T, N, 3) to others."""
    a, b = before.mean(1, keepdim=True), after.mean(1, keepdim=True)
    u, _, vt = torch.linalg.svd((after - b).mT @ (before - a))
    sign = torch.ones(len(u), 3)
    sign[:, 2] = torch.det(u @ vt).sign()
    turn = u @ (sign[..., None] * vt)
    return (before - a) @ turn.mT + b - before


def _quantile(values: Tensor, share: float) -> Tensor:
    return values.quantile(share) if len(values) else torch.tensor(torch.nan)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--focal", type=float, help="pixels, of files that don't say")
    parser.add_argument("--data", help="folder with mocap_cmu.npz and camera_paths.npz")
    parser.add_argument("--varieties", nargs="*", choices=VARIETIES, default=["casual", "walk"])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--tracks", type=int, default=256)
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()

    columns: dict[str, list[dict[str, float]]] = {}
    for folder in options.folders:
        clips = [Tracks.load(file) for file in sorted(folder.glob("*.npz"))]
        rows = columns.setdefault(folder.name, [])
        for clip in clips:
            camera = clip.camera().copy()
            if options.focal and clip.intrinsics is None:
                camera[:, (0, 1), (0, 1)] = options.focal
            rows.append(of_tracks(clip.inputs(camera)))
    library = load_library(options.data, "validation", "cpu") if options.varieties else None
    for name in options.varieties:
        assert library is not None
        variety = replace(VARIETIES[name], unknown_focal=0.0)
        rows = columns.setdefault(name, [])
        for begin in range(0, options.clips, _AT_ONCE):
            generator = seeded((options.seed << 32) + begin, "validation", "cpu")
            made = generate(
                min(_AT_ONCE, options.clips - begin),
                options.frames,
                options.tracks,
                library=library,
                generator=generator,
                variety=variety,
            )
            for i, clip in enumerate(made.tracks):
                one = Truth(*(v[i : i + 1] for v in made.truth if v is not None))
                one = one._replace(visible=one.visible & (clip[None, ..., 2] > 0))
                rows.append(of_tracks(clip) | of_truth(one))

    names = list(dict.fromkeys(n for rows in columns.values() for row in rows for n in row))
    print(f"{'':48}" + "".join(f"{name:>24}" for name in columns))
    for name in names:
        cells = [[row.get(name, np.nan) for row in rows] for rows in columns.values()]
        print(f"{name:48}" + "".join(f"{_cell(values):>24}" for values in cells))


def _cell(values: list[float]) -> str:
    if np.isnan(values).all():
        return ""
    return " / ".join(f"{v:.3g}" for v in np.nanquantile(values, (0.1, 0.5, 0.9)))


if __name__ == "__main__":
    main()
