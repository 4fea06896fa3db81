"""On what something was measured. No torch at import."""

from __future__ import annotations

import platform
import subprocess
from typing import Any

from t2i.config import REPO_FOLDER


def describe_environment(device: str) -> dict[str, Any]:
    """Device, versions, commit.

    Args:
        device: as torch names it: "cpu", "cuda", "cuda:1".
    """
    import torch

    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name += f", {torch.get_num_threads()} threads"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPO_FOLDER, capture_output=True, text=True
    ).stdout.strip()
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }
