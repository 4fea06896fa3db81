"""The table of results: a row per set of images, metric and score; parquet and JSON. No torch here.

Each row has all that its number depends on, so rows of many runs can lie in one table and none is
taken for another: the checkpoint's hash, guidance, solver, steps, size, the networks' weights, and
whether these are the ones of papers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t2i.evaluation.metric import Score, Scores, Weights

RESULTS_NAME = "results"


def result_rows(
    facts: Mapping[str, Any], metric: str, scores: Scores, weights: Sequence[Weights]
) -> list[dict[str, Any]]:
    """Rows of one set and metric.

    Args:
        facts: of the set: how it was made, its FLOPs and seconds, its folder.
    """
    about = {
        "metric": metric,
        "weights": " ".join(f"{one.network}:{one.hash}" for one in weights),
        "is_comparable": all(one.is_published for one in weights),
        "notes": "; ".join(scores.notes),
    }
    return [
        {
            **facts,
            **about,
            **{f"score_{k}" if k == "name" else k: v for k, v in asdict(score).items()},
        }
        for score in scores.scores
    ]


def write_results(
    folder: Path, rows: Sequence[Mapping[str, Any]], name: str = RESULTS_NAME
) -> Path:
    """Write NAME.parquet and NAME.json, each whole or not at all; the path of the former."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)
    temporary.write_text(json.dumps(list(rows), indent=1) + "\n")
    temporary.replace(path.with_suffix(".json"))
    return path


def read_results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows of several tables; a path is a folder, a .parquet or a .json.

    Raises:
        FileNotFoundError: there is no table.
        ValueError: a file is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in paths:
        file = path / f"{RESULTS_NAME}.parquet" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no results here; python -m t2i.evaluate run makes them"
            )
        try:
            own = (
                json.loads(file.read_text())
                if file.suffix == ".json"
                else pq.read_table(file).to_pylist()
            )
        except (pa.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: no table of results ({error})") from None
        if not isinstance(own, list) or not all("score_name" in row for row in own):
            raise ValueError(f"{file}: no table of results")
        rows += own
    return rows


def score_of(row: Mapping[str, Any]) -> Score:
    """The score of a row."""
    names = ("value", "low", "high", "num", "unit", "better", "is_share")
    return Score(row["score_name"], *(row[name] for name in names))
