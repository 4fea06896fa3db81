"""Proves that plain tars of others are read as datasets, from folders and from S3: indexed on first
use, once, beside them or in the cache folder, again when they change; and that a tar which does not
fit is refused with the names of file and member and the way out."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.loader import make_loader
from data_pipeline.loading import tar_catalog
from data_pipeline.loading.catalogs import open_catalog
from data_pipeline.loading.latent_shards import CAPTION_LEVELS, BadShardError
from data_pipeline.loading.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.loading.tar_catalog import TarCatalog
from data_pipeline.storage.interface import StorageConfig
from data_pipeline.storage.local import LocalStorage
from data_pipeline.storage.stores import open_storage
from recaption.granularity import LEVELS
from t2i.batch import TrainingBatch

Parts = Mapping[str, bytes]


def moments(number: int, shape: tuple[int, ...] = (8, 2, 2)) -> np.ndarray:
    return np.full(shape, number, np.float16)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, moments=array)
    return buffer.getvalue()


def tar_bytes(samples: Mapping[str, Parts], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """As tarfile writes it for others: with folders, long names and their case."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for key, parts in samples.items():
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample(number: int, **others: bytes) -> Parts:
    return {"npy": npy(moments(number)), "txt": f"caption {number}\n".encode(), **others}


def config_of(url: str, **changes: object) -> LoaderConfig:
    return LoaderConfig.model_validate(
        {"datasets": [{"path": url}], "num_workers": 0, "caption_dropout": 0, **changes}
    )


def open_folder(url: str, storage: StorageConfig, **changes: object) -> TarCatalog:
    config = config_of(url, **changes)
    found = open_catalog(config.datasets[0], config, storage)
    assert isinstance(found, TarCatalog)
    return found


def epoch(url: str, storage: StorageConfig, size: int, **changes: object) -> TrainingBatch:
    loader = make_loader(
        config_of(url, **changes),
        seed=0,
        rank=0,
        world_size=1,
        global_batch=size,
        micro_batch=size,
        start_step=0,
        storage=storage,
    )
    return next(iter(loader))


@pytest.fixture
def cached(tmp_path: Path) -> StorageConfig:
    return StorageConfig(cache_folder=str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tars" / "more").mkdir(parents=True)
    return tmp_path / "tars"


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_in_their_many_forms_are_one_dataset(
    folder: Path, cached: StorageConfig, tar_format: int
) -> None:
    levels = dict(zip(LEVELS, ["a0", "a1", "a2", "a3"], strict=True))
    forms = {
        "a.tar": {"a": {"json": json.dumps({"captions": levels}).encode(), "NPY": npy(moments(1))}},
        "b.tar": {"./deep/b" + "b" * 150: sample(2, jpg=b"ignored")},
        "c.tar": {"c": {"moments.npy": npy(moments(3)), "json": b'{"caption": "caption 3"}'}},
        "more/d.tar": {"d": {"npz": npz(moments(4)), "json": b'{"captions": ["caption 4"]}'}},
    }
    for name, samples in forms.items():
        (folder / name).write_bytes(tar_bytes(samples, tar_format))
    batch = epoch(str(folder), cached, 4)
    found = dict(zip(batch.moments[:, 0, 0, 0].tolist(), batch.captions, strict=True))
    assert found.keys() == {1, 2, 3, 4}
    assert found[1] in {"a0", "a1", "a2", "a3"}
    assert {found[number] for number in (2, 3, 4)} == {f"caption {n}" for n in (2, 3, 4)}
    assert (batch.moments == batch.moments[:, :1, :1, :1]).all()


def test_the_levels_names_are_those_of_recaptioning() -> None:
    assert CAPTION_LEVELS == LEVELS


def test_buckets_follow_the_shapes_and_the_held_out_part_is_kept(
    folder: Path, cached: StorageConfig
) -> None:
    wide = {"npy": npy(moments(9, (8, 2, 3))), "txt": b"wide"}
    (folder / "0.tar").write_bytes(tar_bytes({"a": sample(0), "b": wide, "c": sample(1)}))
    (folder / "1.tar").write_bytes(tar_bytes({"d": wide, "e": sample(2)}))
    found = open_folder(str(folder), cached)
    assert found.num_samples == 5
    assert as_lists(found) == {"16x16": [2, 1], "24x16": [1, 1]}
    assert as_lists(open_folder(str(folder), cached, held_out=2)) == {
        "16x16": [1, 1],
        "24x16": [0, 1],
    }
    held_out = open_folder(str(folder), cached, held_out=4, part="held_out")
    assert as_lists(held_out) == {"16x16": [2, 0], "24x16": [1, 1]}
    assert found.open_shard(0).members["16x16"].tolist() == [0, 2]


def as_lists(found: TarCatalog) -> dict[str, list[int]]:
    return {name: counts.tolist() for name, counts in found.counts().items()}


def test_a_tar_is_indexed_once_and_again_when_it_changes(
    folder: Path, cached: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "0.tar"
    path.write_bytes(tar_bytes({"a": sample(0)}))
    assert as_lists(open_folder(str(folder), cached)) == {"16x16": [1]}
    assert (folder / "0.tar.index.parquet").is_file()
    with monkeypatch.context() as patched:
        patched.delattr(tar_catalog, "make_index")
        assert as_lists(open_folder(str(folder), cached)) == {"16x16": [1]}
    old = open_folder(str(folder), cached)
    path.write_bytes(tar_bytes({"a": sample(0), "b": sample(1)}))
    with pytest.raises(BadShardError, match=r"0\.tar: cut or changed since the run began"):
        old.open_shard(0)
    assert as_lists(open_folder(str(folder), cached)) == {"16x16": [2]}
    path.write_bytes(tar_bytes({"c": sample(0), "d": sample(1)}))  # of the same size
    os.utime(path, ns=(0, 1))
    assert open_folder(str(folder), cached).open_shard(0).index.keys == ("c", "d")


def test_where_nothing_can_be_written_the_index_lies_in_the_cache(
    folder: Path, cached: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "0.tar").write_bytes(tar_bytes({"a": sample(0)}))
    before = sorted(path.name for path in folder.rglob("*"))
    put = LocalStorage.put

    def refuse(self: LocalStorage, key: str, data: bytes) -> None:
        if self.folder == folder:
            raise PermissionError(13, "not allowed", key)
        put(self, key, data)

    monkeypatch.setattr(LocalStorage, "put", refuse)
    assert epoch(str(folder), cached, 1).captions == ("caption 0",)
    assert sorted(path.name for path in folder.rglob("*")) == before
    monkeypatch.delattr(tar_catalog, "make_index")
    assert epoch(str(folder), cached, 1).captions == ("caption 0",)


def test_sizes_of_many_tars_are_remembered_until_one_changes(
    folder: Path, cached: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_catalog, "REMEMBERED_FROM_SHARDS", 1)
    (folder / "0.tar").write_bytes(tar_bytes({"a": sample(0)}))
    assert as_lists(open_folder(str(folder), cached)) == {"16x16": [1]}
    with monkeypatch.context() as patched:
        patched.delattr(tar_catalog, "index_of")
        assert as_lists(open_folder(str(folder), cached)) == {"16x16": [1]}
    (folder / "1.tar").write_bytes(tar_bytes({"b": sample(1)}))
    assert as_lists(open_folder(str(folder), cached)) == {"16x16": [1, 1]}


def test_tars_on_s3_are_indexed_beside_them_and_again_when_replaced(
    s3_url: str, s3_config: StorageConfig
) -> None:
    storage = open_storage(f"{s3_url}/tars", s3_config)
    storage.put("0.tar", tar_bytes({"a": sample(0), "b": sample(1)}))
    assert sorted(epoch(storage.url, s3_config, 2).keys) == ["a", "b"]
    assert storage.exists("0.tar.index.parquet")
    storage.put("0.tar", tar_bytes({"c": sample(2), "d": sample(3)}))  # of the same size
    batch = epoch(storage.url, s3_config, 2)
    assert sorted(zip(batch.keys, batch.captions, strict=True)) == [
        ("c", "caption 2"),
        ("d", "caption 3"),
    ]


MISFITS = {
    "no moments": ({"a": {"txt": b"x"}}, r"0\.tar: has no KEY\.npy or .*write the tar so"),
    "no captions": ({"a": {"npy": npy(moments(0))}}, r"0\.tar: has no KEY\.json or KEY\.txt"),
    "one lacks": ({"a": sample(0), "b": {"txt": b"x"}}, r"0\.tar: b\.npy is missing"),
    "float32": (
        {"a": {"npy": npy(np.zeros((8, 2, 2), np.float32)), "txt": b"x"}},
        r"0\.tar: a\.npy: expected float16",
    ),
    "two axes": ({"a": {"npy": npy(moments(0, (8, 2))), "txt": b"x"}}, r"0\.tar: a: moments have"),
    "odd channels": (
        {"a": {"npy": npy(moments(0, (3, 2, 2))), "txt": b"x"}},
        r"0\.tar: a: moments have shape \(3, 2, 2\).*or make latents",
    ),
    "json": (
        {"a": {"npy": npy(moments(0)), "json": b'{"text": "x"}'}},
        r'0\.tar: a\.json: expected "captions"',
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_tar_that_does_not_fit_names_file_member_and_way_out(
    folder: Path, cached: StorageConfig, name: str
) -> None:
    samples, message = MISFITS[name]
    (folder / "0.tar").write_bytes(tar_bytes(samples))
    with pytest.raises(BadShardError, match=message):
        open_folder(str(folder), cached)
    assert not (folder / "0.tar.index.parquet").exists()


def test_a_cut_tar_is_refused_before_the_run(folder: Path, cached: StorageConfig) -> None:
    (folder / "0.tar").write_bytes(tar_bytes({"a": sample(0), "b": sample(1)})[:3000])
    with pytest.raises(BadShardError, match=r"0\.tar"):
        open_folder(str(folder), cached, on_bad_shard="skip")


def test_a_tar_that_goes_bad_after_it_was_indexed_is_skipped(
    folder: Path, cached: StorageConfig
) -> None:
    for number in range(3):
        samples = {f"{number}{n}": sample(n) for n in range(4)}
        (folder / f"{number}.tar").write_bytes(tar_bytes(samples))
    whole = epoch(str(folder), cached, 12)
    data = bytearray((folder / "1.tar").read_bytes())
    data[data.index(b"10.npy") : data.index(b"10.npy") + 6] = b"xx.npy"
    times = (folder / "1.tar").stat()
    (folder / "1.tar").write_bytes(data)
    os.utime(folder / "1.tar", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(BadShardError, match=r"1\.tar: cut or changed .*10\.npy"):
        epoch(str(folder), cached, 12)
    found = epoch(str(folder), cached, 12, on_bad_shard="skip")
    assert found.num_replaced == 1
    pairs = zip(whole.keys, found.keys, strict=True)
    assert [old for old, new in pairs if old != new] == ["10"]


def test_plain_tars_know_no_filter(folder: Path, cached: StorageConfig) -> None:
    (folder / "0.tar").write_bytes(tar_bytes({"a": sample(0)}))
    dataset = DatasetConfig(path=str(folder), kept="somewhere")
    with pytest.raises(ValueError, match="kept: somewhere"):
        open_catalog(dataset, config_of(str(folder)), cached)


def test_a_folder_with_neither_says_so(folder: Path, cached: StorageConfig) -> None:
    with pytest.raises(FileNotFoundError, match="no finished shards and no plain tars"):
        epoch(str(folder), cached, 1)
