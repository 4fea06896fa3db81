"""Proves that every parameter of the three backbones of configs/nano.yaml is trained, the text refiner and
the mask embedding too: after three steps from their zero-initialised gates, Adam has seen a
gradient in each."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.backbones import BackboneSections
from t2i.config import load_config
from t2i.encoders.text import TextStates
from t2i.models.mask_dit import MaskDiT
from t2i.models.sit import SiT
from t2i.models.tr_dit import TRDiT
from t2i.training.backbone import Backbone, label_backbone, text_backbone
from t2i.training.checkpoint import newest_checkpoint
from t2i.training.trainer import train

REPO = Path(__file__).resolve().parents[2]
TINY_RUN: dict[str, Any] = runpy.run_path(str(REPO / "tests/t2i/training/tiny_run.py"))
# Only the rows of the classes that were seen have gradients; of SiT's head, only the half that
# predicts the velocity (the published weights have another, of variances).
IN_PART = {
    "tr_dit": set(),
    "sit": {"label.weight", "head.out.weight", "head.out.bias"},
    "mask_dit": {"label.weight"},
}


def encode(captions: Sequence[str]) -> TextStates:
    """Another text for each length of caption; two tokens, and one of padding."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(10, 3, 192, generator=generator)[[len(caption) for caption in captions]]
    return TextStates(states, torch.tensor([True, True, False]).expand(len(captions), -1))


def nano_backbone(name: str) -> Backbone:
    sections = load_config(REPO / "configs" / "nano.yaml", [], BackboneSections)
    torch.manual_seed(0)
    device = torch.device("cpu")
    match name:
        case "tr_dit":
            return text_backbone(TRDiT(sections.tr_dit), encode, device)
        case "sit":
            return label_backbone(SiT(sections.sit), device)
        case _:
            return label_backbone(MaskDiT(sections.mask_dit), device)


@pytest.mark.parametrize("kind", ["tr_dit", "sit", "mask_dit-fixed"])
def test_every_parameter_is_trained(kind: str, tmp_path: Path, process_group: None) -> None:
    model = kind.split("-")[0]
    settings = {"learning_rate": 1e-3, "validate_every": 3}
    run = TINY_RUN["make_run"](tmp_path, 3, 0, 2, "fp32", kind, size=8, **settings)
    assert train(replace(run, backbone=nano_backbone(model), validation=[]))
    saved = newest_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    squares = saved.tensors("exp_avg_sq")
    shares = {name: float((square > 0).float().mean()) for name, square in squares.items()}
    assert any(name.startswith("refiner") for name in shares) == (model == "tr_dit")
    assert ("mask_embedding" in shares) == (model == "mask_dit")
    assert {name for name, share in shares.items() if share < 0.99} == IN_PART[model], shares
    assert min(shares.values()) > 0.1
    if model == "sit":
        assert shares["head.out.weight"] == shares["head.out.bias"] == 0.5
