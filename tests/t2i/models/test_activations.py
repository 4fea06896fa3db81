"""Proves the formula of saved activations: autograd's own list of what it saves has as many bytes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.models import layers
from t2i.models.activations import Kernels, activations
from t2i.models.routing import draw_keep_ids
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig

BATCH, SIDE, TEXT = 2, 32, 32
TOKENS = (SIDE // 2) ** 2
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_config(checkpointing: bool = False) -> TRDiTConfig:
    return TRDiTConfig(
        num_layers=5,
        width=128,
        num_heads=4,
        text_width=96,
        adaln_rank=16,
        routes=((1, 3),),
        gradient_checkpointing=checkpointing,
    )


def saved_bytes(config: TRDiTConfig, gamma: float, precision: str) -> int:
    """Of all memory that autograd keeps besides the weights, each piece once."""
    model = TRDiT(config).to(DTYPES[precision])
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    keep_ids = draw_keep_ids(0, "route", 0, torch.arange(BATCH), TOKENS, gamma) if gamma else None
    states, mask = torch.randn(BATCH, TEXT, 96), torch.ones(BATCH, TEXT, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        text = model.prepare_text(states, mask)
        velocity = model(torch.randn(BATCH, 4, SIDE, SIDE), torch.rand(BATCH), text, keep_ids)
    assert velocity.requires_grad
    if config.gradient_checkpointing:  # blocks that will run again hold their arguments themselves
        for key_value in text.keys_values:
            for tensor in key_value:
                keep(tensor)
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_formula_equals_what_autograd_saves(gamma: float, precision: str) -> None:
    config = make_config()
    kernels = Kernels.of(precision, on_gpu=False)
    formula = activations(config, BATCH, TOKENS, TEXT, gamma, kernels)
    assert formula.saved == pytest.approx(saved_bytes(config, gamma, precision), rel=0.01)
    assert formula.recomputed == 0


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_formula_equals_what_gradient_checkpointing_saves(gamma: float, precision: str) -> None:
    config = make_config(checkpointing=True)
    kernels = Kernels.of(precision, on_gpu=False)
    formula = activations(config, BATCH, TOKENS, TEXT, gamma, kernels)
    assert formula.saved == pytest.approx(saved_bytes(config, gamma, precision), rel=0.1)
    assert formula.saved < activations(make_config(), BATCH, TOKENS, TEXT, gamma, kernels).saved / 3


class FusedNorm(torch.autograd.Function):
    """RMSNorm that saves what a GPU's kernel does: its input and one number per row."""

    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor | None) -> Tensor:
        scale = x.float().square().mean(-1, keepdim=True).add(layers.NORM_EPSILON).rsqrt()
        ctx.save_for_backward(x, scale, weight)  # type: ignore[attr-defined]
        result = (x * scale).to(x.dtype)
        return result if weight is None else result * weight


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_formula_of_a_gpu_is_that_of_fused_kernels(
    gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of a GPU's kernels: a fused norm, and torch's fused attention on the CPU."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def rms_norm(x: Tensor, shape: object, weight: Tensor | None, epsilon: float) -> Tensor:
        result = FusedNorm.apply(x, weight)
        assert isinstance(result, Tensor)
        return result

    monkeypatch.setattr(layers, "attend", attend)
    monkeypatch.setattr(F, "rms_norm", rms_norm)
    config = make_config()
    formula = activations(config, BATCH, TOKENS, TEXT, gamma, Kernels.of("bf16", on_gpu=True))
    assert formula.saved == pytest.approx(saved_bytes(config, gamma, "bf16"), rel=0.02)
