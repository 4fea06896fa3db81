"""Features of pictures as the metrics take them: one row a picture, every number finite."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Features = Tensor | np.ndarray


def checked_rows(features_ND: Features) -> Tensor:
    """The features as a tensor; its dtype and device stay as they are.

    Args:
        features_ND: (N, D), floating point, N pictures in any order.

    Raises:
        ValueError: no rows, another number of dimensions, or rows with NaN or infinity.
    """
    rows_ND = torch.as_tensor(features_ND)
    if rows_ND.ndim != 2:
        raise ValueError(f"features must be (samples, dimensions), not {tuple(rows_ND.shape)}")
    if not len(rows_ND):
        raise ValueError("there are no features")
    num_bad = int((~rows_ND.isfinite().all(dim=1)).sum())
    if num_bad:
        raise ValueError(
            f"{num_bad} of {len(rows_ND)} rows of features hold NaN or infinity; "
            "look for broken pictures, or for overflow of the network in half precision"
        )
    return rows_ND


def checked_pair(one_ND: Features, other_MD: Features) -> tuple[Tensor, Tensor]:
    """Two sets of features of one network; see `checked_rows`.

    Raises:
        ValueError: also for sets of different widths.
    """
    one, other = checked_rows(one_ND), checked_rows(other_MD)
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"features have {one.shape[1]} and {other.shape[1]} dimensions; "
            "both sets must come from the same network"
        )
    return one, other
