"""Proves MaskDiT: its encoder is SiT's, dropped tokens leave for good, masks stand in their place.

Expected values are composed by hand from the public parts: SiT of equal weights, blocks, positions.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from t2i.models.mask_dit import MaskDiT, load_mask_dit
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.perturbation import Perturbation
from t2i.models.routing import draw_keep, draw_keep_ids
from t2i.models.sit_layers import sincos_positions
from t2i.models.storage import save_transformer

CONFIG = MaskDiTConfig(
    num_layers=3,
    width=48,
    num_heads=2,
    num_classes=10,
    decoder_layers=2,
    decoder_width=32,
    decoder_heads=4,
)
BATCH, HEIGHT, WIDTH = 3, 8, 12
TOKENS = HEIGHT * WIDTH // 4


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(0)
    model = MaskDiT.from_config(CONFIG)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def inputs():
    latents = torch.randn(BATCH, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    return latents, torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 7, CONFIG.null_label])


@pytest.fixture(scope="module")
def keep_ids():
    return draw_keep_ids(0, "mask", 0, torch.arange(BATCH), TOKENS, 0.5)


def by_hand(model, sample, latents, timestep, labels, visible):
    """The velocity of one sample whose encoder sees the tokens `visible`, token by token."""
    one = slice(sample, sample + 1)
    tokens = model.patch(latents[one])[:, visible]
    condition = F.silu(model.time(timestep[one]) + model.label(labels[one]))
    for block in model.blocks:
        tokens = block(tokens, condition)
    tokens = model.bridge(tokens, condition)
    everyone = model.mask_embedding.repeat(1, TOKENS, 1)
    for place, token in enumerate(visible):
        everyone[0, token] = tokens[0, place]
    everyone = everyone + sincos_positions(
        HEIGHT // 2, WIDTH // 2, CONFIG.decoder_width, latents.device
    )
    for block in model.decoder:
        everyone = block(everyone, condition)
    patches = model.head(everyone, condition)
    rows = patches.transpose(1, 2).reshape(1, 16, HEIGHT // 2, WIDTH // 2)
    return F.pixel_shuffle(rows, 2)[0]


@torch.no_grad()
def test_masked_velocity_equals_the_one_composed_by_hand(model, inputs, keep_ids):
    velocity = model(*inputs, keep_ids)
    assert velocity.shape == inputs[0].shape
    for sample in range(BATCH):
        expected = by_hand(model, sample, *inputs, keep_ids[sample].tolist())
        torch.testing.assert_close(velocity[sample], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_full_visibility_equals_no_masking_bitwise_and_needs_no_mask_embedding(model, inputs):
    dense = model(*inputs)
    every = draw_keep_ids(0, "mask", 0, torch.arange(BATCH), TOKENS, 0.0)
    assert torch.equal(model(*inputs, every), dense)
    for sample in range(BATCH):
        expected = by_hand(model, sample, *inputs, list(range(TOKENS)))
        torch.testing.assert_close(dense[sample], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_is_under_a_dropped_token_has_no_influence(model, inputs, keep_ids):
    latents, timestep, labels = inputs
    aside = torch.ones(BATCH, TOKENS).scatter(1, keep_ids, 0.0)
    pixels = F.interpolate(aside.view(BATCH, 1, HEIGHT // 2, WIDTH // 2), scale_factor=2)
    changed = latents + 3 * pixels
    assert not torch.equal(model(changed, timestep, labels), model(*inputs))
    velocity = model(*inputs, keep_ids)
    assert torch.equal(model(changed, timestep, labels, keep_ids), velocity)
    dropped = velocity[pixels.expand_as(velocity) > 0]
    assert dropped.std() > 0.01  # they get an answer all the same, of their positions


@torch.no_grad()
def test_the_encoder_runs_only_the_visible_tokens_and_the_decoder_all(model, inputs, keep_ids):
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
        for block in (*model.blocks, *model.decoder)
    ]
    model(*inputs, keep_ids)
    for hook in hooks:
        hook.remove()
    assert seen == [12, 12, 12, 24, 24]


@torch.no_grad()
@pytest.mark.parametrize("bernoulli", [False, True])
def test_samples_that_keep_different_numbers_of_tokens_share_a_batch(model, inputs, bernoulli):
    gammas = torch.tensor([0.0, 0.5, 0.9])
    kept = draw_keep(0, "mask", 0, torch.arange(BATCH), TOKENS, gammas, bernoulli)
    together = model(*inputs, kept.ids_BK, kept.mask_BK)
    for row in range(BATCH):
        one = slice(row, row + 1)
        own_ids = kept.ids_BK[row][kept.mask_BK[row]].unsqueeze(0)
        alone = model(*(value[one] for value in inputs), own_ids)
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_skipped_block_is_one_that_adds_nothing(model, inputs, keep_ids):
    without = copy.deepcopy(model)
    for i in (0, 2):
        without.blocks[i].modulation.weight.zero_()  # closes both gates
        without.blocks[i].modulation.bias.zero_()
    for ids in (None, keep_ids):
        skipped = model(*inputs, ids, perturbation=Perturbation(skip_blocks=(2, 0)))
        assert torch.equal(skipped, without(*inputs, ids))
        assert not torch.equal(skipped, model(*inputs, ids))


@torch.no_grad()
def test_a_guidance_plan_may_run_the_embedding_once(model, inputs, keep_ids):
    hidden = model.before_route(model.embed(*inputs[:2]), inputs[2])
    for ids in (keep_ids, None):
        assert torch.equal(model.from_route(hidden, inputs[2], ids), model(*inputs, ids))


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(model, inputs, keep_ids):
    gradients = []
    for gradient_checkpointing in (False, True):
        config = CONFIG.model_copy(update={"gradient_checkpointing": gradient_checkpointing})
        copy = MaskDiT.from_config(config)
        copy.load_state_dict(model.state_dict())
        copy(*inputs, keep_ids).square().mean().backward()
        gradients.append({name: weight.grad for name, weight in copy.named_parameters()})
    assert all(gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name])


@torch.no_grad()
def test_a_new_model_predicts_zero(inputs, keep_ids):
    assert not MaskDiT.from_config(CONFIG)(*inputs, keep_ids).any()


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_weights_and_autocast_stay_near_float32(model, inputs, keep_ids, autocast):
    exact = model(*inputs, keep_ids)
    low = MaskDiT.from_config(CONFIG)
    low.load_state_dict(model.state_dict())
    low = low if autocast else low.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        velocity = low(*inputs, keep_ids)
    assert velocity.dtype == torch.float32
    assert (velocity - exact).norm() / exact.norm() < 0.03


@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(model, inputs, tmp_path):
    save_transformer(model, tmp_path)
    loaded = load_mask_dit(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(*inputs), model(*inputs))
