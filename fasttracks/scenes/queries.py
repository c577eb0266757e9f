"""Which pixels are tracked, and the points of the scene that are seen in them."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from fasttracks.geometry import MIN_DEPTH
from fasttracks.scenes import places, skins
from fasttracks.scenes.rays import first_hit
from fasttracks.scenes.sampling import Draw, constant, pick_frames, rotate, rotate_back
from fasttracks.scenes.scene import Lens, Scene
from fasttracks.scenes.skeletons import BONES
from fasttracks.scenes.variety import Variety

_EVERY = 20  # frames between the grids of queries, as `trackers.grid_queries` starts them
_SUNK = 0.8  # of its radius, skin that is under the rounded cone on a line of sight
_CELLS = 24  # of the finest grid, each way, or more where tracks are more


def place_queries(
    draw: Draw, variety: Variety, scene: Scene, lens: Lens, tracks: int
) -> tuple[Tensor, Tensor]:
    """Where tracks start: frames (B, N) and image coordinates (B, N, 2).

    Most are cells of grids on a few frames, taken without repetition.
    """
    batch, frames = scene.position.shape[:2]
    step = max(_EVERY, -(-frames // (variety.grids - 1)))
    usual = constant(tuple(sorted({*range(0, frames, step), frames - 1})), draw.device)
    count = len(usual)
    # The usual grids; one on the first, the middle or any frame; or any frames.
    plan = draw.pick(variety.starts, batch, 1)
    starts = draw.index(frames, batch, count)
    starts = torch.where(plan == 0, usual, starts)
    starts = torch.where(plan == 1, 0, starts)
    starts = torch.where(plan == 2, frames // 2, starts)
    # A plan with one start has one grid.
    used = torch.where((plan >= 1) & (plan <= 3), 1, count)[..., None, None]

    cells = max(_CELLS, math.isqrt(tracks) + 1)
    fine = draw.uniform((9, cells + 1), batch, 1, 1, 1).floor()
    cell = torch.arange(cells, device=draw.device)
    key = draw.unit(batch, count, cells, cells)
    row, column = cell[:, None], cell
    which = torch.arange(count, device=draw.device)[:, None, None]
    key = key - 2.0 * ((row >= fine) | (column >= fine) | (which >= used))
    key, taken = key.flatten(1).topk(tracks)
    centre = torch.stack([taken % cells, taken // cells % cells], -1) + 0.5
    grid = (2 * centre / fine[..., 0] - 1) * lens.extent[:, None]
    anywhere = draw.uniform((-1, 1), batch, tracks, 2) * lens.extent[:, None]
    free = (key < 0) | draw.chance(variety.random_pixels, batch, 1)
    pixel = torch.where(free[..., None], anywhere, grid)
    query = starts.gather(1, (taken // cells**2) % used[:, :, 0, 0])

    share = draw.uniform(variety.subject_share, batch, 1) * draw.chance(
        variety.on_subject, batch, 1
    )
    wanted = draw.chance(share, batch, tracks)
    on_body = _on_bodies(draw, scene, lens, query)
    inside = (on_body.abs() < lens.extent[:, None]).all(-1)
    return query, torch.where((wanted & inside)[..., None], on_body, pixel)


def _on_bodies(draw: Draw, scene: Scene, lens: Lens, query: Tensor) -> Tensor:
    """Image coordinates (B, N, 2) of places in bones, in frames (B, N); far out if behind."""
    bones = scene.body_bones
    shape = scene.solids.cones[:, :bones]
    height = scene.solids.position[:, 0, :bones, 2]
    area = (shape[..., 0] + shape[..., 1]) * shape[..., 1] * (height > -0.5 * places.AWAY)
    # The least of exponential variables is any one's in proportion to its rate.
    waits = -draw.unit(*query.shape, bones).clamp(min=1e-9).log() / (area[:, None] + 1e-9)
    bone = waits.argmin(-1)
    clip = torch.arange(len(query), device=query.device)[:, None]
    length, radius = (pick_frames(shape[..., i], bone)[..., None] for i in range(2))
    across = 0.7 * radius * draw.uniform((-1, 1), *query.shape, 2)
    local = torch.cat([across, length * draw.unit(*query.shape, 1)], -1)
    solids = scene.solids
    point = rotate(solids.rotation[clip, query, bone], local) + solids.position[clip, query, bone]
    camera = point - pick_frames(scene.position, query)
    camera = rotate_back(pick_frames(scene.rotation, query), camera)
    image = lens.focal[:, None, None] * camera[..., :2] / camera[..., 2:].clamp(min=MIN_DEPTH)
    return torch.where(camera[..., 2:] > MIN_DEPTH, image, torch.inf)


def attach(
    draw: Draw, variety: Variety, scene: Scene, lens: Lens, query: Tensor, pixel: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """World points (B, T, N, 3) of what the queries see, their slack (B, N, M), what they are on.

    The last (B, N) int64: one of M solids, or M + i for the i-th plane. A point is fixed to it;
    skin near the start of a bone also follows the bone's parent, as linear blend skinning does,
    and may then lie a little inside either: its slack.
    """
    solids = scene.solids
    clips, frames, count = solids.position.shape[:3]
    ray = torch.cat([pixel / lens.focal[:, None, None], torch.ones_like(pixel[..., :1])], -1)
    ray = rotate(pick_frames(scene.rotation, query), ray)
    eye = pick_frames(scene.position, query)
    depth, solid = first_hit(solids, scene.planes, query, eye, ray)

    still = torch.eye(3, device=draw.device).expand(clips, frames, 1, 3, 3)
    rotation = torch.cat([solids.rotation, still], 2)
    position = pad(solids.position, (0, 0, 0, 1))
    clip = torch.arange(clips, device=draw.device)[:, None]
    turn, base = rotation[clip, query, solid], position[clip, query, solid]
    local = rotate_back(turn, eye + depth[..., None] * ray - base)
    local, sunk = _on_skin(scene, solid, local)
    point = rotate(turn, local) + base

    # Relief: a smooth pattern that lifts surfaces towards the camera of the query.
    radius = torch.cat(
        [
            solids.cones[..., 1],
            solids.scale[:, solids.cones.shape[1] :].amin(-1),
            0.25 * scene.distance[:, None],
        ],
        1,
    ).gather(1, solid)
    waves = rotate(draw.normal(clips, 1, 3, 3) * 4, local / radius[..., None])
    pattern = (waves + 6 * draw.unit(clips, 1, 3)).sin().mean(-1) * 0.5 + 0.5
    lift = draw.uniform(variety.relief, clips, 1) * radius * pattern
    point = point - (lift / ray.norm(dim=-1)).minimum(0.1 * depth)[..., None] * ray

    parents = pad(scene.parent, (0, 1), value=count)
    parent = parents.gather(1, solid)
    soft = draw.chance(variety.soft, clips, 1) * draw.uniform((0.5, 1), clips, 1)
    time = torch.arange(frames, device=draw.device)[:, None]

    def carried(by: Tensor) -> tuple[Tensor, Tensor]:
        """The points as solids (B, N) carry them (B, T, N, 3), and in their frames (B, N, 3)."""
        own = rotate_back(rotation[clip, query, by], point - position[clip, query, by])
        there = clip[..., None], time, by[:, None]
        return rotate(rotation[there], own[:, None]) + position[there], own

    points, own = carried(solid)
    blended, _ = carried(parent)
    length = pad(solids.cones[..., 0], (0, count + 1 - solids.cones.shape[1]), value=1.0)
    along = own[..., 2] / length.gather(1, solid)
    weight = 0.5 * soft * (1 - along / 0.4).clamp(0, 1).square()
    weight = torch.where(parent == solid, 0.0, weight)[:, None, :, None]
    points = points + weight * (blended - points)

    every = torch.arange(count, device=draw.device)
    near = (solid[..., None] == every) | (parent[..., None] == every)
    near = near | (scene.parent[:, None] == solid[..., None])
    slack = (soft[..., None] * 0.4).maximum(sunk[..., None])
    thin = pad(solids.cones[..., 1:].amin(-1), (0, count - solids.cones.shape[1]))
    planes = scene.planes
    off = (points[:, 0, :, None] * planes.normal[:, None]).sum(-1) - planes.offset[:, None]
    surface = torch.where(solid == count, count + off.argmax(-1), solid)
    return points, near * slack * thin[:, None], surface


def _on_skin(scene: Scene, solid: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Places (B, N, 3) on solids (B, N), in the solids' frames, moved to their skins.

    Also how deep inside they may then be along a line of sight (B, N), in radii.
    """
    bare = solid >= scene.body_bones
    bone = torch.where(bare, 0, solid)
    skin = scene.skin.gather(1, bone // BONES)
    reliefs = scene.reliefs.flatten(0, 1)
    cones = pick_frames(scene.solids.cones, bone)
    scale = pick_frames(scene.solids.scale, bone)
    skin = torch.where(bare, 0, skin)
    moved = skins.lay(reliefs, skin * BONES + bone % BONES, cones, local, scale)
    dressed = skin > 0
    return torch.where(dressed[..., None], moved, local), dressed * _SUNK
