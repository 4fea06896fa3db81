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


class EvaluationConfig(ReadingConfig):
    """Also each metric's own settings."""

    metrics: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="metric -> its settings; see each one's --help"
    )
