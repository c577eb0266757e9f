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
    compose,
    cross_matrix,
    project,
    to_camera,
)
from fasttracks.graphs import replayed
from fasttracks.parallax import LEAST, SHARE
from fasttracks.refine.cameras import Evidence, Scene, adjust, choose
from fasttracks.refine.evidence import (
    CAMERA,
    DEPTH,
    NOISE,
    Fit,
    evidence_of,
    fit_of,
    level_of,
    mobility_of,
)
from fasttracks.refine.motion import Motion, Sight, adjust_motion, principal
from fasttracks.refine.positive_definite import has_kernels, solve

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
    problem, rough = both.best()
    scene, gain = problem.fine(rough)
    network = Scene(*(value.double() for value in network))
    scene = _placed(scene, network)
    before = problem.fit(network, problem.evidence.scale, 20).misfit.sum(1)
    fit = problem.fit(scene, problem.evidence.scale, 20)
    after, static = fit.misfit.sum(1), problem.static(fit.scale)
    motion = fit_motion(scene, given, tracks.double(), static, fit.scale)

    adjusted = predicted(scene, motion, told(given.motion.double(), fit.scale, static))
    # What is not finite in any field is not in one of these.
    last = (adjusted.points_camera, adjusted.projection, adjusted.motion)
    finite = torch.stack([value.flatten(1).sum(1) for value in last]).sum(0).isfinite()
    thin, apart, doubtful = problem.links(static, fit.change)
    kept = ~((after < before) & finite) | doubtful
    result = Prediction(*(choose(kept, a, b) for a, b in zip(given, adjusted, strict=True)))
    flat = problem.flat(fit, static)
    after = torch.where(kept, before, after)
    share = static.double().mean(1)
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
    often: Tensor  # (B, N) tracks that are seen in enough frames to be static
    mobility: Tensor  # (B, N) 1 for a track that stands still as far as the network knows, or more
    spread: Tensor  # (B, N) degrees of parallax as the network sees it, NaN for tracks that move

    @classmethod
    def of(cls, start: Scene, gamma: Tensor, tracks: Tensor, known_focal: Tensor) -> "_Problem":
        visibility = tracks[..., 2].contiguous()
        depth = to_camera(start.points[:, None], start.rotation, start.position)[..., 2]
        depth, median = _in_front(depth)
        level = level_of(gamma)
        mobility = mobility_of(gamma, level)
        evidence = evidence_of(
            start, tracks, depth.log(), visibility, level, mobility, median, known_focal
        )
        often = visibility.sum(1) >= STATIC_FRAMES
        return cls(start, evidence, visibility, often, mobility, torch.full_like(gamma, torch.nan))

    def best(self) -> tuple["_Problem", Scene]:
        """Of two starts of each clip, which follow each other, that which ends better: its problem
        in float64, and the scene adjusted roughly.

        The second, reversed one only where there is parallax to tell it by.
        """
        scene, scale = self.start, self.evidence.scale
        damping = torch.full_like(scene.log_focal, 1e-3)
        spread = self.spread
        for i in range(_COARSE_ROUNDS):
            fit = self.fit(scene, scale, 6)
            if i == 0:
                still = self.often & (self.mobility < 2)
                spread = torch.where(still, fit.spread, torch.nan)
            evidence, scale = self.weighed(fit, hold=None), fit.scale
            scene, damping, _ = adjust(scene, evidence, damping.clamp(max=1e-2), _COARSE_ITERATIONS)
        first, second = self.fit(scene, self.evidence.scale, 20).misfit.sum(1).chunk(2)
        told = ~_narrow(spread.chunk(2)[0], torch.full_like(first, LEAST))
        second_better = ((second < first) & told) | first.isnan()

        def one(value: Tensor) -> Tensor:
            a, b = value.chunk(2)
            return choose(second_better, b, a).double()

        def same(value: Tensor) -> Tensor:
            return value.chunk(2)[0].double()

        e = Evidence(*(same(value) for value in self.evidence))
        e = e._replace(
            **{
                name: one(getattr(self.evidence, name))
                for name in ("log_depth", "turn", "step", "step_weight")
            }
        )
        problem = _Problem(
            Scene(*(one(value) for value in self.start)),
            e,
            same(self.visibility),
            self.often.chunk(2)[0],
            same(self.mobility),
            one(spread),
        )
        return problem, Scene(*(one(value) for value in scene))

    def fit(self, scene: Scene, scale: Tensor, iterations: int) -> Fit:
        """How a scene fits, the scales found from `scale`."""
        return fit_of(scene, self.evidence, self.visibility, scale, iterations)

    def weighed(self, fit: Fit, hold: Tensor | None) -> Evidence:
        """The evidence with each track's scale, and trust in the network by how near the scene is
        to what it says: one Cauchy distribution a clip for cameras, and a narrower one a track for
        points that are farther than it says, as those at infinity are. `hold` (B,): where depths
        and focal length are held to the network's as there is no parallax, along the valley that
        they span the cost hardly changes.
        """
        e = self.evidence
        trust = (1 + fit.change[:, None]).reciprocal()
        firmness, focal_weight = fit.firmness, e.focal_weight
        if hold is not None:
            firmness = torch.where(hold[:, None], (DEPTH / HELD_DEPTH) ** 2, firmness)
            focal_weight = torch.where(hold, HELD_FOCAL**-2, focal_weight)
        return e._replace(
            scale=fit.scale,
            focal_weight=focal_weight,
            depth_weight=firmness[:, None] * e.depth_weight,
            turn_weight=trust * e.turn_weight,
            step_weight=trust * e.step_weight,
        )

    def flat(self, fit: Fit, static: Tensor) -> Tensor:
        """Clips (B,) without parallax: tracks tell no depth, though by their drift they seem to."""
        seen = static[:, None] & (self.visibility > 0)
        square = torch.where(seen, fit.square, torch.nan)
        offset = square.nanmedian(2).values.nanmedian(1).values.sqrt().rad2deg()
        least = (CLEAR_PARALLAX * offset).clamp(max=LEAST)
        spread = torch.where(static, fit.spread, torch.nan)
        return _narrow(self.spread, least) | _narrow(spread, least)

    def fine(self, scene: Scene) -> tuple[Scene, Tensor]:
        """The scene adjusted to the end, and the share (B,) that its last step took off."""
        scale = self.evidence.scale
        gain = torch.ones_like(scene.log_focal)
        damping = torch.full_like(scene.log_focal, 1e-4)
        for _ in range(_FINE_ROUNDS):
            fit = self.fit(scene, scale, 10)
            scale = fit.scale
            evidence = self.weighed(fit, hold=self.flat(fit, self.static(scale)))
            scene, damping, gain = adjust(
                scene, evidence, damping.clamp(max=1e-3), _FINE_ITERATIONS
            )
        return scene, gain

    def static(self, scale: Tensor) -> Tensor:
        """Tracks (B, N) that a static point explains."""
        return (scale * self.mobility < STATIC_SCALE) & self.often

    def links(self, static: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How well static tracks link frames (B,): the share of pairs of frames that share few,
        whether the clip falls into two parts that share hardly any, and whether its cameras are
        doubtful: they hang on few tracks, or follow what may well move.

        The former: in most frames few static tracks lead to the next. The latter: most that do so
        move, and the others contradict the network by far more than it is usually wrong.
        """
        seen, still = self.visibility, static[:, None]
        # Seen in a frame and in the next; one frame is its own.
        pairs = seen[:, 1:] * seen[:, :-1] if seen.shape[1] > 1 else seen
        of_static = (pairs * still).sum(2)
        thin = (of_static < LEAST_STATIC).to(seen.dtype).mean(1)
        seen = seen * still
        before, after = seen.cummax(1).values, seen.flip(1).cummax(1).values.flip(1)
        across = (before[:, :-1] * after[:, 1:]).sum(2)
        share = of_static.sum(1) / pairs.sum((1, 2)).clamp(min=1)
        far = CAMERA**2 * change > DOUBTED_CHANGE**2
        doubtful = (thin > 0.5) | ((share < DOUBTED_SHARE) & far)
        return thin, (across < LEAST_SHARED).any(1), doubtful


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
    depth, _ = _in_front(network[..., 2])
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


def _narrow(spread: Tensor, least: Tensor) -> Tensor:
    """Clips (B,) of whose tracks' spreads (B, N), where not NaN, a SHARE and more are below."""
    return (spread < least[:, None]).sum(1) > SHARE * (spread >= 0).sum(1)


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
    before, after = normalize(pivot - torch.stack([scene.position, moved]), dim=-1)
    turn = cross_matrix(torch.linalg.cross(before, after))  # by the angle's sine
    cos = (before * after).sum(-1)[..., None, None]
    return scene._replace(
        rotation=scene.rotation + (turn + turn @ turn / (1 + cos)) @ scene.rotation,
        position=moved,
        points=(camera * (median / depth) ** 2) @ rotation.mT + position,
    )


def _in_front(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Depths (B, T, N), none below a hundredth of their median, and this (B,)."""
    median = _median(depth.abs())
    return torch.maximum(depth, 1e-3 + 1e-2 * median[:, None, None]), median


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
