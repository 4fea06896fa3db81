"""Convolutions and mixed blocks of the FID Inception network.

Names of modules are those of the published weights, after torchvision's; what the blocks compute
is the TensorFlow graph of 2015-12-05. There the average pools leave the padding out of the mean,
and the last block pools by maximum. The letters A to E follow torchvision, too.

Shapes: B batch, C channels, H x W places. All activations are floats of the weights' dtype.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU; padded to keep the size unless ``valid``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
        valid: bool = False,
    ) -> None:
        super().__init__()
        padding = (0, 0) if valid else (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BCHW)), inplace=True)


class BlockA(nn.Module):
    """35 x 35 places: 1x1, 5x5, two 3x3, and an average pool; 224 + ``pool_channels`` channels."""

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(in_channels, 64)
        self.branch5x5_1 = BasicConv2d(in_channels, 48)
        self.branch5x5_2 = BasicConv2d(48, 64, (5, 5))
        self.branch3x3dbl_1 = BasicConv2d(in_channels, 64)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, (3, 3))
        self.branch3x3dbl_3 = BasicConv2d(96, 96, (3, 3))
        self.branch_pool = BasicConv2d(in_channels, pool_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        one = self.branch1x1(x_BCHW)
        five = self.branch5x5_2(self.branch5x5_1(x_BCHW))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW)))
        pooled = self.branch_pool(average_pool(x_BCHW))
        return torch.cat([one, five, threes, pooled], dim=1)


class BlockB(nn.Module):
    """35 x 35 places to 17 x 17: 3x3, two 3x3, and a maximum pool; 480 + C channels."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(in_channels, 384, (3, 3), stride=2, valid=True)
        self.branch3x3dbl_1 = BasicConv2d(in_channels, 64)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, (3, 3))
        self.branch3x3dbl_3 = BasicConv2d(96, 96, (3, 3), stride=2, valid=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        three = self.branch3x3(x_BCHW)
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW)))
        pooled = F.max_pool2d(x_BCHW, kernel_size=3, stride=2)
        return torch.cat([three, threes, pooled], dim=1)


class BlockC(nn.Module):
    """17 x 17 places: 1x1, one and two 7x7 in separate rows and columns, average pool; 768 channels."""

    def __init__(self, in_channels: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(in_channels, 192)
        self.branch7x7_1 = BasicConv2d(in_channels, inner)
        self.branch7x7_2 = BasicConv2d(inner, inner, (1, 7))
        self.branch7x7_3 = BasicConv2d(inner, 192, (7, 1))
        self.branch7x7dbl_1 = BasicConv2d(in_channels, inner)
        self.branch7x7dbl_2 = BasicConv2d(inner, inner, (7, 1))
        self.branch7x7dbl_3 = BasicConv2d(inner, inner, (1, 7))
        self.branch7x7dbl_4 = BasicConv2d(inner, inner, (7, 1))
        self.branch7x7dbl_5 = BasicConv2d(inner, 192, (1, 7))
        self.branch_pool = BasicConv2d(in_channels, 192)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        one = self.branch1x1(x_BCHW)
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x_BCHW)))
        sevens = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x_BCHW)))
        sevens = self.branch7x7dbl_5(self.branch7x7dbl_4(sevens))
        pooled = self.branch_pool(average_pool(x_BCHW))
        return torch.cat([one, seven, sevens, pooled], dim=1)


class BlockD(nn.Module):
    """17 x 17 places to 8 x 8: 3x3, 7x7 and 3x3, and a maximum pool; 512 + C channels."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = BasicConv2d(in_channels, 192)
        self.branch3x3_2 = BasicConv2d(192, 320, (3, 3), stride=2, valid=True)
        self.branch7x7x3_1 = BasicConv2d(in_channels, 192)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1))
        self.branch7x7x3_4 = BasicConv2d(192, 192, (3, 3), stride=2, valid=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x_BCHW))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x_BCHW)))
        seven = self.branch7x7x3_4(seven)
        pooled = F.max_pool2d(x_BCHW, kernel_size=3, stride=2)
        return torch.cat([three, seven, pooled], dim=1)


class BlockE(nn.Module):
    """8 x 8 places: 1x1, 3x3, two 3x3, each ending in a row beside a column, a pool; 2048 channels.

    Args:
        pool: of the last branch; "max" in the network's last block only, as in the graph.
    """

    def __init__(self, in_channels: int, pool: Literal["average", "max"]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = BasicConv2d(in_channels, 320)
        self.branch3x3_1 = BasicConv2d(in_channels, 384)
        self.branch3x3_2a = BasicConv2d(384, 384, (1, 3))
        self.branch3x3_2b = BasicConv2d(384, 384, (3, 1))
        self.branch3x3dbl_1 = BasicConv2d(in_channels, 448)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, (3, 3))
        self.branch3x3dbl_3a = BasicConv2d(384, 384, (1, 3))
        self.branch3x3dbl_3b = BasicConv2d(384, 384, (3, 1))
        self.branch_pool = BasicConv2d(in_channels, 192)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        one = self.branch1x1(x_BCHW)
        three = self.branch3x3_1(x_BCHW)
        threes = self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW))
        pooled = max_pool(x_BCHW) if self.pool == "max" else average_pool(x_BCHW)
        branches = [
            one,
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(threes),
            self.branch3x3dbl_3b(threes),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, dim=1)


def average_pool(x_BCHW: Tensor) -> Tensor:
    """Means of 3 x 3 places at each place, at the rim of as many as there are (4 or 6)."""
    return F.avg_pool2d(x_BCHW, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def max_pool(x_BCHW: Tensor) -> Tensor:
    """Maxima of 3 x 3 places at each place."""
    return F.max_pool2d(x_BCHW, kernel_size=3, stride=1, padding=1)
