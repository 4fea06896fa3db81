"""Show captions to people: one HTML page with each image beside its four captions.

    python -m recaption.gallery
    python -m recaption.gallery --images outputs/demo/images --captions outputs/demo/captions
    python -m recaption.gallery --captions s3://bucket/captions --images s3://bucket/images \\
        --num 200 --output captions.html

The page holds its pictures, so it can be sent as one file. It begins with the counts and with the
reasons of failures, shows images spread evenly over the shards, then some that failed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.outputs.ledger import Funnel
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.pictures.images import ImageConfig, ImageError, decode_image, encode_image
from data_pipeline.storage.interface import StorageConfig
from recaption.granularity import CaptionError
from recaption.job import RecaptionConfig, image_bytes
from t2i.config import Section, add_config_arguments, config_from_args, describe_config, section
from t2i.console import command_parser, get_logger, run_command
from t2i.html import data_uri, render_page

LOG = get_logger("gallery")
THUMBNAIL_SIDE = 224
THUMBNAIL_QUALITY = 85

TEMPLATE = Path(__file__).with_name("gallery.html.jinja")


class Config(Section):
    """What this command reads."""

    job: RecaptionConfig = section("recaption.job")
    storage: StorageConfig = section("data_pipeline.storage")


@dataclass(frozen=True)
class Card:
    """One image of the page: its key, the picture as a URI, and name -> text beside it."""

    key: str
    picture: str | None
    texts: dict[str, str]
    failed: bool


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m recaption.gallery", __doc__)
    parser.add_argument("--captions", metavar="URL", help="default: recaption.job.output")
    parser.add_argument("--images", metavar="URL", help="default: recaption.job.images")
    parser.add_argument("--num", type=int, default=60, metavar="N", help="captioned images (60)")
    parser.add_argument("--num-failed", type=int, default=20, metavar="N", help="failed ones (20)")
    parser.add_argument("--output", type=Path, default=Path("outputs/captions.html"))
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    LOG.info("%s", describe_config(args))
    captions = StepOutput.open(args.captions or config.job.output, config.storage)
    images = StepOutput.open(args.images or config.job.images, config.storage)
    page = make_page(captions, images, args.num, args.num_failed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page, encoding="utf-8")
    print(args.output)
    return 0


def make_page(captions: StepOutput, images: StepOutput, num: int, num_failed: int) -> str:
    """The whole page as HTML.

    Raises:
        FileNotFoundError: there are no captions, or a shard of theirs is not among the images.
    """
    shard_ids = captions.committed()
    if not shard_ids:
        raise FileNotFoundError(f"{captions.url} has no finished shards; run recaption first")
    good: list[Card] = []
    bad: list[Card] = []
    for position, shard_id in enumerate(shard_ids):
        shards_left = len(shard_ids) - position
        good += good_cards(captions, images, shard_id, -((len(good) - num) // shards_left))
        bad += failed_cards(captions, images, shard_id, num_failed - len(bad))
    funnel = captions.funnel()
    return render_page(
        TEMPLATE,
        url=captions.url,
        num_shards=funnel.num_shards,
        counts=counts_of(funnel),
        good=good,
        bad=bad,
    )


def good_cards(captions: StepOutput, images: StepOutput, shard_id: str, num: int) -> list[Card]:
    """Up to ``num`` captioned images, spread evenly over a shard."""
    samples = {sample.key: sample for sample in captions.read(shard_id)}
    keys = spread(list(samples), num)
    pictures = read_pictures(images, shard_id, keys)
    return [Card(key, pictures[key], texts_of(samples[key]), failed=False) for key in keys]


def failed_cards(captions: StepOutput, images: StepOutput, shard_id: str, num: int) -> list[Card]:
    """Up to ``num`` images of a shard that got no captions, with the reasons."""
    rows = [row for row in captions.rows(shard_id).to_pylist() if row["status"] == "failed"]
    rows = rows[: max(num, 0)]
    pictures = read_pictures(images, shard_id, [row["key"] for row in rows])
    return [
        Card(row["key"], pictures[row["key"]], {row["reason"]: row["detail"]}, failed=True)
        for row in rows
    ]


def spread(keys: Sequence[str], num: int) -> list[str]:
    """``num`` of the keys at even distances, or all when there are fewer."""
    num = min(max(num, 0), len(keys))
    return [keys[index * len(keys) // num] for index in range(num)]


def texts_of(sample: Sample) -> dict[str, str]:
    """Level -> caption."""
    content = json.loads(sample.parts["json"])
    return dict(zip(content["levels"], content["captions"], strict=True))


def read_pictures(images: StepOutput, shard_id: str, keys: Sequence[str]) -> dict[str, str | None]:
    """Key -> thumbnail as a URI, None where the picture cannot be decoded or is not there."""
    wanted = set(keys)
    pictures: dict[str, str | None] = dict.fromkeys(keys)
    if wanted:
        for sample in images.read(shard_id):
            if sample.key in wanted:
                pictures[sample.key] = thumbnail(sample)
    return pictures


def thumbnail(sample: Sample) -> str | None:
    """A small JPEG of an images sample as a URI, None when it cannot be decoded."""
    try:
        image = decode_image(image_bytes(sample), ImageConfig(min_side=1))
    except (ImageError, CaptionError):
        return None
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return data_uri(encode_image(image, "jpg", THUMBNAIL_QUALITY), "jpg")


def counts_of(funnel: Funnel) -> list[tuple[str, int]]:
    """What the page begins with: sums, then reasons, the most frequent first."""
    reasons = sorted(funnel.reasons.items(), key=lambda item: (-item[1], item[0]))
    return [
        ("images", funnel.num_in),
        ("captioned", funnel.num_ok),
        ("failed", funnel.num_failed),
        *((f"{status}: {reason}", number) for (status, reason), number in reasons),
    ]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
