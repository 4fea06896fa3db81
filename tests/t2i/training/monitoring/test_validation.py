"""Proves that a run measures and samples the average that its checkpoints hold, at every ZeRO stage and on
two processes, and that a run which samples stays the same to the bit."""

from __future__ import annotations

import json
import runpy
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from t2i.pipeline import TextToImagePipeline
from t2i.training.averages.averaged_copy import AveragedCopy
from t2i.training.checkpoint import TENSOR_KINDS, newest_checkpoint
from t2i.training.monitoring import validation as validation_module
from t2i.training.monitoring.held_out import TIMES, held_out_losses
from t2i.training.monitoring.swapped_words import swapped_word_excess
from t2i.training.monitoring.validation_samples import write_samples
from t2i.training.objectives.model_guidance_config import (
    AutoScale,
    ModelGuidanceConfig,
    ScaleState,
    update_scale,
)
from t2i.training.objectives.moving import make_objective
from t2i.training.run import Run
from t2i.training.trainer import train

HERE = Path(__file__).resolve().parents[1]
SAMPLED = runpy.run_path(str(HERE / "sampled_run.py"))
TINY = SAMPLED["TINY"]


def saved(run: Path, kind: str) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return load_file(checkpoint.path / f"{kind}.safetensors")


def assert_same_bits(one: Path, other: Path) -> None:
    for kind in TENSOR_KINDS:
        left, right = saved(one, kind), saved(other, kind)
        assert left.keys() == right.keys()
        assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def validations(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "validation_loss" in line]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def make_run(folder: Path, zero: int, precision: str, kind: str, every: int = 0) -> Run:
    run: Run = SAMPLED["make_sampled_run"](folder, 2, zero, precision, kind, every)
    return run


@pytest.mark.parametrize(("kind", "zero"), [("tr_dit", 1), ("sit", 2), ("tr_dit", 3)])
def test_losses_are_those_of_the_saved_weights_and_of_their_average(
    kind: str, zero: int, tmp_path: Path, process_group: None
) -> None:
    run = make_run(tmp_path, zero, "fp32", kind)
    words = {"length": ("a", "aa", "aaa")} if kind == "tr_dit" else {}
    run = replace(run, swapped_words=words)
    assert train(run)
    (line,) = validations(tmp_path)
    for weights, field in (("weights", "validation"), ("ema", "ema_validation")):
        backbone = TINY["make_backbone"](kind)
        objective = make_objective(run.config, backbone, run.device, {})
        backbone.model.load_state_dict(saved(tmp_path, weights))
        asked = (backbone.network, objective, backbone.conditioner)
        losses = [held_out_losses(*asked, batch, TIMES) for batch in run.validation]
        by_time_T = torch.cat(losses, dim=1).mean(dim=1)
        assert line[f"{field}_loss"] == pytest.approx(by_time_T.mean().item(), rel=1e-5)
        assert line[f"{field}_by_time"] == pytest.approx(by_time_T.tolist(), rel=1e-5)
    if words:  # the network of the last turn has the average's weights
        excess = swapped_word_excess(
            *(backbone.network, objective, backbone.conditioner),
            *(run.validation, losses, words, TIMES),
        )
        assert line["ema_swapped_words"] == pytest.approx(excess, rel=1e-3)
        assert excess["length"] != 0
    assert line["validation_loss"] != line["ema_validation_loss"]


@pytest.mark.parametrize("kind", ["tr_dit", "sit"])
def test_a_run_that_samples_is_the_same_to_the_bit(
    kind: str, tmp_path: Path, process_group: None
) -> None:
    for name, every in (("silent", 0), ("sampled", 1)):
        assert train(make_run(tmp_path / name, 2, "bf16", kind, every))
    assert_same_bits(tmp_path / "silent", tmp_path / "sampled")
    steps = sorted((tmp_path / "sampled" / "samples").iterdir())
    assert [step.name for step in steps] == ["step-00000001", "step-00000002"]
    sheets = [pixels(step / "contact_sheet.png") for step in steps]
    assert sheets[0].shape == (3 * 32 + 14, 3 * 32, 3), "a row per prompt, a column per method"
    assert (sheets[0] != sheets[1]).any(), "the second step has learned"
    for method in ("none", "cfg", "sg"):
        assert (steps[0] / f"{method}.png").exists()


def test_the_automatic_scale_follows_the_quality_of_samples(
    tmp_path: Path, process_group: None
) -> None:
    """Told that samples get worse; the validation loss, measured too, is not followed."""
    scale = AutoScale(follow="samples")
    run = make_run(tmp_path, 2, "fp32", "sit", every=1)
    assert run.samples is not None
    qualities, seen = iter((5.0, 3.0)), []

    def quality(images: Sequence[Image.Image]) -> float:
        seen.append(np.asarray(images[0]))
        return next(qualities)

    objective = ModelGuidanceConfig(scale=scale)
    run = replace(
        run,
        config=run.config.model_copy(update={"objective": objective, "validate_every": 1}),
        samples=replace(run.samples, quality=quality),
    )
    assert train(run)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [(line["step"], line["sample_quality"]) for line in lines if "sample_quality" in line]
    assert told == [(1, 5.0), (2, 3.0)]
    for step, pixels_HW3 in enumerate(seen, start=1):
        first = tmp_path / "samples" / f"step-{step:08d}" / "none.png"
        assert first.exists(), "the first method"
        assert pixels_HW3.shape == (32, 32, 3)
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    state = update_scale(scale, update_scale(scale, ScaleState(), 5.0), 3.0)
    assert checkpoint.state.objective == asdict(state)
    assert state.scale > 1


def test_black_pictures_are_no_samples_and_no_end_of_the_run(
    tmp_path: Path, process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, 2, "fp32", "tr_dit", every=2)
    assert run.samples is not None
    run.samples.vae.model.decoder.conv_out.bias.fill_(torch.nan)
    run = replace(run, samples=replace(run.samples, quality=lambda _: pytest.fail("of nothing")))
    errors: list[str] = []
    monkeypatch.setattr(
        validation_module.logger, "error", lambda text, *parts: errors.append(text % parts)
    )
    assert train(run)
    (error,) = errors
    assert "no samples of step 2: 2 of 2 images (seed 0, 1) are NaN" in error
    assert not (tmp_path / "samples").exists()


@pytest.mark.slow
def test_two_processes_sample_the_sharded_average(
    tmp_path: Path, start_two_processes: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    plans = ("silent:2:3:fp32:tr_dit:0", "sampled:2:3:fp32:tr_dit:1")
    done = start_two_processes("sampled_run.py", str(tmp_path), *plans)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_bits(tmp_path / "silent", tmp_path / "sampled")

    samples = SAMPLED["make_samples"]("tr_dit")
    backbone = TINY["make_backbone"]("tr_dit")
    backbone.model.load_state_dict(saved(tmp_path / "sampled", "ema"))
    pipeline = TextToImagePipeline(backbone.model, samples.vae, samples.text_encoder)
    drawn = {
        name: pipeline(
            samples.prompts,
            seeds=[0, 1, 2],
            guidance=guidance,
            num_inference_steps=2,
            height=32,
            width=32,
        ).images
        for name, guidance in samples.methods.items()
    }
    sheet = pixels(write_samples(samples, drawn, tmp_path / "alone"))
    of_run = pixels(tmp_path / "sampled" / "samples" / "step-00000002" / "contact_sheet.png")
    assert np.abs(sheet - of_run).max() <= 2  # rounding to 8 bits


def test_the_copy_holds_no_memory_outside_its_context(process_group: None) -> None:
    backbone = TINY["make_backbone"]("tr_dit")
    average = AveragedCopy(backbone)
    names = [name for name, _ in backbone.model.named_parameters()]
    weights = [(name, p.detach()) for name, p in backbone.model.named_parameters()]
    assert [name for name, _ in average.model.named_parameters()] == names
    assert all(parameter.is_meta for parameter in average.network.parameters())
    with average.filled(weights, torch.bfloat16, torch.device("cpu")):
        assert {p.dtype for p in average.network.parameters()} == {torch.bfloat16}
        assert not any(p.is_meta or p.requires_grad for p in average.network.parameters())
    assert all(parameter.is_meta for parameter in average.network.parameters())
