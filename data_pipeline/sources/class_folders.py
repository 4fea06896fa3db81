"""Pictures in one folder per class (ImageNet's layout) -> image shards with labels.

Labels are the numbers 0, 1, ... of the classes in the order of their names, as everybody numbers
ImageNet's. Pictures are dealt out to the shards in turn, so that each shard holds all classes: the
loader shuffles within a window of shards.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import Job, run_job
from data_pipeline.outputs.ledger import Outcome, Row, Status
from data_pipeline.outputs.shards import Sample
from data_pipeline.pictures.images import STORED_COLUMNS, ImageConfig, ImageError, store_image
from data_pipeline.storage.interface import Storage, StorageConfig
from data_pipeline.storage.stores import open_storage
from t2i.config import Section, add_config_arguments, config_from_args, describe_config, section
from t2i.console import command_parser, get_logger, run_command

EPILOG = """\
examples:
  ImageNet, unpacked into train/n01440764/*.JPEG and so on:
    python -m data_pipeline.sources.class_folders --config configs/imagenet_sit_xl2_tread.yaml \\
      --set data_pipeline.class_folders.images=s3://bucket/imagenet/train

Run the same command again to go on. Each picture has one row in the output's ledger: ok, filtered
(too_small) or failed (undecodable, too_large). The next step is python -m data_pipeline.latents.
"""
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
MAX_SHARDS, MAX_IMAGES_PER_SHARD = 100_000, 1_000_000  # what the digits of a key hold
COLUMN_TYPES = {"file": "string", "class": "string", "label": "int64"} | STORED_COLUMNS

logger = get_logger("class_folders")


class ClassFoldersConfig(Section):
    """Section ``data_pipeline.class_folders``."""

    images: str = "outputs/class_folders/train"
    """Holds CLASS/PICTURE; local or s3://."""
    output: str = "outputs/class_folders/images"
    images_per_shard: int = Field(default=10_000, ge=1, le=MAX_IMAGES_PER_SHARD)
    batch_size: int = Field(default=64, ge=1)
    limits: ImageConfig = ImageConfig()


class Config(Section):
    """What this command reads."""

    class_folders: ClassFoldersConfig = section("data_pipeline.class_folders")
    jobs: JobsConfig = section("data_pipeline.jobs")
    storage: StorageConfig = section("data_pipeline.storage")


@dataclass(frozen=True)
class Picture:
    """A file of a class."""

    key: str
    file: str
    label: int

    @property
    def class_name(self) -> str:
        """The folder's name."""
        return self.file.partition("/")[0]


@dataclass(frozen=True)
class Listing:
    """All pictures below a folder, by class; ``key`` names the listing in ``output``."""

    output: Storage
    key: str

    def read(self) -> list[str]:
        """The files, sorted: so those of a class stand together."""
        files: list[str] = json.loads(self.output.get(self.key))
        return files


class ClassFoldersStep:
    """The function of one shard (see `data_pipeline.jobs.runner.Step`)."""

    def __init__(self, source: Storage, listing: Listing, num_shards: int, limits: ImageConfig):
        self.source, self.num_shards, self.limits = source, num_shards, limits
        self.files = listing.read()
        self.labels = number_classes(self.files)

    def load(self, shard_id: str) -> list[Picture]:
        """Every ``num_shards``-th file."""
        return [
            Picture(f"{shard_id}{index:06d}", file, self.labels[file.partition("/")[0]])
            for index, file in enumerate(self.files[int(shard_id) :: self.num_shards])
        ]

    def run(self, items: Sequence[Picture]) -> list[Outcome]:
        """The stored picture of each, or why it has none."""
        return [self._store(item) for item in items]

    def _store(self, item: Picture) -> Outcome:
        columns = {"file": item.file, "class": item.class_name, "label": item.label}
        try:
            image = store_image(self.source.get(item.file), self.limits)
        except ImageError as error:
            too_small = error.reason == "too_small"
            status: Status = "filtered" if too_small else "failed"
            return Outcome(Row(item.key, status, error.reason, columns, error.detail))
        columns |= image.columns
        parts = {image.extension: image.data, "json": json.dumps(columns).encode()}
        return Outcome(Row(item.key, "ok", columns=columns), Sample(item.key, parts))


def number_classes(files: Sequence[str]) -> dict[str, int]:
    """class name -> label, in the order of the names."""
    names = sorted({file.partition("/")[0] for file in files})
    return {name: label for label, name in enumerate(names)}


def make_job(config: ClassFoldersConfig, storage: StorageConfig) -> Job:
    """List the pictures and describe the job.

    Raises:
        ValueError: no pictures in folders of classes, or more than keys can number.
    """
    source, output = open_storage(config.images, storage), open_storage(config.output, storage)
    files = [key for key in source.list() if _is_picture(key)]
    if not files:
        raise ValueError(
            f"{config.images}: no pictures CLASS/NAME{{{','.join(SUFFIXES)}}} in it; "
            "set data_pipeline.class_folders.images to the folder that holds the classes' folders"
        )
    num_shards = -(-len(files) // config.images_per_shard)
    if num_shards > MAX_SHARDS:
        raise ValueError(
            f"{config.images}: {len(files)} pictures make {num_shards} shards, at most "
            f"{MAX_SHARDS}; raise data_pipeline.class_folders.images_per_shard"
        )
    data = json.dumps(files).encode()
    digest = hashlib.sha256(data).hexdigest()[:16]
    listing = Listing(output, f"plan/files-{digest}.json")
    if not output.exists(listing.key):
        output.put(listing.key, data)
    logger.info("%d pictures of %d classes", len(files), len(number_classes(files)))
    return Job(
        name="class_folders",
        output=config.output,
        shard_ids=[f"{shard:05d}" for shard in range(num_shards)],
        make_step=functools.partial(ClassFoldersStep, source, listing, num_shards, config.limits),
        fingerprint={
            "files": digest,
            "images_per_shard": config.images_per_shard,
            "limits": config.limits.model_dump(),
        },
        batch_size=config.batch_size,
        column_types=COLUMN_TYPES,
        storage=storage,
    )


def _is_picture(key: str) -> bool:
    return key.count("/") == 1 and key.lower().endswith(SUFFIXES)


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m data_pipeline.sources.class_folders", __doc__, EPILOG)
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    logger.info(describe_config(args))
    return run_job(make_job(config.class_folders, config.storage), config.jobs).exit_code


if __name__ == "__main__":
    sys.exit(run_command(main))
