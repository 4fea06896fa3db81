"""Sample and score what docs/evidence.md compares: sweeps on validation prompts, the best on others.

    python -m launch.evidence.score                    both families, validation then test
    python -m launch.evidence.score --family classes --phase validation

Of each model that is there (python -m launch.evidence.train); run again, only what is missing is made.
Tables go to docs/evidence/, from which `python -m launch.evidence.page` writes the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.evidence.stored import Stored, write_pictures
from launch.evidence.study import Try, all_tries, main_rows
from launch.evidence.train import OUTPUT, ROOT
from launch.evidence.twins import EARLY_SHARES, FAMILIES, Twin
from t2i.config import ASSETS_FOLDER, load_config
from t2i.console import command_parser, get_logger, progress, run_command
from t2i.evaluation.commands.run import Config, run_methods
from t2i.evaluation.evaluation_config import MethodConfig
from t2i.evaluation.results import read_results, write_results

LOG = get_logger("evidence")
TABLES = Path("docs/evidence")
NUM_PROMPTS = 128  # of either phase; of classes, all 24
NUM_REFERENCES = 2_000
REFERENCE_SEED = 1_000_000_007  # scenes that nothing was trained on
STEPS = 20  # of Euler's method
SIZE = (128, 128)  # height and width in pixels
# what decides which setting of a row is its best
CRITERIA: Mapping[str, tuple[str, ...]] = {"text": ("scene", "frechet"), "classes": ("frechet",)}


@dataclass(frozen=True)
class Phase:
    """Which prompts, and how many pictures of each.

    Attributes:
        first: number of its first prompt in the built-in file.
        images: pictures of a prompt, by family.
        seed: of its first picture.
    """

    name: str
    first: int
    images: Mapping[str, int]
    seed: int


PHASES = {
    "validation": Phase("validation", 0, {"text": 1, "classes": 8}, seed=0),
    "test": Phase("test", NUM_PROMPTS, {"text": 4, "classes": 24}, seed=100_000),
}


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m launch.evidence.score", __doc__)
    parser.add_argument("--family", choices=FAMILIES, action="append", help="default: both")
    parser.add_argument("--phase", choices=PHASES, action="append", help="default: both")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    for family in args.family or sorted(FAMILIES):
        for phase in (PHASES[name] for name in args.phase or PHASES):
            tries = list(all_tries(family))
            if phase.name == "test":
                tries = best_tries(family, read_results([ROOT / table(family, "validation")]))
            score(family, phase, tries, args.device)
    return 0


def score(family: str, phase: Phase, tries: Sequence[Try], device: str) -> None:
    """Make and score the pictures of some tries, and write their table."""
    methods = {one.name: method(family, one) for one in tries if is_there(family, one)}
    missing = sorted({one.twin for one in tries if one.name not in methods})
    if missing:
        LOG.warning("%s: no model or early checkpoint yet of %s", family, ", ".join(missing))
    if not methods:
        return
    rows = run_methods(*settings(family, phase, methods, device))
    path = ROOT / table(family, phase.name)
    write_results(path.parent, rows, path.stem)
    if phase.name == "test":
        write_pictures(ROOT / pictures(family), rows)


def table(family: str, phase: str) -> Path:
    """Where the scores of a family and phase are stored."""
    return TABLES / f"{family}-{phase}.parquet"


def pictures(family: str) -> Path:
    """Where the numbers of its single test pictures are stored."""
    return TABLES / f"{family}-test-pictures.parquet"


def settings(
    family: str, phase: Phase, methods: Mapping[str, MethodConfig], device: str
) -> tuple[Config, Any]:
    """The config of a run of `t2i.evaluate`, and its section of evaluation."""
    config = load_config(ROOT / "configs" / FAMILIES[family].config, [], Config)
    sampling = config.sampling.model_copy(
        update={
            "steps": STEPS,
            "size": SIZE,
            "dtype": "bfloat16",
            "batch_size": 64,
            "seed": phase.seed,
            "images_per_prompt": phase.images[family],
            "device": device,
        }
    )
    reference = {"reference": str(references())}
    metrics: dict[str, dict[str, Any]] = {"shapes_features": reference, "tones": reference}
    conditions: dict[str, Any] = {"classes": "0-23"}
    if family == "text":
        metrics = {"shapes": {}, **metrics}
        conditions = {"prompts": str(prompts(phase))}
    evaluation = config.evaluation.model_copy(
        update={
            "methods": methods,
            "metrics": metrics,
            "output": str(OUTPUT / "scores" / family / phase.name),
            "cache": str(OUTPUT / "cache"),
            "device": device,
            **conditions,
        }
    )
    return config.model_copy(update={"sampling": sampling}), evaluation


def method(family: str, one: Try) -> MethodConfig:
    """How the images of a try are made."""
    sampling = {"checkpoint": str(model_folder(family, one))}
    if one.aux_share is not None:
        sampling["aux"] = str(aux_folder(family, one))
    return MethodConfig(guidance={"name": one.guidance, **one.settings}, sampling=sampling)


def model_folder(family: str, one: Try) -> Path:
    """The exported twin."""
    return OUTPUT / twin_of(family, one).name / "export"


def aux_folder(family: str, one: Try) -> Path:
    """The exported early checkpoint of the twin."""
    assert one.aux_share is not None
    twin = twin_of(family, one)
    keep_at = twin.stages(ROOT, OUTPUT)[0].keep_at
    return OUTPUT / twin.name / f"early-{keep_at[EARLY_SHARES.index(one.aux_share)]}"


def twin_of(family: str, one: Try) -> Twin:
    """The model of a try."""
    kind = one.twin.removesuffix("-tuned")
    return Twin(family, kind, one.seed, is_tuned=kind != one.twin)


def is_there(family: str, one: Try) -> bool:
    """Whether its networks have been trained."""
    folders = [model_folder(family, one)]
    if one.aux_share is not None:
        folders.append(aux_folder(family, one))
    return all((ROOT / folder).is_dir() for folder in folders)


def best_tries(family: str, rows: Sequence[Mapping[str, Any]]) -> list[Try]:
    """Of each row of the main table the best settings by each criterion of the family."""
    known = {one.name: one for one in main_rows(family)}
    stored = Stored([row for row in rows if row["run"] in known])
    best: dict[str, Try] = {}
    for name in CRITERIA[family]:
        for label in dict.fromkeys(known[run].row for run in stored.runs):
            winner = stored.best(label, name)
            assert winner is not None
            best[winner] = known[winner]
    return list(best.values())


def prompts(phase: Phase) -> Path:
    """A file with the phase's prompts, of those that are shipped and held out."""
    path = ROOT / OUTPUT / f"prompts-{phase.name}.txt"
    lines = (ASSETS_FOLDER / "nano" / "prompts.txt").read_text().splitlines()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines[phase.first : phase.first + NUM_PROMPTS]) + "\n")
    return path


def references() -> Path:
    """A folder of freshly drawn scenes; made once."""
    import numpy as np

    from t2i.shapes import random_scene, render

    folder = ROOT / OUTPUT / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [
        number for number in range(NUM_REFERENCES) if not (folder / f"{number:05d}.png").is_file()
    ]
    with progress("reference", len(missing), "pictures") as bar:
        for number in missing:
            numbers = np.random.default_rng((REFERENCE_SEED, number))
            picture = render(random_scene(numbers), numbers)
            temporary = folder / f"{number:05d}.tmp"
            picture.save(temporary, format="png")
            temporary.replace(folder / f"{number:05d}.png")
            bar.update()
    return folder


if __name__ == "__main__":
    raise SystemExit(run_command(main))
