"""SiT and DiT: class-conditional diffusion transformers, here with token routing.

Sources: Peebles & Xie, arXiv 2212.09748 (DiT); Ma et al., arXiv 2401.08740 (SiT). The forward pass
is in three parts as in `t2i.models.tr_dit`, with the label in place of the text: a guidance plan
may run `embed` and `before_route` once for several branches, then `from_route` per branch.

Shape suffixes: B samples, C latent channels, H x W latents, T = H W / patch_size^2 tokens,
K kept tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.models.routing import gather_tokens, scatter_tokens
from t2i.models.sit_config import SiTConfig
from t2i.models.sit_layers import (
    Block,
    Head,
    LabelEmbedding,
    PatchEmbedding,
    TimeEmbedding,
    run_blocks,
    unpatchify,
)
from t2i.models.storage import load_model


@dataclass(frozen=True)
class Hidden:
    """The state between two blocks: image tokens, which know their positions, and time (B, D)."""

    tokens_BTD: Tensor
    time_BD: Tensor
    grid: tuple[int, int]


class SiT(nn.Module):
    """Predicts the flow-matching velocity of latents (or DiT's noise), given time and class."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch_size = config.width, config.patch_size
        self.patch = PatchEmbedding(config.in_channels, patch_size, width)
        self.time = TimeEmbedding(width)
        self.label = LabelEmbedding(config.num_classes, width)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, width) for _ in range(config.num_layers)
        )
        self.head = Head(width, width, config.head_channels * patch_size**2)

    @classmethod
    def from_config(cls, config: SiTConfig) -> SiT:
        """A new model with random weights; `with torch.device("meta")` for sizes only."""
        return cls(config)

    def forward(
        self,
        latents_BCHW: Tensor,
        timestep_B: Tensor,
        labels_B: Tensor,
        keep_ids_BK: Tensor | None = None,
    ) -> Tensor:
        """The prediction at (latents, t) for a class.

        Args:
            latents_BCHW: x_t; height and width are multiples of patch_size, any aspect ratio.
            timestep_B: (B,) float32. Velocity models: t in [0, 1], 0 = noise, 1 = data. Epsilon
                models (DiT): the step of its diffusion in [0, 999], 0 = data.
            labels_B: (B,) int64 in [0, num_classes]; num_classes is the null class.
            keep_ids_BK: (B, K) int64 ascending tokens that run the routed blocks, the same in
                every route, or (routes, B, K) for a draw per route; None = dense.

        Returns:
            In the dtype of `latents_BCHW`. Velocity models: v = data - noise, (B, C, H, W).
            Epsilon models: all channels of the head, with learn_sigma (B, 2 C, H, W): the noise,
            then DiT's interpolation weight of the variance.

        Raises:
            ValueError: sizes that do not divide, or kept tokens for a model without routes.
        """
        hidden = self.embed(latents_BCHW, timestep_B)
        hidden = self.before_route(hidden, labels_B)
        return self.from_route(hidden, labels_B, keep_ids_BK).to(latents_BCHW.dtype)

    def embed(self, latents_BCHW: Tensor, timestep_B: Tensor) -> Hidden:
        """Patches to tokens with positions, time to its embedding."""
        grid = self.patch.grid(latents_BCHW)
        return Hidden(self.patch(latents_BCHW), self.time(timestep_B), grid)

    def before_route(self, hidden: Hidden, labels_B: Tensor) -> Hidden:
        """The blocks before the first route (all of them when there is none)."""
        condition_BD = self._condition(hidden, labels_B)
        return self._run(hidden, condition_BD, 0, self._first_routed)

    def from_route(
        self, hidden: Hidden, labels_B: Tensor, keep_ids_BK: Tensor | None = None
    ) -> Tensor:
        """The routed blocks, those after, and the head; arguments as in `forward`."""
        routes = self.config.resolved_routes
        if keep_ids_BK is not None and not routes:
            raise ValueError("this model has no routes, so gamma must be 0 (config key: routes)")
        condition_BD = self._condition(hidden, labels_B)
        done = self._first_routed
        for number, (first, last) in enumerate(routes):
            hidden = self._run(hidden, condition_BD, done, first)
            if keep_ids_BK is None:
                hidden = self._run(hidden, condition_BD, first, last + 1)
            else:
                keep_ids = keep_ids_BK if keep_ids_BK.ndim == 2 else keep_ids_BK[number]
                hidden = self._run_routed(hidden, condition_BD, first, last + 1, keep_ids)
            done = last + 1
        hidden = self._run(hidden, condition_BD, done, self.config.num_layers)
        patches_BTP = self.head(hidden.tokens_BTD, condition_BD)
        prediction = unpatchify(patches_BTP, hidden.grid, self.config.patch_size)
        is_velocity = self.config.prediction == "velocity"
        return prediction[:, : self.config.in_channels] if is_velocity else prediction

    @property
    def _first_routed(self) -> int:
        routes = self.config.resolved_routes
        return routes[0][0] if routes else self.config.num_layers

    def _condition(self, hidden: Hidden, labels_B: Tensor) -> Tensor:
        """What every modulation reads, (B, D)."""
        return F.silu(hidden.time_BD + self.label(labels_B))

    def _run_routed(
        self, hidden: Hidden, condition_BD: Tensor, start: int, stop: int, keep_ids_BK: Tensor
    ) -> Hidden:
        """Blocks start..stop-1 on the kept tokens; the others stand aside."""
        kept = replace(hidden, tokens_BTD=gather_tokens(hidden.tokens_BTD, keep_ids_BK))
        kept = self._run(kept, condition_BD, start, stop)
        merged_BTD = scatter_tokens(hidden.tokens_BTD, kept.tokens_BTD, keep_ids_BK)
        return replace(hidden, tokens_BTD=merged_BTD)

    def _run(self, hidden: Hidden, condition_BD: Tensor, start: int, stop: int) -> Hidden:
        """Blocks start..stop-1."""
        tokens_BTD = run_blocks(
            self.blocks[start:stop],
            hidden.tokens_BTD,
            condition_BD,
            self.config.gradient_checkpointing,
        )
        return replace(hidden, tokens_BTD=tokens_BTD)


def load_sit(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> SiT:
    """The SiT of a folder (`python -m t2i.models.convert`); see `t2i.models.storage.load_model`."""
    return load_model(SiT, SiTConfig, folder, device, dtype)
