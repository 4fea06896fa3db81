"""Download: metadata rows -> image shards, one ledger row per metadata row, whatever became of it.

Rows are cut into shards of fixed ranges: shard ``00003`` holds rows 3 * rows_per_shard and on,
and row 7 of it has the key ``00003000007`` from here to the latents. Before the first shard one
pass over the metadata finds duplicates; its result is kept as one bit per row in the output
folder (``plan/``), so that every worker, now or after a restart, drops the same rows.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import InfrastructureError, Job, run_job
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.pictures.images import (
    STORED_COLUMNS,
    ImageConfig,
    ImageError,
    StoredImage,
    store_image,
)
from data_pipeline.sources.coyo import CoyoMetadata, find_duplicates
from data_pipeline.storage.interface import Storage, StorageConfig
from data_pipeline.storage.stores import open_storage
from data_pipeline.web.fetch_config import FetchConfig, FetchError
from t2i.config import Section, add_config_arguments, config_from_args, describe_config, section
from t2i.console import command_parser, get_logger, run_command

if TYPE_CHECKING:  # aiohttp is slow to import
    from data_pipeline.web.fetch import Fetcher

EPILOG = """\
examples:
  the nano family's toy web (drawn and served by data_pipeline.sources.shapes):
    python -m data_pipeline.sources.shapes
    python -m data_pipeline.sources.shapes --serve python -m data_pipeline.download
  COYO-700M from S3 on a Ray cluster:
    python -m data_pipeline.download --config configs/tr_dit_2b5.yaml \\
      --set data_pipeline.download.metadata=s3://bucket/coyo-700m \\
      --set data_pipeline.download.output=s3://bucket/images --set data_pipeline.jobs.executor=ray

Run the same command again to go on. Each row of the metadata has one row in the output's ledger
(status/*.parquet): ok, filtered (duplicate, too_small) or failed, with the reason: http_404 and
other statuses, timeout, connection_error, undecodable, too_large, refused_address, invalid_url,
too_many_redirects.
"""
# Ledger columns that download adds to those of the metadata.
ADDED_COLUMNS = {"final_url": "string"} | STORED_COLUMNS
FILTER_REASONS = ("duplicate", "too_small")  # the rest are failures
NOT_ASKED_REASONS = ("duplicate", "refused_address", "invalid_url")
UNANSWERED_REASONS = ("timeout", "connection_error")
OUTAGE_SHARE = 0.9  # of the requests of a batch
MAX_SHARDS, MAX_ROWS_PER_SHARD = 100_000, 1_000_000  # what the digits of a key hold

logger = get_logger("download")


class DownloadConfig(Section):
    """Section ``data_pipeline.download``. Image limits and encoding decide what is stored."""

    metadata: str  # a parquet file, or a folder of them; local or s3://
    output: str
    rows_per_shard: int = Field(default=10_000, ge=1, le=MAX_ROWS_PER_SHARD)
    max_rows: int | None = Field(default=None, ge=1)  # only the first rows of the metadata
    deduplicate: tuple[Literal["url", "image_phash"], ...] = ("url", "image_phash")
    batch_size: int = Field(
        default=512, ge=1
    )  # rows under way at a time: their bodies are in memory
    outage_rows: int = Field(default=32, ge=0)
    """When a batch has at least so many requests and nearly none is answered, our own network is
    taken to be down and the shard is tried again later; 0 turns this off."""
    fetch: FetchConfig = FetchConfig()
    images: ImageConfig = ImageConfig()


class Config(Section):
    """What ``python -m data_pipeline.download`` reads."""

    download: DownloadConfig = section("data_pipeline.download")
    jobs: JobsConfig = section("data_pipeline.jobs")
    storage: StorageConfig = section("data_pipeline.storage")


@dataclass(frozen=True)
class DownloadItem:
    """One metadata row."""

    key: str
    columns: dict[str, Any]
    is_duplicate: bool


@dataclass(frozen=True)
class Plan:
    """Which rows to download: all ``num_rows``, but for the set bits in the storage's ``key``."""

    metadata: CoyoMetadata
    storage: Storage
    key: str
    num_rows: int

    def duplicates(self, start: int, stop: int) -> list[bool]:
        """For rows [start, stop) whether each is a duplicate."""
        first = start // 8
        data = self.storage.get_range(self.key, first, -(-stop // 8) - first)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[start - 8 * first : stop - 8 * first].astype(bool).tolist()


class DownloadStep:
    """The function of one shard (see `data_pipeline.jobs.runner.Step`)."""

    def __init__(self, plan: Plan, config: DownloadConfig) -> None:
        self.plan, self.config = plan, config

    def load(self, shard_id: str) -> list[DownloadItem]:
        start = int(shard_id) * self.config.rows_per_shard
        stop = min(start + self.config.rows_per_shard, self.plan.num_rows)
        rows = self.plan.metadata.read(start, stop).to_pylist()
        duplicates = self.plan.duplicates(start, stop)
        return [
            DownloadItem(f"{shard_id}{index:06d}", row, is_duplicate)
            for index, (row, is_duplicate) in enumerate(zip(rows, duplicates, strict=True))
        ]

    def run(self, items: Sequence[DownloadItem]) -> list[Outcome]:
        outcomes = asyncio.run(self._run(items))
        self._check_outage(outcomes)
        return outcomes

    async def _run(self, items: Sequence[DownloadItem]) -> list[Outcome]:
        from data_pipeline.web.fetch import Fetcher

        with ThreadPoolExecutor(max_workers=1) as decoder:
            async with Fetcher(self.config.fetch, self.config.images.max_bytes) as fetcher:
                return await asyncio.gather(
                    *(self._download(item, fetcher, decoder) for item in items)
                )

    async def _download(
        self, item: DownloadItem, fetcher: Fetcher, decoder: ThreadPoolExecutor
    ) -> Outcome:
        if item.is_duplicate:
            return _without_image(item, "duplicate", "")
        try:
            response = await fetcher.fetch(item.columns["url"] or "")
            image = await asyncio.get_running_loop().run_in_executor(
                decoder, store_image, response.body, self.config.images
            )
        except (FetchError, ImageError) as error:
            return _without_image(item, error.reason, error.detail)
        return _with_image(item, image, {"final_url": response.url, **image.columns})

    def _check_outage(self, outcomes: Sequence[Outcome]) -> None:
        rows = [outcome.row for outcome in outcomes]
        num_asked = sum(row.reason not in NOT_ASKED_REASONS for row in rows)
        details = [row.detail for row in rows if row.reason in UNANSWERED_REASONS]
        is_enough = self.config.outage_rows and num_asked >= self.config.outage_rows
        if is_enough and len(details) > OUTAGE_SHARE * num_asked:
            raise InfrastructureError(
                f"{len(details)} of {num_asked} requests were not answered ({details[0]}); is the "
                "network up? If so many of these servers are really dead: "
                "--set data_pipeline.download.outage_rows=0"
            )


def _without_image(item: DownloadItem, reason: str, detail: str) -> Outcome:
    status: Literal["filtered", "failed"] = "filtered" if reason in FILTER_REASONS else "failed"
    return Outcome(Row(item.key, status, reason, item.columns, detail))


def _with_image(item: DownloadItem, image: StoredImage, added: dict[str, Any]) -> Outcome:
    columns = item.columns | added
    parts = {image.extension: image.data, "json": json.dumps(columns).encode()}
    return Outcome(Row(item.key, "ok", columns=columns), Sample(item.key, parts))


def make_job(config: DownloadConfig, storage: StorageConfig) -> Job:
    """Read the metadata's shape, find the duplicates (once), and describe the job.

    Raises:
        FileNotFoundError, ValueError: metadata that is not there or not in the COYO schema, or
            has more rows than keys can number.
    """
    metadata = CoyoMetadata.open(config.metadata, storage)
    num_rows = min(metadata.num_rows, config.max_rows or metadata.num_rows)
    num_shards = -(-num_rows // config.rows_per_shard)
    if num_shards > MAX_SHARDS:
        raise ValueError(
            f"{config.metadata}: {num_rows} rows make {num_shards} shards, at most {MAX_SHARDS}; "
            "raise data_pipeline.download.rows_per_shard"
        )
    source = {"metadata": metadata.fingerprint(), "num_rows": num_rows}
    source["deduplicate"] = list(config.deduplicate)
    plan = _make_plan(config, metadata, num_rows, source, open_storage(config.output, storage))
    return Job(
        name="download",
        output=config.output,
        shard_ids=[f"{shard:05d}" for shard in range(num_shards)],
        make_step=functools.partial(DownloadStep, plan, config),
        fingerprint={
            **source,
            "rows_per_shard": config.rows_per_shard,
            "images": config.images.model_dump(),
        },
        batch_size=config.batch_size,
        column_types=_column_types(metadata),
        storage=storage,
    )


def _make_plan(
    config: DownloadConfig,
    metadata: CoyoMetadata,
    num_rows: int,
    source: dict[str, Any],
    output: Storage,
) -> Plan:
    digest = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]
    plan = Plan(metadata, output, f"plan/duplicates-{digest}.bits", num_rows)
    if output.exists(plan.key):
        return plan
    if config.deduplicate:
        logger.info("looking for duplicates among %d rows", num_rows)
    duplicates = find_duplicates(metadata, config.deduplicate, num_rows)
    logger.info("%d rows, %d of them duplicates", num_rows, duplicates.sum())
    output.put(plan.key, np.packbits(duplicates, bitorder="little").tobytes())
    return plan


def _column_types(metadata: CoyoMetadata) -> dict[str, str]:
    """Arrow type names of all ledger columns whose type has one (nested ones are inferred)."""
    schema = metadata.read(0, 1).schema
    plain = {field.name: str(field.type) for field in schema if not pa.types.is_nested(field.type)}
    return plain | ADDED_COLUMNS


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "python -m data_pipeline.download",
        "Download the pictures of a COYO-700M metadata table into image shards.",
        EPILOG,
    )
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    logger.info(describe_config(args))
    return run_job(make_job(config.download, config.storage), config.jobs).exit_code


if __name__ == "__main__":
    sys.exit(run_command(main))
