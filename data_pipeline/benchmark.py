"""Measure the loader beside plain webdataset, and how soon a plan of 100M samples is ready.

    python -m data_pipeline.benchmark loader    samples/s from warm local shards, rows take turns
    python -m data_pipeline.benchmark order     seconds and memory until the first and a far batch
    python -m data_pipeline.benchmark catalog   seconds to open as many shards' manifests, ledgers

`loader`: every row reads the same tars with as many workers, makes the same batches (float16
moments, one caption of four per sample) and keeps as many ready. webdataset passes split_by_node,
shuffles shards and a buffer of samples as usual; once with the loader's decoders (the ratio's
base), once with its own. The batches that were ready before a row's turn are not counted.

`catalog`: new processes open local folders that were just written, `first` with nothing in the
cache folder; medians of the rounds. Manifests of earlier versions leave the buckets to the ledgers.

Results go to <output>/data-<command>.json with versions, commit and CPUs, and to a table (.md).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.benchmarks.benchmark_config import DataBenchmarkConfig
from t2i.config import Section, add_config_arguments, config_from_args, describe_config, section
from t2i.console import command_parser, get_logger, progress, run_command
from t2i.environment import describe_environment

LOG = get_logger("benchmark")
Row = dict[str, Any]
CATALOGS = {  # folders of latents and of a filter
    "buckets in manifests": ("latents", None),
    "buckets in ledgers": ("earlier", None),
    "with a filter": ("latents", "kept"),
}


class Config(Section):
    """What this command reads."""

    benchmark: DataBenchmarkConfig = section("data_pipeline.benchmark")


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m data_pipeline.benchmark", __doc__)
    parser.add_argument(
        "what",
        choices=("loader", "order", "catalog"),
        help="loader: samples/s beside webdataset; order: a plan's start; catalog: its data's start",
    )
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config).benchmark
    LOG.info(describe_config(args))
    measure = {"loader": measure_loader, "order": measure_order, "catalog": measure_catalog}
    write(args.what, measure[args.what](config), config)
    return 0


# -- loader ------------------------------------------------------------------------------------


def measure_loader(config: DataBenchmarkConfig) -> list[Row]:
    """Samples/s of each reader: medians over rounds, of the ratio to webdataset too."""
    from data_pipeline.benchmarks.benchmark_shards import write_latents

    paths = write_latents(config)
    rows: dict[str, Callable[[], Iterator[Any]]] = {
        "webdataset, our decoders": lambda: webdataset_batches(config, paths, own_decoders=False),
        "webdataset, its decoders": lambda: webdataset_batches(config, paths, own_decoders=True),
        "data_pipeline.loader": lambda: loader_batches(config),
    }
    readers = {name: make() for name, make in rows.items()}
    speeds: dict[str, list[float]] = {name: [] for name in rows}
    with progress("loader", config.warmup + config.repeats, "rounds") as bar:
        for number in range(config.warmup + config.repeats):
            for name, batches in readers.items():
                speed = samples_per_second(batches, config)
                if number >= config.warmup:
                    speeds[name].append(speed)
            bar.update()
    first = next(iter(rows))
    return [
        {
            "reader": name,
            "samples_per_second": statistics.median(of_row),
            "ratio": statistics.median(
                speed / base for speed, base in zip(of_row, speeds[first], strict=True)
            ),
        }
        for name, of_row in speeds.items()
    ]


def samples_per_second(batches: Iterator[Any], config: DataBenchmarkConfig) -> float:
    """Of the batches after those that lie ready."""
    for _ in range(config.num_workers * config.prefetch):
        next(batches)
    started = time.perf_counter()
    for _ in range(config.batches):
        next(batches)
    return config.batches * config.batch_size / (time.perf_counter() - started)


def loader_batches(config: DataBenchmarkConfig) -> Iterator[Any]:
    """Our loader."""
    from data_pipeline.loader import make_loader
    from data_pipeline.loading.loader_config import LoaderConfig

    loader = LoaderConfig.model_validate(
        {
            "datasets": [{"path": config.shards}],
            "num_workers": config.num_workers,
            "prefetch": config.prefetch,
        }
    )
    return iter(
        make_loader(
            loader,
            seed=0,
            rank=0,
            world_size=1,
            global_batch=config.batch_size,
            micro_batch=config.batch_size,
            start_step=0,
        )
    )


def webdataset_batches(
    config: DataBenchmarkConfig, paths: Sequence[str], own_decoders: bool
) -> Iterator[Any]:
    """webdataset as its documentation has it."""
    import webdataset

    from data_pipeline.benchmarks.benchmark_shards import collate, decode

    dataset = webdataset.WebDataset(
        list(paths),
        nodesplitter=webdataset.split_by_node,
        shardshuffle=len(paths),
        seed=0,
    ).shuffle(config.shuffle_buffer)
    dataset = dataset.decode() if own_decoders else dataset.map(decode)
    batches = dataset.to_tuple("__key__", "npy", "json").batched(
        config.batch_size, collation_fn=collate, partial=False
    )
    loader = webdataset.WebLoader(
        batches.repeat(),
        batch_size=None,
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch,
    )
    return iter(loader)


# -- order -------------------------------------------------------------------------------------


def measure_order(config: DataBenchmarkConfig) -> list[Row]:
    """Seconds and peak memory of new processes: one bucket and several."""
    return [in_new_process("order_row", config, n) for n in (1, config.order_buckets)]


def in_new_process(function: str, config: DataBenchmarkConfig, *arguments: int | str) -> Row:
    """What a function of this module gives, in a process whose memory is its own."""
    code = (
        "import json, sys; from data_pipeline import benchmark as b; "
        "config = b.DataBenchmarkConfig.model_validate_json(sys.argv[1]); "
        f"print(json.dumps(b.{function}(config, *json.loads(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, config.model_dump_json(), json.dumps(arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def order_row(config: DataBenchmarkConfig, num_buckets: int) -> Row:
    """Make a plan, draw its first batch, jump far; with the times of each."""
    import numpy as np
    import torch  # noqa: F401  (its import is not the plan's time)

    from data_pipeline.loading.order import DatasetCounts, Order

    empty = peak_gigabytes()
    per_bucket = config.order_samples // num_buckets
    counts = {f"bucket {n}": np.full(config.order_shards, per_bucket) for n in range(num_buckets)}
    clock = [time.perf_counter()]
    order = Order(0, [DatasetCounts(1.0, counts)], config.order_global_batch, window_shards=16)
    order.batch(0)
    clock.append(time.perf_counter())
    far = order.first_step(3) + order.first_step(1) // 2
    order.batch(far)
    clock.append(time.perf_counter())
    for step in range(far + 1, far + 101):
        order.batch(step)
    clock.append(time.perf_counter())
    first, jump, hundred = np.diff(clock).tolist()
    return {
        "samples": order.samples_in_epoch(),
        "buckets": num_buckets,
        "seconds_to_first_batch": first,
        "seconds_to_jump": jump,
        "milliseconds_per_next_batch": 10 * hundred,
        "memory_gb": peak_gigabytes(),
        "memory_gb_of_imports": empty,
    }


def peak_gigabytes() -> float:
    """The most that this process has had resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# -- catalog -----------------------------------------------------------------------------------


def measure_catalog(config: DataBenchmarkConfig) -> list[Row]:
    """Seconds until the counts of as many shards are known: for the first time, and again."""
    from tempfile import TemporaryDirectory

    from data_pipeline.benchmarks.benchmark_shards import write_manifests

    found: dict[tuple[str, str], list[Row]] = {}
    with (
        TemporaryDirectory(dir=Path(config.shards).parent) as folder,
        progress("catalog", config.repeats, "rounds") as bar,
    ):
        write_manifests(config, folder)
        catalog = config.model_copy(update={"shards": folder})
        for number in range(config.repeats):
            for data in CATALOGS:
                for opened in ("first", "again"):
                    row = in_new_process("catalog_row", catalog, data, f"cache{number}/{data}")
                    found.setdefault((data, opened), []).append(row)
            bar.update()
    return [
        {"data": data, "opened": opened, **summary(rows)} for (data, opened), rows in found.items()
    ]


def summary(rows: Sequence[Row]) -> Row:
    """Medians of rows, and the longest time."""
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {**medians, "most_seconds": max(row["seconds"] for row in rows)}


def catalog_row(config: DataBenchmarkConfig, data: str, cache: str) -> Row:
    """Open a folder of latents and count its samples."""
    from data_pipeline.loading.catalog import open_latents
    from data_pipeline.loading.loader_config import DatasetConfig, LoaderConfig
    from data_pipeline.storage.interface import StorageConfig

    latents, kept = CATALOGS[data]
    dataset = DatasetConfig(
        path=f"{config.shards}/{latents}", kept=kept and f"{config.shards}/{kept}"
    )
    storage = StorageConfig(cache_folder=f"{config.shards}/{cache}")
    clock, cpu = [time.perf_counter()], time.process_time()
    catalog = open_latents(dataset, LoaderConfig(datasets=(dataset,)), storage)
    clock.append(time.perf_counter())
    counts = catalog.counts()
    clock.append(time.perf_counter())
    return {
        "shards": len(catalog.manifests),
        "samples": int(sum(of_bucket.sum() for of_bucket in counts.values())),
        "seconds_manifests": clock[1] - clock[0],
        "seconds_counts": clock[2] - clock[1],
        "seconds": clock[2] - clock[0],
        "cpu_seconds": time.process_time() - cpu,
        "memory_gb": peak_gigabytes(),
    }


# -- results -----------------------------------------------------------------------------------


def write(what: str, rows: Sequence[Row], config: DataBenchmarkConfig) -> None:
    """Write the .json and the .md; print the table."""
    import webdataset

    facts = {
        "what": what,
        **describe_environment("cpu"),
        "cpus": os.cpu_count(),
        "webdataset": webdataset.__version__,
    }
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"data-{what}"
    result = {**facts, "settings": config.model_dump(mode="json"), "rows": list(rows)}
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(rows, facts)
    stem.with_suffix(".md").write_text(text)
    print(text)
    LOG.info("%s", stem.with_suffix(".json"))


def table(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Markdown."""
    heads = [name.replace("_", " ") for name in rows[0]]
    lines = [", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    lines += [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for row in rows:
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
