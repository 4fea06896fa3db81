"""Proves that TR-DiT is the network of the paper: it equals a forward pass written anew below.

The reference takes nothing from the model but its weights. It runs one sample at a time, on its own
text tokens and on the tokens that it keeps, so that it needs neither padding nor masks, and in
float64 throughout. That each part of the model matters here is what `python -m tests.mutants` shows.

Shape suffixes: T image tokens or those kept, L text tokens, D width, E text width, H heads, C head
width, R rotated pairs per head, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from einops import rearrange
from torch import Tensor

from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig

Weights = Mapping[str, Tensor]


def part(weights: Weights, name: str) -> Weights:
    """The weights of a part of the model, under their names within it."""
    start = f"{name}."
    return {key.removeprefix(start): w for key, w in weights.items() if key.startswith(start)}


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def swiglu(weights: Weights, x_TD: Tensor) -> Tensor:
    gate, value = (x_TD @ weights["w1_w3.weight"].T).chunk(2, dim=-1)
    return (silu(gate) * value) @ weights["w2.weight"].T


def turn(x_HTC: Tensor, angles_HTR: Tensor) -> Tensor:
    """Channels i and i + R are a complex number; channels from 2R on stand still."""
    pairs = angles_HTR.shape[-1]
    turned = torch.complex(x_HTC[..., :pairs], x_HTC[..., pairs : 2 * pairs])
    turned = turned * torch.polar(torch.ones_like(angles_HTR), angles_HTR)
    return torch.cat([turned.real, turned.imag, x_HTC[..., 2 * pairs :]], dim=-1)


def mix(query_HTC: Tensor, key_HLC: Tensor, value_HLC: Tensor) -> Tensor:
    scores_HTL = torch.einsum("htc,hlc->htl", query_HTC, key_HLC) / query_HTC.shape[-1] ** 0.5
    return rearrange(scores_HTL.softmax(-1) @ value_HLC, "h t c -> t (h c)")


def self_attention(weights: Weights, heads: int, x_TD: Tensor, angles_HTR: Tensor) -> Tensor:
    qkv = rearrange(x_TD @ weights["qkv.weight"].T, "t (n h c) -> n h t c", n=3, h=heads)
    query, key = (turn(rms(qkv[n]) * weights["qk_scale"][n], angles_HTR) for n in (0, 1))
    return mix(query, key, qkv[2]) @ weights["out.weight"].T


def cross_attention(weights: Weights, heads: int, x_TD: Tensor, text_LD: Tensor) -> Tensor:
    query = rearrange(x_TD @ weights["query.weight"].T, "t (h c) -> h t c", h=heads)
    kv = rearrange(text_LD @ weights["key_value.weight"].T, "l (n h c) -> n h l c", n=2, h=heads)
    query, key = rms(query) * weights["query_scale"], rms(kv[0]) * weights["key_scale"]
    return mix(query, key, kv[1]) @ weights["out.weight"].T


def block(
    weights: Weights, heads: int, x_TD: Tensor, time_D: Tensor, angles_HTR: Tensor, text_LD: Tensor
) -> Tensor:
    low_rank = weights["modulation.up.weight"] @ (weights["modulation.down.weight"] @ time_D)
    shift1, scale1, gate1, shift2, scale2, gate2 = low_rank.chunk(6)
    modulated = rms(x_TD) * (1 + scale1) + shift1
    attention = part(weights, "self_attention")
    x_TD = x_TD + gate1 * self_attention(attention, heads, modulated, angles_HTR)
    normed = rms(x_TD) * weights["cross_norm.weight"]
    x_TD = x_TD + cross_attention(part(weights, "cross_attention"), heads, normed, text_LD)
    return x_TD + gate2 * swiglu(part(weights, "ffn"), rms(x_TD) * (1 + scale2) + shift2)


def refine(weights: Weights, config: TRDiTConfig, states_LE: Tensor) -> Tensor:
    x_LD = (rms(states_LE) * weights["input_norm.weight"]) @ weights["input.weight"].T
    positions = torch.arange(len(states_LE), dtype=torch.float64)
    pairs = config.width // config.num_heads // 2
    frequencies = torch.tensor([10_000 ** (-i / pairs) for i in range(pairs)], dtype=torch.float64)
    angles_HLR = torch.outer(positions, frequencies).expand(config.num_heads, -1, -1)
    for number in range(config.num_refiner_layers):
        layer = part(weights, f"blocks.{number}")
        normed = rms(x_LD) * layer["attention_norm.weight"]
        attention = part(layer, "attention")
        x_LD = x_LD + self_attention(attention, config.num_heads, normed, angles_HLR)
        x_LD = x_LD + swiglu(part(layer, "ffn"), rms(x_LD) * layer["ffn_norm.weight"])
    return rms(x_LD) * weights["norm.weight"]


def embed_number(weights: Weights, number: float) -> Tensor:
    """Cosines and sines, then the MLP; a float32 time keeps its angles of up to 1,000 in float32."""
    frequencies = 10_000 ** (-torch.arange(128, dtype=torch.float32) / 128)
    angles = 1000 * torch.tensor(number, dtype=torch.float32) * frequencies
    waves = torch.cat([angles.cos(), angles.sin()]).double()
    return weights["out.weight"] @ silu(weights["hidden.weight"] @ waves)


def centres(count: int, span: int) -> Tensor:
    """Of `count` tokens in a row, around 0; `span` tokens reach from -1 to 1."""
    return torch.tensor([(2 * i + 1 - count) / span for i in range(count)], dtype=torch.float64)


def axial_angles(config: TRDiTConfig, height: int, width: int) -> Tensor:
    """(H, T, R): the longer side spans [-1, 1]; y turns the first half of the pairs, x the second."""
    heads, longer = config.num_heads, max(height, width)
    own = config.width // heads // 8
    log10 = torch.arange(own * heads, dtype=torch.float64) / (own * heads)
    frequencies_HF = (math.pi * 10**log10).view(own, heads).T
    y_T = centres(height, longer).repeat_interleave(width)
    x_T = centres(width, longer).repeat(height)
    return torch.cat([torch.einsum("t,hf->htf", side, frequencies_HF) for side in (y_T, x_T)], -1)


def absolute(width_of_model: int, smallest_grid: int, height: int, width: int) -> Tensor:
    """(T, D): each side spans [-1, 1]; sines and cosines of y, then those of x."""
    count, lowest = width_of_model // 4, math.pi / 2
    highest = min(math.pi * smallest_grid / 2, 10 * math.pi)
    powers = torch.arange(count, dtype=torch.float64) / count
    frequencies_F = lowest * (highest / lowest) ** powers
    y_TF = torch.outer(centres(height, height).repeat_interleave(width), frequencies_F)
    x_TF = torch.outer(centres(width, width).repeat(height), frequencies_F)
    return torch.cat([y_TF.sin(), y_TF.cos(), x_TF.sin(), x_TF.cos()], dim=-1)


def reference(
    weights: Weights,
    config: TRDiTConfig,
    latents_CHW: Tensor,
    timestep: float,
    states_LE: Tensor,
    kept: Sequence[Tensor] | None = None,
    guidance_scale: float | None = None,
) -> Tensor:
    """The velocity of one sample; `kept`: ids of the tokens that run each route, None = dense."""
    height, width = (side // config.patch_size for side in latents_CHW.shape[1:])
    side = {"p": config.patch_size, "q": config.patch_size}
    patches = rearrange(latents_CHW, "c (h p) (w q) -> (h w) (c p q)", **side)
    x_TD = patches @ weights["patch.weight"].T
    if config.smallest_grid is not None:
        x_TD = x_TD + absolute(config.width, config.smallest_grid, height, width)
    time_D = embed_number(part(weights, "time"), timestep)
    if guidance_scale is not None:
        time_D = time_D + embed_number(part(weights, "scale"), guidance_scale)
    time_D = silu(time_D)
    text_LD = refine(part(weights, "refiner"), config, states_LE)
    angles_HTR = axial_angles(config, height, width)

    for layer in range(config.num_layers):
        run = torch.arange(height * width)
        for number, (first, last) in enumerate(config.routes):
            if kept is not None and first <= layer <= last:
                run = kept[number]
        own = part(weights, f"blocks.{layer}")
        x_TD[run] = block(own, config.num_heads, x_TD[run], time_D, angles_HTR[:, run], text_LD)

    shift, scale = (weights["head.modulation.weight"] @ time_D).chunk(2)
    patches = (rms(x_TD) * (1 + scale) + shift) @ weights["head.out.weight"].T
    return rearrange(patches, "(h w) (c p q) -> c (h p) (w q)", h=height, **side)


SIZES: dict[str, object] = {
    "num_layers": 5,
    "width": 64,
    "num_heads": 2,
    "text_width": 24,
    "adaln_rank": 8,
}
POSITIONS: dict[str, dict[str, object]] = {
    "rope": {"positions": "rope"},
    "rope+absolute": {"positions": "rope+absolute", "smallest_grid": 4},
}
TIMES, SCALES, LENGTHS = (0.1, 0.5, 0.9), (0.0, 1.0, 1.5), (6, 4, 1)
ONE_ROUTE, TWO_ROUTES = ((1, 3),), ((0, 1), (3, 3))


def random_model(routes: Sequence[tuple[int, int]], **changes: object) -> TRDiT:
    """In float64, with a value for every weight: those that start at zero or one, too."""
    torch.manual_seed(0)
    model = TRDiT(TRDiTConfig.model_validate({**SIZES, "routes": routes, **changes})).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def draw(num_tokens: int, num_kept: Sequence[int], seed: int) -> list[Tensor]:
    """For each sample, ascending ids of as many tokens as it keeps."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [torch.randperm(num_tokens, generator=generator) for _ in num_kept]
    return [ids[:count].sort().values for ids, count in zip(shuffled, num_kept, strict=True)]


@torch.no_grad()
def check(
    model: TRDiT,
    grid: tuple[int, int],
    kept: Sequence[Sequence[Tensor]] | None = None,
    keep_ids: Tensor | None = None,
    keep_mask: Tensor | None = None,
    scales: Sequence[float] | None = None,
) -> None:
    """A batch of the model against samples of the reference; `kept`: by route, then by sample."""
    torch.manual_seed(1)
    sides = (side * model.config.patch_size for side in grid)
    latents_BCHW = torch.randn(3, model.config.in_channels, *sides, dtype=torch.float64)
    states_BLE = torch.randn(3, max(LENGTHS), model.config.text_width, dtype=torch.float64)
    mask_BL = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    velocity_BCHW = model(
        latents_BCHW,
        torch.tensor(TIMES),
        model.prepare_text(states_BLE, mask_BL),
        keep_ids,
        keep_mask,
        guidance_scale_B=None if scales is None else torch.tensor(scales),
    )
    for i in range(3):
        expected_CHW = reference(
            model.state_dict(),
            model.config,
            latents_BCHW[i],
            TIMES[i],
            states_BLE[i, : LENGTHS[i]],
            None if kept is None else [route[i] for route in kept],
            None if scales is None else scales[i],
        )
        torch.testing.assert_close(velocity_BCHW[i], expected_CHW, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0, 0.5, 0.8])
@pytest.mark.parametrize("grid", [(4, 6), (5, 2), (4, 4)], ids=["4x6", "5x2", "4x4"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_model_of_one_route(positions: str, grid: tuple[int, int], gamma: float) -> None:
    model = random_model(ONE_ROUTE, **POSITIONS[positions])
    num_tokens = grid[0] * grid[1]
    kept = draw(num_tokens, 3 * [num_tokens - math.floor(gamma * num_tokens)], seed=2)
    check(model, grid, *(([kept], torch.stack(kept)) if gamma else ()))


@pytest.mark.parametrize("draw_per_route", [False, True])
def test_a_model_of_several_routes(draw_per_route: bool) -> None:
    model = random_model(TWO_ROUTES, draw_per_route=draw_per_route)
    first, second = (draw(24, (12, 12, 12), seed) for seed in (2, 3))
    if draw_per_route:
        check(model, (4, 6), [first, second], torch.stack([*first, *second]).view(2, 3, 12))
    else:
        check(model, (4, 6), [first, first], torch.stack(first))


def test_samples_that_keep_different_numbers_of_tokens() -> None:
    kept = draw(24, (24, 12, 5), seed=2)
    every = torch.arange(24).expand(3, -1)
    is_kept = torch.stack([torch.isin(ids, own) for ids, own in zip(every, kept, strict=True)])
    check(random_model(ONE_ROUTE), (4, 6), [kept], every, is_kept)


def test_a_model_with_the_guidance_scale_as_an_input() -> None:
    check(random_model(ONE_ROUTE, scale_input=True), (4, 6), scales=SCALES)


def test_a_patch_of_another_size_and_other_channels() -> None:
    check(random_model(ONE_ROUTE, patch_size=3, in_channels=2), (3, 4))
