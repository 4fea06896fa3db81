"""Settings of evaluation (section t2i.evaluation); no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from t2i.config import Section


class ReadingConfig(Section):
    """How pictures are gone through; each field is a flag of every metric, too."""

    device: str = Field("cpu", description="cpu, cuda, cuda:1 ...")
    batch_size: int = Field(32, ge=1, description="pictures that a network gets at a time")
    num_threads: int = Field(2, ge=1, description="threads that read pictures")
    odd_pictures: Literal["refuse", "skip", "convert"] = Field(
        "refuse",
        description="what becomes of grey, transparent or differently sized pictures; broken ones "
        "are refused or skipped",
    )
    cache: str | None = Field(
        "outputs/nano/evaluation/cache", description="folder where features are remembered"
    )


class MethodConfig(Section):
    """How a set of images is made: the config's sampling and guidance, but for these."""

    preset: str | None = Field(default=None, description="name of the papers' settings")
    guidance: Mapping[str, Any] = Field(default_factory=dict)
    sampling: Mapping[str, Any] = Field(default_factory=dict)


class EvaluationConfig(ReadingConfig):
    """Also what `run` and `sweep` make and by which metrics they score it."""

    output: str = Field("outputs/nano/evaluation", description="folder of `run` and `sweep`")
    prompts: str | None = Field(
        default=None, description="file of prompts; none = built-in ones of the Shapes world"
    )
    classes: str | None = Field(default=None, description="of a class model: 0-999 or 1,5,7")
    methods: Mapping[str, MethodConfig] = Field(
        default_factory=dict, description="name -> how the images are made"
    )
    metrics: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="metric -> its settings; see each one's --help"
    )
    keep: Literal["pictures", "features"] = Field(
        "pictures", description="features: pictures are scored as they are made, and not written"
    )
    chunk_size: int = Field(500, ge=1, description="pictures between two saves of features")

    def reading(self) -> ReadingConfig:
        """The part that is about going through pictures."""
        return ReadingConfig.model_validate(
            {name: getattr(self, name) for name in ReadingConfig.model_fields}
        )
