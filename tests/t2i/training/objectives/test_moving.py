"""Proves that the trainer runs every objective: each kind of `tiny_run.KINDS` learns a tiny set, a
guided run equals a loop written by hand around plain AdamW at every ZeRO stage, lambda equals the
ratio of gradients of the whole global batch, and runs with a moving state do not depend on
interruptions or on the number of processes."""

from __future__ import annotations

import json
import runpy
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2i.training.averages.ema import averaged_network, decay_at
from t2i.training.checkpoint import TENSOR_KINDS, Checkpoint, newest_checkpoint
from t2i.training.conditions import ContrastedConditions
from t2i.training.objectives.flow_matching import FlowMatching
from t2i.training.objectives.masked import MaskedFlowMatching
from t2i.training.objectives.masked_config import MaskedConfig
from t2i.training.objectives.model_guidance import ModelGuidance
from t2i.training.objectives.model_guidance_config import (
    ModelGuidanceConfig,
    ScaleState,
    update_scale,
)
from t2i.training.run import Run
from t2i.training.trainer import train

TINY_RUN = Path(__file__).parents[1] / "tiny_run.py"
TINY: dict[str, Any] = runpy.run_path(str(TINY_RUN))
# Adam turns rounding errors of tiny gradients into a share of the learning rate, here 1e-2.
ROUNDING = 1e-3


def make_run(
    folder: Path, steps: int, kind: str, zero: int = 2, stop_at: int = 0, **settings: Any
) -> Run:
    run: Run = TINY["make_run"](folder, steps, stop_at, zero, "fp32", kind, **settings)
    return run


def saved(folder: Path) -> Checkpoint:
    found = newest_checkpoint(folder / "checkpoints")
    assert found is not None
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = saved(folder).path
    return {
        f"{kind}/{name}": tensor
        for kind in TENSOR_KINDS
        for name, tensor in load_file(path / f"{kind}.safetensors").items()
    }


def losses(folder: Path, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.mark.parametrize("kind", sorted(set(TINY["KINDS"]) - {"tr_dit", "tr_dit-strong"}))
def test_a_tiny_set_is_learned(kind: str, tmp_path: Path, process_group: None) -> None:
    """By the dense loss of held-out noise, which means the same whatever lambda and scale are."""
    assert train(make_run(tmp_path, 40, kind, size=8, gamma=0.25, validate_every=5))
    assert all(0 < loss < 10 for loss in losses(tmp_path))
    history = losses(tmp_path, "validation_loss")
    assert history[-1] < 0.85 * history[0], history


@pytest.mark.parametrize("kind", ["tr_dit-references", "mask_dit-fixed"])
def test_a_run_with_bernoulli_draws_is_the_same_in_any_micro_batches(
    kind: str, tmp_path: Path, process_group: None
) -> None:
    for size in (2, 8):
        settings = {"size": size, "routing_draw": "bernoulli"}
        assert train(make_run(tmp_path / str(size), 4, kind, **settings))
    assert train(make_run(tmp_path / "fixed", 4, kind))
    in_four, at_once, fixed = (losses(tmp_path / name) for name in ("2", "8", "fixed"))
    assert in_four == pytest.approx(at_once, rel=1e-5)
    assert in_four != pytest.approx(fixed, rel=1e-5)


# So strong that a wrong teacher shows after a few steps.
STRONG = {"name": "model_guidance", "scale": 100.0}


def by_hand(
    folder: Path, steps: int, averaged: bool = True
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a strongly guided SiT, in a loop around torch's AdamW.

    ``averaged``: whether the teacher is the average, or the network itself.
    """
    run = make_run(folder, steps, "sit")
    config, network = run.config, run.backbone.network
    base = FlowMatching(config.seed, config.gamma, config.timestep, patch_size=2)
    objective = ModelGuidance(base, ModelGuidanceConfig(scale=100.0))
    averages = {name: p.detach().clone() for name, p in network.named_parameters()}
    teacher = averaged_network(network, averages)
    optimizer = torch.optim.AdamW(network.parameters(), betas=config.betas, weight_decay=0.0)
    history = []
    for step in range(steps):
        batch = TINY["micro_batch"](step, 0, 8)
        given = torch.where(batch.labels < 0, 3, batch.labels)
        conditions = ContrastedConditions(given, (torch.full_like(given, 3),), batch.labels < 0)
        loss = objective.training_loss(network, teacher, batch, conditions).loss_B.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clipping)
        optimizer.param_groups[0]["lr"] = config.learning_rate_at(step)
        optimizer.step()
        for name, parameter in network.named_parameters():
            share = 1 - decay_at(step, config.ema_decay) if averaged else 1.0
            averages[name].lerp_(parameter.detach(), share)
        history.append(loss.item())
    return history, {name: p.detach() for name, p in network.named_parameters()}


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_guided_run_is_the_loop_written_by_hand(
    zero: int, tmp_path: Path, process_group: None
) -> None:
    history, weights = by_hand(tmp_path / "hand", 5)
    assert train(make_run(tmp_path / "run", 5, "sit", zero, objective=STRONG))
    assert losses(tmp_path / "run") == pytest.approx(history, rel=1e-4)
    trained = saved(tmp_path / "run").tensors("weights")
    assert max((trained[name] - w).abs().max().item() for name, w in weights.items()) < ROUNDING
    assert history != pytest.approx(by_hand(tmp_path / "hand", 5, averaged=False)[0], rel=1e-3)


def test_lambda_is_the_ratio_of_the_gradients_of_the_global_batch(
    tmp_path: Path, process_group: None
) -> None:
    """By hand from one batch of eight; the run takes it in four micro-batches."""
    run = make_run(tmp_path / "hand", 1, "mask_dit-masked")
    base = FlowMatching(0, run.config.gamma, run.config.timestep, patch_size=2)
    objective = MaskedFlowMatching(base, MaskedConfig(masked_target="velocity"))
    batch, network = TINY["micro_batch"](0, 0, 8), run.backbone.network
    terms = objective.training_terms(network, batch, run.backbone.conditioner.given(batch))
    last = run.backbone.model.get_parameter("head.out.weight")
    norms = [
        torch.autograd.grad(term_B.mean(), last, retain_graph=True)[0].norm().item()
        for term_B in (terms.visible_B, terms.masked_B)
    ]
    assert train(make_run(tmp_path / "run", 1, "mask_dit-masked"))
    weight = saved(tmp_path / "run").state.objective["lambda"]
    assert weight == pytest.approx(norms[0] / norms[1], rel=1e-4)
    assert weight != pytest.approx(1.0, abs=0.05)
    assert losses(tmp_path / "run") == pytest.approx(
        [(terms.visible_B + terms.masked_B).mean().item()], rel=1e-4
    ), "the first step takes 1"


def test_lambda_is_measured_every_so_many_steps(tmp_path: Path, process_group: None) -> None:
    assert train(make_run(tmp_path, 6, "mask_dit-masked"))
    weights = losses(tmp_path, "lambda")
    assert weights[0::2] == weights[1::2]
    assert len(set(weights)) == 3


def test_a_skipped_step_leaves_lambda_alone(tmp_path: Path, process_group: None) -> None:
    run = make_run(
        tmp_path, 4, "mask_dit-masked", objective={"name": "masked", "weight": {"every": 1}}
    )
    whole = run.batches

    def batches(step: int) -> Any:
        for batch in whole(step):
            poison = float("nan") if batch.step == 2 else 1.0
            yield replace(batch, moments=batch.moments * poison)

    assert train(replace(run, batches=batches))
    at_start, measured, skipped, last = losses(tmp_path, "lambda")
    assert at_start is None, "the last layer starts at zero"
    assert measured == skipped
    assert 0 < measured <= 10
    assert 0 < last <= 10


def test_the_automatic_scale_follows_the_validation_loss(
    tmp_path: Path, process_group: None
) -> None:
    assert train(make_run(tmp_path, 6, "sit-auto", validate_every=2))
    run = make_run(tmp_path, 6, "sit-auto")
    assert isinstance(run.config.objective, ModelGuidanceConfig)
    state = ScaleState()
    for loss in losses(tmp_path, "validation_loss"):
        state = update_scale(run.config.objective.scale, state, -loss)  # type: ignore[arg-type]
    assert saved(tmp_path).state.objective == {"scale": state.scale, "quality": state.quality}
    assert state.quality is not None


@pytest.mark.parametrize("kind", ["tr_dit-guided", "sit-auto", "mask_dit-masked"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    kind: str, tmp_path: Path, process_group: None
) -> None:
    """SIGTERM comes in the third step. At this rate the loss rises, and with it the scale."""
    settings = {"validate_every": 1, "warmup_steps": 0, "learning_rate": 0.1, "size": 4}
    assert train(make_run(tmp_path / "straight", 5, kind, **settings))
    assert not train(make_run(tmp_path / "stopped", 5, kind, stop_at=3, **settings))
    assert saved(tmp_path / "stopped").state.step < 5
    assert train(make_run(tmp_path / "stopped", 5, kind, **settings))
    straight, stopped = tensors(tmp_path / "straight"), tensors(tmp_path / "stopped")
    assert straight.keys() == stopped.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, stopped[name]), name
    assert saved(tmp_path / "straight").state == saved(tmp_path / "stopped").state
    assert losses(tmp_path / "straight") == losses(tmp_path / "stopped")
    assert 1.0 not in saved(tmp_path / "stopped").state.objective.values(), "it has moved"


def test_a_teacher_may_be_some_steps_old(tmp_path: Path, process_group: None) -> None:
    guided = {"name": "model_guidance", "scale": 1.5}
    assert train(make_run(tmp_path / "fresh", 4, "sit-guided", objective=guided))
    old = guided | {"teacher_every": 3}
    assert train(make_run(tmp_path / "old", 4, "sit-guided", objective=old))
    fresh, aged = losses(tmp_path / "fresh"), losses(tmp_path / "old")
    assert fresh[0] == aged[0]
    assert fresh[2] != aged[2]


@pytest.mark.parametrize("kind", ["sit", "sit-references"])
def test_a_label_that_the_model_lacks_names_the_sample(
    kind: str, tmp_path: Path, process_group: None
) -> None:
    run = make_run(tmp_path, 1, kind)
    whole = run.batches

    def batches(step: int) -> Any:
        for batch in whole(step):
            yield replace(batch, labels=batch.labels + 1)

    with pytest.raises(ValueError, match=r"sample 2 has label 3, but the model has 3 classes"):
        train(replace(run, batches=batches))


@pytest.mark.slow
def test_two_processes_then_one_train_like_one_alone(
    tmp_path: Path,
    process_group: None,
    launch_tiny_run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Sharded teacher at ZeRO 3, lambda over ranks."""
    cases = {"tr_dit-strong": 3, "sit-guided": 1, "mask_dit-masked": 2}
    plans = [f"{kind}:6:3:{zero}:fp32:{kind}" for kind, zero in cases.items()]
    done = launch_tiny_run(tmp_path, *plans)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind, zero in cases.items():
        assert train(make_run(tmp_path / kind, 6, kind, zero))
        assert train(make_run(tmp_path / f"{kind}-alone", 6, kind, zero))
        moved, alone = tensors(tmp_path / kind), tensors(tmp_path / f"{kind}-alone")
        assert losses(tmp_path / kind) == pytest.approx(
            losses(tmp_path / f"{kind}-alone"), rel=1e-4
        )
        assert max((moved[name] - alone[name]).abs().max().item() for name in alone) < ROUNDING
    states = [saved(tmp_path / f"mask_dit-masked{end}").state.objective for end in ("", "-alone")]
    assert states[0]["lambda"] == pytest.approx(states[1]["lambda"], rel=1e-3)
