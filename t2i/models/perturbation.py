"""How the forward pass of a weak branch differs from the network's own: data, said to `forward`.

    skipped blocks        S2 (arXiv 2508.12880), skip-layer guidance
    no deep path          path-drop guidance (SPRINT, arXiv 2510.21986)
    identity attention    perturbed-attention guidance (arXiv 2403.17377)
    shuffled tokens       token perturbation guidance (arXiv 2506.10036)
    swapped tokens        self-swap guidance (arXiv 2604.08048)

The last two give a block its tokens in another order. Their papers do that inside U-Nets, whose
outer residual keeps each token in its place; here a block of reordered tokens likewise changes what
is added to each token, not where it is:

    x <- x + (block(P x) - P x)

Shape suffixes: B samples, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.models.routing import gather_tokens


@dataclass(frozen=True)
class Perturbation:
    """What the blocks of one forward pass do differently; by default nothing.

    Attributes:
        skip_blocks: blocks that are left out.
        skip_deep_path: no token runs the routed blocks.
        identity_attention: blocks in which each token attends to itself alone.
        orders: block -> (B, T) int64, whose tokens the block gives to each place.
        swap_blocks: blocks that swap the tokens of the most dissimilar pairs.
        swap_ratio: such pairs by the number of tokens, in [0, 0.5].
    """

    skip_blocks: tuple[int, ...] = ()
    skip_deep_path: bool = False
    identity_attention: tuple[int, ...] = ()
    orders: Mapping[int, Tensor] = field(default_factory=dict)
    swap_blocks: tuple[int, ...] = ()
    swap_ratio: float = 0.0

    def run(self, number: int, x_BTD: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        """The tokens after a block, which is given by its number and as a function of them."""
        order_BT = self._order(number, x_BTD)
        if order_BT is None:
            return block(x_BTD)
        moved_BTD = gather_tokens(x_BTD, order_BT)
        return x_BTD + (block(moved_BTD) - moved_BTD)

    def _order(self, number: int, x_BTD: Tensor) -> Tensor | None:
        if number in self.swap_blocks:
            return swap_dissimilar(x_BTD, self.swap_ratio)
        return self.orders.get(number)

    @property
    def reorders(self) -> bool:
        """Whether a block is given its tokens in another order."""
        return bool(self.orders or self.swap_blocks)


UNPERTURBED = Perturbation()


def swap_dissimilar(x_BTD: Tensor, ratio: float) -> Tensor:
    """The order that swaps the floor(ratio T) most dissimilar pairs of tokens, (B, T) int64.

    Pairs are taken greedily by the cosine of their angle, smallest first, and share no token: so the
    order is a permutation, its own inverse. (The authors' code lets pairs share tokens, of which
    some are then lost and some doubled.)
    """
    batch, num_tokens = x_BTD.shape[:2]
    unit_BTD = F.normalize(x_BTD.float(), dim=-1)
    similarity_BTT = unit_BTD @ unit_BTD.transpose(1, 2)
    upper_TT = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=x_BTD.device).triu(1)
    similarity_BTT = similarity_BTT.masked_fill(~upper_TT, math.inf)
    rows_B = torch.arange(batch, device=x_BTD.device)
    order_BT = torch.arange(num_tokens, device=x_BTD.device).repeat(batch, 1)
    for _ in range(math.floor(round(ratio * num_tokens, 6))):
        pair_B = similarity_BTT.flatten(1).argmin(dim=1)
        first_B, second_B = pair_B // num_tokens, pair_B % num_tokens
        order_BT[rows_B, first_B], order_BT[rows_B, second_B] = second_B, first_B
        for token_B in (first_B, second_B):
            similarity_BTT[rows_B, token_B] = math.inf
            similarity_BTT[rows_B, :, token_B] = math.inf
    return order_BT
