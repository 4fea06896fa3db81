"""Proves the loader: batches are the plan's samples, the same at every world size and from every
start, with or without workers; captions are drawn by sample with the stated probabilities; labels
come from the samples and are dropped with the captions; kept
keys, the held-out part and resolution buckets are obeyed; the head of the order gives captions
to draw references from; a shard that is missing, cut or changed
names itself."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.loader import LatentBatches, Share, make_loader, read_captions
from data_pipeline.loading.loader_config import LoaderConfig
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig
from t2i.batch import DROPPED, TrainingBatch

SIZES = [9, 0, 14, 7]
NUM_SAMPLES = sum(SIZES)
Writer = Callable[..., list[str]]


@pytest.fixture
def latents(tmp_path: Path, write_latents: Writer) -> str:
    write_latents(str(tmp_path / "latents"), SIZES)
    return str(tmp_path / "latents")


def configure(*datasets: str | dict[str, object], **changes: object) -> LoaderConfig:
    values = [{"path": d} if isinstance(d, str) else d for d in datasets]
    return LoaderConfig.model_validate(
        {"datasets": values, "num_workers": 0, "window_shards": 2, **changes}
    )


def batches(
    config: LoaderConfig,
    num_steps: int,
    start_step: int = 0,
    world_size: int = 1,
    micro_batch: int = 4,
    global_batch: int = 8,
    storage: StorageConfig | None = None,
) -> list[TrainingBatch]:
    """The micro-batches of the first steps, those of a step in the order of the ranks."""
    per_step = global_batch // world_size // micro_batch
    by_rank = []
    for rank in range(world_size):
        loader = make_loader(
            config,
            seed=5,
            rank=rank,
            world_size=world_size,
            global_batch=global_batch,
            micro_batch=micro_batch,
            start_step=start_step,
            storage=storage,
        )
        by_rank.append(list(islice(loader, num_steps * per_step)))
    return [
        by_rank[rank][step * per_step + part]
        for step in range(num_steps)
        for rank in range(world_size)
        for part in range(per_step)
    ]


def samples(found: list[TrainingBatch]) -> list[tuple[object, ...]]:
    """All there is to a sample, one after the other."""
    return [
        (batch.step, batch.sample_ids[i].item(), key, batch.captions[i], batch.moments[i].tolist())
        for batch in found
        for i, key in enumerate(batch.keys)
    ]


def keys(found: list[TrainingBatch]) -> list[str]:
    return [key for batch in found for key in batch.keys]


def test_a_batch_holds_what_the_shards_hold(tmp_path: Path, write_latents: Writer) -> None:
    all_keys = write_latents(str(tmp_path / "latents"), SIZES)
    for number, batch in enumerate(batches(configure(str(tmp_path / "latents")), 10)):
        assert (batch.step, batch.moments.dtype) == (number // 2, torch.float16)
        assert batch.moments.shape == (4, 8, 2, 2)
        assert batch.sample_ids.tolist() == list(range(4 * number, 4 * number + 4))
        for key, caption, moments in zip(batch.keys, batch.captions, batch.moments, strict=True):
            assert (moments == all_keys.index(key)).all()
            assert caption in {"", *(f"{key} level {level}" for level in range(4))}


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 2), (2, 4), (2, 1), (4, 2)])
def test_the_global_batches_are_the_same_at_every_world_size(
    latents: str, world_size: int, micro_batch: int
) -> None:
    straight = samples(batches(configure(latents), 8, micro_batch=8))
    assert samples(batches(configure(latents), 8, 0, world_size, micro_batch)) == straight


def test_it_goes_on_from_any_step_at_any_world_size(latents: str) -> None:
    straight = samples(batches(configure(latents), 12))
    for start, world_size in ((1, 2), (3, 1), (11, 4)):
        rest = batches(configure(latents), 12 - start, start, world_size, micro_batch=2)
        assert samples(rest) == straight[8 * start :]


def test_whatever_stops_and_world_sizes_the_global_batches_are_those_of_a_straight_run(
    tmp_path: Path, write_latents: Writer, write_kept: Callable[..., None]
) -> None:
    """Two filtered and weighted datasets of two resolutions; runs that stop at random steps and go
    on with another number of processes."""
    names = ["128x128", "160x96", "128x128"]
    datasets: list[dict[str, object]] = []
    for name, weight in (("one", 1.0), ("two", 0.5)):
        url, kept = str(tmp_path / name), str(tmp_path / f"kept {name}")
        all_keys = write_latents(url, SIZES, bucket_of=lambda number: names[number % 3])
        write_kept(kept, [*all_keys, "00001000000"], lambda key: int(key) % 5 > 0)
        datasets.append({"path": url, "kept": kept, "weight": weight})
    config = configure(*datasets)
    straight = samples(batches(config, 24, micro_batch=8))

    @settings(deadline=None, max_examples=15)
    @given(
        st.lists(st.integers(1, 23), max_size=3, unique=True),
        st.lists(st.sampled_from([1, 2, 4]), min_size=4, max_size=4),
    )
    def check(stops: list[int], world_sizes: list[int]) -> None:
        edges = [0, *sorted(stops), 24]
        found = []
        for (start, stop), size in zip(itertools.pairwise(edges), world_sizes, strict=False):
            found += samples(batches(config, stop - start, start, size, micro_batch=2))
        assert found == straight

    check()


def test_half_of_the_pictures_are_mirrored_where_flips_are_asked(
    tmp_path: Path, write_latents: Writer
) -> None:
    """By sample, so at any world size alike; captions, order and noise do not notice."""
    url = str(tmp_path / "latents")
    write_latents(url, SIZES, label_of=lambda number: number % 3, is_mirrored=True)
    plain = configure(url, labels=True)
    flipped = plain.model_copy(update={"horizontal_flips": True})
    found, straight = batches(flipped, 40), batches(plain, 40)
    assert keys(found) == keys(straight)
    signs = [
        (batch.moments == other.moments).flatten(1).all(1)
        for batch, other in zip(found, straight, strict=True)
    ]
    assert all(
        torch.equal(batch.moments.abs(), other.moments)
        for batch, other in zip(found, straight, strict=True)
    )
    assert 0.4 < torch.cat(signs).float().mean() < 0.6
    assert samples(batches(flipped, 8, 0, 2, 2)) == samples(batches(flipped, 8, micro_batch=8))


def test_flips_need_mirrored_latents_and_labels(latents: str) -> None:
    """Captions tell left from right."""
    config = configure(latents, labels=True, horizontal_flips=True)
    with pytest.raises(
        ValueError, match=r"latents of mirrored .* data_pipeline\.latents\.mirrored"
    ):
        batches(config, 1)
    with pytest.raises(ValueError, match="tell left from right"):
        configure(latents, horizontal_flips=True)


def test_workers_change_nothing(latents: str) -> None:
    assert samples(batches(configure(latents, num_workers=2), 6)) == samples(
        batches(configure(latents), 6)
    )


def test_workers_serve_on_after_sigterm(latents: str) -> None:
    loader = make_loader(
        configure(latents, num_workers=2),
        seed=5,
        rank=0,
        world_size=1,
        global_batch=8,
        micro_batch=4,
        start_step=0,
        storage=StorageConfig(),
    )
    found = iter(loader)
    first, second = next(found), next(found)  # one of each worker: both are up
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    served = [first, second, *islice(found, 18)]
    assert samples(served) == samples(batches(configure(latents), num_steps=10))


def test_an_epoch_visits_each_sample_once(tmp_path: Path, write_latents: Writer) -> None:
    all_keys = write_latents(str(tmp_path / "latents"), SIZES)
    found = keys(batches(configure(str(tmp_path / "latents")), 15))
    for epoch in range(4):
        part = found[NUM_SAMPLES * epoch : NUM_SAMPLES * (epoch + 1)]
        assert sorted(part) == all_keys
    assert found[:NUM_SAMPLES] != found[NUM_SAMPLES : 2 * NUM_SAMPLES]


def test_only_kept_keys_are_visited(
    tmp_path: Path, write_latents: Writer, write_kept: Callable[..., None]
) -> None:
    all_keys = write_latents(str(tmp_path / "latents"), SIZES)
    odd = [key for key in all_keys if int(key) % 2]
    write_kept(str(tmp_path / "kept"), all_keys, lambda key: key in odd)
    write_kept(str(tmp_path / "kept"), ["00001000000"], lambda key: False)
    dataset = {"path": str(tmp_path / "latents"), "kept": str(tmp_path / "kept")}
    found = keys(batches(configure(dataset), 8, global_batch=len(odd), micro_batch=len(odd)))
    assert Counter(found) == dict.fromkeys(odd, 8)


def test_the_held_out_part_and_the_rest_are_the_whole(tmp_path: Path, latents: str) -> None:
    config = configure(latents, held_out=12)
    held_out = config.model_copy(update={"part": "held_out"})
    training = Counter(keys(batches(config, 18, global_batch=6, micro_batch=6)))
    validation = Counter(keys(batches(held_out, 2, global_batch=6, micro_batch=6)))
    assert set(validation.values()) == {1}
    assert sorted(validation) == keys_of_head(latents, 12)
    assert set(training.values()) == {6}
    assert len(training) == NUM_SAMPLES - 12
    assert not set(training) & set(validation)


def keys_of_head(url: str, number: int) -> list[str]:
    output = StepOutput.open(url)
    return [key for shard_id in output.committed() for key in output.ok_keys(shard_id)][:number]


def test_each_batch_has_one_resolution(tmp_path: Path, write_latents: Writer) -> None:
    names = ["128x128", "160x96", "128x128"]
    url = str(tmp_path / "latents")
    all_keys = write_latents(url, SIZES, bucket_of=lambda number: names[number % 3])
    found = batches(configure(url), 30)
    shapes = Counter(tuple(batch.moments.shape[1:]) for batch in found)
    assert shapes.keys() == {(8, 2, 2), (8, 1, 3)}
    assert shapes[8, 2, 2] == pytest.approx(2 * shapes[8, 1, 3], abs=3)
    assert {batch.step for batch in found[:2]} == {0}
    assert set(keys(found)) == set(all_keys)


def test_datasets_are_mixed_by_weight(tmp_path: Path, write_latents: Writer) -> None:
    once, thrice = str(tmp_path / "once"), str(tmp_path / "thrice")
    expected = Counter(write_latents(once, [7, 5]))
    for key in write_latents(thrice, [16]):
        expected[key] += 3  # some keys are in both
    found = batches(configure(once, {"path": thrice, "weight": 3}), 15, global_batch=4)
    assert Counter(keys(found)) == expected


def test_captions_are_drawn_with_the_stated_probabilities(latents: str) -> None:
    """Limits of five standard deviations: a false alarm in 1 of 10^6."""
    config = configure(latents, caption_levels=(0.5, 0.3, 0.2, 0.0), caption_dropout=0.1)
    found = batches(config, 4, global_batch=1000, micro_batch=1000)
    captions = [caption for batch in found for caption in batch.captions]
    levels = Counter(caption[-1:] for caption in captions)
    for level, share in (("", 0.1), ("0", 0.45), ("1", 0.27), ("2", 0.18), ("3", 0.0)):
        deviation = (share * (1 - share) / 4000) ** 0.5
        assert abs(levels[level] / 4000 - share) <= 5 * deviation
    by_key: dict[str, set[str]] = {}
    for key, caption in zip(keys(found), captions, strict=True):
        by_key.setdefault(key, set()).add(caption[-1:])
    assert all(len(of_key) == 4 for of_key in by_key.values())


def test_labels_are_those_of_the_samples_and_are_dropped_with_the_captions(
    tmp_path: Path, write_latents: Writer
) -> None:
    url = str(tmp_path / "labelled")
    all_keys = write_latents(url, SIZES, label_of=lambda number: 3 * number)
    plain = batches(configure(url, caption_dropout=0.3), 40)
    labelled = batches(configure(url, caption_dropout=0.3, labels=True), 40)
    assert samples(plain) == samples(labelled), "labels change nothing else"
    assert {batch.labels for batch in plain} == {None}
    num_dropped = 0
    for batch in labelled:
        assert batch.labels is not None
        assert batch.labels.dtype == torch.int64
        for key, caption, label in zip(batch.keys, batch.captions, batch.labels, strict=True):
            assert label == (DROPPED if caption == "" else 3 * all_keys.index(key))
            num_dropped += caption == ""
    # 320 draws: the share's standard error is 0.026
    assert num_dropped / 320 == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize(("label", "num_workers"), [(None, 0), (None, 1), ("cat", 0), (-1, 0)])
def test_a_missing_label_names_the_sample(
    label: object, num_workers: int, tmp_path: Path, write_latents: Writer
) -> None:
    url = str(tmp_path / "labelled")
    write_latents(url, SIZES, label_of=lambda number: label if number == 4 else 0)
    with pytest.raises(ValueError, match=r"^sample 00000000005 has no label .* found"):
        batches(configure(url, labels=True, num_workers=num_workers), 4)


def test_it_reads_from_s3(s3_url: str, s3_config: StorageConfig, write_latents: Writer) -> None:
    all_keys = write_latents(f"{s3_url}/latents", [5, 3], storage=s3_config)
    found = batches(configure(f"{s3_url}/latents"), 1, storage=s3_config)
    assert sorted(keys(found)) == all_keys


def tar_of(url: str, shard_id: str) -> Path:
    return StepOutput.open(url).shard_path(shard_id)


def test_a_missing_shard_names_itself(latents: str) -> None:
    path = tar_of(latents, "00002")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        batches(configure(latents), 4)


def test_a_cut_shard_names_itself(latents: str) -> None:
    path = tar_of(latents, "00002")
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(ValueError, match=f"{path.name}: .* bytes, but .* were committed"):
        batches(configure(latents), 4)


def test_a_changed_shard_names_itself_also_from_a_worker(latents: str) -> None:
    path, other = tar_of(latents, "00002"), tar_of(latents, "00000")
    size = path.stat().st_size
    path.write_bytes((other.read_bytes() * 4)[:size])
    with pytest.raises(ValueError, match=f"{path.name}: cut or changed"):
        batches(configure(latents, num_workers=1), 4)


def test_a_shard_cut_while_it_is_read_names_itself(latents: str) -> None:
    data = LatentBatches(configure(latents), 5, Share(8, 0, 1, 8), StorageConfig())
    data.read(0)
    for shard_id in ("00000", "00002", "00003"):
        os.truncate(tar_of(latents, shard_id), 512)
    with pytest.raises(ValueError, match="cut"):
        data.read(1)


def test_latents_of_two_vaes_are_refused(latents: str, write_latents: Writer) -> None:
    write_latents(f"{latents}-other", [4], vae="another")
    with pytest.raises(ValueError, match="different VAEs"):
        batches(configure(latents, f"{latents}-other"), 1)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="8 cannot be dealt out to 3 processes"):
        Share(8, 0, 3, 2)


def test_only_so_many_shards_stay_open(tmp_path: Path, write_latents: Writer) -> None:
    url = str(tmp_path / "latents")
    write_latents(url, [3] * 12)
    data = LatentBatches(configure(url), 5, Share(4, 0, 1, 4), StorageConfig())
    for number in range(30):
        data.read(number)
    assert len(data.reader.shards) == 4


def test_the_description_tells_samples_buckets_and_steps(latents: str) -> None:
    config = configure(latents, held_out=6)
    data = LatentBatches(config, 5, Share(8, 0, 1, 8), StorageConfig())
    assert data.describe() == (
        "training: an epoch visits 24 samples (30 in 1 dataset(s)) of 128x128 px, in 3.0 steps of 8"
    )


def test_the_first_captions_are_a_sample_of_the_training_data(latents: str) -> None:
    config = configure(latents, held_out=9)
    captions = read_captions(config, seed=5, count=2 * (NUM_SAMPLES - 9))
    names = [caption.split()[0] for caption in captions]
    assert len(set(names[: NUM_SAMPLES - 9])) == NUM_SAMPLES - 9, "an epoch, nothing twice"
    assert len({name[:5] for name in names[:7]}) == 1, "a whole shard before the next"
    assert not any(name.startswith("00000") for name in names), "nothing that is held out"
    assert read_captions(config, seed=6, count=5) != captions[:5]


def test_the_first_captions_have_their_levels_and_none_is_dropped(latents: str) -> None:
    config = configure(latents, caption_dropout=1.0, caption_levels=(0.5, 0, 0.5, 0))
    levels = Counter(caption[-1] for caption in read_captions(config, seed=5, count=200))
    # a standard deviation of 7
    assert levels == {"0": pytest.approx(100, abs=28), "2": pytest.approx(100, abs=28)}
