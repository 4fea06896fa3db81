"""The recaptioning of one shard, as `data_pipeline.jobs.runner` runs it.

A captions sample has one part, ``json``: {"captions": [four texts], "levels": [their names],
"model": which captioner wrote them}. Keys and shard ids are those of the images.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from data_pipeline.jobs.runner import Job
from data_pipeline.outputs.fingerprint import output_fingerprint, short_hash
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.pictures.images import IMAGE_EXTENSIONS, ImageConfig, ImageError, decode_image
from data_pipeline.storage.interface import StorageConfig
from recaption.captioner import captioner_fingerprint, make_captioner
from recaption.captioner_config import CaptionerConfig
from recaption.captions import Captioner, Captions
from recaption.granularity import LEVELS, CaptionError
from t2i.config import Section

if TYPE_CHECKING:
    from PIL.Image import Image


class RecaptionConfig(Section):
    """Which images get captions, and where these go (section recaption.job)."""

    images: str = "outputs/nano/images"
    """Output of `data_pipeline.download`: a folder or s3://bucket/prefix."""
    output: str = "outputs/nano/captions"
    batch_size: int = Field(default=16, ge=1)
    """Images a captioner takes at once."""
    decoding: ImageConfig = ImageConfig(min_side=1)
    """What is accepted as a picture; the download was strict already."""


class RecaptionStep:
    """Decodes a shard's images and has them captioned, batch by batch; built once per worker."""

    def __init__(
        self, config: RecaptionConfig, storage: StorageConfig, captioner: Captioner, model: str
    ) -> None:
        self.config, self.captioner, self.model = config, captioner, model
        self.images = StepOutput.open(config.images, storage)

    def load(self, shard_id: str) -> list[Sample]:
        """The shard's images, still encoded."""
        return list(self.images.read(shard_id))

    def run(self, items: Sequence[Sample]) -> list[Outcome]:
        """Captions, or a failed row with the reason, for each item."""
        outcomes: dict[str, Outcome] = {}
        decoded: dict[str, Image] = {}
        for item in items:
            try:
                decoded[item.key] = decode_image(image_bytes(item), self.config.decoding)
            except (ImageError, CaptionError) as error:
                outcomes[item.key] = failed(item.key, error)
        results = self.captioner.caption(list(decoded.values())) if decoded else []
        for key, result in zip(decoded, results, strict=True):
            if isinstance(result, CaptionError):
                outcomes[key] = failed(key, result)
            else:
                sample = caption_sample(key, result, self.model)
                outcomes[key] = Outcome(Row(key, "ok"), sample)
        return [outcomes[item.key] for item in items]


def image_bytes(sample: Sample) -> bytes:
    """The encoded picture of an images sample. Raises CaptionError "no image" without one."""
    for extension in IMAGE_EXTENSIONS:
        if extension in sample.parts:
            return sample.parts[extension]
    raise CaptionError("no image", f"parts: {', '.join(sample.parts)}")


def failed(key: str, error: ImageError | CaptionError) -> Outcome:
    """The outcome of an item without captions."""
    return Outcome(Row(key, "failed", error.reason, detail=error.detail))


def caption_sample(key: str, captions: Captions, model: str) -> Sample:
    """A captions sample; see the top of this file."""
    content = {"captions": captions, "levels": LEVELS, "model": model}
    return Sample(key, {"json": json.dumps(content, ensure_ascii=False).encode()})


def make_step(
    config: RecaptionConfig, captioner: CaptionerConfig, storage: StorageConfig, model: str
) -> RecaptionStep:
    """The step with its captioner loaded; runs in the worker."""
    return RecaptionStep(config, storage, make_captioner(captioner), model)


def make_job(config: RecaptionConfig, captioner: CaptionerConfig, storage: StorageConfig) -> Job:
    """The recaptioning of every committed shard of the images.

    Raises:
        FileNotFoundError: there are no images, or no model in the captioner's folder.
    """
    images = StepOutput.open(config.images, storage)
    shard_ids = images.committed()
    if not shard_ids:
        raise FileNotFoundError(
            f"recaption.job.images: {config.images} has no finished shards; "
            "run python -m data_pipeline.download first"
        )
    if captioner.engine == "internvl":
        refuse_missing_model(captioner.path)
    written_by = captioner_fingerprint(captioner)
    fingerprint = {
        "captioner": written_by,
        "images": output_fingerprint(images),
        "decoding": config.decoding.model_dump(mode="json"),
    }
    return Job(
        name="recaption",
        output=config.output,
        shard_ids=shard_ids,
        make_step=functools.partial(make_step, config, captioner, storage, short_hash(written_by)),
        fingerprint=fingerprint,
        batch_size=config.batch_size,
        storage=storage,
    )


def refuse_missing_model(path: str) -> None:
    """Raise FileNotFoundError when ``path`` is a path on disk, not a hub name, and not there."""
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise FileNotFoundError(
            f"recaption.captioner.path: no such folder {path}; expected an InternVL checkpoint "
            "in transformers' format"
        )
