"""Benchmarks of training on a tiny model: rows, FLOPs, files, and a group of two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2i.benchmark import Config
from t2i.benchmarks.benchmark_config import BenchmarkConfig
from t2i.benchmarks.rows import peak_tflops
from t2i.config import DEFAULT_CONFIG, load_config
from t2i.models.costs.macs import training_flops

REPO = Path(__file__).resolve().parents[3]
TINY = (
    "t2i.models.tr_dit.width=64",
    "t2i.models.tr_dit.num_heads=2",
    "t2i.models.tr_dit.adaln_rank=8",
    "t2i.training.micro_batch=2",
    "t2i.benchmark.train_gammas=[0, 0.5, 0.75]",
    "t2i.benchmark.accumulation=2",
    "t2i.benchmark.repeats=2",
    "t2i.benchmark.warmup=1",
    "t2i.benchmark.peak_tflops=0.5",
)


def train(folder: Path, processes: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the command; torchrun gives the processes their places."""
    settings = [f"--set={item}" for item in (*TINY, f"t2i.benchmark.output={folder}", *overrides)]
    launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    launcher = ["-m", *launcher] if processes > 1 else []
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, *launcher, "-m", "t2i.benchmark", "train", *settings],
        env={**inherited, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_rows_take_turns_on_one_engine(tmp_path: Path) -> None:
    done = train(tmp_path, 1, "t2i.training.precision=fp32", "t2i.models.tr_dit.text_width=192")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "train-nano-cpu.json").read_text())
    rows = result["rows"]
    assert [row["name"] for row in rows] == ["dense", "gamma 0.5", "gamma 0.75"]
    model = load_config(DEFAULT_CONFIG, list(TINY), Config).model
    for row, gamma in zip(rows, (0, 0.5, 0.75), strict=True):
        assert row["flops"] == 4 * training_flops(model, 64, 32, gamma)
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
        assert row["mfu"] == pytest.approx(row["tflops_per_second"] / 0.5)
    table = (tmp_path / "train-nano-cpu.md").read_text()
    assert table in done.stdout
    assert "1 process(es) x 2 x 2 samples" in table


@pytest.mark.slow
def test_two_processes_write_one_result(tmp_path: Path) -> None:
    done = train(tmp_path, 2, "t2i.benchmark.encode_text=true", "t2i.models.tr_dit.text_width=192")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| dense |") == 1
    assert "2 process(es)" in done.stdout
    assert "32 text tokens, encoded in each step, bf16" in done.stdout


def test_what_would_be_ignored_is_refused(tmp_path: Path) -> None:
    done = train(tmp_path, 1, "t2i.benchmark.device=cuda")
    assert done.returncode == 2
    assert "t2i.benchmark.device is cuda, but training runs on cpu here" in done.stderr


def test_mfu_is_measured_against_a_known_peak_only() -> None:
    on_cpu = BenchmarkConfig()
    assert peak_tflops(on_cpu, in_bf16=True) is None
    assert peak_tflops(on_cpu.model_copy(update={"peak_tflops": 2.0}), in_bf16=False) == 2.0
