"""TAPNext against the authors' answers, and what must hold whatever the weights."""

import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tapnext_rule import released_shapes, save_checkpoint

from fasttracks.cli.main import main
from fasttracks.errors import InputError
from fasttracks.trackers import get_tracker, grid_queries, tapnext
from fasttracks.trackers.tapnext import TAPNext, network, weights
from fasttracks.trackers.tapnext.session import Session, resized
from fasttracks.tracks import Tracks

VECTORS = Path(__file__).parent / "conformance"
LAYOUT = json.loads((VECTORS / "tapnext_layout.json").read_text())


def vectors(name: str) -> dict[str, np.ndarray]:
    with np.load(VECTORS / f"tapnext_{name}.npz") as file:
        return dict(file)


def tiny(seed: int = 0, width: int = 128, depth: int = 2) -> network.Network:
    """A small network with random weights."""
    generator = torch.Generator().manual_seed(seed)
    model = network.Network(width, depth).requires_grad_(False)
    for name, p in model.named_parameters():
        p.copy_(torch.randn(p.shape, generator=generator))
        if "norm.weight" in name:
            p.mul_(0.1).add_(1)
        elif p.ndim > 1 and "bias" not in name:
            p.div_(p.shape[-1] ** 0.5)
        else:
            p.mul_(0.1)
    model.heads.coordinates.weight.mul_(5)
    return model.eval()


def follow(
    model: network.Network,
    frames: torch.Tensor,
    queries: torch.Tensor,
    operations: network.Operations = network.TORCH,
) -> tuple[torch.Tensor, network.State]:
    """All frames (T, H, W, 3) with queries (Q, 3) (t, y, x): (T, Q, 4) and the last state."""
    state = model.begin(len(queries), tuple(frames.shape[1:3]))
    model.declare(state, torch.arange(len(queries)), queries[None, :, 0], queries[None, :, 1:])
    with torch.no_grad():
        frames = frames.to(model.norm.weight.dtype)
        return torch.cat([model.step(f[None], state, operations) for f in frames]), state


def clip(name: str) -> tuple[dict[str, np.ndarray], torch.Tensor, torch.Tensor]:
    """Vectors, frames in -1..1 and queries (t, y, x)."""
    v = vectors(name)
    return v, torch.from_numpy(v["video"]).float() / 127.5 - 1, torch.from_numpy(v["query"])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The rule's weights as `fasttracks convert` wrote them, in float32."""
    folder = tmp_path_factory.mktemp("tapnext")
    released, ours = folder / "tapnextpp_ckpt.pt", folder / "tapnext.safetensors"
    save_checkpoint(released)
    assert main(["convert", str(released), "-o", str(ours), "--precision", "fp32"]) == 0
    released.unlink()
    assert os.listdir(folder) == [ours.name]
    yield ours
    ours.unlink()


@pytest.fixture(scope="session")
def whole(checkpoint: Path) -> network.Network:
    return weights.load(checkpoint)[0]


def released_certainty(bins: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The released code's, whose disc is transposed."""
    start = (position - 8.5).floor().clamp(0, 239).long()
    index = start[..., None] + torch.arange(17)
    chance = bins.unflatten(-1, (2, 256)).softmax(-1).gather(-1, index)
    offset = (index + 0.5 - position[..., None]).square()
    inside = offset[..., 0, None, :] + offset[..., 1, :, None] <= 64 + 1e-8
    return (chance[..., 0, :, None] * chance[..., 1, None, :] * inside).sum((-1, -2))


def check(model: network.Network, name: str, tolerance: float) -> None:
    v, frames, queries = clip(name)
    found, _ = follow(model, frames, queries)
    np.testing.assert_allclose(found[..., :2], v["tracks"], atol=tolerance, rtol=0)
    # These were kept in float32.
    np.testing.assert_allclose(found[..., 2], v["visible_logits"], atol=tolerance + 1e-6, rtol=0)


def test_small_clip(whole: network.Network) -> None:
    check(whole, "a64", 3e-4)


def test_reversed_clip(whole: network.Network) -> None:
    v, frames, _ = clip("a64")
    found, _ = follow(whole, frames.flip(0), torch.from_numpy(v["rev_query"]))
    np.testing.assert_allclose(found[..., :2], v["rev_tracks"], atol=3e-4)
    np.testing.assert_allclose(found[..., 2], v["rev_visible_logits"], atol=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["b96x128", "c256", "d512"])
def test_larger_clips(whole: network.Network, name: str) -> None:
    check(whole, name, 3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a64", "b96x128"])
def test_double_precision(checkpoint: Path, name: str) -> None:
    check(weights.load(checkpoint, dtype=torch.float64)[0], name, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "pixels"), [(torch.float16, 0.1), (torch.bfloat16, 1.0)])
def test_half_precision(checkpoint: Path, dtype: torch.dtype, pixels: float) -> None:
    check(weights.load(checkpoint, dtype=dtype)[0], "a64", pixels)


def test_stages_and_logits(whole: network.Network) -> None:
    """What is between the layers, and the state after the last frame."""
    v, frames, queries = clip("a64")
    stages: list[list[torch.Tensor]] = []
    bins: list[torch.Tensor] = []

    def add_norm(*arguments):
        x, u = network.add_norm(*arguments)
        stages[-1].append(x)
        return x, u

    def heads(u, layers):
        bins.append(network.logits(u, layers)[0])
        stages[-1].append(u)
        return network.heads(u, layers)

    recording = network.TORCH._replace(add_norm=add_norm, heads=heads)
    state = whole.begin(len(queries), (64, 64))
    whole.declare(state, torch.arange(len(queries)), queries[None, :, 0], queries[None, :, 1:])
    positions = []
    with torch.no_grad():
        for frame in frames:
            stages.append([])
            positions.append(whole.step(frame[None], state, recording)[..., :2])

    def compare(name: str, found: torch.Tensor) -> None:
        expected = v[name]
        found = found[..., -expected.shape[-2] :, : expected.shape[-1]]
        np.testing.assert_allclose(
            found, expected[..., -found.shape[-2] :, :], atol=2e-5, rtol=2e-5, err_msg=name
        )

    # Of each block: after the recurrent part, the gated MLP, attention, the MLP.
    at = {"act_embed": 0, "act_ssm0": 2, "act_vit0": 4, "act_ssm5": 22, "act_ssm11": 46}
    for name, index in at.items():
        compare(name, torch.cat([stage[index] for stage in stages]))
    first = torch.cat([stage[0] for stage in stages])[:3, -7:]
    np.testing.assert_allclose(first, v["act_embed_query_full"], atol=2e-6)
    for name, index in (("act_vit11", 48), ("act_norm", 49)):
        found = torch.cat([stage[index] for stage in stages])
        np.testing.assert_allclose(found[..., :2], v[name][:, -7:], atol=2e-5, err_msg=name)
    np.testing.assert_allclose(torch.cat(bins), v["track_logits"], atol=3e-4)
    released = released_certainty(torch.cat(bins), torch.cat(positions))
    np.testing.assert_allclose(released, v["certainty"], atol=1e-5)
    for block in (0, 11):
        compare(f"state_lru{block}", state.hidden[block, 0])
        expected = v[f"state_conv{block}"]
        np.testing.assert_allclose(state.taps[block, 0, ..., :4], expected, atol=2e-5)


def test_pieces() -> None:
    v = vectors("units")
    rows = torch.from_numpy(v["pos_rows"])
    centres = torch.stack([rows // 256, rows % 256], -1) + 0.5
    np.testing.assert_allclose(network.encode(centres), v["pos_values"], atol=1e-7)
    code = network.encode(torch.from_numpy(v["qpe_points_yx"]))[:, ::8]
    np.testing.assert_allclose(code, v["qpe_values"], atol=1e-5)

    found = network.decode(torch.from_numpy(v["dec_logits"]))
    np.testing.assert_allclose(found[:, :2], v["dec_tracks_yx"], atol=3e-5)
    np.testing.assert_allclose(found[:, 2], v["dec_certainty_intended"], atol=2e-6)
    slip = released_certainty(torch.from_numpy(v["dec_logits"]), found[:, :2])
    np.testing.assert_allclose(slip, v["dec_certainty"], atol=2e-6)


@pytest.mark.slow
def test_position_grid(whole: network.Network) -> None:
    v = vectors("units")
    for side, step in ((64, 3), (8, 1)):
        state = whole.begin(1, (8 * side, 8 * side))
        grid = (state.image - whole.patch.bias).view(side, side, -1)[::step, ::step, :2]
        np.testing.assert_allclose(grid, v[f"ipe_{side}x{side}"], atol=1e-5)


def test_ties_go_to_the_lower_bin() -> None:
    bins = torch.zeros(1, 512)
    bins[:, [50, 200]] = 9.0
    bins[:, [256, 511]] = 9.0
    y, x, _ = network.decode(bins)[0]
    assert 40 < y < 60
    assert x < 21


def test_layout() -> None:
    """The names and shapes of both kinds of released checkpoint, and how one becomes the other."""
    expected = {
        key.format(i=i): tuple(shape)
        for key, shape in LAYOUT["released"].items()
        for i in range(12)
    }
    assert released_shapes() == expected
    generator = np.random.default_rng(0)

    def array(name: str) -> np.ndarray:
        return generator.standard_normal(LAYOUT["npz"][name], dtype=np.float32)

    made = {
        "as is": lambda a: a,
        "transpose": lambda a: a.T,
        "drop axis 0, then (h,w,in,out) -> (out,in,h,w)": lambda a: a[0].transpose(3, 2, 0, 1),
        "(12,64,768): reshape (768,768), transpose": lambda a: a.reshape(768, 768).T,
        "each (768,12,64): reshape (768,768), transpose; stack rows": lambda *a: np.concatenate(
            [part.reshape(768, 768).T for part in a]
        ),
        "each (12,64): flatten; concatenate": lambda *a: np.concatenate([b.ravel() for b in a]),
    }
    for key, (sources, how) in LAYOUT["from_npz"].items():
        assert weights._jax_names(key.format(i=7)) == [s.format(i=7) for s in sources]
        arrays = [array(source) for source in sources]
        found = weights._from_jax(key.format(i=7), [torch.from_numpy(a) for a in arrays])
        np.testing.assert_array_equal(found, made[how](*arrays), err_msg=key)


@pytest.fixture(scope="module")
def model() -> network.Network:
    return tiny()


@pytest.fixture(scope="module")
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Five frames of 32 × 32, and seven queries born in three of them, two of them never."""
    generator = torch.Generator().manual_seed(1)
    frames = 2 * torch.rand(5, 32, 32, 3, generator=generator) - 1
    queries = 256 * torch.rand(7, 3, generator=generator)
    queries[:, 0] = torch.tensor([0, 0, 0, 2, 4, 9, 9])
    return frames, queries


def test_same_input_same_bits(model, scene) -> None:
    assert torch.equal(follow(model, *scene)[0], follow(model, *scene)[0])


def test_a_spare_row_filled_late_is_as_if_declared_at_once(model, scene) -> None:
    frames, queries = scene
    declared, _ = follow(model, frames, queries)
    state = model.begin(len(queries), (32, 32))
    found = []
    for t, frame in enumerate(frames):
        rows = (queries[:, 0] == t).nonzero()[:, 0]
        model.declare(state, rows, torch.full((1, len(rows)), t), queries[None, rows, 1:])
        with torch.no_grad():
            found.append(model.step(frame[None], state))
    assert torch.equal(torch.cat(found), declared)


def test_permuting_queries_permutes_the_answers(model, scene) -> None:
    frames, queries = scene
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    there, back = (
        follow(model, frames, queries)[0][:, order],
        follow(model, frames, queries[order])[0],
    )
    torch.testing.assert_close(there, back, atol=1e-4, rtol=1e-5)


def test_no_frame_knows_of_later_ones(model, scene) -> None:
    frames, queries = scene
    other = frames.clone()
    other[3:] = 0
    assert torch.equal(follow(model, frames, queries)[0][:3], follow(model, other, queries)[0][:3])


def test_unborn_queries_are_all_alike(model, scene) -> None:
    found = follow(model, *scene)[0]
    torch.testing.assert_close(found[:2, 3:], found[:2, 6:].expand(-1, 4, -1))
    assert (found[0, :3, :2] - found[0, 3:4, :2]).abs().amax(-1).min() > 0.1


def test_batch_rows_are_apart(model, scene) -> None:
    frames, queries = scene
    both = torch.stack([frames, frames.flip(0)], 1)
    births = torch.stack([queries[:, 0], 4 - queries[:, 0]])
    state = model.begin(7, (32, 32), batch=2)
    model.declare(state, torch.arange(7), births, queries[:, 1:].expand(2, -1, -1))
    with torch.no_grad():
        found = torch.stack([model.step(pair, state) for pair in both], 1)
    for row, alone in enumerate((queries, torch.cat([4 - queries[:, :1], queries[:, 1:]], 1))):
        expected = follow(model, both[:, row], alone)[0]
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-5)


def test_a_session_begins_anew(model, scene) -> None:
    frames, queries = scene
    session = Session(model, 7, 32)
    runs = []
    for _ in range(2):
        session.reset()
        session.declare(torch.arange(7), queries[None, :, 0], queries[None, :, 1:])
        runs.append(torch.cat([session.step(frame[None]).clone() for frame in frames]))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], follow(model, frames, queries)[0])


def test_frames_are_resized_as_published() -> None:
    v = vectors("units")
    frame = torch.from_numpy(v["pre_frame_bgr"][..., ::-1].copy())[None]
    np.testing.assert_allclose(resized(frame, 32, antialias=False)[0], v["pre_32"], atol=1e-5)

    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for height, width in ((45, 75), (301, 200), (64, 64)):
        frame = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 1)
        pillow = image.fromarray(frame).resize((64, 64), image.Resampling.LANCZOS)
        found = (resized(torch.from_numpy(frame)[None], 64)[0] + 1) * 127.5
        assert np.abs(found.numpy() - np.asarray(pillow)).max() <= 1.01
        assert np.abs(found.numpy() - np.asarray(pillow)).mean() < 0.3


def test_pixels_to_its_space_and_back() -> None:
    xy = np.array([[-0.5, -0.5], [74.5, 44.5], [10.25, 3.0]])
    v = vectors("units")
    space = tapnext._to_space(v["pre_points_xy"] - 0.5, (45, 75))  # theirs count from the corner
    np.testing.assert_allclose(space, v["pre_query_tyx"][:, 1:], atol=1e-4)
    out = np.zeros((3, 4), np.float32)
    out[:, :2] = tapnext._to_space(xy, (45, 75))
    np.testing.assert_allclose(TAPNext()._read(out, (45, 75))[0], xy, atol=1e-5)


def tracker(model: network.Network, **options: object) -> TAPNext:
    """With a small network on frames of 32 × 32, instead of a checkpoint."""
    made = TAPNext(device="cpu", **options)
    made.__dict__["_loaded"] = model, 32, torch.device("cpu")
    return made


def noise(count: int, height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, height, width, 3), np.uint8)


def test_tracker_goes_both_ways(model) -> None:
    """Against the network alone: forwards from a query's frame on, backwards before it."""
    frames = noise(6)
    queries = np.array([[0, 4, 5.5], [3, 20, 30], [5, 51, 0], [3, 7, 7]])
    made = tracker(model, certain=False, few=0)
    tracks, visible = made(frames, queries=queries)
    assert tracks.shape == (6, 4, 2)
    assert tracks.dtype == np.float32
    assert visible.dtype == bool

    images = resized(torch.from_numpy(frames), 32)
    space = torch.from_numpy(
        np.insert(tapnext._to_space(queries[:, 1:], (40, 52)), 0, queries[:, 0], 1)
    )
    forwards = follow(model, images, space)[0]
    space[:, 0] = 5 - space[:, 0]
    backwards = follow(model, images.flip(0), space)[0].flip(0)
    for n, start in enumerate(queries[:, 0].astype(int)):
        x, y = queries[n, 1:]
        assert visible[start, n]
        np.testing.assert_array_equal(tracks[start, n], np.float32([x, y]))
        for t, out in [(t, forwards) for t in range(start + 1, 6)] + [
            (t, backwards) for t in range(start)
        ]:
            seen = out[t, n, 2] > 0
            assert visible[t, n] == seen
            before = tracks[t - 1 if t > start else t + 1, n]
            there = out[t, n, [1, 0]].numpy() * [52 / 256, 40 / 256] - 0.5
            np.testing.assert_allclose(tracks[t, n], there if seen else before, atol=1e-3)
    assert visible.any(0).all()
    assert not visible.all()


def test_certainty_hides_points(model) -> None:
    made = TAPNext()
    out = np.array(
        [[9, 9, 5.0, 0.9], [9, 9, 5, 0.4], [9, 9, -0.1, 1], [9, 9, 0.1, 0.9], [9, 9, -500, 1]]
    )
    assert made._read(out, (256, 256))[1].tolist() == [True, False, False, False, False]
    plain = TAPNext(certain=False)._read(out, (256, 256))[1]
    assert plain.tolist() == [True, True, False, True, False]


def test_an_answer_that_is_not_finite_is_none(model) -> None:
    with pytest.raises(InputError, match=r"^tapnext: the network's answer is not finite"):
        TAPNext()._read(np.full((2, 4), np.nan), (8, 8))


def test_tracker_places_grids_and_helpers(model, monkeypatch) -> None:
    made = tracker(model, grid=4)
    tracks, _ = made(noise(3))
    queries = grid_queries(3, 40, 52, 4)
    start = queries[:, 0].astype(int)
    assert tracks.shape == (3, len(queries), 2)
    np.testing.assert_array_equal(tracks[start, np.arange(len(start))], queries[:, 1:])
    assert list(made._sessions) == [(2, len(queries))]

    few = np.array([[0, 1.0, 39.0], [0, 30.0, 20.0]])
    assert made(noise(3), queries=few)[0].shape == (3, 2, 2)
    assert list(made._sessions) == [(1, 2 * 65)]
    helpers = tapnext._with_helpers(np.array([[2.0, 100.0]], np.float32))
    assert helpers.shape == (65, 2)
    assert helpers.min() == 0.5
    np.testing.assert_allclose(np.unique(helpers[1:, 1]), 100 + 4 * np.arange(8) - 14)


@pytest.mark.parametrize("shape", [(1, 40, 52), (2, 9, 300), (3, 1, 1), (2, 33, 32)])
def test_tracker_takes_odd_clips(model, shape) -> None:
    frames = np.zeros((*shape, 3), np.uint8)[:, :, ::-1]
    tracks, visible = tracker(model, grid=2)(frames)
    assert tracks.shape[:2] == visible.shape
    assert np.isfinite(tracks).all()
    empty, _ = tracker(model)(frames, queries=np.zeros((0, 3)))
    assert empty.shape == (shape[0], 0, 2)


@pytest.mark.parametrize(
    ("queries", "match"),
    [
        (np.zeros((2, 2)), "rows of frame, x, y"),
        (np.array([[0, np.nan, 1]]), "pixels of 52×40"),
        (np.array([[0.5, 1, 1]]), "whole frames 0 to 2"),
        (np.array([[3, 1, 1]]), "whole frames"),
        (np.array([[-1, 1, 1]]), "whole frames"),
    ],
)
def test_queries_are_checked(model, queries, match) -> None:
    with pytest.raises(InputError, match=rf"^queries: .*{match}"):
        tracker(model)(noise(3), queries=queries)


def test_online_is_the_same_as_a_clip(model) -> None:
    frames = noise(5)
    queries = np.array([[0, 4, 5.5], [0, 1, 2], [2, 20, 30], [4, 51, 0]])
    made = tracker(model, few=0)
    forwards = made(frames, queries=queries[queries[:, 0] == 0])
    live = made.online(rows=4)
    for t, frame in enumerate(frames):
        tracks, visible = live.push(frame, queries[queries[:, 0] == t, 1:])
        assert len(tracks) == len(visible) == live.joined == (queries[:, 0] <= t).sum()
        assert visible[queries[: live.joined, 0] == t].all()
    with pytest.raises(InputError, match=r"^points: there is room for 0 more, found 1"):
        live.push(frame, [[1, 1]])
    # With rows for as many as ever join, the clip's answers are those of its forward half.
    session = Session(model, 4, 32)
    space = torch.from_numpy(tapnext._to_space(queries[:, 1:], (40, 52)))[None]
    session.declare(torch.arange(4), torch.from_numpy(queries[None, :, 0]), space)
    for image in resized(torch.from_numpy(frames), 32):
        out = session.step(image[None])
    found, seen = made._read(out[0].numpy(), (40, 52))
    np.testing.assert_allclose(tracks[:3], found[:3], atol=1e-3)
    assert (visible[:3] == seen[:3]).all()
    assert forwards[0].shape == (5, 2, 2)


@pytest.mark.parametrize(
    ("frame", "points", "match"),
    [
        (np.zeros((8, 8, 4), np.uint8), None, "^frames: "),
        (np.zeros((8, 8, 3)), None, "^frames: "),
        (np.zeros((8, 8, 3), np.uint8), np.zeros(2), r"^points: expected shape \(n, 2\)"),
        (np.zeros((8, 8, 3), np.uint8), [[1, math.inf]], "pixels of 8×8"),
    ],
)
def test_online_input_is_checked(model, frame, points, match) -> None:
    live = tracker(model).online(2)
    with pytest.raises(InputError, match=match):
        live.push(frame, points)
    assert live.push(np.zeros((8, 8, 3), np.uint8), [[1, 1], [2, 2]])[0].shape == (2, 2)


def test_memory_runs_out_in_one_line(model, monkeypatch) -> None:
    made = tracker(model)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 TiB")

    monkeypatch.setattr(Session, "step", fail)
    with pytest.raises(
        InputError, match=r"^tapnext: not enough memory for 225 points; track fewer"
    ):
        made(noise(1))
    assert not made._sessions


def test_a_slow_cpu_says_how_long_it_takes(model, monkeypatch) -> None:
    monkeypatch.setattr(tapnext, "_PATIENCE", 0.0)
    with pytest.warns(UserWarning, match=r"^tapnext: about \d+ min on this CPU"):
        tracker(model)(noise(2))


def test_options_are_checked() -> None:
    assert get_tracker("tapnext", checkpoint=__file__, grid=9) == TAPNext(__file__, grid=9)
    with pytest.raises(InputError, match=r"^checkpoint: no file a; curl"):
        get_tracker("tapnext", checkpoint="a")
    for options in ({"grid": 0}, {"every": 1.5}, {"few": -1}, {"size": 300}):
        with pytest.raises(InputError, match=f"^{next(iter(options))}: expected"):
            TAPNext(**options)


def test_nothing_heavy_is_imported_early() -> None:
    code = (
        "import sys, fasttracks.trackers.tapnext;"
        "assert not {'cv2', 'torch', 'av', 'tqdm', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_says_how_to_get_the_checkpoint(tmp_path) -> None:
    for path in (None, tmp_path / "none.safetensors"):
        with pytest.raises(InputError, match=r"^checkpoint: .*curl .*Apache-2\.0.*convert"):
            TAPNext(path, device="cpu")(noise(1))


class _Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def _save(path: Path, state: dict[str, object]) -> None:
    torch.save({"state_dict": {f"tapnext.{k}": v for k, v in state.items()}}, path)


def _hollow() -> dict[str, torch.Tensor]:
    """A checkpoint of the right shapes that takes no room."""
    return {k: torch.zeros(()).expand(shape) for k, shape in released_shapes().items()}


def _refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `fasttracks convert` refuses a file with, leaving nothing behind."""
    before = sorted(os.listdir(path.parent))
    assert main(["convert", str(path), "-o", str(path.parent / "out.safetensors")]) == 2
    assert sorted(os.listdir(path.parent)) == before
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 600
    return error


def test_wrong_checkpoints_are_refused(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = _hollow()
    path = tmp_path / "a.ckpt"
    name = "blocks.3.ssm_block.recurrent_block.conv_1d.w"
    _save(path, {k: v for k, v in state.items() if k != name})
    assert f"lacks {name}" in _refused(path, capsys)
    _save(path, {**state, name: torch.zeros(3, 768)})
    assert f"{name} of shape (3, 768), expected (4, 768)" in _refused(path, capsys)
    _save(path, {k: v for k, v in state.items() if "ssm" in k})
    assert "more like that" in _refused(path, capsys)
    _save(path, {**state, name: torch.zeros(4, 768, dtype=torch.int64)})
    assert f"lacks {name}" in _refused(path, capsys)
    _save(path, {**state, "mask_token": torch.full((1, 1, 1, 768), math.nan)})
    assert "not finite" in _refused(path, capsys)
    _save(path, {**state, "note": _Evil()})
    assert "refused" in _refused(path, capsys)
    whole = path.read_bytes()
    path.write_bytes(pickle.dumps({"state_dict": {"ssm_block": _Evil()}}))
    assert "refused" in _refused(path, capsys)
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a whole torch file" in _refused(path, capsys)
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_wrong_arrays_are_refused(tmp_path, capsys) -> None:
    path = tmp_path / "bootstapnext_ckpt.npz"
    arrays = {"backbone/mask_token": np.zeros((1, 1, 1, 768), "f4")}
    np.savez(path, **arrays)
    assert "lacks unknown_token" in _refused(path, capsys)
    np.savez(path, **arrays, **{"backbone/unknown_token": np.zeros((1, 768), "f4")})
    assert "unknown_token of shape (1, 768), expected (1, 1, 768)" in _refused(path, capsys)
    np.savez(path, **arrays, **{"backbone/embedding/kernel": np.zeros((8, 3), "f4")})
    assert "lacks" in _refused(path, capsys)
    np.savez(path, **arrays, **{"backbone/unknown_token": np.array([_Evil()], dtype=object)})
    assert "expected floats" in _refused(path, capsys)
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:-30])
    assert "not a whole" in _refused(path, capsys)


def test_wrong_weights_files_are_refused(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    for content in (b"", b"hello", b"\x08\0\0\0\0\0\0\0{}      "):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^checkpoint: .*a\.safetensors"):
            TAPNext(path, device="cpu")(noise(1))
    save_file({"mask_token": torch.zeros(768)}, path)
    with pytest.raises(InputError, match=r"a\.safetensors holds no TAPNext weights"):
        TAPNext(path, device="cpu")(noise(1))
    save_file({"mask_token": torch.zeros(700)}, path, {"kind": "tapnext", "size": "256"})
    with pytest.raises(InputError, match=r"has mask_token of shape \(700,\), expected \(768,\)"):
        TAPNext(path, device="cpu")(noise(1))
    _save(tmp_path / "a.pt", _hollow())
    with pytest.raises(InputError, match=r"'fasttracks convert .*a\.pt' makes one"):
        TAPNext(tmp_path / "a.pt", device="cpu")(noise(1))


@pytest.mark.slow
def test_npz_checkpoint_becomes_a_weights_file(tmp_path) -> None:
    """All zeros, so that it is small, but for what tells that arrays are where they belong."""
    path, target = tmp_path / "bootstapnext_ckpt_512.npz", tmp_path / "ours.safetensors"
    query = (
        "backbone/Transformer/encoderblock_4/vit_block/MultiHeadDotProductAttention_0/key/kernel"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for pattern, shape in LAYOUT["npz"].items():
            for i in range(12 if "{i}" in pattern else 1):
                array = np.zeros(shape, np.float32)
                if pattern.format(i=i) == query:
                    array[5, 2, 7] = 1.5
                with archive.open(pattern.format(i=i) + ".npy", "w") as file:
                    np.lib.format.write_array(file, array)
    assert main(["convert", str(path), "-o", str(target)]) == 0
    model, size = weights.load(target, dtype=torch.float16)
    assert size == 512
    qkv = model.blocks[4].qkv.weight
    assert qkv.dtype == torch.float16
    assert qkv.count_nonzero() == 1
    assert qkv[768 + 2 * 64 + 7, 5] == 1.5
    assert 380e6 < target.stat().st_size < 392e6


def test_from_a_video_by_the_command_line(model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "load", lambda path, device, dtype: (model, 32))
    from test_video import write_video  # needs PyAV, which GPU machines may lack

    write_video(tmp_path / "a.mp4", count=3, size=(48, 32))
    Path("w.safetensors").touch()
    command = ["track", "a.mp4", "--tracker", "tapnext", "--checkpoint", "w.safetensors"]
    assert main([*command, "--device", "cpu"]) == 0
    assert "track (tapnext)" in capsys.readouterr().out
    tracks = Tracks.load("a-tracks.npz")
    assert tracks.tracks.shape == (3, 450, 2)
    assert tracks.image_size == (48, 32)
