"""A fault to be planted in the code, and the tests that must find it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One replacement of text in one file.

    Attributes:
        name: what is wrong, such as "block: shift and scale swapped".
        file: path in the repository.
        old: text that occurs exactly once in the file.
        new: what stands there instead.
        tests: pytest paths or node ids that are to kill it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, text: str) -> str:
        """The text of the file with the fault.

        Raises:
            ValueError: there is not exactly one place for it.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"mutant {self.name!r}: its old text must occur once in {self.file}, but occurs "
                f"{count} times; give `old` as the code is now:\n{self.old}"
            )
        return text.replace(self.old, self.new)
