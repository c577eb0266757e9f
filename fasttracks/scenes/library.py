"""What scenes are made of: skeletons, recorded motion of people, recorded camera paths."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from fasttracks.errors import InputError
from fasttracks.scenes import skins
from fasttracks.scenes.sampling import frame_along, multiply, orthonormal, rotate_back
from fasttracks.scenes.skeletons import BONES, Skeletons, build

SPLITS = ("train", "validation")
_SKELETONS = 200  # 20 of each kind


class _Bone(NamedTuple):
    """A bone of a recorded person."""

    name: str
    parent: str
    start: str  # joints; those that weren't recorded are "top" of the head and "toe"
    end: str


_TRUNK = (
    _Bone("pelvis", "", "hip", "abdomen"),
    _Bone("belly", "pelvis", "abdomen", "chest"),
    _Bone("chest", "belly", "chest", "neck"),
    _Bone("neck", "chest", "neck", "head"),
    _Bone("head", "neck", "head", "top"),
)


def _limbs(side: str) -> tuple[_Bone, ...]:
    s = side
    return (
        _Bone(s + "Collar", "chest", s + "Collar", s + "Shldr"),
        _Bone(s + "Arm", s + "Collar", s + "Shldr", s + "ForeArm"),
        _Bone(s + "ForeArm", s + "Arm", s + "ForeArm", s + "Hand"),
        _Bone(s + "Hand", s + "ForeArm", s + "Hand", s + "Mid2"),
        _Bone(s + "Hip", "pelvis", s + "Buttock", s + "Thigh"),
        _Bone(s + "Thigh", s + "Hip", s + "Thigh", s + "Shin"),
        _Bone(s + "Shin", s + "Thigh", s + "Shin", s + "Foot"),
        _Bone(s + "Foot", s + "Shin", s + "Foot", s + "toe"),
    )


_PERSON = (*_TRUNK, *_limbs("r"), *_limbs("l"))


@dataclass
class People:
    """Recorded motion: J = BONES bones in F frames of all recordings, 30 a second, in metres.

    P skins can be worn with it.
    """

    rotation: Tensor  # (F, J, 3, 3) to the world, z up; bones run along z
    position: Tensor  # (F, J, 3)
    parent: Tensor  # (J,) int64, J for the root
    shape: Tensor  # (P, J, 3) length, radius at the start, at the end
    flatness: Tensor  # (P, J, 2)
    skin: Tensor  # (P,) int64 which of the reliefs a skin has, and mirrored:
    mirrored: Tensor  # (P,)
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
    reliefs: Tensor  # (K, J, R, S) of `skins`
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

    Raises:
        InputError: a folder with neither, or a damaged file.
    """
    held_out = SPLITS.index(split) == 1
    people, known = _recorded(data, "mocap_cmu.npz", _load_people, held_out)
    paths, more = _recorded(data, "camera_paths.npz", _load_paths, held_out)
    names = known + more
    if data is not None and people is None and paths is None:
        raise InputError(f"--data: {data} holds neither mocap_cmu.npz nor camera_paths.npz")
    skeletons = build(_SKELETONS, seed=SPLITS.index(split))
    return Library(
        split,
        _to(skeletons, device),
        _to(people, device),
        _to(paths, device),
        skins.reliefs(BONES).to(device),
        names,
    )


def _recorded(
    data: str | Path | None, name: str, read: Callable[..., Any], held_out: bool
) -> tuple[Any, tuple[str, ...]]:
    """What a file of a folder holds, with the names of its recordings, if it is there."""
    if data is None or not (file := Path(data, name)).exists():
        return None, ()
    try:
        return read(file, held_out)
    except Exception as error:  # a damaged file makes numpy, zipfile and torch raise whatever
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"--data: {file} is damaged or another version's ({why})") from None


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

    # The first frame is a skin at rest: how the recorded bones' frames are turned in it says how
    # they are to be turned so that the skin fits.
    people = [name for name in skins.load() if name.startswith("person")]
    worn = [skins.load()[name] for name in people]
    rest = {"leftEye": torch.tensor([0, 0.03, 2]), "rightEye": torch.tensor([0, -0.03, 2])}
    for bone, start, end in zip(_PERSON, worn[0].start, worn[0].end, strict=True):
        rest |= {bone.start: start, bone.end: end}
    place = {name: torch.cat([rest[name][None], at]) for name, at in place.items() if name in rest}

    hips = place["lThigh"] - place["rThigh"]
    shoulders = place["lShldr"] - place["rShldr"]
    eyes = place["leftEye"] - place["rightEye"]
    place["top"] = place["head"] + 0.1 * normalize(place["head"] - place["neck"], dim=-1)
    sides = {"pelvis": hips, "belly": hips + shoulders, "chest": shoulders, "head": eyes}
    forward = torch.linalg.cross(hips, hips.new_tensor([0, 0, 1.0]).expand_as(hips))

    rotations: dict[str, Tensor] = {}
    long: list[float] = []
    for bone in _PERSON:
        parent = rotations.get(bone.parent, torch.eye(3))
        if bone.end not in place:  # a toe, fixed to the shin, forward on average and down
            ahead = normalize(rotate_back(parent, forward), dim=-1).mean(0)
            ahead = normalize(ahead * torch.tensor([1, 1, 0]), dim=0) + torch.tensor([0, 0, 0.25])
            side = torch.linalg.cross(ahead, torch.tensor([0, 0, 1.0]))
            rotation = multiply(parent, frame_along(ahead, side).expand_as(parent))
            long.append(0.17)
        else:
            axis = place[bone.end] - place[bone.start]
            long.append(float(axis[1:].norm(dim=-1).median()))
            if bone.name in sides:
                rotation = frame_along(axis, sides[bone.name])
            else:
                rotation = _swing(parent, normalize(axis, dim=-1))
        rotations[bone.name] = rotation
    rotation = torch.stack([*rotations.values()], 1)
    side = skins.rest_frames(worn[0].end - worn[0].start)[..., 0]
    up = torch.tensor([0, 0, 1.0]).expand_as(side)
    rotation = multiply(rotation[1:], frame_along(up, rotate_back(rotation[0], side)))

    # All skeletons have BONES bones; the rest are specks in the hip.
    names = [bone.name for bone in _PERSON]
    parents = [names.index(bone.parent) if bone.parent else BONES for bone in _PERSON]
    empty = BONES - len(_PERSON)
    position = torch.stack([place[b.start][1:] for b in _PERSON], 1)
    shape = torch.stack([_dress(skin, torch.tensor(long)) for skin in worn])
    speck = torch.tensor([1e-3, 1e-4, 1e-4]).expand(len(worn), empty, 3)
    which = torch.tensor([skins.index(name) for name in people])
    counts = torch.tensor([len(clip) for clip in clips])
    return People(
        rotation=torch.cat([rotation, rotation[:, :1].expand(-1, empty, 3, 3)], 1),
        position=torch.cat([position, position[:, :1].expand(-1, empty, 3)], 1),
        parent=torch.tensor(parents + [0] * empty),
        shape=torch.cat([shape, speck], 1),
        flatness=pad(torch.stack([skin.flatness for skin in worn]), (0, 0, 0, empty), value=1.0),
        skin=which,
        mirrored=which + len(skins.load()),
        first=counts.cumsum(0) - counts,
        count=counts,
    ), tuple(used)


def _dress(skin: skins.Skin, lengths: Tensor) -> Tensor:
    """Lengths (J,) of recorded bones and, to their measure, the radii of a skin's: (J, 3)."""
    a, b = (skin.radii * lengths.sum() / (skin.end - skin.start).norm(dim=-1).sum()).unbind(-1)
    return torch.stack([lengths, a, b.clamp(a - 0.9 * lengths, a + 0.9 * lengths)], -1)


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
