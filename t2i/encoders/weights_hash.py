"""What a folder's weights are: the SHA-256 that the hub shows of their file. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path


def folder_hash(folder: Path) -> str:
    """SHA-256 of the only .safetensors or .bin file; of several, of their hashes in order.

    Raises:
        ValueError: there is none.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise ValueError(f"{folder}: no weights in it (*.safetensors, *.bin)")
    hashes = [file_hash(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def no_weights(what: str, name: str, error: Exception, sha256: str = "") -> FileNotFoundError:
    """What to raise where a model is neither a folder here nor can be had from the hub.

    Args:
        what: the kind of model.
        name: as it was given.
        error: of transformers, of which the first line is told.
        sha256: of model.safetensors, where it is known.
    """
    known = f" (SHA-256 {sha256})" if sha256 else ""
    reason = str(error).strip().splitlines()[0]
    return FileNotFoundError(
        f"{name}: no {what} in a folder of this name, and not to be had from the hub ({reason}); get "
        f"model.safetensors{known} and the other files of https://huggingface.co/{name}, and give "
        "their folder"
    )
