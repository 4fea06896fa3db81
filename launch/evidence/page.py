"""Write docs/evidence.md and its HTML twin from the stored scores.

    python -m launch.evidence.page

Reads docs/evidence/*.parquet (python -m launch.evidence.score); models without scores are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from launch.evidence.claims import Tables, findings, shown
from launch.evidence.figures import draw_curves, draw_gammas, draw_pareto, rows_of
from launch.evidence.score import CRITERIA, NUM_PROMPTS, PHASES, STEPS, TABLES, pictures, table
from launch.evidence.stored import Stored, goodness
from launch.evidence.study import Try, studies
from launch.evidence.train import OUTPUT, ROOT
from launch.evidence.twins import FAMILIES, KINDS, TUNING_SHARE, all_twins, flops_of_step
from t2i.console import command_parser, get_logger, run_command
from t2i.evaluation.results import score_of
from t2i.evaluation.sweeps import pareto_front
from t2i.html import data_uri, render_page

LOG = get_logger("evidence")
PAGE = Path("docs/evidence.md")
TEMPLATES = Path(__file__).parent
SCORES: Mapping[str, tuple[str, ...]] = {
    "text": ("scene", "shape", "place", "frechet", "precision", "recall", "diversity"),
    "classes": ("frechet", "precision", "recall", "diversity"),
}
TONES = ("saturation", "contrast")
BASE = "routed@none"


@dataclass(frozen=True)
class Table:
    """Cells as text, with a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[tuple[str, Path]] = field(default_factory=tuple)


def build_parser() -> argparse.ArgumentParser:
    return command_parser("python -m launch.evidence.page", __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    build_parser().parse_args(argv)
    tables = read_tables()
    parts = make_parts(tables, ROOT / TABLES)
    (ROOT / PAGE).write_text(markdown(parts))
    html = OUTPUT / "evidence.html"
    (ROOT / html).parent.mkdir(parents=True, exist_ok=True)
    (ROOT / html).write_text(as_html(parts))
    LOG.info("%s, %s", PAGE, html)
    return 0


def read_tables() -> dict[str, Tables]:
    """Stored scores by family; those of test prompts may still be missing.

    Raises:
        FileNotFoundError: there are none of any family.
    """
    found = {}
    for family in FAMILIES:
        if not (ROOT / table(family, "validation")).is_file():
            continue
        validation = Stored.read(ROOT / table(family, "validation"))
        has_test = (ROOT / table(family, "test")).is_file()
        test = (
            Stored.read(ROOT / table(family, "test"), ROOT / pictures(family))
            if has_test
            else Stored([])
        )
        found[family] = Tables(validation, test)
    if not found:
        raise FileNotFoundError(
            f"{TABLES}: no scores yet; python -m launch.evidence.score makes them"
        )
    return found


def make_parts(tables: Mapping[str, Tables], folder: Path) -> list[Part]:
    """The page, from the first section to the last; pictures are drawn into ``folder``."""
    parts = [claims_part(tables), models_part(), method_part()]
    for family, own in tables.items():
        parts += [main_part(family, own), figures_part(family, own, folder)]
        parts += [study_part(family, name, tries, own) for name, tries in studies(family).items()]
    return [*parts, advice_part(tables), limits_part()]


def claims_part(tables: Mapping[str, Tables]) -> Part:
    """Verdicts first."""
    rows = [
        [claim.source, claim.text, found.numbers, found.verdict]
        for claim, found in findings(tables)
    ]
    text = (
        "A verdict rests on a difference and its 95 % interval, each method at the settings that "
        "were best on validation prompts. Distances are Frechet distances of the Shapes "
        "classifier's features: lower is better.",
    )
    return Part("What the papers claim, and what was seen", text, [Table(CLAIM_HEADER, rows)])


CLAIM_HEADER = ("source", "claim", "number", "verdict")


def models_part() -> Part:
    """The twins: what they are, their steps and FLOPs."""
    rows = []
    for twin in all_twins():
        stages = twin.stages(ROOT, OUTPUT)
        flops = flops_of_step(ROOT, twin, twin.is_tuned) / 1e9
        steps = " + ".join(f"{stage.steps:,}" for stage in stages)
        about = "a dense fine-tuning on top" if twin.is_tuned else KINDS[twin.kind].about
        rows.append([f"`{twin.name}`", about, steps, f"{flops:.2f}"])
    text = (
        "Twins differ in one thing and have executed as many training FLOPs, by our counter, "
        f"teachers included; fine-tunings have {TUNING_SHARE:.0%} more. `text`: TR-DiT-nano on "
        "captions; `classes`: SiT-nano on 24 classes. All by `python -m launch.evidence.train`.",
    )
    header = ("model", "what", "steps", "GFLOPs a sample and step")
    return Part("The models", text, [Table(header, rows)])


def method_part() -> Part:
    """How it was measured."""
    sizes = PHASES["test"].images
    text = (
        f"Each method has a sweep of settings on {NUM_PROMPTS} validation prompts (all 24 classes) "
        "and its best is scored on other prompts and seeds: "
        f"{sizes['text']} pictures of {NUM_PROMPTS} prompts, {sizes['classes']} of each class, "
        f"{STEPS} Euler steps, bf16. ShapesEval judges what a prompt asks for; Frechet distance, "
        "precision and recall hold pictures against 2,000 freshly drawn scenes by the features of "
        "a classifier that is shipped (0.995 of shapes right); diversity is the distance among "
        "pictures of a prompt, by that of any two scenes. Intervals are 95 %, over prompts.",
    )
    return Part("How it was measured", text)


def main_part(family: str, tables: Tables) -> Part:
    """The best settings of every row, by each criterion."""
    found = []
    for name in CRITERIA[family]:
        runs = dict.fromkeys(
            run
            for row in dict.fromkeys(run.partition(",")[0] for run in tables.validation.runs)
            if (run := tables.best(row, name)) is not None and run in tables.test.facts
        )
        found.append(score_table(family, tables.test, list(runs), name))
    text = [f"Best settings by `{name}` on validation prompts." for name in CRITERIA[family]]
    return Part(f"Every method at its best: {family}", text, found)


def score_table(family: str, stored: Stored, runs: Sequence[str], by: str) -> Table:
    """A line a run, the best first."""
    columns: dict[str, Callable[[str], str]] = {"method": lambda run: f"`{run}`"}
    columns |= {name: partial(score_cell, stored, name) for name in SCORES[family]}
    if family == "text":
        columns["scene against none"] = partial(pair_cell, stored)
    columns |= {name: partial(score_cell, stored, name) for name in TONES}
    columns["GFLOPs"] = lambda run: f"{stored.facts[run]['flops_per_image'] / 1e9:.1f}"
    columns["s"] = partial(seconds_cell, stored)
    known = [(goodness(score), run) for run in runs if (score := stored.score(run, by)) is not None]
    ordered = [run for _, run in sorted(known, reverse=True)]
    return Table(list(columns), [[show(run) for show in columns.values()] for run in ordered])


def score_cell(stored: Stored, name: str, run: str) -> str:
    """A score with its interval."""
    score = stored.score(run, name)
    return "-" if score is None else shown(score)


def pair_cell(stored: Stored, run: str) -> str:
    """Whole scenes right beyond those of no guidance, pair by pair, in percent."""
    pair = stored.difference(run, BASE, "scene")
    return "-" if pair is None else f"{100 * pair.value:+.1f}"


def seconds_cell(stored: Stored, run: str) -> str:
    """Seconds an image."""
    seconds = stored.facts[run]["seconds_per_image"]
    return "-" if seconds is None else f"{seconds:.2f}"


def figures_part(family: str, tables: Tables, folder: Path) -> Part:
    """Pareto fronts, curves over omega, heat maps over both sparsities."""
    stored, drawn = tables.validation, []
    runs = [one.name for one in studies(family)["gammas"]]
    kinds: dict[str, Callable[[str, Path], bool]] = {
        "quality against FLOPs": lambda score, path: draw_pareto(stored, score, path),
        "over omega": lambda score, path: draw_curves(stored, score, path),
        "over both sparsities": lambda score, path: draw_gammas(stored, runs, score, path),
    }
    for score in CRITERIA[family]:
        for kind, draw in kinds.items():
            path = folder / f"{family}-{score}-{kind.replace(' ', '-')}.png"
            if draw(score, path):
                drawn.append((f"{family}: {score} {kind}", path))
    return Part(f"Curves and fronts: {family}", ("On validation prompts.",), figures=drawn)


def study_part(family: str, name: str, tries: Sequence[Try], tables: Tables) -> Part:
    """A study as a table, in the order of its tries."""
    runs = [one.name for one in tries if one.name in tables.validation.facts]
    rows = []
    for run in runs:
        cells = [score_cell(tables.validation, score, run) for score in SCORES[family]]
        rows.append([f"`{run}`", *cells])
    return Part(f"{name.capitalize()}: {family}", (), [Table(("run", *SCORES[family]), rows)])


def advice_part(tables: Mapping[str, Tables]) -> Part:
    """What is best for each budget of FLOPs, on test prompts."""
    found = []
    for family, own in tables.items():
        for name in CRITERIA[family]:
            known = rows_of(own.test, name)
            points = [(row["flops_per_image"] / 1e9, row["value"]) for row in known]
            is_higher = bool(known) and known[0]["better"] == "higher"
            rows = [
                [f"{points[i][0]:.1f}", f"`{known[i]['run']}`", shown(score_of(known[i]))]
                for i in pareto_front(points, is_higher)
            ]
            header = ("from GFLOPs an image", f"{family}: best by {name}", name)
            found.append(Table(header, rows))
    text = ("What none beats at the same or lower cost, model and method together.",)
    return Part("What to use for a budget", text, found)


def limits_part() -> Part:
    """What a small model cannot say, and how to ask a large one."""
    text = (
        "These models have some 6 million parameters, 64 tokens and 8 layers, of which 4 are routed: "
        "a tenth of the tokens is 6 of them, and the route is half of the network where that of "
        "TR-DiT-2.5B is six sevenths. What concerns relations between methods on one network "
        "(which branch guides, what a schedule does, what is shared) may carry over; scales, best "
        "sparsities and the size of gains do not. Shapes are an easy world: adherence can be judged "
        "exactly, fidelity hardly matters to the eye.",
        "The same study at full size: `python -m t2i.evaluate run` and `sweep` with "
        "`configs/tr_dit_2b5.yaml` or `configs/imagenet_sit_xl2_tread.yaml`, GenEval, HPSv3 and ADM's "
        "suite in place of ShapesEval and the classifier ([evaluation](evaluation.md)).",
    )
    return Part("How far a nano model can speak", text)


def markdown(parts: Sequence[Part]) -> str:
    """The page as Markdown."""
    lines = ["# Evidence: Sparse Guidance and its rivals on equal terms", ""]
    lines += [
        "Written by `python -m launch.evidence.page` from the scores in `docs/evidence/`.",
        "",
    ]
    for part in parts:
        lines += [f"## {part.title}", ""]
        for text in part.text:
            lines += [text, ""]
        for own in part.tables:
            lines += [f"| {' | '.join(own.header)} |", "|" + "---|" * len(own.header)]
            lines += [f"| {' | '.join(row)} |" for row in own.rows]
            lines += [""]
        for caption, path in part.figures:
            lines += [f"![{caption}](evidence/{path.name})", ""]
    return "\n".join(lines)


def as_html(parts: Sequence[Part]) -> str:
    """The page as HTML that holds its pictures."""
    drawn = {path: data_uri(path.read_bytes(), "png") for part in parts for _, path in part.figures}
    return render_page(TEMPLATES / "page.html.jinja", parts=parts, drawn=drawn)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
