"""Proves the converter: files to model folders, and a refusal by name of all that does not fit.

That converted weights give the public network's output is proved in test_sit.py.
"""

import argparse
import math

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from safetensors.torch import save_file

from t2i.models import convert
from t2i.models.convert import (
    convert_state_dict,
    public_shapes,
    read_checkpoint,
    state_dict_of,
)
from t2i.models.sit import load_sit
from t2i.models.sit_config import SiTConfig

CONFIG = SiTConfig(num_layers=1, width=16, num_heads=2, num_classes=3, routes=())


def public_weights(config: SiTConfig, grid: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5
        for name, shape in public_shapes(config).items()
    }
    positions = get_2d_sincos_pos_embed(config.width, grid, base_size=grid, output_type="pt")
    return weights | {"pos_embed": positions.float()[None]}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return public_weights(CONFIG)


def test_the_public_names_are_those_of_the_published_files(weights):
    block = [f"blocks.0.{part}" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    linears = [
        *block,
        *("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear"),
        *("blocks.0.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
    ]
    names = {f"{name}.{part}" for name in linears for part in ("weight", "bias")}
    assert set(weights) == names | {"y_embedder.embedding_table.weight", "pos_embed"}
    assert weights["x_embedder.proj.weight"].shape == (16, 4, 2, 2)
    assert weights["y_embedder.embedding_table.weight"].shape == (4, 16)


def test_what_does_not_fit_is_refused_by_name(weights):
    qkv = weights.pop("blocks.0.attn.qkv.weight")
    weights["blocks.1.attn.qkv.weight"] = qkv
    weights["final_layer.linear.bias"] = torch.zeros(16)
    expected = (
        r"file\.pt does not fit its config: missing blocks\.0\.attn\.qkv\.weight; "
        r"unknown blocks\.1\.attn\.qkv\.weight; "
        r"final_layer\.linear\.bias is \(16,\), the config asks for \(32,\)"
    )
    with pytest.raises(ValueError, match=expected):
        convert_state_dict(weights, CONFIG, "file.pt")


def test_a_convolution_already_flattened_is_refused(weights):
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].flatten(1)
    with pytest.raises(ValueError, match=r"x_embedder\.proj\.weight is \(16, 16\), .* \(16, 4, 2"):
        convert_state_dict(weights, CONFIG, "file.pt")


def test_positions_that_are_missing_learned_or_not_square_are_refused(weights):
    for positions in (weights["pos_embed"] + 0.01, weights["pos_embed"][:, :3]):
        with pytest.raises(ValueError, match="pos_embed is not the fixed sin-cos grid"):
            convert_state_dict(weights | {"pos_embed": positions}, CONFIG, "file.pt")
    del weights["pos_embed"]
    with pytest.raises(ValueError, match="missing pos_embed"):
        convert_state_dict(weights, CONFIG, "file.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_grid_rounded_to_half_precision_is_taken(weights, dtype):
    positions = public_weights(CONFIG, grid=16)["pos_embed"].to(dtype)
    convert_state_dict(weights | {"pos_embed": positions}, CONFIG, "file.pt")
    with pytest.raises(ValueError, match="pos_embed is not the fixed sin-cos grid"):
        convert_state_dict(weights | {"pos_embed": positions + 0.01}, CONFIG, "file.pt")


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "training checkpoint"])
def test_each_kind_of_file_is_read(tmp_path, weights, kind):
    path = tmp_path / ("last.safetensors" if kind == "safetensors" else "last.pt")
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "state dict":
        torch.save(weights, path)
    else:
        others = {name: weight + 1 for name, weight in weights.items()}
        arguments = argparse.Namespace(model="SiT-XL/2")
        torch.save({"model": others, "ema": weights, "opt": {}, "args": arguments}, path)
    read = read_checkpoint(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "model.{}",
        "ema.module.{}",
        "ema.model.{}",
    ],
)
def test_names_that_were_wrapped_are_recognised(tmp_path, weights, wrapped):
    names = {wrapped.format(name): weight for name, weight in weights.items()}
    save_file(names, tmp_path / "file.safetensors")
    torch.save({"model": {}, "ema": names}, tmp_path / "file.pt")
    for path in (tmp_path / "file.safetensors", tmp_path / "file.pt"):
        read = read_checkpoint(path)
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_blocks_that_were_compiled_one_by_one_are_recognised(weights):
    names = {name.replace("blocks.0.", "blocks.0._orig_mod."): w for name, w in weights.items()}
    assert names.keys() != weights.keys()
    assert state_dict_of(names, "file.pt").keys() == weights.keys()


def test_of_networks_side_by_side_the_ema_is_taken(weights):
    both = {f"model.{name}": weight + 1 for name, weight in weights.items()}
    both |= {f"ema.{name}": weight for name, weight in weights.items()}
    read = state_dict_of(both, "file.safetensors")
    assert all(torch.equal(read.pop(name), weight) for name, weight in weights.items())
    assert not read
    with pytest.raises(ValueError, match=r"file\.pt: holds weights with and without module"):
        state_dict_of(weights | {f"module.{name}": w for name, w in weights.items()}, "file.pt")


class Surprise:
    """A class that a checkpoint has no reason to hold."""


def test_files_with_other_objects_are_refused(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"ema": {"weight": torch.ones(1)}, "extra": Surprise()}, path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_checkpoint(path)
    for content in ({"model": {"weight": torch.ones(1)}, "steps": 3}, {"ema": 0.9999}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="neither a state dict nor"):
            read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such checkpoint"):
        read_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("name", ["file.pt", "old.pt", "file.safetensors"])
def test_files_that_are_cut_are_refused_in_one_line(tmp_path, weights, name):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=name == "file.pt")
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{name}: .*damaged") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_the_command_writes_a_folder_that_loads(tmp_path):
    config = SiTConfig.from_size("SiT-S/8", num_classes=3, learn_sigma=False)
    source = public_weights(config)
    torch.save(source, tmp_path / "sit.pt")
    call = [str(tmp_path / "sit.pt"), str(tmp_path / "out"), "--size", "SiT-S/8"]
    call += ["--classes", "3", "--no-learn-sigma"]
    assert convert.main(call) == 0
    model = load_sit(tmp_path / "out")
    assert model.config == config
    assert torch.equal(model.blocks[11].mlp.out.weight, source["blocks.11.mlp.fc2.weight"])
    with pytest.raises(ValueError, match="exists; choose another OUTPUT"):
        convert.main(call)


def test_reversing_the_time_of_an_epsilon_model_is_refused(tmp_path):
    call = ["file.pt", str(tmp_path / "out"), "--size", "DiT-XL/2", "--reverse-time"]
    with pytest.raises(ValueError, match="DiT predicts epsilon"):
        convert.main(call)
