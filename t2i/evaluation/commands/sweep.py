"""`python -m t2i.evaluate sweep`: a grid of settings, heat maps, quality against cost."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from t2i.config import add_config_arguments, config_from_args
from t2i.evaluation.commands.run import Config, run_methods
from t2i.evaluation.evaluation_config import MethodConfig

NAME = "sweep"
SUMMARY = "a grid over guidance, its strength, sparsity, steps and solver"
DESCRIPTION = """
Every combination of the values given, as `run` makes and scores it, then pictures of the grid: a heat
map of gamma_strong and gamma_weak for each other setting (as Figures 6, 8 and A1 of Sparse Guidance),
and the score against FLOPs and against measured time, with the Pareto front; the best setting for each
budget of FLOPs is named. Resumable: more values later cost only what is new.

  python -m t2i.evaluate sweep --guidance sg --omega 1.4,1.8,2.2 --gamma-strong 0,0.1,0.3 --gamma-weak 0.6,0.8
  python -m t2i.evaluate sweep --guidance none,cfg --omega 1,1.5,2,2.5,3 --steps 10,25,50 --score scene
"""
AXES = {
    "guidance": "methods: none,cfg,sg",
    "omega": "guidance scales",
    "gamma_strong": "shares of tokens that the strong branch drops",
    "gamma_weak": "the same for the weak branch",
    "interval": "times of guidance, such as 0:1,0.1:0.8",
    "steps": "numbers of steps",
    "solver": "euler,heun,unipc",
}
OF_SAMPLING = ("steps", "solver")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    axes = parser.add_argument_group("axes of the grid, values with commas between them")
    for name, text in AXES.items():
        axes.add_argument(f"--{name.replace('_', '-')}", metavar="A,B,...", help=text)
    parser.add_argument(
        "--score",
        metavar="NAME",
        help="what the pictures show (default: the first metric's main score)",
    )
    add_config_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Run it; the exit code."""
    config = config_from_args(args, Config)
    values = {
        name: getattr(args, name).split(",") for name in AXES if getattr(args, name) is not None
    }
    if not values:
        raise ValueError("no axis is given, such as --omega 1,1.5,2; see --help")
    methods = grid_methods(values, config.guidance.name)
    output = f"{config.evaluation.output}/sweep"
    evaluation = config.evaluation.model_copy(update={"methods": methods, "output": output})

    from t2i.devices import leave_group, process_state
    from t2i.evaluation.registry import main_scores
    from t2i.evaluation.sweeps import best_by_budget, draw_sweep, pick_score

    rows = run_methods(config, evaluation)
    if process_state().is_main_process:
        chosen = pick_score(rows, args.score, main_scores())
        for path in draw_sweep(chosen, Path(output)):
            print(path)
        print(best_by_budget(chosen))
    leave_group()
    return 0


def grid_methods(values: Mapping[str, Sequence[str]], default: str) -> dict[str, MethodConfig]:
    """Name -> method, for each combination of the axes' values.

    What a method has no use for does not multiply it, and a strong branch that drops no fewer tokens
    than the weak one is left out.

    Args:
        values: axis -> its values, as text.
        default: the method where "guidance" is no axis.
    """
    from t2i.guidance.methods import METHODS

    methods: dict[str, MethodConfig] = {}
    for combination in product(*values.values()):
        setting = dict(zip(values, combination, strict=True))
        name = setting.pop("guidance", default)
        if name not in METHODS:
            raise ValueError(f"--guidance {name}: unknown; valid: {' '.join(METHODS)}")
        sampling = {key: setting.pop(key) for key in OF_SAMPLING if key in setting}
        usable = [*METHODS[name].defaults, *([] if name == "none" else ["interval"])]
        setting = {key: value for key, value in setting.items() if key in usable}
        if _is_crossed(setting):
            continue
        label = ",".join(
            [name, *(f"{key}={value}" for key, value in {**setting, **sampling}.items())]
        )
        guidance: dict[str, object] = {"name": name, **setting}
        if "interval" in setting:
            guidance["interval"] = setting["interval"].split(":")
        methods[label.replace("/", "-").replace(":", "-")] = MethodConfig(
            guidance=guidance, sampling=sampling
        )
    if not methods:
        raise ValueError("no combination is left: gamma_strong must be below gamma_weak")
    return methods


def _is_crossed(setting: Mapping[str, str]) -> bool:
    try:
        return float(setting["gamma_strong"]) >= float(setting["gamma_weak"])
    except (KeyError, ValueError):  # not both are there, or a schedule
        return False
