"""Launches are data: chosen by device, tuned by measuring, and never a reason to fail."""

import json
import math
import warnings

import pytest
import torch
from helpers import tiny_network

import fasttracks
from fasttracks.backends import triton
from fasttracks.cli.main import main

pytest.importorskip("triton")

from fasttracks.kernels import launches
from fasttracks.performance import tuning

ANY = math.inf
CUDA = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As if torch saw a GPU, of a compute capability to be set, with an empty user's cache."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Test 80GB (x)")
    monkeypatch.setattr(launches, "_in_use", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FASTTRACKS_LAUNCHES", raising=False)
    launches._warn.cache_clear()

    def set_capability(*capability):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device=None: capability, raising=False
        )

    set_capability(9, 0)
    return set_capability


def test_launches_by_device_and_size(gpu):
    assert launches.launch("attend_project", 8000, CUDA)["num_stages"] == 3
    assert launches.launch("attend_project", 8001, CUDA)["num_stages"] == 2
    assert launches.launch("mlp", 10**9, CUDA) == launches.shipped()["default"]["mlp"][0][1]


def test_an_unknown_gpu_gets_safe_launches_and_is_told_once(gpu):
    gpu(8, 6)
    with pytest.warns(UserWarning, match="no launches were measured for NVIDIA Test.*tune") as said:
        for device in CUDA, torch.device("cuda", 1):
            assert launches.table(device) == launches.shipped()["default"]
    assert len(said) == 1


@pytest.mark.parametrize("by", ["cache", "environment"])
def test_tuned_launches_are_found(gpu, by, monkeypatch, tmp_path):
    tuned = {"heads_cameras": [(100, {"num_warps": 2}), (ANY, {"num_warps": 4})]}
    if by == "environment":
        monkeypatch.setenv("FASTTRACKS_LAUNCHES", str(tmp_path / "mine.json"))
    path = launches.tuned_file(CUDA)
    assert path.name == {"cache": "launches-nvidia-test-80gb--x-.json"}.get(by, "mine.json")
    path.parent.mkdir(exist_ok=True)
    launches.save(path, tuned)
    gpu(8, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = launches.table(CUDA)
    assert [o["num_warps"] for _, o in found["heads_cameras"]] == [2, 4]
    assert found["embed"] == launches.shipped()["default"]["embed"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps({"no such kernel": [[None, {}]]}),
        json.dumps({"heads_cameras": []}),
        json.dumps({"heads_cameras": [[100, {"num_warps": 2}]]}),
        json.dumps({"heads_cameras": [[None, {"num_warps": 2}], [100, {"num_warps": 2}]]}),
        json.dumps({"heads_cameras": [[None, {"num_warps": 2, "BLOCK": 3}]]}),
        json.dumps({"embed": [[None, {"num_warps": 2}]]}),
        *(
            json.dumps({"heads_cameras": [[None, {"num_warps": warps}]]})
            for warps in (0, -64, 64, 2.5, "4", None, True, [4])
        ),
        json.dumps({"heads_cameras": [["many", {"num_warps": 2}], [None, {"num_warps": 2}]]}),
        json.dumps({"heads_cameras": [[0, {"num_warps": 2}], [None, {"num_warps": 2}]]}),
        json.dumps({"mlp_finish": [[None, {"BLOCK_ROWS": 1 << 30, "num_warps": 4}]]}),
    ],
)
def test_a_file_of_another_version_is_not_used(gpu, text):
    path = launches.tuned_file(CUDA)
    path.parent.mkdir()
    path.write_text(text)
    with pytest.warns(UserWarning, match="is not for this version of fasttracks: not used"):
        found = launches.table(CUDA)
    assert found == launches.shipped()["default"] | launches.shipped()["sm_90"]


def test_choice():
    a, b, c = ({"num_warps": n} for n in (1, 2, 4))
    tokens = [100, 400, 900]
    rows = [[(a, 1.0), (a, 1.0), (a, 1.0)], [(b, 0.9), (b, 0.9), (b, 1.0)]]
    assert tuning._choose(rows, tokens) == [(ANY, b)]
    rows.append([(c, 2.0), (c, 2.0), (c, 0.5)])
    assert tuning._choose(rows, tokens) == [(600, b), (ANY, c)]
    rows = [[(a, 1.0)] * 3, [(b, 0.99)] * 3]  # no gain to speak of
    assert tuning._choose(rows, tokens) == [(ANY, a)]


def test_tuning_takes_what_is_fast_and_right(kernel_device):
    network = tiny_network(dtype=torch.float32).requires_grad_(False).to(kernel_device)
    network.blocks.half()
    network.backend = triton()
    device = network.points.weight.device
    before = launches.table(device)
    candidates = {
        "embed": {"embed": [{"BLOCK_TRACKS": 16}, {"BLOCK_TRACKS": 32}, {"BLOCK_TRACKS": 17}]},
        "heads": {
            "heads_sum": [{"NO_SUCH": 1}],
            "hopper_attend": [{"STAGES": 9}],
        },
        "compose_project": {"compose_project": [{"BLOCK_FRAMES": 4}]},
    }

    def seconds(call):
        call()
        table = launches.table(device)
        count = call.args[0].shape[2]
        if call.func is network.backend.embed.__wrapped__:
            return {16: 5 if count > 4 else 1, 32: 2, 64: 3, 17: 0}[
                table["embed"][0][1]["BLOCK_TRACKS"]
            ]
        return table["compose_project"][0][1]["BLOCK_FRAMES"]

    found = tuning.find_launches(
        network, sizes=((4, 5), (9, 5)), candidates=candidates, seconds=seconds
    )
    assert [(most, o["BLOCK_TRACKS"]) for most, o in found["embed"]] == [(30, 16), (ANY, 32)]
    assert [o["BLOCK_FRAMES"] for _, o in found["compose_project"]] == [4]
    assert found["heads_sum"] == before["heads_sum"]
    assert "hopper_attend" not in found
    assert launches.table(device) is before


def test_a_wrong_result_is_no_candidate():
    def wrong(x):
        return x * 1.001

    x = torch.rand(10)
    assert tuning.within_budget(torch.sin, torch.sin, ((x,), {})) < 1e-6
    with pytest.raises(ArithmeticError, match="where eager torch has"):
        tuning.within_budget(lambda x: wrong(x.sin()), torch.sin, ((x,), {}))


def test_command_without_a_gpu(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["tune", "-o", str(tmp_path / "found.json")]) == 2
    assert "sees no CUDA GPU" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.gpu
def test_command(monkeypatch, tmp_path, capsys):
    """The real thing on few candidates; what it wrote is then used."""
    path = tmp_path / "found.json"
    for module in ("performance.tuning", "cli.tune"):
        monkeypatch.setattr(f"fasttracks.{module}.SIZES", ((20, 10), (100, 20)))
    few = {"compose_project": {"compose_project": [{"BLOCK_FRAMES": 4}, {"BLOCK_FRAMES": 16}]}}
    monkeypatch.setattr(tuning, "CANDIDATES", few)
    assert main(["tune", "-o", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["found.json"]
    monkeypatch.setenv("FASTTRACKS_LAUNCHES", str(path))
    monkeypatch.setattr(launches, "_in_use", {})
    device = torch.device("cuda", 0)
    tuned = launches._read(json.loads(path.read_text()))
    assert launches.table(device)["compose_project"] == tuned["compose_project"]
    network = fasttracks.load("base", device=device, precision="fp16")
    assert torch.isfinite(network(torch.rand(1, 10, 20, 3, device=device)).points).all()
