"""MaskDiT: a SiT that sees only some tokens, and a small decoder that answers for all.

Source: Zheng et al., arXiv 2306.09305. Dropped tokens leave for good before the encoder; in the
decoder a learned embedding stands in their place. Positions are added before each of the two.

Shape suffixes: B samples, C latent channels, H x W latents, T = H W / patch_size^2 tokens,
K visible tokens, D width, E decoder width.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.models.compilation import compile_each
from t2i.models.layers import add_scale
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.perturbation import UNPERTURBED, Perturbation
from t2i.models.routing import blocks_left, gather_tokens, scatter_tokens
from t2i.models.sit import Hidden
from t2i.models.sit_layers import (
    EMBEDDING_STD,
    Block,
    Head,
    LabelEmbedding,
    PatchEmbedding,
    TimeEmbedding,
    run_blocks,
    sincos_positions,
    unpatchify,
)
from t2i.models.storage import load_model


class MaskDiT(nn.Module):
    """Predicts the flow-matching velocity of all latents from some of their tokens."""

    def __init__(self, config: MaskDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, decoder_width = config.width, config.decoder_width
        self.patch = PatchEmbedding(config.in_channels, config.patch_size, width)
        self.time = TimeEmbedding(width)
        self.label = LabelEmbedding(config.num_classes, width)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, width) for _ in range(config.num_layers)
        )
        # not zero at the start as in the authors' code: the decoder sees its tokens from step 1 on
        self.bridge = Head(width, width, decoder_width, std=None)
        self.mask_embedding = nn.Parameter(EMBEDDING_STD * torch.randn(decoder_width))
        self.decoder = nn.ModuleList(
            Block(decoder_width, config.decoder_heads, width) for _ in range(config.decoder_layers)
        )
        self.head = Head(decoder_width, width, config.in_channels * config.patch_size**2)
        # drawn last, so that a seed gives all other weights with and without it
        self.scale = TimeEmbedding(width, zero=True) if config.scale_input else None

    @classmethod
    def from_config(cls, config: MaskDiTConfig) -> MaskDiT:
        """A new model with random weights; `with torch.device("meta")` for sizes only."""
        return cls(config)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks in place, see `compile_each`."""
        compile_each((*self.blocks, *self.decoder), backend)

    def forward(
        self,
        latents_BCHW: Tensor,
        timestep_B: Tensor,
        labels_B: Tensor,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        perturbation: Perturbation = UNPERTURBED,
        guidance_scale_B: Tensor | None = None,
    ) -> Tensor:
        """The velocity at (latents, t) for a class.

        Args:
            latents_BCHW: x_t; height and width are multiples of patch_size, any aspect ratio.
            timestep_B: (B,) float32 in [0, 1], 0 = noise, 1 = data.
            labels_B: (B,) int64 in [0, num_classes]; num_classes is the null class.
            keep_ids_BK: (B, K) int64 ascending tokens that the encoder sees; None = all.
            keep_mask_BK: (B, K) bool, False = a place that only fills up the row of a sample that
                sees fewer than K tokens (`routing.draw_keep`); None = all are visible.
            perturbation: what the encoder's blocks do differently, for the whole batch (weak
                branches).
            guidance_scale_B: (B,) float32, w of model-guidance (1 = plain, 0 with the null
                condition), for a model with a scale input and only there.

        Returns:
            v = data - noise for every token, the shape and dtype of `latents_BCHW`.

        Raises:
            ValueError: sizes that do not divide, a missing or unwanted scale.
        """
        hidden = self.embed(latents_BCHW, timestep_B, guidance_scale_B)
        hidden = self.before_route(hidden, labels_B, perturbation)
        velocity = self.from_route(hidden, labels_B, keep_ids_BK, keep_mask_BK, perturbation)
        return velocity.to(latents_BCHW.dtype)

    def embed(
        self, latents_BCHW: Tensor, timestep_B: Tensor, guidance_scale_B: Tensor | None = None
    ) -> Hidden:
        """Patches to tokens with positions, time (and guidance scale) to an embedding."""
        grid = self.patch.grid(latents_BCHW)
        time_BD = add_scale(self.time(timestep_B), self.scale, guidance_scale_B)
        return Hidden(self.patch(latents_BCHW), time_BD, grid)

    def before_route(
        self, hidden: Hidden, labels_B: Tensor, perturbation: Perturbation = UNPERTURBED
    ) -> Hidden:
        """Nothing: tokens are dropped before the first block. Here for guidance plans, as in SiT."""
        return hidden

    def from_route(
        self,
        hidden: Hidden,
        labels_B: Tensor,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        perturbation: Perturbation = UNPERTURBED,
    ) -> Tensor:
        """Encoder, decoder and head; arguments as in `forward`."""
        condition_BD = F.silu(hidden.time_BD + self.label(labels_B))
        recompute = self.config.gradient_checkpointing
        visible_BKD = hidden.tokens_BTD
        if keep_ids_BK is not None:
            visible_BKD = gather_tokens(visible_BKD, keep_ids_BK)
        encoder = blocks_left(0, self.config.num_layers, perturbation.skip_blocks)
        visible_BKD = run_blocks(
            self.blocks, encoder, visible_BKD, condition_BD, recompute, keep_mask_BK, perturbation
        )
        tokens_BTE = self.bridge(visible_BKD, condition_BD)
        if keep_ids_BK is not None:
            masks_E = self.mask_embedding.to(tokens_BTE.dtype)
            masks_BTE = masks_E.expand(*hidden.tokens_BTD.shape[:2], -1)
            tokens_BTE = scatter_tokens(masks_BTE, tokens_BTE, keep_ids_BK, keep_mask_BK)
        positions_TE = sincos_positions(*hidden.grid, self.config.decoder_width, tokens_BTE.device)
        tokens_BTE = tokens_BTE + positions_TE.to(tokens_BTE.dtype)
        decoder = range(self.config.decoder_layers)
        tokens_BTE = run_blocks(self.decoder, decoder, tokens_BTE, condition_BD, recompute)
        patches_BTP = self.head(tokens_BTE, condition_BD)
        return unpatchify(patches_BTP, hidden.grid, self.config.patch_size)

    def internal_velocity(self, hidden: Hidden, labels_B: Tensor) -> Tensor:
        """Nothing: there is no head inside. Here for guidance plans, as in SiT."""
        raise AssertionError("guidance from an internal head is refused before it is asked for")


def load_mask_dit(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> MaskDiT:
    """The MaskDiT of a folder; see `t2i.models.storage.load_model`."""
    return load_model(MaskDiT, MaskDiTConfig, folder, device, dtype)
