"""Scores as files beside the pictures, and as tables on a console. No torch here.

<folder>/scores/<metric>.json      of a folder of pictures
<file>.scores/<metric>.json        of an .npz
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t2i.evaluation.metric import Score, Scores, Weights


def score_file(pictures: Path, metric: str) -> Path:
    """Where the scores of a set lie."""
    folder = pictures / "scores" if pictures.suffix != ".npz" else Path(f"{pictures}.scores")
    return folder / f"{metric}.json"


def write_scores(
    path: Path, scores: Scores, weights: Sequence[Weights], facts: Mapping[str, Any]
) -> None:
    """Write a metric's scores of a set; the file appears whole or not at all.

    Args:
        facts: what else a reader of the file should know, such as the metric's settings.
    """
    content = {
        **facts,
        "weights": [asdict(one) for one in weights],
        "scores": [asdict(score) for score in scores.scores],
        "truth": {name: [asdict(s) for s in own] for name, own in scores.truth.items()},
        "notes": list(scores.notes),
        "per_picture": {name: list(map(float, of)) for name, of in scores.per_picture.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def read_scores(path: Path) -> tuple[Scores, dict[str, Any]]:
    """The scores of a file, and all else that it says.

    Raises:
        FileNotFoundError: it is not there; says how to make it.
        ValueError: it is no file of scores.
    """
    try:
        content = json.loads(path.read_text())
        scores = Scores(
            scores=[Score(**score) for score in content.pop("scores")],
            per_picture=content.pop("per_picture"),
            truth={
                name: [Score(**score) for score in own]
                for name, own in content.pop("truth").items()
            },
            notes=content.pop("notes"),
        )
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no scores here; make them with python -m t2i.evaluate {path.stem} FOLDER"
        ) from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no file of scores ({error!r}); delete it, score again") from None
    return scores, content


def format_table(columns: Mapping[str, Sequence[Score]]) -> str:
    """A row per score, a column per name: value and 95 % interval, shares in percent."""
    names = dict.fromkeys(score.name for scores in columns.values() for score in scores)
    by_name = {name: {s.name: s for s in scores} for name, scores in columns.items()}
    rows = [["", *columns]]
    for name in names:
        rows.append([name, *(format_score(own.get(name)) for own in by_name.values())])
    for unit in dict.fromkeys(score.unit for scores in columns.values() for score in scores):
        nums = [max((s.num for s in own if s.unit == unit), default=0) for own in columns.values()]
        rows.append([unit, *map(str, nums)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def format_score(score: Score | None) -> str:
    """ "79.2 (74-84)" of a share, "12.31 (11.9 to 12.8)" of a number; "-" of nothing."""
    if score is None or score.value is None:
        return "-"
    if score.is_share:
        value, ends = f"{100 * score.value:.1f}", "({:.0f}-{:.0f})"
    else:
        value, ends = f"{score.value:.4g}", "({:.3g} to {:.3g})"
    if score.low is None or score.high is None:
        return value
    factor = 100 if score.is_share else 1
    return f"{value} {ends.format(factor * score.low, factor * score.high)}"
