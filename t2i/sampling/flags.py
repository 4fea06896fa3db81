"""What the flags of the sample command say, read into settings. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from t2i.config import Section

SectionT = TypeVar("SectionT", bound=Section)


def validated(section_class: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """A section from values that came from flags; each error on one line."""
    from pydantic import ValidationError

    try:
        return section_class.model_validate(values)
    except ValidationError as error:
        lines = [
            " ".join(
                [*(f"--{part}".replace("_", "-") for part in details["loc"][:1]), details["msg"]]
            )
            for details in error.errors()
        ]
        raise ValueError("; ".join(lines).replace("Value error, ", "")) from None


def read_size(text: str) -> tuple[int, int]:
    """ "512" -> (512, 512); "512x768" -> height 512, width 768."""
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--size {text}: expected pixels such as 512, or height x width: 512x768")
    return int(parts[0]), int(parts[-1])


def read_sg(text: str, guidance: str, given: Mapping[str, Any]) -> dict[str, str]:
    """ "0.1,0.8" -> the two gammas."""
    strong, separator, weak = text.partition(",")
    if guidance != "sg" or not separator:
        raise ValueError(
            f"--sg {text}: expected two numbers such as 0.1,0.8, with guidance sg only"
        )
    if {"gamma_strong", "gamma_weak"} & given.keys():
        raise ValueError(
            f"--sg {text} gives both gammas: leave --gamma-strong and --gamma-weak, or --sg"
        )
    return {"gamma_strong": strong, "gamma_weak": weak}


def read_interval(text: str) -> list[str]:
    """ "0.1,0.7" -> its two ends."""
    ends = text.split(",")
    if len(ends) != 2:
        raise ValueError(f"--interval {text}: expected two ends LOW,HIGH such as 0.1,0.7")
    return ends
