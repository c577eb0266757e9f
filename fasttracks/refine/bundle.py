"""Bundle adjustment of a prediction: cameras and static points, then the motion of the others.

Camera rotations R and positions t, one correction f of the focal length and static points X
minimise, for each clip of T frames and N tracks,

    Σ v / m⁴ · log(1 + |π(X) − u|² / σ²)                   reprojection of static points
    + Σ v / (m⁴ Σₜ v) · (log z − log ẑ)² / DEPTH²          prior on depths
    + Σ |log(ΔR̂ᵀ ΔR)|² / c² + |Δt − Δt̂|² / (c z̃)²         prior on camera steps
    + (log f)² / FOCAL²                                    prior on the focal length, if not known

where u, v are the tracks' image positions and visibility, hats mark what the network predicts, and

    σ  scale of a track's Cauchy distribution, fitted to its residuals between steps, at least NOISE
    m  mobility: a track's γ over STILL times the least γ of the clip, at least 1
    c  CAMERA times the least γ of the clip, which is about the network's own error
    z, z̃  depth of a point in a frame, and the clip's median depth.

The first term is the paper's static loss log(γ + r²/γ) (TracksTo4D, arXiv 2404.07097, section
3.3) with a γ that follows the residuals. The priors get weaker the further the scene is from what
the network predicts, and firm where there is no parallax. Points are eliminated by the Schur
complement (`cameras`). The start is also tried with its relief reversed: the bas-relief ambiguity.

Then, the cameras held, the low-rank motion is fitted to the tracks that no static point explains
(`motion`), with priors on their depths and accelerations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fasttracks.geometry import (
    Prediction,
    camera_steps,
    compose,
    exponential,
    project,
    rotation_angle,
    to_camera,
)
from fasttracks.graphs import replayed
from fasttracks.parallax import LEAST, SHARE, ray_spread
from fasttracks.refine.cameras import Evidence, Scene, adjust, choose
from fasttracks.refine.motion import Motion, Sight, adjust_motion, principal
from fasttracks.refine.positive_definite import has_kernels, solve

# Image offsets are in units of the focal length, thus about radians.
NOISE = 0.5 / 525  # least σ: half a pixel at a focal length of 525
DEPTH = 0.3  # standard deviation of the logarithm of the network's depths
FOCAL = 0.4  # and of that of its focal length
CAMERA = 1.5  # of its camera steps, over the least γ: radians, and median depths
STILL = 2.5  # over the least γ, the γ up to which a track counts as still
MOBILITY_POWER = 4  # of m, by which tracks that the network sees move count less
STATIC_SCALE = 6 * NOISE  # a track is static if its σ m is less
STATIC_FRAMES = 4  # and it is seen in so many frames
WITNESSES = 0.75  # power of what the network and the tracks say of motion together

HELD_DEPTH = 0.02  # in place of DEPTH where there is no parallax
HELD_FOCAL = 0.01  # and of FOCAL: a camera that turns still tells it, one that stands does not
CLEAR_PARALLAX = 12  # in median offsets of static tracks: enough to tell depth, however small

LEAST_STATIC = 8  # static tracks from a frame to the next, in most frames, to believe cameras
LEAST_SHARED = 3  # static tracks that any two parts of a clip share, or nothing tells how they lie
DOUBTED_CHANGE = 1.8  # least γ that camera turns differ from the network's, and
DOUBTED_SHARE = 0.45  # share of static tracks below it, where the network's answer is kept

MOVING_DEPTH = 0.02  # standard deviation of the log depth of what moves, over a whole track
UNSEEN = 0.1  # weight of the network's image positions in frames in which a moving track is lost
ACCELERATION = 0.01  # standard deviation of what moves, in median depths a frame²

_COARSE_ROUNDS, _COARSE_ITERATIONS = 2, 3
_FINE_ROUNDS, _FINE_ITERATIONS, _MOTION_ROUNDS = 3, 3, 2


class Report(NamedTuple):
    """How the adjustment of B clips went."""

    cost_before: Tensor  # (B,) minus the log likelihood of the tracks that are taken as static
    cost_after: Tensor  # (B,)
    iterations: int  # of the cameras, from each start and then from the best
    outcome: list[str]  # for each clip: how it ended, and what its tracks do not tell


def bundle(
    prediction: Prediction, tracks: Tensor, known_focal: Tensor
) -> tuple[Prediction, Report]:
    """Adjust a prediction to the tracks (B, T, N, 3) of u, v and visibility it was made from.

    known_focal (B,) bool: the focal length that normalised the tracks is the true one; else one
    correction a clip is found. A clip whose cost would not fall keeps its prediction. The first
    camera stays where it was, scale is about the prediction's; γ is by the network's and by what
    is found. float32 in and out; the best start is found in float32, and made accurate in
    float64. Finite whatever the tracks are.
    """
    *fields, before, after, how = adjust_all(*prediction, tracks, known_focal)
    iterations = _COARSE_ROUNDS * _COARSE_ITERATIONS + _FINE_ROUNDS * _FINE_ITERATIONS
    words = [outcome(row) for row in how.tolist()]
    return Prediction(*fields), Report(before, after, iterations, words)


def adjust_all(*inputs: Tensor) -> tuple[Tensor, ...]:
    """`bundle_tensors`, on a GPU by a graph of its own."""
    if has_kernels(inputs[0].device):
        return replayed(bundle_tensors, *inputs)
    return bundle_tensors(*inputs)


def bundle_tensors(*inputs: Tensor) -> tuple[Tensor, ...]:
    """What `bundle` does, from and to tensors: a prediction's fields and how it went.

    That is the cost before and after (B,), and (B, 7): whether the input was kept, whether for want
    of static tracks, the last step's gain, whether there is no parallax, the share of static
    tracks, the share of frames that few of them lead to from the one before, and whether they fail
    to link all frames. Waits for no device.
    """
    *fields, tracks, known_focal = inputs
    given = Prediction(*(value.float() for value in fields))
    network = Scene(
        given.rotation,
        given.position,
        given.focal.log().mean(1) * ~known_focal,
        given.basis[:, 0],
    )
    both = _Problem.of(
        Scene(*(torch.cat(pair) for pair in zip(network, _reversed(network), strict=True))),
        given.motion.repeat(2, 1),
        tracks.float().repeat(2, 1, 1, 1),
        known_focal.repeat(2),
    )
    rough, start = both.coarse()
    problem = _Problem.of(_double(start), given.motion.double(), tracks.double(), known_focal)
    scene, gain = problem.fine(_double(rough))
    scene = _placed(scene, _double(network))
    before, after = (likelihood(s, problem.evidence) for s in (_double(network), scene))
    scale = problem.scale(scene)
    static = problem.static(scale)
    motion = fit_motion(scene, given, tracks.double(), static, scale)

    adjusted = predicted(scene, motion, told(given.motion.to(scale.dtype), scale, static))
    finite = torch.stack([value.flatten(1).isfinite().all(1) for value in adjusted]).all(0)
    doubtful = problem.doubtful(scene, static)
    kept = ~((after < before) & finite) | doubtful
    result = Prediction(*(choose(kept, a, b) for a, b in zip(given, adjusted, strict=True)))
    flat = problem.flat(scene, static)
    after = torch.where(kept, before, after)
    share = static.double().mean(1)
    thin, apart = problem.links(static)
    how = torch.stack([v.double() for v in (kept, doubtful, gain, flat, share, thin, apart)], -1)
    return *result, before, after, how


def outcome(how: Sequence[float]) -> str:
    """In words: whether the input was kept, else how it ended and what is not known."""
    kept, doubtful, gain, flat, static, thin, apart = how
    if doubtful:
        return "too few static tracks to adjust cameras, kept the network's answer"
    if kept:
        return "no better cameras found, kept the network's answer"
    words = ["converged" if gain < 1e-3 else "not fully converged"]
    if apart:
        words = ["parts of the clip share hardly any static tracks, cameras are uncertain"]
    elif static < 0.1:
        words.append("hardly any static tracks, cameras are uncertain")
    elif thin > 0.1:
        words.append(f"few static tracks in {thin:.0%} of frames, cameras there are uncertain")
    if flat:
        words.append("no parallax, depths are the network's")
    return ", ".join(words)


def predicted(scene: Scene, motion: Motion, gamma: Tensor) -> Prediction:
    """A prediction, float32, from a scene's cameras, low-rank points and γ (B, N)."""
    rotation, position = scene.rotation.float(), scene.position.float()
    focal = scene.log_focal.exp().float()[:, None].expand(rotation.shape[:2])
    basis, coefficients = motion.basis.float(), motion.coefficients.float()
    points = compose(basis, coefficients)
    points_camera = to_camera(points, rotation, position)
    return Prediction(
        rotation,
        position,
        focal,
        coefficients,
        basis,
        gamma.float(),
        points,
        points_camera,
        project(points_camera, focal),
    )


def level_of(gamma: Tensor) -> Tensor:
    """The least γ (..., 1) of clips (..., N): the network's own error, in radians."""
    return torch.quantile(gamma, 0.005, dim=-1, keepdim=True).clamp(min=NOISE)


def mobility_of(gamma: Tensor, level: Tensor) -> Tensor:
    """γ (..., N) over what still tracks have, by `level_of`: 1 for these, up to 10."""
    # Where even the least γ is large, all may move.
    return (gamma / (STILL * level.clamp(max=10 * NOISE))).clamp(1, 10)


def evidence_of(
    start: Scene,
    tracks: Tensor,
    log_depth: Tensor,
    known: Tensor,
    level: Tensor,
    mobility: Tensor,
    middle: Tensor,
    known_focal: Tensor,
) -> Evidence:
    """What cameras and static points are held against.

    Args:
        start: whose camera steps and focal length are the network's.
        tracks: (B, T, N, 3).
        log_depth: (B, T, N) as the network sees it.
        known: (B, T, N) visibility where it does, 0 elsewhere.
        level: (B, 1), see `level_of`.
        mobility: (B, N), see `mobility_of`.
        middle: (B,) median depths.
        known_focal: (B,) bool.
    """
    turn, step = camera_steps(start.rotation, start.position)
    deviation = (CAMERA * level).expand(step.shape[:2])
    free = (~known_focal).to(start.log_focal.dtype)
    discount = mobility[:, None] ** MOBILITY_POWER
    return Evidence(
        tracks[..., :2],
        tracks[..., 2] / discount,
        torch.full_like(mobility, 10 * NOISE),
        log_depth,
        # One expectation a track, not one a frame: its errors are the same in all. Mobility
        # weighs both alike: a track that pulls less at cameras has its own best point still.
        known / discount / known.sum(1, keepdim=True).clamp(min=1) / DEPTH**2,
        turn,
        step,
        1 / deviation**2,
        1 / (deviation * middle[:, None]) ** 2,
        start.log_focal,
        torch.full_like(free, FOCAL**-2),
        free,
    )


def told(gamma: Tensor, scale: Tensor, static: Tensor) -> Tensor:
    """γ (B, N) by the network's and by the scale that was found, which err on different tracks.

    So what both say of a track, over what they say of static ones, counts more than the mean of
    their logarithms, though less than the sum, as they are not independent. Static tracks keep the
    network's level.
    """
    level, found = (
        torch.where(static, value, torch.nan).nanmedian(1, keepdim=True).values
        for value in (gamma, scale)
    )
    told = level * (gamma / level * scale / found) ** WITNESSES
    return torch.where(static.any(1, keepdim=True), told, gamma)


class _Problem(NamedTuple):
    """What cameras and static points are fitted to."""

    start: Scene
    evidence: Evidence
    visibility: Tensor  # (B, T, N)
    mobility: Tensor  # (B, N) 1 for a track that stands still as far as the network knows, or more
    spread: Tensor  # (B,) parallax as the network sees it

    @classmethod
    def of(cls, start: Scene, gamma: Tensor, tracks: Tensor, known_focal: Tensor) -> "_Problem":
        visibility = tracks[..., 2]
        depth = _in_front(to_camera(start.points[:, None], start.rotation, start.position)[..., 2])
        level = level_of(gamma)
        mobility = mobility_of(gamma, level)
        evidence = evidence_of(
            start, tracks, depth.log(), visibility, level, mobility, _median(depth), known_focal
        )
        spread = parallax(start, visibility, mobility < 2)
        return cls(start, evidence, visibility, mobility, spread)

    def coarse(self) -> tuple[Scene, Scene]:
        """The better half of the starts, adjusted roughly and as given.

        The second, reversed one only where there is parallax to tell it by.
        """
        scene, e = self.start, self.evidence
        damping = torch.full_like(e.log_focal, 1e-3)
        for _ in range(_COARSE_ROUNDS):
            e = self.weighed(scene, e.scale, 6, hold=False)
            scene, damping, _ = adjust(scene, e, damping.clamp(max=1e-2), _COARSE_ITERATIONS)
        first, second = likelihood(scene, e).view(2, -1)
        second_better = ((second < first) & ~(self.spread[: len(first)] < LEAST)) | first.isnan()
        best, start = (
            Scene(*(choose(second_better, b, a) for a, b in (v.chunk(2) for v in s)))
            for s in (scene, self.start)
        )
        return best, start

    def weighed(self, scene: Scene, scale: Tensor, iterations: int, hold: bool) -> Evidence:
        """The evidence with each track's scale, from `scale`, and trust in the network by how near
        the scene is to what it says: one Cauchy distribution a clip for cameras, and a narrower one
        a track for points that are farther than it says, as those at infinity are. `hold`: depths
        and focal length are held to the network's where there is no parallax, as along the valley
        that they span the cost hardly changes.
        """
        e = self.evidence
        scale = fit_scale(scene, e, scale, iterations)
        trust = 1 / (1 + self.change(scene)[:, None])
        depth = _in_front(to_camera(scene.points[:, None], scene.rotation, scene.position)[..., 2])
        share = e.depth_weight / e.depth_weight.sum(1, keepdim=True).clamp(min=1e-9)
        farther = (share * (depth.log() - e.log_depth)).sum(1, keepdim=True).clamp(min=0)
        firmness = 1 / (1 + (farther / DEPTH).square()).square()
        focal_weight = e.focal_weight
        if hold:
            held = self.flat(scene, self.static(scale))
            firmness = torch.where(held[:, None, None], (DEPTH / HELD_DEPTH) ** 2, firmness)
            focal_weight = torch.where(held, HELD_FOCAL**-2, focal_weight)
        return e._replace(
            scale=scale,
            focal_weight=focal_weight,
            depth_weight=firmness * e.depth_weight,
            turn_weight=trust * e.turn_weight,
            step_weight=trust * e.step_weight,
        )

    def flat(self, scene: Scene, static: Tensor) -> Tensor:
        """Clips (B,) without parallax: tracks tell no depth, though by their drift they seem to."""
        spread = torch.fmin(self.spread, parallax(scene, self.visibility, static))
        seen = static[:, None] & (self.visibility > 0)
        square = torch.where(seen, _square(scene, self.evidence), torch.nan)
        offset = square.nanmedian(2).values.nanmedian(1).values.sqrt().rad2deg()
        return spread < (CLEAR_PARALLAX * offset).clamp(max=LEAST)

    def change(self, scene: Scene) -> Tensor:
        """Mean square (B,) of how camera turns differ from the network's, in its deviations."""
        turn, _ = camera_steps(scene.rotation, scene.position)
        angle = rotation_angle(self.evidence.turn.mT @ turn)
        weighed = angle.square() * self.evidence.turn_weight
        return weighed.sum(1) / max(angle.shape[1], 1)

    def fine(self, scene: Scene) -> tuple[Scene, Tensor]:
        """The scene adjusted to the end, and the share (B,) that its last step took off."""
        e = self.evidence
        gain = torch.ones_like(e.log_focal)
        damping = torch.full_like(e.log_focal, 1e-4)
        for _ in range(_FINE_ROUNDS):
            e = self.weighed(scene, e.scale, 10, hold=True)
            scene, damping, gain = adjust(scene, e, damping.clamp(max=1e-3), _FINE_ITERATIONS)
        return scene, gain

    def scale(self, scene: Scene) -> Tensor:
        """Each track's scale (B, N) about its static point, to the end."""
        return fit_scale(scene, self.evidence, self.evidence.scale, 20)

    def static(self, scale: Tensor) -> Tensor:
        """Tracks (B, N) that a static point explains."""
        return (scale * self.mobility < STATIC_SCALE) & (self.visibility.sum(1) >= STATIC_FRAMES)

    def doubtful(self, scene: Scene, static: Tensor) -> Tensor:
        """Clips (B,) whose cameras hang on few tracks, or follow what may well move.

        The former: in most frames few static tracks lead to the next. The latter: most that do so
        move, and the others contradict the network by far more than it is usually wrong.
        """
        thin, _ = self.links(static)
        pairs = self.pairs()
        share = (pairs * static[:, None]).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
        far = CAMERA**2 * self.change(scene) > DOUBTED_CHANGE**2
        return (thin > 0.5) | ((share < DOUBTED_SHARE) & far)

    def pairs(self) -> Tensor:
        """Tracks (B, T - 1, N) that are seen in a frame and in the next; one frame is its own."""
        seen = self.visibility
        return seen[:, 1:] * seen[:, :-1] if seen.shape[1] > 1 else seen

    def links(self, static: Tensor) -> tuple[Tensor, Tensor]:
        """How well static tracks link frames (B,): the share of pairs of frames that share few, and
        whether the clip falls into two parts that share hardly any.
        """
        thin = (
            ((self.pairs() * static[:, None]).sum(2) < LEAST_STATIC)
            .to(self.visibility.dtype)
            .mean(1)
        )
        seen = self.visibility * static[:, None]
        before, after = seen.cummax(1).values, seen.flip(1).cummax(1).values.flip(1)
        across = (before[:, :-1] * after[:, 1:]).sum(2)
        return thin, (across < LEAST_SHARED).any(1)


def fit_motion(
    scene: Scene, given: Prediction, tracks: Tensor, static: Tensor, scale: Tensor
) -> Motion:
    """Low-rank points before the scene's cameras: `static` (B, N) ones those of the scene, the
    others fitted to their tracks (B, T, N, 3), as far away as `given` has them beside static ones.

    scale (B, N) of each track's offsets from its static point.
    """
    positions, visibility = tracks[..., :2], tracks[..., 2]
    frames, bases = given.coefficients.shape[1:]
    focal = scene.log_focal.exp()[:, None]
    # What moves is as far as the network says, in each frame's scale of the static points.
    network = given.points_camera.to(focal.dtype)
    depth = _in_front(network[..., 2])
    still = to_camera(scene.points[:, None], scene.rotation, scene.position)[..., 2]
    still = still.clamp(min=1e-3)
    ratio = torch.where(static[:, None] & (visibility > 0), (still / depth).log(), torch.nan)
    ratio = ratio.nanmedian(2, keepdim=True).values.nan_to_num()
    log_depth = torch.where(static[:, None], still, depth * ratio.exp()).log()
    zoom = focal[..., None, None]
    guess = zoom * network[..., :2] / depth[..., None]
    image = torch.where((visibility > 0)[..., None], positions, guess)
    rays = torch.cat([image / zoom, torch.ones_like(depth[..., None])], -1)
    camera = rays * log_depth.exp()[..., None]
    points = camera @ scene.rotation.mT + scene.position[:, :, None]
    points = torch.where(static[:, None, :, None], scene.points[:, None], points)

    # Coefficients are the principal components of what moves.
    components = principal(points, min(bases - 1, frames))
    coefficients = torch.ones_like(given.coefficients, dtype=focal.dtype)
    coefficients[..., 1:] = 0
    coefficients[..., 1 : 1 + components.shape[-1]] = components * frames**0.5
    ridge = 1e-3 * frames * torch.eye(bases, dtype=focal.dtype, device=focal.device)
    basis = solve(coefficients.mT @ coefficients + ridge, coefficients.mT @ points.flatten(2)).view(
        len(points), bases, -1, 3
    )
    basis[:, 0] = torch.where(static[..., None], scene.points, basis[:, 0])
    basis[:, 1:] = torch.where(static[:, None, :, None], 0.0, basis[:, 1:])

    middle = _median(log_depth).exp()[:, None]
    reach = (3 * scale).clamp(0.02, 1.0) * middle
    moves = (~static[:, None]).to(focal.dtype)
    return adjust_motion(
        Motion(coefficients, basis),
        Sight(
            scene.rotation,
            scene.position,
            focal.expand(-1, frames),
            image,
            moves * visibility.clamp(min=UNSEEN),
            torch.full_like(reach, 2 * NOISE),
            log_depth,
            (moves / (frames * MOVING_DEPTH**2)).expand_as(log_depth),
            reach,
            (1 / (frames * (ACCELERATION * middle) ** 2)).expand(static.shape),
        ),
        _MOTION_ROUNDS,
    )


def fit_scale(scene: Scene, evidence: Evidence, scale: Tensor, iterations: int) -> Tensor:
    """Each track's most likely Cauchy scale (B, N), no less than the noise.

    A fixed point of σ² = 2 mean(σ² r² / (σ² + r²)), from `scale`.
    """
    square, weight = _square(scene, evidence), evidence.weight
    if has_kernels(square.device):
        from fasttracks.kernels import fit_scale as kernel

        return kernel.fit_scale(square, weight.contiguous(), scale.contiguous(), iterations, NOISE)
    count = weight.sum(1).clamp(min=1e-9)
    variance = scale.square()
    for _ in range(iterations):
        v = variance[:, None]
        variance = (2 * (weight * v * square / (v + square)).sum(1) / count).clamp(min=NOISE**2)
    return variance.sqrt()


def likelihood(scene: Scene, evidence: Evidence) -> Tensor:
    """Minus the log likelihood (B,) of static tracks, each at its best scale."""
    scale = fit_scale(scene, evidence, torch.full_like(evidence.scale, 10 * NOISE), 20)
    terms = (scale / NOISE).log()[:, None] + torch.log1p(
        _square(scene, evidence) / scale.square()[:, None]
    )
    return (evidence.weight * terms).sum((1, 2))


def parallax(scene: Scene, visibility: Tensor, still: Tensor) -> Tensor:
    """Degrees (B,) that the views of still tracks (B, N) are spread over, those seen best."""
    spread = ray_spread(scene.points, scene.position, visibility).rad2deg()
    spread = torch.where(still & (visibility.sum(1) > 1), spread, torch.nan)
    return spread.nanquantile(SHARE, dim=1)


def _square(scene: Scene, evidence: Evidence) -> Tensor:
    """Squared offsets (B, T, N)."""
    camera = to_camera(scene.points[:, None], scene.rotation, scene.position)
    focal = scene.log_focal.exp()[:, None].expand(camera.shape[:2])
    return (project(camera, focal) - evidence.positions).square().sum(-1)


def _reversed(scene: Scene) -> Scene:
    """The scene with near and far exchanged as the middle camera sees them (Necker reversal).

    The other cameras move to its other side and turn so that what is at the median depth stays
    where it was in their images, and all else nearly.
    """
    middle = scene.rotation.shape[1] // 2
    rotation, position = scene.rotation[:, middle], scene.position[:, middle, None]
    camera = (scene.points - position) @ rotation
    depth = camera[..., 2:].clamp(min=1e-3)
    median = _median(depth[..., 0])[:, None, None]
    one = depth.new_ones(())
    across = torch.stack([-one, -one, one])
    moved = ((scene.position - position) @ rotation * across) @ rotation.mT + position
    pivot = median * rotation[:, None, :, 2] + position
    before, after = (normalize(pivot - place, dim=-1) for place in (scene.position, moved))
    axis = torch.linalg.cross(before, after)
    angle = torch.atan2(axis.norm(dim=-1), (before * after).sum(-1))
    return scene._replace(
        rotation=exponential(normalize(axis, dim=-1) * angle[..., None]) @ scene.rotation,
        position=moved,
        points=(camera * (median / depth) ** 2) @ rotation.mT + position,
    )


def _in_front(depth: Tensor) -> Tensor:
    """Depths (B, T, N), none below a hundredth of their median."""
    return depth.clamp(min=1e-3 + 1e-2 * _median(depth.abs())[:, None, None])


def _double(scene: Scene) -> Scene:
    return Scene(*(value.double() for value in scene))


def _placed(scene: Scene, start: Scene) -> Scene:
    """The scene, its first camera that of another."""
    turn = start.rotation[:, :1] @ scene.rotation[:, :1].mT
    here, there = scene.position[:, :1], start.position[:, :1]
    return scene._replace(
        rotation=turn @ scene.rotation,
        position=(scene.position - here) @ turn[:, 0].mT + there,
        points=(scene.points - here) @ turn[:, 0].mT + there,
    )


def _median(values: Tensor) -> Tensor:
    """Of each clip (B, ...), the median of its rows' medians, which needs no long sort."""
    while values.ndim > 1:
        values = values.median(-1).values
    return values
