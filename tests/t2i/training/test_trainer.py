"""Proves that accumulation changes nothing, that gradients are clipped and weights averaged as the
config says, that steps with NaN are skipped, and what metrics say.

Interruptions and the number of processes: test_resume.
"""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2i.batch import TrainingBatch
from t2i.training import trainer
from t2i.training.checkpoint import TENSOR_KINDS, newest_checkpoint
from t2i.training.training_config import TrainingConfig

TINY_RUN = Path(__file__).with_name("tiny_run.py")
# Adam turns rounding errors of tiny gradients into a share of the learning rate, here 1e-2.
ROUNDING = 1e-3
BETA1 = TrainingConfig.model_fields["betas"].default[0]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    saved = newest_checkpoint(run / "checkpoints")
    assert saved is not None
    return {
        f"{kind}/{name}": tensor
        for kind in TENSOR_KINDS
        for name, tensor in load_file(saved.path / f"{kind}.safetensors").items()
    }


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def largest_difference(first: Path, second: Path) -> float:
    left, right = tensors(first), tensors(second)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_accumulation_of_k_batches_of_m_is_one_batch_of_km(
    tmp_path: Path, process_group: None
) -> None:
    train_here(tmp_path / "parts", steps=3, size=2)
    train_here(tmp_path / "whole", steps=3, size=8)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert largest_difference(tmp_path / "parts", tmp_path / "whole") < ROUNDING


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_gradient_is_that_of_the_whole_batch(
    size: int, tmp_path: Path, process_group: None
) -> None:
    """By Adam's first moment after one step, a tenth of the clipped gradient: linear in it."""
    train_here(tmp_path / "parts", steps=1, size=size)
    train_here(tmp_path / "whole", steps=1, size=8)
    parts, whole = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    names = [name for name in whole if name.startswith("exp_avg/") and whole[name].any()]
    assert names
    for name in names:
        difference = (parts[name] - whole[name]).norm() / whole[name].norm()
        assert difference < 1e-5, (name, float(difference))


@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_gradients_are_clipped_to_the_configs_norm(
    zero_stage: int, precision: str, tmp_path: Path, process_group: None
) -> None:
    """By Adam's first moment after one step, (1 - beta1) times the gradient that was applied: the
    step itself hides how large the gradient is. Without clipping the gradient is applied as it is,
    and its norm told all the same."""
    for name, clip in (("low", 0.01), ("none", None)):
        settings = {"gradient_clipping": clip, "zero_stage": zero_stage, "precision": precision}
        train_here(tmp_path / name, steps=1, **settings)
        line = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        assert 0.1 < line["gradient_norm"] < 100
        moments = [m for key, m in tensors(tmp_path / name).items() if key.startswith("exp_avg/")]
        applied = torch.cat([moment.flatten() for moment in moments]).norm() / (1 - BETA1)
        assert applied.item() == pytest.approx(clip or line["gradient_norm"], rel=1e-3)


def test_the_ema_decays_by_the_configs_limit(tmp_path: Path, process_group: None) -> None:
    """At its first update the ramp allows 0.1: a limit of 0.05 holds, one of 0.5 does not yet."""
    tiny = runpy.run_path(str(TINY_RUN))
    start = tiny["make_backbone"]("tr_dit").model.state_dict()
    for limit, decay in ((0.05, 0.05), (0.5, 0.1)):
        train_here(tmp_path / str(limit), steps=1, ema_decay=limit)
        saved = tensors(tmp_path / str(limit))
        for name, before in start.items():
            expected = decay * before + (1 - decay) * saved[f"weights/{name}"]
            torch.testing.assert_close(saved[f"ema/{name}"], expected, rtol=1e-5, atol=1e-7)
        changes = [
            (saved[f"weights/{name}"] - before).abs().max() for name, before in start.items()
        ]
        assert max(changes) > 1e-3


def test_a_step_with_nan_is_skipped_and_accounted_for(tmp_path: Path, process_group: None) -> None:
    train_here(tmp_path / "poisoned", steps=3, poisoned_step=1)
    saved = newest_checkpoint(tmp_path / "poisoned" / "checkpoints")
    assert saved is not None
    assert saved.state.skipped == 1
    assert saved.state.optimizer_steps == saved.state.ema_updates == 2
    assert all(tensor.isfinite().all() for tensor in tensors(tmp_path / "poisoned").values())
    line = json.loads((tmp_path / "poisoned" / "skipped-rank0.jsonl").read_text())
    assert (line["step"], line["reason"]) == (1, "not finite")
    assert line["keys"] == [str(8 + i) for i in range(8)]


def test_skipping_without_end_stops_with_advice(tmp_path: Path, process_group: None) -> None:
    with pytest.raises(ValueError, match="lower learning_rate"):
        train_here(tmp_path / "hopeless", steps=9, poisoned_step=-1)


def test_a_row_of_skipped_steps_goes_on_after_a_restart(
    tmp_path: Path, process_group: None
) -> None:
    train_here(tmp_path / "hopeless", steps=2, poisoned_step=-1)
    with pytest.raises(ValueError, match="3 steps in a row"):
        train_here(tmp_path / "hopeless", steps=9, poisoned_step=-1)
    skipped = (tmp_path / "hopeless" / "skipped-rank0.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in skipped] == [0, 1, 2]


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_the_parameters_are_counted_at_every_zero_stage(
    zero_stage: int, tmp_path: Path, process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = runpy.run_path(str(TINY_RUN))
    run = tiny["make_run"](tmp_path, 1, 0, zero_stage, "fp32")
    number = sum(parameter.numel() for parameter in run.backbone.model.parameters())
    lines: list[str] = []
    monkeypatch.setattr(trainer.logger, "info", lambda text, *parts: lines.append(text % parts))
    assert trainer.train(run)
    assert f"; {number:,} parameters, ZeRO {zero_stage}" in lines[0]


def test_metrics_say_how_the_run_is_doing(tmp_path: Path, process_group: None) -> None:
    train_here(tmp_path / "seen", steps=2)
    lines = (tmp_path / "seen" / "metrics.jsonl").read_text().splitlines()
    first, validation = json.loads(lines[0]), json.loads(lines[-1])
    assert first["step"] == 1
    assert first["samples_seen"] == 8
    assert first["gradient_norm"] > 0
    assert 0 <= first["data_share"] <= 1
    assert first["tflops"] > 0
    assert first["eta_seconds"] > 0
    assert len(validation["validation_by_time"]) == 8
    assert math.isfinite(validation["validation_loss"])


def test_captions_that_are_cut_are_counted_and_told_once(
    tmp_path: Path, process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(
        trainer.logger, "warning", lambda text, *parts: warnings.append(text % parts)
    )
    train_here(tmp_path / "cut", steps=3, limit=2)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").open()]
    counts = [line["cut_captions"] for line in lines if "cut_captions" in line]
    # classes of samples 0 ... 23 in turn, captions of class 2 are longer; every eighth is dropped
    assert counts == [2, 3, 2]
    (warning,) = warnings
    assert "until step 1, 2 of 8 captions" in warning
    assert "t2i.encoders.text.max_tokens" in warning


def train_here(
    folder: Path,
    steps: int,
    size: int = 2,
    poisoned_step: int | None = None,
    limit: int | None = None,
    **settings: Any,
) -> None:
    """Train a tiny fp32 run in this process; a poisoned step (-1: every step) has a NaN.

    Captions of more than ``limit`` letters count as cut; ``settings`` are of `TrainingConfig`.
    """

    make_run = runpy.run_path(str(TINY_RUN))["make_run"]
    run = make_run(
        folder, steps, 0, **{"zero_stage": 2, "precision": "fp32", "size": size, **settings}
    )

    def batches(step: int) -> Iterator[TrainingBatch]:
        for batch in run.batches(step):
            if poisoned_step in (batch.step, -1):
                batch = replace(batch, moments=batch.moments * float("nan"))
            yield batch

    conditioner = run.backbone.conditioner
    if limit is not None:
        encode = conditioner.encode
        conditioner.encode = lambda captions: replace(
            encode(captions), num_cut=sum(len(caption) > limit for caption in captions)
        )
    config = run.config.model_copy(update={"max_skipped_in_a_row": 3})
    assert trainer.train(replace(run, config=config, batches=batches))
