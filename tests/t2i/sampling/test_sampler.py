"""Guided sampling: the planner against a naive sum, independence of the batch, precision, what is
computed once.

On a tiny TR-DiT with random weights, none of them zero. Needs no assets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from t2i.encoders.text import TextStates
from t2i.guidance.branches import Branch, Condition, Evaluation, Guidance, evaluations, plan
from t2i.guidance.methods import METHODS, extrapolate, make_guidance
from t2i.guidance.schedules import constant
from t2i.models.routes import num_kept
from t2i.models.routing import draw_keep_ids
from t2i.models.tr_dit import TRDiT
from t2i.sampling.perturbing import RUN_SEED, draw_skipped, make_perturbation
from t2i.sampling.sampler import ConditionText, Given, GuidedField, Redrawn, sample_latents

TEXT_WIDTH = 12
LATENT_SHAPE = (4, 8, 8)
NUM_TOKENS = 16
NUM_STEPS = 5
NUM_RANDOM = 4
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def networks(make_transformer: Callable[..., TRDiT]) -> dict[str, TRDiT]:
    return {
        "main": make_transformer(0, TEXT_WIDTH, internal=True),
        "aux": make_transformer(1, TEXT_WIDTH, internal=True),
    }


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


def random_row(caption: int, step: int) -> int:
    """Which of the random captions the image of a caption has at a step."""
    return (caption + step) % NUM_RANDOM


def texts(captions: Sequence[int], length: int = 4) -> dict[Condition, Given]:
    """Caption 100 is the null condition, the random ones begin at 200, dealt out by `random_row`."""

    def rows(step: int) -> Tensor:
        return torch.tensor([random_row(caption, step) for caption in captions])

    return {
        "text": ConditionText(encoded(captions, length), torch.arange(len(captions))),
        "null": ConditionText(encoded([100], 3), torch.zeros(len(captions), dtype=torch.int64)),
        "random": Redrawn(encoded(range(200, 200 + NUM_RANDOM), 4), rows),
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
        drawn = 200 + random_row(1 + row, step)
        number = {"text": 1 + row, "null": 100, "random": drawn}[evaluation.condition]
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
        weakness, own = evaluation.weakness, torch.tensor([seed])
        final, internal = network(
            x[row : row + 1],
            torch.tensor([timestep]),
            context,
            keep_ids,
            perturbation=make_perturbation(weakness, network, step, own, NUM_TOKENS, 1),
            internal=True,
        )
        rows.append(internal if weakness.kind == "internal" else final)
    return torch.cat(rows)


def guided_field(networks: dict[str, TRDiT], guidance: Guidance) -> GuidedField:
    """Of captions 1 and 2 with seeds 5 and 6."""
    return GuidedField(networks, texts((1, 2)), guidance, torch.tensor([5, 6]), NUM_STEPS)


def latents(seed: int = 0) -> Tensor:
    return torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(seed))


def check_planned_sum(
    networks: dict[str, TRDiT], guidance: Guidance, steps: Sequence[int] = (0, 3)
) -> None:
    field, x = guided_field(networks, guidance), latents()
    for step in steps:
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
            if step == steps[0]:
                combine = guidance.new_combine()
            expected = combine(naive, x, timestep, fraction)
        torch.testing.assert_close(planned, expected, **CLOSE)


@pytest.mark.parametrize("name", METHODS)
def test_the_planned_sum_is_the_naive_sum(networks: dict[str, TRDiT], name: str) -> None:
    check_planned_sum(networks, make_guidance(name))


def test_a_block_that_s2_leaves_out_may_lie_before_the_route(
    make_transformer: Callable[..., TRDiT],
) -> None:
    network = make_transformer(0, TEXT_WIDTH, routed=2, internal=True)
    step = next(step for step in range(NUM_STEPS) if draw_skipped(3, 0.1, step) == (1,))
    check_planned_sum({"main": network}, make_guidance("s2"), (step,))


def test_a_second_evaluation_of_a_step_leaves_no_trace_in_apg(networks: dict[str, TRDiT]) -> None:
    """The field of Heun's method is that of Euler's wherever a step begins."""
    heun, euler = (guided_field(networks, make_guidance("apg")) for _ in range(2))
    for step in range(NUM_STEPS):
        x, timestep = latents(step), step / NUM_STEPS
        assert torch.equal(heun(x, timestep, step), euler(x, timestep, step))
        heun(latents(step + 100), timestep + 0.1, step)


@pytest.mark.parametrize("name", ["cfg", "sg", "direct"])
def test_branches_of_bf16_networks_are_summed_in_float32(
    networks: dict[str, TRDiT], name: str
) -> None:
    low = {"main": copy.deepcopy(networks["main"]).bfloat16()}
    guidance, step = make_guidance(name), 2
    field, x = guided_field(low, guidance), latents()
    weights = plan(guidance, 0.4, step / (NUM_STEPS - 1))
    predictions = field.predict(tuple(weights), x, 0.4, step)
    assert all(torch.equal(one, one.bfloat16().float()) for one in predictions.values())
    expected = sum(weight * predictions[one].double() for one, weight in weights.items())
    guided = field(x, 0.4, step)
    assert guided.dtype == torch.float32
    torch.testing.assert_close(guided.double(), expected, rtol=1e-5, atol=1e-5)


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


def test_icg_prepares_all_its_prompts_once_and_deals_them_out_at_each_step(
    networks: dict[str, TRDiT], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch, networks["main"], "prepare_text", "from_route")
    sample(networks, make_guidance("icg"))
    assert counter.rows == {"prepare_text": [2, NUM_RANDOM], "from_route": [4] * NUM_STEPS}


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
