"""Fine-tuning of a network to a clip."""

import pytest
import torch
from helpers import random_tracks, tiny_network

import fasttracks
from fasttracks.learning import unsupervised
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
        before = unsupervised(network(tracks), tracks).total
    assert torch.allclose(report.loss_before, before, rtol=1e-4)
    assert torch.allclose(unsupervised(tuned, tracks).total, report.loss_after)
    assert (report.loss_after < 0.95 * before).all()
    assert report.steps == [60, 60]
    again, _ = finetune(network, tracks, **options)
    assert torch.equal(again.points, tuned.points)
    alone, _ = finetune(network, tracks[1:], **options)
    assert torch.allclose(alone.points[0], tuned.points[1], rtol=1e-4, atol=1e-4)


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


@pytest.mark.gpu
def test_fine_tuning_is_replayed_in_bfloat16():
    network = fasttracks.load("base", device="cuda")
    tuned, report = finetune(network, sample_inputs(100, 20, "cuda"), steps=150, at_once=64)
    assert report.loss_after < report.loss_before
    assert tuned.points.isfinite().all()
