"""Proves that shards are plain webdataset tars, the same bytes each time, that their index is
right however it was made, and that a tar which is cut anywhere is refused by name."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.outputs.shards import Sample, ShardIndex, index_tar, read_shard, write_shard

SAMPLES = [
    Sample("00000000000", {"jpg": b"\xff\xd8" * 700, "json": b'{"a": 1}'}),
    Sample("00000000001", {"png": b"\x89PNG", "json": b"{}"}),
    Sample("00000000002", {"json": b"", "jpg": bytes(512)}),
]
KEYS = st.text("abc0123456789_-", min_size=1, max_size=20)
PARTS = st.dictionaries(
    st.sampled_from(["jpg", "json", "npy", "seg.png"]), st.binary(max_size=1200), min_size=1
)
NO_DEADLINE = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def assert_same_index(one: ShardIndex, other: ShardIndex) -> None:
    assert one.keys == other.keys
    assert list(one.parts) == list(other.parts)
    for extension in one.parts:
        for name in ("offsets", "lengths"):
            left, right = (getattr(index.parts[extension], name) for index in (one, other))
            assert left.dtype == np.int64
            np.testing.assert_array_equal(left, right)


@NO_DEADLINE
@given(samples=st.dictionaries(KEYS, PARTS, max_size=6))
def test_samples_and_index_survive_the_way_through_a_tar(
    tmp_path: Path, samples: dict[str, dict[str, bytes]]
) -> None:
    written = [Sample(key, parts) for key, parts in samples.items()]
    path = tmp_path / "shard.tar"
    index = write_shard(path, written)
    assert_same_index(index_tar(path), index)
    assert_same_index(ShardIndex.from_bytes(index.to_bytes()), index)
    assert [(s.key, dict(s.parts)) for s in read_shard(path)] == list(samples.items())
    for position, sample in enumerate(written):
        for extension, data in sample.parts.items():
            offset, length = index.span(position, extension)
            assert path.read_bytes()[offset : offset + length] == data


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        write_shard(tmp_path / name, SAMPLES)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_webdataset_reads_what_is_written(tmp_path: Path) -> None:
    import webdataset

    write_shard(tmp_path / "shard.tar", SAMPLES)
    dataset = webdataset.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False)
    for read, sample in zip(dataset, SAMPLES, strict=True):
        parts = {name: data for name, data in read.items() if not name.startswith("__")}
        assert (read["__key__"], parts) == (sample.key, dict(sample.parts))


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    import webdataset

    path = tmp_path / "shard.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for sample in SAMPLES:
            writer.write({"__key__": f"folder/{sample.key}", **sample.parts})
    expected = [(f"folder/{sample.key}", dict(sample.parts)) for sample in SAMPLES]
    assert [(sample.key, dict(sample.parts)) for sample in read_shard(path)] == expected


def test_tars_of_others_with_folders_and_long_names_are_indexed(tmp_path: Path) -> None:
    path = tmp_path / "other.tar"
    long_key = "folder/" + "k" * 150
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in ((f"{long_key}.JPG", b"picture"), ("folder/README", b"no extension")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [(s.key, dict(s.parts)) for s in read_shard(path)] == [(long_key, {"jpg": b"picture"})]


def test_a_tar_cut_at_any_block_is_refused_by_name(tmp_path: Path) -> None:
    write_shard(tmp_path / "whole.tar", SAMPLES)
    data = (tmp_path / "whole.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    for length in {*range(0, len(data) - 1023, 512), 100, 700, len(data) - 1100}:
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.tar"):
            index_tar(cut)


def test_a_damaged_header_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    index = write_shard(path, SAMPLES)
    data = bytearray(path.read_bytes())
    data[index.span(1, "png")[0] - 300] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard\.tar"):
        index_tar(path)


def test_a_tar_cut_after_it_was_indexed_names_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    index = write_shard(path, SAMPLES)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"shard\.tar.*00000000000\.jpg"):
        list(read_shard(path, index))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("a.b", {"txt": b""}), "'a.b'"),
        (Sample("a/b", {"txt": b""}), "'a/b'"),
        (Sample("", {"txt": b""}), "''"),
        (Sample("a", {}), "no parts"),
        (Sample("a", {"JPG": b""}), "'JPG'"),
        (Sample("a", {"": b""}), "''"),
        (Sample("k" * 120, {"txt": b""}), "too long"),
    ],
)
def test_what_webdataset_could_not_read_back_is_refused(
    tmp_path: Path, sample: Sample, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path / "shard.tar", [sample])


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_shard(tmp_path / "shard.tar", [SAMPLES[0], SAMPLES[0]])


def test_a_part_that_a_sample_lacks_is_named(tmp_path: Path) -> None:
    index = write_shard(tmp_path / "shard.tar", SAMPLES)
    assert index.extensions(1) == ["json", "png"]
    with pytest.raises(KeyError, match="00000000001 has no part jpg"):
        index.span(1, "jpg")
