"""What a weakness of a guidance branch means for a network: the `Perturbation` that its forward takes.

All draws belong to the image, but for S2's: the blocks that it leaves out are the same for a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i import rng
from t2i.guidance.branches import Guidance
from t2i.guidance.weaknesses import Weakness
from t2i.models.backbone import Backbone
from t2i.models.costs.macs import Backbone as ModelConfig
from t2i.models.perturbation import UNPERTURBED, Perturbation
from t2i.models.routes import first_routed

# The image's seed is the sample id of its draws, so the run's seed in `t2i.rng` is constant.
RUN_SEED = 0
NO_DEEP_PATH = Perturbation(skip_deep_path=True)


def check_weaknesses(guidance: Guidance, network: Backbone) -> None:
    """Refuse a method that asks the network for what it does not have.

    Raises:
        ValueError: no route to leave out, no internal head, or no such block.
    """
    config = network.config
    if guidance.weakens("no_deep_path") and not config.resolved_routes:
        raise ValueError(
            f"guidance {guidance.name} leaves out the routed blocks, and this network has none"
        )
    if guidance.weakens("internal") and config.internal_after is None:
        raise ValueError(
            f"guidance {guidance.name} needs a network that was trained with an internal head "
            "(internal_after of the model)"
        )
    for branch in guidance.branches:
        branch.weakness.blocks.of(config.num_layers)


def shares_first_blocks(weakness: Weakness, config: ModelConfig) -> bool:
    """Whether the blocks before the route are the unperturbed network's."""
    if weakness.kind in ("none", "no_deep_path", "internal"):
        return True
    if weakness.kind == "drop":
        return False
    first = first_routed(config.resolved_routes, config.num_layers)
    return min(weakness.blocks.of(config.num_layers)) >= first


def make_perturbation(
    weakness: Weakness, network: Backbone, step: int, seeds_B: Tensor, num_tokens: int, copies: int
) -> Perturbation:
    """What the network does differently at a step.

    Args:
        weakness: at this step.
        network: whose number of blocks counts.
        seeds_B: (B,) int64, one per image.
        num_tokens: of an image.
        copies: how many times the batch holds the B images, one after the other.
    """
    num_blocks = network.config.num_layers
    blocks, amount = weakness.blocks.of(num_blocks), weakness.amount(0.0)
    match weakness.kind:
        case "none" | "internal":
            return UNPERTURBED
        case "no_deep_path":
            return NO_DEEP_PATH
        case "drop":
            return Perturbation(skip_blocks=draw_skipped(num_blocks, amount, step))
        case "skip":
            return Perturbation(skip_blocks=blocks)
        case "identity":
            return Perturbation(identity_attention=blocks)
        case "shuffle":
            orders = {
                block: draw_order(block, step, seeds_B, num_tokens).repeat(copies, 1)
                for block in blocks
            }
            return Perturbation(orders=orders)
        case "swap":
            return Perturbation(swap_blocks=blocks, swap_ratio=amount)


def num_dropped(num_blocks: int, share: float) -> int:
    """How many blocks S2 leaves out: at least one, never all.

    Args:
        share: of the blocks, in (0, 1).
    """
    return min(max(1, round(share * num_blocks)), num_blocks - 1)


def draw_skipped(num_blocks: int, share: float, step: int) -> tuple[int, ...]:
    """The blocks that are left out at a step, never block 0, the same for all images.

    Args:
        num_blocks: of the network.
        share: of them, in (0, 1).
        step: number of the solver's step.
    """
    words_1N = rng.words(RUN_SEED, "skipped blocks", step, torch.tensor([0]), num_blocks - 1)
    chosen = words_1N[0].argsort()[: num_dropped(num_blocks, share)] + 1
    return tuple(sorted(chosen.tolist()))


def draw_order(block: int, step: int, seeds_B: Tensor, num_tokens: int) -> Tensor:
    """A uniform order of an image's tokens, fresh per image, step and block: (B, T) int64."""
    words_BT = rng.words(RUN_SEED, f"order of tokens {block}", step, seeds_B, num_tokens)
    return words_BT.argsort(dim=1, stable=True)
