"""Pictures of a grid of settings: heat maps, and quality against cost with its Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]
# What may differ between the runs of a sweep, beside the two axes of a heat map.
SETTINGS = ("guidance_name", "omega", "gamma_strong", "gamma_weak", "interval", "steps", "solver")
HEAT_AXES = ("gamma_weak", "gamma_strong")
COSTS = {"flops_per_image": "GFLOPs per image", "seconds_per_image": "seconds per image"}


def pick_score(
    rows: Rows, name: str | None, of_metric: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    """The rows of one score that have a value.

    Args:
        name: None = the first metric's main score.
        of_metric: metric -> its main score, where that is not its first.

    Raises:
        ValueError: there is no such score, or nothing is better or worse by it.
    """
    names = list(dict.fromkeys(row["score_name"] for row in rows))
    chosen = name or of_metric.get(rows[0]["metric"], names[0])
    if chosen not in names:
        raise ValueError(f"--score {chosen}: no such score; there are {', '.join(names)}")
    picked = [row for row in rows if row["score_name"] == chosen and row["value"] is not None]
    if not picked or picked[0]["better"] is None:
        raise ValueError(f"--score {chosen}: nothing is better or worse by it")
    return picked


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[int]:
    """Numbers of the (cost, score) that none beats at the same or lower cost, by rising cost."""
    sign = 1 if higher_is_better else -1
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1]))
    front: list[int] = []
    for number in order:
        if not front or sign * points[number][1] > sign * points[front[-1]][1]:
            front.append(number)
    return front


def best_by_budget(rows: Rows) -> str:
    """The front as a table: what to take for each budget of FLOPs."""
    points = [(row["flops_per_image"], row["value"]) for row in rows]
    front = pareto_front(points, rows[0]["better"] == "higher")
    lines = [f"best {rows[0]['score_name']} for a budget of GFLOPs per image:"]
    for number in front:
        row = rows[number]
        interval = "" if row["low"] is None else f" ({row['low']:.3g} to {row['high']:.3g})"
        lines.append(
            f"  from {row['flops_per_image'] / 1e9:>10.4g}  {row['value']:.4g}{interval}  {row['run']}"
        )
    return "\n".join(lines)


def draw_sweep(rows: Rows, folder: Path) -> list[Path]:
    """Write the pictures that the rows allow; their paths."""
    score = rows[0]["score_name"].replace(" ", "_")
    paths = []
    for number, (title, own) in enumerate(heat_maps(rows).items()):
        path = folder / f"{score}-heat-{number}.png"
        draw_heat_map(own, title, path)
        paths.append(path)
    for cost, label in COSTS.items():
        known = [row for row in rows if row[cost]]
        if len(known) > 1:
            path = folder / f"{score}-{cost}.png"
            draw_front(known, cost, label, path)
            paths.append(path)
    return paths


def heat_maps(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Title -> rows of one heat map: those that differ in the two gammas alone, if they do."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    others = [name for name in SETTINGS if name not in HEAT_AXES]
    for row in rows:
        if all(row[axis] is not None for axis in HEAT_AXES):
            groups.setdefault(tuple(row[name] for name in others), []).append(row)
    varied = [
        place
        for place, name in enumerate(others)
        if len({row[name] for row in rows}) > 1 or name == "guidance_name"
    ]
    return {
        ", ".join(f"{others[place].removesuffix('_name')} {key[place]}" for place in varied): own
        for key, own in groups.items()
        if all(len({row[axis] for row in own}) > 1 for axis in HEAT_AXES)
    }


def draw_heat_map(rows: Rows, title: str, path: Path) -> None:
    """A cell for each pair of gammas, with its value; the best one is framed."""
    import matplotlib.pyplot as plt

    x_axis, y_axis = HEAT_AXES
    xs, ys = (sorted({row[axis] for row in rows}) for axis in (x_axis, y_axis))
    values = np.full((len(ys), len(xs)), np.nan)
    for row in rows:
        values[ys.index(row[y_axis]), xs.index(row[x_axis])] = row["value"]
    is_higher = rows[0]["better"] == "higher"
    figure, axes = plt.subplots(figsize=(1.5 + 0.9 * len(xs), 1.5 + 0.7 * len(ys)))
    colors = "viridis" if is_higher else "viridis_r"
    shown = axes.imshow(values, cmap=colors, origin="lower", aspect="auto")
    best = np.nanargmax(values) if is_higher else np.nanargmin(values)
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            is_bright = sum(shown.cmap(shown.norm(value))[:3]) > 1.5
            ink = "black" if is_bright else "white"
            axes.text(x, y, f"{value:.3g}", ha="center", va="center", color=ink, fontsize=9)
        if y * len(xs) + x == best:
            axes.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, color="red", lw=2))
    axes.set(xlabel=x_axis, ylabel=y_axis, title=f"{rows[0]['score_name']}\n{title}")
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_front(rows: Rows, cost: str, label: str, path: Path) -> None:
    """Score against cost, a colour per method; the Pareto front is a line."""
    import matplotlib.pyplot as plt

    scale = 1e9 if cost == "flops_per_image" else 1.0
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(row["guidance_name"] for row in rows):
        own = [row for row in rows if row["guidance_name"] == name]
        costs, values = [row[cost] / scale for row in own], [row["value"] for row in own]
        has_ends = all(row["low"] is not None for row in own)
        errors = None
        if has_ends:
            errors = [
                [max(row["value"] - row["low"], 0) for row in own],
                [max(row["high"] - row["value"], 0) for row in own],
            ]
        axes.errorbar(costs, values, errors, fmt="o", label=name, capsize=2, alpha=0.8)
    points = [(row[cost] / scale, row["value"]) for row in rows]
    front = [points[number] for number in pareto_front(points, rows[0]["better"] == "higher")]
    axes.plot(*zip(*front, strict=True), color="black", lw=1, label="Pareto front")
    axes.set(xlabel=label, ylabel=rows[0]["score_name"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
