"""Proves LPIPS: 0 of equal pictures, symmetric, equal to a forward written from the paper, with the
published files' names, and as it was at seeded weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.evaluation.lpips import Lpips, load_lpips, random_lpips

# torchvision's numbers of VGG-16's convolutions, and after which of them a group ends
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
ENDS = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def network() -> Lpips:
    return random_lpips(0)


def pictures(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def reference(weights: dict[str, Tensor], one: Tensor, other: Tensor) -> Tensor:
    """From the paper's equation 1, layer by layer."""
    total = torch.zeros(len(one))
    states = []
    for images in (one, other):
        shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        states.append((images - shift) / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
    group = 0
    for number in CONVOLUTIONS:
        if number in (5, 10, 17, 24):
            states = [F.max_pool2d(x, 2, 2) for x in states]
        layer = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
        states = [F.conv2d(x, *layer, padding=1).relu() for x in states]
        if number in ENDS:
            units = [x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in states]
            squares = (units[0] - units[1]).pow(2)
            weighted = squares * weights[f"heads.{group}"].view(1, -1, 1, 1)
            total += weighted.sum(1).mean((1, 2))
            group += 1
    return total


def test_equal_pictures_and_the_other_way_round(network: Lpips) -> None:
    one, other = pictures(0), pictures(1)
    assert network(one, one).abs().max() == 0
    assert torch.equal(network(one, other), network(other, one))
    assert (network(one, other) > 0.01).all()


def test_it_is_the_papers_equation(network: Lpips) -> None:
    one, other = pictures(0), pictures(1)
    expected = reference(dict(network.state_dict()), one, other)
    torch.testing.assert_close(network(one, other), expected, atol=1e-6, rtol=1e-5)


def test_seeded_weights_give_what_they_gave(network: Lpips) -> None:
    found = network(pictures(0), pictures(1))
    torch.testing.assert_close(found, torch.tensor(GOLDEN), atol=1e-5, rtol=1e-4)


GOLDEN = [0.105026, 0.103118]


def test_the_published_files_fit(network: Lpips, tmp_path: Path) -> None:
    """torchvision's file has a classifier, too; the package's heads are 1 x 1 convolutions."""
    state = network.state_dict()
    trunk = {name: values for name, values in state.items() if name.startswith("features.")}
    assert sorted(trunk) == sorted(
        f"features.{number}.{kind}" for number in CONVOLUTIONS for kind in ("weight", "bias")
    )
    torch.save({**trunk, "classifier.0.bias": torch.zeros(1)}, tmp_path / "vgg16.pth")
    heads = {f"lin{i}.model.1.weight": state[f"heads.{i}"].view(1, -1, 1, 1) for i in range(5)}
    torch.save(heads, tmp_path / "vgg.pth")
    loaded = load_lpips(tmp_path / "vgg16.pth", tmp_path / "vgg.pth")
    assert torch.equal(loaded(pictures(0), pictures(1)), network(pictures(0), pictures(1)))
    assert not loaded.is_published
    with pytest.raises(FileNotFoundError, match=r"get vgg16-397923af\.pth from https"):
        load_lpips(tmp_path / "none.pth", tmp_path / "vgg.pth")
