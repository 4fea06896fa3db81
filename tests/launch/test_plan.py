"""Proves the plan: its sums, what it refuses, and that it needs no torch."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from launch.plan import Config, main, make_jobs
from launch.plan_model import GIB, ZERO_STAGES, Job, memory, storage_bytes, time, traffic
from t2i.config import ConfigError, load_config
from t2i.hardware import GPUS
from t2i.models.costs.macs import forward_macs, training_flops
from t2i.models.costs.parameters import parameter_sizes

REPO = Path(__file__).resolve().parents[2]
FULL = REPO / "configs" / "tr_dit_2b5.yaml"
IMAGENET = {
    name: REPO / "configs" / f"imagenet_sit_xl2_{name}.yaml" for name in ("tread", "mg", "maskdit")
}
OBJECTIVE = "t2i.training.objective"
NO_DROPOUT = "data_pipeline.loader.caption_dropout=0"


def jobs(num_gpus: int, *overrides: str, path: Path = FULL) -> list[Job]:
    config = load_config(path, list(overrides), Config)
    return make_jobs(config, config.plan, num_gpus)


def imagenet(name: str, *overrides: str, num_gpus: int = 8) -> Job:
    """The only stage that is planned."""
    (job,) = jobs(num_gpus, *overrides, path=IMAGENET[name])
    return job


def test_a_plan_is_made_without_torch() -> None:
    program = (
        "import sys, launch.plan; launch.plan.main(['--gpus', '1']); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].startswith("PLAN, not measured")
    assert done.stdout.splitlines()[-1] == "False"


def test_parts_of_memory_sum_to_the_peak() -> None:
    for job in (*jobs(64), imagenet("mg", num_gpus=64)):
        for zero_stage in ZERO_STAGES:
            row = memory(job, zero_stage, True)
            parts = (row.weights, row.optimizer, row.averages, row.gradients, row.bucket)
            parts += (row.activations, row.text_encoder, row.teacher, row.reserve)
            assert row.total == sum(parts)
            assert row.fits == (row.total <= GPUS["h200"].memory_gib * GIB)


def test_states_of_the_full_model_on_one_gpu_are_45_gigabytes() -> None:
    (job, _) = jobs(1)
    row = memory(job, 2, True)
    assert row.weights + row.optimizer + row.averages == pytest.approx(45.5e9, rel=0.02)


def test_larger_batches_and_resolutions_need_more() -> None:
    stage1, stage2 = jobs(96)
    (small, _) = jobs(96, "t2i.training.micro_batch=8")
    assert (stage1.micro_batch, small.micro_batch) == (32, 8)
    rows = [memory(job, 2, False).activations for job in (small, stage1, stage2)]
    assert rows[1] == pytest.approx(4 * rows[0], rel=0.01)
    assert rows[2] > 2.5 * rows[1]  # four times the image tokens beside as much text


def test_time_is_arithmetic_and_what_is_sent() -> None:
    (job, _) = jobs(64, "launch.plan.mfu=0.5", "launch.plan.exposed=[0, 0, 0]")
    row = time(job, 2, False)
    assert row.seconds == pytest.approx(row.tflops / (0.5 * 989))
    assert row.days * 86400 == pytest.approx(job.training.steps * row.seconds)
    assert row.gpu_hours == pytest.approx(64 * row.days * 24)
    assert time(job, 2, True).seconds > 1.15 * row.seconds
    (exposed, _) = jobs(64, "launch.plan.mfu=0.5", "launch.plan.exposed=[1, 1, 1]")
    sent = traffic(exposed, 2) / 45e9
    assert time(exposed, 2, False).seconds == pytest.approx(row.seconds + sent)


def test_the_micro_batch_is_fitted_to_the_number_of_gpus() -> None:
    (job, _) = jobs(64)
    assert (job.micro_batch, job.accumulation) == (24, 2)
    with pytest.raises(ConfigError, match=r"3072.*cannot be divided among 100 GPUs"):
        jobs(100)


def test_it_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpus", "256", "--gpu", "a100-80gb", "--config", str(FULL)]
    assert main([*arguments, "--json", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    assert "256 x A100-80GB" in printed
    assert "stage 2: 100,000 steps" in printed
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["planned"] is True
    assert len(figures["stages"]) == 2
    for stage in figures["stages"]:
        assert stage["checkpoint_bytes"] == 16 * figures["num_parameters"]
        assert stage["snapshots_bytes"] == 0


@pytest.mark.parametrize(
    ("gpus", "gpu", "path"), [(64, "h200", FULL), (256, "h200", FULL), (8, "h100", IMAGENET["mg"])]
)
def test_the_plans_of_the_docs_are_still_made(
    gpus: int, gpu: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--gpus", str(gpus), "--gpu", gpu, "--config", str(path)]) == 0
    printed = capsys.readouterr().out
    (block,) = (
        block
        for block in re.findall(
            r"```\n(PLAN.*?)```", (REPO / "docs" / "scale.md").read_text(), re.S
        )
        if block.partition("\n")[0] == printed.partition("\n")[0]
    )
    assert printed.startswith(block.rstrip("\n"))


def test_power_averages_and_their_snapshots_take_room(capsys: pytest.CaptureFixture[str]) -> None:
    """A GPU's share of two fp32 averages; two float16 ones in each of 50 snapshots of stage 1."""
    averages = ("t2i.training.power_averages=[0.05, 0.1]", "t2i.training.snapshot_every=8000")
    plain, tracked = (memory(found[0], 2, False) for found in (jobs(64), jobs(64, *averages)))
    assert tracked.averages == 3 * plain.averages
    assert tracked.total - plain.total == 2 * plain.averages
    flags = [part for override in averages for part in ("--set", override)]
    assert main(["--gpus", "64", "--config", str(FULL), *flags]) == 0
    printed = capsys.readouterr().out
    assert "A checkpoint of stage 1: 60.6 GB; 3 kept: 182 GB; all snapshots: 505 GB" in printed


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_is_one_stage_of_labelled_pictures(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--gpus", "8", "--config", str(IMAGENET[name])]) == 0
    printed = capsys.readouterr().out
    assert "stage 1: 2,000,000 steps x 256 images" in printed
    assert "stage 1 alone (launch.plan.stages)" in printed
    for word in ("stage 2", "encoder", "captions 2"):
        assert word not in printed
    assert ("teacher" in printed) == (name == "mg")
    assert ("ZeRO 3 " in printed) == (name != "maskdit")
    both = jobs(8, "launch.plan.stages=[1, 2]", path=IMAGENET[name])
    assert [job.training.steps for job in both] == [2_000_000, 100_000]


def test_sizes_are_those_of_the_papers() -> None:
    """Parameters, and GMACs without attention products of a dense forward pass (SG, table 2)."""
    job = imagenet("mg")
    assert sum(parameter_sizes(job.model)) == pytest.approx(675e6, rel=0.001)
    assert forward_macs(job.model, job.num_tokens, attention_products=False) == pytest.approx(
        114.42e9, rel=0.001
    )


def test_a_teacher_is_weights_and_forward_passes() -> None:
    """A third of training each; its fp32 weights are all-reduced."""
    plain = imagenet("tread", "t2i.training.gamma=0")
    weights = 2 * sum(parameter_sizes(plain.model))
    for overrides, forwards, gathered in (
        ((), 2, 1.0),
        ((f"{OBJECTIVE}.num_references=3", NO_DROPOUT), 4, 1.0),
        ((f"{OBJECTIVE}.teacher_every=4",), 2, 0.25),
        ((f"{OBJECTIVE}.from_step=1500000",), 0.5, 0.25),
        ((f"{OBJECTIVE}.scale=1.0",), 0, 0.0),
    ):
        guided = imagenet("mg", *overrides)
        assert memory(guided, 2, False).total - memory(plain, 2, False).total == weights
        flops = time(plain, 2, False).tflops
        assert time(guided, 2, False).tflops == pytest.approx(flops * (1 + forwards / 3))
        for zero_stage, volume in zip(ZERO_STAGES, (4, 4, 2), strict=True):
            sent = traffic(guided, zero_stage) - traffic(plain, zero_stage)
            assert sent == pytest.approx(gathered * volume * weights * 7 / 8)


def test_references_of_captions_are_encoded_too() -> None:
    """Each counts as one forward pass of the teacher and as one caption for the text encoder."""
    guidance = f"{OBJECTIVE}={{name: model_guidance, num_references: %d}}"
    (one, _), (three, _) = (jobs(64, guidance % number, NO_DROPOUT) for number in (1, 3))
    dense = training_flops(one.model, one.num_tokens, one.text_tokens) / 3
    caption = 2 * (1.54e9 - 0.23e9) * (32 + one.text_tokens)
    more = (time(three, 2, False).tflops - time(one, 2, False).tflops) * 1e12 / 48
    assert more == pytest.approx(2 * (dense + caption))


def test_memory_is_planned_for_the_longest_caption_and_time_for_a_usual_one() -> None:
    """As with a limit of the usual length, but for activations (and the other way round)."""
    (job, _) = jobs(64)
    (usual, _) = jobs(64, "t2i.encoders.text.max_tokens=256", "launch.plan.text_tokens=null")
    (longest, _) = jobs(64, "launch.plan.text_tokens=512")
    assert (job.text_tokens, job.max_text_tokens) == (256, 512)
    assert time(job, 2, False) == time(usual, 2, False) != time(longest, 2, False)
    assert memory(job, 2, False) == memory(longest, 2, False)
    assert memory(job, 2, False).activations > memory(usual, 2, False).activations


def test_measuring_lambda_is_a_forward_pass_now_and_then() -> None:
    plain = time(imagenet("maskdit", f"{OBJECTIVE}.weight=1.0"), 2, False).tflops
    measured = time(imagenet("maskdit", f"{OBJECTIVE}.weight={{every: 5}}"), 2, False).tflops
    assert measured == pytest.approx(plain * (1 + 1 / 3 / 5))


def test_labelled_latents_are_as_large_as_in_a_tar(tmp_path: Path) -> None:
    sample = {"captions": [""] * 4, "width": 500, "height": 375, "bucket": "256x256", "label": 207}
    parts = io.BytesIO()
    np.save(parts, np.zeros((8, 32, 32), np.float16))
    with tarfile.open(tmp_path / "latents.tar", "w") as tar:
        for number in range(50):
            moments = (("npy", parts.getvalue()), ("mirrored.npy", parts.getvalue()))
            for suffix, data in (*moments, ("json", json.dumps(sample).encode())):
                info = tarfile.TarInfo(f"{number:011d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    planned = storage_bytes(imagenet("tread", "launch.plan.num_images=50"))
    assert planned["latents"] == pytest.approx((tmp_path / "latents.tar").stat().st_size, rel=0.03)
    assert list(planned) == ["images", "latents"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("launch.train.model=sit",), "sit is conditioned on classes; set data_pipeline.loader.l"),
        (("launch.plan.gpu=tpu",), r"launch\.plan\.gpu.*valid: a100-40gb"),
        (("launch.plan.stages=[1]",), r"resolutions \[256, 512\] must be one for each of stages"),
        (("launch.plan.stages=[2, 2]",), r"stages \[2, 2\] names one twice"),
        (("launch.plan.stages=[3]",), r"launch\.plan\.stages"),
        (("launch.plan.resolutions=[256, 500]",), "stage 2: resolution 500 must be a multiple"),
        (
            ("t2i.encoders.text.max_tokens=128",),
            "text_tokens 256 is more than the 128 .*max_tokens",
        ),
        (
            ("launch.train.model=sit", "data_pipeline.loader.labels=true"),
            "text_tokens 256 is more than the 0 tokens that a model of classes reads; leave it out",
        ),
        (("t2i.models.tr_dit.routes=[]",), r"t2i\.models\.tr_dit\.routes is empty"),
    ],
)
def test_what_cannot_be_planned_is_one_line(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        jobs(8, *overrides)
    assert "\n" not in str(caught.value)
