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
from t2i.models.fusion import Fusion, leave_route
from t2i.models.layers import add_scale
from t2i.models.perturbation import UNPERTURBED, Perturbation
from t2i.models.routes import first_routed
from t2i.models.routing import Kept, blocks_left, gather_tokens, segments
from t2i.models.sit_config import SiTConfig
from t2i.models.sit_layers import (
    Block,
    Head,
    LabelEmbedding,
    Linear,
    PatchEmbedding,
    TimeEmbedding,
    run_blocks,
    unpatchify,
)
from t2i.models.storage import load_model


@dataclass(frozen=True)
class Hidden:
    """The state between two blocks: image tokens, which know their positions, and time (B, D).

    `middle_BTD`: the tokens that an internal head reads, once the blocks before it have run.
    """

    tokens_BTD: Tensor
    time_BD: Tensor
    grid: tuple[int, int]
    middle_BTD: Tensor | None = None

    def select(self, ids: Tensor) -> Hidden:
        """The samples `ids` (int64, may repeat), in that order."""
        middle_BTD = None if self.middle_BTD is None else self.middle_BTD[ids]
        return replace(
            self,
            tokens_BTD=self.tokens_BTD[ids],
            time_BD=self.time_BD[ids],
            middle_BTD=middle_BTD,
        )


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
        self.head = self._new_head()
        # drawn last, so that a seed gives all other weights with and without these
        self.scale = TimeEmbedding(width, zero=True) if config.scale_input else None
        is_fused, has_internal = config.after_route == "fuse", config.internal_after is not None
        self.fusion = Fusion(Linear(2 * width, width)) if is_fused else None
        self.internal_head = self._new_head() if has_internal else None

    def _new_head(self) -> Head:
        config = self.config
        return Head(config.width, config.width, config.head_channels * config.patch_size**2)

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
        perturbation: Perturbation = UNPERTURBED,
        guidance_scale_B: Tensor | None = None,
        drop_deep_B: Tensor | None = None,
        internal: bool = False,
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
            perturbation: what the blocks do differently, for the whole batch (weak branches).
            guidance_scale_B: (B,) float32, w of model-guidance (1 = plain, 0 with the null
                condition), for a model with a scale input and only there.
            drop_deep_B: (B,) bool, samples of which no token comes out of a route (SPRINT's
                training); None = of none.
            internal: the internal head's prediction too.

        Returns:
            In the dtype of `latents_BCHW`. Velocity models: v = data - noise, (B, C, H, W).
            Epsilon models: all channels of the head, with learn_sigma (B, 2 C, H, W): the noise,
            then DiT's interpolation weight of the variance. With `internal` (2, B, ...), the
            prediction and that of the internal head.

        Raises:
            ValueError: sizes that do not divide, kept tokens for a model without routes, a missing
                or unwanted scale.
        """
        hidden = self.embed(latents_BCHW, timestep_B, guidance_scale_B)
        hidden = self.before_route(hidden, labels_B, perturbation)
        prediction = self.from_route(
            hidden, labels_B, keep_ids_BK, keep_mask_BK, perturbation, drop_deep_B
        )
        if internal:
            prediction = torch.stack((prediction, self.internal_velocity(hidden, labels_B)))
        return prediction.to(latents_BCHW.dtype)

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
        """The blocks before the first route (all of them when there is none)."""
        condition_BD = self._condition(hidden, labels_B)
        start, stop = 0, first_routed(self.config.resolved_routes, self.config.num_layers)
        if self.config.internal_after is not None:
            start = self.config.internal_after + 1
            blocks = blocks_left(0, start, perturbation.skip_blocks)
            tokens_BTD = self._run(hidden, condition_BD, blocks, None, perturbation)
            hidden = replace(hidden, tokens_BTD=tokens_BTD, middle_BTD=tokens_BTD)
        blocks = blocks_left(start, stop, perturbation.skip_blocks)
        tokens_BTD = self._run(hidden, condition_BD, blocks, None, perturbation)
        return replace(hidden, tokens_BTD=tokens_BTD)

    def from_route(
        self,
        hidden: Hidden,
        labels_B: Tensor,
        keep_ids_BK: Tensor | None = None,
        keep_mask_BK: Tensor | None = None,
        perturbation: Perturbation = UNPERTURBED,
        drop_deep_B: Tensor | None = None,
    ) -> Tensor:
        """The routed blocks, those after, and the head; arguments as in `forward`."""
        condition_BD = self._condition(hidden, labels_B)
        routes, num_layers = self.config.resolved_routes, self.config.num_layers
        skipped = perturbation.skip_blocks, perturbation.skip_deep_path
        for part in segments(routes, num_layers, keep_ids_BK, keep_mask_BK, *skipped):
            tokens_BTD = self._run(hidden, condition_BD, part.blocks, part.kept, perturbation)
            if part.is_route:
                tokens_BTD = leave_route(
                    hidden.tokens_BTD,
                    None if perturbation.skip_deep_path else tokens_BTD,
                    part.kept,
                    drop_deep_B,
                    self.fusion,
                )
            hidden = replace(hidden, tokens_BTD=tokens_BTD)
        return self._prediction(self.head, hidden.tokens_BTD, condition_BD, hidden.grid)

    def internal_velocity(self, hidden: Hidden, labels_B: Tensor) -> Tensor:
        """The internal head's prediction (Internal Guidance), from `before_route`'s state."""
        assert self.internal_head is not None
        assert hidden.middle_BTD is not None
        condition_BD = self._condition(hidden, labels_B)
        return self._prediction(self.internal_head, hidden.middle_BTD, condition_BD, hidden.grid)

    def _prediction(
        self, head: Head, tokens_BTD: Tensor, condition_BD: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """What a head makes of some tokens."""
        prediction = unpatchify(head(tokens_BTD, condition_BD), grid, self.config.patch_size)
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
        kept: Kept | None,
        perturbation: Perturbation,
    ) -> Tensor:
        """All tokens, or the kept ones, after some blocks in order: (B, T, D) or (B, K, D)."""
        tokens_BTD, mask_BK = hidden.tokens_BTD, None
        if kept is not None:
            tokens_BTD, mask_BK = gather_tokens(tokens_BTD, kept.ids_BK), kept.mask_BK
        recompute = self.config.gradient_checkpointing
        return run_blocks(
            self.blocks, blocks, tokens_BTD, condition_BD, recompute, mask_BK, perturbation
        )


def load_sit(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> SiT:
    """The SiT of a folder (`python -m t2i.models.convert`); see `t2i.models.storage.load_model`."""
    return load_model(SiT, SiTConfig, folder, device, dtype)
