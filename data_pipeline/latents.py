"""Encode captioned images to VAE latents, joined with their captions: what training reads.

    python -m data_pipeline.latents
    python -m data_pipeline.latents --set data_pipeline.latents.resolution=256
    python -m data_pipeline.latents --set 'data_pipeline.latents.aspects=["1:1","4:3","3:4"]'

Each picture is scaled and centre-cropped to the resolution bucket whose aspect ratio is nearest.
A latents sample has two parts, under the key of its image:

    npy     float16 (2C, h, w): mean and standard deviation, normalised
    json    {"captions": [four texts], "width", "height": of the picture, "bucket": "WIDTHxHEIGHT",
             "label": the picture's class, where its metadata has a column of that name}

Images without captions are left out, with reason "no_caption"; for classes alone set ``captions``
to null, and the texts are empty. Run again, it goes on.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import Job, run_job
from data_pipeline.outputs.fingerprint import model_fingerprint, output_fingerprint
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import MIRRORED_PART, MOMENTS_PART, Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.pictures.images import IMAGE_EXTENSIONS, ImageConfig, ImageError, decode_image
from data_pipeline.storage.interface import StorageConfig
from t2i.config import Section, add_config_arguments, config_from_args, describe_config, section
from t2i.console import command_parser, get_logger, run_command
from t2i.encoders.vae_config import VAEConfig

if TYPE_CHECKING:
    from t2i.encoders.vae import VAE

SIDE_MULTIPLE = 16  # pixels: 8x down by the VAE, patches of 2
LEVELS = 4
NO_CAPTIONS = ("",) * LEVELS

logger = get_logger("latents")


class LatentsConfig(Section):
    """Which images become latents, and at which sizes."""

    images: str = "outputs/nano/images"
    captions: str | None = "outputs/nano/captions"
    """None = pictures with labels alone: their four captions are empty."""
    output: str = "outputs/nano/latents"
    resolution: int = Field(default=128, ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE)
    """Side of the square bucket in pixels; the others have about as many pixels."""
    aspects: tuple[str, ...] = Field(default=("1:1",), min_length=1)
    """Aspect ratios of the buckets, "WIDTH:HEIGHT"."""
    mirrored: bool = False
    """Encode each picture mirrored left to right as well, for data_pipeline.loader.horizontal_flips;
    takes twice the time and space."""
    max_upscale: float | None = Field(default=None, ge=1)
    """Filter pictures that would have to be scaled up by more ("upscaled"); None = keep all."""
    batch_size: int = Field(default=16, ge=1)
    device: str = "cpu"
    decoding: ImageConfig = ImageConfig(min_side=1)
    """What is accepted as a picture; the download was strict already."""

    @field_validator("aspects")
    @classmethod
    def _aspects_are_ratios(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        for aspect in aspects:
            width, _, height = aspect.partition(":")
            if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
                raise ValueError(f"{aspect!r} is not of the form WIDTH:HEIGHT, such as 4:3")
        return aspects

    def buckets(self) -> tuple[Bucket, ...]:
        """Sizes of the buckets: sides are multiples of 16 pixels, doubles are dropped."""
        buckets = []
        for aspect in self.aspects:
            width, height = (int(part) for part in aspect.split(":"))
            stretch = math.sqrt(width / height)
            sides = (self.resolution * stretch, self.resolution / stretch)
            buckets.append(
                Bucket(*(max(1, round(s / SIDE_MULTIPLE)) * SIDE_MULTIPLE for s in sides))
            )
        return tuple(dict.fromkeys(buckets))


class Config(Section):
    """What this command reads."""

    latents: LatentsConfig = section("data_pipeline.latents")
    vae: VAEConfig = section("t2i.encoders.vae")
    jobs: JobsConfig = section("data_pipeline.jobs")
    storage: StorageConfig = section("data_pipeline.storage")


@dataclass(frozen=True)
class Bucket:
    """A size that pictures are brought to, in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class CaptionedImage:
    """An encoded picture, its captions and its class; None when it has none."""

    key: str
    data: bytes
    captions: Sequence[str] | None
    label: int | None


@dataclass(frozen=True)
class Crop:
    """A picture cut to its bucket: pixels uint8 (H, W, 3), and its size before."""

    item: CaptionedImage
    pixels: np.ndarray
    bucket: Bucket
    width: int
    height: int


def nearest_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket whose aspect ratio is nearest on a logarithmic scale; of equals the first."""
    aspect = math.log(width / height)
    return min(buckets, key=lambda b: abs(aspect - math.log(b.width / b.height)))


def upscaling(width: int, height: int, bucket: Bucket) -> float:
    """The factor by which a picture is scaled to cover ``bucket``; above 1 is up."""
    return max(bucket.width / width, bucket.height / height)


def fit_to_bucket(image: Image.Image, bucket: Bucket) -> Image.Image:
    """Scale a picture to cover the bucket and cut what stands out on both sides alike."""
    factor = upscaling(image.width, image.height, bucket)
    width, height = bucket.width / factor, bucket.height / factor
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    return image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box)


class LatentsStep:
    """Decodes, fits and encodes a shard's images, batch by batch; built once per worker."""

    def __init__(self, config: LatentsConfig, storage: StorageConfig, vae: VAE) -> None:
        self.config, self.vae = config, vae
        self.buckets = config.buckets()
        self.images = StepOutput.open(config.images, storage)
        self.captions = StepOutput.open(config.captions, storage) if config.captions else None

    def load(self, shard_id: str) -> list[CaptionedImage]:
        """The shard's images, still encoded, each with its captions."""
        samples = list(self.images.read(shard_id))
        if self.captions is None:
            captions = {sample.key: NO_CAPTIONS for sample in samples}
        else:
            captions = {
                sample.key: json.loads(sample.parts["json"])["captions"]
                for sample in self.captions.read(shard_id)
            }
        return [
            CaptionedImage(
                sample.key, image_bytes(sample), captions.get(sample.key), image_label(sample)
            )
            for sample in samples
        ]

    def run(self, items: Sequence[CaptionedImage]) -> list[Outcome]:
        """Latents, or a row with the reason, for each item."""
        outcomes: dict[str, Outcome] = {}
        crops: dict[Bucket, list[Crop]] = {}
        for item in items:
            crop = self._crop(item)
            if isinstance(crop, Row):
                outcomes[item.key] = Outcome(crop)
            else:
                crops.setdefault(crop.bucket, []).append(crop)
        for of_bucket in crops.values():
            pixels_BHW3 = np.stack([crop.pixels for crop in of_bucket])
            parts = {MOMENTS_PART: self._encode(pixels_BHW3)}
            if self.config.mirrored:
                parts[MIRRORED_PART] = self._encode(pixels_BHW3[:, :, ::-1].copy())
            for row, crop in enumerate(of_bucket):
                arrays = {name: moments[row] for name, moments in parts.items()}
                outcomes[crop.item.key] = latents_outcome(crop, arrays)
        return [outcomes[item.key] for item in items]

    def _crop(self, item: CaptionedImage) -> Crop | Row:
        if item.captions is None:
            return Row(item.key, "filtered", "no_caption")
        if len(item.captions) != LEVELS:
            return Row(item.key, "failed", f"{len(item.captions)} captions, not {LEVELS}")
        try:
            image = decode_image(item.data, self.config.decoding)
        except ImageError as error:
            return Row(item.key, "failed", error.reason, detail=error.detail)
        bucket = nearest_bucket(image.width, image.height, self.buckets)
        limit = self.config.max_upscale
        if limit is not None and upscaling(image.width, image.height, bucket) > limit:
            return Row(item.key, "filtered", "upscaled", detail=f"{image.width}x{image.height}")
        pixels = np.asarray(fit_to_bucket(image, bucket))
        return Crop(item, pixels, bucket, image.width, image.height)

    def _encode(self, pixels_BHW3: np.ndarray) -> np.ndarray:
        """Moments float16 (B, 2C, h, w) of pictures of one size, uint8."""
        import torch

        images_B3HW = torch.from_numpy(pixels_BHW3).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.vae.encode_moments(images_B3HW).cpu().half().numpy()


def image_bytes(sample: Sample) -> bytes:
    """The encoded picture of an images sample; without one, bytes that no decoder accepts."""
    return next((sample.parts[name] for name in IMAGE_EXTENSIONS if name in sample.parts), b"")


def image_label(sample: Sample) -> int | None:
    """The class of an images sample, if its metadata tells one."""
    label: int | None = json.loads(sample.parts["json"]).get("label")
    return label


def latents_outcome(crop: Crop, moments: Mapping[str, np.ndarray]) -> Outcome:
    """The outcome of an encoded picture; failed with "non_finite" when float16 cannot hold it.

    ``moments``: float16 (2C, h, w) by the part of the sample that they become.
    """
    key, bucket = crop.item.key, str(crop.bucket)
    if not all(np.isfinite(array).all() for array in moments.values()):
        return Outcome(Row(key, "failed", "non_finite"))
    facts = {
        "captions": crop.item.captions,
        "width": crop.width,
        "height": crop.height,
        "bucket": bucket,
    }
    if crop.item.label is not None:
        facts["label"] = crop.item.label
    text = json.dumps(facts, ensure_ascii=False).encode()
    row = Row(key, "ok", columns={"bucket": bucket})
    arrays = {name: npy_bytes(array) for name, array in moments.items()}
    return Outcome(row, Sample(key, {**arrays, "json": text}))


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def make_step(config: LatentsConfig, vae: VAEConfig, storage: StorageConfig) -> LatentsStep:
    """The step with its VAE loaded; runs in the worker."""
    from t2i.encoders.vae import load_vae

    return LatentsStep(config, storage, load_vae(vae, config.device))


def make_job(config: LatentsConfig, vae: VAEConfig, storage: StorageConfig) -> Job:
    """The latents of every shard whose images and captions are committed.

    Raises:
        FileNotFoundError: there is no such shard.
    """
    images = StepOutput.open(config.images, storage)
    captions = StepOutput.open(config.captions, storage) if config.captions else None
    image_ids = images.committed()
    caption_ids = captions.committed() if captions else image_ids
    shard_ids = sorted(set(image_ids) & set(caption_ids))
    if not shard_ids:
        missing = images if captions is None or not image_ids else captions
        step, url = ("images" if missing is images else "captions"), missing.url
        command = "python -m data_pipeline.download" if not image_ids else "recaption"
        raise FileNotFoundError(
            f"data_pipeline.latents.{step}: {url} has no finished shards; run {command} first"
        )
    if len(shard_ids) < len(image_ids):
        logger.warning(
            "%d of %d image shards have no captions yet: run this again when they have",
            len(image_ids) - len(shard_ids),
            len(image_ids),
        )
    return Job(
        name="latents",
        output=config.output,
        shard_ids=shard_ids,
        make_step=functools.partial(make_step, config, vae, storage),
        fingerprint=fingerprint(config, vae, images, captions),
        batch_size=config.batch_size,
        column_types={"bucket": "string"},
        counted_columns=("bucket",),
        storage=storage,
    )


def fingerprint(
    config: LatentsConfig, vae: VAEConfig, images: StepOutput, captions: StepOutput | None
) -> dict[str, Any]:
    """The settings that decide the latents."""
    elsewhere = {"images", "captions", "output", "batch_size", "device"}
    if not config.mirrored:  # as before there was the choice
        elsewhere.add("mirrored")
    return {
        "images": output_fingerprint(images),
        "captions": output_fingerprint(captions) if captions else None,
        "vae": {"model": model_fingerprint(vae.path), "dtype": vae.dtype},
        **config.model_dump(mode="json", exclude=elsewhere),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("python -m data_pipeline.latents", __doc__)
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Encode what is not encoded yet; returns the exit code."""
    args = build_parser().parse_args(argv)
    config = config_from_args(args, Config)
    logger.info("%s", describe_config(args))
    summary = run_job(make_job(config.latents, config.vae, config.storage), config.jobs)
    funnel = summary.funnel
    print(f"encoded {funnel.num_ok} of {funnel.num_in} images to {config.latents.output}")
    return summary.exit_code


if __name__ == "__main__":
    raise SystemExit(run_command(main))
