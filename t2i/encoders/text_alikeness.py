"""How alike a text encoder's states are for captions that differ in one word.

Where they are nearly the same, a network that reads them learns the word late or never: the states of
"red" and "blue" in the nano language model have a cosine of 0.999, and TR-DiT-nano did not learn
colours in 2,000 steps before they were whitened (`t2i.encoders.text_whitening`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2i.encoders.text import TextEncoder

# Captions and the words that stand at {} in turn.
WORDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "color": ("a photo of a {} car", ("red", "blue", "green", "yellow")),
    "shape": ("a drawing of a {} on a white background", ("circle", "square", "triangle", "cross")),
    "object": ("a photo of a {}", ("cat", "dog", "bird", "horse")),
    "count": ("{} apples on a table", ("two", "three", "four", "five")),
    "size": ("a {} house next to a tree", ("small", "large", "tiny", "huge")),
    "side": ("a cat to the {} of a dog", ("left", "right")),
    "height": ("a lamp {} a table", ("above", "below")),
}
# Of the nano model: raw states of colours 0.999, of shapes 0.985; whitened at most 0.94.
TOO_ALIKE = 0.97
NUM_DIRECTIONS = (1, 4, 16)


@dataclass(frozen=True)
class Alikeness:
    """Of an encoder's states as a network reads them, whitened if they are.

    Attributes:
        cosines: by group of words, the mean over its pairs of captions of the cosine between the states
            of the first token that differs.
        variance_shares: of the states of all captions' tokens, by number of directions: how much of
            the variance lies in so many strongest ones.
    """

    cosines: Mapping[str, float]
    variance_shares: Mapping[int, float]

    @property
    def too_alike(self) -> tuple[str, ...]:
        """The groups whose words a network will hardly tell apart."""
        return tuple(name for name, cosine in self.cosines.items() if cosine > TOO_ALIKE)

    def lines(self) -> list[str]:
        """For people: a line per group, the variance, the verdict."""
        groups = [
            f"{name:8s} cosine {cosine:.3f}{'  too alike' if name in self.too_alike else ''}"
            for name, cosine in self.cosines.items()
        ]
        shares = ", ".join(f"{count}: {share:.0%}" for count, share in self.variance_shares.items())
        return [*groups, f"share of variance in the strongest directions: {shares}", self.verdict()]

    def verdict(self) -> str:
        """One line that says what to do."""
        if not self.too_alike:
            return "captions that differ in one word have different states: nothing to do"
        return (
            f"captions that differ in one word of {', '.join(self.too_alike)} have nearly the same "
            f"states (cosines above {TOO_ALIKE}), which a model will learn to tell apart late or "
            "never; whiten them: python -m t2i.encoders.text_whitening --path FOLDER --captions FILE"
        )


def measure_alikeness(encoder: TextEncoder) -> Alikeness:
    """Encode the captions of `WORDS` and compare them; a second on a CPU for the nano model."""
    import torch

    cosines, states = {}, []
    for name, (template, words) in WORDS.items():
        captions = [template.format(word) for word in words]
        encoded = encoder.encode(captions)
        ids = [encoder.caption_ids(caption) for caption in captions]
        of_pairs = []
        for first, second in combinations(range(len(words)), 2):
            token = first_difference(ids[first], ids[second])
            pair_2D = encoded.states[[first, second], token].float()
            of_pairs.append(torch.cosine_similarity(pair_2D[0], pair_2D[1], dim=0).item())
        cosines[name] = sum(of_pairs) / len(of_pairs)
        states.append(encoded.states[encoded.mask].double().cpu())
    states_ND = torch.cat(states)
    variance_D = torch.linalg.svdvals(states_ND - states_ND.mean(0)).square()
    shares = {n: (variance_D[:n].sum() / variance_D.sum()).item() for n in NUM_DIRECTIONS}
    return Alikeness(cosines, shares)


def first_difference(first: Sequence[int], second: Sequence[int]) -> int:
    """Place of the first token that differs; the sequences differ within the shorter one."""
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
