"""The training loop: from any weights, resumable, supervised by scenes or by the paper's loss."""

import io
import itertools
import json
import math
import os
import signal
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fasttracks.backends import TORCH, Backend
from fasttracks.config import Config
from fasttracks.errors import InputError
from fasttracks.evaluation.metrics import Estimate, Truth, flat_guess, metrics
from fasttracks.files import replacing
from fasttracks.geometry import Prediction
from fasttracks.inputs import hold
from fasttracks.learning import forward, learning_rate_share, unsupervised
from fasttracks.network import TracksTo4D
from fasttracks.scenes.generator import seeded
from fasttracks.scenes.variety import ASSUMED_FOCAL
from fasttracks.training.deepening import deepened
from fasttracks.training.muon import Muon
from fasttracks.training.sources import Batch, Source
from fasttracks.training.supervision import supervised
from fasttracks.weights import load, save


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
_BYTES_PER_TOKEN = 160_000  # of memory that a training step takes on a CPU
_SAVE_EVERY = 600  # seconds


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


def fitting(
    shapes: tuple[tuple[int, int, int], ...], tokens: int
) -> tuple[tuple[int, int, int], ...]:
    """Shapes (clips, frames, tracks) made smaller, all to one measure, to so many tokens at most.

    Fewer clips where that will do, else fewer tracks.
    """
    most = max(b * t * n for b, t, n in shapes)
    found = []
    for clips, frames, tracks in shapes:
        share = min(1.0, tokens / most) * clips
        found.append((max(1, int(share)), frames, max(8, int(tracks * min(1.0, share)))))
    return tuple(found)


def cpu_tokens() -> int:
    """Tokens of a training step for this machine's CPU and memory: some ten seconds of work."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(4096 * torch.get_num_threads(), memory // 4 // _BYTES_PER_TOKEN))


class _Forward(nn.Module):
    """`forward` as a module, which DistributedDataParallel asks for."""

    def __init__(self, network: TracksTo4D, run: Backend) -> None:
        super().__init__()
        self.network, self.run = network, run

    def forward(self, tracks: Tensor) -> Prediction:
        return forward(self.network, tracks, self.run)


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
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Train until the schedule or the time is over.

    Writes into `folder`: run.pt to go on from and weights.safetensors (averaged, float16) for use,
    at every validation, every ten minutes and at the end; and log.jsonl, one line a report. Clips
    with truth are supervised; for those without, the loss is the paper's. On a CPU the clips of
    a step are fewer, for what the machine can do. `say` gets lines on how long it will take.

    Ctrl-C or SIGTERM end the run after the step at hand, with all saved; a second one at once.
    Where a file can't be written that is a warning, and an OSError only at the end.

    Where torch.distributed is initialised each process trains on clips of its own, and the
    first one validates and writes.

    Raises:
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM.
    """
    from tqdm import tqdm

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(run.network.parameters()).device
    backend, s = TORCH, run.schedule
    if device.type == "cuda":
        from fasttracks.training.compiled import COMPILED

        backend = COMPILED
        torch._dynamo.config.optimize_ddp = False
    run.network.train()
    model: nn.Module = _Forward(run.network, backend)
    if world > 1:
        model = DistributedDataParallel(model, find_unused_parameters=s.pose_warm_up > 0)
    batches = _batches(run, source, rank, world)
    log = _Log(run, folder, validation, world) if rank == 0 else None
    began, first = time.monotonic(), run.step
    with (
        tqdm(total=s.steps, initial=run.step, unit="step", disable=not (progress and log)) as bar,
        _interrupts(say) as interrupts,
    ):
        while run.step < s.steps:
            inputs, truth = next(batches)
            terms = _loss(run, model(inputs), inputs, truth)
            terms["gradient"] = run.update(terms["total"].mean())
            if log:
                log.add(terms, inputs[..., 0].numel())
            bar.update()
            if log and run.step == first + _TIMED_STEPS:
                say(_forecast(time.monotonic() - began, s.steps - run.step))

            due = run.step % report_every == 0
            over = time.monotonic() - began > 60 * minutes or bool(interrupts)
            if world > 1:  # all stop where the first does
                over = due and _said_by_first(over, device)
            last = over or run.step == s.steps
            if log and (last or due):
                validate = run.step == s.steps or run.step % validate_every == 0
                line = log.report(validate or (over and not interrupts), last)
                bar.set_postfix(loss=line["total"])
            elif log and time.monotonic() - log.saved > _SAVE_EVERY:
                log.save()
            if last:
                break
    if interrupts:
        raise (
            KeyboardInterrupt if interrupts[0] == signal.SIGINT else SystemExit(128 + interrupts[0])
        )


_TIMED_STEPS = 3  # after which it is said how long the rest will take


def _forecast(seconds: float, left: int) -> str:
    step = seconds / _TIMED_STEPS
    hours = step * left / 3600
    return (
        f"a step takes {step:.2g} s, the {left} left {hours:.2g} h; Ctrl-C or --minutes stop "
        "sooner, and the same command goes on"
    )


@contextmanager
def _interrupts(say: Callable[[str], None]) -> Iterator[list[int]]:
    """A list that gets the signal that asks to end; the second has the effect it had before."""
    found: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: Any) -> None:
        found.append(number)
        restore()
        say("stopping after this step, with all saved; once more to stop at once")

    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        restore()


def _said_by_first(value: bool, device: torch.device) -> bool:
    flag = torch.tensor(int(value), device=device)
    dist.broadcast(flag, 0)
    return bool(flag)


def _batches(run: Run, source: Source, rank: int, world: int) -> Iterator[Batch]:
    """Clips of one step after the other, made while the step before trains where there is CUDA."""
    shapes = run.schedule.shapes
    device = next(run.network.parameters()).device
    if device.type == "cpu":
        shapes = fitting(shapes, cpu_tokens())
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make(step: int) -> Batch:
        with torch.cuda.stream(side):
            return source(shapes[step % len(shapes)], step * world + rank)

    ahead = None
    for step in itertools.count(run.step):
        batch = ahead or make(step)
        if side is not None:
            main = torch.cuda.current_stream(device)
            main.wait_stream(side)
            for tensor in (batch[0], *(batch[1] or ())):
                if tensor is not None:
                    tensor.record_stream(main)
            ahead = make(step + 1)
        yield cut(batch, run.schedule, step)


def cut(batch: Batch, schedule: Schedule, step: int) -> Batch:
    """A run of the frames of all clips, of a length that is drawn for the step.

    What is held in it is from within it.
    """
    inputs, truth = batch
    frames = inputs.shape[1]
    draw = seeded((schedule.seed << 32) + step, "lengths", "cpu")
    least = math.ceil(schedule.shortest * frames)
    length = int(torch.randint(least, frames + 1, (), generator=draw))
    begin = int(torch.randint(frames - length + 1, (), generator=draw))
    part = slice(begin, begin + length)
    return hold(inputs[:, part]), truth and truth.during(part)


class _Log:
    """Sums what the steps say, reports it, and keeps the run's files up to date."""

    def __init__(
        self, run: Run, folder: Path, validation: Mapping[str, list[Batch]], world: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run, self.folder, self.validation, self.world = run, folder, validation, world
        self.began, self.tokens = time.monotonic(), 0
        self.saved = self.began  # when the files were last written
        self.sums: dict[str, Any] = {}
        self.steps = 0

    def add(self, terms: Mapping[str, Tensor], tokens: int) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().mean()
        self.steps += 1
        self.tokens += tokens * self.world

    def report(self, validate: bool, last: bool) -> dict[str, Any]:
        """A line for the log, returned too; with `validate` judge the average and save all.

        The last report saves as well, and whatever can't be written is an error then.
        """
        run, elapsed = self.run, time.monotonic() - self.began
        line: dict[str, Any] = {
            "step": run.step,
            "minutes": round(elapsed / 60, 2),
            "tokens/s": round(self.tokens / elapsed),
            "learning rate": run.learning_rate(),
            **{name: round(value.item() / self.steps, 5) for name, value in self.sums.items()},
        }
        self.sums, self.steps = {}, 0
        if validate:
            network = run.averaged()
            line["validation"] = {n: judge(network, b) for n, b in self.validation.items()}
        if validate or last:
            self.save(line.get("validation"), last)
        with self._writing(last), open(self.folder / "log.jsonl", "a") as file:
            print(json.dumps(line), file=file)
        return line

    def save(self, judged: Mapping[str, Any] | None = None, last: bool = False) -> None:
        """Write weights.safetensors and then run.pt, so that no run.pt is ahead of the weights."""
        run = self.run
        record = {"schedule": asdict(run.schedule), "step": run.step, **(judged or {})}
        metadata = {"licence": "Apache-2.0", "training": json.dumps(record)}
        with self._writing(last):
            path = self.folder / "weights.safetensors"
            save(run.averaged(), path, dtype=torch.float16, metadata=metadata)
            run.save(self.folder / "run.pt")
        self.saved = time.monotonic()

    @contextmanager
    def _writing(self, last: bool) -> Iterator[None]:
        """Warn where a file can't be written and there will be another time."""
        try:
            yield
        except OSError as error:
            if last:
                raise
            warnings.warn(f"not saved, training goes on: {error}", stacklevel=2)


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
    if not run.schedule.gamma:
        prediction = prediction._replace(motion=torch.ones_like(prediction.motion))
    return unsupervised(prediction, inputs)._asdict()


def judge(network: TracksTo4D, batches: list[Batch]) -> dict[str, float]:
    """Mean of each metric over the clips of batches with truth."""
    found = judge_each(network, batches)
    return {name: round(values.nanmean().item(), 4) for name, values in found.items()}


@torch.no_grad()
def judge_each(network: TracksTo4D, batches: list[Batch]) -> dict[str, Tensor]:
    """Each metric, one value a clip, and AbsRel of the flat guess."""
    found: dict[str, list[Tensor]] = {}
    for inputs, truth in batches:
        assert truth is not None
        p = forward(network, inputs)
        estimate = Estimate(p.points_camera, p.rotation, p.position, p.projection)
        values = {**metrics(estimate, truth), "flat": flat_guess(truth)["absrel"]}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in found.items()}
