"""The recipe of InternVL-nano: seeded batches, answers only, phases, and an exact resume."""

from pathlib import Path

import pytest
import torch

from launch.nano.internvl import Trainer, build_parser, learning_rate_factor, main
from launch.nano.internvl_tasks import IGNORED, make_batch, make_polish_batch
from t2i.config import ASSETS_FOLDER
from t2i.encoders.internvl import InternVLProcessor, load_processor
from t2i.encoders.prompts import DETAILED_PROMPT
from t2i.shapes import parse_caption

TINY = ("--vision-steps", "1", "--steps", "2", "--polish-steps", "1", "--batch", "16")


@pytest.fixture(scope="module")
def processor() -> InternVLProcessor:
    return load_processor(str(ASSETS_FOLDER / "nano" / "text_encoder"))


def test_a_batch_is_a_function_of_seed_and_step(processor: InternVLProcessor) -> None:
    batch = make_batch(processor, seed=3, step=5, size=16)
    again = make_batch(processor, seed=3, step=5, size=16)
    other = make_batch(processor, seed=3, step=6, size=16)
    assert all(
        torch.equal(a, b) for a, b in zip(vars(batch).values(), vars(again).values(), strict=True)
    )
    assert not torch.equal(batch.pixels, other.pixels)


def test_only_answers_are_learned(processor: InternVLProcessor) -> None:
    batch = make_polish_batch(processor, seed=0, step=0, size=8)
    assert len(batch.pixels) == len(batch.cells) == 8
    assert len(batch.labels) == 2
    question = len(processor.image_question(DETAILED_PROMPT))
    assert (batch.labels[:, :question] == IGNORED).all()
    answer = batch.labels[0][batch.labels[0] != IGNORED]
    assert answer[-1] == processor.tokenizer.eos_token_id
    num_objects = int((batch.cells[0, :, 0] > 0).sum())
    assert len(parse_caption(processor.tokenizer.decode(answer))) == num_objects


def test_the_learning_rate_warms_up_in_each_phase_and_ends_at_zero() -> None:
    factors = [learning_rate_factor(step, 100, 200, 300) for step in range(600)]
    assert factors[99] == 1
    assert factors[100] == factors[300] == factors[0]
    assert max(factors[299], factors[599]) < 1e-3


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = Trainer(build_parser().parse_args(["--output", str(tmp_path / "whole"), *TINY]))
    whole.run()
    interrupted = Trainer(build_parser().parse_args(["--output", str(tmp_path / "parts"), *TINY]))
    interrupted.run_until(2)
    interrupted.save()
    resumed = Trainer(interrupted.args)
    assert resumed.step == 2
    resumed.run()
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_last_phase_leaves_the_language_model_alone(tmp_path: Path) -> None:
    trainer = Trainer(build_parser().parse_args(["--output", str(tmp_path / "model"), *TINY]))
    trainer.run_until(3)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    changed = {
        name for name, value in trainer.model.state_dict().items() if not value.equal(before[name])
    }
    assert changed
    assert not any("language_model" in name or "lm_head" in name for name in changed)


def test_a_batch_size_that_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        main(["--output", str(tmp_path / "model"), "--batch", "20"])
