"""Fine-tuning of a network to a clip, without truth (TracksTo4D, arXiv 2404.07097, section 3.3)."""

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import Prediction, project
from fasttracks.graphs import capture
from fasttracks.learning import depth_change, forward, learning_rate_share, unsupervised
from fasttracks.network import TracksTo4D

_WARM_UP = 50  # steps
_DEPTH_WEIGHT = 2.0  # of the depths' change beside the paper's loss
_CAMERA_RATE = 0.1  # of the learning rate; that head sums 7936 inputs
_BEFORE_CAPTURE = 3  # steps that make Adam's state and let libraries take their workspaces
_CHECK_EVERY = 25
_PATIENCE = 0.5  # of the steps without a better loss, after which it stops
_AT_ONCE = {"cpu": 64, "cuda": 256}  # tracks of a step


class Report(NamedTuple):
    """How the fine-tuning of B clips went; losses over all tracks, with that of depths' change."""

    loss_before: Tensor  # (B,)
    loss_after: Tensor  # (B,) the least that was met
    steps: list[int]
    outcome: list[str]  # the same in words


def finetune(
    network: TracksTo4D,
    tracks: Tensor,
    known_focal: Tensor | None = None,
    *,
    steps: int = 500,
    learning_rate: float = 3e-5,
    at_once: int | None = None,
    seed: int = 0,
) -> tuple[Prediction, Report]:
    """Predictions for B clips (B, T, N, 3) of u, v, o, each of a copy of the network tuned to it.

    Where known_focal (B,) bool, the focal length that normalised the tracks stays as it is: a walk
    hardly tells it, and the loss would trade it for the cameras' path.

    Adam on the paper's unsupervised loss, which doesn't know how far away is what moves, and on how
    far depths get from the network's own. Warmed up, then slowed to a stop along a cosine: at the
    paper's constant 1e-4 the loss of our weights only rises. A step sees `at_once` random tracks of
    the clip, 256 on CUDA and 64 elsewhere. Every 25 steps all tracks are judged; the best weights
    so far give the prediction, so that its loss is never above the network's own. Stops early when
    half of the steps found nothing better. The network itself stays as it is. On CUDA blocks run in
    bfloat16, and steps are replayed as a CUDA graph. A progress bar with the loss shows on a
    terminal.
    """
    known = [False] * len(tracks) if known_focal is None else known_focal.tolist()
    results = [
        _tune(network, clip[None], hold, steps, learning_rate, at_once, seed)
        for clip, hold in zip(tracks, known, strict=True)
    ]
    predictions, before, after, taken = zip(*results, strict=True)
    prediction = Prediction(*(torch.cat(values) for values in zip(*predictions, strict=True)))
    outcome = [
        f"loss {a.item():.3f} after {n} steps, {b.item():.3f} before"
        if (a < b).item()
        else f"no lower loss in {n} steps, kept the network's answer"
        for a, b, n in zip(after, before, taken, strict=True)
    ]
    return prediction, Report(torch.cat(before), torch.cat(after), list(taken), outcome)


def _tune(
    network: TracksTo4D,
    clip: Tensor,
    known_focal: bool,
    steps: int,
    learning_rate: float,
    at_once: int | None,
    seed: int,
) -> tuple[Prediction, Tensor, Tensor, int]:
    """The prediction for one clip (1, T, N, 3), its loss before and after, and the steps."""
    from tqdm import tqdm

    device = clip.device
    tuned = copy.deepcopy(network).float().requires_grad_(True)
    others = [tuned.embedding, tuned.blocks, tuned.points]
    groups: list[dict[str, Any]] = [
        {"params": [p for module in others for p in module.parameters()], "relative": 1.0},
        {"params": tuned.camera.parameters(), "relative": _CAMERA_RATE},
    ]
    for group in groups:  # a tensor, which a captured graph reads anew
        group["lr"] = torch.tensor(0.0, device=device)
    on_cuda = device.type == "cuda"
    optimizer = torch.optim.Adam(groups, fused=on_cuda, capturable=on_cuda)
    count = clip.shape[2]
    at_once = min(count, at_once or _AT_ONCE[device.type])
    clip = clip.float()
    predict = partial(_predict, tuned, known_focal)
    with torch.no_grad():
        best = predict(clip)
    depth = best.points_camera[..., 2]
    part, part_depth = clip[:, :, :at_once].clone(), depth[:, :, :at_once].clone()
    draw = torch.Generator().manual_seed(seed)

    def loss_of(prediction: Prediction, tracks: Tensor, depth: Tensor) -> Tensor:
        change = depth_change(prediction, tracks, depth)
        return unsupervised(prediction, tracks).total + _DEPTH_WEIGHT * change

    def judge() -> tuple[Prediction, Tensor]:
        with torch.no_grad():
            prediction = predict(clip)
            return prediction, loss_of(prediction, clip, depth)

    def update() -> None:
        loss_of(predict(part), part, part_depth).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    run = update
    least = first = loss_of(best, clip, depth)
    last, step = 0, 0
    with tqdm(total=steps, desc="fine-tune", unit="step", disable=None) as bar:
        while step < min(steps, last + _PATIENCE * steps):
            some = torch.randperm(count, generator=draw)[:at_once].to(device)
            part.copy_(clip[:, :, some])
            part_depth.copy_(depth[:, :, some])
            share = learning_rate_share(step, _WARM_UP, step / steps)
            for group in optimizer.param_groups:
                group["lr"].fill_(learning_rate * group["relative"] * share)
            if on_cuda and step == _BEFORE_CAPTURE:
                graph, _ = capture(update, warm=True)
                run = graph.replay
            run()
            step += 1
            bar.update()
            if step % _CHECK_EVERY == 0 or step == steps:
                prediction, loss = judge()
                if (loss < least).item():  # False for NaN
                    best, least, last = prediction, loss, step
                bar.set_postfix(loss=f"{least.item():.4f}")
    return best, first, least, step


def _predict(network: TracksTo4D, known_focal: bool, tracks: Tensor) -> Prediction:
    p = forward(network, tracks)
    if not known_focal:
        return p
    focal = torch.ones_like(p.focal)
    return p._replace(focal=focal, projection=project(p.points_camera, focal))
