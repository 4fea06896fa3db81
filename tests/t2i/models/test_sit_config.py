"""Proves the sizes of SiT, DiT and MaskDiT: published parameter counts, routes, refusals."""

import pytest
import torch
from pydantic import ValidationError

from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit import SiT
from t2i.models.sit_config import PATCH_SIZES, SIZES, SiTConfig

# millions, the figures of Peebles & Xie (arXiv 2212.09748); the fixed positions are in theirs
PUBLISHED = {"S/2": 33, "B/2": 130, "L/2": 458, "XL/2": 675}


def num_parameters(name: str) -> int:
    with torch.device("meta"):
        model = SiT.from_config(SiTConfig.from_size(name))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_size_has_its_published_number_of_parameters(size):
    assert abs(num_parameters(f"DiT-{size}") / 1e6 - PUBLISHED[size]) < 0.5
    assert num_parameters(f"SiT-{size}") == num_parameters(f"DiT-{size}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_a_larger_patch_adds_parameters_to_both_ends_only(size, patch_size):
    width, area = SIZES[size][1], patch_size**2 - 4
    # 4 channels in; 8 channels out, with their biases
    added = 4 * area * width + 8 * area * (width + 1)
    assert num_parameters(f"SiT-{size}/{patch_size}") == num_parameters(f"SiT-{size}/2") + added


@pytest.mark.parametrize(("size", "last"), [("S", 8), ("B", 8), ("L", 20), ("XL", 24)])
def test_the_default_route_goes_from_layer_2_to_the_fourth_from_the_end(size, last):
    assert SiTConfig.from_size(f"SiT-{size}/2").resolved_routes == ((2, last),)


def test_a_size_name_tells_family_and_patch_and_fields_replace_single_values():
    config = SiTConfig.from_size("SiT-XL/4", num_classes=10, learn_sigma=False)
    assert (config.num_layers, config.width, config.num_heads) == (28, 1152, 16)
    assert (config.patch_size, config.num_classes, config.null_label) == (4, 10, 10)
    assert (config.prediction, config.head_channels) == ("velocity", 4)
    assert SiTConfig.from_size("DiT-B/2").prediction == "epsilon"
    decoder = MaskDiTConfig.from_size("MaskDiT-XL/2")
    assert (decoder.decoder_layers, decoder.decoder_width, decoder.decoder_heads) == (8, 512, 16)


@pytest.mark.parametrize("name", ["SiT-XXL/2", "SiT-XL/3", "SiT-XL", "MaskDiT-XL/2", ""])
def test_unknown_sizes_are_refused_with_the_valid_ones(name):
    with pytest.raises(ValueError, match="SiT or DiT, then -, one of S, B, L, XL, then /"):
        SiTConfig.from_size(name)


def test_what_would_be_ignored_or_cannot_be_is_refused():
    with pytest.raises(ValidationError, match="routes"):
        MaskDiTConfig.from_size("MaskDiT-S/2", routes=((2, -4),))
    with pytest.raises(ValidationError, match="of num_heads 5"):
        SiTConfig(num_heads=5)
    with pytest.raises(ValidationError, match="layers must be in"):
        SiTConfig(routes=((2, 12),))
    with pytest.raises(ValidationError, match="of decoder_heads 7"):
        MaskDiTConfig(decoder_heads=7)


def test_a_draw_per_route_needs_several_routes() -> None:
    several = SiTConfig(routes=((1, 2), (4, 5)), draw_per_route=True)
    assert (several.num_draws, SiTConfig().num_draws) == (2, 1)
    with pytest.raises(ValidationError, match=r"draw_per_route has no effect with 1 route\(s\)"):
        SiTConfig(draw_per_route=True)
