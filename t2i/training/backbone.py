"""A model of either family as the trainer wants it: a network to call, and where conditions come from.

TR-DiT is conditioned on encoded captions, SiT and MaskDiT on class labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor, nn

from t2i.batch import DROPPED, TrainingBatch
from t2i.encoders.text import TextStates
from t2i.models.costs.macs import training_flops
from t2i.models.mask_dit import MaskDiT
from t2i.models.sit import SiT
from t2i.models.tr_dit import TRDiT
from t2i.training.conditions import Condition, draw_references, repeat, select


class Conditioner(Protocol):
    """Turns what a batch says about its samples into conditions on the network's device."""

    def given(self, batch: TrainingBatch) -> Condition:
        """One per sample; those of dropped samples are the null condition."""
        ...

    def dropped(self, batch: TrainingBatch) -> Tensor:
        """(B,) bool, which samples have the null condition."""
        ...

    def null(self, size: int) -> Condition:
        """The null condition for each of ``size`` samples."""
        ...

    def references(
        self, count: int, seed: int, step: int, sample_ids_B: Tensor
    ) -> tuple[Condition, ...]:
        """``count`` conditions of B rows, see `draw_references` (Model-guidance, eq. 23).

        Raises:
            ValueError: there are fewer conditions to draw from.
        """
        ...


@dataclass(frozen=True)
class Backbone:
    """What is trained.

    Attributes:
        model: with fp32 weights, on the CPU; its parameter names are those of checkpoints.
        network: a `flow_matching.Network` that runs it; holds no other parameters.
        patch_size: of the model.
        conditioner: gives the conditions that ``network`` takes.
        takes_scale: whether ``network`` takes ``guidance_scale_B``, (B,) float32.
        num_draws: of kept tokens in a forward pass: 1, or one for each route.
        training_flops: (image tokens, text tokens, gamma) -> FLOPs of one sample, forward and
            backward; see `t2i.models.costs.macs.training_flops`.
    """

    model: nn.Module
    network: nn.Module
    patch_size: int
    conditioner: Conditioner
    takes_scale: bool
    training_flops: Callable[[int, int, float], float]
    num_draws: int = 1


class TextConditioned(nn.Module):
    """TR-DiT with its text preparation as one call: the module that DeepSpeed wraps."""

    def __init__(self, model: TRDiT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        latents_BCHW: Tensor,
        timestep_B: Tensor,
        text: TextStates,
        keep_ids_BK: Tensor | None,
        *,
        keep_mask_BK: Tensor | None = None,
        guidance_scale_B: Tensor | None = None,
        drop_deep_B: Tensor | None = None,
        internal: bool = False,
    ) -> Tensor:
        """The velocity, in the dtype of ``latents_BCHW``; arguments as in `TRDiT.forward`."""
        context = self.model.prepare_text(text.states, text.mask)
        return self.model(
            latents_BCHW,
            timestep_B,
            context,
            keep_ids_BK,
            keep_mask_BK=keep_mask_BK,
            guidance_scale_B=guidance_scale_B,
            drop_deep_B=drop_deep_B,
            internal=internal,
        )


class TextConditioner:
    """Captions, encoded by a frozen encoder; the null condition is the empty caption."""

    def __init__(
        self,
        encode: Callable[[Sequence[str]], TextStates],
        device: torch.device,
        reference_captions: Sequence[str] = (),
    ) -> None:
        """Encodes what each batch needs, and keeps texts alone.

        Args:
            encode: captions -> states and mask, without gradients, on ``device``.
            reference_captions: what references are drawn from.
        """
        self.encode, self.device = encode, device
        self.reference_captions = reference_captions

    def given(self, batch: TrainingBatch) -> TextStates:
        """See `Conditioner`."""
        return self.encode(batch.captions)

    def dropped(self, batch: TrainingBatch) -> Tensor:
        """See `Conditioner`."""
        return torch.tensor([caption == "" for caption in batch.captions], device=self.device)

    def null(self, size: int) -> Condition:
        """See `Conditioner`."""
        return repeat(self._empty, size)

    def references(
        self, count: int, seed: int, step: int, sample_ids_B: Tensor
    ) -> tuple[Condition, ...]:
        """See `Conditioner`; a caption that several samples of the batch draw is encoded once."""
        ids_BN = draw_references(len(self.reference_captions), count, seed, step, sample_ids_B)
        drawn_U, rows_BN = ids_BN.to(self.device).unique(return_inverse=True)
        states = self.encode([self.reference_captions[number] for number in drawn_U.tolist()])
        return tuple(select(states, rows_B) for rows_B in rows_BN.unbind(dim=1))

    @cached_property
    def _empty(self) -> TextStates:
        return self.encode([""])


class LabelConditioner:
    """Class labels 0 ... num_classes - 1; the null condition is the class ``num_classes``."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes, self.device = num_classes, device

    def given(self, batch: TrainingBatch) -> Tensor:
        """See `Conditioner`.

        Raises:
            ValueError: a batch without labels, or a label that the model does not have.
        """
        if batch.labels is None:
            raise ValueError(
                "this model is conditioned on classes and the batches have none: set "
                "data_pipeline.loader.labels to true"
            )
        labels_B = batch.labels
        for key, label in zip(batch.keys, labels_B.tolist(), strict=True):
            if label >= self.num_classes:
                raise ValueError(
                    f"sample {key} has label {label}, but the model has {self.num_classes} "
                    "classes: raise num_classes of the model, or correct the label"
                )
        return labels_B.masked_fill(labels_B == DROPPED, self.num_classes).to(self.device)

    def dropped(self, batch: TrainingBatch) -> Tensor:
        """See `Conditioner`."""
        assert batch.labels is not None
        return (batch.labels == DROPPED).to(self.device)

    def null(self, size: int) -> Tensor:
        """See `Conditioner`."""
        return torch.full((size,), self.num_classes, device=self.device)

    def references(
        self, count: int, seed: int, step: int, sample_ids_B: Tensor
    ) -> tuple[Condition, ...]:
        """See `Conditioner`."""
        labels_BN = draw_references(self.num_classes, count, seed, step, sample_ids_B)
        return labels_BN.to(self.device).unbind(dim=1)


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile a model's blocks in place, see `t2i.models.compilation`."""
    assert isinstance(model, (TRDiT, SiT, MaskDiT))
    model.compile_blocks(backend)


def text_backbone(
    model: TRDiT,
    encode: Callable[[Sequence[str]], TextStates],
    device: torch.device,
    reference_captions: Sequence[str] = (),
) -> Backbone:
    """TR-DiT, conditioned on captions; the other arguments: see `TextConditioner`."""
    conditioner = TextConditioner(encode, device, reference_captions)
    network, config = TextConditioned(model), model.config
    flops = partial(training_flops, config)
    return Backbone(
        model, network, config.patch_size, conditioner, config.scale_input, flops, config.num_draws
    )


def label_backbone(model: SiT | MaskDiT, device: torch.device) -> Backbone:
    """SiT or MaskDiT, conditioned on class labels."""
    config = model.config
    conditioner = LabelConditioner(config.num_classes, device)
    flops = partial(training_flops, config)
    return Backbone(
        model, model, config.patch_size, conditioner, config.scale_input, flops, config.num_draws
    )
