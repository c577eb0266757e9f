"""CoTracker 3, from its own package or from torch.hub. Neither is part of this one."""

from __future__ import annotations

import os
import pickle
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fasttracks.errors import InputError
from fasttracks.files import as_path
from fasttracks.trackers.queries import check_frames, check_queries, grid_queries

PACKAGE = "pip install git+https://github.com/facebookresearch/co-tracker (CC-BY-NC)"
HUB = "facebookresearch/co-tracker:82e02e8029753ad4ef13cf06be7f4fc5facdda4d"  # one known commit
LICENCE = (
    "cotracker: its code and weights, which are downloaded where its package isn't installed, "
    "are for non-commercial use only (CC-BY-NC)"
)
WEIGHTS = (
    "give the path of scaled_offline.pth from https://huggingface.co/facebook/cotracker3 "
    "(CC-BY-NC) as checkpoint"
)


@dataclass(frozen=True)
class CoTracker:
    """CoTracker 3 offline, in one call where the clip fits into a segment.

    A longer clip is tracked segment by segment, forwards and then backwards, so that memory
    depends on the segment and not on the clip. Neighbouring segments share frames, in which
    each track is taken up again; one that is nowhere seen in them is lost from there on.

    Attributes:
        checkpoint: path of scaled_offline.pth, for the installed package. Without the package
            torch.hub downloads code and weights, which are for non-commercial use only.
        device: "auto" (cuda if there is one), "cpu", "cuda", "cuda:1", …
        grid: points along each side of a grid.
        every: frames between grids.
        window: frames the model attends to at once, as it was trained.
        segment: frames given to the model at once.
        overlap: frames that neighbouring segments share.
    """

    checkpoint: str | os.PathLike[str] | None = None
    device: str = "auto"
    grid: int = 15
    every: int = 20
    window: int = 60
    segment: int = 120
    overlap: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.overlap < self.segment:
            raise InputError(
                f"overlap: expected 1 to segment - 1 = {self.segment - 1}, found {self.overlap}"
            )

    def __call__(
        self, frames: np.ndarray, queries: np.ndarray | None = None, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Track; see `Tracker`. Without queries, those of `grid_queries`, in its order."""
        from tqdm import tqdm

        check_frames(frames)
        count, height, width, _ = frames.shape
        if queries is None:
            queries = grid_queries(count, height, width, self.grid, self.every)
        queries = check_queries(queries, frames)
        tracks = np.tile(queries[:, 1:], (count, 1, 1))
        visible = np.zeros(tracks.shape[:2], bool)

        begins = range(0, max(count - self.overlap, 1), self.segment - self.overlap)
        segments = [(begin, min(begin + self.segment, count)) for begin in begins]
        # The first segment that holds a track's query. The others continue the track.
        home = np.searchsorted([end for _, end in segments], queries[:, 0], side="right")
        forwards = [(k, True) for k in range(len(segments))]
        backwards = [(k, False) for k in reversed(range(len(segments) - 1))]

        for k, forward in tqdm(forwards + backwards, desc="track", disable=not progress):
            begin, end = segments[k]
            if forward:
                middle = segments[k - 1][1] if k else begin
                shared, missing = np.arange(begin, middle)[::-1], slice(middle, end)
                fresh, older = np.flatnonzero(home == k), np.flatnonzero(home < k)
            else:
                middle = segments[k + 1][0]
                shared, missing = np.arange(middle, end), slice(begin, middle)
                fresh, older = np.zeros(0, int), np.flatnonzero(home > k)

            asked = queries[fresh]
            if len(older):
                # `shared` begins beside the missing frames: take each track up in the first
                # of them where it is seen. One seen in none keeps its place.
                tracks[missing, older] = tracks[shared[0], older]
                alive = visible[shared][:, older]
                older, at = older[alive.any(0)], shared[alive.argmax(0)][alive.any(0)]
                asked = np.vstack([asked, np.column_stack([at, tracks[at, older]])])
            if not len(asked):
                continue
            found, seen = self._run(frames[begin:end], asked - [begin, 0, 0])
            new = slice(missing.start - begin, missing.stop - begin)
            for result, source in ((tracks, found), (visible, seen)):
                result[begin:end, fresh] = source[:, : len(fresh)]
                result[missing, older] = source[new, len(fresh) :]
        return tracks, visible

    def _run(self, frames: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The model on (T, H, W, 3) frames and (n, 3) queries: (T, n, 2), (T, n) bool."""
        import torch

        model, device = self._model
        video = torch.tensor(frames, device=device).permute(0, 3, 1, 2)[None].float()
        points = torch.tensor(queries, dtype=torch.float32, device=device)
        with torch.inference_mode():
            tracks, visibility = model(video, queries=points[None], backward_tracking=True)
        return tracks[0].float().cpu().numpy(), visibility[0].cpu().numpy()

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        """The predictor and its device, loaded on first use."""
        from fasttracks.weights import resolve_device

        device = resolve_device(self.device)
        warnings.warn(LICENCE, stacklevel=3)  # before anything of it is downloaded or run
        try:
            from cotracker.predictor import CoTrackerPredictor
        except ImportError:
            model = self._from_hub()
        else:
            model = self._from_package(CoTrackerPredictor)
        return model.to(device).eval(), device

    def _from_package(self, predictor: Any) -> Any:
        if self.checkpoint is None:
            raise InputError(f"checkpoint: the cotracker package needs one; {WEIGHTS}")
        path = as_path(self.checkpoint, "checkpoint")
        if not path.is_file():
            raise InputError(f"checkpoint: no file {path}; {WEIGHTS}")
        try:
            return predictor(checkpoint=str(path), offline=True, window_len=self.window)
        except pickle.UnpicklingError as error:  # whose message advises to run what the file holds
            raise InputError(f"checkpoint: {path} is no file of weights; {WEIGHTS}") from error
        except Exception as error:  # whatever loading raises
            raise InputError(f"checkpoint: {path} can't be loaded ({_line(error)})") from error

    def _from_hub(self) -> Any:
        import torch

        if self.checkpoint is not None:
            raise InputError(f"checkpoint: needs the cotracker package; {PACKAGE}")
        try:
            # Validation knows the heads of branches only, and the licence has been said.
            return torch.hub.load(HUB, "cotracker3_offline", skip_validation=True, trust_repo=True)
        except Exception as error:  # no network, no such release, its own missing imports
            raise InputError(
                f"tracker: torch.hub has no cotracker ({_line(error)}); {PACKAGE}, and {WEIGHTS}"
            ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
