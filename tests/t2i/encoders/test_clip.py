"""Proves that CLIP sees what transformers' own processor shows it, that its vectors have length 1, and
that none depends on its batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from t2i.config import ASSETS_FOLDER
from t2i.encoders.clip import MEAN, STD, load_clip, random_clip
from t2i.encoders.pictures import Preparation, prepare_pictures
from t2i.encoders.weights_hash import file_hash


def pictures(num: int = 3, side: int = 40) -> list[np.ndarray]:
    numbers = np.random.default_rng(0)
    return [numbers.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(num)]


@pytest.mark.parametrize("shape", [(40, 40), (300, 300), (224, 224)])
def test_pictures_are_prepared_as_the_reference_does(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = prepare_pictures([picture], Preparation(224, True, MEAN, STD))
    reference = CLIPImageProcessorPil()(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, reference, atol=2e-6, rtol=0)


def test_the_middle_square_counts() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = pictures(1, 20)[0]
    how = Preparation(20, True, (0, 0, 0), (1, 1, 1))
    torch.testing.assert_close(
        prepare_pictures([wide], how), prepare_pictures([wide[:, 20:40]], how), atol=0, rtol=0
    )
    squeezed = prepare_pictures([wide], Preparation(20, False, (0, 0, 0), (1, 1, 1)))
    assert squeezed[0, :, :, :6].abs().max() == 0


def test_vectors_have_length_1_and_are_the_models() -> None:
    clip = random_clip(0)
    seen, read = clip.embed_pictures(pictures()), clip.embed_texts(["a red circle", "blue"])
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(read.norm(dim=1), torch.ones(2))
    how = Preparation(clip.size, True, MEAN, STD)
    output = clip.model(pixel_values=prepare_pictures(pictures(), how), **clip.tokenize(["blue"]))
    torch.testing.assert_close(output.image_embeds, seen, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.text_embeds[0], read[1], atol=1e-6, rtol=0)


def test_the_middle_of_a_wide_picture_is_what_clip_sees() -> None:
    (middle,), clip = pictures(1, 40), random_clip(0)
    wide = np.concatenate((np.zeros_like(middle), middle, np.zeros_like(middle)), axis=1)
    torch.testing.assert_close(clip.embed_pictures([wide]), clip.embed_pictures([middle]))


def test_no_vector_depends_on_its_batch() -> None:
    clip = random_clip(0)
    torch.testing.assert_close(
        clip.embed_pictures(pictures())[1:2],
        clip.embed_pictures(pictures()[1:2]),
        atol=1e-6,
        rtol=0,
    )
    texts = ["a red circle", "blue " * 200]
    torch.testing.assert_close(
        clip.embed_texts(texts)[:1], clip.embed_texts(texts[:1]), atol=1e-6, rtol=0
    )


def test_a_folder_is_told_by_its_hash(tmp_path: Path) -> None:
    clip = random_clip(0)
    clip.model.save_pretrained(tmp_path)
    tokenizer = ASSETS_FOLDER / "nano" / "text_encoder"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, tmp_path)
    loaded = load_clip(str(tmp_path))
    assert loaded.weights_hash == file_hash(tmp_path / "model.safetensors")
    assert not loaded.is_published
    assert torch.equal(loaded.embed_pictures(pictures()), clip.embed_pictures(pictures()))


def test_the_same_seed_gives_the_same_network() -> None:
    one, same, other = (random_clip(seed).embed_pictures(pictures()) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
