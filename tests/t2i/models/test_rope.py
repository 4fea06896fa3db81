"""Proves the axial rotation against numbers worked out by hand and by its defining properties."""

import math

import torch

from t2i.models.rope import (
    Rotation,
    axial_frequencies,
    axial_positions,
    axial_rotation,
    rotate,
    text_rotation,
)

CPU = torch.device("cpu")
HEADS, HEAD_WIDTH = 2, 16


def test_positions_are_token_centres_and_the_shorter_side_is_shrunk():
    positions = axial_positions(2, 4, CPU)
    assert positions.shape == (8, 2)
    torch.testing.assert_close(positions[:4, 1], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    torch.testing.assert_close(positions[[0, 4], 0], torch.tensor([-0.25, 0.25]))
    assert torch.equal(axial_positions(4, 2, CPU)[0], torch.tensor([-0.75, -0.25]))


def test_frequencies_are_log_spaced_and_every_head_has_its_own():
    frequencies = axial_frequencies(HEADS, HEAD_WIDTH, CPU)
    assert frequencies.shape == (HEADS, HEAD_WIDTH // 8)
    expected = [[math.pi, math.pi * 10**0.5], [math.pi * 10**0.25, math.pi * 10**0.75]]
    torch.testing.assert_close(frequencies, torch.tensor(expected))


def test_angles_are_position_times_frequency_first_by_row_then_by_column():
    rotation = axial_rotation(2, 4, HEADS, HEAD_WIDTH, CPU)
    frequencies = axial_frequencies(HEADS, HEAD_WIDTH, CPU)
    token, head = 6, 1  # row 1, column 2: centre (0.25, 0.25)
    angles = torch.cat([0.25 * frequencies[head], 0.25 * frequencies[head]])
    torch.testing.assert_close(rotation.cos[token, head], angles.cos())
    torch.testing.assert_close(rotation.sin[token, head], angles.sin())
    corner = torch.cat([-0.25 * frequencies[head], -0.75 * frequencies[head]])
    torch.testing.assert_close(rotation.sin[0, head], corner.sin())


def test_half_of_the_channels_turn_and_half_stay():
    x = torch.randn(3, 8, HEADS, HEAD_WIDTH)
    rotated = rotate(x, axial_rotation(2, 4, HEADS, HEAD_WIDTH, CPU))
    half = HEAD_WIDTH // 2
    assert torch.equal(rotated[..., half:], x[..., half:])
    assert (rotated[..., :half] != x[..., :half]).all()
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


def test_products_of_queries_and_keys_depend_on_the_offset_only():
    query, key = torch.randn(HEADS, HEAD_WIDTH), torch.randn(HEADS, HEAD_WIDTH)
    rotation = axial_rotation(4, 4, HEADS, HEAD_WIDTH, CPU)
    queries = rotate(query.expand(16, -1, -1), rotation).unflatten(0, (4, 4))
    keys = rotate(key.expand(16, -1, -1), rotation).unflatten(0, (4, 4))
    product = lambda a, b: (queries[a] * keys[b]).sum(-1)  # noqa: E731
    torch.testing.assert_close(product((0, 0), (1, 2)), product((2, 1), (3, 3)))
    assert not torch.allclose(product((0, 0), (1, 2)), product((0, 0), (2, 1)))


def test_rotation_equals_multiplication_of_complex_numbers():
    x = torch.randn(5, 1, 6)
    angles = torch.randn(5, 1, 3)
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones(()), angles)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(x, Rotation(angles.cos(), angles.sin())), expected)


def test_text_rotation_is_that_of_llama():
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=HEAD_WIDTH, num_attention_heads=1)
    x = torch.randn(1, 7, 1, HEAD_WIDTH)
    cos, sin = LlamaRotaryEmbedding(config)(x, torch.arange(7)[None])
    expected, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    actual = rotate(x, text_rotation(7, HEAD_WIDTH, CPU))
    torch.testing.assert_close(actual.transpose(1, 2), expected)
