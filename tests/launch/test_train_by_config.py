"""Proves that config alone trains every family on a labelled latents folder: a stage is trained in this
process, and the command by the deepspeed launcher on two; run again it goes on."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig
from data_pipeline.storage.stores import open_storage
from launch.backbones import check_fits
from launch.config import stage_section
from launch.train_t2i import Config, train_stage
from t2i.config import load_config
from t2i.training.checkpoint import find_damage, newest_checkpoint

REPO = Path(__file__).resolve().parents[2]
NUM_SAMPLES = 16
CONFIG = """
data_pipeline:
  loader:
    datasets: [{path: FOLDER/latents}]
    labels: true
    num_workers: 0
    held_out: 4
t2i:
  models:
    tr_dit: {num_layers: 2, width: 16, num_heads: 2, num_refiner_layers: 1, adaln_rank: 4,
             text_width: 192, routes: [[1, 1]]}
    sit: {num_layers: 2, width: 16, num_heads: 2, num_classes: 3, routes: [[1, 1]]}
    mask_dit: {num_layers: 1, width: 16, num_heads: 2, num_classes: 3,
               decoder_layers: 1, decoder_width: 8, decoder_heads: 2}
  training: {steps: 2, global_batch: 4, micro_batch: 2, learning_rate: 1.0e-2, log_every: 1}
launch:
  train:
    stage1: {folder: FOLDER/run}
    validation_samples: 4
"""
INTERVAL = "t2i.training.objective={name: model_guidance, scale: {low: 1.0, high: 2.0}}"
CASES = {
    "sit": ["launch.train.model=sit"],
    "sit-guided": [
        "launch.train.model=sit",
        "t2i.training.objective={name: model_guidance, scale: {decay: 0.5}}",
    ],
    "tr_dit-references": [
        "data_pipeline.loader.labels=false",
        "t2i.training.routing_draw=bernoulli",
        "t2i.training.objective={name: model_guidance, num_references: 2}",
        "t2i.training.objective.num_reference_captions=3",
        "data_pipeline.loader.caption_dropout=0",
    ],
    "sit-scaled": ["launch.train.model=sit", "t2i.models.sit.scale_input=true", INTERVAL],
    "tr_dit": ["data_pipeline.loader.labels=false"],
    "tr_dit-scaled": [
        "data_pipeline.loader.labels=false",
        "t2i.models.tr_dit.scale_input=true",
        INTERVAL,
    ],
    "mask_dit-masked": ["launch.train.model=mask_dit", "t2i.training.objective.name=masked"],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose data has 16 samples of three classes."""
    output = StepOutput.open(str(tmp_path / "latents"))
    with output.writer("00000", {"bucket": "string"}) as writer:
        for number in range(NUM_SAMPLES):
            buffer, key = io.BytesIO(), f"{number:011d}"
            np.save(buffer, np.full((8, 4, 4), 0.1 * (number % 3), np.float16))
            facts = {"captions": ["red circle"] * 4, "label": number % 3}
            parts = {"npy": buffer.getvalue(), "json": json.dumps(facts).encode()}
            writer.add(Outcome(Row(key, "ok", columns={"bucket": "32x32"}), Sample(key, parts)))
        writer.commit()
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    return path


def train(path: Path, case: str, steps: int, *overrides: str) -> None:
    overrides = (*CASES[case], f"t2i.training.steps={steps}", *overrides)
    config = load_config(path, overrides, Config)
    training, loader = config.training, config.loader
    check_fits(config, training, loader)
    device = torch.device("cpu")
    assert train_stage(1, config.launch.stage(1), training, loader, config, device) == 0


def lines(config: Path) -> list[dict[str, float]]:
    text = (config.parent / "run" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_config_alone_trains_and_goes_on(
    case: str, config: Path, process_group: None, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, case, 2)
    assert "starts from random weights" in capsys.readouterr().out
    train(config, case, 3)
    train(config, case, 3)
    assert "stage 1 is finished" in capsys.readouterr().out
    losses = [line["loss"] for line in lines(config) if "loss" in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    saved = newest_checkpoint(config.parent / "run" / "checkpoints")
    assert saved is not None
    state = {"sit-guided": {"scale", "quality"}, "mask_dit-masked": {"lambda"}}
    assert set(saved.state.objective) == state.get(case, set())


def test_mask_dit_is_fine_tuned_on_all_tokens_as_the_imagenet_config_says(
    config: Path, process_group: None
) -> None:
    """By the differences of its stage 2: no token is masked, so the mask embedding stays as it is."""
    train(config, "mask_dit-masked", 2)
    shipped = load_config(REPO / "configs" / "imagenet_sit_xl2_maskdit.yaml", [], Config)
    tuning = {**shipped.launch.stage2.training, "steps": 4}
    overrides = (
        *CASES["mask_dit-masked"],
        f"launch.train.stage2.folder={config.parent / 'tuned'}",
        f"launch.train.stage2.start_from_run={config.parent / 'run'}",
        f"launch.train.stage2.training={json.dumps(tuning)}",
    )
    loaded = load_config(config, overrides, Config)
    stage = loaded.launch.stage2
    training = stage_section(loaded.training, stage.training, "training")
    check_fits(loaded, training, loaded.loader)
    assert (training.gamma, training.objective.name) == (0.0, "flow_matching")
    device = torch.device("cpu")
    assert train_stage(2, stage, training, loaded.loader, loaded, device) == 0
    before, after = (
        newest_checkpoint(config.parent / run / "checkpoints") for run in ("run", "tuned")
    )
    assert before is not None
    assert after is not None
    changed = {
        name
        for name, tensor in after.tensors("weights").items()
        if not torch.equal(tensor, before.tensors("weights")[name])
    }
    assert "mask_embedding" not in changed
    assert {"bridge.out.weight", "head.out.weight"} <= changed


def test_the_same_command_on_a_fresh_machine_goes_on_from_the_copy_on_s3(
    config: Path, process_group: None, s3_url: str, s3_config: StorageConfig
) -> None:
    copies = [
        f"launch.train.upload.address={s3_url}",
        f"data_pipeline.storage.endpoint_url={s3_config.endpoint_url}",
        f"data_pipeline.storage.region={s3_config.region}",
    ]
    train(config, "sit", 2, *copies)
    shutil.rmtree(config.parent / "run")
    train(config, "sit", 3, *copies)
    assert [line["step"] for line in lines(config) if "loss" in line] == [3]
    there = {key.partition("/")[0] for key in open_storage(f"{s3_url}/stage1", s3_config).list()}
    assert there == {"step-00000002", "step-00000003"}


@pytest.mark.parametrize("model", ["sit", "tr_dit"])
def test_a_network_without_scale_input_is_fine_tuned_with_one(
    model: str, config: Path, process_group: None, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, model, 2)
    first = newest_checkpoint(config.parent / "run" / "checkpoints")
    assert first is not None
    capsys.readouterr()
    train(
        config,
        f"{model}-scaled",
        3,
        f"launch.train.stage1.folder={config.parent / 'tuned'}",
        f"launch.train.stage1.start_from_run={config.parent / 'run'}",
        "launch.train.stage1.start_with_optimizer=true",
        "t2i.training.learning_rate=1.0e-3",
    )
    assert f"{first.path} has no scale input: a new one is added" in capsys.readouterr().out
    tuned = newest_checkpoint(config.parent / "tuned" / "checkpoints")
    assert tuned is not None
    before, after = first.tensors("weights"), tuned.tensors("weights")
    new = {name for name in after if name.startswith("scale.")}
    assert set(after) - set(before) == new
    assert all((after[name] - before[name]).abs().max() < 0.01 for name in before)
    assert after["scale.out.weight"].any()
    assert tuned.tensors("ema")["scale.out.weight"].any()
    assert tuned.state.optimizer_steps == 5


@pytest.mark.slow
def test_the_deepspeed_launcher_trains_on_two_processes(config: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    options = ["--num_gpus", "2", "--master_port", str(20_000 + os.getpid() % 20_000)]
    script = str(REPO / "launch" / "train_t2i.py")
    sets = [part for override in CASES["mask_dit-masked"] for part in ("--set", override)]
    sets += ["--set", "t2i.training.objective.weight.every=1"]
    sets += ["--set", f"launch.train.upload.address={config.parent / 'copies'}"]
    stage = ["--stage", "1", "--config", str(config), *sets]
    command = [sys.executable, launcher, *options, script, *stage]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (line["lambda"] for line in lines(config) if "lambda" in line)
    assert first is None, "the last layer starts at zero, which tells nothing of lambda"
    assert 0 < second <= 10
    assert find_damage(config.parent / "copies" / "stage1" / "step-00000002") is None
