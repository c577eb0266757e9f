"""Fine-tuning of a network to a clip."""

import math

import pytest
import torch
from helpers import random_tracks, tiny_network

import fasttracks
from fasttracks.geometry import project
from fasttracks.learning import depth_change, unsupervised
from fasttracks.performance.sample import sample_inputs
from fasttracks.refine.finetune import finetune


def test_fine_tuning_lowers_the_loss_and_leaves_the_network_alone():
    network, tracks = tiny_network(dtype=torch.float32), random_tracks(9, 40, batch=2).float()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    options = {"steps": 60, "learning_rate": 1e-3, "at_once": 24}
    tuned, report = finetune(network, tracks, **options)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    with torch.no_grad():
        given = network(tracks)
        before = unsupervised(given, tracks).total
    assert torch.allclose(report.loss_before, before, rtol=1e-4)
    change = depth_change(tuned, tracks, given.points_camera[..., 2])
    assert torch.allclose(unsupervised(tuned, tracks).total + 2 * change, report.loss_after)
    assert (report.loss_after < 0.96 * before).all()
    assert report.steps == [60, 60]
    again, _ = finetune(network, tracks, **options)
    assert torch.equal(again.points, tuned.points)
    alone, _ = finetune(network, tracks[1:], **options)
    assert torch.allclose(alone.points[0], tuned.points[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_fine_tuning_keeps_the_best_and_stops_early():
    network, tracks = tiny_network(dtype=torch.float32), random_tracks(5, 8).float()
    wild, report = finetune(network, tracks, steps=1000, learning_rate=10.0)
    assert report.loss_after <= report.loss_before
    assert report.steps[0] < 1000
    with torch.no_grad():
        given = network(tracks)
    if "kept" in report.outcome[0]:
        assert torch.equal(wild.points, given.points)
    assert wild.points.isfinite().all()


def test_a_known_focal_length_stays(monkeypatch):
    network, tracks = tiny_network(dtype=torch.float32), random_tracks(9, 40, batch=2).float()
    monkeypatch.setitem(vars(network.config), "predicts_focal", True)
    known = torch.tensor([True, False])
    tuned, report = finetune(network, tracks, known, steps=60, learning_rate=1e-3, at_once=24)
    assert (tuned.focal[0] == 1).all()
    assert (tuned.focal[1] != 1).all()
    assert (report.loss_after < report.loss_before).all()
    assert torch.equal(tuned.projection, project(tuned.points_camera, tuned.focal))


def test_depths_stay_near_the_networks_own(monkeypatch):
    network, tracks = tiny_network(dtype=torch.float32), random_tracks(9, 40).float()
    with torch.no_grad():
        depth = network(tracks).points_camera[..., 2]
    options = {"steps": 60, "learning_rate": 1e-3, "at_once": 24}
    held, _ = finetune(network, tracks, **options)
    monkeypatch.setattr("fasttracks.refine.finetune._DEPTH_WEIGHT", 0.0)
    free, _ = finetune(network, tracks, **options)
    changes = [depth_change(p, tracks, depth).item() for p in (held, free)]
    assert 0 < changes[0] < 0.5 * changes[1]


def test_depth_change_counts_what_is_observed():
    network, tracks = tiny_network(), random_tracks(5, 8)
    with torch.no_grad():
        given = network(tracks)
    depth = given.points_camera[..., 2].clamp(min=0.01)
    assert depth_change(given, tracks, depth).item() == 0
    doubled = torch.where(tracks[..., 2] > 0, 2 * depth, 100 * depth)
    assert depth_change(given, tracks, doubled).item() == pytest.approx(math.log(2))


@pytest.mark.gpu
def test_fine_tuning_is_replayed_in_bfloat16():
    network = fasttracks.load("base", device="cuda")
    tuned, report = finetune(network, sample_inputs(100, 20, "cuda"), steps=150, at_once=64)
    assert report.loss_after < report.loss_before
    assert tuned.points.isfinite().all()
