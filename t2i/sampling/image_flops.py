"""FLOPs of the networks that make one image, by formula."""

from __future__ import annotations

from collections.abc import Iterable

from t2i.guidance.branches import Evaluation, Guidance, evaluations, plan
from t2i.models.costs.macs import (
    Backbone,
    attention_macs,
    block_macs,
    ends_macs,
    from_route_macs,
    num_sparse_blocks,
    shared_macs,
)
from t2i.sampling.perturbing import num_dropped, shares_first_blocks
from t2i.sampling.sampling_config import SolverName
from t2i.sampling.solvers import step_fraction, time_grid


def image_flops(
    config: Backbone,
    guidance: Guidance,
    num_tokens: int,
    text_tokens: int,
    num_steps: int,
    solver: SolverName,
    shift: float = 1.0,
) -> float:
    """FLOPs that sampling executes for one image: what branches share is counted once.

    Text encoder, refiner and VAE are not counted; a second network counts as one of the main
    network's kind.

    Args:
        config: of the main network.
        num_tokens: of the image.
        text_tokens: of the prompt, as attention sees them; 0 for classes.
        shift: of the times, where guidance has an interval.
    """
    macs = 0
    times = time_grid(num_steps, shift)
    for step in range(num_steps):
        at = [times[step]]
        if solver == "heun" and step < num_steps - 1:
            at.append(times[step + 1])
        for timestep in at:
            fraction = step_fraction(step, num_steps)
            wanted = tuple(dict.fromkeys(evaluations(guidance, fraction)))
            if guidance.new_combine is None or not guidance.is_active(timestep):
                wanted = tuple(plan(guidance, timestep, fraction))
            macs += predictions_macs(config, wanted, num_tokens, text_tokens)
    return 2.0 * macs


def predictions_macs(
    config: Backbone, wanted: Iterable[Evaluation], num_tokens: int, text_tokens: int
) -> int:
    """MACs of some distinct predictions of one step, which share their first blocks if they can."""
    macs, prefixes = 0, set()
    for one in wanted:
        weakness = one.weakness
        prefix = None if shares_first_blocks(weakness, config) else weakness
        if (one.network, one.condition, prefix) not in prefixes:
            prefixes.add((one.network, one.condition, prefix))
            macs += shared_macs(config, num_tokens, text_tokens)
        if weakness.kind == "internal":
            macs += ends_macs(config, num_tokens)[1]
        else:
            macs += from_route_macs(config, num_tokens, text_tokens, one.gamma)
            macs += _changed_macs(config, one, num_tokens, text_tokens)
    return macs


def _changed_macs(
    config: Backbone, evaluation: Evaluation, num_tokens: int, text_tokens: int
) -> int:
    """What a weakness adds to a dense forward pass, or (below zero) takes from it."""
    weakness = evaluation.weakness
    block = block_macs(config, num_tokens, text_tokens)
    num_chosen = len(weakness.blocks.of(config.num_layers))
    match weakness.kind:
        case "drop":
            return -block * num_dropped(config.num_layers, weakness.amount(0.0))
        case "skip":
            return -block * num_chosen
        case "no_deep_path":
            return -block * num_sparse_blocks(config)
        case "identity":
            return -attention_macs(config, num_tokens) * num_chosen
        case "swap":  # the similarity of all tokens
            return num_tokens**2 * config.width * num_chosen
        case _:
            return 0
