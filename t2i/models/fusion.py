"""Where tokens leave a route: put back (TREAD), or fused with the shallow state (SPRINT).

    TREAD     x = deep, with the tokens that stood aside as they were
    SPRINT    x = W [deep ; shallow], a learned mask embedding in the places of the others
              (arXiv 2510.21986; the authors' released code leaves that embedding as it was drawn)

`shallow` is the state before the route, of all tokens. Shape suffixes: B samples, T tokens, K kept
tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from t2i.models.routing import Kept, scatter_tokens

EMBEDDING_STD = 0.02


class Fusion(nn.Module):
    """SPRINT's linear over the concatenation of deep and shallow tokens, and its mask embedding."""

    def __init__(self, linear: nn.Linear) -> None:
        """`linear`: from 2 D to D."""
        super().__init__()
        self.linear = linear
        self.mask_embedding = nn.Parameter(EMBEDDING_STD * torch.randn(linear.out_features))

    def masked(self, shallow_BTD: Tensor) -> Tensor:
        """The mask embedding in each place, (B, T, D)."""
        return self.mask_embedding.to(shallow_BTD.dtype).expand_as(shallow_BTD)

    def forward(self, deep_BTD: Tensor, shallow_BTD: Tensor) -> Tensor:
        """W [deep ; shallow], (B, T, D)."""
        return self.linear(torch.cat((deep_BTD, shallow_BTD), dim=-1))


def leave_route(
    shallow_BTD: Tensor,
    deep_BKD: Tensor | None,
    kept: Kept | None,
    drop_deep_B: Tensor | None,
    fusion: Fusion | None,
) -> Tensor:
    """All tokens after a route, (B, T, D).

    Args:
        shallow_BTD: before it.
        deep_BKD: what has run its blocks; None = no token did (path-drop guidance).
        kept: which tokens those are; None = all.
        drop_deep_B: (B,) bool, samples whose deep tokens are left out all the same; None = none.
        fusion: of SPRINT; None = the tokens that stood aside come back as they were.
    """
    aside_BTD = shallow_BTD if fusion is None else fusion.masked(shallow_BTD)
    if deep_BKD is None:
        deep_BTD = aside_BTD
    elif kept is None:
        deep_BTD = deep_BKD
    else:
        deep_BTD = scatter_tokens(aside_BTD, deep_BKD, kept.ids_BK, kept.mask_BK)
    if drop_deep_B is not None:
        deep_BTD = torch.where(drop_deep_B[:, None, None], aside_BTD, deep_BTD)
    return deep_BTD if fusion is None else fusion(deep_BTD, shallow_BTD)
