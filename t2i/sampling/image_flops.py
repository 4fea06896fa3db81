"""FLOPs of the networks that make one image, by formula."""

from __future__ import annotations

from t2i.guidance.branches import Guidance, evaluations, plan
from t2i.models.costs.macs import Backbone, from_route_macs, shared_macs
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

    Text encoder, refiner and VAE are not counted, nor is that S2 leaves blocks out; a second network
    counts as one of the main network's kind.

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
            shared = {(one.network, one.condition, one.drop_blocks) for one in wanted}
            macs += len(shared) * shared_macs(config, num_tokens, text_tokens)
            macs += sum(
                from_route_macs(config, num_tokens, text_tokens, one.gamma) for one in wanted
            )
    return 2.0 * macs
