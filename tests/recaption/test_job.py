"""Proves the recaptioning of shards: one row per image, keys kept, resumed, never mixed."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import Job, run_job
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig
from recaption.captioner_config import CaptionerConfig
from recaption.captions import Captions
from recaption.granularity import LEVELS, CaptionError
from recaption.job import RecaptionConfig, RecaptionStep, image_bytes, make_job

STORAGE = StorageConfig()


class SizeCaptioner:
    """Captions an image by its size; ends the process at image number ``die_at``."""

    def __init__(self, die_at: int = -1) -> None:
        self.left = die_at

    def caption(self, images: Sequence[Image.Image]) -> list[Captions | CaptionError]:
        self.left -= len(images)
        if self.left < 0 <= self.left + len(images):
            os._exit(9)
        return [tuple(f"{level} {image.size}" for level in LEVELS) for image in images]


def size_step(config: RecaptionConfig, die_at: int = -1) -> RecaptionStep:
    return RecaptionStep(config, STORAGE, SizeCaptioner(die_at), "sizes")


def size_job(images: StepOutput, output: Path, die_at: int = -1) -> Job:
    """The real job, but captioned by `SizeCaptioner`."""
    config = RecaptionConfig(images=images.url, output=str(output), batch_size=2)
    captioner = CaptionerConfig(engine="http")
    job = make_job(config, captioner, STORAGE)
    return replace(job, make_step=functools.partial(size_step, config, die_at))


def test_every_image_gets_captions_or_a_reason(images: StepOutput, tmp_path: Path) -> None:
    summary = run_job(size_job(images, tmp_path / "captions"), JobsConfig())
    assert summary.exit_code == 0
    assert (summary.funnel.num_in, summary.funnel.num_ok) == (6, 5)
    assert summary.funnel.reasons == {("failed", "undecodable"): 1}
    captions = StepOutput.open(str(tmp_path / "captions"))
    assert captions.committed() == images.committed()
    rows = captions.rows("00001").to_pylist()
    assert [row["key"] for row in rows] == ["00001000000", "00001000001"]
    assert rows[1]["detail"]
    (sample,) = captions.read("00001")
    assert json.loads(sample.parts["json"]) == {
        "captions": [f"{level} (128, 128)" for level in LEVELS],
        "levels": list(LEVELS),
        "model": "sizes",
    }


def test_a_killed_run_goes_on_from_the_last_whole_shard(images: StepOutput, tmp_path: Path) -> None:
    output = tmp_path / "captions"
    process = os.fork()
    if process == 0:  # the child dies within the last shard
        run_job(size_job(images, output, die_at=4), JobsConfig())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert StepOutput.open(str(output)).committed() == ["00000", "00001"]
    summary = run_job(size_job(images, output), JobsConfig())
    assert (summary.num_skipped, summary.num_committed, summary.funnel.num_in) == (2, 1, 6)
    assert run_job(size_job(images, output), JobsConfig()).num_committed == 0


def test_captions_of_two_models_are_never_mixed(images: StepOutput, tmp_path: Path) -> None:
    job = size_job(images, tmp_path / "captions")
    run_job(job, JobsConfig())
    config = RecaptionConfig(images=images.url, output=job.output)
    http = CaptionerConfig().http.model_copy(update={"model": "another"})
    with pytest.raises(ValueError, match=r"captioner\.model was .OpenGVLab.*now .another."):
        run_job(make_job(config, CaptionerConfig(engine="http", http=http), STORAGE), JobsConfig())


def test_a_folder_that_was_moved_goes_on(images: StepOutput, tmp_path: Path) -> None:
    run_job(size_job(images, tmp_path / "captions"), JobsConfig())
    (tmp_path / "captions").rename(tmp_path / "moved")
    Path(images.url).rename(tmp_path / "moved_images")
    moved = StepOutput.open(str(tmp_path / "moved_images"))
    assert run_job(size_job(moved, tmp_path / "moved"), JobsConfig()).num_skipped == 3


def test_a_sample_without_a_picture_fails_with_a_reason() -> None:
    with pytest.raises(CaptionError, match="no image: parts: json"):
        image_bytes(Sample("0", {"json": b"{}"}))


def test_nothing_to_do_is_told_with_the_way_out(tmp_path: Path) -> None:
    config = RecaptionConfig(images=str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="nothing has no finished shards; run python -m"):
        make_job(config, CaptionerConfig(), STORAGE)


def test_a_missing_model_is_told_before_any_worker_starts(images: StepOutput) -> None:
    config = RecaptionConfig(images=images.url)
    with pytest.raises(FileNotFoundError, match=r"recaption\.captioner\.path: .*/no/model"):
        make_job(config, CaptionerConfig(path="/no/model"), STORAGE)


def test_the_nano_model_captions_shards_of_the_shapes_world(
    images: StepOutput, tmp_path: Path, nano_model: str, make_image: Callable[[int], Image.Image]
) -> None:
    config = RecaptionConfig(images=images.url, output=str(tmp_path / "captions"))
    summary = run_job(make_job(config, CaptionerConfig(path=nano_model), STORAGE), JobsConfig())
    assert summary.funnel.num_ok >= 4
