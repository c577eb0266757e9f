"""What scenes are made of: skeletons, recorded motion of people, recorded camera paths."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fasttracks.training.sampling import frame_along, multiply, orthonormal, rotate_back
from fasttracks.training.skeletons import BONES, Skeletons, build

SPLITS = ("train", "validation")
_SKELETONS = 160  # 20 of each kind


class _Bone(NamedTuple):
    """A bone of a recorded person."""

    name: str
    parent: str
    start: str  # joints; those that weren't recorded are "top" of the head and "toe"
    end: str
    radii: tuple[float, float]  # at its ends, in metres
    flatness: tuple[float, float] = (1.0, 1.0)  # stretch of the cross-section


_TRUNK = (
    _Bone("pelvis", "", "hip", "abdomen", (0.12, 0.115), (1.35, 0.95)),
    _Bone("belly", "pelvis", "abdomen", "chest", (0.115, 0.12), (1.3, 0.95)),
    _Bone("chest", "belly", "chest", "neck", (0.13, 0.09), (1.35, 1.0)),
    _Bone("neck", "chest", "neck", "head", (0.055, 0.055)),
    _Bone("head", "neck", "head", "top", (0.085, 0.09), (0.9, 1.1)),
)


def _limbs(side: str) -> tuple[_Bone, ...]:
    s = side
    return (
        _Bone(s + "Collar", "chest", s + "Collar", s + "Shldr", (0.07, 0.065)),
        _Bone(s + "Arm", s + "Collar", s + "Shldr", s + "ForeArm", (0.055, 0.043)),
        _Bone(s + "ForeArm", s + "Arm", s + "ForeArm", s + "Hand", (0.043, 0.028)),
        _Bone(s + "Hand", s + "ForeArm", s + "Hand", s + "Mid2", (0.035, 0.022), (1.1, 0.6)),
        _Bone(s + "Hip", "pelvis", s + "Buttock", s + "Thigh", (0.1, 0.095)),
        _Bone(s + "Thigh", s + "Hip", s + "Thigh", s + "Shin", (0.088, 0.06)),
        _Bone(s + "Shin", s + "Thigh", s + "Shin", s + "Foot", (0.058, 0.036)),
        _Bone(s + "Foot", s + "Shin", s + "Foot", "toe", (0.045, 0.03), (1.0, 0.8)),
    )


_PERSON = (*_TRUNK, *_limbs("r"), *_limbs("l"))


@dataclass
class People:
    """Recorded motion: J = BONES bones in F frames of all recordings, 30 a second, in metres."""

    rotation: Tensor  # (F, J, 3, 3) to the world, z up; bones run along z
    position: Tensor  # (F, J, 3)
    parent: Tensor  # (J,) int64, J for the root
    shape: Tensor  # (J, 3) length, radius at the start, at the end
    flatness: Tensor  # (J, 2)
    first: Tensor  # (C,) the recordings' first frames
    count: Tensor  # (C,) and how many they have


@dataclass
class Paths:
    """Recorded camera paths: F frames of all paths, 30 a second."""

    rotation: Tensor  # (F, 3, 3) camera to world
    position: Tensor  # (F, 3)
    first: Tensor  # (C,)
    count: Tensor  # (C,)
    weight: list[float]  # how often each is taken


@dataclass
class Library:
    """What scenes of one split are made of, on one device."""

    split: str
    skeletons: Skeletons
    people: People | None
    paths: Paths | None
    names: tuple[str, ...]  # of the recordings in it

    @property
    def device(self) -> torch.device:
        return self.skeletons.parent.device


def load(data: str | Path | None, split: str, device: str | torch.device) -> Library:
    """The library of a split, "train" or "validation". The two have no creature or recording in
    common.

    Args:
        data: a folder with `mocap_cmu.npz` and `camera_paths.npz`. Without one of them, or
            without a folder, scenes are procedural in that part.
        split: "train" or "validation".
        device: where scenes will be made.
    """
    held_out = SPLITS.index(split) == 1
    people = paths = None
    names: tuple[str, ...] = ()
    if data is not None and (file := Path(data, "mocap_cmu.npz")).exists():
        people, used = _load_people(file, held_out)
        names += used
    if data is not None and (file := Path(data, "camera_paths.npz")).exists():
        paths, used = _load_paths(file, held_out)
        names += used
    skeletons = build(_SKELETONS, seed=SPLITS.index(split))
    return Library(split, _to(skeletons, device), _to(people, device), _to(paths, device), names)


def _to(record: Any, device: str | torch.device) -> Any:
    if record is None:
        return None
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return type(record)(
        **{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
    )


def _load_people(file: Path, held_out: bool) -> tuple[People, tuple[str, ...]]:
    with np.load(file) as data:
        recordings = {name: data[name] for name in sorted(data.files) if "/" in name}
        # Partners of one dance were recorded together, so they are equally long and held out
        # together.
        lengths = list(dict.fromkeys(len(clip) for clip in recordings.values()))
        held = set(lengths[5::6])
        used = [name for name, clip in recordings.items() if (len(clip) in held) == held_out]
        clips = [recordings[name][1:] for name in used]  # the first frame is no motion: a T
        names = [str(name) for name in data["names"]]
    joints = torch.from_numpy(np.concatenate(clips)).float() / 1000
    joints = joints[..., [2, 0, 1]]  # z up
    place = dict(zip(names, joints.unbind(1), strict=True))

    hips = place["lThigh"] - place["rThigh"]
    shoulders = place["lShldr"] - place["rShldr"]
    eyes = place["leftEye"] - place["rightEye"]
    place["top"] = place["head"] + 0.1 * normalize(place["head"] - place["neck"], dim=-1)
    sides = {"pelvis": hips, "belly": hips + shoulders, "chest": shoulders, "head": eyes}
    forward = torch.linalg.cross(hips, hips.new_tensor([0, 0, 1.0]).expand_as(hips))

    rotations: dict[str, Tensor] = {}
    shapes = []
    for bone in _PERSON:
        parent = rotations.get(bone.parent, torch.eye(3))
        if bone.end == "toe":  # not recorded: fixed to the shin, forward on average and down
            ahead = normalize(rotate_back(parent, forward), dim=-1).mean(0)
            ahead = normalize(ahead * torch.tensor([1, 1, 0]), dim=0) + torch.tensor([0, 0, 0.25])
            side = torch.linalg.cross(ahead, torch.tensor([0, 0, 1.0]))
            rotation = multiply(parent, frame_along(ahead, side).expand_as(parent))
            length = 0.17
        else:
            axis = place[bone.end] - place[bone.start]
            length = float(axis.norm(dim=-1).median())
            if bone.name in sides:
                rotation = frame_along(axis, sides[bone.name])
            else:
                rotation = _swing(parent, normalize(axis, dim=-1))
        rotations[bone.name] = rotation
        a, b = bone.radii
        shapes.append((length, a, min(max(b, a - 0.9 * length), a + 0.9 * length)))

    # All skeletons have BONES bones; the rest are specks in the hip.
    names = [bone.name for bone in _PERSON]
    parents = [names.index(bone.parent) if bone.parent else BONES for bone in _PERSON]
    empty = BONES - len(_PERSON)
    counts = torch.tensor([len(clip) for clip in clips])
    return People(
        rotation=torch.stack([*rotations.values(), *[rotations["pelvis"]] * empty], 1),
        position=torch.stack([place[b.start] for b in _PERSON] + [place["hip"]] * empty, 1),
        parent=torch.tensor(parents + [0] * empty),
        shape=torch.tensor(shapes + [(1e-3, 1e-4, 1e-4)] * empty),
        flatness=torch.tensor([bone.flatness for bone in _PERSON] + [(1.0, 1.0)] * empty),
        first=counts.cumsum(0) - counts,
        count=counts,
    ), tuple(used)


def _swing(parent: Tensor, axis: Tensor) -> Tensor:
    """Frames (F, 3, 3) along `axis` (F, 3), turned from the parent's frame the shortest way.

    The shortest way from the mean direction has no twist and jumps nowhere that a joint goes.
    """
    there = rotate_back(parent, axis)
    rest = normalize(there.mean(0), dim=0).expand_as(there)
    cross = torch.linalg.cross(rest, there)
    cos = (rest * there).sum(-1, keepdim=True).clamp(min=-0.99)
    x, y, z = cross.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    swing = torch.eye(3) + skew + multiply(skew, skew) / (1 + cos)[..., None]
    side = torch.tensor([1.0, 0, 0]) if rest[0, 0].abs() < 0.9 else torch.tensor([0, 1.0, 0])
    start = frame_along(rest, side.expand_as(rest))
    return orthonormal(multiply(multiply(parent, swing), start))


def _load_paths(file: Path, held_out: bool) -> tuple[Paths, tuple[str, ...]]:
    """Every fourth RealEstate10K path and the last third of the TUM path are held out."""
    with np.load(file) as data:
        walks = sorted(name for name in data.files if name.startswith("re10k/"))
        used = [name for i, name in enumerate(walks) if (i % 4 == 3) == held_out]
        poses = []
        for name in used:
            matrix = torch.from_numpy(data[name])
            rotation = matrix[:, :, :3].mT
            position = -(rotation @ matrix[:, :, 3:])[..., 0]
            # Their 16 frames are a fraction of a second apart; 8 steps between two make them 4 s.
            poses.append((_spline(rotation, 8), _spline(position, 8)))
        time, position, rotation = (
            torch.from_numpy(data[f"tum_fr1_xyz/{key}"]) for key in ("t", "C", "R_c2w")
        )
    seam = 2 * len(time) // 3
    own = slice(seam, None) if held_out else slice(0, seam)
    time, position, rotation = time[own], position[own], rotation[own]
    wanted = torch.arange(float(time[0]), float(time[-1]), 1 / 30, dtype=time.dtype)
    after = torch.searchsorted(time, wanted).clamp(1, len(time) - 1)
    weight = ((wanted - time[after - 1]) / (time[after] - time[after - 1])).float()
    poses.append(
        (
            torch.lerp(rotation[after - 1], rotation[after], weight[:, None, None]),
            torch.lerp(position[after - 1], position[after], weight[:, None]),
        )
    )
    counts = torch.tensor([len(position) for _, position in poses])
    return Paths(
        rotation=orthonormal(torch.cat([rotation for rotation, _ in poses])),
        position=torch.cat([position for _, position in poses]),
        first=counts.cumsum(0) - counts,
        count=counts,
        weight=[1.0] * len(used) + [2.0 * len(used)],
    ), (*used, "tum_fr1_xyz" + ("[2/3:]" if held_out else "[:2/3]"))


def _spline(values: Tensor, steps: int) -> Tensor:
    """Rows (F, ...) with steps − 1 more between two: a Catmull–Rom spline."""
    padded = torch.cat([2 * values[:1] - values[1:2], values, 2 * values[-1:] - values[-2:-1]])
    at = torch.arange((len(values) - 1) * steps + 1) / steps
    low = at.floor().clamp(max=len(values) - 2).long()
    t = (at - low).reshape(-1, *[1] * (values.ndim - 1))
    p0, p1, p2, p3 = (padded[low + i] for i in range(4))
    return p1 + 0.5 * t * (
        p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0))
    )
