"""Guided sampling of class-conditional models: the plan against a naive sum, images against batches.

Naive: each branch by itself, image by image, in one forward pass. On tiny SiT, DiT and MaskDiT with
random weights, none of them zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from t2i.guidance.branches import Condition, Evaluation, Guidance, evaluations
from t2i.guidance.methods import METHODS, make_guidance
from t2i.models.backbone import Backbone
from t2i.models.epsilon import EpsilonToVelocity
from t2i.models.mask_dit import MaskDiT
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.routes import num_kept
from t2i.models.routing import draw_keep_ids
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.sampling.perturbing import RUN_SEED, draw_skipped, make_perturbation
from t2i.sampling.sampler import (
    Given,
    GuidedField,
    Redrawn,
    sample_latents,
)

SIZES = {"width": 32, "num_heads": 2, "num_classes": 5}
SIT = SiTConfig(num_layers=3, routes=((1, 1),), internal_after=0, **SIZES)
FUSED = SIT.model_copy(update={"after_route": "fuse"})
TWO_ROUTES = SIT.model_copy(
    update={"routes": ((0, 0), (2, 2)), "draw_per_route": True, "internal_after": None}
)
LATE_ROUTE = SIT.model_copy(update={"routes": ((2, 2),)})
DIT = SIT.model_copy(update={"prediction": "epsilon"})
MASK_DIT = MaskDiTConfig(num_layers=2, decoder_layers=1, decoder_width=16, decoder_heads=2, **SIZES)
NULL = 5
LATENT_SHAPE, NUM_TOKENS, NUM_STEPS = (4, 8, 8), 16, 4
STEPS = 0, 3  # of three blocks S2 leaves out the last, then the middle one
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
CASES = [
    *(("sit", name) for name in METHODS),
    ("two_routes", "sg"),
    ("two_routes", "cfg+sg"),
    ("late_route", "s2"),
    ("late_route", "slg"),
    ("late_route", "tpg"),
    ("two_routes", "pdg"),
    *(("fused", name) for name in ("cfg", "sg", "pdg", "pdg+c", "sg+ig")),
    *(("mask_dit", name) for name in ("slg", "pag", "tpg", "ssg")),
    ("dit", "cfg+ig"),
    ("mask_dit", "sg"),
    ("mask_dit", "s2"),
    ("mask_dit", "cfg+sg"),
    ("dit", "cfg"),
    ("dit", "sg"),
]


def randomise(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def families() -> dict[str, dict[str, Backbone]]:
    return {
        "sit": {"main": randomise(SiT(SIT), 0), "aux": randomise(SiT(SIT), 1)},
        "two_routes": {"main": randomise(SiT(TWO_ROUTES), 0)},
        "fused": {"main": randomise(SiT(FUSED), 0)},
        "late_route": {"main": randomise(SiT(LATE_ROUTE), 0)},
        "mask_dit": {"main": randomise(MaskDiT(MASK_DIT), 0)},
        "dit": {"main": EpsilonToVelocity(randomise(SiT(DIT), 0))},
    }


def random_label(label: int, step: int) -> int:
    """The other class that the image of a class has at a step."""
    return (label + 1 + step) % NULL


def conditions(labels: Sequence[int]) -> dict[Condition, Given]:
    def rows(step: int) -> Tensor:
        return torch.tensor([random_label(label, step) for label in labels])

    return {
        "text": torch.tensor(labels),
        "null": torch.full((len(labels),), NULL),
        "random": Redrawn(torch.arange(NULL), rows),
    }


def sample(
    networks: dict[str, Backbone],
    guidance: Guidance,
    labels: Sequence[int] = (1, 2, 4),
    seeds: Sequence[int] = (5, 6, 7),
    bernoulli: bool = False,
) -> Tensor:
    return sample_latents(
        networks,
        conditions(labels),
        guidance,
        seeds,
        LATENT_SHAPE,
        NUM_STEPS,
        bernoulli=bernoulli,
    )


def naive_prediction(
    networks: dict[str, Backbone], evaluation: Evaluation, x: Tensor, timestep: float, step: int
) -> Tensor:
    """One branch by itself: its own draw, image by image."""
    network, rows = networks[evaluation.network], []
    for row, (seed, label) in enumerate(((5, 1), (6, 2))):
        drawn = random_label(label, step)
        labels = torch.tensor(
            [{"text": label, "null": NULL, "random": drawn}[evaluation.condition]]
        )
        keep_ids = None
        if num_kept(NUM_TOKENS, evaluation.gamma) < NUM_TOKENS:
            own, stream = torch.tensor([seed]), f"routing {evaluation.draw}"
            draws = [
                draw_keep_ids(RUN_SEED, one, step, own, NUM_TOKENS, evaluation.gamma)
                for one in (stream, f"{stream} of route 1")
            ]
            keep_ids = torch.stack(draws) if network.config.num_draws == 2 else draws[0]
        hidden = network.embed(x[row : row + 1], torch.tensor([timestep]))
        seeds = torch.tensor([seed])
        changed = make_perturbation(evaluation.weakness, network, step, seeds, NUM_TOKENS, 1)
        hidden = network.before_route(hidden, labels, changed)
        if evaluation.weakness.kind == "internal":
            rows.append(network.internal_velocity(hidden, labels))
        else:
            rows.append(network.from_route(hidden, labels, keep_ids, None, changed))
    return torch.cat(rows)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_planned_sum_is_the_naive_sum(
    families: dict[str, dict[str, Backbone]], family: str, name: str
) -> None:
    networks, guidance = families[family], make_guidance(name)
    x = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    seeds = torch.tensor([5, 6])
    field = GuidedField(networks, conditions((1, 2)), guidance, seeds, NUM_STEPS)
    combine = guidance.new_combine() if guidance.new_combine else None
    for step in STEPS:
        timestep, fraction = 0.2 + step / NUM_STEPS, step / (NUM_STEPS - 1)
        naive = [
            naive_prediction(networks, evaluation, x, timestep, step)
            for evaluation in evaluations(guidance, fraction)
        ]
        if combine is None:
            weights = guidance.coefficients(fraction)
            expected = sum(w * v for w, v in zip(weights, naive, strict=True))
        else:
            expected = combine(naive, x, timestep, fraction)
        assert isinstance(expected, Tensor)
        assert expected.std() > 0.1 or (name, step) == ("cfg_zero", 0)  # which does not move
        torch.testing.assert_close(field(x, timestep, step), expected, **CLOSE)


@pytest.mark.parametrize("bernoulli", [False, True])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_an_image_does_not_depend_on_its_batch(
    families: dict[str, dict[str, Backbone]], family: str, name: str, bernoulli: bool
) -> None:
    networks, guidance = families[family], make_guidance(name)
    together = sample(networks, guidance, bernoulli=bernoulli)
    alone = sample(networks, guidance, (2,), (6,), bernoulli)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_two_classes_give_two_images(
    families: dict[str, dict[str, Backbone]], family: str, name: str
) -> None:
    first, second = sample(families[family], make_guidance(name), (1, 2), (5, 5))
    assert (first - second).abs().max() > 0.01


def test_s2_leaves_out_a_block_of_either_side_of_the_late_route() -> None:
    assert [draw_skipped(3, 0.1, step) for step in STEPS] == [(2,), (1,)]


def test_cfg_is_one_batch_with_the_null_class() -> None:
    model, seen = randomise(SiT(SIT), 0), []
    model.label.register_forward_pre_hook(lambda _, labels: seen.append(labels[0].tolist()))
    sample({"main": model}, make_guidance("cfg"), (1, 2), (5, 6))
    assert seen == [[1, 2, NULL, NULL]] * 2 * NUM_STEPS  # before the route and from it on


def test_a_dit_that_predicts_noise_is_refused_by_itself() -> None:
    with pytest.raises(ValueError, match=r"predicts epsilon, .*EpsilonToVelocity"):
        sample({"main": SiT(DIT)}, make_guidance("none"))
