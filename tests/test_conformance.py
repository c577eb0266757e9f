"""Reference and network against the released network's own answers."""

import warnings

import numpy as np
import pytest
import torch
from helpers import NAMES, relative, rule_weights, vectors

import fasttracks
from fasttracks import reference
from fasttracks.geometry import project, to_camera
from fasttracks.inputs import hold
from fasttracks.learning import unsupervised
from fasttracks.weights import convert

BOUND = {torch.float64: 2e-5, torch.float32: 2e-4}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Converted from a released .pt, by whether the focal length is predicted."""
    folder = tmp_path_factory.mktemp("released")
    checkpoint = {"model_state_dict": rule_weights(), "epoch": 7, "loss": 0.5}
    torch.save({**checkpoint, "optimizer_state_dict": {"state": {}}}, folder / "released.pt")
    paths = {focal: folder / f"focal-{focal}.safetensors" for focal in (False, True)}
    for focal, path in paths.items():
        convert(folder / "released.pt", path, predicts_focal=focal)
    return paths


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name,
            dtype,
            id=f"{name}-{dtype}",
            marks=[pytest.mark.slow] if "n100" in name and dtype == torch.float64 else [],
        )
        for name in NAMES
        for dtype in BOUND
    ],
)
def test_network_and_reference(name, dtype, models):
    truth = vectors(name)
    path = models["focal" in truth]
    network = fasttracks.load(path, device="cpu", precision="fp32").to(dtype)
    tracks = torch.from_numpy(truth["tracks"]).permute(2, 0, 1)[None].to(dtype)
    for prediction in (
        network(tracks),
        reference.forward(network.state_dict(), network.config, tracks),
    ):
        losses = unsupervised(prediction, tracks)
        static = to_camera(prediction.basis[:, :1], prediction.rotation, prediction.position)
        answers = {
            "points_world": prediction.points,
            "points_camera": prediction.points_camera,
            "depth": prediction.points_camera[..., 2],
            "rotation": prediction.rotation,
            "position": prediction.position,
            "basis": prediction.basis.permute(0, 2, 3, 1),
            "coefficients": prediction.coefficients,
            "motion_level": prediction.motion,
            "projection": prediction.projection,
            "projection_static": project(static, prediction.focal),
            "focal": prediction.focal,
            "loss": losses.total,
            "loss_reprojection_static": losses.static,
            "loss_reprojection": losses.reprojection,
            "loss_negative_depth": losses.negative_depth,
            "loss_sparsity": losses.sparsity,
        }
        errors = {key: relative(answers[key][0], truth[key]) for key in answers if key in truth}
        assert len(errors) == len(truth) - 2  # not the tracks, nor static_world: the basis has it
        assert max(errors.values()) <= BOUND[dtype], errors


@pytest.mark.parametrize("name", NAMES)
def test_public_path(name, models):
    """What `reconstruct` says is what the network says of the tracks, held where unseen."""
    truth = vectors(name)
    u, v, visibility = truth["tracks"].transpose(1, 2, 0)
    model = fasttracks.load(models["focal" in truth], device="cpu", precision="fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fasttracks.reconstruct(
            np.stack([u, v], -1), visibility.astype(bool), intrinsics=np.eye(3), model=model
        )
    inputs = hold(torch.from_numpy(truth["tracks"]).permute(2, 0, 1)[None].float())
    with torch.no_grad():
        p = model(inputs)
    answers = {
        "points": (result.points, p.points),
        "points_camera": (result.points_camera, p.points_camera),
        "rotation": (result.camera_to_world[:, :3, :3], p.rotation),
        "position": (result.camera_to_world[:, :3, 3], p.position),
        "basis": (result.basis, p.basis),
        "coefficients": (result.coefficients, p.coefficients),
        "motion": (result.motion, p.motion),
        "projection": (result.reprojection, p.projection),
        "focal": (result.intrinsics[:, 0, 0], p.focal),
    }
    errors = {name: relative(found, exact[0]) for name, (found, exact) in answers.items()}
    assert max(errors.values()) <= 1e-5, errors
