"""Proves the catalog: it counts and finds the members of a shard, by manifests alone where they
tell; it remembers what many ledgers say until something changes, and says what is missing."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.loading import catalog
from data_pipeline.loading.catalog import LatentsCatalog, are_kept, open_latents, read_manifests
from data_pipeline.loading.latent_shards import BadShardError
from data_pipeline.loading.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.outputs.ledger import Ledger, Outcome, Row, to_parquet
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig

Writer = Callable[..., list[str]]
BUCKETS = [
    "128x128",
    "160x96",
    "160x96",
    "128x128",
    "128x128",
    "160x96",
    "128x128",
    "128x128",
    "160x96",
]


def open_folder(
    folder: Path, kept: bool = False, storage: StorageConfig | None = None, **changes: object
) -> LatentsCatalog:
    dataset = DatasetConfig(
        path=str(folder / "latents"), kept=str(folder / "kept") if kept else None
    )
    loader = LoaderConfig.model_validate({"datasets": [dataset], **changes})
    return open_latents(dataset, loader, storage or StorageConfig())


def as_earlier_versions_wrote(manifest: Path) -> None:
    """Take the counts by bucket out of a manifest."""
    facts = json.loads(manifest.read_text())
    del facts["num_ok_by"]
    manifest.write_text(json.dumps(facts))


def counts_of(found: LatentsCatalog) -> dict[str, list[int]]:
    return {name: counts.tolist() for name, counts in found.counts().items() if counts.any()}


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


@pytest.mark.parametrize("changes", [{}, {"held_out": 4}, {"held_out": 4, "part": "held_out"}])
@pytest.mark.parametrize("earlier", [[], [2], [0, 1, 2, 3]])
def test_manifests_and_ledgers_tell_the_same_counts(
    tmp_path: Path, write_latents: Writer, changes: dict[str, object], earlier: list[int]
) -> None:
    write_latents(str(tmp_path / "latents"), [2, 3, 0, 4], BUCKETS.__getitem__)
    for shard in earlier:
        as_earlier_versions_wrote(tmp_path / "latents" / "manifest" / f"{shard:05d}.json")
    found = open_folder(tmp_path, **changes)
    members = [found.members(shard) for shard in range(4)]
    assert counts_of(found) == {
        name: counts
        for name in sorted(set(BUCKETS))
        if any(counts := [len(of_shard.get(name, ())) for of_shard in members])
    }


def test_only_shards_cut_by_the_held_out_part_need_their_ledgers(
    tmp_path: Path, write_latents: Writer
) -> None:
    write_latents(str(tmp_path / "latents"), [2, 3, 0, 4], BUCKETS.__getitem__)
    for ledger in (tmp_path / "latents" / "status").iterdir():
        if not ledger.name.startswith("00001-"):
            ledger.unlink()
    assert counts_of(open_folder(tmp_path, held_out=4)) == {
        "128x128": [0, 1, 0, 2],
        "160x96": [0, 0, 0, 2],
    }
    held_out = open_folder(tmp_path, held_out=4, part="held_out")
    assert counts_of(held_out) == {"128x128": [1, 1, 0, 0], "160x96": [1, 1, 0, 0]}
    shutil.rmtree(tmp_path / "latents" / "status")
    assert counts_of(open_folder(tmp_path)) == {"128x128": [1, 2, 0, 2], "160x96": [1, 1, 0, 2]}
    with pytest.raises(FileNotFoundError, match="00001-"):
        open_folder(tmp_path, held_out=4).counts()


def test_a_ledger_that_is_not_the_committed_one_makes_a_bad_shard(
    tmp_path: Path, write_latents: Writer
) -> None:
    write_latents(str(tmp_path / "latents"), [2, 3], BUCKETS.__getitem__)
    first, second = sorted((tmp_path / "latents" / "status").iterdir())
    second.write_bytes(first.read_bytes())
    found = open_folder(tmp_path)
    found.open_shard(0)
    with pytest.raises(BadShardError, match=rf"{second.name}: changed since it was committed"):
        found.open_shard(1)


@pytest.mark.parametrize("arrange", ["same", "shuffled", "fewer", "more", "none"])
def test_kept_keys_are_found_however_the_ledgers_are_arranged(arrange: str) -> None:
    draw = random.Random(0)
    rows = [Row(f"{n:05d}", draw.choice(["ok", "filtered"])) for n in range(3000)]
    of_filter = {
        "same": rows,
        "shuffled": draw.sample(rows, len(rows)),
        "fewer": rows[:-7],
        "more": [Row("before", "ok"), *rows],
        "none": [],
    }[arrange]
    columns = {"score": "float32"}  # of the filter alone
    ledger, kept = Ledger(to_parquet(rows, {})), Ledger(to_parquet(of_filter, columns))
    assert ledger.surely_has_keys_of(kept) == (arrange == "same")
    kept_keys = {row.key for row in of_filter if row.status == "ok"}
    np.testing.assert_array_equal(are_kept(ledger, kept), [row.key in kept_keys for row in rows])


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
