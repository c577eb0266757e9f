"""Cameras and points that are known, what they see, and how far an estimate is from them."""

import torch

from fasttracks.evaluation.metrics import Estimate, Truth, metrics
from fasttracks.geometry import Prediction, compose, exponential, project, to_camera
from fasttracks.refine.cameras import Evidence, Scene

DOUBLE = {"dtype": torch.float64}


def world(frames=10, tracks=40, batch=1, seed=0, turn=0.04, path=0.25):
    """Still points about 12 away and a random smooth camera path, in float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, **DOUBLE)

    points = 2 * normal(batch, tracks, 3) + torch.tensor([0.0, 0.0, 12.0], **DOUBLE)
    position = path * normal(batch, frames, 3).cumsum(1)
    rotation = exponential(turn * normal(batch, frames, 3).cumsum(1))
    return Scene(rotation, position, torch.zeros(batch, **DOUBLE), points), g


def image(scene, points=None):
    """Camera points (B, T, N, 3) and projections (B, T, N, 2)."""
    points = scene.points[:, None] if points is None else points
    camera = to_camera(points, scene.rotation, scene.position)
    focal = scene.log_focal.exp()[:, None].expand(camera.shape[:2])
    return camera, project(camera, focal)


def prediction(scene, points=None, motion=None, bases=4):
    """What a network would say of a scene whose points stand still."""
    batch, frames = scene.rotation.shape[:2]
    static = scene.points if points is None else points
    basis = torch.cat([static[:, None], torch.zeros(batch, bases - 1, *static.shape[1:])], 1)
    coefficients = torch.zeros(batch, frames, bases, **DOUBLE)
    coefficients[..., 0] = 1
    motion = torch.full(static.shape[:2], 0.03, **DOUBLE) if motion is None else motion
    focal = scene.log_focal.exp()[:, None].expand(batch, frames)
    world = compose(basis, coefficients)
    camera = to_camera(world, scene.rotation, scene.position)
    projection = project(camera, focal)
    return Prediction(
        scene.rotation,
        scene.position,
        focal,
        coefficients,
        basis,
        motion,
        world,
        camera,
        projection,
    )


def disturbed(scene, g, turn=0.03, shift=0.3, depth=0.15):
    """The scene with cameras and points somewhat off, as a network gives it."""
    s = scene

    def normal(*shape):
        return torch.randn(*shape, generator=g, **DOUBLE)

    return s._replace(
        rotation=s.rotation @ exponential(turn * normal(*s.position.shape)),
        position=s.position + shift * normal(*s.position.shape),
        points=s.points * (depth * normal(*s.points.shape[:2], 1)).exp(),
    )


def evidence(scene, g, noise=0.0, scale=0.01, seen=1.0):
    """Loose expectations around a scene, and its tracks."""
    camera, positions = image(scene)
    batch, frames, tracks = camera.shape[:3]
    R = scene.rotation
    step = (R[:, :-1].mT @ scene.position.diff(dim=1)[..., None])[..., 0]
    ones = torch.ones(batch, frames - 1, **DOUBLE)
    weight = (torch.rand(batch, frames, tracks, generator=g) < seen).double()
    return Evidence(
        positions + noise * torch.randn(positions.shape, generator=g, **DOUBLE),
        weight,
        torch.full((batch, tracks), scale, **DOUBLE),
        camera[..., 2].log(),
        0.1 * weight,
        R[:, :-1].mT @ R[:, 1:],
        step,
        0.1 * ones,
        0.1 * ones,
        scene.log_focal,
        torch.full((batch,), 0.1, **DOUBLE),
        torch.ones(batch, **DOUBLE),
    )


def tracks_of(positions, seen=None):
    seen = torch.ones(positions.shape[:3]) if seen is None else seen
    return torch.cat([positions, seen.double()[..., None]], -1)


def errors(p, truth, points=None):
    """Metrics of a prediction against a scene."""
    camera, positions = image(truth, points)
    everything = torch.ones(camera.shape[:3], dtype=torch.bool)
    judged = Truth(
        camera,
        truth.rotation,
        truth.position,
        everything,
        everything[:, 0],
        positions,
        truth.log_focal.exp(),
    )
    estimate = Estimate(p.points_camera, p.rotation, p.position, p.projection)
    return {name: value.amax().item() for name, value in metrics(estimate, judged).items()}


def consistent(p):
    """Finite, and its parts agree."""
    assert all(value.isfinite().all() for value in p)
    assert torch.allclose(compose(p.basis, p.coefficients), p.points, atol=1e-3)
    assert (p.coefficients[..., 0] == 1).all()
    camera = to_camera(p.points, p.rotation, p.position)
    assert torch.allclose(camera, p.points_camera, atol=1e-3)
    identity = torch.eye(3).expand_as(p.rotation)
    assert torch.allclose(p.rotation @ p.rotation.mT, identity, atol=1e-5)
