"""On what something was measured, and the memory that it took. No torch at import."""

from __future__ import annotations

import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

from t2i.config import REPO_FOLDER

CLEAR_REFS = Path("/proc/self/clear_refs")


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


def reset_peak_resident() -> bool:
    """Let Linux count this process's peak of resident memory from here; False = it cannot.

    Writing 5 to /proc/PID/clear_refs resets VmHWM (proc_pid_clear_refs(5)).
    """
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_resident_gb() -> float:
    """This process's peak of resident memory since `reset_peak_resident`.

    Weights, libraries and what the allocator keeps of earlier rows (small blocks) are in it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kib) * 1024 / 1e9


def free_port() -> int:
    """A port of this machine that nobody listens on now, for processes that start together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
