"""What scenes vary in, and how much."""

import math
from dataclasses import dataclass, replace

from fasttracks.scenes.sampling import Range

# The orders that weights below refer to.
PLACES = ("open", "street", "room", "backdrop")
CAMERAS = ("orbit", "walk", "follow", "dolly", "still", "pan", "recorded")
ACTIONS = ("walk", "idle", "rear", "lie", "jump")

# Focal lengths in longer sides of a phone's main camera, and what stabilising a video leaves of it:
# without parallax nothing but such a guess tells one.
PHONE: Range = (0.68, 0.95)

# Focal length in longer sides that networks are trained to be given where it is unknown, for them
# to correct: shorter than any known one, so that tracks themselves say which they are.
ASSUMED_FOCAL = 0.4


@dataclass(frozen=True)
class Variety:
    """Shares of clips and ranges of what is drawn in each. Override a few for an ablation.

    Weights need not sum to 1. Pixels are those of a camera with a focal length of 500 px.
    """

    # Who moves
    person: float = 0.35  # of bodies that are a recorded person, where there are recordings
    company: tuple[float, ...] = (0.05, 0.55, 0.25, 0.15)  # weights of 0, 1, 2, ... bodies
    frozen: float = 0.06  # nothing moves in the whole clip
    movers: float = 0.25  # balls and vehicles drive about
    actions: tuple[float, ...] = (0.5, 0.25, 0.1, 0.07, 0.08)
    fill: Range = (0.25, 1.0)  # the subject's length as a share of the image's longer side
    span: Range = (0.6, 10.0)  # seconds a clip lasts
    soft: float = 0.7  # skin that blends between bones, as skinned characters have
    relief: Range = (0.0, 0.06)  # roughness of surfaces, as a share of their radius

    # Where
    places: tuple[float, ...] = (0.45, 0.2, 0.22, 0.13)
    openness: Range = (0.4, 5.0)  # outdoors, how far behind all else walls are, in distances
    slope: float = 0.2  # the ground is not level
    clutter: Range = (0.0, 1.0)  # share of the boxes, rocks and poles in use
    foreground: float = 0.3  # poles and leaves between camera and subject

    # Camera
    cameras: tuple[float, ...] = (0.3, 0.16, 0.1, 0.08, 0.1, 0.06, 0.3)
    swing: Range = (3.0, 80.0)  # degrees an orbit goes around the subject
    shake: Range = (0.05, 1.0)  # of a hand as in TUM's fr1_xyz, whose is a lively one
    recorded: Range = (0.15, 1.2)  # unit of a recorded path, in distances to the subject
    focal: Range = (0.6, 2.2)  # in longer sides of the image
    unknown_focal: float = 0.35  # share of clips whose tracks are normalised by a guess:
    assumed_focal: float = ASSUMED_FOCAL  # in longer sides
    phone: float = 0.0  # of unknown lenses that are a phone's, the others as `focal` says

    # A camera that passes through (`passages`), in place of those above; lengths are in metres
    passage: bool = False
    travel: Range = (0.5, 9.0)  # how far it comes
    halt: float = 0.1  # it stands instead, on a tripod or in a hand
    aside: float = 0.12  # it looks anywhere, not along its way

    # Tracks
    grids: int = 5  # frames, evenly spread, that the usual queries are in, 20 frames apart or more
    # Weights of the usual queries; of all in the first, the middle or any one frame; in any frames
    starts: tuple[float, ...] = (0.6, 0.08, 0.08, 0.08, 0.16)
    random_pixels: float = 0.2  # queries anywhere instead of on a grid
    on_subject: float = 0.5  # clips in which a part of the queries is on bodies:
    subject_share: Range = (0.2, 1.0)  # that part
    clean: float = 0.08  # clips with perfect tracks
    klt: float = 0.4  # trackers that lose what they can't see; the others guess on
    noise: Range = (0.05, 1.5)  # pixels of jitter
    drift: Range = (0.005, 0.3)  # pixels a frame, growing with its root
    hidden: Range = (0.0, 0.25)  # observations missed though visible, in runs
    lost: Range = (0.0, 0.15)  # tracks that are lost for no reason
    jumps: Range = (0.0, 0.08)  # tracks that go on with a neighbour's position
    sticky: Range = (0.0, 0.3)  # occluded tracks that go on with their occluder
    outliers: Range = (0.0, 0.06)  # tracks that wander freely
    flags: Range = (0.0, 0.02)  # of visibility that is wrong
    bare: Range = (0.0, 0.0)  # surfaces on which KLT's tracks die within frames: sky, asphalt
    mortal: Range = (0.0, 0.0)  # KLT's tracks on bodies that are lost, a frame
    slips: Range = (0.0, 0.0)  # tracks that slide along an edge
    lifetime: float = math.inf  # frames that KLT follows a track each way, about


# Clips as most people take them: one or two subjects close by, filmed by a phone that is walked
# around them, its lens usually known, and tracks of a good tracker.
CASUAL = Variety(
    company=(0.02, 0.73, 0.2, 0.05),
    frozen=0.02,
    movers=0.1,
    fill=(0.3, 0.8),
    span=(1.5, 12.0),
    places=(0.55, 0.1, 0.25, 0.1),
    openness=(0.15, 0.8),
    clutter=(0.0, 0.6),
    foreground=0.1,
    cameras=(0.35, 0.1, 0.1, 0.05, 0.03, 0.02, 0.35),
    swing=(15.0, 90.0),
    recorded=(0.5, 2.0),
    focal=(0.65, 1.2),
    unknown_focal=0.25,
    clean=0.04,
    noise=(0.05, 1.0),
    hidden=(0.0, 0.15),
    lost=(0.0, 0.08),
    jumps=(0.0, 0.04),
    sticky=(0.0, 0.15),
    outliers=(0.0, 0.04),
)

# The camera stays where it is. Only the picture then tells ground from wall, and what is filmed so
# mostly stands on ground.
TRIPOD = replace(
    CASUAL,
    places=(0.65, 0.15, 0.15, 0.05),
    cameras=(0.0, 0.0, 0.0, 0.0, 0.35, 0.65, 0.0),
    focal=(0.65, 2.2),
    unknown_focal=0.4,
)

# What people film while they walk or ride: streets, corridors and parks ahead, passers-by, long
# straight paths, and the long and exact tracks that KLT finds on what stands still. Measured on
# real clips by `benchmarks/track_statistics.py`.
WALK = Variety(
    passage=True,
    person=0.8,
    company=(0.04, 0.2, 0.24, 0.26, 0.26),
    frozen=0.02,
    movers=0.3,
    actions=(0.75, 0.2, 0.0, 0.02, 0.03),
    fill=(0.06, 0.7),
    span=(0.8, 5.0),
    places=(0.3, 0.6, 0.1, 0.0),
    clutter=(0.4, 1.0),
    shake=(0.01, 0.6),
    focal=(0.5, 1.6),
    unknown_focal=0.5,
    random_pixels=0.5,
    on_subject=0.7,
    subject_share=(0.03, 0.5),
    clean=0.04,
    klt=0.6,
    noise=(0.01, 0.16),
    drift=(0.002, 0.07),
    hidden=(0.0, 0.05),
    lost=(0.0, 0.06),
    jumps=(0.0, 0.02),
    sticky=(0.0, 0.2),
    outliers=(0.0, 0.02),
    flags=(0.0, 0.002),
    bare=(0.05, 0.6),
    mortal=(0.0, 0.15),
    slips=(0.0, 0.15),
)

# Long takes around a subject, whose tracks a tracker loses and starts all along.
LONG = replace(
    CASUAL,
    cameras=(0.55, 0.1, 0.15, 0.1, 0.0, 0.0, 0.1),
    swing=(60.0, 160.0),
    grids=1000,
    starts=(1.0,),
    subject_share=(0.1, 0.5),
    clean=0.0,
    klt=1.0,
    lifetime=60.0,
)

# What training takes in turn.
_TRAINED = replace(CASUAL, unknown_focal=0.5)
TURNS = tuple(
    replace(variety, phone=0.8)
    for variety in (_TRAINED, WALK, Variety(), _TRAINED, WALK, TRIPOD, _TRAINED, WALK)
)
