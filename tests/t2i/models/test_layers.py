"""Proves norms, SwiGLU and attention against transformers' Llama modules and torch's own, and the
precision of time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

from t2i.models.layers import (
    CrossAttention,
    LowRankModulation,
    RMSNorm,
    SelfAttention,
    SwiGLU,
    TimeEmbedding,
    attend,
    rms_norm,
    time_sinusoids,
)
from t2i.models.rope import Rotation, text_rotation
from t2i.models.sit_layers import TimeEmbedding as SiTTimeEmbedding

WIDTH, HEADS, HEAD_WIDTH = 32, 2, 16
NO_ROTATION = Rotation(torch.ones(1, 1, 4), torch.zeros(1, 1, 4))


def test_rms_norm_equals_llama():
    ours, theirs = RMSNorm(WIDTH), LlamaRMSNorm(WIDTH, eps=1e-6)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = 3 * torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(ours(x), theirs(x))


def test_rms_norm_in_bf16_reduces_in_float32():
    x = torch.randn(64, 2048).bfloat16()
    exact = rms_norm(x.float())
    # one rounding to bf16 at the end: relative error at most 2**-8
    assert ((rms_norm(x).float() - exact).abs() <= exact.abs() * 2**-8).all()


def test_swiglu_equals_llama():
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=48, mlp_bias=False)
    ours, theirs = SwiGLU(WIDTH, 48), LlamaMLP(config)
    gate, up = ours.w1_w3.weight.chunk(2)
    theirs.load_state_dict(
        {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": ours.w2.weight}
    )
    x = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(ours(x), theirs(x))


def test_self_attention_equals_torchs_multi_head_attention_on_normalised_heads():
    ours = SelfAttention(WIDTH, HEADS)
    torch.nn.init.normal_(ours.qk_scale)
    x = torch.randn(2, 7, WIDTH)
    query, key, value = F.linear(x, ours.qkv.weight).unflatten(-1, (3, HEADS, -1)).unbind(2)
    normed = lambda head: head / (head.square().mean(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    query, key = normed(query) * ours.qk_scale[0], normed(key) * ours.qk_scale[1]
    scores = torch.einsum("bthc,blhc->bhtl", query, key) / HEAD_WIDTH**0.5
    mixed = torch.einsum("bhtl,blhc->bthc", scores.softmax(-1), value).flatten(2)
    torch.testing.assert_close(ours(x, NO_ROTATION), F.linear(mixed, ours.out.weight))


def test_self_attention_is_permutation_equivariant_with_its_positions():
    layer = SelfAttention(WIDTH, HEADS)
    x, angles = torch.randn(1, 7, WIDTH), torch.randn(7, HEADS, 4)
    order = torch.randperm(7)
    plain = layer(x, Rotation(angles.cos(), angles.sin()))
    permuted = layer(x[:, order], Rotation(angles[order].cos(), angles[order].sin()))
    torch.testing.assert_close(permuted, plain[:, order])


@pytest.mark.parametrize("masked", [False, True])
def test_written_out_bf16_attention_equals_the_fused_one(masked):
    query, key, value = (torch.randn(2, HEADS, 9, HEAD_WIDTH) for _ in range(3))
    mask = torch.rand(2, 1, 1, 9) < 0.7 if masked else None
    low = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    exact = attend(query, key, value, mask)
    torch.testing.assert_close(low.float(), exact, atol=0.03, rtol=0.02)


def test_cross_attention_starts_at_zero_and_reads_unmasked_text_only():
    layer = CrossAttention(WIDTH, HEADS)
    x, text = torch.randn(2, 7, WIDTH), torch.randn(2, 5, WIDTH)
    mask = torch.tensor([True, True, True, False, False]).expand(2, 1, 1, 5)
    assert not layer(x, layer.project_text(text), mask).any()
    torch.nn.init.normal_(layer.out.weight)
    full = layer(x, layer.project_text(text), mask)
    short = layer(x, layer.project_text(text[:, :3]), mask[..., :3])
    torch.testing.assert_close(full, short)


def test_modulation_starts_at_zero_and_is_a_product_of_two_matrices():
    layer = LowRankModulation(WIDTH, 4, count=6)
    time = torch.randn(3, WIDTH)
    parts = layer(time)
    assert len(parts) == 6
    assert not torch.cat(parts).any()
    torch.nn.init.normal_(layer.up.weight)
    expected = time @ (layer.up.weight @ layer.down.weight).T
    torch.testing.assert_close(torch.cat(layer(time), dim=-1).squeeze(1), expected)


def test_time_sinusoids_span_from_one_period_in_the_interval_to_hundreds():
    sinusoids = time_sinusoids(torch.tensor([0.0, 0.5]))
    assert sinusoids.shape == (2, 256)
    assert torch.equal(sinusoids[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    torch.testing.assert_close(sinusoids[1, 0], torch.tensor(500.0).cos())


@pytest.mark.parametrize(
    ("embedding", "scale"), [(TimeEmbedding(WIDTH), 1000.0), (SiTTimeEmbedding(WIDTH), 1.0)]
)
def test_time_of_a_bf16_network_becomes_sinusoids_in_float32(embedding, scale):
    """bf16 rounds t = 0.7004 to 0.6992, 1.2 radians at the highest frequency, and DiT's step 999 to
    1000: only the sinusoids may be rounded, so what the first linear reads is held to that."""
    low, seen = copy.deepcopy(embedding).bfloat16(), []
    low.hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    timestep = torch.tensor([0.7004, 0.123, 999.0 if scale == 1 else 0.999])
    low(timestep)
    frequencies = 10_000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    angles = scale * timestep.double()[:, None] * frequencies
    exact = torch.cat([angles.cos(), angles.sin()], dim=-1)
    assert seen[0].dtype == torch.bfloat16
    # one rounding to bf16, and float32 angles of up to 1000
    assert ((seen[0].double() - exact).abs() <= exact.abs() * 2**-8 + 5e-4).all()


def test_self_attention_equals_qwen3_which_is_llama_with_normalised_heads():
    config = Qwen3Config(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_WIDTH,
        attention_bias=False,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    ours, theirs = SelfAttention(WIDTH, HEADS), Qwen3Attention(config, layer_idx=0)
    torch.nn.init.normal_(ours.qk_scale)
    query, key, value = ours.qkv.weight.chunk(3)
    theirs.load_state_dict(
        {
            "q_proj.weight": query,
            "k_proj.weight": key,
            "v_proj.weight": value,
            "o_proj.weight": ours.out.weight,
            "q_norm.weight": ours.qk_scale[0],
            "k_norm.weight": ours.qk_scale[1],
        }
    )
    x = torch.randn(2, 7, WIDTH)
    positions = Qwen3RotaryEmbedding(config)(x, torch.arange(7)[None])
    expected, _ = theirs(x, positions, attention_mask=None)
    rotation = text_rotation(7, HEAD_WIDTH, torch.device("cpu"))
    torch.testing.assert_close(ours(x, rotation), expected)
