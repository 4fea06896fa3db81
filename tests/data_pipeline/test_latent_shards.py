"""Proves that arrays of .npy files are read as numpy reads them, and others are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

from data_pipeline.latent_shards import parse_npy


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(8, 16, 16), (32, 64, 48), (1,)])
def test_float16_arrays_are_read_as_they_were_saved(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    found = parse_npy(npy(array), "a.npy")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.zeros(3, np.float32)), "a.npy: expected float16"),
        (npy(np.zeros((3, 2), np.float16, order="F")), "a.npy: expected float16 in C order"),
        (npy(np.zeros(8, np.float16))[:-2], "a.npy: .* make the shard again"),
        (b"not an array", "a.npy: "),
    ],
)
def test_other_bytes_are_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_npy(data, "a.npy")
