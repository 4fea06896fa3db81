"""Bytes of activations that a backbone keeps for its backward pass, by formula. Free of torch."""

from __future__ import annotations

from t2i.models.costs.kernels import Activations, Kernels
from t2i.models.costs.macs import Backbone
from t2i.models.costs.sit_activations import mask_dit_activations, sit_activations
from t2i.models.costs.tr_dit_activations import tr_dit_activations
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig


def activations(
    config: Backbone,
    micro_batch: int,
    num_tokens: int,
    text_tokens: int,
    gamma: float,
    kernels: Kernels,
) -> Activations:
    """What a forward pass (of TR-DiT with `prepare_text`) leaves for the backward pass.

    Args:
        num_tokens: image tokens, before routing or masking.
        text_tokens: of TR-DiT, padding included; 0 for the others.
        gamma: in [0, 1), share of tokens that skip the routes or are masked; 0 = dense.
    """
    match config:
        case TRDiTConfig():
            return tr_dit_activations(config, micro_batch, num_tokens, text_tokens, gamma, kernels)
        case SiTConfig():
            return sit_activations(config, micro_batch, num_tokens, gamma, kernels)
        case MaskDiTConfig():
            return mask_dit_activations(config, micro_batch, num_tokens, gamma, kernels)
