"""The Inception network of FID, sFID, IS, precision and recall, as in ADM's and TTUR's evaluations.

It is the TensorFlow graph of 2015-12-05 (1008 outputs) with the weights that pytorch-fid publishes;
torch-fidelity's file is the same, byte for byte. Scores are comparable only with these weights,
this resize and these activations:

    graph             here
    pool_3:0          pool3: means over 8 x 8 places after Mixed_7c
    mixed_6/conv:0    spatial: after batch norm and ReLU of Mixed_6d.branch1x1, first 7 channels.
                      The graph counts its blocks mixed, mixed_1, ... mixed_10 from Mixed_5b on, and
                      a node with a scope's plain name is the ReLU that ends it (before it come
                      Conv2D, batchnorm, CheckNumerics, control_dependency).
    softmax's input   logits: pool3 times the weights of fc; ADM's evaluator adds no bias

No pixel goes through anything but the graph's own resize: see `resize_bilinear_tf1`.

Shapes: B batch, H x W pixels or places, C channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from t2i.evaluation.inception_blocks import BasicConv2d, BlockA, BlockB, BlockC, BlockD, BlockE
from t2i.models.storage import load_weights

INPUT_SIZE = 299
NUM_CLASSES = 1008
NUM_SPATIAL_CHANNELS = 7
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PUBLISHED_NAME = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED_URL = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{PUBLISHED_NAME}"
)


@dataclass(frozen=True)
class InceptionFeatures:
    """What metrics need of a batch; floats of the weights' dtype.

    Attributes:
        pool3: (B, 2048).
        spatial: (B, 2023): 17 rows x 17 columns x 7 channels, flattened in this order.
        logits: (B, 1008), without bias.
    """

    pool3: Tensor
    spatial: Tensor
    logits: Tensor


class FIDInception(nn.Module):
    """The network; make it with `load_inception` or `random_inception`.

    Attributes:
        weights_hash: where the weights are from: a file's SHA-256, or "random-SEED".
    """

    def __init__(self, weights_hash: str) -> None:
        super().__init__()
        self.weights_hash = weights_hash
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, (3, 3), stride=2, valid=True)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, (3, 3), valid=True)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, (3, 3), valid=True)
        self.Mixed_5b = BlockA(192, pool_channels=32)
        self.Mixed_5c = BlockA(256, pool_channels=64)
        self.Mixed_5d = BlockA(288, pool_channels=64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, inner=128)
        self.Mixed_6c = BlockC(768, inner=160)
        self.Mixed_6d = BlockC(768, inner=160)
        self.Mixed_6e = BlockC(768, inner=192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, pool="average")
        self.Mixed_7c = BlockE(2048, pool="max")
        self.fc = nn.Linear(2048, NUM_CLASSES)

    @property
    def is_comparable(self) -> bool:
        """Whether scores may stand beside those of papers: the weights are the published ones."""
        return self.weights_hash == PUBLISHED_SHA256

    def forward(self, images_B3HW: Tensor) -> InceptionFeatures:
        """The features of pictures of one size.

        Args:
            images_B3HW: RGB, uint8, or floats in [0, 255].

        Raises:
            ValueError: another shape, or whole numbers of another kind.
        """
        x = preprocess(images_B3HW, self.fc.weight.dtype)  # 3 x 299 x 299
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, kernel_size=3, stride=2)  # 64 x 73 x 73
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, kernel_size=3, stride=2)  # 192 x 35 x 35
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # 768 x 17 x 17
        x = self.Mixed_6d(x)
        # Its first branch comes first, so these are channels of mixed_6/conv:0.
        spatial_BHWC = x[:, :NUM_SPATIAL_CHANNELS].permute(0, 2, 3, 1)
        x = self.Mixed_6e(x)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # 2048 x 8 x 8
        pool3_BC = x.mean(dim=(2, 3))
        return InceptionFeatures(
            pool3=pool3_BC,
            spatial=spatial_BHWC.flatten(1),
            logits=pool3_BC @ self.fc.weight.T,
        )


def preprocess(images_B3HW: Tensor, dtype: torch.dtype) -> Tensor:
    """The graph's first nodes: resize to 299 x 299, then (x - 128) / 128.

    Args:
        images_B3HW: uint8, or floats in [0, 255].

    Returns:
        (B, 3, 299, 299) of ``dtype``, in [-1, 1).

    Raises:
        ValueError: another shape, or whole numbers of another kind.
    """
    if images_B3HW.ndim != 4 or images_B3HW.shape[1] != 3:
        raise ValueError(
            f"pictures must be a batch of shape (B, 3, H, W), not {tuple(images_B3HW.shape)}"
        )
    if images_B3HW.dtype != torch.uint8 and not images_B3HW.is_floating_point():
        raise ValueError(f"pictures must be uint8 or floats in [0, 255], not {images_B3HW.dtype}")
    return (resize_bilinear_tf1(images_B3HW.to(dtype), INPUT_SIZE) - 128) / 128


def resize_bilinear_tf1(x_BCHW: Tensor, size: int) -> Tensor:
    """TensorFlow 1's ResizeBilinear with align_corners=False, to ``size`` x ``size``.

    Pixel i of the result looks at i * in / out, without the half pixel that later conventions add
    (so that the picture is moved a little), and mixes the two nearest of the source in each
    direction, however much it shrinks (no antialiasing). A picture of that size stays as it is.

    Source: tensorflow r1.15, core/kernels/resize_bilinear_op.cc and image_resizer_state.h.
    """
    x_BCHW = _mix_neighbours(x_BCHW, 3, size)
    return _mix_neighbours(x_BCHW, 2, size)


def _mix_neighbours(x_BCHW: Tensor, dim: int, size: int) -> Tensor:
    """Resize along one dimension; places are computed in float32, as there."""
    old_size = x_BCHW.shape[dim]
    if old_size == size:
        return x_BCHW
    scale = torch.tensor(old_size / size, dtype=torch.float32, device=x_BCHW.device)
    place_N = torch.arange(size, dtype=torch.float32, device=x_BCHW.device) * scale
    low_N = place_N.long()
    high_N = (low_N + 1).clamp(max=old_size - 1)
    share = (place_N - low_N).to(x_BCHW.dtype).reshape(-1, *(1,) * (3 - dim))
    low, high = x_BCHW.index_select(dim, low_N), x_BCHW.index_select(dim, high_N)
    return low + (high - low) * share


def load_inception(
    path: Path, device: torch.device | str = "cpu", accept_other_weights: bool = False
) -> FIDInception:
    """The network with weights of a local file (.safetensors, else what torch.load reads), frozen.

    Args:
        accept_other_weights: take a file that is not the published one; the network's
            `is_comparable` is then false. This holds for a .safetensors copy, too.

    Raises:
        FileNotFoundError: the file is not there; says where it is published.
        ValueError: it is not the published file, or holds tensors of other names or shapes.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no Inception weights here; get {PUBLISHED_NAME} (SHA-256 "
            f"{PUBLISHED_SHA256}) from {PUBLISHED_URL}"
        )
    with path.open("rb") as file:
        weights_hash = hashlib.file_digest(file, "sha256").hexdigest()
    if weights_hash != PUBLISHED_SHA256 and not accept_other_weights:
        raise ValueError(
            f"{path}: its SHA-256 is {weights_hash}, not {PUBLISHED_SHA256} of {PUBLISHED_NAME}, so "
            f"scores would not be comparable; get that file from {PUBLISHED_URL}"
        )
    if path.suffix == ".safetensors":
        weights = load_file(path, device=str(device))
    else:
        weights = torch.load(path, map_location=device, weights_only=True)
    with torch.device("meta"):
        network = FIDInception(weights_hash)
    # They count training steps, and files from before torch 0.4.1 lack them.
    counts = {
        name: torch.zeros((), dtype=torch.long, device=device)
        for name in network.state_dict()
        if name.endswith("num_batches_tracked")
    }
    load_weights(network, counts | weights, str(path))
    return network.eval().requires_grad_(False)


def random_inception(seed: int) -> FIDInception:
    """The network with random weights, the same for the same seed, for runs without the file.

    Its activations neither vanish nor explode. Its scores compare with each other at most.
    """
    with torch.device("meta"):
        network = FIDInception(f"random-{seed}")
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.num_batches_tracked.zero_()
    network.fc.bias.normal_(0, 0.1, generator=generator)
    return network
