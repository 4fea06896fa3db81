"""A fault that can be planted in the code, and the tests that must see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """In ``file`` the text ``old``, which is there exactly once, becomes ``new``.

    Attributes:
        name: what is wrong then.
        tests: pytest paths or node ids, of which one at least must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
