"""Proves that the data pipeline's benchmarks run, and that both readers of the first give the same
samples in whole batches."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.benchmark import loader_batches, main, webdataset_batches
from data_pipeline.benchmarks.benchmark_config import DataBenchmarkConfig
from data_pipeline.benchmarks.benchmark_shards import write_latents

SMALL = {
    "num_shards": 4,
    "samples_per_shard": 6,
    "moments_shape": "[4, 2, 2]",
    "batch_size": 3,
    "num_workers": 1,
    "shuffle_buffer": 4,
    "repeats": 1,
    "warmup": 0,
    "batches": 2,
    "order_shards": 120,
    "order_samples": 40,
    "order_global_batch": 8,
}


@pytest.mark.parametrize(
    ("what", "num_rows", "column", "samples"),
    [
        ("loader", 3, "samples_per_second", []),
        ("order", 2, "seconds_to_jump", [4800, 4800]),
        ("catalog", 6, "seconds_counts", [4800, 4800, 4800, 4800, 2880, 2880]),
    ],
)
def test_a_benchmark_writes_a_table_and_its_numbers(
    tmp_path: Path, what: str, num_rows: int, column: str, samples: list[int]
) -> None:
    values = {**SMALL, "shards": tmp_path / "latents", "output": tmp_path / "out"}
    settings = [f"--set=data_pipeline.benchmark.{key}={value}" for key, value in values.items()]
    assert main([what, *settings]) == 0
    result = json.loads((tmp_path / "out" / f"data-{what}.json").read_text())
    assert [row[column] > 0 for row in result["rows"]] == [True] * num_rows
    assert {"cpus", "torch", "webdataset", "commit", "settings"} <= result.keys()
    table = (tmp_path / "out" / f"data-{what}.md").read_text().splitlines()
    assert len(table) == 4 + num_rows
    assert [row["samples"] for row in result["rows"] if "samples" in row] == samples


def test_both_readers_give_every_sample_once_an_epoch(tmp_path: Path) -> None:
    config = DataBenchmarkConfig.model_validate(
        {**SMALL, "moments_shape": (4, 2, 2), "shards": str(tmp_path / "latents")}
    )
    paths = write_latents(config)
    ours = list(islice(loader_batches(config), 8))
    theirs = list(islice(webdataset_batches(config, paths, own_decoders=False), 8))
    decoded = list(islice(webdataset_batches(config, paths, own_decoders=True), 8))
    expected = {key: m for batch in ours for key, m in zip(batch.keys, batch.moments, strict=True)}
    assert len(expected) == 24
    for batches in (theirs, decoded):
        found = {k: m for b in batches for k, m in zip(b["keys"], b["moments"], strict=True)}
        assert found.keys() == expected.keys()
        for key, moments in found.items():
            np.testing.assert_array_equal(moments, expected[key])
