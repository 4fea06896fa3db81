"""Settings of the text encoder (section t2i.encoders.text)."""

from __future__ import annotations

from pydantic import Field

from t2i.config import ASSETS_FOLDER, Section

# Sparse Guidance, supplementary A.1.
PROMPT_PREFIX = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "and spatial relationships of the objects."
)


class TextEncoderConfig(Section):
    """Which InternVL's language model encodes captions, and how.

    ``max_tokens`` bounds a caption's states, the end token included; the rest is cut off, with a
    warning. A batch is as long as its longest caption, so a high bound costs nothing by itself.
    """

    path: str = str(ASSETS_FOLDER / "nano" / "text_encoder")
    prefix: str = PROMPT_PREFIX
    max_tokens: int = Field(128, ge=1)
    # Lengths are rounded up to a multiple of this, so that few shapes occur.
    bucket: int = Field(16, ge=1)
