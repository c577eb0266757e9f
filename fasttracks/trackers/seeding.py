"""Where new tracks start: on texture, more of them on what moves, where no others are."""

from collections.abc import Sequence

import numpy as np

from fasttracks.trackers.follower import Flow, Frame

SPOTS = 4  # places in a cell, each way, that a track may start at
HOPS = 6, 18  # frames that motion is compared over
SUBJECT = 0.5  # of the tracks go where something moves by itself
PLAIN = 0.15  # of a textured cell's share goes to one without texture
TEXTURED = 0.002  # least eigenvalue of a corner, of intensities in 0..1
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


def moving(grid: Grid, flows: Sequence[Flow], frame: int) -> np.ndarray:
    """How surely each cell of a frame moves by itself, (n,) from 0 on.

    The motion over some frames is compared with a cubic of the image's coordinates, which most
    of it follows, and with the epipolar geometry of a moving camera: a near wall breaks the
    first alone. Each is a vote of the tenth of the cells that it fits least.
    """
    votes = np.zeros(len(grid.centers))
    for motion, known in _motions(grid, flows, frame):
        cells = np.flatnonzero(known)
        if len(cells) < max(50, 0.2 * len(known)):
            continue
        some = cells[:: -(-len(cells) // FIT)]
        for error in (_off_smooth(grid, motion, some), _off_epipolar(grid, motion, some)):
            low, high = np.quantile(error[cells], (0.9, 0.99))
            vote = ((error - low) / (high - low + 1e-9)).clip(0, 1)
            votes += np.where(known & (error > 2), vote, 0)
    return votes**2


def _motions(grid: Grid, flows: Sequence[Flow], frame: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cells' motion (n, 2) over each of HOPS, ahead or back, and where it is known (n,)."""
    led = list(flows[frame : frame + HOPS[-1]])
    if len(led) < HOPS[-1]:
        back = [flow.reversed() for flow in reversed(flows[max(0, frame - HOPS[-1]) : frame])]
        led = max(led, back, key=len)
    place, known = grid.centers, np.full(len(grid.centers), len(led) > 0)
    motions = []
    for hop, flow in enumerate(led, 1):
        ahead = place + flow.at(flow.there, place)
        known = known & (np.linalg.norm(ahead + flow.at(flow.back, ahead) - place, axis=1) < 1.5)
        place = ahead
        if hop in HOPS:
            inside = ((place >= 0) & (place < grid.size)).all(1)
            motions.append((place - grid.centers, known & inside))
    return motions


def _off_smooth(grid: Grid, motion: np.ndarray, some: np.ndarray) -> np.ndarray:
    """How far each cell's motion (n,) is from a robust cubic's, in standard deviations."""
    x, y = (2 * grid.centers / grid.size - 1).T
    powers = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], axis=-1)
    weight = np.ones((len(some), 1))
    for _ in range(8):
        fit = np.linalg.lstsq(weight * powers[some], weight * motion[some], rcond=None)[0]
        error = np.linalg.norm(motion - powers @ fit, axis=1)
        error /= max(1.5 * float(np.median(error[some])), 0.1)
        weight = 1 / (1 + error[some, None] ** 2)
    return error


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
        subject: (n,) of `moving`, to which half of the tracks are drawn.
        there: (m, 2) pixels of the tracks that there are.
        count: of the new ones.

    Returns:
        (count, 2) float32 whole pixels.
    """
    import cv2

    rows, columns = grid.shape
    height, width = frame.gray.shape
    step = grid.cell // SPOTS
    corner = cv2.cornerMinEigenVal(frame.gray.astype(np.float32) / 255, 5)
    wide = np.full((rows * grid.cell, columns * grid.cell), -1.0, np.float32)
    wide[:height, :width] = corner
    best = wide[step // 2 :: step, step // 2 :: step]
    best = best.reshape(rows, SPOTS, columns, SPOTS).swapaxes(1, 2).reshape(-1, SPOTS**2)

    texture = (best.max(1) / TEXTURED).clip(PLAIN, 1)
    share = texture / texture.sum()
    lively = subject * texture.clip(0.5)
    if lively.any():
        share = (1 - SUBJECT) * share + SUBJECT * lively / lively.sum()
    counts = np.bincount(grid.of(there), minlength=len(share)).astype(np.float32)
    counts = cv2.GaussianBlur(counts.reshape(rows, columns), (0, 0), 1).ravel()
    lack = (share * (len(there) + count) - counts).clip(1e-6)

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
