"""InternVL through transformers: captions from images, and shorter captions from text.

The same code runs the bundled nano model and OpenGVLab/InternVL3-2B-hf. Only Pillow and torch
are needed: transformers' own `AutoProcessor` for InternVL would ask for torchvision.

Captions and other texts that came with the data are untrusted: they are tokenized so that
"<|im_end|>" or "<IMG_CONTEXT>" inside them are plain characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerBase
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

# Stands for the untrusted text while the chat template is rendered.
TEXT_MARKER = "\x00"


class InternVLProcessor:
    """Turns images and texts into model inputs; built by `load_processor`.

    Attributes:
        tokenizer: the checkpoint's tokenizer, with its chat template.
        image_processor: resizes an image to one tile and normalises it.
        num_image_tokens: tokens that stand for one image.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: GotOcr2ImageProcessorPil,
        num_image_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.num_image_tokens = num_image_tokens

    def image_question(self, prompt: str) -> list[int]:
        """Token ids of one user turn with an image and ``prompt``, up to where the answer starts."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        tokenizer = self.tokenizer
        image = tokenizer.context_image_token * self.num_image_tokens
        image = f"{tokenizer.start_image_token}{image}{tokenizer.end_image_token}"
        turn = self._render(content).replace(tokenizer.context_image_token, image)
        return self._encode_template(turn)

    def text_question(self, text: str, prompt: str) -> list[int]:
        """Token ids of one user turn, ``prompt`` and then the untrusted ``text``, no image."""
        turn = self._render(f"{prompt}\n{TEXT_MARKER}")
        before, after = turn.split(TEXT_MARKER)
        text_ids = encode_text(self.tokenizer, text)
        return self._encode_template(before) + text_ids + self._encode_template(after)

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """Images of any size, as one tile each: (B, 3, H, W) float32, normalised."""
        inputs = self.image_processor(
            [image.convert("RGB") for image in images], crop_to_patches=False, return_tensors="pt"
        )
        return inputs["pixel_values"]

    def _render(self, content: str | list[dict[str, str]]) -> str:
        turn = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)

    def _encode_template(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of an untrusted text; none of them is special."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


class InternVL:
    """A frozen InternVL that writes captions by greedy decoding; see `load_internvl`."""

    def __init__(
        self, model: InternVLForConditionalGeneration, processor: InternVLProcessor
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor

    def describe(self, images: Sequence[Image], prompt: str, max_new_tokens: int) -> list[str]:
        """Answer ``prompt`` about each image. Returns one text per image, in order."""
        question = self.processor.image_question(prompt)
        pixels = self.processor.pixels(images)
        return [text for text, _ in self.answer([question] * len(images), pixels, max_new_tokens)]

    def rewrite(self, texts: Sequence[str], prompt: str, max_new_tokens: int) -> list[str]:
        """Answer ``prompt`` about each text; the vision tower is not run."""
        questions = [self.processor.text_question(text, prompt) for text in texts]
        return [text for text, _ in self.answer(questions, None, max_new_tokens)]

    @torch.inference_mode()
    def answer(
        self, questions: Sequence[list[int]], pixels: Tensor | None, max_new_tokens: int
    ) -> list[tuple[str, bool]]:
        """Answers to tokenized questions, and whether each ended before ``max_new_tokens``.

        Args:
            questions: as `InternVLProcessor.image_question` or `text_question` gives them.
            pixels: (B, 3, H, W) when the questions hold an image.
        """
        tokenizer = self.processor.tokenizer
        input_ids, mask = pad_left(questions, tokenizer.pad_token_id)
        device = self.model.device
        inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
        if pixels is not None:
            inputs["pixel_values"] = pixels.to(device, self.model.dtype)
        generated = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        new_ids = generated[:, input_ids.shape[1] :]
        texts = tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        ended = (new_ids == tokenizer.eos_token_id).any(dim=1).tolist()
        return [(text.strip(), end) for text, end in zip(texts, ended, strict=True)]


def pad_left(sequences: Sequence[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both (B, L) int64, padded before the sequences' starts."""
    length = max(len(sequence) for sequence in sequences)
    input_ids = [[pad_token_id] * (length - len(ids)) + ids for ids in sequences]
    mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in sequences]
    return torch.tensor(input_ids), torch.tensor(mask)


def load_internvl(
    path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> InternVL:
    """Load an InternVL checkpoint in transformers' format from a folder, or by its hub name.

    Raises:
        FileNotFoundError: ``path`` looks like a folder and is not there.
    """
    from transformers import InternVLForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    refuse_missing_folder(path)
    disable_progress_bar()  # it would cut through our own
    model = InternVLForConditionalGeneration.from_pretrained(path, dtype=dtype)
    return InternVL(model.to(device), load_processor(path))


def load_processor(path: str) -> InternVLProcessor:
    """Load the tokenizer, the chat template and the image processor of a checkpoint."""
    from transformers import AutoConfig, AutoTokenizer, ProcessorMixin
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(path)
    # Some checkpoints keep the template with the processor, not with the tokenizer.
    settings, _ = ProcessorMixin.get_processor_dict(path)
    tokenizer.chat_template = settings.get("chat_template") or tokenizer.chat_template
    num_image_tokens = AutoConfig.from_pretrained(path).image_seq_length
    image_processor = GotOcr2ImageProcessorPil.from_pretrained(path)
    return InternVLProcessor(tokenizer, image_processor, num_image_tokens)


def refuse_missing_folder(path: str) -> None:
    """Raise FileNotFoundError when ``path`` is a path on disk, not a hub name, and not there."""
    if path.startswith((".", "/")) and not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no such folder; expected an InternVL checkpoint")
