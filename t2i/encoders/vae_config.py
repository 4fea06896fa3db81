"""Settings of the VAE (section t2i.encoders.vae)."""

from __future__ import annotations

from typing import Literal

from t2i.config import ASSETS_FOLDER, Section


class VAEConfig(Section):
    """Which AutoencoderKL to load, and in which precision to run it."""

    path: str = str(ASSETS_FOLDER / "nano" / "vae")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
