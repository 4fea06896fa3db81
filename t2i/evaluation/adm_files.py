"""The .npz files of ADM's evaluator: statistics of a reference, batches of pictures, or both.

    mu, sigma        of the 2,048 pooled features, for FID
    mu_s, sigma_s    of the 2,023 spatial features, for sFID
    arr_0            pictures (N, H, W, 3) uint8; precision and recall need them

ADM's "VIRTUAL_imagenet256_labeled.npz" holds statistics of the training set and 10,000 pictures of
it. Source: openai/guided-diffusion, evaluations/evaluator.py.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from t2i.evaluation.moments import Statistics


@dataclass(frozen=True)
class AdmFile:
    """What a file holds.

    Attributes:
        pooled, spatial: its statistics; None = not in it, they are to be computed of the pictures.
        num_images: pictures in it; `read_images` reads them.
    """

    pooled: Statistics | None
    spatial: Statistics | None
    num_images: int


def save_statistics(path: Path, pooled: Statistics, spatial: Statistics | None = None) -> None:
    """Write statistics so that ADM's evaluator reads them, too; ``path`` ends in .npz."""
    arrays: dict[str, Any] = {"mu": pooled.mean_D, "sigma": pooled.covariance_DD}
    if spatial:
        arrays |= {"mu_s": spatial.mean_D, "sigma_s": spatial.covariance_DD}
    np.savez(path, **arrays)


def open_adm_file(path: Path) -> AdmFile:
    """Read the statistics, and see how many pictures there are without reading them.

    Raises:
        ValueError: the file is no .npz, or has neither statistics nor pictures.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file")
    with np.load(path) as arrays:
        names = set(arrays.files)
        pooled, spatial = (
            Statistics(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
            if {mean, covariance} <= names
            else None
            for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s"))
        )
    if pooled is None and "arr_0" not in names:
        raise ValueError(
            f"{path} has neither statistics (mu, sigma) nor pictures (arr_0), "
            f"but {', '.join(sorted(names)) or 'nothing'}"
        )
    return AdmFile(pooled, spatial, _num_images(path) if "arr_0" in names else 0)


def read_images(path: Path, batch_size: int) -> Iterator[np.ndarray]:
    """Pictures of arr_0 in order, (B, H, W, 3) uint8; the file, of gigabytes, is never held whole.

    Raises:
        ValueError: arr_0 is no array of RGB pictures of 8 bits, or is cut off.
    """
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        num, *shape = _image_shape(path, file)
        for start in range(0, num, batch_size):
            wanted = [min(batch_size, num - start), *shape]
            data = file.read(int(np.prod(wanted)))
            if len(data) < np.prod(wanted):
                raise ValueError(f"{path}: the pictures are cut off after number {start}")
            yield np.frombuffer(data, np.uint8).reshape(wanted)


def _num_images(path: Path) -> int:
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        return _image_shape(path, file)[0]


def _image_shape(path: Path, file: IO[bytes]) -> tuple[int, ...]:
    """(N, H, W, 3); the file stands at its data afterwards."""
    is_first = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or is_fortran:
        raise ValueError(f"{path}: arr_0 must be (N, H, W, 3) uint8, not {shape} {dtype}")
    return tuple(shape)
