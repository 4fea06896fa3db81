"""Guided sampling: the planner against a naive sum, independence of the batch, what is computed once.

On a tiny TR-DiT with random weights, none of them zero. Needs no assets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from t2i.encoders.text import TextStates
from t2i.guidance.branches import Branch, Condition, Evaluation, Guidance, evaluations
from t2i.guidance.methods import METHODS, extrapolate, make_guidance
from t2i.guidance.schedules import constant
from t2i.models.routes import num_kept
from t2i.models.routing import draw_keep_ids
from t2i.models.tr_dit import TRDiT
from t2i.sampling.sampler import (
    RUN_SEED,
    ConditionText,
    GuidedField,
    draw_skipped,
    sample_latents,
)

TEXT_WIDTH = 12
LATENT_SHAPE = (4, 8, 8)
NUM_TOKENS = 16
NUM_STEPS = 5
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def networks(make_transformer: Callable[[int, int], TRDiT]) -> dict[str, TRDiT]:
    return {"main": make_transformer(0, TEXT_WIDTH), "aux": make_transformer(1, TEXT_WIDTH)}


def caption(number: int) -> tuple[Tensor, int]:
    """Hidden states of a made-up caption, of its own length."""
    length = 2 + number % 3
    generator = torch.Generator().manual_seed(number)
    return torch.randn(length, TEXT_WIDTH, generator=generator), length


def encoded(numbers: Sequence[int], length: int) -> TextStates:
    states = torch.zeros(len(numbers), length, TEXT_WIDTH)
    mask = torch.zeros(len(numbers), length, dtype=torch.bool)
    for row, number in enumerate(numbers):
        values, own_length = caption(number)
        states[row, :own_length], mask[row, :own_length] = values, True
    return TextStates(states, mask)


def texts(captions: Sequence[int], length: int = 4) -> dict[Condition, ConditionText]:
    """Caption 100 is the null condition, 200 the random one, each shorter than the prompts."""
    zeros = torch.zeros(len(captions), dtype=torch.int64)
    return {
        "text": ConditionText(encoded(captions, length), torch.arange(len(captions))),
        "null": ConditionText(encoded([100], 3), zeros),
        "random": ConditionText(encoded([200], 4), zeros),
    }


def sample(
    networks: dict[str, TRDiT],
    guidance: Guidance,
    captions: Sequence[int] = (1, 2),
    seeds: Sequence[int] = (5, 6),
    length: int = 4,
    bernoulli: bool = False,
) -> Tensor:
    return sample_latents(
        networks,
        texts(captions, length),
        guidance,
        seeds,
        LATENT_SHAPE,
        NUM_STEPS,
        bernoulli=bernoulli,
    )


def naive_prediction(
    networks: dict[str, TRDiT], evaluation: Evaluation, x: Tensor, timestep: float, step: int
) -> Tensor:
    """One branch by itself: its own forward, its own draw, image by image."""
    rows = []
    for row, seed in enumerate((5, 6)):
        network = networks[evaluation.network]
        number = {"text": 1 + row, "null": 100, "random": 200}[evaluation.condition]
        states = encoded([number], caption(number)[1])
        keep_ids = None
        if num_kept(NUM_TOKENS, evaluation.gamma) < NUM_TOKENS:
            keep_ids = draw_keep_ids(
                RUN_SEED,
                f"routing {evaluation.draw}",
                step,
                torch.tensor([seed]),
                NUM_TOKENS,
                evaluation.gamma,
            )
        context = network.prepare_text(states.states, states.mask)
        skipped = draw_skipped(network.config.num_layers, evaluation.drop_blocks, step)
        rows.append(
            network(
                x[row : row + 1],
                torch.tensor([timestep]),
                context,
                keep_ids,
                skip_blocks=skipped,
            )
        )
    return torch.cat(rows)


@pytest.mark.parametrize("name", METHODS)
def test_the_planned_sum_is_the_naive_sum(networks: dict[str, TRDiT], name: str) -> None:
    guidance = make_guidance(name)
    seeds = torch.tensor([5, 6])
    x = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    field = GuidedField(networks, texts((1, 2)), guidance, seeds, NUM_STEPS)
    for step in (0, 3):
        timestep, fraction = step / NUM_STEPS, step / (NUM_STEPS - 1)
        planned = field(x, timestep, step)
        naive = [
            naive_prediction(networks, evaluation, x, timestep, step)
            for evaluation in evaluations(guidance, fraction)
        ]
        if guidance.new_combine is None:
            weights = guidance.coefficients(fraction)
            expected = sum(w * v for w, v in zip(weights, naive, strict=True))
        else:
            if step == 0:
                combine = guidance.new_combine()
            expected = combine(naive, x, timestep, fraction)
        torch.testing.assert_close(planned, expected, **CLOSE)


@pytest.mark.parametrize("name", METHODS)
def test_an_image_does_not_depend_on_its_batch(networks: dict[str, TRDiT], name: str) -> None:
    guidance = make_guidance(name)
    together = sample(networks, guidance, captions=(1, 2, 3), seeds=(5, 6, 7))
    alone = sample(networks, guidance, captions=(2,), seeds=(6,), length=3 + 5)
    torch.testing.assert_close(together[1:2], alone, **CLOSE)


@pytest.mark.parametrize("name", ["sg", "inner", "ag+sg"])
def test_bernoulli_draws_do_not_depend_on_the_batch_either(
    networks: dict[str, TRDiT], name: str
) -> None:
    guidance = make_guidance(name)
    together = sample(networks, guidance, (1, 2, 3), (5, 6, 7), bernoulli=True)
    alone = sample(networks, guidance, (2,), (6,), bernoulli=True)
    torch.testing.assert_close(together[1:2], alone, **CLOSE)
    assert (together - sample(networks, guidance, (1, 2, 3), (5, 6, 7))).abs().max() > 0.01


def test_blocks_are_skipped_anew_at_each_step_but_never_the_first() -> None:
    draws = [draw_skipped(34, 0.1, step) for step in range(50)]
    assert {len(draw) for draw in draws} == {3}
    assert len(set(draws)) > 40
    assert {block for draw in draws for block in draw} == set(range(1, 34))
    assert len(draw_skipped(4, 0.1, 0)) == 1
    assert draw_skipped(4, 0.0, 0) == ()


@pytest.mark.parametrize("name", METHODS)
def test_two_prompts_give_two_images(networks: dict[str, TRDiT], name: str) -> None:
    first, second = sample(networks, make_guidance(name), captions=(1, 2), seeds=(5, 5))
    assert (first - second).abs().max() > 0.01


def test_two_seeds_give_two_images(networks: dict[str, TRDiT]) -> None:
    first, second = sample(networks, make_guidance("sg"), captions=(1, 1), seeds=(5, 6))
    assert (first - second).abs().max() > 0.01


def test_equal_gammas_with_the_same_draw_are_no_guidance(networks: dict[str, TRDiT]) -> None:
    branch = Branch(gamma=constant(0.5), draw="shared")
    alone = sample(networks, Guidance((branch,), lambda u: (1.0,)))
    for omega in (0.0, 1.8, 7.0):
        guided = sample(networks, extrapolate(constant(omega), branch, branch))
        torch.testing.assert_close(guided, alone, **CLOSE)


def test_equal_gammas_with_other_draws_differ(networks: dict[str, TRDiT]) -> None:
    gamma = constant(0.5)
    alone = sample(networks, Guidance((Branch(gamma=gamma),), lambda u: (1.0,)))
    pair = extrapolate(constant(1.8), Branch(gamma=gamma), Branch(gamma=gamma, draw="other"))
    assert (sample(networks, pair) - alone).abs().max() > 0.01


def test_a_gamma_too_small_to_drop_a_token_is_dense(networks: dict[str, TRDiT]) -> None:
    tiny = Guidance((Branch(gamma=constant(0.05)),), lambda u: (1.0,))
    torch.testing.assert_close(sample(networks, tiny), sample(networks, make_guidance("none")))


def test_bernoulli_drops_tokens_at_any_gamma_but_zero(networks: dict[str, TRDiT]) -> None:
    """At gamma 0.05 a fixed number of 16 tokens is all of them, a coin for each is not."""
    plain = sample(networks, make_guidance("none"))
    for gamma, is_dense in ((0.05, False), (0.0, True)):
        guidance = Guidance((Branch(gamma=constant(gamma)),), lambda u: (1.0,))
        drawn = sample(networks, guidance, bernoulli=True)
        assert torch.equal(drawn, plain) is is_dense


class Counter:
    """Counts calls and rows of a network's parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, network: TRDiT, *names: str) -> None:
        self.rows: dict[str, list[int]] = {name: [] for name in names}
        for name in names:
            original = getattr(network, name)

            def counted(first, *others, name=name, original=original):  # type: ignore[no-untyped-def]
                tensor = getattr(first, "tokens_BTD", first)
                self.rows[name].append(len(tensor))
                return original(first, *others)

            monkeypatch.setattr(network, name, counted)


def test_sg_prepares_text_once_and_shares_the_layers_before_the_route(
    networks: dict[str, TRDiT], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch, networks["main"], "prepare_text", "before_route", "from_route")
    sample(networks, make_guidance("sg"))
    assert counter.rows["prepare_text"] == [2]
    assert counter.rows["before_route"] == [2] * NUM_STEPS
    assert counter.rows["from_route"] == [2, 2] * NUM_STEPS


def test_cfg_runs_as_one_batch_and_encodes_the_null_text_once(
    networks: dict[str, TRDiT], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch, networks["main"], "prepare_text", "from_route")
    sample(networks, make_guidance("cfg"))
    assert counter.rows == {"prepare_text": [2, 1], "from_route": [4] * NUM_STEPS}


def test_a_branch_of_weight_zero_is_not_run(
    networks: dict[str, TRDiT], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch, networks["main"], "from_route")
    sample(networks, make_guidance("cfg", {"omega": 1}))
    assert counter.rows == {"from_route": [2] * NUM_STEPS}


def test_autoguidance_without_a_second_network_says_what_is_missing(
    networks: dict[str, TRDiT],
) -> None:
    with pytest.raises(ValueError, match="guidance ag needs a second, weaker network: --aux"):
        sample({"main": networks["main"]}, make_guidance("ag"))
