"""Proves the chain of levels: the first from the image, each other from the text above alone.

A scripted model shows what is asked of whom; the bundled nano model shows that it works.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipeline.outputs.fingerprint import model_fingerprint
from recaption.captioner import (
    InternVLCaptioner,
    captioner_fingerprint,
    make_captioner,
)
from recaption.captioner_config import CaptionerConfig
from recaption.granularity import CaptionError, LevelsConfig, MaxNewTokensConfig
from t2i.shapes import parse_caption

PROMPTS = LevelsConfig().prompts
DETAILED, OTHERS = PROMPTS.detailed, (PROMPTS.multi_sentence, PROMPTS.sentence, PROMPTS.keywords)


@dataclass
class ScriptedModel:
    """Stands for InternVL: answers with what it was asked, unless ``answers`` says otherwise."""

    answers: dict[str, tuple[str, bool]] = field(default_factory=dict)
    calls: list[tuple[list[str], Any]] = field(default_factory=list)

    @property
    def processor(self) -> "ScriptedModel":
        return self

    def image_question(self, prompt: str) -> str:
        return prompt

    def text_question(self, text: str, prompt: str) -> str:
        return f"{prompt}|{text}"

    def pixels(self, images: Sequence[Image.Image]) -> list[int]:
        return [image.width for image in images]

    def answer(
        self, questions: Sequence[str], pixels: Any, max_new_tokens: int
    ) -> list[tuple[str, bool]]:
        self.calls.append((list(questions), pixels))
        texts = [f"{q} {p}" for q, p in zip(questions, pixels or questions, strict=True)]
        return [
            self.answers.get(text, (f"t{len(self.calls)}-{number}", True))
            for number, text in enumerate(texts)
        ]


def pictures(*widths: int) -> list[Image.Image]:
    return [Image.new("RGB", (width, 8)) for width in widths]


def test_each_level_is_written_from_the_text_above() -> None:
    model = ScriptedModel()
    results = InternVLCaptioner(model, LevelsConfig()).caption(pictures(10, 20))
    assert results == [("t1-0", "t2-0", "t3-0", "t4-0"), ("t1-1", "t2-1", "t3-1", "t4-1")]
    assert model.calls[0] == ([DETAILED, DETAILED], [10, 20])
    for number, prompt in enumerate(OTHERS, start=1):
        assert model.calls[number] == ([f"{prompt}|t{number}-0", f"{prompt}|t{number}-1"], None)


def test_an_image_whose_caption_is_refused_is_asked_no_more_and_costs_nobody_else() -> None:
    model = ScriptedModel(answers={f"{DETAILED} 10": ("I'm sorry.", True)})
    bad, good = InternVLCaptioner(model, LevelsConfig()).caption(pictures(10, 20))
    assert isinstance(bad, CaptionError)
    assert bad.reason == "detailed: refusal"
    assert good == ("t1-1", "t2-0", "t3-0", "t4-0")
    assert [len(questions) for questions, _ in model.calls] == [2, 1, 1, 1]


def test_when_no_image_is_left_the_model_is_not_called() -> None:
    model = ScriptedModel(answers={f"{DETAILED} 10": ("a cat on a", False)})
    (bad,) = InternVLCaptioner(model, LevelsConfig()).caption(pictures(10))
    assert str(bad) == "detailed: truncated: a cat on a"
    assert len(model.calls) == 1


def test_the_nano_model_writes_four_true_captions_of_a_scene(
    nano_model: str, make_image: Callable[[int], Image.Image]
) -> None:
    captioner = make_captioner(CaptionerConfig(path=nano_model))
    detailed, *others = captioner.caption([make_image(5)])[0]
    assert parse_caption(detailed)
    for text in others:
        assert {(o.shape, o.color) for o in parse_caption(text)} == {
            (o.shape, o.color) for o in parse_caption(detailed)
        }


def test_an_answer_of_the_nano_model_that_is_cut_off_is_seen_as_truncated(
    nano_model: str, make_image: Callable[[int], Image.Image]
) -> None:
    levels = LevelsConfig(max_new_tokens=MaxNewTokensConfig(detailed=5))
    captioner = make_captioner(CaptionerConfig(path=nano_model, levels=levels))
    (bad,) = captioner.caption([make_image(5)])
    assert isinstance(bad, CaptionError)
    assert bad.reason == "detailed: truncated"


def test_the_fingerprint_changes_with_the_weights_and_the_prompts_only(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "copy", "other")]
    for folder, weights in zip(folders, (b"1", b"1", b"2"), strict=True):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
    one, copy, other = (captioner_fingerprint(CaptionerConfig(path=str(f))) for f in folders)
    assert one == copy != other
    prompts = PROMPTS.model_copy(update={"sentence": "One sentence, please."})
    changed = CaptionerConfig(path=str(folders[0]), levels=LevelsConfig(prompts=prompts))
    assert captioner_fingerprint(changed) != one
    on_gpu = CaptionerConfig(path=str(folders[0]), device="cuda")
    assert captioner_fingerprint(on_gpu) == one


def test_the_hash_of_a_folder_sees_names_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    before = model_fingerprint(str(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    assert model_fingerprint(str(tmp_path)) != before


def test_a_missing_model_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/model"):
        make_captioner(CaptionerConfig(path="/no/such/model"))
