"""Tiny runs whose saving is disturbed, started by the tests; see `tiny_run` for the runs themselves.

    torchrun --nproc-per-node 2 tests/t2i/training/saving_runs.py disturb FOLDER
    python tests/t2i/training/saving_runs.py kill FOLDER SEED

disturb: three runs of two processes that save after every step, because checkpoint_minutes are over
at once. In the first the second process may not write (a limit on the size of files) in steps 2 and
3; the second gets SIGTERM while it saves; the third may not write its last checkpoint.
kill: one process that is killed at random moments, again and again, until it lives to its end; and
the same without kills.
"""

from __future__ import annotations

import os
import random
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from t2i.batch import TrainingBatch
from t2i.console import run_command
from t2i.training.checkpoint import newest_checkpoint
from t2i.training.engine import start_processes, stop_processes
from t2i.training.trainer import train

make_run = runpy.run_path(str(Path(__file__).with_name("tiny_run.py")))["make_run"]
NUM_KILLS, NUM_STEPS = 3, 10
AT_ONCE = 1e-9  # minutes


def main(arguments: Any) -> int:
    match sys.argv[1:]:
        case ["disturb", folder]:
            disturb(Path(folder))
        case ["kill", folder, seed]:
            kill(Path(folder), int(seed))
    return 0


def disturb(folder: Path) -> None:
    start_processes(timeout_minutes=1)
    names: list[str] = []
    run = make_run(folder / "full", 6, 0, 2, "fp32", keep_checkpoints=2, checkpoint_minutes=AT_ONCE)
    run = replace(run, on_checkpoint=lambda path: names.append(path.name))
    assert train(replace(run, batches=without_room(run.batches, (1, 2))))
    assert names == ([] if dist.get_rank() else [f"step-{step:08d}" for step in (1, 4, 5, 6)])

    run = make_run(folder / "stopped", 6, 0, 2, "fp32")
    run = replace(run, config=run.config.model_copy(update={"checkpoint_every": 2}))
    if dist.get_rank() == 0:
        sys.addaudithook(terminate_at_rename)
    assert not train(run)

    run = make_run(folder / "last", 3, 0, 2, "fp32", checkpoint_minutes=AT_ONCE)
    train(replace(run, batches=without_room(run.batches, (2,))))


def without_room(
    batches: Callable[[int], Iterator[TrainingBatch]], steps: tuple[int, ...]
) -> Callable[[int], Iterator[TrainingBatch]]:
    """The same batches; in ``steps`` the second process cannot write more than 1,000 bytes."""

    def from_step(step: int) -> Iterator[TrainingBatch]:
        for batch in batches(step):
            if dist.get_rank() == 1:
                limit = 1_000 if batch.step in steps else resource.RLIM_INFINITY
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            yield batch

    return from_step


def terminate_at_rename(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.rename" and str(arguments[0]).endswith("stopped/checkpoints/step-00000002.tmp"):
        os.kill(os.getpid(), signal.SIGTERM)


def kill(folder: Path, seed: int) -> None:
    import_deepspeed_once()
    assert live(folder / "straight", lifetime=None) == 0
    generator, steps = random.Random(seed), []
    for _ in range(NUM_KILLS):
        assert live(folder / "killed", generator.uniform(0, 0.2)) in (0, signal.SIGKILL)
        found = newest_checkpoint(folder / "killed" / "checkpoints")
        assert found is not None
        steps.append(found.state.step)
    assert live(folder / "killed", lifetime=None) == 0
    print("steps done at each kill:", *steps)


def import_deepspeed_once() -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # noqa: F401


def live(folder: Path, lifetime: float | None) -> int:
    """Train in a process that is killed ``lifetime`` seconds after its first save; its wait status."""
    checkpoints = folder / "checkpoints"
    before = set(checkpoints.glob("step-????????"))
    child = os.fork()
    if child == 0:
        start_processes(timeout_minutes=1)
        run = make_run(folder, NUM_STEPS, 0, 2, "fp32", checkpoint_every=1, keep_checkpoints=1)
        finished = train(run)
        stop_processes()
        sys.stderr.flush()
        os._exit(0 if finished else 1)
    if lifetime is not None:
        while not set(checkpoints.glob("step-????????")) - before:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended without a checkpoint"
            time.sleep(0.005)
        time.sleep(lifetime)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    code = run_command(main)
    stop_processes()
    raise SystemExit(code)
