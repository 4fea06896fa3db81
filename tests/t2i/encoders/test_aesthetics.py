"""Proves that the aesthetic head has the published file's names and shapes and is one affine map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t2i.encoders.aesthetics import load_aesthetic_head, random_aesthetic_head

# Of sac+logos+ava1-l14-linearMSE.pth.
PUBLISHED_SHAPES = {
    "layers.0.weight": (1024, 768),
    "layers.0.bias": (1024,),
    "layers.2.weight": (128, 1024),
    "layers.2.bias": (128,),
    "layers.4.weight": (64, 128),
    "layers.4.bias": (64,),
    "layers.6.weight": (16, 64),
    "layers.6.bias": (16,),
    "layers.7.weight": (1, 16),
    "layers.7.bias": (1,),
}


def published(path: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        for name, shape in PUBLISHED_SHAPES.items()
    }
    torch.save(weights, path)
    return weights


def test_the_published_layers_in_their_order(tmp_path: Path) -> None:
    weights = published(tmp_path / "head.pth")
    head = load_aesthetic_head(tmp_path / "head.pth")
    x_BD = torch.nn.functional.normalize(torch.randn(5, 768), dim=1)
    expected = x_BD
    for number in (0, 2, 4, 6, 7):
        layer = weights[f"layers.{number}.weight"], weights[f"layers.{number}.bias"]
        expected = expected @ layer[0].T + layer[1]
    torch.testing.assert_close(head(x_BD), expected[:, 0], atol=1e-5, rtol=1e-5)
    assert len(head.weights_hash) == 64


def test_it_is_one_affine_map() -> None:
    head = random_aesthetic_head(0, 16)
    one, other = torch.randn(2, 16), torch.randn(2, 16)
    middle = head(0.25 * one + 0.75 * other)
    torch.testing.assert_close(middle, 0.25 * head(one) + 0.75 * head(other))


def test_what_is_not_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"get sac\+logos\+ava1-l14-linearMSE\.pth from http"
    ):
        load_aesthetic_head(tmp_path / "none.pth")
    weights = published(tmp_path / "head.pth")
    del weights["layers.6.bias"]
    torch.save(weights, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"head\.pth.*missing layers\.6\.bias"):
        load_aesthetic_head(tmp_path / "head.pth")
