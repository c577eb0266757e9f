"""The training loop: resumable, supervised by scenes or by the paper's loss."""

import itertools
import json
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fasttracks.backends import TORCH, Backend
from fasttracks.evaluation.metrics import Truth
from fasttracks.geometry import Prediction
from fasttracks.inputs import hold
from fasttracks.learning import forward, unsupervised
from fasttracks.network import TracksTo4D
from fasttracks.scenes.generator import seeded
from fasttracks.training.judging import judge
from fasttracks.training.run import Run, Schedule
from fasttracks.training.sources import Batch, Source
from fasttracks.training.supervision import supervised
from fasttracks.weights import save

_BYTES_PER_TOKEN = 160_000  # of memory that a training step takes on a CPU
_SAVE_EVERY = 600  # seconds


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
    a step are fewer, for what the machine can do, and `say` gets a line on how long it will take.

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
            # On a GPU the first steps compile, and the progress bar soon knows better.
            if log and device.type == "cpu" and run.step == first + _TIMED_STEPS:
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
        self.steps: Tensor | int = 0
        self.skipped: Tensor | int = -1  # the last step, from 0, that was not finite

    def add(self, terms: Mapping[str, Tensor], tokens: int) -> None:
        means = {name: value.detach().mean() for name, value in terms.items()}
        sane = torch.stack([*means.values()]).isfinite().all()
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0) + torch.where(sane, value, 0.0)
        self.steps = self.steps + sane
        self.skipped = torch.where(sane, self.skipped, self.run.step - 1)
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
            **{name: round((value / self.steps).item(), 5) for name, value in self.sums.items()},
        }
        if (skipped := int(self.skipped)) >= 0:
            line["skipped"] = skipped
        self.sums, self.steps, self.skipped = {}, 0, -1
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
