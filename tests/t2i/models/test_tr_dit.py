"""Proves TR-DiT: routing exact, text padding without influence, all weights used, files checked."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i.models.fusion import leave_route
from t2i.models.perturbation import UNPERTURBED, Perturbation
from t2i.models.routing import Kept, draw_keep, draw_keep_ids, gather_tokens
from t2i.models.storage import CONFIG_NAME, WEIGHTS_NAME, save_transformer
from t2i.models.tr_dit import TRDiT, concatenate_text, load_transformer
from t2i.models.tr_dit_config import TRDiTConfig

CONFIG = TRDiTConfig(
    num_layers=5, width=64, num_heads=2, text_width=24, adaln_rank=8, routes=((1, -2),)
)
BATCH, HEIGHT, WIDTH, LENGTH = 3, 8, 12, 6
TOKENS = HEIGHT * WIDTH // 4


def randomise(model: TRDiT) -> TRDiT:
    """Give every weight a value, those that start at zero too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + 0.1 * noise
    return model


@pytest.fixture(scope="module")
def model() -> TRDiT:
    torch.manual_seed(0)
    return randomise(TRDiT.from_config(CONFIG)).eval()


@pytest.fixture(scope="module")
def inputs(model):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(BATCH, 4, HEIGHT, WIDTH, generator=generator)
    states = torch.randn(BATCH, LENGTH, CONFIG.text_width, generator=generator)
    mask = torch.arange(LENGTH) < torch.tensor([[6], [4], [1]])
    return latents, torch.tensor([0.1, 0.5, 0.9]), states, mask


@pytest.fixture(scope="module")
def text(model, inputs):
    with torch.no_grad():
        return model.prepare_text(*inputs[2:])


@pytest.fixture(scope="module")
def keep_ids():
    return draw_keep_ids(0, "route", 0, torch.arange(BATCH), TOKENS, 0.5)


@torch.no_grad()
def test_a_new_model_predicts_zero_and_its_blocks_are_the_identity(inputs):
    fresh = TRDiT.from_config(CONFIG)
    fresh_text = fresh.prepare_text(*inputs[2:])
    hidden = fresh.embed(*inputs[:2])
    assert torch.equal(fresh.before_route(hidden, fresh_text).tokens_BTD, hidden.tokens_BTD)
    assert not fresh(*inputs[:2], fresh_text).any()


@torch.no_grad()
def test_keeping_every_token_equals_dense_bitwise(model, inputs, text):
    every = torch.arange(TOKENS).expand(BATCH, -1)
    assert torch.equal(model(*inputs[:2], text, every), model(*inputs[:2], text))


@torch.no_grad()
def test_the_route_includes_both_of_its_ends(model, inputs, text, keep_ids):
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
        for block in model.blocks
    ]
    model(*inputs[:2], text, keep_ids)
    for hook in hooks:
        hook.remove()
    assert seen == [24, 12, 12, 12, 24]


def run_route(model, hidden, condition, blocks, keep_ids):
    """All tokens after some blocks on the kept ones."""
    kept = Kept(keep_ids)
    tokens = model._run(hidden, condition, blocks, kept, UNPERTURBED)
    return leave_route(hidden.tokens_BTD, tokens, kept, None, None)


@torch.no_grad()
def test_a_routed_block_equals_the_dense_block_on_the_gathered_tokens(
    model, inputs, text, keep_ids
):
    hidden = model.embed(*inputs[:2])
    routed = run_route(model, hidden, text, [1], keep_ids)
    for sample in range(BATCH):
        ids = keep_ids[sample]
        cos, sin = (table[ids] for table in hidden.rotation)
        alone = model.blocks[1](
            hidden.tokens_BTD[sample : sample + 1, ids],
            hidden.time_BD[sample : sample + 1],
            type(hidden.rotation)(cos, sin),
            tuple(part[sample : sample + 1] for part in text.keys_values[1]),
            text.mask_B11L[sample : sample + 1],
        )
        torch.testing.assert_close(routed[sample, ids], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_that_step_aside_come_back_unchanged(model, inputs, text, keep_ids):
    hidden = model.before_route(model.embed(*inputs[:2]), text)
    routed = run_route(model, hidden, text, range(1, 4), keep_ids)
    aside = torch.ones(BATCH, TOKENS, dtype=torch.bool).scatter(1, keep_ids, False)
    assert torch.equal(routed[aside], hidden.tokens_BTD[aside])
    assert (routed[~aside] != hidden.tokens_BTD[~aside]).any(dim=-1).all()


@torch.no_grad()
def test_kept_tokens_do_not_see_those_that_stepped_aside(model, inputs, text, keep_ids):
    hidden = model.embed(*inputs[:2])
    aside = torch.ones(BATCH, TOKENS, dtype=torch.bool).scatter(1, keep_ids, False)
    changed = replace(hidden, tokens_BTD=hidden.tokens_BTD.masked_fill(aside.unsqueeze(-1), 5.0))
    runs = [run_route(model, state, text, range(1, 4), keep_ids) for state in (hidden, changed)]
    assert torch.equal(gather_tokens(runs[0], keep_ids), gather_tokens(runs[1], keep_ids))


@torch.no_grad()
def test_routing_changes_the_velocity_and_a_sample_does_not_depend_on_its_batch(
    model, inputs, text, keep_ids
):
    latents, timestep = inputs[:2]
    routed = model(latents, timestep, text, keep_ids)
    assert not torch.allclose(routed, model(latents, timestep, text))
    ids = torch.tensor([2, 0])
    part = model(latents[ids], timestep[ids], text.select(ids), keep_ids[ids])
    torch.testing.assert_close(part, routed[ids], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("bernoulli", [False, True])
def test_samples_that_keep_different_numbers_of_tokens_share_a_batch(
    model, inputs, text, bernoulli
):
    latents, timestep = inputs[:2]
    gammas = torch.tensor([0.0, 0.5, 0.9])
    kept = draw_keep(0, "route", 0, torch.arange(BATCH), TOKENS, gammas, bernoulli)
    together = model(latents, timestep, text, kept.ids_BK, kept.mask_BK)
    for row in range(BATCH):
        one = torch.tensor([row])
        own_ids = kept.ids_BK[row][kept.mask_BK[row]].unsqueeze(0)
        alone = model(latents[one], timestep[one], text.select(one), own_ids)
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_skipped_block_is_one_that_adds_nothing(model, inputs, text, keep_ids):
    without = copy.deepcopy(model)
    for i in (0, 2, 4):
        without.blocks[i].modulation.up.weight.zero_()  # closes both gates
        without.blocks[i].cross_attention.out.weight.zero_()
    for ids in (None, keep_ids):
        skipped = model(*inputs[:2], text, ids, perturbation=Perturbation(skip_blocks=(4, 0, 2)))
        assert torch.equal(skipped, without(*inputs[:2], text, ids))
        assert not torch.equal(skipped, model(*inputs[:2], text, ids))


@torch.no_grad()
def test_a_guidance_plan_may_run_the_first_part_once(model, inputs, text, keep_ids):
    hidden = model.before_route(model.embed(*inputs[:2]), text)
    for ids in (keep_ids, None):
        assert torch.equal(model.from_route(hidden, text, ids), model(*inputs[:2], text, ids))


@torch.no_grad()
def test_several_routes_take_one_draw_each_or_share_one(inputs):
    config = CONFIG.model_copy(update={"routes": ((0, 1), (3, 4))})
    model = randomise(TRDiT.from_config(config))
    text = model.prepare_text(*inputs[2:])
    first, second = (
        draw_keep_ids(0, stream, 0, torch.arange(BATCH), TOKENS, 0.5) for stream in "ab"
    )
    shared = model(*inputs[:2], text, first)
    assert torch.equal(shared, model(*inputs[:2], text, torch.stack([first, first])))
    assert not torch.equal(shared, model(*inputs[:2], text, torch.stack([first, second])))


@torch.no_grad()
def test_padding_of_the_text_has_no_influence(model, inputs, text):
    latents, timestep, states, mask = inputs
    velocity = model(latents, timestep, text)
    garbage = states.masked_fill(~mask.unsqueeze(-1), 1e3)
    torch.testing.assert_close(
        model(latents, timestep, model.prepare_text(garbage, mask)), velocity
    )
    short = model.prepare_text(states[1:2, :4], mask[1:2, :4])
    torch.testing.assert_close(
        model(latents[1:2], timestep[1:2], short), velocity[1:2], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_each_unmasked_text_token_and_the_time_have_influence(model, inputs, text):
    latents, timestep, states, mask = inputs
    velocity = model(latents, timestep, text)
    for token in range(4):
        changed = states.clone()
        changed[1, token] += 1
        moved = model(latents, timestep, model.prepare_text(changed, mask))
        assert not torch.allclose(moved[1], velocity[1])
        torch.testing.assert_close(moved[[0, 2]], velocity[[0, 2]])
    assert not torch.allclose(model(latents, timestep + 0.05, text), velocity)


@torch.no_grad()
def test_contexts_of_different_lengths_join_in_one_batch(model, inputs, text):
    latents, timestep, states, mask = inputs
    null = model.prepare_text(states[:, :2], mask[:, :2])
    both = concatenate_text([text, null])
    joint = model(latents.repeat(2, 1, 1, 1), timestep.repeat(2), both)
    apart = torch.cat([model(latents, timestep, context) for context in (text, null)])
    torch.testing.assert_close(joint, apart, atol=1e-5, rtol=1e-5)


def test_every_parameter_gets_a_gradient(inputs, keep_ids):
    model = randomise(TRDiT.from_config(CONFIG))
    model(*inputs[:2], model.prepare_text(*inputs[2:]), keep_ids).square().mean().backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_gradient_checkpointing_changes_nothing(inputs, keep_ids):
    gradients = []
    for gradient_checkpointing in (False, True):
        config = CONFIG.model_copy(update={"gradient_checkpointing": gradient_checkpointing})
        torch.manual_seed(0)
        model = randomise(TRDiT.from_config(config))
        loss = model(*inputs[:2], model.prepare_text(*inputs[2:]), keep_ids).square().mean()
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_weights_and_autocast_stay_near_float32(model, inputs, text, keep_ids, autocast):
    exact = model(*inputs[:2], text, keep_ids)
    low = TRDiT.from_config(CONFIG)
    low.load_state_dict(model.state_dict())
    low = low if autocast else low.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        velocity = low(*inputs[:2], low.prepare_text(*inputs[2:]), keep_ids)
    assert velocity.dtype == torch.float32
    assert (velocity - exact).norm() / exact.norm() < 0.03


@torch.no_grad()
def test_a_bf16_network_reads_the_time_in_float32(model, inputs):
    """0.7004 and 0.7006 are the same number in bf16."""
    low = copy.deepcopy(model).bfloat16()
    times = [torch.full((BATCH,), time) for time in (0.7004, 0.7006)]
    first, second = (low.embed(inputs[0], timestep).time_BD for timestep in times)
    assert torch.equal(times[0].bfloat16(), times[1].bfloat16())
    assert (first - second).abs().max() > 0.05


@torch.no_grad()
def test_forward_traces_as_one_graph_without_breaks(model, inputs, text, keep_ids):
    explained = torch._dynamo.explain(model.forward)(*inputs[:2], text, keep_ids)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@pytest.mark.slow
@torch.no_grad()
def test_compiled_equals_eager(inputs, text, keep_ids):
    torch.manual_seed(0)
    compiled = randomise(TRDiT.from_config(CONFIG)).eval()
    expected = [compiled(*inputs[:2], text, ids) for ids in (keep_ids, None)]
    compiled.compile_blocks()
    for ids, eager in zip((keep_ids, None), expected, strict=True):
        torch.testing.assert_close(compiled(*inputs[:2], text, ids), eager, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 16), (2, 2)])
@torch.no_grad()
def test_any_resolution_and_aspect_ratio(model, text, height, width):
    latents = torch.randn(BATCH, 4, height, width)
    assert model(latents, torch.rand(BATCH), text).shape == latents.shape


def test_sizes_that_do_not_divide_are_refused(model, text):
    with pytest.raises(ValueError, match="7x8: both sides must be multiples of 2"):
        model(torch.randn(BATCH, 4, 7, 8), torch.rand(BATCH), text)


def test_kept_tokens_without_a_route_are_refused(inputs, keep_ids):
    model = TRDiT.from_config(CONFIG.model_copy(update={"routes": ()}))
    with pytest.raises(ValueError, match="no routes"):
        model(*inputs[:2], model.prepare_text(*inputs[2:]), keep_ids)


@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(model, inputs, text, tmp_path):
    save_transformer(model, tmp_path)
    loaded = load_transformer(tmp_path)
    assert loaded.config == model.config
    velocity = loaded(*inputs[:2], loaded.prepare_text(*inputs[2:]))
    assert torch.equal(velocity, model(*inputs[:2], text))
    low = load_transformer(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}


def test_files_that_do_not_fit_are_refused_by_name(model, tmp_path):
    save_transformer(model, tmp_path)
    weights = load_file(tmp_path / WEIGHTS_NAME)
    weights["surplus"] = weights.pop("patch.weight")
    save_file(weights, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"missing patch\.weight; unknown surplus"):
        load_transformer(tmp_path)


def test_weights_of_another_width_are_refused_with_both_shapes(model, tmp_path):
    save_transformer(model, tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config | {"in_channels": 8}))
    with pytest.raises(ValueError, match=r"patch\.weight is \(64, 16\), .* \(64, 32\)"):
        load_transformer(tmp_path)
