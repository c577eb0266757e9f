"""What the losses say, and whom they train."""

import math

import torch
from helpers import random_tracks, tiny_network

from fasttracks.geometry import Prediction, compose, project, to_camera
from fasttracks.learning import unsupervised


def scene(depth: float = 5.0) -> tuple[Prediction, torch.Tensor]:
    """Two still points, one of them seen, under a still camera; exact tracks."""
    basis = torch.zeros(1, 3, 2, 3, dtype=torch.float64)
    basis[0, 0] = torch.tensor([[0.5, 0.0, depth], [0.0, 1.0, depth]])
    coefficients = torch.tensor([[[1.0, 0.3, -0.2]] * 4], dtype=torch.float64)
    rotation = torch.eye(3, dtype=torch.float64).expand(1, 4, 3, 3)
    position = torch.zeros(1, 4, 3, dtype=torch.float64)
    focal = torch.ones(1, 4, dtype=torch.float64)
    points = compose(basis, coefficients)
    points_camera = to_camera(points, rotation, position)
    projection = project(points_camera, focal)
    motion = torch.full((1, 2), 0.1, dtype=torch.float64)
    prediction = Prediction(
        rotation, position, focal, coefficients, basis, motion, points, points_camera, projection
    )
    observed = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 4, 2)[..., None]
    return prediction, torch.cat([projection, observed], -1)


def test_exact_static_scene():
    losses = unsupervised(*scene())
    assert math.isclose(losses.static.item(), math.log(0.1))
    assert losses.reprojection.item() == 0
    assert losses.negative_depth.item() == 0
    assert losses.sparsity.item() == 0


def test_closed_forms():
    prediction, tracks = scene()
    offset = torch.tensor([0.03, 0.04, 0.0], dtype=torch.float64)
    tracks = tracks + offset  # 0.05 away, the unseen point too
    losses = unsupervised(prediction, tracks)
    assert math.isclose(losses.reprojection.item(), 0.05)
    assert math.isclose(losses.static.item(), math.log(0.1 + 0.05**2 / 0.1))
    assert math.isclose(losses.total.item(), losses.static.item() + 50 * 0.05)

    basis = prediction.basis.clone()
    basis[0, 1:] = 0.2
    assert math.isclose(unsupervised(prediction._replace(basis=basis), tracks).sparsity, 2.0)

    behind, tracks = scene(depth=-2.0)
    assert math.isclose(unsupervised(behind, tracks).negative_depth.item(), 4 * 2.0)


def test_unobserved_clip_is_finite():
    prediction, tracks = scene()
    tracks = tracks * torch.tensor([1.0, 1.0, 0.0])
    assert all(torch.isfinite(value).all() for value in unsupervised(prediction, tracks))


def test_moving_scene_trains_neither_cameras_nor_static_points():
    network = tiny_network()
    tracks = random_tracks(6, 9)
    prediction = network(tracks)
    parts = ("rotation", "position", "coefficients", "basis", "motion")
    for term, trained in {
        "static": {"rotation", "position", "basis", "motion"},
        "reprojection": {"coefficients", "basis"},
        "negative_depth": {"coefficients", "basis"},
        "sparsity": {"basis"},
    }.items():
        leaves = {name: getattr(prediction, name).detach().requires_grad_() for name in parts}
        moved = prediction._replace(**leaves)
        if term == "negative_depth":  # bring the points behind their cameras
            moved = moved._replace(position=leaves["position"] + 60)
        getattr(unsupervised(moved, tracks), term).sum().backward()
        touched = {n for n, leaf in leaves.items() if leaf.grad is not None and leaf.grad.any()}
        assert touched == trained, term
        static_gradient = leaves["basis"].grad[:, 0].any()
        assert static_gradient == (term == "static"), term


def test_each_clip_has_its_own_loss():
    network = tiny_network()
    tracks = random_tracks(5, 7, batch=3)
    together = unsupervised(network(tracks), tracks)
    for i in range(3):
        alone = unsupervised(network(tracks[i : i + 1]), tracks[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a[i], b[0], rtol=1e-10)
