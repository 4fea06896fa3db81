"""Proves the catalog: it counts and finds the members of a shard, remembers the counts of many
shards until something changes, and says what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline import catalog
from data_pipeline.catalog import LatentsCatalog, open_latents, read_manifests
from data_pipeline.ledger import Outcome, Row
from data_pipeline.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.manifest import StepOutput
from data_pipeline.storage import StorageConfig

Writer = Callable[..., list[str]]


def open_folder(
    folder: Path, kept: bool = False, storage: StorageConfig | None = None, **changes: object
) -> LatentsCatalog:
    dataset = DatasetConfig(
        path=str(folder / "latents"), kept=str(folder / "kept") if kept else None
    )
    loader = LoaderConfig.model_validate({"datasets": [dataset], **changes})
    return open_latents(dataset, loader, storage or StorageConfig())


def test_members_are_places_in_the_tar_by_bucket(tmp_path: Path, write_latents: Writer) -> None:
    buckets = ["128x128", "160x96", "160x96", "128x128", "160x96"]
    write_latents(str(tmp_path / "latents"), [2, 3], bucket_of=lambda number: buckets[number])
    found = open_folder(tmp_path)
    assert {name: m.tolist() for name, m in found.members(1).items()} == {
        "160x96": [0, 2],
        "128x128": [1],
    }
    assert {name: c.tolist() for name, c in found.counts().items()} == {
        "128x128": [1, 1],
        "160x96": [1, 2],
    }
    assert found.num_samples == 5


def test_filter_and_held_out_part_narrow_the_members(
    tmp_path: Path, write_latents: Writer, write_kept: Callable[..., None]
) -> None:
    keys = write_latents(str(tmp_path / "latents"), [3, 4])
    write_kept(str(tmp_path / "kept"), keys, lambda key: key not in (keys[1], keys[5]))
    found = open_folder(tmp_path, kept=True, held_out=4)
    assert [found.members(shard)["128x128"].tolist() for shard in (0, 1)] == [[], [1, 3]]
    held_out = open_folder(tmp_path, kept=True, held_out=4, part="held_out")
    assert [held_out.members(shard)["128x128"].tolist() for shard in (0, 1)] == [[0, 1, 2], [0]]


def test_counts_are_remembered_until_the_filter_changes(
    tmp_path: Path,
    write_latents: Writer,
    write_kept: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog, "REMEMBERED_FROM_SHARDS", 1)
    storage = StorageConfig(cache_folder=str(tmp_path / "cache"))
    keys = write_latents(str(tmp_path / "latents"), [3, 4])
    write_kept(str(tmp_path / "kept"), keys, lambda key: key != keys[0])
    counts = open_folder(tmp_path, kept=True, storage=storage).counts()
    assert counts["128x128"].tolist() == [2, 4]
    with monkeypatch.context() as patched:
        patched.delattr(LatentsCatalog, "members")  # nothing is counted again
        again = open_folder(tmp_path, kept=True, storage=storage).counts()
    assert again["128x128"].tolist() == [2, 4]
    for path in (tmp_path / "kept").rglob("*.json"):
        path.unlink()
    write_kept(str(tmp_path / "kept"), keys, lambda key: key == keys[0])
    assert open_folder(tmp_path, kept=True, storage=storage).counts()["128x128"].tolist() == [1, 0]


def test_manifests_are_remembered_until_the_listing_changes(
    tmp_path: Path, write_latents: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "REMEMBERED_FROM_SHARDS", 1)
    storage = StorageConfig(cache_folder=str(tmp_path / "cache"))
    write_latents(str(tmp_path / "latents"), [3, 4])
    expected = open_folder(tmp_path, storage=storage).manifests
    with monkeypatch.context() as patched:
        patched.delattr(StepOutput, "manifests")  # nothing is read again
        again = read_manifests(StepOutput.open(str(tmp_path / "latents")), storage)
    assert again == expected == StepOutput.open(str(tmp_path / "latents")).manifests()
    (tmp_path / "latents" / "manifest" / "00001.json").unlink()
    assert open_folder(tmp_path, storage=storage).num_samples == 3
    write_latents(str(tmp_path / "latents"), [3, 5])
    assert open_folder(tmp_path, storage=storage).num_samples == 8


def test_a_folder_without_latents_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run python -m data_pipeline\.latents first"):
        open_folder(tmp_path)


def test_shards_that_are_not_filtered_yet_are_named(
    tmp_path: Path, write_latents: Writer, write_kept: Callable[..., None]
) -> None:
    keys = write_latents(str(tmp_path / "latents"), [3, 4])
    write_kept(str(tmp_path / "kept"), keys[:3], lambda key: True)
    with pytest.raises(ValueError, match=r"lacks 1 of 2 shards, such as 00001; run .*filter"):
        open_folder(tmp_path, kept=True)


def test_a_ledger_without_buckets_is_refused(tmp_path: Path) -> None:
    with StepOutput.open(str(tmp_path / "latents")).writer("00000") as writer:
        writer.add(Outcome(Row("a", "ok")))
        writer.commit()
    with pytest.raises(ValueError, match="has no column bucket"):
        open_folder(tmp_path).counts()
