"""The guidance methods: a row of the table is a few lines here. No torch at import.

D(c; gamma) is the network's velocity for the prompt c at sparsity gamma, D(0) that for the empty
prompt, D' another network's, D^ that of the network with a weakness (`t2i.guidance.weaknesses`). In
all rows omega = 1 means no guidance. To add a method, write a function from its settings (schedules;
``blocks`` is a choice of blocks) to a `Guidance` and give its name and defaults in `method`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from t2i.guidance.branches import Branch, Combine, Condition, Guidance, Setting
from t2i.guidance.projection import AdaptiveProjection, RescaledNull
from t2i.guidance.schedules import Schedule, as_schedule
from t2i.guidance.weaknesses import BlockChoice, Weakness, as_block_choice

Build = Callable[..., Guidance]


@dataclass(frozen=True)
class Method:
    """A name's function and the settings that it takes, with their defaults."""

    build: Build
    defaults: Mapping[str, Setting]


METHODS: dict[str, Method] = {}


def method(name: str, **defaults: float | str) -> Callable[[Build], Build]:
    """Enter the function below in the table of methods, with the defaults of its settings."""

    def enter(build: Build) -> Build:
        METHODS[name] = Method(build, as_settings(defaults))
        return build

    return enter


def as_settings(values: Mapping[str, Any]) -> dict[str, Setting]:
    """Numbers and schedules; ``blocks`` is a choice of blocks.

    Raises:
        ValueError: one that is neither; the message shows the forms.
    """
    return {
        key: as_block_choice(value) if key == "blocks" else as_schedule(value)
        for key, value in values.items()
    }


def make_guidance(
    name: str,
    settings: Mapping[str, Any] | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Guidance:
    """A method by name.

    Args:
        name: a key of `METHODS`.
        settings: numbers or schedules (see `as_schedule`) in place of the method's defaults, and
            ``blocks`` (see `as_block_choice`).
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
    values = {**row.defaults, **as_settings(settings or {})}
    schedules = {key: value for key, value in values.items() if isinstance(value, Schedule)}
    _check_ranges(schedules)
    _check_gammas(schedules, schedules_may_cross=name == "ag+sg")
    return replace(row.build(**values), name=name, settings=values, interval=interval)


def _check_ranges(values: Mapping[str, Schedule]) -> None:
    for key, schedule in values.items():
        if key == "drop_blocks" and not all(0 < value < 1 for value in schedule.values):
            raise ValueError(f"drop_blocks must be in (0, 1), got {schedule}")
        if key == "swap_ratio" and not all(0 < value <= 0.5 for value in schedule.values):
            raise ValueError(
                f"swap_ratio must be in (0, 0.5], got {schedule}: pairs by the number of tokens"
            )
        if key == "zero_steps" and not all(
            value >= 0 and value.is_integer() for value in schedule.values
        ):
            raise ValueError(f"zero_steps must be a number of steps, 0 or more, got {schedule}")
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
        (Branch(), Branch("null"), Branch(weakness=Weakness("drop", amount=drop_blocks))),
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


@method("cfg_zero", omega=2.5, zero_steps=1)
def cfg_zero_star(omega: Schedule, zero_steps: Schedule) -> Guidance:
    """omega D(c) + (1 - omega) s D(0), s = <D(c), D(0)> / |D(0)|^2   (CFG-Zero*, arXiv 2503.18886).

    The velocity of the first `zero_steps` steps is zero.
    """
    row = extrapolate(omega, Branch(), Branch("null"))
    return replace(row, new_combine=lambda: RescaledNull(omega, zero_steps))


@method("fdg", omega=1.5, omega_high=3.0)
def frequency_decoupled(omega: Schedule, omega_high: Schedule) -> Guidance:
    """D(0) + omega L(D(c) - D(0)) + omega_high (1 - L)(D(c) - D(0))   (FDG, arXiv 2506.19713).

    L keeps the low frequencies: a level of the Laplacian pyramid, down and up again.
    """

    def new_combine() -> Combine:
        from t2i.guidance.frequencies import FrequencyDecoupling

        return FrequencyDecoupling(omega, omega_high)

    return replace(extrapolate(omega, Branch(), Branch("null")), new_combine=new_combine)


@method("pdg", omega=2.5)
def path_drop(omega: Schedule) -> Guidance:
    """omega D(c) + (1 - omega) D^(0), D^ without the deep path   (SPRINT, arXiv 2510.21986).

    The deep path of a SPRINT network gives way to its mask embedding; of a routed network all tokens
    skip the route.
    """
    return extrapolate(omega, Branch(), Branch("null", weakness=Weakness("no_deep_path")))


@method("pdg+c", omega=2.5)
def conditional_path_drop(omega: Schedule) -> Guidance:
    """omega D(c) + (1 - omega) D^(c), D^ without the deep path: PDG with both branches conditional."""
    return extrapolate(omega, Branch(), Branch(weakness=Weakness("no_deep_path")))


@method("ig", omega=1.4)
def internal(omega: Schedule) -> Guidance:
    """omega D(c) + (1 - omega) D^(c), D^ the internal head's   (Internal Guidance, arXiv 2512.24176).

    One forward pass has both.
    """
    return extrapolate(omega, Branch(), INTERNAL)


@method("cfg+ig", omega=1.35, internal_omega=1.4)
def cfg_internal(omega: Schedule, internal_omega: Schedule) -> Guidance:
    """CFG between predictions that are each guided from their internal head (IG's code)."""
    return Guidance(
        (Branch(), Branch("null"), INTERNAL, replace(INTERNAL, condition="null")),
        lambda u: (
            internal_omega(u) * omega(u),
            internal_omega(u) * (1 - omega(u)),
            (1 - internal_omega(u)) * omega(u),
            (1 - internal_omega(u)) * (1 - omega(u)),
        ),
    )


@method("sg+ig", omega=1.8, internal_omega=1.4, gamma_strong=0.1, gamma_weak=0.8)
def sg_internal(
    omega: Schedule, internal_omega: Schedule, gamma_strong: Schedule, gamma_weak: Schedule
) -> Guidance:
    """SG between predictions that are each guided from their internal head.

    The head lies before the route, so both have the same: it needs no branch of its own.
    """
    return Guidance(
        (strong(gamma_strong), weak(gamma_weak), INTERNAL),
        lambda u: (
            internal_omega(u) * omega(u),
            internal_omega(u) * (1 - omega(u)),
            1 - internal_omega(u),
        ),
    )


@method("slg", omega=3.8, cfg_weight=0.0, blocks="middle")
def skip_layers(omega: Schedule, cfg_weight: Schedule, blocks: BlockChoice) -> Guidance:
    """D(c) + (omega - 1)(D(c) - D^(c)) + w_c (D(c) - D(0)), D^ without some blocks.

    Skip-layer guidance of Stable Diffusion 3.5; w_c = 0 is no CFG beside it, as in the rows below.
    """
    return perturbed(omega, cfg_weight, Weakness("skip", blocks))


@method("pag", omega=4.0, cfg_weight=0.0, blocks="middle")
def perturbed_attention(omega: Schedule, cfg_weight: Schedule, blocks: BlockChoice) -> Guidance:
    """The same with D^ in which tokens attend to themselves alone in some blocks (arXiv 2403.17377)."""
    return perturbed(omega, cfg_weight, Weakness("identity", blocks))


@method("tpg", omega=4.0, cfg_weight=0.0, blocks="middle")
def token_perturbation(omega: Schedule, cfg_weight: Schedule, blocks: BlockChoice) -> Guidance:
    """The same with D^ that shuffles the tokens of some blocks, anew per image and step.

    Token perturbation guidance, arXiv 2506.10036; see `t2i.models.perturbation`.
    """
    return perturbed(omega, cfg_weight, Weakness("shuffle", blocks))


@method("ssg", omega=4.0, cfg_weight=0.0, swap_ratio=0.1, blocks="middle")
def self_swap(
    omega: Schedule, cfg_weight: Schedule, swap_ratio: Schedule, blocks: BlockChoice
) -> Guidance:
    """The same with D^ that swaps the most dissimilar pairs of tokens in some blocks.

    Self-swap guidance, arXiv 2604.08048; see `t2i.models.perturbation`.
    """
    return perturbed(omega, cfg_weight, Weakness("swap", blocks, swap_ratio))


INTERNAL = Branch(weakness=Weakness("internal"))


def perturbed(omega: Schedule, cfg_weight: Schedule, weakness: Weakness) -> Guidance:
    """Guidance away from a perturbed conditional branch, and, with a weight, from the empty prompt."""
    return Guidance(
        (Branch(), Branch("null"), Branch(weakness=weakness)),
        lambda u: (omega(u) + cfg_weight(u), -cfg_weight(u), 1 - omega(u)),
    )
