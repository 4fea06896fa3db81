"""Which objective a run trains (key t2i.training.objective), chosen by ``name``; no torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from t2i.config import Section
from t2i.training.objectives.masked_config import MaskedConfig
from t2i.training.objectives.model_guidance_config import ModelGuidanceConfig


class FlowMatchingConfig(Section):
    """Plain flow matching; its sparsity and times are those of t2i.training."""

    name: Literal["flow_matching"] = "flow_matching"


class InternalConfig(Section):
    """Flow matching of the final and of an internal head (Internal Guidance)."""

    name: Literal["internal"] = "internal"
    weight: float = Field(default=0.5, gt=0, description="of the internal head's loss")


ObjectiveConfig = Annotated[
    FlowMatchingConfig | ModelGuidanceConfig | MaskedConfig | InternalConfig,
    Field(discriminator="name"),
]
