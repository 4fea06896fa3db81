"""Engines that write four captions per image: InternVL in this process, or a server over HTTP.

    captioner = make_captioner(CaptionerConfig())
    results = captioner.caption(images)        # per image four texts, or a CaptionError

An image that gets no captions never costs its neighbours theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline.outputs.fingerprint import model_fingerprint
from recaption.captioner_config import CaptionerConfig
from recaption.captions import Captioner, Captions, as_captions
from recaption.granularity import LEVELS, Answer, CaptionError, LevelsConfig, accept_caption

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i.encoders.internvl import InternVL


def make_captioner(config: CaptionerConfig) -> Captioner:
    """The engine of a config, ready to use.

    Raises:
        FileNotFoundError: the model's folder is not there.
    """
    if config.engine == "http":
        from recaption.http_captioner import HttpCaptioner

        return HttpCaptioner(config)
    import torch

    from t2i.encoders.internvl import load_internvl

    model = load_internvl(config.path, config.device, getattr(torch, config.dtype))
    return InternVLCaptioner(model, config.levels)


class InternVLCaptioner:
    """Captions by a model in this process, a level of the whole batch at a time."""

    def __init__(self, model: InternVL, levels: LevelsConfig) -> None:
        self.model, self.levels = model, levels

    def caption(self, images: Sequence[Image]) -> list[Captions | CaptionError]:
        """See `Captioner`."""
        chains: list[list[str]] = [[] for _ in images]
        errors: dict[int, CaptionError] = {}
        for level in LEVELS:
            alive = [number for number in range(len(images)) if number not in errors]
            if not alive:
                break
            answers = self._ask(level, [images[i] for i in alive], [chains[i] for i in alive])
            for number, answer in zip(alive, answers, strict=True):
                try:
                    chains[number].append(accept_caption(answer, level, self.levels.checks))
                except CaptionError as error:
                    errors[number] = error
        return [errors.get(number) or as_captions(chain) for number, chain in enumerate(chains)]

    def _ask(
        self, level: str, images: Sequence[Image], chains: Sequence[Sequence[str]]
    ) -> list[Answer]:
        prompt, limit = self.levels.prompt(level), self.levels.limit(level)
        processor = self.model.processor
        if level == LEVELS[0]:
            questions = [processor.image_question(prompt)] * len(images)
            answers = self.model.answer(questions, processor.pixels(images), limit)
        else:
            questions = [processor.text_question(chain[-1], prompt) for chain in chains]
            answers = self.model.answer(questions, None, limit)
        return [Answer(text, is_complete) for text, is_complete in answers]


def captioner_fingerprint(config: CaptionerConfig) -> dict[str, Any]:
    """The settings that decide the captions; of a model in a folder, the hash of its files."""
    levels = config.levels.model_dump(mode="json")
    if config.engine == "http":
        http = config.http
        return {"engine": "http", "model": http.model, "max_side": http.max_side, **levels}
    model = model_fingerprint(config.path)
    return {"engine": "internvl", "model": model, "dtype": config.dtype, **levels}
