"""SiT and DiT: class-conditional diffusion transformers, here with token routing.

Sources: Peebles & Xie, arXiv 2212.09748 (DiT); Ma et al., arXiv 2401.08740 (SiT). The forward pass
is in three parts as in `t2i.models.tr_dit`, with the label in place of the text: a guidance plan
may run `embed` and `before_route` once for several branches, then `from_route` per branch.

Shape suffixes: B samples, C latent channels, H x W latents, T = H W / patch_size^2 tokens,
K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.models.compilation import compile_each
from t2i.models.layers import add_scale
from t2i.models.routes import first_routed
from t2i.models.routing import Kept, blocks_left, gather_tokens, scatter_tokens, segments
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

    def select(self, ids: Tensor) -> Hidden:
        """The samples `ids` (int64, may repeat), in that order."""
        return replace(self, tokens_BTD=self.tokens_BTD[ids], time_BD=self.time_BD[ids])


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
        # drawn last, so that a seed gives all other weights with and without it
        self.scale = TimeEmbedding(width, zero=True) if config.scale_input else None

    @classmethod
    def from_config(cls, config: SiTConfig) -> SiT:
        """A new model with random weights; `with torch.device("meta")` for sizes only."""
        return cls(config)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks in place, see `compile_each`."""
        compile_each(self.blocks, backend)

    def forward(
        self,
        latents_BCHW: Tensor,
        timestep_B: Tensor,
        labels_B: Tensor,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        skip_blocks: Sequence[int] = (),
        guidance_scale_B: Tensor | None = None,
    ) -> Tensor:
        """The prediction at (latents, t) for a class.

        Args:
            latents_BCHW: x_t; height and width are multiples of patch_size, any aspect ratio.
            timestep_B: (B,) float32. Velocity models: t in [0, 1], 0 = noise, 1 = data. Epsilon
                models (DiT): the step of its diffusion in [0, 999], 0 = data.
            labels_B: (B,) int64 in [0, num_classes]; num_classes is the null class.
            keep_ids_BK: (B, K) int64 ascending tokens that run the routed blocks, the same in
                every route, or (routes, B, K) for a draw per route; None = dense.
            keep_mask_BK: bool of the same shape, False = a place that only fills up the row of a
                sample that keeps fewer than K tokens (`routing.draw_keep`); None = all kept.
            skip_blocks: blocks that are left out for the whole batch (S2 guidance).
            guidance_scale_B: (B,) float32, w of model-guidance (1 = plain, 0 with the null
                condition), for a model with a scale input and only there.

        Returns:
            In the dtype of `latents_BCHW`. Velocity models: v = data - noise, (B, C, H, W).
            Epsilon models: all channels of the head, with learn_sigma (B, 2 C, H, W): the noise,
            then DiT's interpolation weight of the variance.

        Raises:
            ValueError: sizes that do not divide, kept tokens for a model without routes, a missing
                or unwanted scale.
        """
        hidden = self.embed(latents_BCHW, timestep_B, guidance_scale_B)
        hidden = self.before_route(hidden, labels_B, skip_blocks)
        prediction = self.from_route(hidden, labels_B, keep_ids_BK, keep_mask_BK, skip_blocks)
        return prediction.to(latents_BCHW.dtype)

    def embed(
        self, latents_BCHW: Tensor, timestep_B: Tensor, guidance_scale_B: Tensor | None = None
    ) -> Hidden:
        """Patches to tokens with positions, time (and guidance scale) to an embedding."""
        grid = self.patch.grid(latents_BCHW)
        time_BD = add_scale(self.time(timestep_B), self.scale, guidance_scale_B)
        return Hidden(self.patch(latents_BCHW), time_BD, grid)

    def before_route(
        self, hidden: Hidden, labels_B: Tensor, skip_blocks: Sequence[int] = ()
    ) -> Hidden:
        """The blocks before the first route (all of them when there is none)."""
        condition_BD = self._condition(hidden, labels_B)
        stop = first_routed(self.config.resolved_routes, self.config.num_layers)
        return self._run(hidden, condition_BD, blocks_left(0, stop, skip_blocks))

    def from_route(
        self,
        hidden: Hidden,
        labels_B: Tensor,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        skip_blocks: Sequence[int] = (),
    ) -> Tensor:
        """The routed blocks, those after, and the head; arguments as in `forward`."""
        condition_BD = self._condition(hidden, labels_B)
        routes, num_layers = self.config.resolved_routes, self.config.num_layers
        for blocks, kept in segments(routes, num_layers, keep_ids_BK, keep_mask_BK, skip_blocks):
            hidden = self._run(hidden, condition_BD, blocks, kept)
        patches_BTP = self.head(hidden.tokens_BTD, condition_BD)
        prediction = unpatchify(patches_BTP, hidden.grid, self.config.patch_size)
        is_velocity = self.config.prediction == "velocity"
        return prediction[:, : self.config.in_channels] if is_velocity else prediction

    def _condition(self, hidden: Hidden, labels_B: Tensor) -> Tensor:
        """What every modulation reads, (B, D)."""
        return F.silu(hidden.time_BD + self.label(labels_B))

    def _run(
        self,
        hidden: Hidden,
        condition_BD: Tensor,
        blocks: Sequence[int],
        kept: Kept | None = None,
    ) -> Hidden:
        """Some blocks, in order, on all tokens or on the kept ones; the others stand aside."""
        tokens_BTD, mask_BK = hidden.tokens_BTD, None
        if kept is not None:
            tokens_BTD, mask_BK = gather_tokens(tokens_BTD, kept.ids_BK), kept.mask_BK
        own = [self.blocks[i] for i in blocks]
        recompute = self.config.gradient_checkpointing
        tokens_BTD = run_blocks(own, tokens_BTD, condition_BD, recompute, mask_BK)
        if kept is not None:
            tokens_BTD = scatter_tokens(hidden.tokens_BTD, tokens_BTD, kept.ids_BK, mask_BK)
        return replace(hidden, tokens_BTD=tokens_BTD)


def load_sit(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> SiT:
    """The SiT of a folder (`python -m t2i.models.convert`); see `t2i.models.storage.load_model`."""
    return load_model(SiT, SiTConfig, folder, device, dtype)
