"""Keep the images that score well: one ledger row per image, no copies.

    python -m data_pipeline.filter
    python -m data_pipeline.filter --set data_pipeline.filter.min_aesthetic=5.5
    python -m data_pipeline.filter --config configs/coyo.yaml \\
        --set data_pipeline.filter.input=s3://bucket/images \\
        --set data_pipeline.filter.output=s3://bucket/kept

The output holds no pictures: its shards have the ids of the input's, and the rows that are ok are
the kept keys. Each image that is dropped has a reason ("aesthetic<=5"). Run again, it goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import Job, run_job
from data_pipeline.outputs.fingerprint import output_fingerprint
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig
from t2i.config import Section, add_config_arguments, config_from_args, describe_config, section
from t2i.console import command_parser, get_logger, run_command

SIDE_COLUMNS = ("image_width", "image_height")  # as data_pipeline.download measured them
BATCH_SIZE = 1024  # rows at a time: only a matter of how often progress is shown

logger = get_logger("filter")


class FilterConfig(Section):
    """Which images are kept. A limit of None is off; every limit set must hold."""

    input: str = "outputs/nano/images"
    output: str = "outputs/nano/kept"
    min_aesthetic: float | None = 5.0
    """Keep scores strictly above (LAION's predictor v2, about 0 to 10)."""
    unscored: Literal["filter", "keep"] = "filter"
    """What becomes of images without an aesthetic score."""
    max_watermark: float | None = Field(default=None, ge=0, le=1)
    max_nsfw: float | None = Field(default=None, ge=0, le=1)
    min_side: int | None = Field(default=None, ge=1)
    """Pixels of the shorter side of the stored image."""
    aesthetic_column: str = "aesthetic_score_laion_v2"
    watermark_column: str = "watermark_score"
    nsfw_column: str = "nsfw_score_opennsfw2"

    def columns(self) -> list[str]:
        """The facts about an image that the limits look at."""
        watermark = [self.watermark_column] if self.max_watermark is not None else []
        nsfw = [self.nsfw_column] if self.max_nsfw is not None else []
        side = list(SIDE_COLUMNS) if self.min_side is not None else []
        return [self.aesthetic_column, *watermark, *nsfw, *side]


class Config(Section):
    """What this command reads."""

    filter: FilterConfig = section("data_pipeline.filter")
    jobs: JobsConfig = section("data_pipeline.jobs")
    storage: StorageConfig = section("data_pipeline.storage")


@dataclass(frozen=True)
class Candidate:
    """An image: its key and the facts that the limits look at, None where unknown."""

    key: str
    facts: Mapping[str, Any]


def reason_to_drop(config: FilterConfig, facts: Mapping[str, Any]) -> str:
    """Why an image is dropped: the first limit that it fails, "" when it is kept.

    A missing score fails its limit with reason "no_score", "no_watermark_score" ..., but
    for ``unscored: keep``.
    """
    score = facts[config.aesthetic_column]
    if config.min_aesthetic is not None:
        if score is None and config.unscored == "filter":
            return "no_score"
        if score is not None and not score > config.min_aesthetic:
            return f"aesthetic<={config.min_aesthetic:g}"
    for name, column, limit in (
        ("watermark", config.watermark_column, config.max_watermark),
        ("nsfw", config.nsfw_column, config.max_nsfw),
    ):
        if limit is None:
            continue
        if facts[column] is None:
            return f"no_{name}_score"
        if not facts[column] <= limit:
            return f"{name}>{limit:g}"
    if config.min_side is not None:
        sides = [facts[column] for column in SIDE_COLUMNS]
        if None in sides:
            return "no_size"
        if min(sides) < config.min_side:
            return f"side<{config.min_side}"
    return ""


class FilterStep:
    """Reads the facts about a shard's images and decides on each."""

    def __init__(self, config: FilterConfig, storage: StorageConfig) -> None:
        self.config = config
        self.images = StepOutput.open(config.input, storage)

    def load(self, shard_id: str) -> list[Candidate]:
        """The shard's images; facts come from its ledger, or else from the samples' json."""
        columns = self.config.columns()
        rows = self.images.rows(shard_id)
        if set(columns) <= set(rows.column_names):
            facts = rows.select(["key", "status", *columns]).to_pylist()
            return [Candidate(row["key"], row) for row in facts if row["status"] == "ok"]
        return self._load_from_samples(shard_id, columns)

    def run(self, items: Sequence[Candidate]) -> list[Outcome]:
        """One row per image, with its aesthetic score."""
        outcomes = []
        for item in items:
            reason = reason_to_drop(self.config, item.facts)
            score = {"aesthetic": item.facts[self.config.aesthetic_column]}
            outcomes.append(Outcome(Row(item.key, "filtered" if reason else "ok", reason, score)))
        return outcomes

    def _load_from_samples(self, shard_id: str, columns: Sequence[str]) -> list[Candidate]:
        index, storage = self.images.index(shard_id), self.images.storage
        shard_key = self.images.manifest(shard_id).shard_key
        candidates = []
        for position, key in enumerate(index.keys):
            assert shard_key is not None
            facts = json.loads(storage.get_range(shard_key, *index.span(position, "json")))
            candidates.append(Candidate(key, {name: facts.get(name) for name in columns}))
        return candidates


def make_job(config: FilterConfig, storage: StorageConfig) -> Job:
    """The filter over every committed shard of the input.

    Raises:
        FileNotFoundError: the input has no committed shards.
    """
    images = StepOutput.open(config.input, storage)
    shard_ids = images.committed()
    if not shard_ids:
        raise FileNotFoundError(
            f"data_pipeline.filter.input: {config.input} has no finished shards; "
            "run python -m data_pipeline.download first"
        )
    return Job(
        name="filter",
        output=config.output,
        shard_ids=shard_ids,
        make_step=functools.partial(FilterStep, config, storage),
        fingerprint={
            "input": output_fingerprint(images),
            "filter": config.model_dump(mode="json", exclude={"input", "output"}),
        },
        batch_size=BATCH_SIZE,
        column_types={"aesthetic": "float32"},
        storage=storage,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m data_pipeline.filter", __doc__)
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    logger.info("%s", describe_config(args))
    summary = run_job(make_job(config.filter, config.storage), config.jobs)
    funnel = summary.funnel
    print(f"kept {funnel.num_ok} of {funnel.num_in} images in {config.filter.output}")
    return summary.exit_code


if __name__ == "__main__":
    raise SystemExit(run_command(main))
