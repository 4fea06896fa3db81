"""What a metric is. Each is one file in `t2i.evaluation.metrics`, which the command line finds there.

A metric has two halves. A `Scorer` first turns pictures into rows, a tensor with a row per picture
for each name: features of a network, or one number. This half meets each picture once and alone, so
it can be spread over processes, resumed, and done on pictures that are never written. The other
half turns the rows of all pictures into scores, and knows no network.

    METRIC = Metric("clip", "agreement of pictures and prompts", DESCRIPTION, ClipSettings, prepare)

Files of metrics import no torch before it is needed: `--help` answers at once.

Shape suffixes: N pictures of a set, B of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from t2i.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

RANDOM_PREFIX = "random-"


@dataclass(frozen=True)
class Score:
    """A number of a set of pictures.

    Attributes:
        name: such as "fid" or "place".
        value: None where there was nothing to score.
        low, high: ends of the 95 % interval; None where there is none.
        num: what it was taken of, and what the interval is over.
        unit: what was counted: "pictures", "prompts", "objects", "pairs" or "chunks".
        better: which way is better; None = neither.
        is_share: whether people would rather read it in percent.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    num: int
    unit: str
    better: Literal["higher", "lower"] | None
    is_share: bool = False


@dataclass(frozen=True)
class Scores:
    """All that a metric says of a set.

    Attributes:
        scores: in the order of a table.
        per_picture: name of a score -> one number a picture, where the score is their mean; two
            methods on the same prompts and seeds are compared by these, pair by pair.
        truth: what true pictures of the same prompts reach, by what they are: the ceiling.
        notes: what a reader must know, such as too few pictures.
    """

    scores: Sequence[Score]
    per_picture: Mapping[str, Sequence[float]] = field(default_factory=dict)
    truth: Mapping[str, Sequence[Score]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Weights:
    """What a network's weights are, so that numbers of different ones never stand side by side.

    Attributes:
        network: such as "Inception".
        hash: a SHA-256, or "random-SEED".
        is_published: whether they are those that papers use.
    """

    network: str
    hash: str
    is_published: bool

    @property
    def is_random(self) -> bool:
        """Whether there was no file at all."""
        return self.hash.startswith(RANDOM_PREFIX)


class Scorer(Protocol):
    """A metric that is ready to score: networks are loaded, references read."""

    @property
    def rows_name(self) -> str:
        """Names the way that rows are made; metrics with the same one share remembered rows."""

    @property
    def weights(self) -> Sequence[Weights]:
        """Of its networks."""

    def rows(self, pictures: Sequence[Picture]) -> Mapping[str, Tensor]:
        """Rows of a batch: name -> (B, ...) on the CPU; pictures may differ in size.

        What is said of a picture does not depend on its batch, up to rounding.
        """

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        """Scores of a whole set.

        Args:
            rows: name -> (N, ...), as `rows` gave them, in the order of the set.
            prompts: the prompt of each picture; None = the pictures have none.

        Raises:
            ValueError: too few pictures, prompts that are needed and missing, NaN.
        """


@dataclass(frozen=True)
class Metric:
    """A metric, as the command line and a config know it.

    Attributes:
        name: the subcommand, and the key in ``t2i.evaluation.metrics``.
        summary: one line.
        description: what --help says: definition, source, traps, an example of a call.
        settings: its settings; each field is a flag, too.
        prepare: settings and context -> scorer. Raises ValueError or FileNotFoundError where
            weights or references are missing; the message says what to get, and where.
        needs_prompts: whether pictures without prompts are refused.
        main_score: the one that pictures of sweeps show; None = the first.
    """

    name: str
    summary: str
    description: str
    settings: type[Section]
    prepare: Callable[[Any, Context], Scorer]
    needs_prompts: bool = False
    main_score: str | None = None
