"""Proves how networks with a scale input are sampled: conditional branches at W and the null branch
at 0, whatever the method; without effect while the input is new; refused where nothing takes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from t2i.encoders.text import TextStates
from t2i.guidance.branches import Condition, Evaluation, evaluations
from t2i.guidance.methods import METHODS, make_guidance
from t2i.models.routes import num_kept
from t2i.models.routing import draw_keep_ids
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit import TRDiT
from t2i.sampling.perturbing import RUN_SEED, make_perturbation
from t2i.sampling.sampler import ConditionText, GuidedField, sample_latents

CONFIG = SiTConfig(
    num_layers=3,
    width=32,
    num_heads=2,
    num_classes=5,
    routes=((1, 1),),
    scale_input=True,
    internal_after=0,
)
LATENT_SHAPE, NUM_TOKENS, NUM_STEPS = (4, 8, 8), 16, 4
SEEDS = (5, 6)
LABELS: dict[Condition, Tensor] = {
    "text": torch.tensor([1, 2]),
    "null": torch.tensor([5, 5]),
    "random": torch.tensor([3, 3]),
}
SCALE = 1.7


def sit(seed: int, scale_input: bool = True, new: bool = False) -> SiT:
    """Random weights; ``new``: but a scale input as it starts."""
    model = SiT(CONFIG.model_copy(update={"scale_input": scale_input}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not (new and name.startswith("scale.")):
            parameter.data.normal_(0, 0.2, generator=generator)
    return model.eval().requires_grad_(False)


NETWORKS = {"main": sit(0), "aux": sit(1)}


def sample(networks: dict[str, SiT], name: str, scale: float | None) -> Tensor:
    return sample_latents(
        networks,
        LABELS,
        make_guidance(name),
        SEEDS,
        LATENT_SHAPE,
        NUM_STEPS,
        model_scale=scale,
    )


def naive_prediction(
    networks: dict[str, SiT], evaluation: Evaluation, x: Tensor, timestep: float, step: int
) -> Tensor:
    """One branch by itself, in one call of the network."""
    network, keep_ids = networks[evaluation.network], None
    if num_kept(NUM_TOKENS, evaluation.gamma) < NUM_TOKENS:
        stream, seeds = f"routing {evaluation.draw}", torch.tensor(SEEDS)
        keep_ids = draw_keep_ids(RUN_SEED, stream, step, seeds, NUM_TOKENS, evaluation.gamma)
    scale = 0.0 if evaluation.condition == "null" else SCALE
    weakness, seeds = evaluation.weakness, torch.tensor(SEEDS)
    final, internal = network(
        x,
        torch.full((2,), timestep),
        LABELS[evaluation.condition],
        keep_ids,
        perturbation=make_perturbation(weakness, network, step, seeds, NUM_TOKENS, 1),
        guidance_scale_B=torch.full((2,), scale) if network.config.scale_input else None,
        internal=True,
    )
    return internal if weakness.kind == "internal" else final


@pytest.mark.parametrize("plain_aux", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_each_branch_is_asked_at_its_scale(name: str, plain_aux: bool) -> None:
    networks = {**NETWORKS, "aux": sit(1, scale_input=False)} if plain_aux else NETWORKS
    guidance = make_guidance(name, {"zero_steps": 0} if name == "cfg_zero" else {})
    x = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    field = GuidedField(
        networks, LABELS, guidance, torch.tensor(SEEDS), NUM_STEPS, model_scale=SCALE
    )
    naive = [naive_prediction(networks, one, x, 0.2, 1) for one in evaluations(guidance, 1 / 3)]
    if guidance.new_combine is None:
        weights = guidance.coefficients(1 / 3)
        expected = torch.stack([w * v for w, v in zip(weights, naive, strict=True)]).sum(dim=0)
    else:
        expected = guidance.new_combine()(naive, x, 0.2, 1 / 3)
    assert expected.std() > 0.1
    torch.testing.assert_close(field(x, 0.2, 1), expected, rtol=1e-4, atol=1e-4)


def test_two_scales_give_two_images_and_none_given_is_one() -> None:
    for name in ("none", "cfg", "sg"):
        plain, strong = sample(NETWORKS, name, 1.0), sample(NETWORKS, name, 2.0)
        assert (plain - strong).abs().amax(dim=(1, 2, 3)).min() > 0.01
        assert torch.equal(sample(NETWORKS, name, None), plain)


@pytest.mark.parametrize("name", ["none", "cfg", "sg", "icg"])
def test_a_new_scale_input_samples_like_the_network_without_it(name: str) -> None:
    new, without = {"main": sit(0, new=True)}, {"main": sit(0, scale_input=False)}
    expected = sample(without, name, None)
    for scale in (1.0, 1.7):
        torch.testing.assert_close(sample(new, name, scale), expected, rtol=1e-5, atol=1e-5)


def test_text_is_sampled_as_labels_are(make_transformer: Callable[..., TRDiT]) -> None:
    network = make_transformer(0, 12, scale_input=True)
    states = TextStates(torch.ones(1, 3, 12), torch.ones(1, 3, dtype=torch.bool))
    null = TextStates(torch.zeros(1, 1, 12), torch.ones(1, 1, dtype=torch.bool))
    rows = torch.zeros(2, dtype=torch.int64)
    texts: dict[Condition, ConditionText] = {
        "text": ConditionText(states, rows),
        "null": ConditionText(null, rows),
    }
    x = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    field = GuidedField(
        {"main": network},
        texts,
        make_guidance("cfg", {"omega": 2}),
        torch.tensor(SEEDS),
        NUM_STEPS,
        model_scale=SCALE,
    )
    strong, weak = (
        network(
            x,
            torch.full((2,), 0.5),
            network.prepare_text(text.states, text.mask).select(rows),
            guidance_scale_B=torch.full((2,), scale),
        )
        for text, scale in ((states, SCALE), (null, 0.0))
    )
    torch.testing.assert_close(field(x, 0.5, 1), 2 * strong - weak, rtol=1e-4, atol=1e-4)


def test_a_scale_that_no_network_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="the model has no scale input: leave --model-scale"):
        sample({"main": sit(0, scale_input=False)}, "none", 1.0)
