"""Proves the formulas of saved activations: autograd's own list of what it saves has as many bytes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.models import layers, sit_layers
from t2i.models.costs.activations import activations
from t2i.models.costs.kernels import Activations, Kernels
from t2i.models.costs.macs import Backbone
from t2i.models.mask_dit import MaskDiT
from t2i.models.mask_dit_config import MaskDiTConfig
from t2i.models.routing import draw_keep_ids
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig

BATCH, SIDE, TEXT = 2, 32, 32
TOKENS = (SIDE // 2) ** 2
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SIZES = {"width": 128, "num_heads": 4}
CONFIGS: dict[str, Backbone] = {
    "tr_dit": TRDiTConfig(num_layers=5, text_width=96, adaln_rank=16, routes=((1, 3),), **SIZES),
    "sit": SiTConfig(num_layers=5, num_classes=10, routes=((1, 3),), **SIZES),
    "tr_dit_fused_internal": TRDiTConfig(
        num_layers=5,
        text_width=96,
        adaln_rank=16,
        routes=((1, 3),),
        after_route="fuse",
        internal_after=0,
        **SIZES,
    ),
    "sit_fused_internal": SiTConfig(
        num_layers=5,
        num_classes=10,
        routes=((1, 3),),
        after_route="fuse",
        internal_after=0,
        **SIZES,
    ),
    "mask_dit": MaskDiTConfig(
        num_layers=4,
        num_classes=10,
        decoder_layers=2,
        decoder_width=64,
        decoder_heads=4,
        **SIZES,
    ),
}
MODELS: dict[type, type[nn.Module]] = {
    TRDiTConfig: TRDiT,
    SiTConfig: SiT,
    MaskDiTConfig: MaskDiT,
}


def make_config(name: str, **changes: bool) -> Backbone:
    return CONFIGS[name].model_copy(update=changes)


def by_formula(config: Backbone, gamma: float, kernels: Kernels) -> Activations:
    text_tokens = TEXT if isinstance(config, TRDiTConfig) else 0
    return activations(config, BATCH, TOKENS, text_tokens, gamma, kernels)


def saved_bytes(config: Backbone, gamma: float, precision: str) -> int:
    """Of all memory that autograd keeps besides the weights, each piece once."""
    saved: dict[int, torch.UntypedStorage] = {}
    own: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    keep_ids = draw_keep_ids(0, "route", 0, torch.arange(BATCH), TOKENS, gamma) if gamma else None
    inputs = (torch.randn(BATCH, 4, SIDE, SIDE), torch.rand(BATCH))
    text_inputs = torch.randn(BATCH, TEXT, 96), torch.ones(BATCH, TEXT, dtype=torch.bool)
    model = MODELS[type(config)](config).to(DTYPES[precision])
    own.update(parameter.untyped_storage().data_ptr() for parameter in model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        condition = (
            model.prepare_text(*text_inputs) if isinstance(model, TRDiT) else torch.arange(BATCH)
        )
        internal = {"internal": True} if config.internal_after is not None else {}
        velocity = model(*inputs, condition, keep_ids, **internal)
    assert velocity.requires_grad
    if isinstance(model, TRDiT) and config.gradient_checkpointing:
        # blocks that will run again hold their arguments themselves
        for key_value in condition.keys_values:
            for tensor in key_value:
                keep(tensor)
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_formula_equals_what_autograd_saves(gamma: float, precision: str, name: str) -> None:
    config = make_config(name)
    formula = by_formula(config, gamma, Kernels.of(precision, on_gpu=False))
    assert formula.saved == pytest.approx(saved_bytes(config, gamma, precision), rel=0.01)
    assert formula.recomputed == 0


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_formula_equals_what_gradient_checkpointing_saves(
    gamma: float, precision: str, name: str
) -> None:
    config = make_config(name, gradient_checkpointing=True)
    kernels = Kernels.of(precision, on_gpu=False)
    formula = by_formula(config, gamma, kernels)
    assert formula.saved == pytest.approx(saved_bytes(config, gamma, precision), rel=0.05)
    assert formula.saved < by_formula(make_config(name), gamma, kernels).saved / 3


class FusedNorm(torch.autograd.Function):
    """RMSNorm that saves what a GPU's kernel does: its input and one number per row."""

    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor | None) -> Tensor:
        scale = x.float().square().mean(-1, keepdim=True).add(layers.NORM_EPSILON).rsqrt()
        ctx.save_for_backward(x, scale, weight)  # type: ignore[attr-defined]
        result = (x * scale).to(x.dtype)
        return result if weight is None else result * weight


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_formula_of_a_gpu_is_that_of_fused_kernels(
    gamma: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of a GPU's kernels: a fused norm, and torch's fused attention on the CPU."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def rms_norm(x: Tensor, shape: object, weight: Tensor | None, epsilon: float) -> Tensor:
        result = FusedNorm.apply(x, weight)
        assert isinstance(result, Tensor)
        return result

    monkeypatch.setattr(layers, "attend", attend)
    monkeypatch.setattr(sit_layers, "attend", attend)
    monkeypatch.setattr(F, "rms_norm", rms_norm)
    config = make_config(name)
    formula = by_formula(config, gamma, Kernels.of("bf16", on_gpu=True))
    assert formula.saved == pytest.approx(saved_bytes(config, gamma, "bf16"), rel=0.02)
