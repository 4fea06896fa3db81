"""Settings of the captioner (section recaption.captioner); no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recaption.granularity import LevelsConfig
from t2i.config import ASSETS_FOLDER, Section


class HttpConfig(Section):
    """An OpenAI-compatible server (vLLM, SGLang, LMDeploy), which runs in its own environment."""

    url: str = Field(default="http://127.0.0.1:8000/v1", pattern="^https?://")
    model: str = "OpenGVLab/InternVL3-2B"
    """The server's name of the model."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable with the key; when it is not set, none is sent."""
    concurrency: int = Field(default=32, ge=1)
    """Requests at once, of each worker."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    max_attempts: int = Field(default=4, ge=1)
    """Tries of one request that meets a busy or broken server."""
    retry_seconds: float = Field(default=1.0, ge=0)
    """Pause before the second try; doubled each time, up to 30 s."""
    max_side: int = Field(default=896, ge=28)
    """Pictures are sent as PNG, scaled down to this longer side in pixels."""


class CaptionerConfig(Section):
    """Who writes the captions: an InternVL in the worker's process, or a server.

    ``path`` is a folder or hub name in transformers' format; it, ``device`` and ``dtype`` concern
    ``engine: internvl``, and ``http`` the other.
    """

    engine: Literal["internvl", "http"] = "internvl"
    path: str = str(ASSETS_FOLDER / "nano" / "text_encoder")
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    http: HttpConfig = HttpConfig()
    levels: LevelsConfig = LevelsConfig()
