"""What the nano InternVL learns from: scenes as images, as answers to prompts, and as cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from t2i.encoders.internvl import InternVLProcessor, encode_text
from t2i.encoders.prompts import DETAILED_PROMPT, DISTILLING_PROMPTS
from t2i.encoders.text_config import PROMPT_PREFIX
from t2i.shapes import (
    BACKGROUNDS,
    COLORS,
    PATTERNS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    captions,
    random_scene,
    render,
)

LENGTH_MULTIPLE = 16
IGNORED = -100
# Of 16 examples of a batch, how many describe an image, shorten a text (each level), and are
# plain captions after the text encoder's prefix.
IMAGE_SHARE, DISTILLING_SHARE, PLAIN_SHARE = 8, 2, 2
# Classes of one cell of the grid, the first being "empty"; then those of the whole image.
CELL_CLASSES = (1 + len(SHAPES), 1 + len(COLORS), 1 + len(SIZES))
IMAGE_CLASSES = (len(BACKGROUNDS), len(PATTERNS))


@dataclass(frozen=True)
class Batch:
    """One step's examples; those with an image come first, in the order of the images.

    Attributes:
        input_ids: (B, L) int64, padded on the right; B may be 0.
        attention_mask: (B, L) int64.
        labels: (B, L) int64, the input ids where they are an answer, else IGNORED.
        pixels: (num_images, 3, H, W) float32.
        cells: (num_images, 9, 3) int64, class of shape, colour and size in each place.
        backgrounds: (num_images, 2) int64, class of tone and pattern.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixels: Tensor
    cells: Tensor
    backgrounds: Tensor

    def to(self, device: str) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def make_batch(processor: InternVLProcessor, seed: int, step: int, size: int) -> Batch:
    """The batch of a step: a function of (seed, step) alone. ``size`` is a multiple of 16."""
    assert size % 16 == 0
    rng = np.random.default_rng((seed, step))
    num_each = size // 16
    scenes, images = random_images(rng, IMAGE_SHARE * num_each)
    examples = [image_example(processor, scene) for scene in scenes]
    for level in range(len(DISTILLING_PROMPTS)):
        for _ in range(DISTILLING_SHARE * num_each):
            examples.append(distilling_example(processor, random_scene(rng), level))
    for _ in range(PLAIN_SHARE * num_each):
        examples.append(plain_example(processor, random_scene(rng), int(rng.integers(4))))
    return _collate(processor, examples, scenes, images)


def make_image_batch(processor: InternVLProcessor, seed: int, step: int, size: int) -> Batch:
    """A step's batch of ``size`` images, without captions."""
    scenes, images = random_images(np.random.default_rng((seed, step)), size)
    return _collate(processor, [], scenes, images)


def make_polish_batch(processor: InternVLProcessor, seed: int, step: int, size: int) -> Batch:
    """A step's batch of ``size`` images: a quarter with captions, the others crowded scenes."""
    rng = np.random.default_rng((seed, step))
    scenes, images = random_images(rng, size // 4)
    examples = [image_example(processor, scene) for scene in scenes]
    crowded = [crowded_scene(rng) for _ in range(size - size // 4)]
    images += [render(scene, rng) for scene in crowded]
    return _collate(processor, examples, [*scenes, *crowded], images)


def crowded_scene(rng: np.random.Generator) -> Scene:
    """A scene with an object in every place, so that one image teaches nine of them."""
    background = random_scene(rng)
    objects = tuple(
        SceneObject(
            shape=SHAPES[rng.integers(len(SHAPES))],
            color=tuple(COLORS)[rng.integers(len(COLORS))],
            size=SIZES[rng.integers(len(SIZES))],
            place=place,
        )
        for place in PLACES
    )
    return Scene(objects, background.pattern, background.tone)


def random_images(rng: np.random.Generator, num: int) -> tuple[list[Scene], list[Image]]:
    """Scenes and their pictures."""
    scenes = [random_scene(rng) for _ in range(num)]
    return scenes, [render(scene, rng) for scene in scenes]


def _collate(
    processor: InternVLProcessor,
    examples: Sequence[tuple[list[int], list[int]]],
    scenes: Sequence[Scene],
    images: Sequence[Image],
) -> Batch:
    input_ids, attention_mask, labels = pad_right(examples, processor.tokenizer.pad_token_id)
    cells, backgrounds = scene_classes(scenes)
    pixels = processor.pixels(images)
    return Batch(input_ids, attention_mask, labels, pixels, cells, backgrounds)


def held_out_scenes(num: int) -> list[tuple[Scene, Image]]:
    """Scenes with their images that no step of the training draws."""
    return list(zip(*random_images(np.random.default_rng(1_000_000_000), num), strict=True))


def image_example(processor: InternVLProcessor, scene: Scene) -> tuple[list[int], list[int]]:
    """Question and answer, as token ids: the detailed caption of an image."""
    question = processor.image_question(DETAILED_PROMPT)
    return question, _answer(processor, captions(scene)[0])


def distilling_example(
    processor: InternVLProcessor, scene: Scene, level: int
) -> tuple[list[int], list[int]]:
    """Question and answer: caption ``level`` + 1 from the text of caption ``level``."""
    texts = captions(scene)
    question = processor.text_question(texts[level], DISTILLING_PROMPTS[level])
    return question, _answer(processor, texts[level + 1])


def plain_example(
    processor: InternVLProcessor, scene: Scene, level: int
) -> tuple[list[int], list[int]]:
    """The text encoder's prefix and a caption after it, without a chat around them."""
    prefix = encode_text(processor.tokenizer, PROMPT_PREFIX)
    return prefix, _answer(processor, f" {captions(scene)[level]}")


def _answer(processor: InternVLProcessor, text: str) -> list[int]:
    return [*encode_text(processor.tokenizer, text), processor.tokenizer.eos_token_id]


def pad_right(
    examples: Sequence[tuple[list[int], list[int]]], pad_token_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, attention mask and labels of `Batch`; lengths are multiples, so that few occur."""
    longest = max((len(question) + len(answer) for question, answer in examples), default=0)
    length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    input_ids = torch.full((len(examples), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for row, (question, answer) in enumerate(examples):
        end = len(question) + len(answer)
        input_ids[row, :end] = torch.tensor(question + answer)
        attention_mask[row, :end] = 1
        labels[row, len(question) : end] = torch.tensor(answer)
    return input_ids, attention_mask, labels


def scene_classes(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """``cells`` and ``backgrounds`` of `Batch`."""
    cells = torch.zeros(len(scenes), len(PLACES), len(CELL_CLASSES), dtype=torch.int64)
    backgrounds = torch.zeros(len(scenes), len(IMAGE_CLASSES), dtype=torch.int64)
    for row, scene in enumerate(scenes):
        for scene_object in scene.objects:
            cells[row, PLACES.index(scene_object.place)] = torch.tensor(
                [
                    1 + SHAPES.index(scene_object.shape),
                    1 + list(COLORS).index(scene_object.color),
                    1 + SIZES.index(scene_object.size),
                ]
            )
        tone, pattern = list(BACKGROUNDS).index(scene.tone), PATTERNS.index(scene.pattern)
        backgrounds[row] = torch.tensor([tone, pattern])
    return cells, backgrounds


class SceneHead(torch.nn.Module):
    """A throw-away head that reads a whole scene off the image tokens in one linear map."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.cells = torch.nn.Linear(num_tokens * width, len(PLACES) * sum(CELL_CLASSES))
        self.backgrounds = torch.nn.Linear(num_tokens * width, sum(IMAGE_CLASSES))

    def loss(self, image_tokens: Tensor, cells: Tensor, backgrounds: Tensor) -> Tensor:
        """Cross entropy per place plus that of the background; tokens are (B, N, D)."""
        flat = image_tokens.flatten(1)
        cell_logits = self.cells(flat).unflatten(1, (len(PLACES), -1)).float()
        background_logits = self.backgrounds(flat).float()
        total = torch.zeros((), device=flat.device)
        for index, logits in enumerate(cell_logits.split(CELL_CLASSES, dim=2)):
            total = total + torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), cells[..., index].flatten()
            )
        for index, logits in enumerate(background_logits.split(IMAGE_CLASSES, dim=1)):
            total = total + torch.nn.functional.cross_entropy(logits, backgrounds[:, index]) / 9
        return total
