"""What the papers claim, and what the stored scores say of it. Each claim is a few lines.

A verdict rests on a difference and its 95 % interval: "seen" where the interval lies on the claim's
side of zero, "not seen" where it lies on the other, else "unclear at this size".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from launch.evidence.stored import Stored, difference
from t2i.evaluation.intervals import Interval
from t2i.evaluation.metric import Score

Verdict = Literal["seen", "not seen", "unclear at this size", "no data yet"]
DISTANCE, SCENE = "frechet", "scene"


@dataclass(frozen=True)
class Tables:
    """Scores of a family on validation and on test prompts."""

    validation: Stored
    test: Stored

    def best(self, row: str, score: str) -> str | None:
        """The run of a row that is the best on validation prompts."""
        return self.validation.best(row, score)

    def tested(self, row: str, score: str) -> Score | None:
        """What the best run of a row on validation prompts scores on the others."""
        run = self.best(row, score)
        return None if run is None else self.test.score(run, score)


@dataclass(frozen=True)
class Finding:
    """The number that bears on a claim, and what it says."""

    numbers: str
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, in our words.

    Attributes:
        source: paper and place.
        text: the claim.
        family: whose tables bear on it.
        find: tables -> finding; None where runs are missing.
    """

    source: str
    text: str
    family: str
    find: Callable[[Tables], Finding | None]


def judged(found: Interval, is_claimed_above: bool) -> Verdict:
    """The verdict on a difference that a claim says is above (or below) zero."""
    low, high = (found.low, found.high) if is_claimed_above else (-found.high, -found.low)
    if low > 0:
        return "seen"
    return "not seen" if high < 0 else "unclear at this size"


def shown(score: Score) -> str:
    """A score with its interval."""
    percent = 100 if score.is_share else 1
    if score.value is None:
        return "-"
    value = f"{percent * score.value:.3g}"
    if score.low is None or score.high is None:
        return value
    return f"{value} ({percent * score.low:.3g} to {percent * score.high:.3g})"


def beats(one: str, other: str, score: str) -> Callable[[Tables], Finding | None]:
    """A row is better than another by a score, each at its best setting."""

    def find(tables: Tables) -> Finding | None:
        scores = tables.tested(one, score), tables.tested(other, score)
        if scores[0] is None or scores[1] is None:
            return None
        found = difference(scores[0], scores[1])
        numbers = f"{score} {shown(scores[0])} of {one}, {shown(scores[1])} of {other}"
        return Finding(numbers, judged(found, scores[0].better == "higher"))

    return find


def gains_less(tables: Tables) -> Finding | None:
    """CFG lowers the distance of the routed twin by less than that of the dense one."""
    gains = []
    for kind in ("dense", "routed"):
        plain, guided = (tables.tested(f"{kind}@{name}", DISTANCE) for name in ("none", "cfg"))
        if plain is None or guided is None:
            return None
        gains.append(difference(plain, guided))
    numbers = (
        f"CFG takes {gains[0].value:.3g} off the dense twin, {gains[1].value:.3g} off the routed"
    )
    return Finding(numbers, judged(difference(*gains), is_claimed_above=True))


def worsens_with_sparsity(tables: Tables) -> Finding | None:
    """Without guidance the distance grows with the share of tokens that skip."""
    runs = [
        f"routed@sg,omega=1.0,gamma_strong={gamma},gamma_weak=0.95" for gamma in (0.1, 0.5, 0.9)
    ]
    scores = [tables.validation.score(run, DISTANCE) for run in runs]
    known = [score for score in scores if score is not None]
    if len(known) < len(runs):
        return None
    numbers = ", ".join(
        f"{shown(score)} at gamma {gamma}"
        for score, gamma in zip(known, (0.1, 0.5, 0.9), strict=True)
    )
    return Finding(numbers, judged(difference(known[-1], known[0]), is_claimed_above=True))


def sparsity_rises_with_omega(tables: Tables) -> Finding | None:
    """The best weak sparsity at a high scale is not below that at a low one."""
    chosen = {}
    for omega in (1.4, 4.0):
        runs = {
            gamma: f"routed@sg,omega={omega},gamma_strong=0.0,gamma_weak={gamma}"
            for gamma in (0.5, 0.7, 0.9)
        }
        scores = {gamma: tables.validation.score(run, DISTANCE) for gamma, run in runs.items()}
        values = {gamma: score.value for gamma, score in scores.items() if score is not None}
        if len(values) < len(runs):
            return None
        chosen[omega] = min(values, key=lambda gamma: values[gamma] or 0.0)
    numbers = f"best weak gamma {chosen[1.4]} at omega 1.4, {chosen[4.0]} at omega 4"
    if chosen[1.4] == chosen[4.0]:
        return Finding(numbers, "unclear at this size")
    return Finding(numbers, "seen" if chosen[4.0] > chosen[1.4] else "not seen")


def cheaper_at_equal_quality(tables: Tables) -> Finding | None:
    """A setting of SG is no worse than the dense twin's best CFG at fewer FLOPs."""
    base = tables.best("dense@cfg", DISTANCE)
    score = None if base is None else tables.validation.score(base, DISTANCE)
    if base is None or score is None:
        return None
    cost = tables.validation.facts[base]["flops_per_image"]
    no_worse = []
    for run in tables.validation.runs_of("routed@sg"):
        own = tables.validation.score(run, DISTANCE)
        if own is not None and difference(own, score).low <= 0:
            no_worse.append((tables.validation.facts[run]["flops_per_image"] / cost, run))
    if not no_worse:
        return Finding(f"no setting of routed@sg is as good as {base}", "not seen")
    share, run = min(no_worse)
    numbers = f"{run}: {100 * (1 - share):.0f} % fewer FLOPs than {base}"
    return Finding(numbers, "seen" if share < 1 else "not seen")


def keeps_diversity(tables: Tables) -> Finding | None:
    """Pictures of a prompt differ more with SG than with CFG, pair by pair."""
    runs = [tables.best(row, DISTANCE) for row in ("routed@sg", "routed@cfg")]
    if runs[0] is None or runs[1] is None:
        return None
    found = tables.test.difference(runs[0], runs[1], "diversity")
    if found is None:
        return None
    numbers = f"diversity {found.value:+.3g} ({found.low:+.3g} to {found.high:+.3g}) of SG over CFG"
    return Finding(numbers, judged(found, is_claimed_above=True))


SG, MG = "Sparse Guidance", "Model-guidance"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        f"{SG}, figure 2",
        "Token-sparse training gives a better conditional model than dense training",
        "classes",
        beats("routed@none", "dense@none", DISTANCE),
    ),
    Claim(
        f"{SG}, figure 2",
        "CFG helps token-sparse models less than dense ones",
        "classes",
        gains_less,
    ),
    Claim(
        f"{SG}, figure 4",
        "Without guidance, pictures get worse as more tokens skip",
        "classes",
        worsens_with_sparsity,
    ),
    Claim(
        f"{SG}, table 1",
        "SG beats CFG on a routed model",
        "classes",
        beats("routed@sg", "routed@cfg", DISTANCE),
    ),
    Claim(
        f"{SG}, table 1",
        "SG beats no guidance on a masked model",
        "classes",
        beats("masked@sg", "masked@none", DISTANCE),
    ),
    Claim(
        f"{SG}, figure 5",
        "SG needs no dense fine-tuning: it beats CFG after one",
        "classes",
        beats("routed@sg", "routed-tuned@cfg", DISTANCE),
    ),
    Claim(
        f"{SG}, table 2",
        "SG matches the quality of a dense model with CFG at fewer FLOPs",
        "classes",
        cheaper_at_equal_quality,
    ),
    Claim(
        f"{SG}, table 2",
        "With an early checkpoint and schedules (SG_FID) SG is better than alone",
        "classes",
        beats("routed@ag+sg", "routed@sg", DISTANCE),
    ),
    Claim(
        f"{SG}, figures 6 and 8",
        "Larger omega goes with more sparsity",
        "classes",
        sparsity_rises_with_omega,
    ),
    Claim(f"{SG}, figure 9", "SG keeps more variance than CFG", "text", keeps_diversity),
    Claim(
        f"{SG}, table 5",
        "SG with CFG composes better than CFG",
        "text",
        beats("routed@cfg+sg", "routed@cfg", SCENE),
    ),
    Claim(
        f"{MG}, table 1",
        "Trained on its guided prediction, a model without guidance beats a plain one",
        "classes",
        beats("guided@none", "dense@none", DISTANCE),
    ),
    Claim(
        f"{MG}, table 2",
        "It also beats the plain one with CFG, at half of the sampling cost",
        "classes",
        beats("guided@none", "dense@cfg", DISTANCE),
    ),
)


def findings(tables: Mapping[str, Tables]) -> list[tuple[Claim, Finding]]:
    """Every claim with what the tables say."""
    missing = Finding("-", "no data yet")
    found = []
    for claim in CLAIMS:
        own = tables.get(claim.family)
        found.append((claim, (claim.find(own) if own is not None else None) or missing))
    return found
