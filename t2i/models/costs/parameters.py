"""Sizes of the parameters of TR-DiT, SiT and MaskDiT, by formula. Free of torch."""

from __future__ import annotations

from t2i.models.costs.macs import TIME_SINUSOIDS, Backbone
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.sit_config import ClassConditionalConfig, SiTConfig
from t2i.models.tr_dit_config import TRDiTConfig


def parameter_sizes(config: Backbone) -> list[int]:
    """Elements of each parameter of a backbone; their sum is its size."""
    match config:
        case TRDiTConfig():
            return _tr_dit_sizes(config)
        case SiTConfig():
            return _sit_sizes(config)
        case MaskDiTConfig():
            return _mask_dit_sizes(config)


def _tr_dit_sizes(config: TRDiTConfig) -> list[int]:
    width, ffn = config.width, 3 * config.width * config.ffn_width
    attention, head = [3 * width**2, width**2], config.head_width
    patch = config.in_channels * config.patch_size**2 * width
    feed_forward = [ffn // 3 * 2, ffn // 3]
    low_rank = [width * config.adaln_rank, 6 * width * config.adaln_rank]
    cross = [width, width**2, 2 * width**2, head, head, width**2]
    block = [*low_rank, *attention, 2 * head, *cross, *feed_forward]
    refiner_layer = [*attention, 2 * head, *feed_forward, width, width]
    refiner = [config.text_width, config.text_width * width, width]
    refiner += config.num_refiner_layers * refiner_layer
    time, own_head = [TIME_SINUSOIDS * width, width**2], [2 * width**2, patch]
    num_heads = 1 + (config.internal_after is not None)
    ends = [patch, *((1 + config.scale_input) * time), *(num_heads * own_head)]
    fusion = [2 * width**2, width] if config.after_route == "fuse" else []
    return [*refiner, *ends, *fusion, *(config.num_layers * block)]


def _sit_sizes(config: SiTConfig) -> list[int]:
    width, patch_area = config.width, config.patch_size**2
    head = _linears((width, 2 * width), (width, config.head_channels * patch_area))
    heads = (1 + (config.internal_after is not None)) * head
    fusion = [*_linears((2 * width, width)), width] if config.after_route == "fuse" else []
    blocks = config.num_layers * _class_block(width, width)
    return [*_class_embeddings(config), *blocks, *heads, *fusion]


def _mask_dit_sizes(config: MaskDiTConfig) -> list[int]:
    width, decoder_width = config.width, config.decoder_width
    patch = config.in_channels * config.patch_size**2
    bridge = [*_linears((width, 2 * width), (width, decoder_width)), decoder_width]
    decoder = config.decoder_layers * _class_block(decoder_width, width)
    head = _linears((width, 2 * decoder_width), (decoder_width, patch))
    encoder = config.num_layers * _class_block(width, width)
    return [*_class_embeddings(config), *encoder, *bridge, *decoder, *head]


def _class_embeddings(config: ClassConditionalConfig) -> list[int]:
    """Patches, time and perhaps the guidance scale, labels."""
    width = config.width
    time = _linears((TIME_SINUSOIDS, width), (width, width))
    patch = _linears((config.in_channels * config.patch_size**2, width))
    return [*patch, *((1 + config.scale_input) * time), (config.num_classes + 1) * width]


def _class_block(width: int, condition_width: int) -> list[int]:
    """Modulation, attention, MLP of one adaLN-Zero block."""
    mlp = (width, 4 * width), (4 * width, width)
    return _linears((condition_width, 6 * width), (width, 3 * width), (width, width), *mlp)


def _linears(*shapes: tuple[int, int]) -> list[int]:
    """Weight and bias of linears of (inputs, outputs)."""
    return [size for inputs, outputs in shapes for size in (inputs * outputs, outputs)]
