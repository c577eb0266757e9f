"""Weights files: round trips, conversion, and everything that must be refused."""

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, relative, rule_weights, tiny_network
from safetensors.torch import save_file

import fasttracks
from fasttracks import Config, InputError, weights
from fasttracks.performance.sample import FOCAL, sample_inputs
from fasttracks.weights import SHIPPED, convert, describe, save


@pytest.fixture(scope="module")
def released():
    return rule_weights()


def test_save_and_load(tmp_path):
    network = tiny_network(dtype=torch.float32)
    save(network, tmp_path / "tiny.safetensors", metadata={"licence": "Apache-2.0"})
    loaded = fasttracks.load(tmp_path / "tiny.safetensors", device="cpu", precision="bf16")
    assert loaded.config == TINY
    assert loaded.blocks[0].qkv.weight.dtype == torch.bfloat16
    assert loaded.points.weight.dtype == torch.float32
    assert not loaded.training
    for name, value in network.state_dict().items():
        assert relative(loaded.state_dict()[name].float(), value) <= 2**-8, name
    header = describe(tmp_path / "tiny.safetensors")
    assert header["config"]["bases"] == 4
    assert header["licence"] == "Apache-2.0"
    assert os.listdir(tmp_path) == ["tiny.safetensors"]


def test_shipped_weights_say_what_they_are():
    header = describe("base")
    assert header["name"] == "base"
    assert header["config"]["rounds"] == 3
    assert header["parameters"] == 12_826_325 - 3 * (256 * 31 + 1)  # the paper's, less unread ones
    assert header["dtype"] == "float16"
    assert header["licence"] == "Apache-2.0"
    assert header["training"]
    assert SHIPPED["base"].stat().st_size < 2.01 * header["parameters"]
    recipe = Path(__file__).parents[1] / "benchmarks" / "results" / "training" / "recipe.json"
    last = json.loads(recipe.read_text())["stages"][-1]
    assert hashlib.sha256(SHIPPED["base"].read_bytes()).hexdigest() == last["weights sha256"]
    assert json.loads(header["training"])["schedule"]["seed"] == last["seed"]


def test_convert_keeps_every_number(released, tmp_path):
    save_file(released, tmp_path / "released.safetensors")
    convert(tmp_path / "released.safetensors", tmp_path / "ours.safetensors")
    network = fasttracks.load(tmp_path / "ours.safetensors", device="cpu", precision="fp32")
    ours = network.state_dict()
    unread = [i for i in range(24) if i not in (4, 22, 23)]
    assert torch.equal(ours["camera.weight"], released["conv_final.weight"][unread])
    # Channel xyz · 12 + k became k · 3 + xyz.
    assert torch.equal(ours["points.weight"][5 * 3 + 2], released["fc1.weight"][2 * 12 + 5])
    assert torch.equal(ours["points.bias"][-1], released["fc1.bias"][-1])
    last = "transformer_my.transformer_points.2.layers.0.1.net.3.weight"
    assert torch.equal(ours["blocks.5.down.weight"], released[last])


def test_all_that_is_wrong_with_a_checkpoint_is_named(released, tmp_path):
    wrong = dict(released)
    del wrong["fc1.bias"]
    wrong["extra.weight"] = torch.zeros(3)
    wrong["conv_final.bias"] = torch.zeros(5)
    torch.save({"model_state_dict": wrong}, tmp_path / "wrong.pt")
    with pytest.raises(InputError) as error:
        convert(tmp_path / "wrong.pt", tmp_path / "out.safetensors")
    message = str(error.value)
    assert "missing fc1.bias" in message
    assert "unexpected extra.weight" in message
    assert "conv_final.bias is (5,), expected (24,)" in message
    assert "\n" not in message
    assert os.listdir(tmp_path) == ["wrong.pt"]


class _Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_code_in_a_checkpoint_is_refused(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = {"model_state_dict": {"fc1.bias": torch.zeros(37)}, "note": _Evil()}
    if form == "zip":
        torch.save(checkpoint, "evil.pt")
    else:
        with open("evil.pt", "wb") as file:
            pickle.dump(checkpoint, file)
    with pytest.raises(InputError, match="refused"):
        convert("evil.pt", "out.safetensors")
    assert os.listdir() == ["evil.pt"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"hello", b"\x80\x04N."])
def test_broken_checkpoints(content, tmp_path):
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(InputError) as error:
        convert(tmp_path / "broken.pt", tmp_path / "out.safetensors")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["broken.pt"]


def test_checkpoint_without_a_state(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="model_state_dict"):
        convert(tmp_path / "list.pt", tmp_path / "out.safetensors")


@pytest.mark.parametrize("size", [0, 7, 1000, 20_000_000])
def test_truncated_weights(size, tmp_path):
    path = tmp_path / "truncated.safetensors"
    path.write_bytes(SHIPPED["base"].read_bytes()[:size])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        fasttracks.load(path)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(InputError, match="no file"):
        fasttracks.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(InputError, match="directory"):
        fasttracks.load(tmp_path)
    with pytest.raises(InputError, match=r"shipped model of that name \(base\)"):
        fasttracks.load("bass")


def test_released_safetensors_point_to_convert(released, tmp_path):
    save_file(released, tmp_path / "released.safetensors")
    with pytest.raises(InputError, match="fasttracks convert"):
        fasttracks.load(tmp_path / "released.safetensors")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ('{"colour": 3}', "colour"),
        ('{"bases": "12"}', "bases"),
        ('{"bases": 0}', "sizes from 1"),
        ('{"predicts_focal": 1}', "predicts_focal"),
        ('{"assumed_focal": 0.0}', "assumed_focal"),
        ('{"assumed_focal": NaN}', "assumed_focal"),
        ('{"rounds": 100000}', "sizes"),
        ('{"rounds": 100}', "rounds"),
        ('{"bases": ' + 5000 * "1" + "}", "not JSON"),
    ],
)
def test_configs_that_are_refused(config, complaint, tmp_path):
    header = json.dumps({"__metadata__": {"config": config}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match=complaint):
        fasttracks.load(tmp_path / "x.safetensors")


def test_config_round_trip():
    assert Config.from_json(TINY.to_json()) == TINY
    assert Config.from_json("{}") == Config()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"device": "cuda:99"}, "device"),
        ({"device": "warp"}, "device"),
        ({"precision": "fp64"}, "precision"),
    ],
)
def test_bad_options(options, complaint):
    with pytest.raises(InputError, match=complaint):
        fasttracks.load("base", **options)


def test_bare_and_parallel_state_dicts_are_read(released, tmp_path):
    torch.save({f"module.{name}": value for name, value in released.items()}, tmp_path / "bare.pt")
    convert(tmp_path / "bare.pt", tmp_path / "ours.safetensors")
    assert fasttracks.load(tmp_path / "ours.safetensors", device="cpu").config == Config()


def test_numbers_that_are_no_weights_are_refused(released, tmp_path):
    wrong = {**released, "fc1.bias": torch.full((37,), float("nan"))}
    wrong["conv_final.bias"] = torch.zeros(24, dtype=torch.int16)
    torch.save({"model_state_dict": wrong}, tmp_path / "wrong.pt")
    with pytest.raises(InputError, match=r"fc1\.bias is not of finite.*") as error:
        convert(tmp_path / "wrong.pt", tmp_path / "out.safetensors")
    assert "conv_final.bias is not of finite" in str(error.value)


def checkpoint(tensors, path, legacy):
    torch.save({"model_state_dict": tensors}, path, _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_unpickling_would_build_is_bounded(released, tmp_path, legacy):
    """Tensors that repeat one number, lists by the million, and arrays of any size."""
    path = tmp_path / "wrong.pt"
    checkpoint({**released, "fc1.bias": torch.zeros(1).expand(10**10)}, path, legacy)
    with pytest.raises(InputError, match=r"fc1.bias is \(10000000000,\), expected"):
        convert(path, tmp_path / "out.safetensors")
    checkpoint([[] for _ in range(120_000)], path, legacy)
    with pytest.raises(InputError, match="a pickle of more than 200000 steps"):
        convert(path, tmp_path / "out.safetensors")
    checkpoint({3: released["fc1.bias"]}, path, legacy)
    with pytest.raises(InputError, match="no 'model_state_dict' of tensors"):
        convert(path, tmp_path / "out.safetensors")
    (path).write_bytes(b"\x80\x02cbuiltins\nbytearray\nM\xff\xff\x85R.")
    with pytest.raises(InputError, match="a bytearray"):
        convert(path, tmp_path / "out.safetensors")


def test_float8_is_refused(released, tmp_path):
    wrong = {**released, "fc1.bias": torch.zeros(37, dtype=torch.float8_e4m3fn)}
    checkpoint(wrong, tmp_path / "wrong.pt", False)
    with pytest.raises(InputError, match=r"fc1\.bias is not of finite"):
        convert(tmp_path / "wrong.pt", tmp_path / "out.safetensors")


def test_headers_are_bounded(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 90_000_000))
    os.truncate(path, 100_000_000)
    with pytest.raises(InputError, match="header of 90000000 bytes"):
        fasttracks.load(path)
    # A thousand tensors of no use, and one far larger than it may be, which isn't read.
    tensors = {f"extra.{i}": torch.zeros(1) for i in range(1000)}
    save_file(tensors, path, {"config": TINY.to_json()})
    with pytest.raises(InputError, match=r"missing .* … .* extra\.999") as error:
        fasttracks.load(path)
    assert len(str(error.value)) < 1100


@pytest.mark.parametrize(
    "sizes",
    [{"rounds": 100_000}, {"rounds": True}, {"width": 16384, "mlp_width": 16384}, {"bases": 1.5}],
)
def test_sizes_beyond_any_use_are_refused(sizes):
    with pytest.raises(InputError, match="config: "):
        Config(**sizes)


@pytest.mark.parametrize(
    "options",
    [
        {"model": np.zeros(3)},
        {"model": None},
        {"model": "a\0b"},
        {"device": np.zeros(3)},
        {"device": None},
        {"precision": np.zeros(3)},
        {"precision": []},
    ],
    ids=str,
)
def test_arguments_of_other_types(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))}: "):
        fasttracks.load(**options)


def test_bfloat16_on_a_cpu_rounds_products_alone():
    exact, rounded = (
        fasttracks.load("base", device="cpu", precision=precision) for precision in ("fp32", "bf16")
    )
    dtypes = {name: p.dtype for name, p in rounded.blocks.named_parameters()}
    assert dtypes["0.qkv.weight"] == dtypes["5.up.weight"] == torch.bfloat16
    assert dtypes["0.norm.weight"] == dtypes["5.down.weight"] == torch.float32
    inputs = sample_inputs(60, 20, "cpu")
    moved = FOCAL * (rounded(inputs).projection - exact(inputs).projection).norm(dim=-1)
    assert moved.median() < 0.3  # px; it is 0.4 where tokens are rounded too


@pytest.mark.parametrize(("amx", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_where_a_cpu_has_units_for_it(monkeypatch, amx, dtype):
    monkeypatch.setattr(weights, "_has_amx", lambda: amx)
    assert fasttracks.load("base", device="cpu").blocks[0].up.weight.dtype == dtype
