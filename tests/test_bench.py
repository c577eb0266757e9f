"""`fasttracks bench`, its accuracy gate, and the tables made of its results."""

import math
import sys
from types import SimpleNamespace

import baselines
import pytest
import report
import tables
import torch
from helpers import random_tracks, tiny_network
from safetensors.torch import save_file

import fasttracks
from fasttracks import Config, InputError
from fasttracks.cli.main import main
from fasttracks.performance import accuracy
from fasttracks.performance.sample import FOCAL, sample_inputs
from fasttracks.performance.timing import operations
from fasttracks.weights import convert


def test_command(capsys):
    assert main(["bench", "12x5", "--calls", "3", "--device", "cpu", "--precision", "fp32"]) == 0
    head, _, line = capsys.readouterr().out.splitlines()
    assert head == "CPU, float32, backend torch"
    assert line.split()[:3] == ["12", "×", "5"]
    assert float(line.split()[3]) < 1e-5


@pytest.mark.parametrize("size", ["12", "12x", "0x5", "axb", "12x5x3", "-1x5"])
def test_sizes_that_are_refused(size, capsys):
    assert main(["bench", "--device", "cpu", "--", size]) == 2
    assert f"SIZE: expected TRACKSxFRAMES such as 256x50, found '{size}'" in capsys.readouterr().err


@pytest.mark.parametrize(("tracks", "frames"), [(1, 1), (900, 50), (2000, 120)])
def test_clips_of_any_size(tracks, frames):
    inputs = sample_inputs(tracks, frames, "cpu")
    assert inputs.shape == (1, frames, tracks, 3)
    assert inputs.dtype == torch.float32
    assert set(inputs[..., 2].unique().tolist()) <= {0.0, 1.0}
    assert len(inputs[0, 0].unique(dim=0)) > 0.9 * tracks  # no track twice
    assert torch.equal(inputs, sample_inputs(tracks, frames, "cpu"))


def test_errors_are_what_was_put_in():
    network = tiny_network()
    exact = network(random_tracks(4, 50))
    turn = math.radians(0.01)
    spin = torch.eye(3, dtype=torch.float64)
    spin[0, 0] = spin[1, 1] = math.cos(turn)
    spin[0, 1], spin[1, 0] = -math.sin(turn), math.sin(turn)
    rotation = exact.rotation.clone()
    rotation[0, 2] = rotation[0, 2] @ spin
    projection = exact.projection.clone()
    projection[0, 0, :4, 0] += 1 / FOCAL  # 2 % of the points by a pixel
    found = accuracy.errors(
        exact._replace(points=exact.points * 1.001, rotation=rotation, projection=projection), exact
    )
    assert found == pytest.approx({"points": 1e-3, "rotation °": 0.01, "reprojection px": 1.0})


def test_gate():
    good = dict.fromkeys(accuracy.LIMITS, 1e-3)
    accuracy.check(good)
    for name, limit in accuracy.LIMITS.items():
        accuracy.check(good | {name: 5 * limit}, torch.bfloat16)
        for bad in (5 * limit, math.nan):
            with pytest.raises(InputError, match=name):
                accuracy.check(good | {name: bad})


def test_operations_of_the_paper_s_network():
    assert operations(Config(), 1000, 50) == pytest.approx(1.90e12, rel=0.01)


def test_results_are_merged_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)

    def part(commit, *rows):
        common = {"p99 ms": 2.2, "TFLOP/s": 500.0, "memory GB": 0.4}
        keys = ("column", "tracks", "frames", "p50 ms")
        forward = [dict(zip(keys, row, strict=True)) | common for row in rows]
        return {"device": "NVIDIA X (1)", "commit": commit, "forward": forward}

    report.merge(part("a", (tables.OURS, 1000, 50, 9.0), (tables.TORCH, 1000, 50, 3.0)))
    report.merge(part("b", (tables.OURS, 1000, 50, 2.0), (tables.REFERENCE, 10, 5, 4.0)))
    record = report.json.loads((tmp_path / "nvidia-x-1.json").read_text())
    found = [(row["p50 ms"], row["commit"]) for row in record["forward"]]
    assert found == [(4.0, "b"), (2.0, "b"), (3.0, "a")]
    monkeypatch.setattr(tables, "read", lambda _: record)
    assert tables.forward().splitlines() == [
        "| tracks × frames | strongest torch | engine fp16 | against strongest torch | p99 / p50 "
        "| TFLOP/s (of 989) | memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 1000 × 50 | 3 ms | **2 ms** | 1.5× | 1.10 | 500 (51%) | 0.40 GB |",
    ]


def test_operations_are_compared_side_by_side(monkeypatch):
    keys = ("operation", "backend", "tracks", "frames", "µs")
    rows = [("mlp", "triton", 100, 50, 33.0), ("mlp", "torch", 100, 50, 65.0)]
    record = {"kernels": [dict(zip(keys, row, strict=True)) for row in rows]}
    monkeypatch.setattr(tables, "read", lambda _: record)
    text = "a\n<!-- kernels -->\nold\n<!-- /kernels -->\nb"
    assert report.filled(text).splitlines()[1:-1] == [
        "<!-- kernels -->",
        "| µs: fasttracks / eager torch | 100 × 50 |",
        "| --- | --- |",
        "| mlp | 33 / 65 |",
        "<!-- /kernels -->",
    ]


def test_released_code_is_given_our_weights_and_tracks(tmp_path, monkeypatch):
    class Code(torch.nn.Module):
        """With the released network's interface, by ours."""

        def __init__(self, **options):
            super().__init__()
            assert options == {
                "width1": 256,
                "conv2_kernel_size": 31,
                "K": 12,
                "inputdim": 3,
                "positional_dim": 12,
                "predict_focal_length": True,
            }

        def load_state_dict(self, state):
            save_file(state, tmp_path / "released.safetensors")
            convert(tmp_path / "released.safetensors", tmp_path / "w", predicts_focal=True)
            self.network = fasttracks.load(tmp_path / "w", device="cpu", precision="fp32")

        def forward(self, x):
            p = self.network(x.permute(0, 3, 1, 2))
            first = (p.focal[..., None], p.projection.mT, None, p.rotation, p.position)
            second = (p.basis.permute(0, 2, 3, 1), p.points.mT, None, None, None, 0)
            return *first, *second, p.coefficients.mT, 0, 0, p.points_camera.mT, p.motion

    monkeypatch.setenv("TRACKSTO4D", str(tmp_path))
    monkeypatch.setitem(sys.modules, "inference", SimpleNamespace(TracksTo4DNet=Code))
    inputs = sample_inputs(7, 16, "cpu")
    call, _ = baselines.released(inputs)
    exact = fasttracks.load("base", device="cpu", precision="fp32")(inputs)
    for found, expected in zip(call(inputs), exact, strict=True):
        assert torch.equal(found, expected)
