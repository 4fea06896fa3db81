"""What `report.html.jinja` shows of tables of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from t2i.evaluation.picture_sets import PictureSet, open_set
from t2i.evaluation.registry import main_scores
from t2i.evaluation.results import score_of
from t2i.evaluation.score_files import format_score, read_scores, score_file
from t2i.evaluation.set_scores import paired_differences
from t2i.evaluation.sweeps import SETTINGS, draw_sweep, pick_score
from t2i.html import data_uri, image_uri, render_page
from t2i.sampling.image_folder import IMAGE_LIST, read_image

Rows = Sequence[Mapping[str, Any]]
TEMPLATE = Path(__file__).with_name("report.html.jinja")
MADE: Mapping[str, Callable[[Any], str]] = {
    "checkpoint": str,
    "guidance": str,
    "solver": str,
    "steps": str,
    "size": str,
    "dtype": str,
    "num_images": str,
    "flops_per_image": lambda flops: f"{flops / 1e9:.4g} G",
    "seconds_per_image": lambda seconds: f"{seconds:.3g}",
    "device": str,
    "torch": str,
    "commit": str,
}
MAX_PAIRS = 12


@dataclass(frozen=True)
class Cell:
    """A number of the table, its interval, and whether it is the best of its row."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True)
class Line:
    """A score in all runs; the arrow says which way is better."""

    name: str
    arrow: str
    cells: list[Cell]


@dataclass(frozen=True)
class Block:
    """A metric in all runs."""

    name: str
    runs: list[str]
    rows: list[Line]
    is_comparable: bool
    weights: str
    base: str
    pairs: list[str]
    notes: list[str]


def make_report(rows: Rows, title: str, num_prompts: int = 8, num_columns: int = 6) -> str:
    """The page.

    Args:
        rows: of one or more tables.
        num_prompts, num_columns: of the grid of samples.
    """
    rows = with_distinct_runs(rows)
    names, samples = sample_grid(rows, num_prompts, num_columns)
    return render_page(
        TEMPLATE,
        title=title,
        metrics=[block(rows, name) for name in dict.fromkeys(row["metric"] for row in rows)],
        made_names=list(MADE),
        made=made(rows),
        plots=plots(rows),
        sample_names=names,
        samples=samples,
    )


def with_distinct_runs(rows: Rows) -> list[dict[str, Any]]:
    """Runs of two tables that have one name get their folder's in front."""
    folders: dict[str, set[str]] = {}
    for row in rows:
        folders.setdefault(row["run"], set()).add(row["folder"])
    return [
        {**row, "run": row["folder"] if len(folders[row["run"]]) > 1 else row["run"]}
        for row in rows
    ]


def block(rows: Rows, metric: str) -> Block:
    """The table of a metric."""
    own = [row for row in rows if row["metric"] == metric]
    runs = list(dict.fromkeys(row["run"] for row in own))
    lines = []
    for name in dict.fromkeys(row["score_name"] for row in own):
        by_run = {row["run"]: row for row in own if row["score_name"] == name}
        lines.append(line(name, [by_run.get(run) for run in runs]))
    weights = ", ".join(sorted({row["weights"] for row in own if row["weights"]}))
    notes = [f"{row['run']}: {row['notes']}" for row in own if row["notes"]]
    return Block(
        name=metric,
        runs=runs,
        rows=lines,
        is_comparable=all(row["is_comparable"] for row in own),
        weights=weights,
        base=runs[0],
        pairs=pairs(own, metric),
        notes=list(dict.fromkeys(notes)),
    )


def line(name: str, rows: Sequence[Mapping[str, Any] | None]) -> Line:
    """A score in all runs, in their order; None = a run without it."""
    values = [row["value"] for row in rows if row is not None and row["value"] is not None]
    better = next((row["better"] for row in rows if row is not None), None)
    best = None
    if better is not None and len(values) > 1:
        best = max(values) if better == "higher" else min(values)
    cells = []
    for row in rows:
        value, _, interval = format_score(score_of(row) if row else None).partition(" (")
        is_best = row is not None and best is not None and row["value"] == best
        cells.append(Cell(value, interval.rstrip(")"), is_best))
    arrows = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}
    return Line(name, arrows.get(better or "", ""), cells)


def pairs(rows: Rows, metric: str) -> list[str]:
    """Differences of the runs to the first one, where both are on the same prompts and seeds."""
    folders = list(dict.fromkeys((row["run"], Path(row["folder"])) for row in rows))
    opened = [(run, folder, _open(folder)) for run, folder in folders]
    (_, first_folder, first), *others = opened
    if first is None:
        return []
    base = _per_picture(first_folder, metric)
    lines: list[str] = []
    for run, folder, pictures in others[:MAX_PAIRS]:
        if pictures is None or not first.is_paired_with(pictures):
            continue
        own = _per_picture(folder, metric)
        lines += [
            f"{name}: {run} {found.value:+.4g} ({found.low:+.3g} to {found.high:+.3g})"
            for name, found in paired_differences(own, base, first.prompts or ())
        ]
    return lines


def made(rows: Rows) -> list[dict[str, str]]:
    """How each run's images were made."""
    first_of_run = {row["run"]: row for row in reversed(rows)}
    return [
        {
            "run": run,
            **{
                name: "-" if first_of_run[run].get(name) is None else show(first_of_run[run][name])
                for name, show in MADE.items()
            },
        }
        for run in dict.fromkeys(row["run"] for row in rows)
    ]


def plots(rows: Rows) -> list[tuple[str, str]]:
    """The pictures of a sweep, where more than two settings were tried; of each metric's main score."""
    if len({tuple(row.get(name) for name in SETTINGS) for row in rows}) < 3:
        return []
    found = []
    with TemporaryDirectory() as folder:
        for metric in dict.fromkeys(row["metric"] for row in rows):
            own = [row for row in rows if row["metric"] == metric and row["better"]]
            for path in (
                draw_sweep(pick_score(own, None, main_scores()), Path(folder)) if own else []
            ):
                found.append((f"{metric}: {path.stem}", data_uri(path.read_bytes(), "png")))
    return found


def sample_grid(
    rows: Rows, num_prompts: int, num_columns: int
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the columns, and for each prompt its pictures: of runs with the first one's seeds."""
    columns: dict[str, PictureSet] = {}
    for run, folder in dict.fromkeys((row["run"], row["folder"]) for row in rows):
        pictures = _open(Path(folder))
        if pictures is None:
            continue
        if next(iter(columns.values()), pictures).is_paired_with(pictures):
            columns[run] = pictures
        if len(columns) == num_columns:
            break
    if not columns:
        return [], []
    prompts = next(iter(columns.values())).prompts or ()
    chosen: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        chosen.setdefault(prompt, number)
    return list(columns), [
        (prompt, [image_uri(_small(pictures.files[number])) for pictures in columns.values()])
        for prompt, number in list(chosen.items())[:num_prompts]
    ]


def _small(file: Path) -> Any:
    image = read_image(file)
    image.thumbnail((224, 224))
    return image


def _open(folder: Path) -> PictureSet | None:
    """A run's pictures, if they were kept."""
    return open_set(folder) if (folder / IMAGE_LIST).is_file() else None


def _per_picture(folder: Path, metric: str) -> Mapping[str, Sequence[float]]:
    return read_scores(score_file(folder, metric))[0].per_picture
