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

from data_pipeline.benchmark_config import DataBenchmarkConfig
from data_pipeline.latent_shards import npy_header
from data_pipeline.ledger import Outcome, Row
from data_pipeline.manifest import StepOutput
from data_pipeline.shards import Sample
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
    """Manifests and ledgers of as many shards as `order` makes up; their tars are missing."""
    source = StepOutput.open(f"{folder}/source")
    with source.writer("00000", {"bucket": "string"}) as writer:
        for number in range(config.order_samples):
            row = Row(f"{number:011d}", "ok", columns={"bucket": BUCKET})
            writer.add(Outcome(row))
        writer.commit()
    manifest = source.manifest("00000")
    ledger, text = (
        source.storage.get(manifest.status_key),
        source.storage.get("manifest/00000.json"),
    )
    target = Path(folder) / "latents"
    for name in ("manifest", "status"):
        (target / name).mkdir(parents=True)
    for shard in range(config.order_shards):
        shard_id = f"{shard:05d}"
        status_key = manifest.status_key.replace("00000", shard_id, 1)
        (target / status_key).write_bytes(ledger)
        own = text.decode().replace(manifest.status_key, status_key)
        own = own.replace('"id": "00000"', f'"id": "{shard_id}"')
        (target / "manifest" / f"{shard_id}.json").write_text(own)


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
