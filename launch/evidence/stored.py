"""What docs/evidence.md is made of: tables of scores, and the numbers of single test pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.evaluation.intervals import Interval, paired_interval
from t2i.evaluation.metric import Score
from t2i.evaluation.results import read_results, score_of
from t2i.evaluation.score_files import read_scores, score_file

# numbers of single pictures that are stored, of which methods are compared pair by pair
PAIRED = ("scene", "precision", "diversity", "saturation", "contrast")


def write_pictures(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Of each run in a table the numbers of its pictures, read from the files beside them.

    A row per run and score: the values in the order of the set, and which of them share a prompt.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from t2i.evaluation.picture_sets import open_set

    found: dict[str, list[Any]] = {"run": [], "score": [], "values": [], "prompts": []}
    for run, metric, folder in dict.fromkeys(
        (row["run"], row["metric"], row["folder"]) for row in rows
    ):
        names = open_set(Path(folder)).prompts or ()
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(names))}
        scores = read_scores(score_file(Path(folder), metric))[0]
        for name, values in scores.per_picture.items():
            if name in PAIRED:
                found["run"].append(run)
                found["score"].append(name)
                found["values"].append(list(values))
                found["prompts"].append([numbers[prompt] for prompt in names])
    types = {"values": pa.list_(pa.float32()), "prompts": pa.list_(pa.int16())}
    columns = {name: pa.array(own, types.get(name)) for name, own in found.items()}
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.table(columns), temporary, compression="zstd")
    temporary.replace(path)


@dataclass(frozen=True)
class Pictures:
    """Numbers of a run's pictures, and which of them share a prompt."""

    values: Sequence[float]
    prompts: Sequence[int]


class Stored:
    """The scores of a family and phase."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        pictures: Mapping[tuple[str, str], Pictures] | None = None,
    ) -> None:
        """``rows`` of `t2i.evaluation.results`; ``pictures`` by run and score."""
        self.rows = rows
        self.scores = {(row["run"], row["score_name"]): score_of(row) for row in rows}
        self.facts = {row["run"]: row for row in rows}
        self.pictures = pictures or {}

    @classmethod
    def read(cls, table: Path, pictures: Path | None = None) -> Stored:
        """Of files; there need not be numbers of pictures.

        Raises:
            FileNotFoundError: there is no table.
        """
        import pyarrow.parquet as pq

        found = {}
        if pictures is not None and pictures.is_file():
            for row in pq.read_table(pictures).to_pylist():
                found[row["run"], row["score"]] = Pictures(row["values"], row["prompts"])
        return cls(read_results([table]), found)

    @property
    def runs(self) -> list[str]:
        """In the order of the table."""
        return list(self.facts)

    def score(self, run: str, name: str) -> Score | None:
        """A score of a run, if it has one."""
        return self.scores.get((run, name))

    def runs_of(self, row: str) -> list[str]:
        """All settings of a method on a model, such as routed@sg."""
        return [run for run in self.facts if run.partition(",")[0] == row]

    def best(self, row: str, name: str) -> str | None:
        """The best run of a row by a score."""
        own = [(self.score(run, name), run) for run in self.runs_of(row)]
        rated = [(goodness(score), run) for score, run in own if score is not None]
        return max(rated)[1] if rated else None

    def difference(self, run: str, base: str, name: str) -> Interval | None:
        """run - base, pair by pair; None where one of them has no such numbers."""
        from t2i import rng

        own, other = self.pictures.get((run, name)), self.pictures.get((base, name))
        if own is None or other is None or own.prompts != other.prompts:
            return None
        generator = rng.generator(0, "bootstrap", 0, 0)
        return paired_interval(own.values, other.values, generator, own.prompts)


def goodness(score: Score) -> float:
    """A score's value, greater is better."""
    assert score.value is not None
    return score.value if score.better == "higher" else -score.value


def difference(one: Score | Interval, other: Score | Interval) -> Interval:
    """one - other of two independent numbers: half-widths of their intervals add up as squares.

    Raises:
        ValueError: a score without an interval.
    """
    ends = [(number.low, number.high) for number in (one, other)]
    assert one.value is not None
    assert other.value is not None
    squares = 0.0
    for low, high in ends:
        if low is None or high is None:
            raise ValueError(f"{one} or {other} has no interval")
        squares += ((high - low) / 2) ** 2
    value, half = one.value - other.value, squares**0.5
    return Interval(value, value - half, value + half, min(one.num, other.num))
