"""Proves SiT: parity with its public formulas, exact routing, any grid, the published sizes.

Parity is with a plain forward pass written here from the public state dict's names, which the
converter reads: so names, orders of channels and positions are held too.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor

from t2i.models.convert import convert_state_dict, public_shapes
from t2i.models.fusion import leave_route
from t2i.models.perturbation import UNPERTURBED, Perturbation
from t2i.models.routing import Kept, draw_keep, draw_keep_ids, gather_tokens
from t2i.models.sit import SiT, load_sit
from t2i.models.sit_config import SiTConfig
from t2i.models.sit_layers import sincos_positions
from t2i.models.storage import load_weights, save_transformer

CONFIG = SiTConfig(num_layers=5, width=64, num_heads=2, num_classes=10, routes=((1, -2),))
BATCH, SIDE = 3, 8
TOKENS = SIDE * SIDE // 4


def public_weights(config: SiTConfig, side: int = SIDE) -> dict[str, Tensor]:
    """Random weights under the public names."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5
        for name, shape in public_shapes(config).items()
    }
    grid = side // config.patch_size
    positions = get_2d_sincos_pos_embed(config.width, grid, base_size=grid, output_type="pt")
    weights["pos_embed"] = positions.float()[None]
    return weights


def public_forward(
    weights: dict[str, Tensor], config: SiTConfig, x: Tensor, t: Tensor, y: Tensor
) -> Tensor:
    """The forward pass of the public code for square latents, without its modules."""

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        mean, variance = value.mean(-1, keepdim=True), value.var(-1, keepdim=True, unbiased=False)
        return (value - mean) / (variance + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]

    p, heads = config.patch_size, config.num_heads
    proj = weights["x_embedder.proj.weight"], weights["x_embedder.proj.bias"]
    h = F.conv2d(x, *proj, stride=p).flatten(2).transpose(1, 2) + weights["pos_embed"]
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], -1))
    c = linear("t_embedder.mlp.2", F.silu(time)) + weights["y_embedder.embedding_table.weight"][y]
    for i in range(config.num_layers):
        name = f"blocks.{i}"
        s1, k1, g1, s2, k2, g2 = linear(f"{name}.adaLN_modulation.1", F.silu(c)).chunk(6, dim=1)
        q, k, v = linear(f"{name}.attn.qkv", normed(h, s1, k1)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = h + g1[:, None] * linear(f"{name}.attn.proj", mixed)
        u = linear(f"{name}.mlp.fc1", normed(h, s2, k2))
        gelu = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        h = h + g2[:, None] * linear(f"{name}.mlp.fc2", gelu)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, dim=1)
    patches = linear("final_layer.linear", normed(h, shift, scale))
    side = x.shape[-1] // p
    grid = patches.unflatten(-1, (p, p, -1)).unflatten(1, (side, side))
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, side * p, side * p)


def converted(config: SiTConfig, weights: dict[str, Tensor], reverse_time: bool = False) -> SiT:
    model = SiT.from_config(config)
    load_weights(model, convert_state_dict(weights, config, "test", reverse_time), "test")
    return model.eval()


@pytest.fixture(scope="module")
def model() -> SiT:
    return converted(CONFIG, public_weights(CONFIG))


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    latents = torch.randn(BATCH, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return latents, torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 7, CONFIG.null_label])


@pytest.fixture(scope="module")
def keep_ids() -> Tensor:
    return draw_keep_ids(0, "route", 0, torch.arange(BATCH), TOKENS, 0.5)


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_velocity_equals_the_public_formulas(inputs, patch_size, learn_sigma):
    update = {"patch_size": patch_size, "learn_sigma": learn_sigma}
    config = CONFIG.model_copy(update=update)
    weights = public_weights(config)
    expected = public_forward(weights, config, *inputs)[:, :4]
    assert expected.std() > 0.3
    torch.testing.assert_close(converted(config, weights)(*inputs), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_reversed_checkpoints_are_turned_into_our_time_and_sign(inputs):
    # v(x, t) = data - noise, t = 1 is data, from a net that gives noise - data at noise level 1 - t
    latents, timestep, labels = inputs
    weights = public_weights(CONFIG)
    expected = -public_forward(weights, CONFIG, latents, 1 - timestep, labels)[:, :4]
    ours = converted(CONFIG, weights, reverse_time=True)(*inputs)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_dit_gives_noise_and_variance_at_steps_of_its_diffusion(inputs):
    config = CONFIG.model_copy(update={"prediction": "epsilon"})
    weights = public_weights(config)
    latents, steps, labels = inputs[0], torch.tensor([0.0, 400.0, 999.0]), inputs[2]
    expected = public_forward(weights, config, latents, steps, labels)
    assert expected.shape == (BATCH, 8, SIDE, SIDE)
    ours = converted(config, weights)(latents, steps, labels)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_a_new_model_predicts_zero_and_its_blocks_are_the_identity(inputs):
    fresh = SiT.from_config(CONFIG)
    hidden = fresh.embed(*inputs[:2])
    assert torch.equal(fresh.before_route(hidden, inputs[2]).tokens_BTD, hidden.tokens_BTD)
    assert not fresh(*inputs).any()


@torch.no_grad()
def test_keeping_every_token_equals_dense_bitwise(model, inputs):
    every = draw_keep_ids(0, "route", 0, torch.arange(BATCH), TOKENS, 0.0)
    assert torch.equal(model(*inputs, every), model(*inputs))


@torch.no_grad()
def test_the_route_includes_both_of_its_ends(model, inputs, keep_ids):
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
        for block in model.blocks
    ]
    model(*inputs, keep_ids)
    for hook in hooks:
        hook.remove()
    assert seen == [16, 8, 8, 8, 16]


def run_route(model, hidden, condition, blocks, keep_ids):
    """All tokens after some blocks on the kept ones."""
    kept = Kept(keep_ids)
    tokens = model._run(hidden, condition, blocks, kept, UNPERTURBED)
    return leave_route(hidden.tokens_BTD, tokens, kept, None, None)


@torch.no_grad()
def test_a_routed_block_equals_the_dense_block_on_the_gathered_tokens(model, inputs, keep_ids):
    hidden = model.embed(*inputs[:2])
    condition = model._condition(hidden, inputs[2])
    routed = run_route(model, hidden, condition, [1], keep_ids)
    for sample, ids in enumerate(keep_ids):
        one = slice(sample, sample + 1)
        alone = model.blocks[1](hidden.tokens_BTD[one, ids], condition[one])
        torch.testing.assert_close(routed[sample, ids], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_that_step_aside_come_back_unchanged_and_are_not_seen(model, inputs, keep_ids):
    hidden = model.embed(*inputs[:2])
    condition = model._condition(hidden, inputs[2])
    aside = torch.ones(BATCH, TOKENS, dtype=torch.bool).scatter(1, keep_ids, False)
    routed = run_route(model, hidden, condition, range(1, 4), keep_ids)
    assert torch.equal(routed[aside], hidden.tokens_BTD[aside])
    assert (routed[~aside] != hidden.tokens_BTD[~aside]).any(dim=-1).all()
    changed = replace(hidden, tokens_BTD=hidden.tokens_BTD.masked_fill(aside.unsqueeze(-1), 5.0))
    again = run_route(model, changed, condition, range(1, 4), keep_ids)
    assert torch.equal(gather_tokens(again, keep_ids), gather_tokens(routed, keep_ids))


@torch.no_grad()
@pytest.mark.parametrize("bernoulli", [False, True])
def test_samples_that_keep_different_numbers_of_tokens_share_a_batch(model, inputs, bernoulli):
    gammas = torch.tensor([0.0, 0.5, 0.9])
    kept = draw_keep(0, "route", 0, torch.arange(BATCH), TOKENS, gammas, bernoulli)
    together = model(*inputs, kept.ids_BK, kept.mask_BK)
    for row in range(BATCH):
        one = slice(row, row + 1)
        own_ids = kept.ids_BK[row][kept.mask_BK[row]].unsqueeze(0)
        alone = model(*(value[one] for value in inputs), own_ids)
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_skipped_block_is_one_that_adds_nothing(model, inputs, keep_ids):
    without = copy.deepcopy(model)
    for i in (0, 2, 4):
        without.blocks[i].modulation.weight.zero_()  # closes both gates
        without.blocks[i].modulation.bias.zero_()
    for ids in (None, keep_ids):
        skipped = model(*inputs, ids, perturbation=Perturbation(skip_blocks=(4, 0, 2)))
        assert torch.equal(skipped, without(*inputs, ids))
        assert not torch.equal(skipped, model(*inputs, ids))


@torch.no_grad()
def test_a_guidance_plan_may_run_the_first_part_once(model, inputs, keep_ids):
    hidden = model.before_route(model.embed(*inputs[:2]), inputs[2])
    for ids in (keep_ids, None):
        assert torch.equal(model.from_route(hidden, inputs[2], ids), model(*inputs, ids))


@torch.no_grad()
def test_several_routes_take_one_draw_each_or_share_one(inputs):
    config = CONFIG.model_copy(update={"routes": ((0, 1), (3, 4))})
    model = converted(config, public_weights(config))
    first, second = (
        draw_keep_ids(0, stream, 0, torch.arange(BATCH), TOKENS, 0.5) for stream in "ab"
    )
    shared = model(*inputs, first)
    assert torch.equal(shared, model(*inputs, torch.stack([first, first])))
    assert not torch.equal(shared, model(*inputs, torch.stack([first, second])))


@torch.no_grad()
def test_label_and_time_have_influence_and_a_sample_does_not_depend_on_its_batch(
    model, inputs, keep_ids
):
    latents, timestep, labels = inputs
    velocity = model(*inputs, keep_ids)
    assert not torch.allclose(model(latents, timestep, labels.roll(1), keep_ids), velocity)
    assert not torch.allclose(model(latents, timestep + 0.05, labels, keep_ids), velocity)
    ids = torch.tensor([2, 0])
    part = model(latents[ids], timestep[ids], labels[ids], keep_ids[ids])
    torch.testing.assert_close(part, velocity[ids], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 16), (2, 2)])
def test_any_resolution_and_aspect_ratio(model, height, width):
    latents = torch.randn(BATCH, 4, height, width)
    labels = torch.arange(BATCH)
    assert model(latents, torch.rand(BATCH), labels).shape == latents.shape


def test_positions_of_a_rectangle_are_those_of_a_square_cut_out():
    square = get_2d_sincos_pos_embed(64, 8, base_size=8, output_type="pt").reshape(8, 8, 64)
    for height, width in ((8, 8), (3, 8), (8, 5)):
        expected = square[:height, :width].float().flatten(0, 1)
        ours = sincos_positions(height, width, 64, torch.device("cpu"))
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_sizes_that_do_not_divide_and_kept_tokens_without_a_route_are_refused(inputs, keep_ids):
    model = SiT.from_config(CONFIG.model_copy(update={"routes": ()}))
    with pytest.raises(ValueError, match="7x8: both sides must be multiples of 2"):
        model(torch.randn(BATCH, 4, 7, 8), *inputs[1:])
    with pytest.raises(ValueError, match="no routes"):
        model(*inputs, keep_ids)


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(inputs, keep_ids):
    gradients = []
    for gradient_checkpointing in (False, True):
        config = CONFIG.model_copy(update={"gradient_checkpointing": gradient_checkpointing})
        model = converted(config, public_weights(config)).train()
        model(*inputs, keep_ids).square().mean().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert all(gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name])


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_weights_and_autocast_stay_near_float32(model, inputs, keep_ids, autocast):
    exact = model(*inputs, keep_ids)
    low = SiT.from_config(CONFIG)
    low.load_state_dict(model.state_dict())
    low = low if autocast else low.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        velocity = low(*inputs, keep_ids)
    assert velocity.dtype == torch.float32
    assert (velocity - exact).norm() / exact.norm() < 0.03


@torch.no_grad()
def test_a_bf16_network_reads_the_time_in_float32(model, inputs):
    """999 and 1000, as steps of a diffusion (DiT), are the same number in bf16."""
    low = copy.deepcopy(model).bfloat16()
    times = [torch.full((BATCH,), step) for step in (999.0, 1000.0)]
    first, second = (low.embed(inputs[0], timestep).time_BD for timestep in times)
    assert torch.equal(times[0].bfloat16(), times[1].bfloat16())
    assert (first - second).abs().max() > 0.05


@torch.no_grad()
def test_forward_traces_as_one_graph_without_breaks(model, inputs, keep_ids):
    explained = torch._dynamo.explain(model.forward)(*inputs, keep_ids)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(model, inputs, tmp_path):
    save_transformer(model, tmp_path)
    loaded = load_sit(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(*inputs), model(*inputs))
