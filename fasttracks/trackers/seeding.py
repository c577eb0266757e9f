"""Where new tracks start: on texture, more of them on what moves, where no others are."""

from collections.abc import Callable, Sequence

import numpy as np

from fasttracks.trackers.follower import Flow, Frame

SPOTS = 4  # places in a cell, each way, that a track may start at
HOPS = 6, 18  # frames that motion is compared over
SUBJECT = 0.5  # of the tracks go where something moves by itself
POWER = 0.7  # of a mover's weight that its share grows with
CELL = SPOTS**2 // 2  # the most new tracks of a cell
PLAIN = 0.15  # of a textured cell's share goes to one without texture
TEXTURED = 0.002  # least eigenvalue of a corner, of intensities in 0..1
FAINT = TEXTURED / 4  # the same where something moves, as clothes do
PATCH = 5  # pixels of an image that are compared
NOISE = 2.0  # gray levels that say nothing
SURE = 0.3  # how much better a motion explains an image than another, from which it surely does
FIT = 1000  # points that the dominant motion is fitted to


class Grid:
    """An image's cells, about 80 along its longer side.

    Attributes:
        size: (2,), the image's width and height.
        cell: pixels of a cell, each way.
        shape: rows and columns of cells.
        centers: (rows · columns, 2) float32 pixels.
    """

    def __init__(self, size: np.ndarray) -> None:
        self.size = size
        self.cell = SPOTS * max(2, round(float(size.max()) / 80 / SPOTS))
        columns, rows = np.ceil(size / self.cell).astype(int)
        self.shape = rows, columns
        x, y = np.meshgrid(np.arange(columns), np.arange(rows))
        corner = np.stack([x, y], -1).reshape(-1, 2) * self.cell
        self.centers = (corner + (self.cell - 1) / 2).clip(0, size - 1).astype(np.float32)

    def of(self, points: np.ndarray) -> np.ndarray:
        """The cells' numbers (n,) of (n, 2) points."""
        column, row = (points // self.cell).astype(int).T.clip(0)
        rows, columns = self.shape
        return row.clip(max=rows - 1) * columns + column.clip(max=columns - 1)

    def spots(self, image: np.ndarray, beyond: float) -> np.ndarray:
        """An image's values (H, W) at the spots of the cells, (n, SPOTS²); `beyond` outside."""
        (rows, columns), step = self.shape, self.cell // SPOTS
        height, width = image.shape
        wide = np.full((rows * self.cell, columns * self.cell), beyond, np.float32)
        wide[:height, :width] = image
        found = wide[step // 2 :: step, step // 2 :: step]
        return found.reshape(rows, SPOTS, columns, SPOTS).swapaxes(1, 2).reshape(-1, SPOTS**2)


def moving(
    grid: Grid, gray: Callable[[int], np.ndarray], flows: Sequence[Flow], frame: int
) -> np.ndarray:
    """How surely each spot of a frame moves by itself, (n, SPOTS²) from 0 on.

    The motion of cells over some frames is compared with a cubic of the image's coordinates,
    which most of it follows, and with the epipolar geometry of a moving camera: a near wall breaks
    the first alone. Each is a vote of the tenth of the cells that it fits least. As dense flow
    reaches beyond what moves, a spot counts by how much better it explains the image there than
    the cubic does.

    Args:
        grid: of the frame.
        gray: a frame's (H, W) uint8, by its number.
        flows: from each frame to the next.
        frame: the number of the frame.
    """
    votes = np.zeros(len(grid.centers))
    better: list[np.ndarray] = []
    for hop, motion, known in _motions(grid, flows, frame):
        cells = np.flatnonzero(known)
        if len(cells) < max(50, 0.2 * len(known)):
            continue
        some = cells[:: -(-len(cells) // FIT)]
        smooth, error = _off_smooth(grid, motion, some)
        for off in (error, _off_epipolar(grid, motion, some)):
            low, high = np.quantile(off[cells], (0.9, 0.99))
            vote = ((off - low) / (high - low + 1e-9)).clip(0, 1)
            votes += np.where(known & (off > 2), vote, 0)
        better.append(_better(grid, gray(frame), gray(frame + hop), motion, smooth))
    if not better:
        return np.zeros((len(votes), SPOTS**2))
    return votes[:, None] ** 2 * np.min(better, axis=0)


def _better(
    grid: Grid, gray: np.ndarray, other: np.ndarray, motion: np.ndarray, smooth: np.ndarray
) -> np.ndarray:
    """How much better `motion` of the cells (n, 2) explains the other image than `smooth` does.

    At each spot, (n, SPOTS²): 0 where it doesn't, 1 where it surely does.
    """
    import cv2

    height, width = gray.shape
    wide = np.array(grid.shape[::-1]) * grid.cell
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in (width, height)))
    missed = []
    for led in (motion, smooth):
        coarse = led.reshape(*grid.shape, 2).astype(np.float32)
        fine = cv2.resize(coarse, tuple(wide), interpolation=cv2.INTER_LINEAR)[:height, :width]
        ahead = cv2.remap(
            other, x + fine[..., 0], y + fine[..., 1], cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        gap = cv2.absdiff(gray, ahead).astype(np.float32)
        missed.append(cv2.blur(gap, (PATCH, PATCH)))
    better = (missed[1] - missed[0]) / (missed[1] + missed[0] + 2 * NOISE)
    return (grid.spots(better, 0) / SURE).clip(0, 1)


def _motions(
    grid: Grid, flows: Sequence[Flow], frame: int
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """HOPS, negative if back; cells' motion (n, 2) over each, and where it is known (n,)."""
    led, way = list(flows[frame : frame + HOPS[-1]]), 1
    if len(led) < HOPS[-1]:
        back = [flow.reversed() for flow in reversed(flows[max(0, frame - HOPS[-1]) : frame])]
        led, way = (back, -1) if len(back) > len(led) else (led, 1)
    place, known = grid.centers, np.full(len(grid.centers), len(led) > 0)
    motions = []
    for hop, flow in enumerate(led, 1):
        ahead = place + flow.at(flow.there, place)
        known = known & (np.linalg.norm(ahead + flow.at(flow.back, ahead) - place, axis=1) < 1.5)
        place = ahead
        if hop in HOPS:
            inside = ((place >= 0) & (place < grid.size)).all(1)
            motions.append((way * hop, place - grid.centers, known & inside))
    return motions


def _off_smooth(grid: Grid, motion: np.ndarray, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A robust cubic's motion of the cells (n, 2), and how many deviations theirs is off (n,)."""
    x, y = (2 * grid.centers / grid.size - 1).T
    powers = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], axis=-1)
    weight = np.ones((len(some), 1))
    for _ in range(8):
        fit = np.linalg.lstsq(weight * powers[some], weight * motion[some], rcond=None)[0]
        smooth = powers @ fit
        error = np.linalg.norm(motion - smooth, axis=1)
        error /= max(1.5 * float(np.median(error[some])), 0.1)
        weight = 1 / (1 + error[some, None] ** 2)
    return smooth, error


def _off_epipolar(grid: Grid, motion: np.ndarray, some: np.ndarray) -> np.ndarray:
    """How far each cell's motion (n,) is from its epipolar line, in standard deviations."""
    import cv2

    before, after = grid.centers, grid.centers + motion
    some = some[:: -(-len(some) // 500)]
    matrix, _ = cv2.findFundamentalMat(before[some], after[some], cv2.FM_LMEDS)
    if matrix is None:
        return np.zeros(len(motion))
    one, other = (np.insert(p.astype(float), 2, 1, axis=1) for p in (before, after))
    lines, back = one @ matrix.T, other @ matrix
    length = np.sqrt((lines[:, :2] ** 2).sum(1) + (back[:, :2] ** 2).sum(1)) + 1e-12
    error = np.abs((other * lines).sum(1)) / length
    return error / max(1.5 * float(np.median(error[some])), 0.1)


def place(
    grid: Grid, frame: Frame, subject: np.ndarray, there: np.ndarray, count: int
) -> np.ndarray:
    """Where `count` new tracks start in a frame.

    Args:
        grid: of the frame.
        frame: the image.
        subject: (n, SPOTS²) of `moving`, to which half of the tracks are drawn.
        there: (m, 2) pixels of the tracks that there are.
        count: of the new ones.

    Returns:
        (count, 2) float32 whole pixels.
    """
    import cv2

    rows, columns = grid.shape
    step = grid.cell // SPOTS
    best = grid.spots(cv2.cornerMinEigenVal(frame.gray.astype(np.float32) / 255, 5), -1)

    texture = (best.max(1) / TEXTURED).clip(PLAIN, 1)
    share = texture / texture.sum()
    lively = subject.sum(1) * (best.max(1) / FAINT).clip(PLAIN, 1)
    if lively.any():
        lively = _shared(grid, lively)
        best = np.where(subject > 0.4 * subject.max(1, keepdims=True), 1 + best, best)
        share = (1 - SUBJECT) * share + SUBJECT * lively / lively.sum()
    counts = np.bincount(grid.of(there), minlength=len(share)).astype(np.float32)
    counts = cv2.GaussianBlur(counts.reshape(rows, columns), (0, 0), 1).ravel()
    lack = (share * (len(there) + count) - counts).clip(1e-6)
    for _ in range(5):  # what is too much for a cell goes to the others
        lack = (lack * count / lack.sum()).clip(max=CELL)

    x, y = (there % grid.cell // step).astype(int).T
    best[grid.of(there), SPOTS * y + x] -= 2  # not on another track

    # Evenly along the cells' rows, so that no two fall together where few are due.
    way = np.arange(rows * columns).reshape(rows, columns)
    way[1::2] = way[1::2, ::-1]
    total = np.cumsum(lack[way.ravel()])
    turn = (np.arange(count) + 0.5) / count * total[-1]
    picked = np.searchsorted(total, turn)
    rank = np.arange(count) - np.searchsorted(picked, picked)
    cells = way.ravel()[picked]
    spot = np.argsort(-best, axis=1, kind="stable")[cells, rank % SPOTS**2]
    inside = np.stack([spot % SPOTS, spot // SPOTS], -1) * step + step // 2
    corner_of = np.stack([cells % columns, cells // columns], -1) * grid.cell
    return np.minimum(corner_of + inside, grid.size - 1).astype(np.float32)


def _shared(grid: Grid, weight: np.ndarray) -> np.ndarray:
    """Cells' weights (n,), so that a large or fast mover doesn't take what is due to the others."""
    import cv2

    there = (weight > 0.1 * weight.max()).reshape(grid.shape)
    count, mover = cv2.connectedComponents(there.astype(np.uint8))
    mover = mover.ravel()
    total = np.bincount(mover, weight, count)[mover]
    return np.where(mover > 0, weight * total.clip(1e-9) ** (POWER - 1), 0)
