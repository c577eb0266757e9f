"""Skeletons of procedural creatures: proportions drawn once, then varied for every clip.

Bodies face +x with +y to their left and +z up, and are about one unit long.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasttracks.scenes import skins

BONES = 32
TRUNK, LEG, HEAD, TAIL = range(4)  # parts whose size varies together
SIDE, UP = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_KINDS = (
    *("quadruped", "quadruped", "rodent", "rodent", "person", "insect", "snake", "tree"),
    *("dog", "rat"),
)


@dataclass
class Skeletons:
    """S skeletons of J = BONES bones. A bone runs along z of its own frame, its x to the side."""

    parent: Tensor  # (S, J) int64, J for the root
    offset: Tensor  # (S, J, 3) of the bone's start in its parent's frame
    rotation: Tensor  # (S, J, 3, 3) to the parent's frame, at rest
    shape: Tensor  # (S, J, 3) length, radius at the start, at the end
    flatness: Tensor  # (S, J, 2) stretch of the cross-section along x, y
    swing: Tensor  # (S, J, 3) rotation vector of the gait's swing
    phase: Tensor  # (S, J, 3) of the gait: constant, × front–rear, × left–right, radians
    wiggle: Tensor  # (S, J) how freely it moves otherwise, radians
    part: Tensor  # (S, J) int64
    leg: Tensor  # (S,) length of a leg, 0 without
    skin: Tensor  # (S,) int64 which of `skins.reliefs` it wears


class _Builder:
    """Collects the bones of one skeleton."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.bones: list[tuple[Any, ...]] = []

    def jitter(self, value: float, spread: float = 0.15) -> float:
        return float(value * np.exp(spread * self.rng.standard_normal()))

    def bone(
        self,
        parent: int,
        start: np.ndarray,
        end: np.ndarray,
        radii: tuple[float, float],
        part: int = TRUNK,
        flatness: tuple[float, float] = (1.0, 1.0),
        swing: float = 0.0,
        about: tuple[float, float, float] = SIDE,
        phase: tuple[float, float, float] = (0.0, 0.0, 0.0),
        wiggle: float = 0.1,
    ) -> int:
        """Add a bone between two places of the body; returns its index."""
        if len(self.bones) < BONES:
            a, b = radii
            length = max(float(np.linalg.norm(end - start)), 1e-3)
            b = float(np.clip(b, a - 0.9 * length, a + 0.9 * length))
            self.bones.append(
                (parent, start, end, length, a, b, part, flatness, swing, about, phase, wiggle)
            )
        return len(self.bones) - 1

    def chain(
        self,
        parent: int,
        start: np.ndarray,
        steps: list[np.ndarray],
        radii: list[float],
        **options: Any,
    ) -> int:
        """Bones end to end, `radii` at their ends; returns the last one's index."""
        for step, a, b in zip(steps, radii[:-1], radii[1:], strict=True):
            parent = self.bone(parent, start, start + step, (a, b), **options)
            start = start + step
        return parent

    def end(self, bone: int) -> np.ndarray:
        return self.bones[bone][2]

    def build(self, leg: float, skin: int = 0) -> dict[str, Tensor]:
        blank: tuple[Any, ...] = (0, np.zeros(3), np.array([0, 0, 1e-3]), 1e-3, 1e-4, 1e-4)
        blank += (TRUNK, (1.0, 1.0), 0.0, SIDE, (0.0, 0.0, 0.0), 0.0)
        bones = self.bones + [blank] * (BONES - len(self.bones))
        parent, start, end, length, a, b, part, flat, swing, about, phase, wiggle = (
            torch.as_tensor(np.array(column)) for column in zip(*bones, strict=True)
        )
        start[len(self.bones) :] = start[0]
        axis = torch.where((length <= 1e-3)[:, None], start.new_tensor(UP), end - start)
        world = skins.rest_frames(axis)
        inverse = world.mT[parent.clamp(max=BONES - 1)]
        root = parent < 0
        rotation = torch.where(root[:, None, None], world, inverse @ world)
        offset = (inverse @ (start - start[parent])[..., None])[..., 0]
        return {
            "parent": torch.where(root, BONES, parent),
            "offset": torch.where(root[:, None], 0.0, offset),
            "rotation": rotation,
            "shape": torch.stack([length, a, b], -1),
            "flatness": flat,
            "swing": (world.mT @ (swing[:, None] * about)[..., None])[..., 0],
            "phase": phase,
            "wiggle": wiggle,
            "part": part,
            "leg": torch.tensor(leg),
            "skin": torch.tensor(skin),
        }


def build(count: int, seed: int) -> Skeletons:
    """`count` skeletons of all kinds in turn, on the CPU."""
    rng = np.random.default_rng(seed)
    built = [_BUILD[_KINDS[i % len(_KINDS)]](_Builder(rng)) for i in range(count)]
    stacked = {f.name: torch.stack([b[f.name] for b in built]) for f in fields(Skeletons)}
    return Skeletons(**{k: v.float() if v.is_floating_point() else v for k, v in stacked.items()})


def _at(x: float, y: float, z: float) -> np.ndarray:
    return np.array([x, y, z], dtype=float)


def _quadruped(b: _Builder) -> dict[str, Tensor]:
    """Dog, cat, horse, sheep, bear: trunk, neck, head with snout and ears, tail, four legs."""
    u = b.rng.uniform
    return _four_legs(
        b,
        leg=u(0.35, 0.85),
        girth=u(0.1, 0.22),
        neck=u(0.15, 0.5),
        neck_angle=math.radians(u(0, 65)),
        skull=u(0.16, 0.28),
        tail=u(0.1, 0.7),
        tail_angle=math.radians(u(-70, 60)),
        tail_radius=u(0.02, 0.06),
        hunch=u(-0.04, 0.08),
    )


def _rodent(b: _Builder) -> dict[str, Tensor]:
    """Mouse, rat, rabbit: a hunched pear on short legs, nearly no neck."""
    u = b.rng.uniform
    return _four_legs(
        b,
        leg=u(0.15, 0.35),
        girth=u(0.16, 0.3),
        neck=u(0.06, 0.18),
        neck_angle=math.radians(u(-20, 30)),
        skull=u(0.18, 0.3),
        tail=u(0.1, 1.2),
        tail_angle=math.radians(u(-30, 20)),
        tail_radius=u(0.012, 0.03),
        hunch=u(0.05, 0.2),
    )


def _four_legs(
    b: _Builder,
    leg: float,
    girth: float,
    neck: float,
    neck_angle: float,
    skull: float,
    tail: float,
    tail_angle: float,
    tail_radius: float,
    hunch: float,
) -> dict[str, Tensor]:
    height, j = leg, b.jitter
    flat = (j(0.85), j(1.05))
    places: list[tuple[Any, ...]] = []  # start, end, radii and flatness of `_FOUR_LEGGED`
    # The spine runs from the pelvis to the shoulders.
    x, z = np.linspace(-0.5, 0.5, 4), height + hunch * np.array([0.2, 1, 0.8, 0])
    spine = [_at(*place) for place in zip(x, [0] * 4, z, strict=True)]
    radii = [j(girth), j(girth * 1.05), j(girth), j(girth * 0.95)]
    places += ((*ends, ab, flat) for ends, ab in zip(pairwise(spine), pairwise(radii), strict=True))

    plain = (1.0, 1.0)
    step = _at(math.cos(neck_angle), 0, math.sin(neck_angle)) * neck / 2
    radii = [girth * 0.75, j(girth * 0.6), j(girth * 0.55)]
    middle, top = spine[-1] + step, spine[-1] + 2 * step
    places += [(spine[-1], middle, radii[:2], plain), (middle, top, radii[1:], plain)]
    tilt = math.radians(b.rng.uniform(-40, 10))
    nose = _at(math.cos(tilt), 0, math.sin(tilt)) * skull
    places.append((top, top + nose / 2, (skull * 0.38, skull * 0.33), plain))
    places.append((top + nose / 2, top + nose, (skull * 0.26, skull * 0.14), plain))
    for side in (-1, 1):
        ear = top + _at(0, side * skull * 0.25, skull * 0.25)
        tip = ear + _at(-0.05, side * 0.2, j(0.35, 0.3)) * skull
        places.append((ear, tip, (skull * 0.12, skull * 0.04), (1.0, 0.5)))

    start = _at(-0.52, 0, z[0] + girth * 0.3)
    step = _at(-math.cos(tail_angle), 0, math.sin(tail_angle)) * tail / 4
    radii = list(np.linspace(tail_radius, tail_radius * 0.5, 5))
    for i, droop in enumerate((1, 0.8, 0.5, 0.3)):
        end = start + step * [1, 1, droop]
        places.append((start, end, radii[i : i + 2], plain))
        start = end

    thickness = j(0.25 * girth + 0.03)
    for rear in (0, 1):
        bend = j(0.25, 0.3) * (1 if rear else -1)
        for side in (-1, 1):
            foot = height * np.array([0.45, 0.4, 0.15])
            steps = [
                _at(bend * foot[0], 0, -foot[0]),
                _at(-1.6 * bend * foot[1], 0, -foot[1]),
                _at(0.5 * bend * foot[2], 0, -foot[2]),
                _at(thickness * 1.2, 0, -thickness * 0.2),
            ]
            radii = [thickness * share for share in (1.5, 1, 0.6, 0.55, 0.5)]
            start = _at(-0.45 if rear else 0.45, side * girth * 0.55, height - 0.05)
            for k, step in enumerate(steps):
                places.append((start, start + step, radii[k : k + 2], plain))
                start = start + step
    return _on_four_legs(b, places, leg)


def _on_four_legs(
    b: _Builder, places: list[tuple[Any, ...]], leg: float, skin: int = 0
) -> dict[str, Tensor]:
    """A creature that moves as all on four legs do, from its bones' starts, ends, radii and
    flatness in the order of `_FOUR_LEGGED`.
    """
    for (_, parent, motion), (start, end, radii, flatness) in zip(
        _FOUR_LEGGED, places, strict=True
    ):
        b.bone(parent, start, end, tuple(radii), flatness=tuple(flatness), **motion)
    return b.build(leg, skin)


def _four_legged() -> list[tuple[str, int, dict[str, Any]]]:
    """Name, parent and motion of the bones of what goes on four legs."""
    bones: list[tuple[str, int, dict[str, Any]]] = []

    def add(name: str, parent: str, **motion: Any) -> None:
        names = [bone[0] for bone in bones]
        bones.append((name, names.index(parent) if parent else -1, motion))

    # The spine bends sideways and up and down.
    lag = (0.5, 0, 0)
    add("trunk0", "", wiggle=0.05, phase=lag)
    add("trunk1", "trunk0", wiggle=0.15, phase=lag, swing=0.08, about=UP)
    add("trunk2", "trunk1", wiggle=0.15, phase=lag, swing=0.08)
    add("neck0", "trunk2", part=HEAD, wiggle=0.2)
    add("neck1", "neck0", part=HEAD, wiggle=0.2)
    add("skull", "neck1", part=HEAD, wiggle=0.3)
    add("snout", "skull", part=HEAD, wiggle=0.0)
    for side in "RL":
        add("ear" + side, "skull", part=HEAD, wiggle=0.1)
    for i in range(4):
        parent = f"tail{i - 1}" if i else "trunk0"
        add(f"tail{i}", parent, part=TAIL, swing=0.15, about=UP, wiggle=0.3)
    limbs = (
        ("trunk2", ("upper_arm", "lower_arm", "hand", "finger")),
        ("trunk0", ("upper_leg", "lower_leg", "foot", "toe")),
    )
    for rear, (trunk, limb) in enumerate(limbs):
        for left, side in enumerate("RL"):
            parent = trunk
            for part, swing, lag_of in zip(limb, (0.5, 0.5, 0.3), (0.0, 1.3, 2.0), strict=False):
                phase = (lag_of, math.pi * rear, math.pi * left)
                name = f"{part}_{side}"
                add(name, parent, part=LEG, swing=swing, phase=phase, wiggle=0.06)
                parent = name
            add(f"{limb[-1]}_{side}", parent, part=LEG, wiggle=0.05)
    return bones


_FOUR_LEGGED = _four_legged()


def _measured(b: _Builder, name: str) -> dict[str, Tensor]:
    """A body as it was measured, its parts longer or shorter and all of it thicker or thinner."""
    skin = skins.load()[name]
    rows = [skin.names.index(bone) for bone, _, _ in _FOUR_LEGGED]
    start, end, radii, flatness = (
        values[rows].double().numpy()
        for values in (skin.start, skin.end, skin.radii, skin.flatness)
    )
    # A unit is the trunk's length, as in the others; they stand on the ground at 0.
    unit = float(np.linalg.norm(end[:3] - start[:3], axis=1).sum())
    low = float(np.minimum(start[:, 2], end[:, 2]).min())
    factors = [b.jitter(1.0, 0.08) for _ in range(4)]
    girth = b.jitter(1.0, 0.1)
    places: list[tuple[Any, ...]] = []
    for i, (_, parent, motion) in enumerate(_FOUR_LEGGED):
        longer = factors[motion.get("part", TRUNK)]
        if parent < 0:
            begin = (start[i] - [0, 0, low]) / unit
        else:
            along = factors[_FOUR_LEGGED[parent][2].get("part", TRUNK)]
            begin = places[parent][0] + along * (start[i] - start[parent]) / unit
        step = longer * (end[i] - start[i]) / unit
        places.append((begin, begin + step, longer * girth * radii[i] / unit, flatness[i]))
    hips = [i for i, (bone, _, _) in enumerate(_FOUR_LEGGED) if bone == "upper_leg_R"]
    leg = factors[LEG] * (start[hips[0], 2] - low) / unit
    return _on_four_legs(b, places, leg, skins.index(name))


def _person(b: _Builder) -> dict[str, Tensor]:
    """Upright on two legs, with arms; also apes and, with a long neck, birds."""
    u, j = b.rng.uniform, b.jitter
    leg, girth, arm = u(0.4, 0.6), u(0.08, 0.14), u(0.3, 0.45)
    flat = (j(1.3), 1.0)
    spine = b.chain(
        -1,
        _at(0, 0, leg),
        [_at(0, 0, 0.13), _at(0, 0, 0.13), _at(0, 0, 0.14)],
        [girth, girth * 0.9, j(girth), girth * 0.7],
        flatness=flat,
        swing=0.06,
        about=UP,
        phase=(0.3, 0, 0),
        wiggle=0.12,
    )
    neck = b.chain(spine, b.end(spine), [_at(0, 0, j(0.06, 0.4))], [0.04, 0.04], part=HEAD)
    top = b.end(neck)
    b.bone(neck, top, top + _at(0.02, 0, 0.09), (j(0.06), j(0.06)), HEAD, wiggle=0.3)
    for side in (-1, 1):
        shoulder = b.end(spine) + _at(0, side * girth * 1.2, -0.02)
        opening = u(0.05, 0.4)
        bone, start = spine, shoulder
        for k, (share, r0, r1) in enumerate(((0.45, 0.035, 0.028), (0.38, 0.028, 0.02))):
            step = _at(0.1 * k, side * opening, -1) * share * arm
            bone = b.bone(
                bone,
                start,
                start + step,
                (r0, r1),
                LEG,
                swing=0.5,
                phase=(math.pi + k, 0, math.pi * (side > 0)),
                wiggle=0.5,
            )
            start = start + step
        b.bone(bone, start, start + _at(0.02, 0, -0.17 * arm), (0.022, 0.018), LEG, (1, 0.6))
        bone, start = 0, _at(0, side * girth * 0.7, leg)
        for k, (share, r0, r1) in enumerate(((0.48, 0.055, 0.04), (0.47, 0.038, 0.025))):
            step = _at(0.03 - 0.06 * k, 0, -1) * share * leg
            bone = b.bone(
                bone,
                start,
                start + step,
                (r0, r1),
                LEG,
                swing=(0.5, 0.45)[k],
                phase=(1.3 * k, 0, math.pi * (side > 0)),
                wiggle=0.15,
            )
            start = start + step
        b.bone(bone, start, start + _at(0.13, 0, -0.02), (0.028, 0.022), LEG, wiggle=0.1)
    return b.build(leg)


def _insect(b: _Builder) -> dict[str, Tensor]:
    """Insect, spider, crab: two or three trunk parts, 6 or 8 sideways legs."""
    u, j = b.rng.uniform, b.jitter
    height, girth, pairs = u(0.1, 0.35), u(0.1, 0.25), int(b.rng.integers(3, 5))
    trunk = b.bone(-1, _at(-0.2, 0, height), _at(0.2, 0, height), (girth, girth * 0.8))
    b.bone(trunk, b.end(trunk), b.end(trunk) + _at(0.2, 0, 0), (j(girth * 0.7), 0.08), HEAD)
    b.bone(
        trunk, _at(-0.2, 0, height), _at(-0.55, 0, height * j(1.0)), (girth, j(girth * 0.9)), TAIL
    )
    reach = u(0.3, 0.8)
    for pair in range(pairs):
        x = 0.25 - 0.5 * pair / (pairs - 1)
        for side in (-1, 1):
            bone, start = trunk, _at(x, side * girth * 0.6, height)
            fan = 1.5 * x
            for k, (share, rise) in enumerate(((0.5, 0.5), (0.6, -height / reach / 0.6 - 0.4))):
                step = _at(fan, side, rise) * share * reach
                radius = 0.05 - 0.02 * k
                bone = b.bone(
                    bone,
                    start,
                    start + step,
                    (radius, radius * 0.6),
                    LEG,
                    swing=0.35 * (k == 0),
                    about=(0.3 * side, 0, side),
                    phase=(0, math.pi * pair, math.pi * (side > 0)),
                    wiggle=0.1,
                )
                start = start + step
    return b.build(reach)


def _snake(b: _Builder) -> dict[str, Tensor]:
    """Snake, eel, worm, lizard without legs: a wave runs down a long chain."""
    count = int(b.rng.integers(10, 24))
    radius, waves, amplitude = b.rng.uniform(0.02, 0.08), b.rng.uniform(0.5, 2), 4.0 / count
    bone = -1
    for i in range(count):
        taper = radius * math.sqrt(max(0.1, math.sin(math.pi * (0.1 + 0.85 * i / count))))
        x = 0.5 - i / count
        bone = b.bone(
            bone,
            _at(x, 0, radius),
            _at(x - 1 / count, 0, radius),
            (taper, taper * 0.97),
            swing=amplitude,
            about=UP,
            phase=(-2 * math.pi * waves * i / count, 0, 0),
            wiggle=0.6 / count,
        )
    return b.build(0.0)


def _tree(b: _Builder) -> dict[str, Tensor]:
    """Nothing that lives: limbs that branch at random."""
    rng = b.rng
    bone = b.bone(-1, _at(0, 0, 0.4), _at(0.3, 0, 0.4), (0.15, b.jitter(0.12, 0.4)))
    for _ in range(int(rng.integers(6, BONES - 1))):
        parent = int(rng.integers(0, bone + 1))
        direction = rng.standard_normal(3)
        step = direction / np.linalg.norm(direction) * b.jitter(0.2, 0.5)
        radius = b.jitter(0.05, 0.4)
        bone = b.bone(
            parent,
            b.end(parent),
            b.end(parent) + step,
            (radius, b.jitter(radius, 0.3)),
            flatness=(b.jitter(1.0, 0.3), 1.0),
            swing=0.3 * rng.random(),
            about=tuple(rng.standard_normal(3) * 0.6),
            phase=(rng.uniform(0, 6), 0, 0),
            wiggle=0.3 * rng.random(),
        )
    return b.build(0.3)


_BUILD: dict[str, Callable[[_Builder], dict[str, Tensor]]] = {
    "quadruped": _quadruped,
    "rodent": _rodent,
    "person": _person,
    "insect": _insect,
    "snake": _snake,
    "tree": _tree,
    "dog": partial(_measured, name="dog"),
    "rat": partial(_measured, name="rat"),
}
