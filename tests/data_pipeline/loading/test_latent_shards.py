"""Proves that arrays of .npy and .npz files are read as numpy reads them, captions in each of their
forms, and that others are refused by the name of file and member."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.loading.latent_shards import BadShardError, LatentShard, parse_facts
from data_pipeline.outputs.shards import Sample, write_shard

FACTS = b'{"captions": ["a", "b", "c", "d"]}'


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def shard_of(path: Path, *samples: Sample, **parts: str) -> LatentShard:
    index = write_shard(path, samples)
    return LatentShard(path, path.open("rb"), index, {"b": np.arange(len(samples))}, **parts)


def read(shard: LatentShard, member: int, shape: tuple[int, ...]) -> np.ndarray:
    moments = np.full(shape, np.nan, np.float16)
    shard.read("b", member, moments)
    return moments


@pytest.mark.parametrize("shape", [(8, 16, 16), (32, 64, 48), (1,)])
def test_float16_arrays_are_read_as_they_were_saved(tmp_path: Path, shape: tuple[int, ...]) -> None:
    arrays = [np.random.default_rng(n).normal(size=shape).astype(np.float16) for n in range(3)]
    samples = [Sample(f"{n}", {"npy": npy(a), "json": FACTS}) for n, a in enumerate(arrays)]
    shard = shard_of(tmp_path / "a.tar", *samples)
    for member in (2, 0, 1):
        assert shard.shape("b", member) == shape
        np.testing.assert_array_equal(read(shard, member, shape), arrays[member])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.zeros((2, 4), np.float32)), "a.npy: expected float16"),
        (npy(np.zeros((2, 4), np.float16, order="F")), "a.npy: expected float16 in C order"),
        (npy(np.zeros((2, 4), np.float16))[:-2], "a.npy: its length is not that of its array"),
        (npy(np.zeros((2, 4), np.float16)) + b"more", "a.npy: its length is not that of its array"),
        (npy(np.zeros((2, 4), np.float16))[:10], r"a.npy: .*; restore the file"),
        (b"not an array", r"a.npy: .*; restore the file"),
    ],
)
def test_other_bytes_are_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    shard = shard_of(tmp_path / "a.tar", Sample("a", {"npy": data, "json": FACTS}))
    with pytest.raises(BadShardError, match=message):
        read(shard, 0, (2, 4))


@pytest.mark.parametrize("shape", [(4, 2), (2, 5), (2, 300), (2, 1)])
def test_another_shape_is_no_damage_and_names_the_sample(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    parts = {"npy": npy(np.zeros((2, 4), np.float16)), "json": FACTS}
    shard = shard_of(tmp_path / "a.tar", Sample("a", parts))
    with pytest.raises(ValueError, match=r"a\.npy of .*a\.tar has \(2, 4\)") as caught:
        read(shard, 0, shape)
    assert not isinstance(caught.value, BadShardError)


@pytest.mark.parametrize("names", [["moments"], ["moments", "other"], ["anything"]])
def test_npz_files_are_read(tmp_path: Path, names: list[str]) -> None:
    array = np.arange(8, dtype=np.float16).reshape(2, 4)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array if i == 0 else array[0] for i, name in enumerate(names)})
    sample = Sample("a", {"moments.npz": buffer.getvalue(), "txt": b"a caption\n"})
    shard = shard_of(tmp_path / "a.tar", sample, moments_part="moments.npz", facts_part="txt")
    assert shard.shape("b", 0) == (2, 4)
    np.testing.assert_array_equal(read(shard, 0, (2, 4)), array)


@pytest.mark.parametrize("arrays", [{"a": 1, "b": 2}, {"moments": np.zeros(2, np.float32)}])
def test_other_npz_files_are_refused_by_name(tmp_path: Path, arrays: dict[str, object]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(array) for name, array in arrays.items()})
    for data in (buffer.getvalue(), buffer.getvalue()[:40]):
        shard = shard_of(
            tmp_path / "a.tar", Sample("a", {"npz": data, "json": FACTS}), moments_part="npz"
        )
        with pytest.raises(BadShardError, match=r"a\.npz: .*\.npz|a\.npz: expected one float16"):
            read(shard, 0, (2, 4))


LEVELS = ["detailed", "multi_sentence", "sentence", "keywords"]


@pytest.mark.parametrize(
    ("facts", "captions", "label"),
    [
        ({"captions": ["a", "b", "c", "d"], "label": 3}, ("a", "b", "c", "d"), 3),
        ({"captions": dict(zip(LEVELS[::-1], "dcba", strict=True))}, ("a", "b", "c", "d"), None),
        ({"captions": ["a"]}, ("a",) * 4, None),
        ({"caption": "a", "width": 3}, ("a",) * 4, None),
    ],
)
def test_captions_may_be_a_list_a_mapping_or_one_text(
    facts: dict[str, object], captions: tuple[str, ...], label: int | None
) -> None:
    assert parse_facts(json.dumps(facts).encode(), "json") == (captions, label)


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'"a"', b"{}", b'{"captions": ["a", "b"]}', b'{"caption": 3}', b"\xff"]
)
def test_a_sample_without_captions_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    parts = {"npy": npy(np.zeros((2, 4), np.float16)), "json": data}
    with pytest.raises(BadShardError, match=r"a\.tar: a\.json: .*; restore the file"):
        read(shard_of(tmp_path / "a.tar", Sample("a", parts)), 0, (2, 4))
