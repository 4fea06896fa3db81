"""The made-up data of `data_pipeline.benchmark`, and what webdataset makes of it."""

from __future__ import annotations

import functools
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.benchmarks.benchmark_config import DataBenchmarkConfig
from data_pipeline.loading.latent_shards import npy_header
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from t2i.console import progress

WORDS = "a large red barn stands beside a calm lake in the evening light with mountains behind it "
CAPTION_LENGTHS = (900, 400, 120, 80)  # characters
BUCKET = "512x512"

cached_npy_header = functools.lru_cache(npy_header)


def write_latents(config: DataBenchmarkConfig) -> list[str]:
    """A folder of latents as the step leaves it, unless it is there; gives its tars."""
    settings = ("num_shards", "samples_per_shard", "moments_shape")
    output = StepOutput.open(config.shards)
    output.begin({name: getattr(config, name) for name in settings})
    done = set(output.committed())
    noise = np.random.default_rng(0)
    with progress("latents", config.num_shards, "shards", len(done)) as bar:
        for shard in range(config.num_shards):
            shard_id = f"{shard:05d}"
            if shard_id not in done:
                _write_shard(output, shard_id, config, noise)
                bar.update()
    return [str(output.shard_path(shard_id)) for shard_id in output.committed()]


def _write_shard(
    output: StepOutput, shard_id: str, config: DataBenchmarkConfig, noise: np.random.Generator
) -> None:
    captions = [(WORDS * 12)[:length] for length in CAPTION_LENGTHS]
    facts = {"captions": captions, "width": 640, "height": 480, "bucket": BUCKET}
    with output.writer(shard_id, {"bucket": "string"}) as writer:
        for number in range(config.samples_per_shard):
            buffer, key = io.BytesIO(), f"{shard_id}{number:06d}"
            np.save(buffer, noise.standard_normal(config.moments_shape).astype(np.float16))
            parts = {"npy": buffer.getvalue(), "json": json.dumps(facts).encode()}
            writer.add(Outcome(Row(key, "ok", columns={"bucket": BUCKET}), Sample(key, parts)))
        writer.commit()


def write_manifests(config: DataBenchmarkConfig, folder: str) -> None:
    """The outputs of steps over as many shards as `order` makes up, without their tars.

    ``latents``, the same as ``earlier`` versions wrote it (manifests do not count the buckets), and
    ``kept``, a filter that keeps three of five.
    """
    buckets = [f"{512 + 32 * number}x512" for number in range(config.order_buckets)]
    latents, kept = [], []
    for number in range(config.order_samples):
        key, bucket = f"{number:011d}", buckets[number % len(buckets)]
        sample = Sample(key, {"npy": b"", "json": b""})
        latents.append(Outcome(Row(key, "ok", columns={"bucket": bucket}), sample))
        score = {"aesthetic": number / 1000}
        is_kept = number % 5 < 3
        row = Row(key, "ok", "", score) if is_kept else Row(key, "filtered", "aesthetic<=5", score)
        kept.append(Outcome(row))
    _repeat(f"{folder}/latents", latents, config.order_shards, ["bucket"])
    _repeat(f"{folder}/earlier", latents, config.order_shards, [])
    _repeat(f"{folder}/kept", kept, config.order_shards, [])


def _repeat(
    url: str, outcomes: Sequence[Outcome], num_shards: int, counted_columns: Sequence[str]
) -> None:
    """Commit a shard and copy its manifest and ledger for the others."""
    output = StepOutput.open(url)
    with output.writer("00000", counted_columns=counted_columns) as writer:
        for outcome in outcomes:
            writer.add(outcome)
        manifest = writer.commit()
    ledger, text = output.ledger("00000").data, json.dumps(vars(manifest), indent=1)
    for shard in range(num_shards):
        shard_id = f"{shard:05d}"
        own = text.replace("00000-", f"{shard_id}-").replace('"00000"', f'"{shard_id}"')
        (Path(url) / manifest.status_key.replace("00000", shard_id, 1)).write_bytes(ledger)
        (Path(url) / "manifest" / f"{shard_id}.json").write_text(own)


def decode(sample: dict[str, Any]) -> dict[str, Any]:
    """A webdataset sample's parts, decoded as the loader does."""
    shape, offset = cached_npy_header(sample["npy"][:128])
    moments = np.frombuffer(sample["npy"], np.float16, offset=offset).reshape(shape)
    return {**sample, "npy": moments, "json": json.loads(sample["json"])}


def collate(samples: Sequence[tuple[str, np.ndarray, dict[str, Any]]]) -> dict[str, Any]:
    """A batch with what a `TrainingBatch` has: moments, one caption of each sample, keys."""
    keys, moments, facts = zip(*samples, strict=True)
    return {
        "moments": torch.from_numpy(np.stack(moments)),
        "captions": tuple(random.choice(fact["captions"]) for fact in facts),
        "keys": keys,
    }
