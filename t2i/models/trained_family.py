"""Which family of models a config trains; free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from t2i.config import Section


class TrainedFamily(Section):
    """What section launch.train says to commands below that layer: its key ``model`` alone.

    The section's own class checks its other keys.
    """

    model_config = ConfigDict(extra="ignore")

    # a section of t2i.models
    model: Literal["tr_dit", "sit", "mask_dit"] = "tr_dit"
