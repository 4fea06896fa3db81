"""Proves the policy about bad shards: stop names them (see test_loader); skip fills their places
with readable samples of the same bucket and leaves all else as it was, the same at every world
size, with workers and after a restart; each is logged once and accounted for; and a loader that
ends in any way ends its workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from data_pipeline import loader as loader_module
from data_pipeline.loader import LatentLoader, make_loader
from data_pipeline.loading.latent_shards import BadShardError
from data_pipeline.loading.loader_config import LoaderConfig
from data_pipeline.outputs.step_output import StepOutput
from t2i.batch import TrainingBatch

SIZES = [9, 6, 14, 7, 8]
Writer = Callable[..., list[str]]
Damage = Callable[[Path], None]


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2048)


def overwrite_a_part(path: Path) -> None:
    """Some samples in the middle are gone, the size is the same."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        file.write(bytes(5000))


def damage_an_array(path: Path) -> None:
    """One sample's npy is none; headers are whole."""
    data = path.read_bytes()
    place = data.index(b"\x93NUMPY", len(data) // 2)
    path.write_bytes(data[:place] + b"x" * 6 + data[place + 6 :])


def damage_a_text(path: Path) -> None:
    data = path.read_bytes()
    place = data.index(b'{"captions"', len(data) // 2)
    path.write_bytes(data[:place] + b"#" + data[place + 1 :])


DAMAGES = [remove, cut, overwrite_a_part, damage_an_array, damage_a_text]


@pytest.fixture
def latents(tmp_path: Path, write_latents: Writer) -> str:
    names = ["128x128", "160x96", "128x128"]
    write_latents(str(tmp_path / "latents"), SIZES, bucket_of=lambda number: names[number % 3])
    return str(tmp_path / "latents")


def tar_of(url: str, shard_id: str) -> Path:
    return StepOutput.open(url).shard_path(shard_id)


def loader_of(
    url: str,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    account: Path | None = None,
    micro_batch: int = 2,
    **changes: object,
) -> LatentLoader:
    values = {"datasets": [{"path": url}], "num_workers": 0, "window_shards": 2, **changes}
    return make_loader(
        LoaderConfig.model_validate(values),
        seed=5,
        rank=rank,
        world_size=world_size,
        global_batch=8,
        micro_batch=micro_batch,
        start_step=start_step,
        account=account,
    )


def samples(batches: list[TrainingBatch]) -> list[tuple[object, ...]]:
    return [
        (batch.sample_ids[i].item(), key, batch.captions[i], batch.moments[i].tolist())
        for batch in batches
        for i, key in enumerate(batch.keys)
    ]


def skipping(url: str, num_steps: int, **changes: object) -> list[TrainingBatch]:
    loader = loader_of(url, on_bad_shard="skip", **changes)  # type: ignore[arg-type]
    return list(islice(loader, num_steps * loader.dataset.share.per_step))


@pytest.mark.parametrize("damage", DAMAGES)
def test_skipping_fills_the_places_of_a_bad_shard_and_leaves_the_others(
    latents: str, damage: Damage
) -> None:
    whole = list(islice(loader_of(latents), 60))
    damage(tar_of(latents, "00002"))
    with pytest.raises((FileNotFoundError, BadShardError), match="00002"):
        list(islice(loader_of(latents), 60))
    found = skipping(latents, 15)
    num_replaced = 0
    for before, after in zip(whole, found, strict=True):
        assert after.moments.shape == before.moments.shape, "same bucket"
        pairs = list(zip(samples([before]), samples([after]), strict=True))
        assert len({after_id for _, (after_id, *_) in pairs}) == 2
        changed = [old[1] for old, new in pairs if old != new]
        assert all(str(key).startswith("00002") for key in changed)
        assert after.num_replaced == len(changed)
        num_replaced += len(changed)
    assert num_replaced > 0
    if damage in (remove, cut):
        assert not any(key.startswith("00002") for batch in found for key in batch.keys)
        in_shard = sum(key.startswith("00002") for batch in whole for key in batch.keys)
        assert num_replaced == in_shard


@pytest.mark.parametrize("damage", [remove, overwrite_a_part])
def test_what_is_skipped_depends_on_neither_processes_nor_restarts(
    latents: str, damage: Damage
) -> None:
    damage(tar_of(latents, "00002"))
    damage(tar_of(latents, "00000"))
    straight = samples(skipping(latents, 8, micro_batch=8))
    assert samples(skipping(latents, 8, num_workers=2)) == straight
    assert samples(skipping(latents, 3, start_step=5)) == straight[40:]
    for world_size in (2, 4):
        ranks = [skipping(latents, 8, rank=r, world_size=world_size) for r in range(world_size)]
        by_id = sorted(sample for of_rank in ranks for sample in samples(of_rank))
        assert by_id == straight


def test_stand_ins_are_of_neighbouring_shards_and_differ(
    tmp_path: Path, write_latents: Writer
) -> None:
    url = str(tmp_path / "latents")
    write_latents(url, [30] * 12)
    tar_of(url, "00003").unlink()
    loader = loader_of(url, on_bad_shard="skip", micro_batch=8)
    chosen: Counter[str] = Counter()
    for number in range(360 // 8):
        batch, _ = loader.dataset.read(number)
        planned = loader.dataset.global_batch
        near = {f"{shard:05d}" for shard in planned.shards.tolist()}
        for shard, key in zip(planned.shards.tolist(), batch.keys, strict=True):
            if shard == 3:
                assert key[:5] in near - {"00003"}
                chosen[key] += 1
    assert sum(chosen.values()) == 30
    assert len(chosen) > 10


def test_the_account_tells_shard_reason_step_and_number(latents: str, tmp_path: Path) -> None:
    path = tar_of(latents, "00002")
    path.unlink()
    found = skipping(latents, 15, account=tmp_path / "run", num_workers=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_shards-00000.jsonl").open()]
    assert {line["shard"] for line in lines} == {str(path)}
    assert all(path.name in line["reason"] and line["part"] == "training" for line in lines)
    by_step: Counter[int] = Counter()
    for batch in found:
        by_step[batch.step] += batch.num_replaced
    accounted: Counter[int] = Counter()
    for line in lines:
        accounted[line["step"]] += line["replaced"]
    assert accounted == +by_step


def test_each_bad_shard_is_logged_once(latents: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[tuple[object, ...]] = []
    monkeypatch.setattr(loader_module.logger, "warning", lambda *parts: warnings.append(parts))
    path = tar_of(latents, "00002")
    path.unlink()
    list(islice(loader_of(latents, on_bad_shard="skip", num_workers=2), 40))
    assert [path.name in str(parts) for parts in warnings] == [True]


def test_a_whole_run_leaves_no_account(latents: str, tmp_path: Path) -> None:
    skipping(latents, 15, account=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_when_nothing_is_left_the_run_stops(latents: str) -> None:
    for shard in range(len(SIZES)):
        tar_of(latents, f"{shard:05d}").unlink()
    with pytest.raises(FileNotFoundError, match=r"\.tar"):
        skipping(latents, 1)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", [remove, cut, overwrite_a_part])
def test_the_error_is_one_line_with_shard_and_way_out(
    latents: str, damage: Damage, num_workers: int
) -> None:
    path = tar_of(latents, "00002")
    damage(path)
    with pytest.raises((FileNotFoundError, BadShardError)) as caught:
        list(islice(loader_of(latents, num_workers=num_workers), 60))
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "again, or go on without it: --set data_pipeline.loader.on_bad_shard=skip" in text
    assert "\n" not in text


def test_a_ledger_that_is_gone_names_its_shard(latents: str) -> None:
    path = tar_of(latents, "00002")
    loader = loader_of(latents)
    next(Path(latents).rglob("*00002*.parquet")).rename(path.parent / "elsewhere")
    for other in Path(latents).rglob("*00002*.parquet"):
        other.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{path.name}: .*; make it again, or go on without"
    ):
        list(islice(loader, 60))


LIVE_AT_EXIT = """
import sys
from data_pipeline.loader import make_loader
from data_pipeline.loading.loader_config import LoaderConfig
config = LoaderConfig.model_validate({"datasets": [{"path": sys.argv[1]}], "num_workers": 2})
batches = iter(make_loader(config, seed=0, rank=0, world_size=1, global_batch=4, micro_batch=4,
                           start_step=0))
next(batches)
print("first", flush=True)
raise SystemExit(3)
"""


def test_a_process_that_exits_amid_reading_does_not_wait_for_its_workers(latents: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIVE_AT_EXIT, latents], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (3, "first\n"), done.stderr


def test_an_error_ends_the_workers(latents: str) -> None:
    tar_of(latents, "00002").unlink()
    with pytest.raises(FileNotFoundError):
        list(islice(loader_of(latents, num_workers=2), 60))
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert multiprocessing.active_children() == []
