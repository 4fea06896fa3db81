"""Settings of the loader (section data_pipeline.loader); no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from t2i.config import Section


class DatasetConfig(Section):
    """One part of the mixture."""

    path: str
    """Output of `data_pipeline.latents`: a folder or s3://bucket/prefix."""
    weight: float = Field(default=1.0, ge=0.001)
    """How often each sample is visited per epoch; 0.5 = every sample once in two epochs."""
    kept: str | None = None
    """Output of `data_pipeline.filter`; only its kept keys are visited. None = all samples."""


class LoaderConfig(Section):
    """What is trained on, and in which order it is read."""

    datasets: tuple[DatasetConfig, ...] = (DatasetConfig(path="outputs/nano/latents"),)
    caption_levels: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25)
    """How likely each caption is: detailed, several sentences, one sentence, keywords."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """How likely a sample is trained without caption and label (the null condition of guidance)."""
    horizontal_flips: bool = False
    """Take half of the pictures mirrored left to right, drawn by sample; for models of classes:
    captions tell left from right. Needs data_pipeline.latents.mirrored."""
    labels: bool = False
    """Read each sample's class from its json (key "label"); class-conditional models need it."""
    window_shards: int = Field(default=16, ge=1)
    """Samples are shuffled within this many shards, which a machine's cache has to hold twice."""
    held_out: int = Field(default=0, ge=0)
    """Samples at the head of each dataset (before its filter) that training never sees."""
    part: Literal["training", "held_out"] = "training"
    """Which of the two is read."""
    on_bad_shard: Literal["stop", "skip"] = "stop"
    """What to do when a shard is missing, cut or changed: stop and name it, or fill the places of
    its samples with others of the same dataset and bucket and keep account in the run's folder."""
    retry_minutes: float = Field(default=20.0, ge=0)
    """How long shards in S3 are tried again when network or service fail, before the run ends. Keep
    it some minutes below t2i.training.timeout_minutes (30), which ends a run that waits longer."""
    num_workers: int = Field(default=2, ge=0)
    """Processes that read ahead, for each training process; 0 = the training process reads."""
    prefetch: int = Field(default=4, ge=1)
    """Micro-batches that each of them keeps ready."""

    @field_validator("datasets")
    @classmethod
    def _some_dataset(cls, datasets: tuple[DatasetConfig, ...]) -> tuple[DatasetConfig, ...]:
        if not datasets:
            raise ValueError("name at least one dataset, e.g. {path: outputs/nano/latents}")
        return datasets

    @model_validator(mode="after")
    def _flips_have_no_captions(self) -> LoaderConfig:
        if self.horizontal_flips and not self.labels:
            raise ValueError(
                "horizontal_flips would make captions wrong that tell left from right; set labels "
                "to true for a model of classes, or horizontal_flips to false"
            )
        return self

    @field_validator("caption_levels")
    @classmethod
    def _levels_are_probabilities(
        cls, levels: tuple[float, float, float, float]
    ) -> tuple[float, float, float, float]:
        if min(levels) < 0 or abs(sum(levels) - 1) > 1e-6:
            raise ValueError("four probabilities must be at least 0 and sum to 1")
        return levels
