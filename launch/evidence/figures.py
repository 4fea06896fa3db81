"""The pictures of docs/evidence.md, drawn from stored scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.evidence.stored import Stored
from t2i.evaluation.sweeps import draw_heat_map, pareto_front

Row = Mapping[str, Any]
# rows whose curves over omega are drawn, and the settings that are held
CURVES: Mapping[str, Mapping[str, float]] = {
    "dense@cfg": {},
    "routed@cfg": {},
    "routed@sg": {"gamma_strong": 0.1, "gamma_weak": 0.8},
    "routed@cfg+sg": {"gamma_strong": 0.2, "gamma_weak": 0.7},
    "routed@ag": {},
    "routed@icg": {},
    "routed@pdg": {},
    "sprint@pdg": {},
}


def rows_of(stored: Stored, score: str) -> list[Row]:
    """The rows of a score that have a value."""
    return [row for row in stored.rows if row["score_name"] == score and row["value"] is not None]


def draw_pareto(stored: Stored, score: str, path: Path) -> bool:
    """Score against FLOPs of an image: all runs, the front with its names. Whether there was any."""
    import matplotlib.pyplot as plt

    rows = rows_of(stored, score)
    if len(rows) < 2:
        return False
    points = [(row["flops_per_image"] / 1e9, row["value"]) for row in rows]
    front = pareto_front(points, rows[0]["better"] == "higher")
    figure, axes = plt.subplots(figsize=(8, 5))
    for label, color in (("cfg", "tab:orange"), ("sg", "tab:blue"), ("", "0.7")):
        own = [i for i, row in enumerate(rows) if row["guidance_name"] == label]
        if not label:
            own = [i for i, row in enumerate(rows) if row["guidance_name"] not in ("cfg", "sg")]
        x, y = [points[i][0] for i in own], [points[i][1] for i in own]
        axes.scatter(x, y, s=14, color=color, label=label or "others", zorder=2)
    axes.plot(*zip(*(points[i] for i in front), strict=True), color="black", lw=1, label="front")
    for i in front:
        axes.annotate(
            rows[i]["run"].partition(",")[0],
            points[i],
            fontsize=7,
            xytext=(3, 5),
            textcoords="offset points",
        )
    axes.set(xlabel="GFLOPs of an image", ylabel=score)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)
    return True


def draw_curves(stored: Stored, score: str, path: Path) -> bool:
    """Score over omega, a line a row, with intervals. Whether there was any."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    has_any = False
    for row_name, held in CURVES.items():
        own = [
            row
            for row in rows_of(stored, score)
            if row["run"].partition(",")[0] == row_name
            and row["omega"] is not None
            and all(row[key] == value for key, value in held.items())
        ]
        own.sort(key=lambda row: row["omega"])
        if len(own) < 2:
            continue
        has_any = True
        x, y = [row["omega"] for row in own], [row["value"] for row in own]
        errors = [
            [max(row["value"] - (row["low"] or row["value"]), 0) for row in own],
            [max((row["high"] or row["value"]) - row["value"], 0) for row in own],
        ]
        axes.errorbar(x, y, errors, marker="o", capsize=2, label=row_name)
    axes.set(xlabel="omega", ylabel=score)
    axes.grid(alpha=0.3)
    if has_any:
        axes.legend(fontsize=8)
        save(figure, path)
    plt.close(figure)
    return has_any


def draw_gammas(stored: Stored, runs: Sequence[str], score: str, path: Path) -> bool:
    """A heat map over both sparsities of some runs of sg at one omega. Whether there was any."""
    own = [row for row in rows_of(stored, score) if row["run"] in set(runs)]
    if len(own) < 4:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_heat_map(own, f"omega {own[0]['omega']:g}", path)
    return True


def save(figure: Any, path: Path) -> None:
    """As a PNG of moderate size."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)
