"""Proves the validation of sizes and routes, and the sizes derived from them."""

import pytest
from pydantic import ValidationError

from t2i.models.tr_dit_config import TRDiTConfig


def test_routes_include_both_ends_and_count_negative_layers_from_the_end():
    config = TRDiTConfig(num_layers=34, routes=((2, -4),))
    assert config.resolved_routes == ((2, 30),)


def test_several_routes_are_kept_in_order():
    config = TRDiTConfig(num_layers=10, routes=((1, 3), (4, -2)))
    assert config.resolved_routes == ((1, 3), (4, 8))


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        (((2, 8),), "layers must be in"),
        (((-9, 3),), "layers must be in"),
        (((5, 2),), "is empty"),
        (((1, 3), (3, 5)), "must start after layer 3"),
        (((4, 5), (1, 2)), "must start after layer 5"),
    ],
)
def test_bad_routes_are_refused_with_what_is_allowed(routes, message):
    with pytest.raises(ValidationError, match=message):
        TRDiTConfig(num_layers=8, routes=routes)


def test_a_head_width_that_axial_rope_cannot_use_is_refused():
    with pytest.raises(ValidationError, match="multiple of 8"):
        TRDiTConfig(width=192, num_heads=16)


@pytest.mark.parametrize(("width", "hidden"), [(2048, 5472), (192, 512), (1536, 4096)])
def test_ffn_width_is_eight_thirds_rounded_up_to_a_multiple_of_sixteen(width, hidden):
    assert TRDiTConfig(width=width, num_heads=2).ffn_width == hidden
