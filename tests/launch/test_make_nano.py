"""Proves the way of launch/make_nano.sh in miniature: every step by its real command, up to two exports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2i.models.sit import load_sit
from t2i.models.storage import WEIGHTS_NAME
from t2i.models.tr_dit import load_transformer

REPO = Path(__file__).resolve().parents[2]
OUT = REPO / "outputs" / "nano_quick"


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
@pytest.mark.long
def test_the_family_is_made_in_miniature_and_the_assets_stay() -> None:
    before = stamps(REPO / "t2i" / "assets")
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", "launch/make_nano.sh", "--quick"]
    done = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for model in ("vae", "text_encoder", "transformer"):
        assert list((OUT / "assets" / model).glob("*.safetensors")), model
    transformer = load_transformer(OUT / "assets" / "transformer")
    assert transformer.config.positions == "rope+absolute"
    assert transformer.head.out.weight.abs().max() > 0, "it was zero before the training"
    assert load_sit(OUT / "export_sit").config.num_classes == 24
    assert (OUT / "export_sit" / WEIGHTS_NAME).exists()
    assert stamps(REPO / "t2i" / "assets") == before
