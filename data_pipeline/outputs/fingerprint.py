"""Short names for what made something: settings, a step's output, a model's files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.outputs.step_output import StepOutput

HEX_DIGITS = 16


def short_hash(settings: Mapping[str, Any]) -> str:
    """``sha256:`` and 16 hexadecimal digits of the canonical JSON."""
    data = json.dumps(settings, sort_keys=True).encode()
    return f"sha256:{hashlib.sha256(data).hexdigest()[:HEX_DIGITS]}"


def output_fingerprint(output: StepOutput) -> str:
    """What a step's output is: the hash of the settings that made it, or its address if unknown.

    A folder that was moved keeps its fingerprint.
    """
    settings = output.fingerprint()
    return output.url if settings is None else short_hash(settings)


def model_fingerprint(path: str) -> str:
    """Which model a path names: the hash of a folder's files, or the hub name itself."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    digests = {}
    for file_path in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file_path.open("rb") as file:
            name = file_path.relative_to(folder).as_posix()
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return short_hash(digests)
