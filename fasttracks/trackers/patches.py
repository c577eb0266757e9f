"""Small patches of images, found again where they turned, grew and changed their brightness.

Alignment is inverse compositional (Baker and Matthews, 2004), over similarities, which are
complex numbers here: a place in a patch is multiplied by one and moved. Values have zero mean
and unit norm, so that brightness and contrast don't matter.
"""

from dataclasses import dataclass, fields

import numpy as np

RADIUS = 5  # pixels around a point that are its patch
FAR = 2.0  # pixels of the patch that one iteration may move it
BENT = 0.3  # of its size that one iteration may change it
STIFF = 0.15  # what holds scale and turn where the texture doesn't tell them
HOLD = 0.2  # what holds x and y to the guess there
NOISE = 3.0  # gray levels that say nothing

_across = np.arange(-RADIUS, RADIUS + 1)
_square = _across + 1j * _across[:, None]
_disc = np.abs(_square) < RADIUS + 0.3
PLACES = _square[_disc].astype(np.complex64)  # (m,)
# Square roots of Gaussian weights that sum to 1.
ROOT = np.exp(-0.25 * (np.abs(PLACES) / (0.7 * RADIUS)) ** 2)
ROOT /= np.sqrt((ROOT**2).sum())


def sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """An (H, W) or (H, W, C) image at points (n, m, 2), bilinear; beyond it, its border."""
    import cv2

    x, y = np.moveaxis(np.asarray(points, np.float32), -1, 0)
    # remap takes at most 32,767 rows, and no view.
    parts = [slice(begin, begin + 32_000) for begin in range(0, len(x), 32_000)]
    found = [
        cv2.remap(
            image,
            np.ascontiguousarray(x[part]),
            np.ascontiguousarray(y[part]),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for part in parts
    ]
    shape = points.shape[:2] + image.shape[2:]
    return np.concatenate(found).reshape(shape) if found else np.zeros(shape, np.float32)


def _look(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted values (n, m) of zero mean at complex points (n, m), and the norms (n, 1)."""
    values = sample(image, points.view(np.float32).reshape(*points.shape, 2))
    values = ROOT * (values - (values @ ROOT**2)[:, None])
    return values, np.sqrt((values**2).sum(1, keepdims=True) + NOISE**2)


@dataclass
class Patches:
    """n patches of m pixels, and how to align them.

    Attributes:
        values: (n, m) float32, weighted, of zero mean and at most unit norm.
        solve: (n, 4, m), from the values seen at a guess to its error: scale, turn, x, y.
        hold: (n, 4, 2), from how far x and y went from the first guess to the same.
        warp: (n,) complex64, from the patch's places to the image's, as last aligned.
    """

    values: np.ndarray
    solve: np.ndarray
    hold: np.ndarray
    warp: np.ndarray

    @classmethod
    def cut(cls, image: np.ndarray, points: np.ndarray) -> "Patches":
        """The patches around (n, 2) points of a float32 image."""
        n, side = len(points), 2 * RADIUS + 3
        across = np.arange(side, dtype=np.float32) - RADIUS - 1
        around = np.stack(np.meshgrid(across, across), axis=-1).reshape(-1, 2)
        wide = sample(image, points[:, None] + around).reshape(n, side, side)
        right = ((wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2)[:, _disc]
        down = ((wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2)[:, _disc]
        values = wide[:, 1:-1, 1:-1][:, _disc]
        values = ROOT * (values - (values @ ROOT**2)[:, None])
        norm = np.sqrt((values**2).sum(1, keepdims=True) + NOISE**2)
        values = values / norm
        x, y = PLACES.real, PLACES.imag
        slopes = np.stack([right * x + down * y, down * x - right * y, right, down], 1)
        slopes *= (ROOT / norm)[:, None]
        for flat in (np.broadcast_to(ROOT, values.shape), values):  # brightness and contrast
            slopes -= (slopes @ flat[:, :, None]) * flat[:, None]
        prior = np.diag(np.array([STIFF, STIFF, HOLD, HOLD], np.float32))
        inverse = np.linalg.inv(slopes @ slopes.swapaxes(1, 2) + prior)
        return cls(values, inverse @ slopes, HOLD * inverse[:, :, 2:], np.ones(n, np.complex64))

    def align(
        self, image: np.ndarray, points: np.ndarray, which: np.ndarray, iterations: int = 2
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find patches `which` (k,) in a float32 image near (k, 2) points.

        Returns:
            Where they are (k, 2), the warps there (k,), and how like they are (k,): the
            correlation, or 1 where neither has texture.
        """
        guess = np.ascontiguousarray(points, np.float32).view(np.complex64)[:, 0]
        solve, hold, warp = self.solve[which], self.hold[which], self.warp[which]
        place = guess
        for _ in range(iterations):
            values, norm = _look(image, place[:, None] + warp[:, None] * PLACES)
            gone = ((place - guess) / warp)[:, None].view(np.float32)
            error = (solve @ (values / norm)[..., None] + hold @ gone[..., None])[..., 0]
            grow, turn = error[:, :2].clip(-BENT, BENT).T
            warp = warp / (1 + grow + 1j * turn)
            x, y = error[:, 2:].clip(-FAR, FAR).T
            place = place - warp * (x + 1j * y)
        values, norm = _look(image, place[:, None] + warp[:, None] * PLACES)
        like = 1 - ((values / norm - self.values[which]) ** 2).sum(1) / 2
        return place[:, None].view(np.float32), warp, like

    def put(self, which: np.ndarray, other: "Patches") -> None:
        """Replace patches `which` by the other's."""
        for field in fields(self):
            getattr(self, field.name)[which] = getattr(other, field.name)

    def keep(self, which: np.ndarray) -> "Patches":
        """Those at indices, or where a mask (n,) is true."""
        return Patches(*(getattr(self, field.name)[which] for field in fields(self)))

    def join(self, other: "Patches") -> "Patches":
        """These and the other's."""
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return Patches(*(np.concatenate(pair) for pair in pairs))
