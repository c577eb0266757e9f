"""A street with people, drawn from flat textured pieces, in which every pixel's way is known."""

from dataclasses import dataclass

import cv2
import numpy as np

HEIGHT_OF_EYE = 1.6  # metres


@dataclass
class Street:
    """A clip and what moves in it.

    Attributes:
        frames: (T, H, W, 3) uint8.
        layers: (T, H, W) uint8, the piece that each pixel shows, from far to near.
        homographies: (T, L, 3, 3), from each piece's texture to the image.
        moves: (L,) bool, the pieces of people.
    """

    frames: np.ndarray
    layers: np.ndarray
    homographies: np.ndarray
    moves: np.ndarray

    def tracks(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The truth of (N, 3) queries of frame, x, y.

        Returns:
            (T, N, 2) pixels, (T, N) whether seen, (N,) whether the query is on a person.
        """
        start, (x, y) = queries[:, 0].astype(int), np.rint(queries[:, 1:]).astype(int).T
        piece = self.layers[start, y, x]
        point = np.insert(queries[:, 1:].astype(float), 2, 1, axis=1)[..., None]
        since = self.homographies[:, piece] @ np.linalg.inv(self.homographies[start, piece])
        moved = (since @ point)[..., 0]
        pixel = moved[..., :2] / moved[..., 2:]
        _, height, width = self.layers.shape
        inside = (moved[..., 2] > 0) & (pixel > 0).all(-1)
        inside &= (pixel < np.array([width, height]) - 1).all(-1)
        near = np.rint(np.where(inside[..., None], pixel, 0)).astype(int)
        shown = self.layers[np.arange(len(self.layers))[:, None], near[..., 1], near[..., 0]]
        return pixel, inside & (shown == piece), self.moves[piece]


def texture(height: int, width: int, seed: int, contrast: float = 1.0) -> np.ndarray:
    """Patches of colour with edges, and grain of several sizes, (height, width, 3) uint8."""
    random = np.random.default_rng(seed)
    image = np.full((height, width, 3), random.uniform(60, 190, 3), np.float32)
    for _ in range(40):
        corners = random.uniform(-0.2, 1.2, (4, 2)) * [width, height]
        centre, size = random.uniform(0, 1, 2) * [width, height], random.uniform(0.02, 0.2)
        corners = centre + size * (corners - corners.mean(0))
        colour = random.normal(0, 35 * contrast, 3)
        mask = np.zeros((height, width), np.uint8)
        cv2.fillConvexPoly(mask, cv2.convexHull(corners.astype(np.int32)), 1)
        image[mask > 0] += colour.astype(np.float32)
    for blur, amount in ((1.0, 6), (3, 10), (9, 12)):
        noise = cv2.GaussianBlur(
            random.normal(size=(height, width)).astype(np.float32), (0, 0), blur
        )
        image += (amount * contrast * noise / noise.std())[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def street(
    count: int = 50,
    size: tuple[int, int] = (384, 512),
    people: int = 3,
    speed: float = 0.04,
    contrast: float = 0.4,
    quality: int = 95,
    seed: int = 0,
) -> Street:
    """Walk forward between two walls at `speed` metres a frame, past people who walk too.

    Their clothes have a `contrast` and folds whose shade comes and goes; frames are compressed to a
    JPEG `quality`.
    """
    random = np.random.default_rng(seed)
    height, width = size
    focal = 0.9 * width
    camera = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    corners: list[np.ndarray] = []  # (T, 3 points: origin, x and y ends; 3 metres) of each piece
    textures: list[np.ndarray] = []
    moves: list[bool] = []

    def add(corner: np.ndarray, shape: tuple[int, int], contrast: float, alive: bool) -> None:
        corners.append(np.broadcast_to(corner, (count, 3, 3)))
        textures.append(texture(*shape, seed=int(random.integers(1 << 30)), contrast=contrast))
        moves.append(alive)

    far, side = 40.0, 5.0
    add(np.array([[-40, -16, far], [40, -16, far], [-40, 4, far]]), (250, 1000), 1.0, False)
    ground = HEIGHT_OF_EYE
    floor = np.array([[-side, ground, 1], [side, ground, 1], [-side, ground, far]])
    add(floor, (1000, 300), 0.6, False)
    for x in (-side, side):
        wall = np.array([[x, ground - 4, 1], [x, ground - 4, far], [x, ground, 1]])
        add(wall, (200, 1200), 1.0, False)
    upright = []  # distance, and how to add it: what stands before what is known by distance
    for _ in range(4):
        x, z, wide = random.uniform(-4, 4), random.uniform(6, 25), random.uniform(0.15, 1.0)
        corner = np.array([[x, ground - 2, z], [x + wide, ground - 2, z], [x, ground, z]])
        upright.append((z, [(corner, (400, max(24, int(200 * wide))), 1.0, False)]))
    for _ in range(people):
        x, z = random.uniform(-2, 2), random.uniform(3.5, 9)
        velocity = np.array([random.uniform(-0.03, 0.03), 0, random.uniform(-0.02, 0.06)])
        person = _person(count, np.array([x, ground, z]), velocity, random)
        upright.append((z, [(*piece, contrast, True) for piece in person]))
    for _, pieces in sorted(upright, key=lambda pair: -pair[0]):
        for piece in pieces:
            add(*piece)

    time = np.arange(count)
    sway = [np.cumsum(random.normal(0, a, (count, 3)), 0) for a in (0.004, 0.001)]
    position = np.stack([0 * time, 0 * time, speed * time], -1) + sway[0]
    turn = np.stack([cv2.Rodrigues(vector)[0] for vector in sway[1]])
    project = camera @ turn
    homographies = np.empty((count, len(corners), 3, 3))
    for piece, (corner, image) in enumerate(zip(corners, textures, strict=True)):
        rows, columns = image.shape[:2]
        origin = corner[:, 0] - position
        basis = [(corner[:, 1] - corner[:, 0]) / columns, (corner[:, 2] - corner[:, 0]) / rows]
        homographies[:, piece] = project @ np.stack([*basis, origin], -1)
    folds = random.normal(size=(2, 400, 400)).astype(np.float32)
    folds = np.stack([cv2.GaussianBlur(one, (0, 0), 8) for one in folds])
    folds *= 15 * contrast / folds.std()
    frames, layers = np.zeros((count, *size, 3), np.uint8), np.zeros((count, *size), np.uint8)
    for t in range(count):
        shade = np.cos(0.2 * t) * folds[0] + np.sin(0.2 * t) * folds[1]
        folded = [
            np.clip(im + shade[: len(im), : im.shape[1], None], 0, 255) if alive else im
            for im, alive in zip(textures, moves, strict=True)
        ]
        image, layers[t] = _draw([im.astype(np.uint8) for im in folded], homographies[t], size)
        image = np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
        coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        frames[t] = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return Street(frames, layers, homographies, np.array(moves))


def _person(count, feet, velocity, random):
    """Trunk, head and limbs that swing in the picture's plane, back to front."""
    time = np.arange(count)[:, None]
    middle = feet + velocity * time
    phase = random.uniform(0, 6) + 0.25 * time[:, 0]
    parts = [
        (0.0, 0.85, 0.14, 0.35, 0.05), (0.0, 0.85, 0.14, -0.35, -0.05),
        (0.22, 1.4, 0.1, 0.4, 0), (0.0, 1.45, 0.42, 0.03, 0), (0.0, 1.75, 0.2, 0.05, 0),
        (-0.22, 1.4, 0.1, -0.4, 0),
    ]  # fmt: skip
    lengths = (0.85, 0.85, 0.6, 0.65, 0.28, 0.6)
    for (x, y, wide, swing, shift), long in zip(parts, lengths, strict=True):
        angle = swing * np.sin(phase)
        down = np.stack([np.sin(angle), np.cos(angle), 0 * angle], -1)
        across = np.stack([np.cos(angle), -np.sin(angle), 0 * angle], -1)
        joint = middle + np.array([x + shift, -y, 0])
        start = joint - across * wide / 2
        corner = np.stack([start, start + across * wide, start + down * long], 1)
        yield corner, (int(220 * long), int(220 * wide))


def _draw(textures, homographies, size) -> tuple[np.ndarray, np.ndarray]:
    """One frame, drawn at twice the size and averaged, and the piece at each pixel."""
    height, width = size
    double = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])
    image = np.full((2 * height, 2 * width, 3), (225, 228, 230), np.uint8)
    layer = np.zeros((height, width), np.uint8)
    for piece, (source, homography) in enumerate(zip(textures, homographies, strict=True)):
        mask = np.full(source.shape[:2], 255, np.uint8)
        wide = double @ homography, (2 * width, 2 * height)
        covered = cv2.warpPerspective(mask, *wide, flags=cv2.INTER_NEAREST)
        drawn = cv2.warpPerspective(source, *wide, flags=cv2.INTER_LINEAR)
        image[covered > 0] = drawn[covered > 0]
        there = cv2.warpPerspective(mask, homography, (width, height), flags=cv2.INTER_NEAREST)
        layer[there > 0] = piece
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), layer
