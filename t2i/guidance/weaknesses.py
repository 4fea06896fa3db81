"""What makes a branch of a guidance method the weaker one, beside sparsity and condition. No torch.

`t2i.sampling.perturbing` turns it into what the network's `forward` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer

from t2i.guidance.schedules import ZERO, Schedule, constant

# none; some blocks drawn at each step are left out (S2), chosen ones are (SLG), or give each token
# only itself to attend to (PAG), shuffle their tokens (TPG) or swap the most dissimilar (SSG); no
# token runs the route (PDG); the internal head predicts (IG)
Kind = Literal["none", "drop", "skip", "identity", "shuffle", "swap", "no_deep_path", "internal"]
MIDDLE = "middle"


@dataclass(frozen=True)
class BlockChoice:
    """Some of a network's blocks; negative numbers count from the last. None given: the middle one.

    The text form, in configs, on the command line and in the metadata of images: "middle", "7,8,-2".
    """

    numbers: tuple[int, ...] = ()

    def of(self, num_blocks: int) -> tuple[int, ...]:
        """The blocks of a network that has so many, ascending, each once.

        Raises:
            ValueError: it has no such block.
        """
        for number in self.numbers:
            if not -num_blocks <= number < num_blocks:
                raise ValueError(
                    f"blocks {self}: the network has blocks 0 to {num_blocks - 1} (or -{num_blocks} "
                    "to -1, from the last)"
                )
        chosen = self.numbers or (num_blocks // 2,)
        return tuple(sorted({number % num_blocks for number in chosen}))

    def __str__(self) -> str:
        return ",".join(map(str, self.numbers)) or MIDDLE


def as_block_choice(value: BlockChoice | str | int | Sequence[int]) -> BlockChoice:
    """Read a number, a list, or the text form.

    Raises:
        ValueError: it is none of them; the message shows the forms.
    """
    if isinstance(value, BlockChoice):
        return value
    if value == MIDDLE:
        return BlockChoice()
    parts = value.split(",") if isinstance(value, str) else value
    try:
        numbers = tuple(int(part) for part in ([parts] if isinstance(parts, int) else parts))
        if not numbers:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"{value!r} is no choice of blocks: give numbers such as 7,8,9 (-1 is the last block), "
            f"or {MIDDLE}"
        ) from None
    return BlockChoice(numbers)


def _to_plain(choice: BlockChoice) -> list[int] | str:
    return list(choice.numbers) or MIDDLE


# A field of a settings class that takes a list of numbers or the text form.
BlockChoiceField = Annotated[
    BlockChoice, BeforeValidator(as_block_choice), PlainSerializer(_to_plain)
]


@dataclass(frozen=True)
class Weakness:
    """How the network is weakened for one prediction.

    Attributes:
        kind: see `Kind`.
        blocks: of skip, identity, shuffle and swap.
        amount: of drop, the share of blocks, never block 0, in [0, 1); of swap, swapped pairs by the
            number of tokens, in (0, 0.5].
    """

    kind: Kind = "none"
    blocks: BlockChoice = BlockChoice()
    amount: Schedule = ZERO

    def at(self, fraction: float) -> Weakness:
        """The same at a step fraction, with its amount as a number."""
        amount = constant(self.amount(fraction))
        if self.kind == "drop" and amount(0.0) == 0:
            return NO_WEAKNESS
        return Weakness(self.kind, self.blocks, amount)


NO_WEAKNESS = Weakness()
