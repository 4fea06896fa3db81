"""Compare training runs in one picture: loss, validation, gradient norm, speed, over the steps.

    python -m t2i.training.plot outputs/runs/stage1
    python -m t2i.training.plot outputs/runs/dense outputs/runs/routed --x hours --output compared.png

Reads metrics.jsonl of each run's folder, also while the run goes on. Faint lines are what was
measured, strong ones its moving average.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.console import command_parser, run_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes

X_LABELS = {"steps": "step", "samples": "samples seen", "hours": "hours of training"}
LAST_PART = 0.1  # of a run's lines, that its loss by time is the mean of


@dataclass(frozen=True)
class Panel:
    """One diagram: a field of metrics over the run."""

    field: str
    title: str
    is_logarithmic: bool = False


PANELS = (
    Panel("loss", "training loss"),
    Panel("validation_loss", "validation loss"),
    Panel("gradient_norm", "gradient norm", is_logarithmic=True),
    Panel("images_per_second", "images per second"),
    Panel("tflops", "TFLOP/s per process"),
    Panel("mfu", "model FLOPs utilisation (MFU)"),
    Panel("learning_rate", "learning rate"),
)


@dataclass(frozen=True)
class History:
    """A run's lines of metrics, in order."""

    name: str
    lines: Sequence[dict[str, Any]]

    def curve(self, field: str, x: str) -> tuple[list[float], list[float]]:
        """(places on the x axis, values) of the lines that know the field."""
        places = self._places(x)
        known = [(p, v) for p, v in zip(places, self._values(field), strict=True) if v is not None]
        return [place for place, _ in known], [float(value) for _, value in known]

    def swapped_words(self, x: str) -> dict[str, tuple[list[float], list[float]]]:
        """By group of words: places on the x axis, and the excess of the loss when they are swapped."""
        places = self._places(x)
        curves: dict[str, tuple[list[float], list[float]]] = {}
        for place, groups in zip(places, self._values("ema_swapped_words"), strict=True):
            for name, excess in (groups or {}).items():
                if excess is not None:
                    known = curves.setdefault(name, ([], []))
                    known[0].append(place)
                    known[1].append(excess)
        return curves

    def loss_by_time(self) -> list[float | None]:
        """Mean loss in each bin of t over the last `LAST_PART` of the run; [] = not measured."""
        rows = [values for values in self._values("loss_by_time") if values is not None]
        last = rows[-max(1, round(LAST_PART * len(rows))) :]
        columns = [[v for v in column if v is not None] for column in zip(*last, strict=True)]
        return [sum(column) / len(column) if column else None for column in columns]

    def _values(self, field: str) -> list[Any]:
        return [line.get(field) for line in self.lines]

    def _places(self, x: str) -> list[float]:
        """Of every line; a line without samples or seconds (validation) lies at the one before."""
        places, samples, hours = [], 0.0, 0.0
        for line in self.lines:
            samples = line.get("samples_seen", samples)
            hours += line.get("seconds", 0.0) / 3600
            places.append({"steps": line["step"], "samples": samples, "hours": hours}[x])
        return places


def read_history(folder: Path) -> History:
    """The metrics of a run.

    Raises:
        ValueError: the folder has none.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder}: no metrics.jsonl; name the folders of training runs")
    # a run that is being written may end in half a line
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    if not whole:
        raise ValueError(f"{path} is empty: the run has not logged yet (every log_every steps)")
    return History(folder.resolve().name, [json.loads(line) for line in whole])


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, unbiased at its start, over about a twentieth of the values."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    result, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        result.append(total / weight)
    return result


def draw(histories: Sequence[History], x: str, path: Path) -> None:
    """Write the picture (PNG); panels that no run has a value for are left out."""
    from matplotlib.figure import Figure

    panels = [p for p in PANELS if any(history.curve(p.field, x)[0] for history in histories)]
    has_swaps = any(history.swapped_words(x) for history in histories)
    num_rows = -(-(len(panels) + 1 + has_swaps) // 2)
    figure = Figure(figsize=(12, 3.2 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, 2, squeeze=False).flatten()
    for panel, area in zip(panels, axes, strict=False):
        _draw_panel(area, panel, histories, x)
    _draw_loss_by_time(axes[len(panels)], histories)
    if has_swaps:
        _draw_swapped_words(axes[len(panels) + 1], histories, x)
    for unused in axes[len(panels) + 1 + has_swaps :]:
        unused.set_axis_off()
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)


def _draw_panel(axes: Axes, panel: Panel, histories: Sequence[History], x: str) -> None:
    for number, history in enumerate(histories):
        places, values = history.curve(panel.field, x)
        color = f"C{number}"
        if panel.field in ("validation_loss", "learning_rate"):
            axes.plot(places, values, color=color, marker=".", label=history.name)
        else:
            axes.plot(places, values, color=color, alpha=0.25)
            axes.plot(places, smoothed(values), color=color, label=history.name)
    axes.set_title(panel.title)
    axes.set_xlabel(X_LABELS[x])
    if panel.is_logarithmic:
        axes.set_yscale("log")


def _draw_loss_by_time(axes: Axes, histories: Sequence[History]) -> None:
    for number, history in enumerate(histories):
        bins = history.loss_by_time()
        known = [((i + 0.5) / len(bins), loss) for i, loss in enumerate(bins) if loss is not None]
        axes.plot([t for t, _ in known], [loss for _, loss in known], f"C{number}.-")
    axes.set_title(f"training loss by t, last {100 * LAST_PART:.0f} % of the run")
    axes.set_xlabel("t (0 = noise, 1 = data)")


def _draw_swapped_words(axes: Axes, histories: Sequence[History], x: str) -> None:
    """A colour for each group of words, a style of line for each run."""
    colors: dict[str, str] = {}
    for number, history in enumerate(histories):
        style = ("-", "--", ":", "-.")[number % 4]
        for group, curve in history.swapped_words(x).items():
            label = None if group in colors else group
            color = colors.setdefault(group, f"C{len(colors)}")
            axes.plot(*curve, f"{color}{style}", marker=".", label=label)
    axes.set_title("loss of the average with swapped words, relative excess")
    axes.set_xlabel(X_LABELS[x])
    axes.legend()


def with_distinct_names(histories: Sequence[History], folders: Sequence[Path]) -> list[History]:
    """Runs whose folders have the same name are called by their paths."""
    names = [history.name for history in histories]
    return [
        History(str(folder), history.lines) if names.count(history.name) > 1 else history
        for history, folder in zip(histories, folders, strict=True)
    ]


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_parser("python -m t2i.training.plot", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--x", choices=sorted(X_LABELS), default="steps", help="the x axis (steps)")
    parser.add_argument("--output", type=Path, help="picture to write (<first run>/plot.png)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw."""
    args = build_parser().parse_args(argv)
    histories = with_distinct_names([read_history(folder) for folder in args.runs], args.runs)
    path = args.output or args.runs[0] / "plot.png"
    draw(histories, args.x, path)
    for history in histories:
        steps, losses = history.curve("loss", "steps")
        last = f"loss {smoothed(losses)[-1]:.4f} (smoothed)" if losses else "no loss yet"
        print(f"{history.name}: step {steps[-1] if steps else 0:.0f}, {last}")
    print(f"picture: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
