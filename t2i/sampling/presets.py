"""The papers' settings of guided sampling, by name. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from t2i.guidance.branches import Guidance
from t2i.guidance.methods import METHODS, make_guidance


@dataclass(frozen=True)
class Preset:
    """A guidance method with all of its settings, and the solver's steps.

    Attributes:
        source: where the values stand.
        guidance: name of the method.
        settings: of the method; numbers, or schedules as text.
        steps: of Euler's method.
    """

    source: str
    guidance: str
    settings: Mapping[str, float | str]
    steps: int = 50

    def build(self) -> Guidance:
        """The method."""
        return make_guidance(self.guidance, self.settings)

    def __str__(self) -> str:
        return f"{self.build()}, {self.steps} Euler steps ({self.source})"


# omega of the ImageNet rows: that of their figures of samples, the only one that the papers give.
PRESETS: dict[str, Preset] = {
    "hpsv3": Preset(
        "SG B.2, HPSv3 at 512 px", "sg", {"omega": 1.8, "gamma_strong": 0.1, "gamma_weak": 0.8}
    ),
    "geneval": Preset(
        "SG B.2, GenEval at 512 px",
        "cfg+sg",
        {"omega": 2.5, "gamma_strong": 0.2, "gamma_weak": 0.7},
    ),
    "sg_flops": Preset(
        "SG B.1, ImageNet at 256 px",
        "sg",
        {"omega": 2.5, "gamma_strong": 0.5, "gamma_weak": 0.9},
        steps=40,
    ),
    "sg_fid": Preset(
        "SG B.1, ImageNet at 256 px; aux: the checkpoint of step 50,000",
        "ag+sg",
        {"omega": 2.5, "gamma_strong": "cosine:0:0.6", "gamma_weak": "cosine:0.6:0"},
        steps=40,
    ),
}


def named_guidance(name: str) -> Guidance:
    """A method with its usual settings, or that of a preset.

    Raises:
        ValueError: neither is called so.
    """
    if name in PRESETS:
        return PRESETS[name].build()
    if name not in METHODS:
        raise ValueError(
            f"unknown guidance {name!r}; methods: {' '.join(METHODS)}; presets: {' '.join(PRESETS)}"
        )
    return make_guidance(name, {})
