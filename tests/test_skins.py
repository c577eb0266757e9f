"""Measured skins: they are where the meshes are, and scenes wear them."""

from dataclasses import fields, replace

import pytest
import torch
import trimesh
from measure_skins import ROOT, SPOKES, measure, misfit
from measure_skins import Mesh as Body
from numpy import load as load_arrays
from torch import Tensor

from fasttracks.scenes import generator, library, skins
from fasttracks.scenes.sampling import Draw
from fasttracks.scenes.skeletons import BONES, HEAD, LEG, TAIL, TRUNK, Skeletons
from fasttracks.scenes.variety import Variety

SKINS = ("person-man", "person-woman", "person-heavy", "person-child", "dog", "rat")


@pytest.mark.parametrize("name", SKINS)
def test_skin_lies_on_the_mesh(name: str) -> None:
    """Vertices of the mesh against the surface, straight out from their bones."""
    skin = skins.load()[name]
    with load_arrays(ROOT / "tests/skin_samples.npz") as samples:
        vertices = torch.from_numpy(samples[f"{name}/vertices"])
        owner = torch.from_numpy(samples[f"{name}/bone"]).long()
    error = misfit(vertices, owner, skin) / (vertices[:, 2].max() - vertices[:, 2].min())
    assert error.median() < 0.005
    # Hundreds of vertices are inside mouths, or on fingers and toes that are one bone here.
    assert error.quantile(0.8) < 0.025
    assert error.max() < 0.2


def test_measuring_a_known_body() -> None:
    """A capsule a little longer than its bone, and a flat one: their surfaces are found."""
    capsule = trimesh.creation.capsule(height=1.0, radius=0.2, count=[48, 48])
    vertices = torch.from_numpy(capsule.vertices.copy())
    vertices[:, 2] -= vertices[:, 2].mean()
    faces = torch.from_numpy(capsule.faces.copy())
    bones = {"bone": (torch.tensor([0, 0, -0.45]).double(), torch.tensor([0, 0, 0.45]).double())}
    for stretch in (1.0, 1.5):
        body = Body(vertices * torch.tensor([stretch, 1, 1]), faces, [], {})
        owner = torch.zeros(len(vertices), dtype=torch.long)
        skin = measure(body, bones, owner)
        # x of the frame is to the left, which is y of the body.
        ratio = float(skin.flatness[0, 1] / skin.flatness[0, 0])
        assert ratio == pytest.approx(stretch, rel=0.08)
        error = misfit(body.vertices, owner, skin) / 0.2
        assert error.median() < 0.02
        assert error.max() < 0.1
    assert skin.relief.shape[-1] == SPOKES


def places(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bones of all skins at random: reliefs, which, cones, scales; and places about them."""
    generator = torch.Generator().manual_seed(0)
    reliefs = skins.reliefs(BONES).flatten(0, 1)
    which = torch.randint(len(reliefs), (count,), generator=generator)
    cones = torch.tensor([1.0, 0.3, 0.2]).expand(count, 3)
    scale = 1 + torch.rand(count, 3, generator=generator) * torch.tensor([1, 1, 0])
    return reliefs, which, cones, scale


def test_laying_is_on_the_surface_once_and_for_all() -> None:
    reliefs, which, cones, scale = places(2000)
    generator = torch.Generator().manual_seed(1)
    near = torch.randn(2000, 3, generator=generator) + torch.tensor([0, 0, 0.5])
    laid = skins.lay(reliefs, which, cones, near, scale)
    assert laid.isfinite().all()
    again = skins.lay(reliefs, which, cones, laid, scale)
    torch.testing.assert_close(again, laid, atol=1e-5, rtol=1e-4)


def test_no_relief_is_the_capsule_and_its_share_a_wider_one() -> None:
    generator = torch.Generator().manual_seed(2)
    near = torch.randn(500, 3, generator=generator)
    cone, which = torch.tensor([1.0, 0.2, 0.2]).expand(500, 3), torch.arange(500) % 2
    reliefs = torch.tensor([1.0, 1.3])[:, None, None].expand(2, 4, 8)
    laid = skins.lay(reliefs, which, cone, near, torch.ones(500, 3))
    gap = (laid - torch.stack([0 * which, 0 * which, laid[:, 2].clamp(0, 1)], -1)).norm(dim=-1)
    torch.testing.assert_close(gap, torch.tensor([0.2, 0.26])[which])


def test_mirrored_skins() -> None:
    reliefs, _, cones, scale = places(2000)
    count = len(skins.load())
    which = torch.arange(2000) % (count * BONES) + BONES
    near = torch.randn(2000, 3, generator=torch.Generator().manual_seed(3))
    flip = torch.tensor([-1.0, 1, 1])
    laid = skins.lay(reliefs, which, cones, near, scale)
    mirrored = skins.lay(reliefs, which + count * BONES, cones, near * flip, scale)
    torch.testing.assert_close(mirrored, laid * flip, atol=1e-5, rtol=1e-4)


def wearing(stock: library.Library, name: str) -> Skeletons:
    rows = stock.skeletons.skin == skins.index(name)
    return Skeletons(**{f.name: getattr(stock.skeletons, f.name)[rows] for f in fields(Skeletons)})


@pytest.fixture(scope="module")
def stocks() -> list[library.Library]:
    return [library.load(None, split, "cpu") for split in library.SPLITS]


def test_a_dog_and_a_rat(stocks: list[library.Library]) -> None:
    """Proportions of the animals, none the same in both splits."""

    def share(s: Skeletons, part: int) -> Tensor:
        length = s.shape[..., 0] * (s.shape[..., 0] > 2e-3)
        trunk = (length * (s.part == TRUNK)).sum(1)
        return (length * (s.part == part)).sum(1) / trunk

    dogs, rats = (wearing(stocks[0], name) for name in ("dog", "rat"))
    assert len(dogs.leg) == len(rats.leg) == 20
    assert ((dogs.leg > 0.6) & (dogs.leg < 1.2)).all()
    assert ((rats.leg > 0.3) & (rats.leg < 0.8)).all()
    assert (share(dogs, HEAD) > 0.4).all()
    assert (share(dogs, TAIL) < 1.3).all()
    assert (share(rats, TAIL) > 1.3).all()
    for name, here in (("dog", dogs), ("rat", rats)):
        there = wearing(stocks[1], name)
        gap = (here.shape[:, None] - there.shape[None]).abs().amax((-1, -2))
        assert gap.min() > 1e-4
        # Both sides of a body are alike.
        legs = here.shape[here.part == LEG].reshape(len(here.leg), 2, 2, 4, 3)
        torch.testing.assert_close(legs[:, :, 0, :, 0], legs[:, :, 1, :, 0], atol=0.02, rtol=0.1)


@pytest.mark.parametrize("name", ["dog", "rat"])
def test_scenes_wear_skins(stocks: list[library.Library], name: str) -> None:
    stock = replace(stocks[0], skeletons=wearing(stocks[0], name))
    variety = Variety(company=(0, 1, 0, 0), on_subject=1.0, clean=1.0)
    shots = []
    for _ in range(2):
        draw = Draw(generator.seeded(0, "train", "cpu"))
        with torch.no_grad():
            shots.append(generator._shoot(12, 4, 200, stock, draw, variety))
    (scene, clips), (_, again) = shots
    for field in fields(clips):
        value = getattr(clips, field.name)
        assert value.isfinite().all(), field.name
        assert torch.equal(value, getattr(again, field.name)), field.name
    assert (scene.skin == skins.index(name)).all()
    # Skin is not hidden by the cone under which it lies.
    start = clips.visible.gather(1, clips.query[:, None])[:, 0]
    assert start[clips.moving].float().mean() > 0.9
    assert start[~clips.moving].float().mean() > 0.98  # a body that stands still is among them
