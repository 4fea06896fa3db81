"""What docs/evidence.md samples and scores: methods on models, their sweeps, and studies of one thing.

A row is a guidance method on a twin; its sweep is tried on validation prompts, and the best settings are
scored on test prompts. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from launch.evidence.twins import EARLY_SHARES, KINDS, NUM_SEEDS, TUNED, kinds_of

OMEGAS = (1.5, 2.5, 4.0)
AUX_SHARE = 0.05  # of a run: the early checkpoint that ag and ag+sg take, unless a study says which
SG_GAMMAS = ((0.0, 0.5), (0.1, 0.8), (0.5, 0.9))
HEAT_STRONG, HEAT_WEAK = (0.0, 0.1, 0.3, 0.5), (0.3, 0.5, 0.7, 0.9)
# guided steps of middle and high noise, where Internal Guidance acts
EARLY_TIMES = (0.0, 0.7)
# schedules of both gammas of ag+sg around one mean (Sparse Guidance, B.1)
SCHEDULES = {
    "linear": ("linear:0:0.6", "linear:0.6:0"),
    "cosine": ("cosine:0:0.6", "cosine:0.6:0"),
    "cosine reversed": ("cosine:0.6:0", "cosine:0:0.6"),
}
SEED_SG = {"omega": 1.8, "gamma_strong": 0.1, "gamma_weak": 0.8}  # of the study of seeds
BALANCE = ("direct", "inner", "compositional", "ip2p")  # Sparse Guidance, table A3


@dataclass(frozen=True)
class Try:
    """One way to make images.

    Attributes:
        twin: kind of the model, with -tuned after its fine-tuning.
        guidance: name of the method.
        settings: of the method.
        aux_share: of the twin's run, at which the weaker network was saved; None = there is none.
        seed: of the twin.
    """

    twin: str
    guidance: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    aux_share: float | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder, and of its row of a table of results."""
        parts = [f"{key}={shown(value)}" for key, value in self.settings.items()]
        aux = [] if self.aux_share in (None, AUX_SHARE) else [f"aux={self.aux_share:g}"]
        return ",".join([self.row, *parts, *aux])

    @property
    def row(self) -> str:
        """The method on the model, whatever its settings."""
        seed = f".{self.seed}" if self.seed else ""
        return f"{self.twin}{seed}@{self.guidance}"


def shown(value: Any) -> str:
    """A setting as part of a folder's name."""
    text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace(":", "-").replace("/", "-")


def main_rows(family: str) -> list[Try]:
    """All settings of the sweep of the main table, row by row."""
    kinds = kinds_of(family)
    tuned = [f"{kind}-tuned" for kind in TUNED if kind in kinds]
    tries = [Try(kind, "none") for kind in (*kinds, *tuned)]
    for kind in ("dense", "routed", "sprint", "internal", "guided", *tuned):
        tries += swept(kind, "cfg", omega=OMEGAS)
    tries += with_gammas("routed", "sg", SG_GAMMAS, omega=(1.4, 1.8, *OMEGAS[1:]))
    tries += with_gammas("dense", "sg", SG_GAMMAS[:2], omega=OMEGAS[:2])
    tries += with_gammas("routed", "cfg+sg", ((0.0, 0.5), (0.2, 0.7)), omega=OMEGAS)
    tries += swept("routed", "ag", AUX_SHARE, omega=OMEGAS)
    tries += swept("routed", "ag+sg", AUX_SHARE, omega=OMEGAS)
    for name in BALANCE:
        tries += swept("routed", name, cfg_weight=(0.8, 1.8), sg_weight=(0.4, 0.8))
    tries += swept("routed", "icg", omega=OMEGAS)
    tries += swept("routed", "s2", omega=(1.0, *OMEGAS[:2]), block_weight=(0.25, 1.0))
    tries += swept("routed", "apg", omega=(2.5, 4.0, 7.0))
    tries += swept("routed", "cfg_zero", omega=OMEGAS)
    tries += swept("routed", "fdg", omega=(1.0, 1.5), omega_high=(2.5, 4.0))
    for kind in ("routed", "sprint"):
        tries += [*swept(kind, "pdg", omega=OMEGAS), *swept(kind, "pdg+c", omega=(1.2, 1.5, 2.5))]
    tries += swept("internal", "ig", omega=(1.2, 1.4, 2.0), interval=((0.0, 1.0), EARLY_TIMES))
    tries += swept("internal", "cfg+ig", omega=(1.35, 2.5), internal_omega=(1.2, 1.4))
    for name in ("slg", "pag", "tpg", "ssg"):
        tries += swept("routed", name, omega=(1.5, 2.5, 4.0), blocks=("3", "2,3,4"))
    return tries


def studies(family: str) -> dict[str, list[Try]]:
    """Further tries, by what they look at; all on validation prompts."""
    omega = {"text": 1.8, "classes": 2.5}[family]
    heat = [pair for pair in product(HEAT_STRONG, HEAT_WEAK) if pair[0] < pair[1]]
    sparse = [(0.0, 0.5), (0.0, 0.7), (0.0, 0.9)]
    found = {
        # at omega 1 the strong branch alone is left
        "sparsity without guidance": with_gammas(
            "routed", "sg", [(gamma, 0.95) for gamma in (0.1, 0.3, 0.5, 0.7, 0.9)], omega=(1.0,)
        ),
        "gammas": with_gammas("routed", "sg", heat, omega=(omega,)),
        "sparsity and omega": with_gammas("routed", "sg", sparse, omega=(1.4, 2.5, 4.0)),
        "schedules": [
            Try(
                "routed",
                "ag+sg",
                {"omega": omega, "gamma_strong": strong, "gamma_weak": weak},
                AUX_SHARE,
            )
            for strong, weak in SCHEDULES.values()
        ],
        "early checkpoints": [
            Try("routed", "ag", {"omega": omega}, share) for share in EARLY_SHARES
        ],
    }
    found["seeds"] = [
        Try(kind, guidance, values, seed=seed)
        for kind, number in NUM_SEEDS.items()
        for seed in range(number)
        for guidance, values in (
            ("none", {}),
            ("cfg", {"omega": 2.5}),
            *([("sg", SEED_SG)] if kind == "routed" else []),
        )
    ]
    if "masked" in kinds_of(family):
        found["routing and masking"] = [
            one
            for twin in ("routed", "routed-tuned", "masked", "masked-tuned")
            for one in with_gammas(twin, "sg", ((0.1, 0.8), (0.5, 0.9)), omega=(1.4, 2.5))
        ]
    return found


def swept(
    twin: str, guidance: str, aux_share: float | None = None, **values: Sequence[Any]
) -> list[Try]:
    """Every combination of the values of a method's settings."""
    return [
        Try(twin, guidance, dict(zip(values, chosen, strict=True)), aux_share)
        for chosen in product(*values.values())
    ]


def with_gammas(
    twin: str, guidance: str, pairs: Sequence[tuple[float, float]], omega: Sequence[float]
) -> list[Try]:
    """Every scale at each pair of a strong and a weak sparsity."""
    return [
        Try(twin, guidance, {"omega": scale, "gamma_strong": strong, "gamma_weak": weak})
        for strong, weak in pairs
        for scale in omega
    ]


def all_tries(family: str) -> Iterator[Try]:
    """Everything that validation prompts are sampled for, each once, model by model."""
    tries = [*main_rows(family), *(one for own in studies(family).values() for one in own)]
    distinct = {one.name: one for one in tries}
    order = {kind: place for place, kind in enumerate(KINDS)}

    def place(one: Try) -> tuple[int, str, int]:
        return order[one.twin.removesuffix("-tuned")], one.twin, one.seed

    yield from sorted(distinct.values(), key=place)
