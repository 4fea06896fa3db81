"""Token routing (TREAD): which tokens run the routed layers, how they leave and come back.

Shape suffixes: B samples, T tokens, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i import rng
from t2i.models.routes import Routes, num_kept


def draw_keep_ids(
    seed: int,
    stream: str,
    step: int,
    sample_ids_B: Tensor,
    num_tokens: int,
    gamma: float,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A uniform draw without replacement of `num_kept` tokens per sample.

    The same (seed, stream, step, sample) at a larger gamma keeps a subset of the same tokens; give
    each guidance branch its own stream for independent draws.

    Returns:
        (B, K) int64, ascending in each row, the same on every device.

    Raises:
        ValueError: gamma outside [0, 1).
    """
    count = num_kept(num_tokens, gamma)
    words_BT = rng.words(seed, stream, step, sample_ids_B.to(device), num_tokens)
    shuffled_BT = words_BT.argsort(dim=1, stable=True)
    return shuffled_BT[:, :count].sort(dim=1).values


@dataclass(frozen=True)
class Kept:
    """Which tokens each sample keeps, in rows of one length.

    Attributes:
        ids_BK: (B, K) int64, ascending and distinct in each row; (routes, B, K) for a draw of each.
        mask_BK: as ids_BK, bool; False = the token is not kept, it only fills up the row. None = all
            samples keep K tokens.
    """

    ids_BK: Tensor
    mask_BK: Tensor | None = None

    def of_route(self, number: int) -> Kept:
        """The draw of a route, where ids and mask are (routes, B, K); else the one for all routes."""
        if self.ids_BK.ndim == 2:
            return self
        return Kept(self.ids_BK[number], None if self.mask_BK is None else self.mask_BK[number])


def draw_keep(
    seed: int,
    stream: str,
    step: int,
    sample_ids_B: Tensor,
    num_tokens: int,
    gamma: float | Tensor,
    bernoulli: bool = False,
    device: torch.device | str = "cpu",
    num_draws: int = 1,
) -> Kept:
    """A draw in which samples may keep different numbers of tokens.

    Args:
        seed, stream, step, sample_ids_B, num_tokens, device: as in `draw_keep_ids`.
        gamma: one number, or (B,) one per sample; in [0, 1).
        bernoulli: keep each token with probability 1 - gamma, and at least one per sample, as the
            text of Sparse Guidance has it; else each sample keeps exactly `num_kept` tokens, the
            same that `draw_keep_ids` draws for it.
        num_draws: > 1 for a draw of each route, (num_draws, B, K); the first is that of one draw.

    Raises:
        ValueError: a gamma outside [0, 1).
    """
    streams = [stream, *(f"{stream} of route {number}" for number in range(1, num_draws))]
    if not bernoulli and not isinstance(gamma, Tensor):
        draws = [
            draw_keep_ids(seed, one, step, sample_ids_B, num_tokens, gamma, device)
            for one in streams
        ]
        return Kept(torch.stack(draws) if num_draws > 1 else draws[0])
    gammas = [gamma] * len(sample_ids_B) if not isinstance(gamma, Tensor) else gamma.tolist()
    gammas = num_draws * [round(value, 6) for value in gammas]  # a float32 of 0.7 is 0.69999999
    counts = [num_kept(num_tokens, value) for value in gammas]
    ids_B = sample_ids_B.to(device)
    words_BT = torch.cat([rng.words(seed, one, step, ids_B, num_tokens) for one in streams])
    shuffled_BT = words_BT.argsort(dim=1, stable=True)
    if bernoulli:
        # the smallest words are kept: their number is binomial and the order of a draw is the same
        limit_B1 = (1 - torch.tensor(gammas, dtype=torch.float64, device=device)[:, None]) * 2**32
        counts_B1 = (words_BT < limit_B1).sum(dim=1, keepdim=True).clamp(min=1)
    else:
        counts_B1 = torch.tensor(counts, device=device)[:, None]
    most = int(counts_B1.max())
    ids_BK, order_BK = shuffled_BT[:, :most].sort(dim=1)
    mask_BK = order_BK < counts_B1
    if num_draws == 1:
        return Kept(ids_BK, mask_BK)
    shape = num_draws, len(ids_B), most
    return Kept(ids_BK.view(shape), mask_BK.view(shape))


def gather_tokens(tokens_BTD: Tensor, keep_ids_BK: Tensor) -> Tensor:
    """The kept tokens, (B, K, D)."""
    return (
        tokens_BTD.flatten(0, 1)
        .index_select(0, _flat_ids(tokens_BTD, keep_ids_BK))
        .unflatten(0, keep_ids_BK.shape)
    )


def scatter_tokens(
    tokens_BTD: Tensor, kept_BKD: Tensor, keep_ids_BK: Tensor, keep_mask_BK: Tensor | None = None
) -> Tensor:
    """`tokens_BTD` with the kept tokens put back in their places; the others are unchanged.

    Places where `keep_mask_BK` (bool, None = all kept) is False do not count as kept.
    """
    if keep_mask_BK is not None:
        before_BKD = gather_tokens(tokens_BTD, keep_ids_BK)
        kept_BKD = kept_BKD.where(keep_mask_BK.unsqueeze(-1), before_BKD)
    flat_ids = _flat_ids(tokens_BTD, keep_ids_BK)
    merged = tokens_BTD.flatten(0, 1).index_copy(0, flat_ids, kept_BKD.flatten(0, 1))
    return merged.view_as(tokens_BTD)


@dataclass(frozen=True)
class Segment:
    """Blocks that run one after the other on the same tokens.

    Attributes:
        blocks: their numbers.
        kept: the tokens that they see; None = all.
        is_route: whether tokens can skip them.
    """

    blocks: list[int]
    kept: Kept | None = None
    is_route: bool = False


def segments(
    routes: Routes,
    num_layers: int,
    keep_ids_BK: Tensor | None,
    keep_mask_BK: Tensor | None,
    skip_blocks: Sequence[int] = (),
    skip_deep_path: bool = False,
) -> Iterator[Segment]:
    """The blocks from the first route on.

    Args:
        routes: resolved.
        num_layers: of the network.
        keep_ids_BK, keep_mask_BK: of `Kept`, one draw for all routes, or (routes, B, K) one for
            each; None = dense.
        skip_blocks: blocks that are left out; `skip_deep_path`: all that are routed.

    Raises:
        ValueError: kept tokens, or a deep path left out, for a network without routes.
    """
    if keep_ids_BK is not None and not routes:
        raise ValueError("this model has no routes, so gamma must be 0 (config key: routes)")
    if skip_deep_path and not routes:
        raise ValueError("this model has no routes, so it has no deep path to leave out (pdg)")
    next_routed = [*(first for first, _ in routes[1:]), num_layers]
    kept = None if keep_ids_BK is None else Kept(keep_ids_BK, keep_mask_BK)
    for number, (first, last) in enumerate(routes):
        routed = [] if skip_deep_path else blocks_left(first, last + 1, skip_blocks)
        yield Segment(routed, kept and kept.of_route(number), is_route=True)
        yield Segment(blocks_left(last + 1, next_routed[number], skip_blocks))


def blocks_left(start: int, stop: int, skip_blocks: Sequence[int]) -> list[int]:
    """The blocks start..stop-1, in order, without those that are skipped."""
    return [i for i in range(start, stop) if i not in skip_blocks]


def _flat_ids(tokens_BTD: Tensor, keep_ids_BK: Tensor) -> Tensor:
    """(B K,) rows of the flattened tokens: one index_select is far faster than an expanded gather."""
    batch, num_tokens = tokens_BTD.shape[:2]
    offsets_B1 = torch.arange(0, batch * num_tokens, num_tokens, device=keep_ids_BK.device)
    return (keep_ids_BK + offsets_B1.unsqueeze(1)).flatten()
