"""A network in training: its schedule, optimisers and averaged weights, saved and read back."""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from fasttracks.config import Config
from fasttracks.errors import InputError
from fasttracks.files import replacing
from fasttracks.learning import learning_rate_share
from fasttracks.network import TracksTo4D
from fasttracks.scenes.variety import ASSUMED_FOCAL
from fasttracks.training.deepening import deepened
from fasttracks.training.muon import Muon
from fasttracks.weights import load


@dataclass(frozen=True)
class Schedule:
    """How a run goes; kept in its checkpoint."""

    steps: int = 20_000
    learning_rate: float = 4e-4  # reached after warm-up, zero at the end
    warm_up: int = 300
    pose_warm_up: int = 0  # steps of regressing poses first, for the paper's loss from scratch
    gamma: bool = True  # the paper's loss with its γ; without, all points count as equally static
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema: float = 0.999
    # clips × frames × tracks of a step, taken in turn
    shapes: tuple[tuple[int, int, int], ...] = (
        (24, 60, 100),
        (10, 60, 240),
        (50, 24, 125),
        (12, 40, 300),
        (10, 60, 240),
        (10, 120, 120),
        (50, 16, 180),
        (10, 60, 240),
        (20, 75, 100),
        (4, 60, 600),
        (6, 160, 150),
        (24, 30, 200),
    )
    # of a step's frames, the least share that is kept: a network trained on few lengths has its
    # cameras twice as wrong at any other
    shortest: float = 0.6
    seed: int = 0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Schedule":
        """From the fields as a checkpoint has them; TypeError where one is unknown or mistyped."""
        schedule = cls(**values)
        for name, value in asdict(cls()).items():
            found = getattr(schedule, name)
            if type(found) is not type(value) and not (isinstance(value, float) and found == 0):
                raise TypeError(f"{name} of its schedule is {found!r}")
        if not all(
            len(s) == 3 and all(type(n) is int and n > 0 for n in s) for s in schedule.shapes
        ):
            raise TypeError(f"shapes of its schedule are {schedule.shapes}")
        return schedule


# Shares of the learning rate. What the heads say has to be exact to a pixel: at the whole rate a
# step of noise shakes the image by 100 px in the camera's, which sums 7936 inputs, by 14 in the
# points' and by 2 in the norm before both, all else by 0.2. That would hide what is left to learn.
_CAMERA_RATE, _POINTS_RATE = 0.01, 0.1


class Run:
    """A network in training, with all it needs to stop and go on."""

    def __init__(self, network: TracksTo4D, schedule: Schedule) -> None:
        self.network, self.schedule, self.step = network, schedule, 0
        self.average = {n: p.detach().clone() for n, p in network.named_parameters()}
        matrices = [p for p in network.blocks.parameters() if p.ndim == 2]
        last: Any = network.blocks[-1]
        points = [*last.norm.parameters(), *network.points.parameters()]
        camera = [*network.camera.parameters()]
        apart = {id(p) for p in (*matrices, *points, *camera)}
        others = [p for p in network.parameters() if id(p) not in apart]
        # Muon's steps are as long as Adam's, but turn a matrix as a whole.
        self.optimizers = [
            Muon(
                [{"params": matrices, "relative": 1.0}],
                lr=schedule.learning_rate,
                weight_decay=schedule.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [
                    {"params": others, "relative": 1.0},
                    {"params": camera, "relative": _CAMERA_RATE},
                    {"params": points, "relative": _POINTS_RATE},
                ],
                lr=schedule.learning_rate,
                betas=(0.9, 0.98),
                weight_decay=0.0,
                fused=next(network.parameters()).is_cuda,
            ),
        ]

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        s = self.schedule
        done = (self.step - s.warm_up) / max(1, s.steps - s.warm_up)
        return s.learning_rate * learning_rate_share(self.step, s.warm_up, done)

    def update(self, loss: Tensor) -> Tensor:
        """One step down the gradient of a loss; a loss or gradient that isn't finite is skipped.

        Returns the gradient's norm.
        """
        # Where the loss isn't finite no gradient is: processes that share gradients all skip it.
        (loss / torch.isfinite(loss)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.schedule.clip_norm)
        sane = torch.isfinite(norm)
        # Chosen on the device, so that the host needn't wait: a gradient of zero moves nothing.
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad = torch.where(sane, parameter.grad, 0.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate() * group["relative"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
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
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        content = io.BytesIO()  # torch's own writing to a full disk is no OSError
        torch.save(state, content)
        with replacing(path) as temporary:
            temporary.write_bytes(content.getbuffer())

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Run":
        """Go on from a checkpoint, with the schedule it was started with.

        Raises:
            InputError: it is damaged.
        """
        try:
            state = _read_checkpoint(path)
            config = Config.from_json(json.dumps(state["config"]))
            with torch.device("meta"):  # no memory before the file is seen to hold as much
                shapes = {n: p.shape for n, p in TracksTo4D(config).named_parameters()}
            for part in ("network", "average"):
                if {n: t.shape for n, t in state[part].items()} != shapes:
                    raise ValueError(f"its {part} has other sizes than its config")
            network = TracksTo4D(config)
            network.load_state_dict(state["network"])
            run = cls(network.to(device), Schedule.read(state["schedule"]))
            for optimizer, kept in zip(run.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
                for parameter, values in optimizer.state.items():
                    if any(v.ndim and v.shape != parameter.shape for v in values.values()):
                        raise ValueError("its optimizers have other sizes than its network")
            run.average = {n: t.to(device) for n, t in state["average"].items()}
            run.step = state["step"]
            if not 0 <= run.step <= run.schedule.steps:
                raise ValueError(f"its step is {run.step} of {run.schedule.steps}")
            return run
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # zipfile, pickle and torch raise whatever there is
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InputError(
                f"{path}: a damaged checkpoint ({why}); move it away to start anew, with --weights "
                f"{path.with_name('weights.safetensors')} from what was learned"
            ) from None

    def averaged(self) -> TracksTo4D:
        """A copy of the network with the averaged weights, for judging and shipping."""
        network = TracksTo4D(self.network.config).to(next(iter(self.average.values())).device)
        network.load_state_dict(self.average)
        return network.eval().requires_grad_(False)


def start(
    weights: str | os.PathLike[str] | Config,
    schedule: Schedule,
    device: torch.device,
    rounds: int | None = None,
    assumed_focal: float | None = ASSUMED_FOCAL,
) -> Run:
    """A fresh run: from a weights file, of any size, or from random weights of a network's sizes.

    The file's network is made `rounds` deep first, if that is given. It learns to correct the
    focal length, whatever it did before, from `assumed_focal`; None: from what it was.
    """
    torch.manual_seed(schedule.seed)
    if isinstance(weights, Config):
        source, sizes = None, weights
    else:
        source = load(weights, device="cpu", precision="fp32")
        if rounds:
            source = deepened(source, rounds)
        sizes = source.config
    assumed_focal = assumed_focal or sizes.assumed_focal
    network = TracksTo4D(replace(sizes, predicts_focal=True, assumed_focal=assumed_focal))
    head: Any = network.camera
    with torch.no_grad():
        if source is None:  # cameras begin at (0, 0, -15), looking along +z
            head.weight *= 0.1
            head.bias.zero_()
            head.bias[2] = -15.0
            head.bias[-6:] = torch.tensor([1.0, 0, 0, 0, 1, 0])
        else:
            network.load_state_dict(source.state_dict())
            if not source.config.predicts_focal:
                head.weight[3] = 0.0
                head.bias[3] = 0.0
    return Run(network.to(device), schedule)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """What `Run.save` wrote, on the CPU; any error where that is not so."""
    with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
        if spoilt := archive.testzip():
            raise ValueError(f"wrong checksum of {spoilt}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    todo = [state]
    while todo:  # strides could make gigabytes of one number
        value = todo.pop()
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
        elif isinstance(value, Tensor) and not (
            value.layout is torch.strided and value.is_contiguous() and value.isfinite().all()
        ):
            raise ValueError("a tensor is not of plain finite numbers")
    return state
