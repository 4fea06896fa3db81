"""What engines give: four captions of an image, or an error in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from recaption.granularity import CaptionError

if TYPE_CHECKING:
    from PIL.Image import Image

Captions = tuple[str, str, str, str]  # in the order of LEVELS


class Captioner(Protocol):
    """What writes captions."""

    def caption(self, images: Sequence[Image]) -> list[Captions | CaptionError]:
        """Four captions per RGB image in the order of `LEVELS`, or why there are none."""


def as_captions(chain: Sequence[str]) -> Captions:
    """A finished chain of captions, one per level."""
    detailed, multi_sentence, sentence, keywords = chain
    return detailed, multi_sentence, sentence, keywords
