"""Fixtures of the encoders' tests: the shipped text encoder, whitened and bare."""

from __future__ import annotations

import pytest

from t2i.encoders.text import TextEncoder, load_text_encoder
from t2i.encoders.text_config import TextEncoderConfig


@pytest.fixture(scope="module")
def shipped() -> TextEncoder:
    return load_text_encoder(TextEncoderConfig())


@pytest.fixture(scope="module")
def bare(shipped: TextEncoder) -> TextEncoder:
    return TextEncoder(shipped.language_model, shipped.tokenizer, shipped.config)
