"""The guidance methods: a row of the table is a few lines here. No torch at import.

D(c; gamma) is the network's velocity for the prompt c at sparsity gamma, D(0) that for the empty
prompt, D' another network's. In all rows omega = 1 means no guidance. To add a method, write a
function from its settings (schedules) to a `Guidance` and give its name and defaults in `method`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from t2i.guidance.branches import Branch, Condition, Guidance
from t2i.guidance.projection import AdaptiveProjection
from t2i.guidance.schedules import Schedule, as_schedule

Build = Callable[..., Guidance]


@dataclass(frozen=True)
class Method:
    """A name's function and the settings that it takes, with their defaults."""

    build: Build
    defaults: Mapping[str, Schedule]


METHODS: dict[str, Method] = {}


def method(name: str, **defaults: float | str) -> Callable[[Build], Build]:
    """Enter the function below in the table of methods, with the defaults of its settings."""

    def enter(build: Build) -> Build:
        METHODS[name] = Method(build, {key: as_schedule(value) for key, value in defaults.items()})
        return build

    return enter


def make_guidance(
    name: str,
    settings: Mapping[str, float | str | Schedule] | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Guidance:
    """A method by name.

    Args:
        name: a key of `METHODS`.
        settings: numbers or schedules (see `as_schedule`) in place of the method's defaults.
        interval: guide only for t in this range; outside it the first branch alone is used.

    Raises:
        ValueError: an unknown name or setting, a setting that is infinite (APG's radius may be), a
            gamma outside [0, 1), gamma_strong not below gamma_weak, or an empty interval.
    """
    if name not in METHODS:
        raise ValueError(f"unknown guidance {name!r}; valid: {' '.join(METHODS)}")
    row = METHODS[name]
    for key in settings or {}:
        if key not in row.defaults:
            takes = ", ".join(row.defaults) or "no settings"
            raise ValueError(f"guidance {name} has no setting {key}; it takes {takes}")
    if not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"interval {interval} must be a range of t with 0 <= low < high <= 1")
    given = {key: as_schedule(value) for key, value in (settings or {}).items()}
    values = {**row.defaults, **given}
    _check_ranges(values)
    _check_gammas(values, schedules_may_cross=name == "ag+sg")
    return replace(row.build(**values), name=name, settings=values, interval=interval)


def _check_ranges(values: Mapping[str, Schedule]) -> None:
    for key, schedule in values.items():
        if key == "drop_blocks" and not all(0 < value < 1 for value in schedule.values):
            raise ValueError(f"drop_blocks must be in (0, 1), got {schedule}")
        if key == "radius" and not all(value > 0 for value in schedule.values):
            raise ValueError(f"radius must be above 0, got {schedule}; inf does not clip")
        if key != "radius" and not all(map(math.isfinite, schedule.values)):
            raise ValueError(f"{key} must be finite, got {schedule}")


def _check_gammas(values: Mapping[str, Schedule], schedules_may_cross: bool) -> None:
    gammas = {key: value for key, value in values.items() if key.startswith("gamma")}
    for key, gamma in gammas.items():
        if not all(0 <= value < 1 for value in gamma.values):
            raise ValueError(f"{key} must be in [0, 1), got {gamma}; 0 is dense, 0.8 drops 80 %")
    are_numbers = all(gamma.kind == "constant" for gamma in gammas.values())
    if len(gammas) < 2 or (schedules_may_cross and not are_numbers):
        return
    strong, weak = gammas["gamma_strong"], gammas["gamma_weak"]
    fractions = [i / 100 for i in range(101)]
    if any(strong(fraction) >= weak(fraction) for fraction in fractions):
        raise ValueError(
            f"gamma_strong must be below gamma_weak at every step, got {strong} and {weak}: the "
            "strong branch drops fewer tokens, e.g. --sg 0.1,0.8"
        )


def strong(gamma: Schedule, condition: Condition = "text") -> Branch:
    """A branch that drops few tokens; each condition has a draw of its own."""
    return Branch(condition, gamma, draw=f"strong {condition}")


def weak(gamma: Schedule, condition: Condition = "text") -> Branch:
    """A branch that drops many tokens."""
    return Branch(condition, gamma, draw=f"weak {condition}")


def extrapolate(omega: Schedule, good: Branch, bad: Branch) -> Guidance:
    """omega * good + (1 - omega) * bad."""
    return Guidance((good, bad), lambda u: (omega(u), 1 - omega(u)))


@method("none")
def none() -> Guidance:
    """D(c)."""
    return Guidance((Branch(),), lambda u: (1.0,))


@method("cfg", omega=2.5)
def cfg(omega: Schedule) -> Guidance:
    """omega D(c) + (1 - omega) D(0)   (SG eq. 3)."""
    return extrapolate(omega, Branch(), Branch("null"))


@method("sg", omega=1.8, gamma_strong=0.1, gamma_weak=0.8)
def sg(omega: Schedule, gamma_strong: Schedule, gamma_weak: Schedule) -> Guidance:
    """omega D(c; gamma_s) + (1 - omega) D(c; gamma_w), both conditional   (SG eq. 7)."""
    return extrapolate(omega, strong(gamma_strong), weak(gamma_weak))


@method("cfg+sg", omega=2.5, gamma_strong=0.2, gamma_weak=0.7)
def cfg_sg(omega: Schedule, gamma_strong: Schedule, gamma_weak: Schedule) -> Guidance:
    """omega D(c; gamma_s) + (1 - omega) D(0; gamma_w)   (SG eq. 8)."""
    return extrapolate(omega, strong(gamma_strong), weak(gamma_weak, "null"))


@method("ag", omega=2.5)
def autoguidance(omega: Schedule) -> Guidance:
    """omega D(c) + (1 - omega) D'(c), D' smaller or less trained   (arXiv 2406.02507)."""
    return extrapolate(omega, Branch(), Branch(network="aux"))


@method("ag+sg", omega=2.5, gamma_strong="cosine:0:0.6", gamma_weak="cosine:0.6:0")
def autoguidance_sg(omega: Schedule, gamma_strong: Schedule, gamma_weak: Schedule) -> Guidance:
    """omega D(c; gamma_s(u)) + (1 - omega) D'(c; gamma_w(u))   (SG_FID, SG B.1)."""
    bad = replace(weak(gamma_weak), network="aux")
    return extrapolate(omega, strong(gamma_strong), bad)


@method("direct", cfg_weight=1.8, sg_weight=0.8, gamma_strong=0.1, gamma_weak=0.8)
def direct(
    cfg_weight: Schedule, sg_weight: Schedule, gamma_strong: Schedule, gamma_weak: Schedule
) -> Guidance:
    """D_w(0) + w_c (D_s(c) - D_w(0)) + w_s (D_s(c) - D_w(c))   (SG eq. A5)."""
    return Guidance(
        (strong(gamma_strong), weak(gamma_weak, "null"), weak(gamma_weak)),
        lambda u: (cfg_weight(u) + sg_weight(u), 1 - cfg_weight(u), -sg_weight(u)),
    )


@method("inner", cfg_weight=0.8, sg_weight=0.8, gamma_strong=0.1, gamma_weak=0.8)
def inner(
    cfg_weight: Schedule, sg_weight: Schedule, gamma_strong: Schedule, gamma_weak: Schedule
) -> Guidance:
    """(1 + w_c + w_s) D_s(c) - w_c D_s(0) - w_s D_w(c)   (SG eq. A6)."""
    return Guidance(
        (strong(gamma_strong), strong(gamma_strong, "null"), weak(gamma_weak)),
        lambda u: (1 + cfg_weight(u) + sg_weight(u), -cfg_weight(u), -sg_weight(u)),
    )


@method("compositional", cfg_weight=1.8, sg_weight=0.8, gamma_strong=0.1, gamma_weak=0.8)
def compositional(
    cfg_weight: Schedule, sg_weight: Schedule, gamma_strong: Schedule, gamma_weak: Schedule
) -> Guidance:
    """D_w(0) + w_c (D_s(c) - D_w(0)) + w_s (D_w(c) - D_w(0))   (SG eq. A7)."""
    return Guidance(
        (strong(gamma_strong), weak(gamma_weak, "null"), weak(gamma_weak)),
        lambda u: (cfg_weight(u), 1 - cfg_weight(u) - sg_weight(u), sg_weight(u)),
    )


@method("ip2p", cfg_weight=1.8, sg_weight=2.5, gamma_strong=0.1, gamma_weak=0.8)
def instruct_pix2pix(
    cfg_weight: Schedule, sg_weight: Schedule, gamma_strong: Schedule, gamma_weak: Schedule
) -> Guidance:
    """D_w(0) + w_s (D_w(c) - D_w(0)) + w_c (D_s(c) - D_w(c))   (SG eq. A8)."""
    return Guidance(
        (strong(gamma_strong), weak(gamma_weak, "null"), weak(gamma_weak)),
        lambda u: (cfg_weight(u), 1 - sg_weight(u), sg_weight(u) - cfg_weight(u)),
    )


@method("icg", omega=2.5)
def independent_condition(omega: Schedule) -> Guidance:
    """omega D(c) + (1 - omega) D(c~), c~ drawn independently of the image   (arXiv 2407.02687).

    c~ is drawn anew at each step, as in the paper's algorithm, unless the pipeline is told otherwise
    (its ``random_condition``).
    """
    return extrapolate(omega, Branch(), Branch("random"))


@method("s2", omega=2.5, block_weight=0.25, drop_blocks=0.1)
def stochastic_self(omega: Schedule, block_weight: Schedule, drop_blocks: Schedule) -> Guidance:
    """D(0) + omega (D(c) - D(0)) - w_b (D^(c) - D(c)), D^ without some blocks (arXiv 2508.12880).

    At omega = 1 the empty prompt falls out: the method's form with two branches.
    """
    return Guidance(
        (Branch(), Branch("null"), Branch(drop_blocks=drop_blocks)),
        lambda u: (omega(u) + block_weight(u), 1 - omega(u), -block_weight(u)),
    )


@method("apg", omega=2.5, eta=0.0, radius=7.5, momentum=-0.5)
def adaptive_projected(
    omega: Schedule, eta: Schedule, radius: Schedule, momentum: Schedule
) -> Guidance:
    """CFG in data space whose difference is averaged, clipped and projected   (arXiv 2410.02416).

    eta = 1, radius = inf and momentum = 0 is CFG.
    """
    row = extrapolate(omega, Branch(), Branch("null"))
    return replace(row, new_combine=lambda: AdaptiveProjection(omega, eta, radius, momentum))
