"""Small patches of images, found again where they turned, grew and changed their brightness.

Alignment is inverse compositional (Baker and Matthews, 2004), over similarities, on patches
of zero mean and unit norm, so that brightness and contrast don't matter.
"""

from dataclasses import dataclass, fields

import numpy as np

FAR = 2.0  # pixels of the patch that one iteration may move it
BENT = 0.3  # of its size that one iteration may change it
STIFF = 0.3  # what holds scale and turn where the texture doesn't tell them
HOLD = 0.3  # what holds x and y to the guess there
NOISE = 4.0  # gray levels that say nothing


def grid(radius: int) -> np.ndarray:
    """(m, 2) float32: whole x, y around 0, row by row."""
    across = np.arange(-radius, radius + 1, dtype=np.float32)
    return np.stack(np.meshgrid(across, across), axis=-1).reshape(-1, 2)


def window(radius: int) -> np.ndarray:
    """(m,) float32: square roots of Gaussian weights that sum to 1, for `grid`'s points."""
    weight = np.exp(-0.5 * (grid(radius) ** 2).sum(1) / (0.7 * radius) ** 2)
    return np.sqrt(weight / weight.sum())


def sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """An (H, W) or (H, W, C) image at points (..., 2), bilinear; beyond it, its border."""
    import cv2

    points = np.asarray(points, np.float32)
    flat = points.reshape(-1, points.shape[-2], 2)
    # remap takes at most 32,767 rows, and no view.
    found = [
        cv2.remap(
            image,
            np.ascontiguousarray(part[..., 0]),
            np.ascontiguousarray(part[..., 1]),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for part in np.split(flat, range(32_000, len(flat), 32_000))
        if part.size
    ]
    shape = points.shape[:-1] + image.shape[2:]
    return np.concatenate(found).reshape(shape) if found else np.zeros(shape, np.float32)


@dataclass
class Patches:
    """n patches of (2 · radius + 1)² = m pixels, and how to align them.

    Attributes:
        values: (n, m) float32, weighted, of zero mean and unit norm.
        solve: (n, 4, m), from the values seen at a guess to its error: scale, turn, x, y.
        hold: (n, 4, 2), from how far x and y went from the first guess to the same.
        warp: (n, 2, 2), from the patch's pixels to the image's, as last aligned.
    """

    values: np.ndarray
    solve: np.ndarray
    hold: np.ndarray
    warp: np.ndarray

    @classmethod
    def cut(cls, image: np.ndarray, points: np.ndarray, radius: int) -> "Patches":
        """The patches around (n, 2) points of a float32 image."""
        n, m, side = len(points), (2 * radius + 1) ** 2, 2 * radius + 3
        wide = sample(image, points[:, None] + grid(radius + 1)).reshape(n, side, side)
        root = window(radius)
        values = wide[:, 1:-1, 1:-1].reshape(n, m)
        values = root * (values - (values @ root**2)[:, None])
        norm = np.sqrt((values**2).sum(1, keepdims=True) + NOISE**2)
        values = values / norm
        right = (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]).reshape(n, m) / 2
        down = (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]).reshape(n, m) / 2
        x, y = grid(radius).T
        slopes = np.stack([right * x + down * y, down * x - right * y, right, down], 1)
        slopes *= (root / norm)[:, None]
        for flat in (np.broadcast_to(root, values.shape), values):  # brightness and contrast
            slopes -= (slopes @ flat[:, :, None]) * flat[:, None]
        prior = np.diag([STIFF, STIFF, HOLD, HOLD])
        inverse = np.linalg.inv(slopes @ slopes.swapaxes(1, 2) + prior).astype(np.float32)
        warp = np.tile(np.eye(2, dtype=np.float32), (n, 1, 1))
        solve, hold = inverse @ slopes.astype(np.float32), HOLD * inverse[:, :, 2:]
        return cls(values.astype(np.float32), solve, hold, warp)

    def align(
        self, image: np.ndarray, points: np.ndarray, which: np.ndarray, iterations: int = 3
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find patches `which` (k,) in a float32 image near (k, 2) points.

        Returns:
            Where they are (k, 2), the warps there (k, 2, 2), and how well they correlate (k,).
        """
        radius = (int(np.sqrt(self.values.shape[1])) - 1) // 2
        root, around = window(radius), grid(radius)
        values, solve = self.values[which], self.solve[which]
        hold, warp = self.hold[which], self.warp[which]

        def look() -> np.ndarray:
            seen = sample(image, points[:, None] + around @ warp.swapaxes(1, 2))
            seen = root * (seen - (seen @ root**2)[:, None])
            return seen / np.sqrt((seen**2).sum(1, keepdims=True) + NOISE**2)

        guess = points
        for _ in range(iterations):
            gone = np.linalg.inv(warp) @ (points - guess)[..., None]
            error = (solve @ look()[..., None] + hold @ gone)[..., 0]
            grow, turn = error[:, 0].clip(-BENT, BENT), error[:, 1].clip(-BENT, BENT)
            change = np.stack([1 + grow, -turn, turn, 1 + grow], -1).reshape(-1, 2, 2)
            warp = warp @ np.linalg.inv(change)
            points = points - (warp @ error[:, 2:, None].clip(-FAR, FAR))[..., 0]
        return points, warp, 1 - ((look() - values) ** 2).sum(1) / 2

    def put(self, which: np.ndarray, other: "Patches") -> None:
        """Replace patches `which` by the other's."""
        for field in fields(self):
            getattr(self, field.name)[which] = getattr(other, field.name)

    def join(self, other: "Patches") -> "Patches":
        """These and the other's."""
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return Patches(*(np.concatenate(pair) for pair in pairs))
