"""Training on small runs: it learns, resumes, survives bad batches, and needs no truth."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_network

import fasttracks
from fasttracks import Tracks
from fasttracks.backends import TORCH
from fasttracks.cli.main import main
from fasttracks.errors import InputError
from fasttracks.evaluation.metrics import FOCAL_LENGTH, Truth
from fasttracks.inputs import hold
from fasttracks.learning import forward, unsupervised
from fasttracks.scenes.library import load as load_library
from fasttracks.scenes.variety import ASSUMED_FOCAL, CASUAL, WALK, Variety
from fasttracks.training import loop
from fasttracks.training.loop import cut, fitting, train
from fasttracks.training.muon import Muon
from fasttracks.training.run import Run, Schedule, start
from fasttracks.training.sources import recordings, scenes
from fasttracks.training.supervision import supervised
from fasttracks.weights import save

CPU = torch.device("cpu")
LIBRARY = load_library(None, "train", CPU)
SHORT = Schedule(steps=8, warm_up=2, shapes=((2, 6, 12), (1, 9, 10)), learning_rate=1e-3)


@pytest.fixture(scope="module")
def source():
    return scenes(LIBRARY, seed=3)


def tiny_run(schedule=SHORT):
    return Run(tiny_network(dtype=torch.float32), schedule)


def random_tracks(shape):
    """Any tracks (B, T, N, 3)."""
    inputs = 0.3 * torch.randn(*shape, 3, generator=torch.Generator().manual_seed(0))
    inputs[..., 2] = 1
    return inputs


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_stopped_run_goes_on_with_the_same_curve(source, tmp_path):
    options = {"validation": {"v": [source((2, 6, 12), 99)]}, "report_every": 1}
    train(tiny_run(), source, tmp_path / "whole", validate_every=8, **options)

    def until_five(shape, step):
        if step == 5:
            raise KeyboardInterrupt
        return source(shape, step)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(), until_five, tmp_path / "parts", validate_every=4, **options)
    resumed = Run.load(tmp_path / "parts/run.pt", CPU)
    assert resumed.step == 4
    train(resumed, source, tmp_path / "parts", validate_every=8, **options)

    whole, parts = log_of(tmp_path / "whole"), log_of(tmp_path / "parts")
    assert [line["step"] for line in parts] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    for a, b in zip(whole[-3:], parts[-3:], strict=True):
        for name in ("total", "points", "rotation", "gradient", "learning rate"):
            assert math.isclose(a[name], b[name], rel_tol=1e-4, abs_tol=1e-5), name
    assert set(whole[-1]["validation"]["v"]) >= {"absrel", "ate", "rpe_rotation", "reprojection"}
    written = tmp_path / "parts/weights.safetensors"
    weights = fasttracks.load(written, device="cpu", precision="fp32")
    averaged = Run.load(tmp_path / "parts/run.pt", CPU).averaged().state_dict()
    for name, value in weights.state_dict().items():
        assert torch.allclose(value, averaged[name], atol=1e-3, rtol=1e-3), name


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny_run(replace(SHORT, steps=2)), source, folder, validation={})
    return folder / "run.pt"


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def edited(path, **changes):
    state = torch.load(path, weights_only=True)
    for name, change in changes.items():
        state[name] = change(state[name])
    torch.save(state, path)


def renamed_first(state):
    return {"x" if i == 0 else n: t for i, (n, t) in enumerate(state.items())}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, content: path.write_bytes(b""),
        lambda path, content: path.write_bytes(b"no checkpoint"),
        lambda path, content: path.write_bytes(content[: len(content) // 2]),
        *(
            lambda path, content, part=part: path.write_bytes(
                flipped(content, int(part * len(content)))
            )
            for part in (0.3, 0.5, 0.7)
        ),
        lambda path, content: torch.save([1, 2], path),
        lambda path, content: torch.save({"config": {}}, path),
        lambda path, content: edited(path, step=lambda _: "two"),
        lambda path, content: edited(path, step=lambda _: 10**9),
        lambda path, content: edited(path, config=lambda c: c | {"width": 16384, "rounds": 64}),
        lambda path, content: edited(path, config=lambda c: c | {"width": 2 * c["width"]}),
        lambda path, content: edited(path, schedule=lambda s: s | {"unknown": 1}),
        lambda path, content: edited(path, schedule=lambda s: s | {"steps": "many"}),
        lambda path, content: edited(path, schedule=lambda s: s | {"shapes": ((1, 2),)}),
        lambda path, content: edited(path, network=renamed_first),
        lambda path, content: edited(path, average=lambda a: {n: t[:1] for n, t in a.items()}),
        lambda path, content: edited(
            path, average=lambda a: {n: t.flatten()[:1].expand(10**9) for n, t in a.items()}
        ),
        lambda path, content: edited(
            path, network=lambda a: {n: t * math.nan for n, t in a.items()}
        ),
        lambda path, content: edited(path, optimizers=lambda o: o[:1]),
    ],
)
def test_a_damaged_run_is_an_error_of_one_line(checkpoint, damage, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(checkpoint.read_bytes())
    damage(path, checkpoint.read_bytes())
    with pytest.raises(InputError, match="a damaged checkpoint") as error:
        Run.load(path, CPU)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_weights_are_never_behind_the_run(source, tmp_path, monkeypatch):
    """Killed between the two files: what is gone on from has its weights, or writes them."""
    monkeypatch.setattr(Run, "save", lambda *_: (_ for _ in ()).throw(SystemExit(9)))
    with pytest.raises(SystemExit):
        train(tiny_run(replace(SHORT, steps=2)), source, tmp_path, validation={})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights.safetensors"]


def test_a_full_disk_ends_no_run_before_its_end(source, tmp_path, monkeypatch):
    full, save_run = [True], Run.save

    def saving(run, path):
        if full[0]:
            raise OSError(28, "No space left on device", str(path))
        save_run(run, path)

    monkeypatch.setattr(Run, "save", saving)
    options = {"validation": {}, "report_every": 1, "validate_every": 1}
    with (
        pytest.warns(UserWarning, match="not saved, training goes on: .*No space left"),
        pytest.raises(OSError, match="No space left"),
    ):
        train(tiny_run(replace(SHORT, steps=3)), source, tmp_path, **options)
    run = tiny_run(replace(SHORT, steps=3))

    def room_at_the_end(shape, step):
        full[0] = step < 2
        return source(shape, step)

    with pytest.warns(UserWarning, match="not saved, training goes on"):
        train(run, room_at_the_end, tmp_path, **options)
    assert Run.load(tmp_path / "run.pt", CPU).step == 3


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interrupted_run_saves_first(source, tmp_path, number, error):
    def interrupted(shape, step):
        if step == 3:
            os.kill(os.getpid(), number)
        return source(shape, step)

    said = []
    with pytest.raises(error):
        train(tiny_run(), interrupted, tmp_path, validation={}, say=said.append)
    assert "stopping after this step" in said[-1]
    assert re.match(r"a step takes .* s, the 5 left .* h; Ctrl-C or --minutes stop sooner", said[0])
    resumed = Run.load(tmp_path / "run.pt", CPU)
    assert resumed.step == 4
    fasttracks.load(tmp_path / "weights.safetensors", device="cpu")
    train(resumed, source, tmp_path, validation={})
    assert [line["step"] for line in log_of(tmp_path)] == [4, 8]


def test_clips_of_a_step_fit_a_cpu(monkeypatch):
    shapes = Schedule().shapes
    assert fitting(shapes, 10**9) == shapes
    for limit in (500, 8192, 40_000):
        for (b, t, n), (clips, frames, tracks) in zip(shapes, fitting(shapes, limit), strict=True):
            assert clips * frames * tracks <= max(limit, 8 * frames)
            assert 1 <= clips <= b and frames == t and 8 <= tracks <= n
    seen = []
    run = tiny_run(replace(SHORT, steps=2, shapes=((64, 6, 12),)))
    monkeypatch.setattr(loop, "cpu_tokens", lambda: 6 * 12 * 3)
    next(
        loop._batches(
            run, lambda shape, step: seen.append(shape) or (torch.zeros(3, 6, 12, 3), None), 0, 1
        )
    )
    assert seen == [(3, 6, 12)]


@pytest.mark.parametrize("holds", ["nothing", "damage", "no folder"])
def test_data_that_is_not_there_is_an_error(tmp_path, holds, capsys):
    data = tmp_path / "data"
    if holds != "no folder":
        data.mkdir()
    if holds == "damage":
        (data / "camera_paths.npz").write_bytes(b"PK\x03\x04 damage")
    assert main(["train", "-o", str(tmp_path / "run"), "--data", str(data), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "error: --data: " in said and said.count("\n") == 1


def test_an_output_that_can_not_be_written_is_found_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fasttracks.cli.train.start", None)
    (tmp_path / "file").write_text("")
    assert main(["train", "-o", str(tmp_path / "file/run"), "--device", "cpu"]) == 2
    assert "file" in capsys.readouterr().err


def test_steps_see_clips_of_every_length(source):
    inputs, truth = source((2, 8, 12), 1)
    lengths = set()
    for step in range(60):
        schedule = replace(SHORT, shortest=0.5)
        part, known = cut((inputs, truth), schedule, step)
        length = part.shape[1]
        begin = next(i for i in range(8) if torch.equal(known.position[:, 0], truth.position[:, i]))
        assert torch.equal(part, hold(inputs[:, begin : begin + length]))
        for name in ("points_camera", "rotation", "position", "visible", "tracks"):
            assert torch.equal(getattr(known, name), getattr(truth, name)[:, begin:][:, :length])
        assert known.moving is truth.moving
        lengths.add((begin, length))
    assert {length for _, length in lengths} == {4, 5, 6, 7, 8}
    assert len(lengths) > 10


@pytest.mark.slow
def test_supervision_learns_one_batch(tmp_path):
    known = Variety(unknown_focal=0.0)  # as the tiny network corrects none
    batch = scenes(LIBRARY, 0, (known,))((2, 6, 12), 1)
    run = tiny_run(replace(SHORT, steps=400, shapes=((2, 6, 12),), warm_up=10, learning_rate=3e-3))
    before = supervised(run.network(batch[0]), batch[1])
    train(run, lambda *_: batch, tmp_path, validation={}, report_every=50)
    after = supervised(run.network(batch[0]), batch[1])
    most = {"points": 0.7, "reprojection": 0.7, "relief": 0.7, "position": 0.9}
    for name, share in most.items():
        assert getattr(after, name).mean() < share * getattr(before, name).mean(), name


@pytest.mark.parametrize("device", [CPU, pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_is_compiled_once_for_all_shapes_is_the_network(device):
    from fasttracks.training.compiled import COMPILED

    network = tiny_network(dtype=torch.float32).to(device)
    parameters = list(network.parameters())
    # Eagerly, where compiling would take a minute.
    with torch.compiler.set_stance("force_eager" if device is CPU else "default"):
        for i, shape in enumerate(((2, 6, 10), (3, 11, 12), (4, 5, 7))):
            inputs = random_tracks(shape).to(device)
            found = []
            for backend in (TORCH, COMPILED):
                prediction = forward(network, inputs, backend)
                loss = unsupervised(prediction, inputs).total.sum()
                found.append([*prediction, *torch.autograd.grad(loss, parameters)])
            for expected, value in zip(*found, strict=True):
                difference = (value - expected).norm() / (expected.norm() + 1e-6)
                assert difference < (1e-4 if device is CPU else 0.1)  # bfloat16 there
            if i == 0 and device is not CPU:
                torch.compiler.set_stance("fail_on_recompile")


@pytest.mark.parametrize("spoil", [lambda loss: loss * math.nan, lambda loss: loss + math.inf])
def test_a_batch_that_is_not_finite_moves_nothing(spoil):
    run = tiny_run()
    loss = sum(p.sum() for p in run.network.parameters())
    before = {name: p.clone() for name, p in run.network.named_parameters()}
    run.update(spoil(loss))
    for name, parameter in run.network.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert torch.allclose(parameter, before[name], atol=1e-4), name  # weight decay at most
    assert all(torch.isfinite(value).all() for value in run.average.values())


@torch.no_grad()
def test_no_step_shakes_the_image():
    """A step of Adam's whose signs are noise, of any of its groups, with weights that are good."""
    run = start("base", Schedule(), CPU)
    inputs, _ = scenes(LIBRARY, 0)((2, 12, 40), 0)
    image = run.network(inputs).projection
    for group in run.optimizers[1].param_groups:
        step = run.schedule.learning_rate * group["relative"]
        kept = [p.clone() for p in group["params"]]
        for parameter in group["params"]:
            parameter.add_(step * torch.randn_like(parameter).sign())
        moved = FOCAL_LENGTH * (run.network(inputs).projection - image).norm(dim=-1)
        assert moved.median() < 1.5
        for parameter, value in zip(group["params"], kept, strict=True):
            parameter.copy_(value)


def test_muon_of_many_is_torchs_of_each():
    options = {"lr": 1e-2, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    shapes = [(96, 32)] * 3 + [(32, 64)] * 2 + [(32, 32)]
    start = [torch.randn(shape) for shape in shapes]
    ours = [torch.nn.Parameter(value.clone()) for value in start]
    theirs = [torch.nn.Parameter(value.clone()) for value in start]
    together, alone = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        together.step()
        alone.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert torch.allclose(a, b, atol=1e-3 * (b - before).abs().max().item())
    assert together.state_dict()["state"].keys() == alone.state_dict()["state"].keys()


def test_recordings_without_truth(tmp_path):
    rng = np.random.default_rng(0)
    clips = [
        Tracks(rng.uniform(0, 100, (t, n, 2)), image_size=(100, 100)) for t, n in ((4, 5), (30, 40))
    ]
    source = recordings(clips, 0, CPU)
    inputs, truth = source((3, 9, 12), 0)
    assert truth is None
    assert inputs.shape == (3, 9, 12, 3)
    assert torch.equal(inputs, source((3, 9, 12), 0)[0])
    assert not torch.equal(inputs, source((3, 9, 12), 1)[0])

    run = tiny_run(replace(SHORT, pose_warm_up=4))
    train(run, source, tmp_path, validation={}, report_every=1)
    log = log_of(tmp_path)
    assert "sparsity" not in log[3]
    assert "sparsity" in log[4]


def test_short_clips_are_repeated_there_and_back():
    clip = Tracks(np.arange(4)[:, None, None] * np.ones((4, 3, 2)), intrinsics=np.eye(3))
    inputs, _ = recordings([clip], 0, CPU)((1, 9, 3), 0)
    assert inputs[0, :, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]


def test_start_from_weights_of_any_size_learns_the_focal_length(tmp_path):
    network = tiny_network(dtype=torch.float32)
    assert not network.config.predicts_focal
    save(network, tmp_path / "w.safetensors", dtype=torch.float32)
    run = start(tmp_path / "w.safetensors", SHORT, CPU)
    assumed = {"predicts_focal": True, "assumed_focal": ASSUMED_FOCAL}
    assert run.network.config == replace(network.config, **assumed)
    inputs, _ = scenes(LIBRARY, 0)((1, 5, 10), 0)
    prediction, expected = run.network(inputs), network(inputs)
    assert torch.allclose(prediction.points, expected.points, atol=1e-4)
    assert (prediction.focal == 1).all()


@pytest.mark.slow
def test_a_deepened_network_says_nearly_the_same_and_can_learn_to_say_more():
    network = fasttracks.load("base", device="cpu", precision="fp32")
    known = replace(CASUAL, unknown_focal=0.0)
    inputs, truth = scenes(LIBRARY, 0, (known,))((2, 12, 40), 0)
    run = start("base", SHORT, CPU, rounds=6)
    deeper = {"rounds": 6, "assumed_focal": ASSUMED_FOCAL}
    assert run.network.config == replace(network.config, **deeper)
    prediction, expected = run.network(inputs), network(inputs)
    moved = FOCAL_LENGTH * (prediction.projection - expected.projection).norm(dim=-1)
    assert moved.median() < 1  # where the network itself is off by several
    assert (prediction.points - expected.points).norm() < 1e-3 * expected.points.norm()

    supervised(prediction, truth).total.mean().backward()
    for block in run.network.blocks:
        assert block.out.weight.grad.norm() > 0
        assert block.down.weight.grad.norm() > 0


def test_a_network_can_not_be_made_shallower():
    with pytest.raises(InputError, match="rounds: expected at least the 3 of the weights, found 2"):
        start("base", SHORT, CPU, rounds=2)


def test_supervision_of_the_truth_is_nearly_nothing(source):
    inputs, truth = source((2, 6, 12), 0)
    prediction = tiny_network(dtype=torch.float32)(inputs)
    exact = prediction._replace(
        points_camera=0.5 * truth.points_camera,
        rotation=truth.rotation,
        position=0.5 * truth.position,
        focal=truth.focal[:, None].expand(-1, 6),
    )
    assert isinstance(truth, Truth)
    losses = supervised(exact, truth)
    for name in ("points", "moving", "relief", "reprojection", "rotation", "position", "focal"):
        assert (getattr(losses, name) < 1e-3).all(), name


def test_a_clip_in_which_nothing_is_seen_has_a_finite_loss(source):
    inputs, truth = source((2, 6, 12), 0)
    truth = truth._replace(visible=truth.visible & torch.tensor([[[True]], [[False]]]))
    network = tiny_network(dtype=torch.float32)
    loss = supervised(network(inputs), truth).total
    gradients = torch.autograd.grad(loss.sum(), list(network.parameters()), allow_unused=True)
    assert loss.isfinite().all()
    assert all(g.isfinite().all() for g in gradients if g is not None)


def test_what_was_skipped_is_in_the_log(tmp_path, source):
    def once_broken(shape, step):
        inputs, truth = source(shape, step)
        return (inputs * math.nan if step == 1 else inputs), truth

    train(tiny_run(), once_broken, tmp_path, validation={}, report_every=3)
    first, *later = log_of(tmp_path)
    assert first["skipped"] == 1 and math.isfinite(first["total"])
    assert all("skipped" not in line for line in later)


def test_relief_is_that_within_each_body():
    _, truth = scenes(LIBRARY, 0, (WALK,))((3, 8, 60), 2)
    body = torch.arange(60).expand(3, -1) % 3
    truth = truth._replace(moving=torch.ones_like(truth.moving), body=body)
    prediction = tiny_network(dtype=torch.float32)(torch.zeros(3, 8, 60, 3))
    # Each body is nearer or further as a whole, by less than what is as good as infinite.
    depth = truth.points_camera[..., 2].clamp(min=1).minimum(torch.tensor(5.0))
    points = truth.points_camera * (depth / truth.points_camera[..., 2])[..., None]
    truth = truth._replace(points_camera=points)
    moved = points * torch.tensor([0.9, 1.0, 1.1])[truth.body][:, None, :, None]
    rough = points * (1 + 0.1 * torch.randn(3, 8, 60, 1))
    found = [supervised(prediction._replace(points_camera=p), truth) for p in (moved, rough)]
    assert (found[0].moving > 0.02).all()
    assert (found[0].relief < 1e-4).all()
    assert (found[1].relief > 0.04).all()


def test_reprojection_is_no_less_for_points_that_are_too_near(source):
    inputs, truth = source((2, 6, 12), 0)
    prediction = tiny_network(dtype=torch.float32)(inputs)
    depth = truth.points_camera[..., 2:]
    points = torch.cat([truth.points_camera[..., :2] + 0.1 * depth, depth], -1)
    off = prediction._replace(points_camera=points, focal=truth.focal[:, None].expand(-1, 6))
    # The median depth, which sets the scale, stays.
    far = depth > 1.2 * depth[truth.visible].median()
    assert far.any()
    nearer = off._replace(points_camera=torch.where(far, 0.9, 1.0) * points)
    found = [supervised(p, truth).reprojection for p in (off, nearer)]
    torch.testing.assert_close(*found)


def test_gradients_stay_finite_where_points_are_behind_cameras(source):
    inputs, truth = source((2, 6, 12), 1)
    network = tiny_network(dtype=torch.float32)
    with torch.no_grad():
        network.camera.bias[2] = 15.0  # the scene is behind all cameras
    supervised(network(inputs), truth).total.mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_two_processes_train_as_one_with_the_clips_of_both(source, tmp_path):
    script = Path(__file__).parent / "train_in_two.py"
    processes = [
        subprocess.Popen([sys.executable, script, tmp_path, str(rank)]) for rank in range(2)
    ]
    try:
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()

    def both(shape, step):
        (a, truth_a), (b, truth_b) = source(shape, 2 * step), source(shape, 2 * step + 1)
        return torch.cat([a, b]), Truth(*map(torch.cat, zip(truth_a, truth_b, strict=True)))

    alone = tiny_run()
    before = {name: value.clone() for name, value in alone.network.state_dict().items()}
    train(alone, both, tmp_path / "alone", validation={})
    first, second = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    for name, value in alone.network.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        # Muon orthogonalises in bfloat16.
        moved = (value - before[name]).norm()
        assert (first[name] - value).norm() < 0.05 * moved + 1e-6, name
    assert [line["step"] for line in log_of(tmp_path)] == [2, 4, 6, 8]
