"""The training loop: from any weights, resumable, supervised by scenes or by the paper's loss."""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from fasttracks.config import Config
from fasttracks.files import replacing
from fasttracks.geometry import Prediction
from fasttracks.losses import unsupervised
from fasttracks.metrics import Estimate, Truth, metrics
from fasttracks.network import TracksTo4D
from fasttracks.training.sources import Batch, Source
from fasttracks.training.supervision import supervised
from fasttracks.weights import load, save


@dataclass(frozen=True)
class Schedule:
    """How a run goes; kept in its checkpoint."""

    steps: int = 20_000
    learning_rate: float = 4e-4  # of Adam, reached after warm-up, zero at the end
    warm_up: int = 300
    pose_warm_up: int = 0  # steps of regressing poses first, for the paper's loss from scratch
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema: float = 0.999
    # clips × frames × tracks of a step, taken in turn; every shape is compiled once
    shapes: tuple[tuple[int, int, int], ...] = (
        (24, 50, 100),
        (10, 50, 240),
        (40, 24, 128),
        (4, 50, 640),
    )
    seed: int = 0


class Run:
    """A network in training, with all it needs to stop and go on."""

    def __init__(self, network: TracksTo4D, schedule: Schedule) -> None:
        self.network, self.schedule, self.step = network, schedule, 0
        self.average = {n: p.detach().clone() for n, p in network.named_parameters()}
        # The camera head sums 7936 inputs: what is a small step elsewhere is a leap there.
        head = list(network.camera.parameters())
        others = [p for p in network.parameters() if all(p is not q for q in head)]
        groups = [
            ([p for p in others if p.ndim > 1], 1.0, schedule.weight_decay),
            ([p for p in others if p.ndim <= 1], 1.0, 0.0),
            (head, 0.1, 0.0),
        ]
        self.optimizer = torch.optim.AdamW(
            [{"params": p, "relative": r, "weight_decay": decay} for p, r, decay in groups],
            lr=schedule.learning_rate,
            betas=(0.9, 0.98),
            fused=next(network.parameters()).is_cuda,
        )

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        s = self.schedule
        done = (self.step - s.warm_up) / max(1, s.steps - s.warm_up)
        return s.learning_rate * min(
            (self.step + 1) / s.warm_up, 0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0.0, done)))
        )

    def update(self, loss: Tensor) -> Tensor:
        """One step down the gradient of a loss; a loss or gradient that isn't finite is skipped.

        Returns the gradient's norm.
        """
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.schedule.clip_norm)
        sane = torch.isfinite(norm) & torch.isfinite(loss)
        # Chosen on the device, so that the host needn't wait: a gradient of zero moves nothing.
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad = torch.where(sane, parameter.grad, 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["relative"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Young averages forget faster, so that they aren't the first weights for long.
        keep = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        parameters = [p.detach() for p in self.network.parameters()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - keep)
        self.step += 1
        return norm

    def save(self, path: Path) -> None:
        """Write a checkpoint that `load` goes on from."""
        state = {
            "config": asdict(self.network.config),
            "schedule": asdict(self.schedule),
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Run":
        """Go on from a checkpoint, with the schedule it was started with."""
        state = torch.load(path, map_location=device, weights_only=True)
        network = TracksTo4D(Config(**state["config"])).to(device)
        network.load_state_dict(state["network"])
        run = cls(network, Schedule(**state["schedule"]))
        run.optimizer.load_state_dict(state["optimizer"])
        run.average, run.step = state["average"], state["step"]
        return run

    def averaged(self) -> TracksTo4D:
        """A copy of the network with the averaged weights, for judging and shipping."""
        network = TracksTo4D(self.network.config).to(next(iter(self.average.values())).device)
        network.load_state_dict(self.average)
        return network.eval().requires_grad_(False)


def start(weights: str | os.PathLike[str] | None, schedule: Schedule, device: torch.device) -> Run:
    """A fresh run: from a weights file, or from random weights for None.

    The network learns to correct the focal length, whatever the weights did.
    """
    torch.manual_seed(schedule.seed)
    config = Config(predicts_focal=True)
    network = TracksTo4D(config)
    head: Any = network.camera
    with torch.no_grad():
        if weights is None:  # cameras begin at (0, 0, -15), looking along +z
            head.weight *= 0.1
            head.bias.zero_()
            head.bias[2] = -15.0
            head.bias[-6:] = torch.tensor([1.0, 0, 0, 0, 1, 0])
        else:
            source = load(weights, device="cpu", precision="fp32")
            network.load_state_dict(source.state_dict())
            if not source.config.predicts_focal:
                head.weight[3] = 0.0
                head.bias[3] = 0.0
    return Run(network.to(device), schedule)


def forward(network: TracksTo4D, tracks: Tensor) -> Prediction:
    """The network with its blocks in bfloat16 where there is CUDA; all else in float32."""
    x = network.embedding(tracks)
    with torch.autocast("cuda", torch.bfloat16, enabled=tracks.is_cuda):
        for block in network.blocks:
            x = block(x)
    return network.read(x.float())


def train(
    run: Run,
    source: Source,
    folder: Path,
    *,
    validation: Mapping[str, list[Batch]],
    minutes: float = math.inf,
    report_every: int = 200,
    validate_every: int = 2000,
    progress: bool = False,
) -> None:
    """Train until the schedule or the time is over.

    Writes into `folder`, at every validation and at the end: run.pt to go on from,
    weights.safetensors (averaged, float16) for use, and log.jsonl, one line a report. Clips
    with truth are supervised; for those without, the loss is the paper's.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    cuda = next(run.network.parameters()).is_cuda
    if cuda:
        # One compilation for each shape and axis, shared by all blocks.
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, 4 * len(run.schedule.shapes))
        for block in run.network.blocks:
            block.compile(dynamic=False)
    run.network.train()
    s, began, tokens = run.schedule, time.monotonic(), 0
    sums: dict[str, Any] = {}
    summed = 0
    bar = tqdm(total=s.steps, initial=run.step, unit="step", disable=not progress)
    with open(folder / "log.jsonl", "a") as log, bar:
        while run.step < s.steps:
            inputs, truth = source(s.shapes[run.step % len(s.shapes)], run.step)
            terms = _loss(run, forward(run.network, inputs), inputs, truth)
            terms["gradient"] = run.update(terms["total"].mean())
            tokens += inputs[..., 0].numel()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach().mean()
            summed += 1
            bar.update()

            elapsed = time.monotonic() - began
            last = run.step == s.steps or elapsed > 60 * minutes
            if not last and run.step % report_every:
                continue
            line: dict[str, Any] = {
                "step": run.step,
                "minutes": round(elapsed / 60, 2),
                "tokens/s": round(tokens / elapsed),
                "learning rate": run.learning_rate(),
                **{name: round(value.item() / summed, 5) for name, value in sums.items()},
            }
            sums, summed = {}, 0
            bar.set_postfix(loss=line["total"])
            if last or run.step % validate_every == 0:
                network = run.averaged()
                line["validation"] = {n: validate(network, b) for n, b in validation.items()}
                run.save(folder / "run.pt")
                record = {"schedule": asdict(s), "step": run.step, **line["validation"]}
                metadata = {"licence": "Apache-2.0", "training": json.dumps(record)}
                save(
                    network, folder / "weights.safetensors", dtype=torch.float16, metadata=metadata
                )
            print(json.dumps(line), file=log, flush=True)
            if last:
                break


def _loss(
    run: Run, prediction: Prediction, inputs: Tensor, truth: Truth | None
) -> dict[str, Tensor]:
    """Terms of the loss, one value a clip."""
    if truth is not None:
        return supervised(prediction, truth)._asdict()
    if run.step < run.schedule.pose_warm_up:
        # The paper's warm-up: cameras in front of the scene, looking at it.
        p = prediction
        away = p.position - p.position.new_tensor([0.0, 0.0, -15.0])
        turned = p.rotation - torch.eye(3, device=p.rotation.device)
        return {"total": away.square().sum(-1).mean(1) + turned.square().sum((-1, -2)).mean(1)}
    return unsupervised(prediction, inputs)._asdict()


@torch.no_grad()
def validate(network: TracksTo4D, batches: list[Batch]) -> dict[str, float]:
    """Mean of each metric over the clips of batches with truth."""
    clips: dict[str, list[Tensor]] = {}
    for inputs, truth in batches:
        assert truth is not None
        p = forward(network, inputs)
        estimate = Estimate(p.points_camera, p.rotation, p.position, p.projection)
        for name, values in metrics(estimate, truth).items():
            clips.setdefault(name, []).append(values)
    return {n: round(torch.cat(v).nanmean().item(), 4) for n, v in clips.items()}
