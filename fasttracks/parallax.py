"""How far the viewing rays of still points are spread: what a clip tells of depth."""

from typing import Any

LEAST = 0.6  # degrees of spread below which usual tracks tell no depth: it is the network's
SHARE = 0.9  # of still tracks whose spread is no larger


def ray_spread(points: Any, position: Any, seen: Any) -> Any:
    """Root mean square angle, in radians, between the rays to points and their mean ray.

    points (..., N, 3) and camera positions (..., T, 3) in the world, seen (..., T, N) with 1 where
    a point was; all numpy or all torch. Returns (..., N), 0 where a point was seen less than twice.
    """
    rays = points[..., None, :, :] - position[..., :, None, :]
    rays = rays / (rays**2).sum(-1)[..., None] ** 0.5
    count = seen.sum(-2).clip(1)
    mean = (seen[..., None] * rays).sum(-3) / count[..., None]
    # |mean|² falls short of 1 by the rays' mean square distance from it.
    return (1 - (mean**2).sum(-1)).clip(0) ** 0.5 * (seen.sum(-2) > 1)
