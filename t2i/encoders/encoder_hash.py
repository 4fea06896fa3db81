"""What a frozen encoder is, in 16 digits, for the metadata of images. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.vae_config import VAEConfig


def encoder_hash(encoder: VAEConfig | TextEncoderConfig, base: Path) -> str:
    """The first 16 hex digits of a SHA-256 of the settings and of the files of the encoder's folder.

    Where the folder lies does not count. An encoder that is not a folder counts by its name.

    Args:
        encoder: its settings.
        base: the folder that a relative path starts from.
    """
    digest, folder = hashlib.sha256(), base / encoder.path
    if folder.is_dir():
        encoder = encoder.model_copy(update={"path": ""})
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(encoder.model_dump_json().encode())
    return digest.hexdigest()[:16]
