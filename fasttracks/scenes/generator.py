"""Casual clips with full truth, made up: bodies and things in places, seen by moving cameras.

Everything is batched on one device and drawn from one generator. A scene is a set of rounded
cones and boxes with rigid poses over time, inside planes. Rays through query pixels find what
they see first; a hit moves with the bone it is on, and is visible where nothing hides it.

World: z up, ground at 0 (below, where only a backdrop is seen), lengths such that the subject is
4 to 16 units from the camera. Cameras as in `geometry`: x right, y down, z forward.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fasttracks.evaluation.metrics import Truth
from fasttracks.geometry import MIN_DEPTH
from fasttracks.scenes import passages
from fasttracks.scenes.library import Library
from fasttracks.scenes.queries import attach, place_queries
from fasttracks.scenes.rays import in_sight
from fasttracks.scenes.sampling import Draw, rotate_back
from fasttracks.scenes.scene import Scene, choose_lens, compose
from fasttracks.scenes.skeletons import BONES
from fasttracks.scenes.tracker_errors import Texture, add_tracker_errors
from fasttracks.scenes.variety import Variety


@dataclass
class Clips:
    """B clips of T frames and N tracks on one device, float32.

    Image coordinates are normalised by the focal length that is assumed: where the true one is
    unknown that is `Variety.assumed_focal`, and `focal` is the correction to find.
    """

    tracks: Tensor  # (B, T, N, 3) u, v and visibility: a tracker's, held where it is 0
    truth_tracks: Tensor  # (B, T, N, 2) exact projections; meaningless behind the camera
    visible: Tensor  # (B, T, N) bool: in front, in the image, and not hidden
    points_camera: Tensor  # (B, T, N, 3) in each frame's camera, also where not visible
    rotation: Tensor  # (B, T, 3, 3) camera to world
    position: Tensor  # (B, T, 3)
    moving: Tensor  # (B, N) bool: moves in the world, by over 0.1 % of the subject's distance
    focal: Tensor  # (B,) true over assumed focal length; projection = focal · xy / z
    pixels: Tensor  # (B,) the assumed focal length in pixels
    extent: Tensor  # (B, 2) half the image's width and height, normalised
    query: Tensor  # (B, N) the frames in which tracks start
    body: Tensor  # (B, N) which of the bodies they are on, or a number after those

    @property
    def truth(self) -> Truth:
        """What a prediction from `tracks` is held against."""
        return Truth(
            self.points_camera,
            self.rotation,
            self.position,
            self.visible,
            self.moving,
            self.truth_tracks,
            self.focal,
            self.body,
        )


def seeded(seed: int, split: str, device: str | torch.device) -> torch.Generator:
    """A generator for a split; any other seed or split draws other numbers.

    Mixed first, as a CPU's generator takes no more than the low 32 bits of its seed.
    """
    mixed = hashlib.blake2b(f"{split} {seed}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(mixed, "little"))


@torch.no_grad()
def generate(
    batch: int,
    frames: int,
    tracks: int,
    *,
    library: Library,
    generator: torch.Generator,
    variety: Variety | None = None,
) -> Clips:
    """Make `batch` clips of `frames` × `tracks` on the library's device.

    Equal states of the generator give equal clips on one device. Waits for no GPU, so it can be
    queued on a stream of its own.
    """
    return _shoot(batch, frames, tracks, library, Draw(generator), variety or Variety())[1]


def _shoot(
    batch: int,
    frames: int,
    tracks: int,
    library: Library,
    draw: Draw,
    variety: Variety,
) -> tuple[Scene, Clips]:
    lens = choose_lens(draw, variety, batch)
    composed = passages.compose if variety.passage else compose
    scene = composed(draw, library, variety, lens, frames)
    query, pixel = place_queries(draw, variety, scene, lens, tracks)
    points, slack, surface = attach(draw, variety, scene, lens, query, pixel)

    camera = points - scene.position[:, :, None]
    camera = rotate_back(scene.rotation[:, :, None], camera)
    depth = camera[..., 2:]
    truth = camera[..., :2] / depth.clamp(min=MIN_DEPTH)
    focal = lens.focal[:, None, None, None]
    extent = lens.extent / lens.focal[:, None]
    inside = (truth.abs() <= extent[:, None, None]).all(-1) & (depth[..., 0] > MIN_DEPTH)
    visible = inside & in_sight(scene.solids, scene.planes, scene.position, points, slack)
    travel = (points - points[:, :1]).square().sum(-1).amax(1)
    counts = scene.body_bones, slack.shape[2], scene.planes.offset.shape[1]
    found = add_tracker_errors(
        draw, variety, truth, visible, query, extent, Texture(surface, *counts)
    )
    return scene, Clips(
        tracks=torch.cat([focal * found[..., :2], found[..., 2:]], -1),
        truth_tracks=focal * truth,
        visible=visible,
        points_camera=camera,
        rotation=scene.rotation,
        position=scene.position,
        moving=travel > (1e-3 * scene.distance[:, None]) ** 2,
        focal=lens.focal,
        pixels=lens.pixels,
        extent=lens.extent,
        query=query,
        body=(surface // BONES).clamp(max=scene.skin.shape[1]),
    )
