"""A page that shows a stream's cameras and points while frames arrive."""

from typing import NamedTuple

import numpy as np

from fasttracks.errors import InputError

MOST_POINTS = 20_000  # still points that are kept in sight, the newest
STILL, MOVING, _CAMERA, _PATH = (70, 120, 220), (220, 70, 60), (240, 180, 40), (150, 150, 150)


class Newest(NamedTuple):
    """What there is to show of a stream's newest frame."""

    pose: np.ndarray  # (4, 4) camera to world
    intrinsics: np.ndarray  # (3, 3) in pixels of the image
    ids: np.ndarray  # (n,) of tracks
    points: np.ndarray  # (n, 3) in the world
    moving: np.ndarray  # (n,) bool
    image: np.ndarray  # (H, W, 3) uint8 RGB
    words: dict[str, str]  # what to say beside it, by name

    @property
    def distance(self) -> float:
        """Of the points from the camera, in the median."""
        return float(np.median(np.linalg.norm(self.points - self.pose[:3, 3], axis=1)))


class Cloud:
    """Still points by their tracks' ids, each where it was last said to be."""

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._points: dict[int, np.ndarray] = {}

    def add(self, ids: np.ndarray, points: np.ndarray) -> np.ndarray:
        """All points (m, 3) after these (n,), (n, 3); the oldest go where they are too many."""
        for number, point in zip(ids.tolist(), points, strict=True):
            self._points.pop(number, None)
            self._points[number] = point
        while len(self._points) > self._most:
            del self._points[next(iter(self._points))]
        return np.array(list(self._points.values()), np.float32).reshape(-1, 3)

    def clear(self) -> None:
        self._points.clear()


class Page:
    """A page in the browser, by viser; `url` is where.

    Raises:
        InputError: viser is not installed.
    """

    def __init__(self, port: int = 8080, host: str = "127.0.0.1") -> None:
        try:
            import viser
        except ImportError:
            raise InputError(
                "live: the package viser is not installed; 'pip install viser' brings it"
            ) from None
        self._turn = viser.transforms.SO3.from_matrix
        self._server = viser.ViserServer(host=host, port=port, label="fasttracks", verbose=False)
        self._server.scene.set_up_direction("-y")  # of OpenCV's cameras
        self._text = self._server.gui.add_markdown("waiting for a full window")
        self._cloud, self._path = Cloud(), np.zeros((0, 3), np.float32)
        self._home = False
        self.url = f"http://{host}:{self._server.get_port()}"

    def show(self, newest: Newest) -> None:
        """Show the newest frame."""
        pose, intrinsics, ids, points, moving, image, words = newest
        scene = self._server.scene
        distance = newest.distance
        still = self._cloud.add(ids[~moving], points[~moving])
        self._path = np.concatenate([self._path, pose[None, :3, 3]])[-MOST_POINTS:]
        size = 0.005 * distance
        with self._server.atomic():
            scene.add_point_cloud("still", still, STILL, point_size=size, point_shape="circle")
            scene.add_point_cloud(
                "moving", points[moving], MOVING, point_size=1.5 * size, point_shape="circle"
            )
            if len(self._path) > 1:
                pairs = np.stack([self._path[:-1], self._path[1:]], 1)
                scene.add_line_segments("path", pairs, _PATH, thickness=0.3 * size)
            height, width = image.shape[:2]
            scene.add_camera_frustum(
                "camera",
                fov=2 * float(np.arctan(height / 2 / intrinsics[1, 1])),
                aspect=width / height,
                scale=0.15 * distance,
                color=_CAMERA,
                image=image[:: max(1, height // 180), :: max(1, height // 180)],
                wxyz=self._turn(pose[:3, :3].astype(float)).wxyz,
                position=pose[:3, 3],
            )
            self._text.content = "  \n".join(f"{name}: **{word}**" for name, word in words.items())
        if not self._home:
            self._look_on(pose, distance)

    def _look_on(self, pose: np.ndarray, distance: float) -> None:
        """Begin behind the camera, a little above it."""
        eye, target = pose[:3, 3] - distance * pose[:3, 2], pose[:3, 3] + distance * pose[:3, 2]
        view = self._server.initial_camera
        view.position = tuple((eye - 0.4 * distance * pose[:3, 1]).tolist())
        view.look_at = tuple(target.tolist())
        self._home = True

    def clear(self) -> None:
        """Forget all, as another world begins."""
        self._cloud.clear()
        self._path, self._home = self._path[:0], False

    def close(self) -> None:
        """Let the page go."""
        self._server.stop()
