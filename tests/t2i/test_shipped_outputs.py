"""Proves that the shipped nano weights compute what they computed before: the text encoder's states, the
VAE's pictures, one velocity of each guidance method, and a sampled image equal a golden file.

In fp32 with one thread. CPUs add in different orders, so 1e-3 of the largest value is allowed. The
second network of ag and ag+sg is the first with seeded noise on its weights. Where weights are
replaced, or a change of the outputs is meant, write the file anew:

    SPARSE_T2I_WRITE_GOLDEN=1 python -m pytest tests/t2i/test_shipped_outputs.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i import rng
from t2i.config import ASSETS_FOLDER
from t2i.guidance.methods import METHODS, make_guidance
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.sampler import GuidedField
from t2i.sampling.sampling_config import RANDOM_PROMPTS

# all but those that ask for an internal head, which the shipped network does not have
OWN_METHODS = [name for name in METHODS if not make_guidance(name).weakens("internal")]
GOLDEN = Path(__file__).with_name("golden") / "shipped_outputs.json"
TOLERANCE = 1e-3  # of the largest value
NANO = ASSETS_FOLDER / "nano"
PROMPT = "A large red circle is at the left. A small blue square is at the right."
SEEDS = [3, 4]
# a step in the middle, where all branches have tokens to drop and schedules are between their ends
NUM_STEPS, STEP, TIMESTEP = 10, 4, 0.4
NOISE = 0.02  # of the second network's weights


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipeline(one_thread: None) -> TextToImagePipeline:
    pipeline = TextToImagePipeline.from_pretrained(
        NANO, dtype=torch.float32, aux=NANO / "transformer"
    )
    assert pipeline.aux is not None
    with torch.no_grad():
        for name, parameter in pipeline.aux.named_parameters():
            noise = rng.normal(0, name, 0, torch.tensor([0]), parameter.shape)[0]
            parameter += NOISE * noise
    return pipeline


def noisy_latents() -> Tensor:
    return rng.normal(0, "shipped outputs", 0, torch.tensor(SEEDS), (4, 16, 16))


def pooled(images: Tensor, side: int = 4) -> list[float]:
    """Means over a grid of side x side places, (B, C, side, side), rounded to what is compared."""
    return [round(value, 5) for value in F.adaptive_avg_pool2d(images, side).flatten().tolist()]


def text_states(pipeline: TextToImagePipeline) -> list[float]:
    """Of a prompt and of the empty one: the states of their last token, by 24 groups of channels."""
    texts = pipeline.text_encoder.encode([PROMPT, ""])
    last_B = texts.mask.sum(dim=1) - 1
    states_BD = texts.states[torch.arange(2), last_B]
    return [round(value, 5) for value in F.adaptive_avg_pool1d(states_BD, 24).flatten().tolist()]


def decoded(pipeline: TextToImagePipeline) -> list[float]:
    return pooled(pipeline.vae.decode(0.5 * noisy_latents()[:1]), side=8)


def sampled(pipeline: TextToImagePipeline) -> list[float]:
    """A thumbnail of 8 x 8 of an image of 128 x 128, four steps of CFG."""
    images = pipeline(
        PROMPT, guidance="cfg", num_inference_steps=4, seeds=SEEDS[:1], output_type="pt"
    ).images
    assert isinstance(images, Tensor)
    return pooled(images, side=8)


def guided(pipeline: TextToImagePipeline, name: str) -> list[float]:
    """The velocity of two images of one prompt, at one step; APG remembers the step before."""
    guidance, seeds_B = make_guidance(name), torch.tensor(SEEDS)
    texts = pipeline.encode([PROMPT], 2, guidance, SEEDS, RANDOM_PROMPTS, "per_step")
    assert pipeline.aux is not None
    networks = {"main": pipeline.transformer, "aux": pipeline.aux}
    field, x_BCHW = GuidedField(networks, texts, guidance, seeds_B, NUM_STEPS), noisy_latents()
    if guidance.new_combine is not None:
        field(x_BCHW.flip(0), TIMESTEP - 0.1, STEP - 1)
    return pooled(field(x_BCHW, TIMESTEP, STEP))


def outputs(pipeline: TextToImagePipeline, name: str) -> list[float]:
    others = {"text states": text_states, "decoded": decoded, "sampled": sampled}
    with torch.inference_mode():
        return others[name](pipeline) if name in others else guided(pipeline, name)


def is_golden(name: str, found: list[float]) -> bool:
    golden = json.loads(GOLDEN.read_text())["outputs"][name]
    largest = max(map(abs, golden))
    return found == pytest.approx(golden, rel=0, abs=TOLERANCE * largest)


@pytest.mark.parametrize("name", ["text states", "decoded", "sampled", *OWN_METHODS])
def test_the_shipped_weights_compute_what_they_computed_before(
    pipeline: TextToImagePipeline, name: str
) -> None:
    found = outputs(pipeline, name)
    if "SPARSE_T2I_WRITE_GOLDEN" in os.environ:
        written = json.loads(GOLDEN.read_text())["outputs"] if GOLDEN.exists() else {}
        content = {"tolerance": TOLERANCE, "outputs": {**written, name: found}}
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(content) + "\n")
    assert is_golden(name, found), found


def test_no_two_methods_are_golden_for_one_another() -> None:
    """So each row tells its method's branches and weights from those of all others."""
    golden = json.loads(GOLDEN.read_text())["outputs"]
    pairs = [(one, other) for one in OWN_METHODS for other in OWN_METHODS if one != other]
    assert [pair for pair in pairs if is_golden(pair[0], golden[pair[1]])] == []
