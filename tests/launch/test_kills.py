"""Proves that kill -9 costs a run nothing but time: the real command under the deepspeed launcher with two
processes, killed with all that it started at random moments and in the midst of saving, ends with
the same checkpoint, to the bit, and the same metrics as a run that nobody killed.

Three kills at ZeRO 2, one of each kind; ten with launch/test.sh --all. Ten at every ZeRO stage:

    SPARSE_T2I_KILLS=10 python -m pytest tests/launch/test_kills.py -s
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2i.training.checkpoint import MANIFEST, TENSOR_KINDS, newest_checkpoint

REPO = Path(__file__).resolve().parents[2]
STEPS_PER_KILL = 4
# ZeRO stage and number of kills
CASES = [(2, 3), pytest.param(2, 10, marks=pytest.mark.long)]
if "SPARSE_T2I_KILLS" in os.environ:
    CASES = [(zero, int(os.environ["SPARSE_T2I_KILLS"])) for zero in (1, 2, 3)]
CONFIG = """
base: {repo}/configs/nano.yaml
root: {root}
data_pipeline:
  loader: {{num_workers: 1, held_out: 8}}
t2i:
  models:
    tr_dit: {{num_layers: 3, width: 32, num_heads: 2, routes: [[1, 1]], adaln_rank: 8}}
  training: {{steps: {steps}, global_batch: 8, micro_batch: 2, warmup_steps: 4, log_every: 1,
             checkpoint_every: 2, keep_checkpoints: 2, validate_every: 4, zero_stage: {zero}}}
launch:
  train: {{validation_samples: 4}}
"""
# Fields of a line of metrics that say how fast it went, beside the shares of time.
OF_THE_CLOCK = ("time", "seconds", "images_per_second", "tflops", "eta_seconds", "memory_gb")


def write_config(root: Path, zero: int, steps: int) -> Path:
    root.mkdir()
    path = root / "config.yaml"
    path.write_text(CONFIG.format(repo=REPO, root=root, steps=steps, zero=zero))
    return path


def start(config: Path) -> subprocess.Popen[str]:
    """The command, as leader of a process group; its output goes to a file beside the config."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    options = ["--num_gpus", "2", "--master_port", str(20_000 + os.getpid() % 20_000)]
    script = [str(REPO / "launch" / "train_t2i.py"), "--stage", "1", "--config", str(config)]
    with (config.parent / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, launcher, *options, *script],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def finish(config: Path) -> None:
    code = start(config).wait(timeout=600)
    assert code == 0, (config.parent / "output.txt").read_text()


def kill_when(config: Path, moment: Callable[[], bool], delay: float = 0.0) -> None:
    """Start the command and kill -9 all of its processes at the moment, or ``delay`` seconds on."""
    process = start(config)
    try:
        while not moment():
            assert process.poll() is None, (config.parent / "output.txt").read_text()
            time.sleep(0.001)
        time.sleep(delay)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while survivors(process.pid):  # the kernel is still at it
        time.sleep(0.01)


def survivors(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def run_folder(config: Path) -> Path:
    return config.parent / "runs" / "stage1"


def metrics(config: Path) -> list[dict[str, Any]]:
    lines = (run_folder(config) / "metrics.jsonl").read_text().splitlines()
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if name not in OF_THE_CLOCK and not name.endswith("_share")
        }
        for line in lines
    ]


def half_saved(config: Path) -> set[Path]:
    return set((run_folder(config) / "checkpoints").glob("step-*.tmp"))


def steps_since(config: Path, started: float) -> int:
    """How many steps this attempt has reported; ``started``: seconds since the epoch."""
    file = run_folder(config) / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return sum("loss" in line and line["time"] > started for line in lines)


def kill_while_starting(config: Path, draws: random.Random) -> bool:
    """Anywhere before the first step is reported: launcher, imports, loading a checkpoint."""
    started = time.time()
    moment = started + draws.uniform(1, 10)
    kill_when(config, lambda: time.time() > moment or steps_since(config, started) > 0)
    return True


def kill_while_stepping(config: Path, draws: random.Random) -> bool:
    """A few steps on, and a moment more, in which there may be a save or a validation."""
    started, num_steps = time.time(), draws.randint(3, 5)  # so at least one save
    kill_when(config, lambda: steps_since(config, started) >= num_steps, draws.uniform(0, 0.2))
    return True


def kill_while_saving(config: Path, draws: random.Random) -> bool:
    """At the first save or, after two more steps, the second; False if it was over before."""
    old, num_saves = half_saved(config), draws.randint(1, 2)
    begun: set[Path] = set()

    def is_saving() -> bool:
        now = half_saved(config) - old
        begun.update(now)
        return len(begun) >= num_saves and bool(now)

    kill_when(config, is_saving)
    return bool(half_saved(config) - old)


def hashes(config: Path, step: int) -> dict[str, str]:
    """SHA-256 of the last checkpoint's tensors and position; it must be that of ``step``."""
    saved = newest_checkpoint(run_folder(config) / "checkpoints")  # verifies them
    assert saved is not None
    assert saved.state.step == step
    files = json.loads((saved.path / MANIFEST).read_text())["files"]
    assert {f"{kind}.safetensors" for kind in TENSOR_KINDS} < set(files)
    return {name: file["sha256"] for name, file in files.items() if name != "config.yaml"}


KILLS = (kill_while_stepping, kill_while_saving, kill_while_starting)


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "num_kills"), CASES)
def test_a_killed_run_ends_like_one_that_nobody_killed(
    zero: int, num_kills: int, tmp_path: Path
) -> None:
    steps = STEPS_PER_KILL * num_kills
    straight = write_config(tmp_path / "straight", zero, steps)
    killed = write_config(tmp_path / "killed", zero, steps)
    finish(straight)
    draws = random.Random(zero)
    places = []
    for number in range(num_kills):
        kill = KILLS[number % len(KILLS)]
        while not kill(killed, draws):
            print("the save was faster than the kill; once more")
        saved = newest_checkpoint(run_folder(killed) / "checkpoints")
        places.append(saved.state.step if saved else 0)
        print(
            f"ZeRO {zero}: {kill.__name__}; goes on from step {places[-1]} of {steps}", flush=True
        )
    finish(killed)
    assert 0 < max(places) < steps
    assert hashes(killed, steps) == hashes(straight, steps)
    assert [line["step"] for line in metrics(killed) if "loss" in line] == list(range(1, steps + 1))
    assert metrics(killed) == metrics(straight)
