"""Proves that sizes by formula are those of the models' parameters."""

from __future__ import annotations

import pytest

from t2i.models.costs.macs import Backbone
from t2i.models.costs.parameters import parameter_sizes
from t2i.models.flops import build_model
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig


@pytest.mark.parametrize("scale_input", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        TRDiTConfig(
            num_layers=5, width=64, num_heads=2, text_width=24, adaln_rank=8, routes=((1, 2),)
        ),
        SiTConfig(num_layers=7, width=64, num_heads=2, num_classes=10),
        SiTConfig(num_layers=6, width=64, num_heads=2, learn_sigma=False, patch_size=4),
        TRDiTConfig(num_layers=5, routes=((1, 2),), after_route="fuse", internal_after=0),
        SiTConfig(num_layers=5, routes=((1, 2),), after_route="fuse", internal_after=0),
        MaskDiTConfig(num_layers=3, width=64, num_heads=2, decoder_width=32, decoder_heads=2),
    ],
    ids=["tr_dit", "sit", "sit without sigma", "tr_dit more", "sit more", "mask_dit"],
)
def test_sizes_by_formula_are_those_of_the_parameters(config: Backbone, scale_input: bool) -> None:
    config = config.model_copy(update={"scale_input": scale_input})
    sizes = [parameter.numel() for parameter in build_model(config).parameters()]
    assert sorted(parameter_sizes(config)) == sorted(sizes)
