"""Proves the scale input of all three families: without effect at first, to the bit; required where
the config has it and refused elsewhere; an influence per sample once trained, and a gradient for
each of its parameters after one step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from t2i.config import Section
from t2i.models.costs.macs import forward_macs
from t2i.models.flops import parameter_counts
from t2i.models.mask_dit import MaskDiT
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.models.storage import load_model, save_transformer
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig

SIZES = {"width": 32, "num_heads": 2}
CLASS_SIZES = {**SIZES, "num_classes": 5}
FAMILIES = {
    "tr_dit": (
        TRDiT,
        TRDiTConfig(num_layers=3, text_width=8, adaln_rank=4, routes=((1, 1),), **SIZES),
    ),
    "sit": (SiT, SiTConfig(num_layers=3, routes=((1, 1),), **CLASS_SIZES)),
    "mask_dit": (
        MaskDiT,
        MaskDiTConfig(
            num_layers=2, decoder_layers=1, decoder_width=16, decoder_heads=2, **CLASS_SIZES
        ),
    ),
}
LATENTS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TIMESTEP = torch.tensor([0.1, 0.5, 0.9])
SCALE = torch.tensor([1.0, 1.5, 0.0])

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def config_of(family: str, scale_input: bool) -> Section:
    return FAMILIES[family][1].model_copy(update={"scale_input": scale_input})


def build(family: str, scale_input: bool) -> nn.Module:
    """Random weights, none of them zero but those of the scale's output."""
    torch.manual_seed(0)
    model = FAMILIES[family][0](config_of(family, scale_input))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not name.startswith("scale."):
            parameter.data.normal_(0, 0.3, generator=generator)
    return model


def ask(model: nn.Module, scale_B: Tensor | None = None) -> Tensor:
    """The velocity of three samples."""
    condition = torch.tensor([0, 3, 5])
    if isinstance(model, TRDiT):
        states = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
        condition = model.prepare_text(states, torch.ones(3, 4, dtype=torch.bool))
    return model(LATENTS, TIMESTEP, condition, guidance_scale_B=scale_B)


@torch.no_grad()
def test_a_new_scale_input_changes_nothing_to_the_bit(family: str) -> None:
    plain, scaled = build(family, False), build(family, True)
    assert ask(plain).std() > 0.01
    assert torch.equal(ask(scaled, SCALE), ask(plain))


def test_a_seed_gives_all_other_weights_with_and_without_it(family: str) -> None:
    models = []
    for scale_input in (False, True):
        torch.manual_seed(3)
        models.append(FAMILIES[family][0](config_of(family, scale_input)).state_dict())
    plain, scaled = models
    new = [name for name in scaled if name not in plain]
    assert new
    assert all(name.startswith("scale.") for name in new)
    assert all(torch.equal(weight, scaled[name]) for name, weight in plain.items())


@torch.no_grad()
def test_the_scale_is_required_where_there_is_an_input_and_refused_elsewhere(family: str) -> None:
    with pytest.raises(ValueError, match=r"has a scale input .*scale_input.*give a scale"):
        ask(build(family, True))
    with pytest.raises(ValueError, match="has no scale input: leave the guidance scale out"):
        ask(build(family, False), SCALE)


def test_every_new_parameter_gets_a_gradient_after_one_step_and_then_has_influence(
    family: str,
) -> None:
    model = build(family, True)
    new = [p for name, p in model.named_parameters() if name.startswith("scale.")]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):  # the zero of its output hides the layer before it in the first
        optimizer.zero_grad()
        ask(model, SCALE).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in new)
    with torch.no_grad():
        before, after = ask(model, SCALE), ask(model, SCALE + torch.tensor([0.0, 0.5, 0.0]))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


@torch.no_grad()
def test_formulas_count_it(family: str) -> None:
    # bf16 on a CPU writes attention out, so the counter sees its two products
    counts = {}
    for scale_input in (False, True):
        model = build(family, scale_input).bfloat16()
        if isinstance(model, TRDiT):
            text = model.prepare_text(torch.randn(3, 4, 8), torch.ones(3, 4, dtype=torch.bool))
        with FlopCounterMode(display=False) as counter:
            condition = text if isinstance(model, TRDiT) else torch.tensor([0, 3, 5])
            scale_B = SCALE if scale_input else None
            model(LATENTS, TIMESTEP, condition, guidance_scale_B=scale_B)
        counts[scale_input] = counter.get_total_flops()
        text_tokens = 4 if isinstance(model, TRDiT) else 0
        assert counts[scale_input] == 2 * 3 * forward_macs(model.config, 16, text_tokens)
    assert counts[True] > counts[False]
    assert parameter_counts(config_of(family, True))["scale"] >= (256 + 32) * 32


@torch.no_grad()
def test_it_is_saved_and_loaded_and_may_not_be_missing(family: str, tmp_path) -> None:
    model_class, config = FAMILIES[family]
    model = build(family, True)
    nn.init.normal_(model.scale.out.weight)
    save_transformer(model, tmp_path)
    loaded = load_model(model_class, type(config), tmp_path)
    assert loaded.config.scale_input
    assert torch.equal(ask(loaded, SCALE), ask(model, SCALE))
    plain = build(family, False)
    plain.config = config_of(family, True)
    save_transformer(plain, tmp_path)
    with pytest.raises(ValueError, match=r"missing scale\.hidden\.weight"):
        load_model(model_class, type(config), tmp_path)
