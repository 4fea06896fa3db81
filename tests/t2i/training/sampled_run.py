"""Tiny runs that sample on their way, started by the tests; see `start_ranks`.

    deepspeed --num_gpus 2 tests/t2i/training/sampled_run.py FOLDER NAME:STEPS:ZERO:PRECISION:KIND:EVERY...

Each plan trains the run FOLDER/NAME and samples every EVERY steps (0 = never).
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from t2i.encoders.text import TextEncoder
from t2i.encoders.vae import load_vae
from t2i.encoders.vae_config import VAEConfig
from t2i.guidance.methods import make_guidance
from t2i.training.engine import start_processes, stop_processes
from t2i.training.monitoring.validation_samples import ValidationSamples
from t2i.training.run import Run
from t2i.training.trainer import train

TINY = runpy.run_path(str(Path(__file__).with_name("tiny_run.py")))
METHODS = {name: make_guidance(name, {}) for name in ("none", "cfg", "sg")}
PROMPTS = {"tr_dit": ("a", "aa", "aaaa"), "sit": ("0", "1", "2")}


def make_samples(model: str) -> ValidationSamples:
    """Three prompts (classes) of 32 x 32 pixels by the nano VAE, in two steps."""
    stand_in = SimpleNamespace(encode=TINY["encode"], warn_of_cut=lambda prompts: None)
    text_encoder = cast(TextEncoder, stand_in)
    return ValidationSamples(
        prompts=PROMPTS[model],
        methods=METHODS,
        size=(32, 32),
        num_steps=2,
        vae=load_vae(VAEConfig()),
        text_encoder=text_encoder if model == "tr_dit" else None,
    )


def make_sampled_run(
    folder: Path,
    steps: int,
    zero_stage: int,
    precision: str,
    kind: str,
    every: int,
    **settings: Any,
) -> Run:
    """A tiny run of this process group."""
    run: Run = TINY["make_run"](
        folder, steps, 0, zero_stage, precision, kind, sample_every=every, **settings
    )
    return replace(run, samples=make_samples(kind) if every else None)


if __name__ == "__main__":
    start_processes(timeout_minutes=1)
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    for plan in arguments[1:]:
        name, steps, zero_stage, precision, kind, every = plan.split(":")
        folder = Path(arguments[0]) / name
        sizes = (int(steps), int(zero_stage))
        assert train(make_sampled_run(folder, *sizes, precision, kind, int(every)))
    stop_processes()
