"""Train the models that docs/evidence.md compares, one after the other, and export them.

    python -m launch.evidence.train                      all; run again, it goes on
    python -m launch.evidence.train classes-dense-0      some, by name
    python -m launch.evidence.train --list               names, steps, FLOPs of a step

Each is launch/train_t2i.py with a config and what differs from it (launch/evidence/twins.py). The data
are those of launch/make_nano.sh. About a day of two CPU cores; a GPU takes an hour.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.evidence.twins import KINDS, Twin, all_twins, check, flops_of_step
from t2i.console import command_parser, get_logger, run_command
from t2i.environment import free_port

LOG = get_logger("evidence")
ROOT = Path(__file__).resolve().parents[2]
OUTPUT = Path("outputs/evidence")


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m launch.evidence.train", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a model; none = all")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--processes", type=int, default=2, help="per model (2)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="A.B=C",
        help="of every training, such as t2i.training.precision=fp32; may repeat",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    twins = chosen(args.names)
    if args.list:
        print(table(twins))
        return 0
    for twin in twins:
        check(ROOT, twin, OUTPUT)
    for number, twin in enumerate(twins, start=1):
        LOG.info("%s (%d of %d): %s", twin.name, number, len(twins), KINDS[twin.kind].about)
        for stage in twin.stages(ROOT, OUTPUT):
            train(twin, stage.number, (*stage.settings, *args.overrides), args.processes)
        export(twin)
    return 0


def chosen(names: Sequence[str]) -> list[Twin]:
    """The twins of some names, in the order of training.

    Raises:
        ValueError: an unknown name; says which there are.
    """
    known = {twin.name: twin for twin in all_twins()}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no model is called {unknown[0]!r}; there are {', '.join(known)}")
    return [twin for name, twin in known.items() if not names or name in names]


def table(twins: Sequence[Twin]) -> str:
    """What is trained: steps of its stages and FLOPs of a step's sample."""
    lines = [f"{'model':<26}{'steps':>16}{'GFLOPs a sample':>18}  about"]
    for twin in twins:
        steps = " + ".join(str(stage.steps) for stage in twin.stages(ROOT, OUTPUT))
        flops = flops_of_step(ROOT, twin, twin.is_tuned) / 1e9
        about = "after a dense fine-tuning" if twin.is_tuned else KINDS[twin.kind].about
        lines.append(f"{twin.name:<26}{steps:>16}{flops:>18.3f}  {about}")
    return "\n".join(lines)


def train(twin: Twin, stage: int, settings: Sequence[str], processes: int) -> None:
    """Run a stage; a finished one says so and does nothing.

    Raises:
        RuntimeError: the training ended early; the same command goes on.
    """
    command = [
        *(str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(processes)),
        *("--master_port", str(free_port()), "launch/train_t2i.py", "--stage", str(stage)),
        *("--config", str(twin.config_file)),
        *(part for setting in settings for part in ("--set", setting)),
    ]
    run(command, twin)


def export(twin: Twin) -> None:
    """The twin's average, and those of its early checkpoints, which are there or were not kept."""
    stages, config = twin.stages(ROOT, OUTPUT), str(twin.config_file)
    dtype = ("--dtype", "bfloat16")
    exporter = (sys.executable, "-m", "t2i.export", "--config", config, *dtype)
    target = OUTPUT / twin.name / "export"
    run((*exporter, "--run", str(stages[-1].folder), "--output", str(target)), twin)
    for stage in stages:
        for step in stage.keep_at:
            if not (ROOT / stage.folder / "checkpoints" / f"step-{step:08d}").is_dir():
                LOG.warning("%s: %s kept no checkpoint of step %d", twin.name, stage.folder, step)
                continue
            target = OUTPUT / twin.name / f"early-{step}"
            source = ("--run", str(stage.folder), "--step", str(step))
            run((*exporter, *source, "--output", str(target)), twin)


def run(command: Sequence[str], twin: Twin) -> None:
    """A public command, in the repository's root; SIGTERM is passed on to it.

    Raises:
        RuntimeError: it failed, or was stopped.
    """
    process = subprocess.Popen(command, cwd=ROOT)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    signal.signal(signal.SIGTERM, before)
    if code:
        raise RuntimeError(
            f"{twin.name}: {' '.join(command[:6])} ... ended with {code}; what it said is above, and "
            "the same command goes on"
        )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
