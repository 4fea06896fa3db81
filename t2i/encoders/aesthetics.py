"""LAION's aesthetic predictor, version 2: how much people like a picture, from about 1 to 10.

Five linear layers on CLIP ViT-L/14's vector of length 1, without activations between them, so all
in all an affine map. Weights: sac+logos+ava1-l14-linearMSE.pth of christophschuhmann's
improved-aesthetic-predictor.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from t2i.encoders.random_weights import randomize
from t2i.encoders.weights_hash import file_hash
from t2i.models.storage import load_weights

WIDTHS = (768, 1024, 128, 64, 16, 1)
PUBLISHED_NAME = "sac+logos+ava1-l14-linearMSE.pth"
PUBLISHED_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth"
)


class AestheticHead(nn.Module):
    """The head; make it with `load_aesthetic_head` or `random_aesthetic_head`.

    Attributes:
        weights_hash: SHA-256 of the file, or "random-SEED".
    """

    def __init__(self, weights_hash: str, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.weights_hash = weights_hash
        layers: list[nn.Module] = []
        for number, (width, next_width) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(width, next_width))
            if number < 3:
                layers.append(nn.Dropout())  # there in training; the published names count them
        self.layers = nn.Sequential(*layers)

    def forward(self, embeddings_BD: Tensor) -> Tensor:
        """(B,) scores of (B, D) embeddings of length 1."""
        return self.layers(embeddings_BD).squeeze(1)


def load_aesthetic_head(path: Path) -> AestheticHead:
    """The head of a local file.

    Raises:
        FileNotFoundError: it is not there; says where it is published.
        ValueError: it holds tensors of other names or shapes.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no aesthetic head here; get {PUBLISHED_NAME} from {PUBLISHED_URL}"
        )
    head = AestheticHead(file_hash(path))
    load_weights(head, torch.load(path, map_location="cpu", weights_only=True), str(path))
    return head.eval().requires_grad_(False)


def random_aesthetic_head(seed: int, width: int) -> AestheticHead:
    """A head with random weights, for trying the way."""
    head = AestheticHead(f"random-{seed}", (width, *WIDTHS[1:]))
    randomize(head, seed)
    return head.eval().requires_grad_(False)
