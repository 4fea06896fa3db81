"""LPIPS: how different two pictures look, by the features of VGG-16.

(Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018;
version 0.1, network "vgg".) After five groups of layers each place's channels are made of length 1;
squared differences, weighted by channel, are averaged over places and summed over the groups.

Shapes: B batch, H x W pixels or places, C channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.encoders.random_weights import randomize
from t2i.encoders.weights_hash import file_hash
from t2i.models.storage import load_weights

# Channels of each convolution, group by group; a group but the first begins with a 2 x 2 max pool.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
TAPS = (3, 8, 15, 22, 29)  # torchvision's numbers of the layers after which groups end
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TRUNK_NAME, TRUNK_HASH = "vgg16-397923af.pth", "397923af"  # the hash's first digits
TRUNK_URL = f"https://download.pytorch.org/models/{TRUNK_NAME}"
HEADS_NAME = "lpips/weights/v0.1/vgg.pth of the package lpips"


class Lpips(nn.Module):
    """The distance; make it with `load_lpips` or `random_lpips`.

    Attributes:
        weights_hash: hash of the trunk's file and of the heads', or "random-SEED".
        is_published: whether the trunk is torchvision's.
    """

    def __init__(self, weights_hash: str, is_published: bool) -> None:
        super().__init__()
        self.weights_hash, self.is_published = weights_hash, is_published
        layers: list[nn.Module] = []
        width = 3
        for number, group in enumerate(GROUPS):
            if number:
                layers.append(nn.MaxPool2d(2))
            for next_width in group:
                layers += [nn.Conv2d(width, next_width, 3, padding=1), nn.ReLU()]
                width = next_width
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(group[-1])) for group in GROUPS)

    def forward(self, one_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
        """(B,) distances, 0 for equal pictures, symmetric.

        Args:
            one_B3HW, other_B3HW: RGB in [-1, 1], 16 pixels a side or more.
        """
        pairs = zip(self.trunk(one_B3HW), self.trunk(other_B3HW), strict=True)
        return torch.stack(
            [
                torch.einsum("bchw,c->bhw", (one - other).square(), head).mean(dim=(1, 2))
                for (one, other), head in zip(pairs, self.heads, strict=True)
            ]
        ).sum(dim=0)

    def trunk(self, images_B3HW: Tensor) -> list[Tensor]:
        """After each group (B, C, H, W) with channels of length 1."""
        shift, scale = (images_B3HW.new_tensor(of).view(1, 3, 1, 1) for of in (SHIFT, SCALE))
        x, found = (images_B3HW - shift) / scale, []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in TAPS:
                found.append(F.normalize(x, dim=1, eps=1e-10))
        return found


def load_lpips(trunk: Path, heads: Path) -> Lpips:
    """LPIPS with torchvision's VGG-16 and the heads of the package lpips, both local files.

    Raises:
        FileNotFoundError: one is not there; says where it is published.
        ValueError: tensors of other names or shapes.
    """
    for path, source in ((trunk, f"{TRUNK_NAME} from {TRUNK_URL}"), (heads, HEADS_NAME)):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no weights here; get {source}")
    trunk_hash = file_hash(trunk)
    network = Lpips(f"{trunk_hash}+{file_hash(heads)}", trunk_hash.startswith(TRUNK_HASH))
    weights = torch.load(trunk, map_location="cpu", weights_only=True)
    of_trunk = {name: weights[name] for name in weights if name.startswith("features.")}
    loaded = torch.load(heads, map_location="cpu", weights_only=True)
    of_heads = {
        f"heads.{name[3]}": values.flatten()
        for name, values in loaded.items()
        if name.startswith("lin")
    }
    load_weights(network, of_trunk | of_heads, f"{trunk}, {heads}")
    return network.eval().requires_grad_(False)


def random_lpips(seed: int) -> Lpips:
    """LPIPS with random weights, for trying the way; its heads are not negative, as real ones."""
    network = Lpips(f"random-{seed}", is_published=False)
    randomize(network, seed)
    with torch.no_grad():
        for head in network.heads:
            head.abs_()
    return network.eval().requires_grad_(False)
