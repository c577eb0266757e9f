"""Points followed from frame to frame as frames arrive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fasttracks.trackers.patches import RADIUS, Patches, sample


@dataclass(frozen=True)
class Thresholds:
    """When a `Follower` takes a point for followed, lost or found.

    Attributes:
        window: side of the patch that Lucas–Kanade compares, in pixels.
        max_error: between where a step began and where the flow back leads, in pixels.
        min_recent: likeness to the patch of its last change of looks that tells where a point is.
        min_born: likeness to its patch at birth that does.
        least: likeness to the former below which a point is lost.
        renew: likeness to the former below which it is taken anew.
        patience: frames that a point is followed while neither patch is found.
        max_change: of a point's colour from one frame to the next, of 255.
        max_aging: of its colour since birth.
        memory: frames that a lost point is looked for.
        min_found: likeness that finds it.
    """

    window: int = 15
    max_error: float = 1.0
    min_recent: float = 0.7
    min_born: float = 0.8
    least: float = 0.4
    renew: float = 0.9
    patience: int = 5
    max_change: float = 25.0
    max_aging: float = 30.0
    memory: int = 20
    min_found: float = 0.85


def to_gray(image: np.ndarray) -> np.ndarray:
    """(H, W) uint8 of (H, W, 3) uint8 RGB."""
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


class Frame:
    """One image as the tracker needs it.

    Attributes:
        gray: (H, W) uint8.
        color: (H, W, 3) uint8, smoothed.
        half: `gray` at half the size.
    """

    def __init__(self, image: np.ndarray) -> None:
        """From (H, W, 3) uint8 RGB."""
        import cv2

        self.gray = to_gray(image)
        self.color = cv2.GaussianBlur(image, (0, 0), 1.5)
        height, width = self.gray.shape
        size = -(-width // 2), -(-height // 2)
        self.half = cv2.resize(self.gray, size, interpolation=cv2.INTER_AREA)

    @property
    def size(self) -> np.ndarray:
        """(2,): width and height."""
        return np.array(self.gray.shape[::-1], np.float32)


class Flow:
    """Dense motion from one frame to the next and back, at half their size.

    By OpenCV's DIS (Kroeger et al., 2016), which carries motion into places without texture.

    Attributes:
        there, back: (h, w, 2) float16, in pixels of the frames.
    """

    def __init__(self, first: Frame, second: Frame) -> None:
        import cv2

        self.size = first.size
        height, width = first.half.shape
        self.there, self.back = np.zeros((2, height, width, 2), np.float16)
        if min(height, width) < 16:  # DIS needs room for its patches
            return
        dis = cv2.DISOpticalFlow_create()
        dis.setFinestScale(0)
        dis.setPatchSize(8)
        dis.setPatchStride(5)
        dis.setGradientDescentIterations(5)
        dis.setVariationalRefinementIterations(0)
        scale = self.size / (width, height)
        self.there[:] = dis.calc(first.half, second.half, None) * scale
        self.back[:] = dis.calc(second.half, first.half, None) * scale

    def reversed(self) -> Flow:
        """The same from the second frame to the first."""
        other = object.__new__(Flow)
        other.size, other.there, other.back = self.size, self.back, self.there
        return other

    def at(self, flow: np.ndarray, points: np.ndarray) -> np.ndarray:
        """One of the two flows at (n, 2) points of the frames."""
        scale = np.array(flow.shape[1::-1]) / self.size
        return sample(flow.astype(np.float32), ((points + 0.5) * scale - 0.5)[:, None])[:, 0]


@dataclass
class Points:
    """What a follower knows of its n points.

    Attributes:
        position: (n, 2) float32 pixels: where last seen, or where neighbours say a lost one is.
        step: (n, 2), the last motion.
        color: (n, 3), where last seen.
        born_color: (n, 3), at first.
        lost: (n,) frames since a point was seen.
        doubt: (n,) frames since its patch was.
    """

    position: np.ndarray
    step: np.ndarray
    color: np.ndarray
    born_color: np.ndarray
    lost: np.ndarray
    doubt: np.ndarray


class Follower:
    """Follows points that join at any frame, until they are lost; looks for the lost again.

    In each frame a dense flow proposes where a point is, Lucas–Kanade refines it, and then the
    point's patch is aligned: as it was at birth, so that no drift gathers, or else as it was when
    its looks last changed. What is like neither for some frames, or changes its colour, is lost.
    A lost point moves as neighbours do that moved like it, and is seen again where its patch
    correlates.
    """

    def __init__(self, options: Thresholds) -> None:
        self.options = options
        self.frame: Frame | None = None
        nothing = np.zeros((0, 2), np.float32)
        none = Patches.cut(np.zeros((1, 1), np.float32), nothing)
        self.born, self.recent = none, none
        shapes = ((0, 2), (0, 2), (0, 3), (0, 3), (0,), (0,))
        self.points = Points(*(np.zeros(shape, np.float32) for shape in shapes))

    @property
    def position(self) -> np.ndarray:
        """(n, 2) float32 pixels."""
        return self.points.position

    @property
    def visible(self) -> np.ndarray:
        """(n,) bool."""
        return self.points.lost == 0

    def add(self, points: np.ndarray) -> None:
        """Follow (n, 2) more points of the frame pushed last."""
        assert self.frame is not None
        points = np.asarray(points, np.float32)
        patches = Patches.cut(self.frame.gray.astype(np.float32), points)
        self.born, self.recent = self.born.join(patches), self.recent.join(patches)
        color = self._color(self.frame, points)
        none = np.zeros(len(points), np.float32)
        new = Points(points, 0 * points, color, color, none, none)
        pairs = zip(vars(self.points).values(), vars(new).values(), strict=True)
        self.points = Points(*map(np.concatenate, pairs))

    def push(self, frame: Frame, flow: Flow | None = None) -> None:
        """Follow all points into the next frame; `flow` leads there, if it is known."""
        before, self.frame = self.frame, frame
        if before is None or not len(self.points.lost):
            return
        flow = flow or Flow(before, frame)
        image = frame.gray.astype(np.float32)
        alive = np.flatnonzero(self.visible)
        steps = self.points.step.copy()
        self._follow(before, frame, flow, image, alive)
        lost = np.flatnonzero((self.points.lost > 0) & (self.points.lost < self.options.memory))
        self._search(frame, image, lost, steps)

    def _follow(
        self, before: Frame, frame: Frame, flow: Flow, image: np.ndarray, which: np.ndarray
    ) -> None:
        """Points `which` that were seen in the frame before."""
        options, points = self.options, self.points
        begun = points.position[which]
        place, checked = self._step(before, frame, flow, begun)
        place, born, _ = self._align(self.born, image, place, which, options.min_born)
        other = np.flatnonzero(~born)
        place[other], recent, like = self._align(
            self.recent, image, place[other], which[other], options.min_recent
        )
        sure = born.copy()
        sure[other] = recent
        points.doubt[which] = np.where(sure, 0, points.doubt[which] + 1)
        checked[other] &= like > options.least
        found = sure | (checked & (points.doubt[which] <= options.patience))
        found &= self._inside(place)

        color = self._color(frame, place)
        change = color - points.color[which]
        change -= np.median(change[found], axis=0) if found.any() else 0  # the light's
        found &= np.abs(change).max(-1, initial=0) <= options.max_change
        aged = np.abs(color - points.born_color[which]).max(-1, initial=0)
        found &= aged <= options.max_aging

        kept = which[found]
        points.step[kept] = place[found] - begun[found]
        points.position[kept], points.color[kept] = place[found], color[found]
        points.lost[which[~found]] = 1
        # A patch that has come to look otherwise is taken anew, from where it surely is.
        fresh = which[other[found[other] & checked[other] & (like < options.renew)]]
        self.recent.put(fresh, Patches.cut(image, points.position[fresh]))

    def _step(
        self, before: Frame, frame: Frame, flow: Flow, begun: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where points (n, 2) go, and for which (n,) tracking back agrees."""
        import cv2

        if not len(begun):
            return begun, np.zeros(0, bool)
        coarse = begun + flow.at(flow.there, begun)
        options = {
            "winSize": (self.options.window, self.options.window),
            "maxLevel": 1,
            "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
        }
        fine, there, _ = cv2.calcOpticalFlowPyrLK(
            before.gray, frame.gray, begun, coarse.copy(), **options
        )
        # A dense flow back costs nothing more, and tells as well as Lucas–Kanade would.
        limit = self.options.max_error
        missed, off = (
            np.linalg.norm(ahead + flow.at(flow.back, ahead) - begun, axis=1)
            for ahead in (fine, coarse)
        )
        good = there.ravel().astype(bool) & (missed <= limit)
        good &= np.linalg.norm(fine - coarse, axis=1) <= 2 * RADIUS
        return np.where(good[:, None], fine, coarse), good | (off <= limit)

    def _align(
        self,
        patches: Patches,
        image: np.ndarray,
        place: np.ndarray,
        which: np.ndarray,
        least: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (n, 2) moved to their patches, which (n,) could be, and the correlation (n,)."""
        moved, warp, like = patches.align(image, place, which)
        found = (like >= least) & (np.linalg.norm(moved - place, axis=1) <= RADIUS / 2)
        patches.warp[which[found]] = warp[found]
        return np.where(found[:, None], moved, place), found, like

    def _search(
        self, frame: Frame, image: np.ndarray, which: np.ndarray, steps: np.ndarray
    ) -> None:
        """Look for lost points where others lead that moved alike, by their `steps` before."""
        if not len(which):
            return
        points, options = self.points, self.options
        guides = np.flatnonzero(self.visible)
        apart = points.position[which][:, None] - points.position[guides]
        unlike = steps[which][:, None] - steps[guides]
        reach = frame.size.max() / 10
        weight = np.exp(-(apart**2).sum(-1) / (2 * reach**2) - (unlike**2).sum(-1) / 2)
        total = weight.sum(1, keepdims=True)
        led = (weight @ points.step[guides] + 1e-3 * steps[which]) / (total + 1e-3)
        place = points.position[which] + led

        best, warp, like = self.recent.align(image, place, which, iterations=4)
        found = (like >= options.min_found) & (np.linalg.norm(best - place, axis=1) <= RADIUS)
        self.recent.warp[which[found]] = warp[found]
        found &= self._inside(best)
        change = self._color(frame, best) - points.born_color[which]
        found &= np.abs(change).max(-1, initial=0) <= options.max_aging
        points.step[which] = led
        points.position[which] = np.where(found[:, None], best, place)
        points.lost[which] = np.where(found, 0, points.lost[which] + 1)
        points.doubt[which[found]] = 0

    def _inside(self, place: np.ndarray) -> np.ndarray:
        assert self.frame is not None
        return np.all((place >= 0) & (place <= self.frame.size - 1), axis=1)

    @staticmethod
    def _color(frame: Frame, place: np.ndarray) -> np.ndarray:
        return sample(frame.color, place[:, None])[:, 0].astype(np.float32)
