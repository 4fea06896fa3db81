"""The nano InternVL before training: tokenizer, image processor and a small random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from t2i.encoders.internvl import InternVLProcessor
from t2i.encoders.prompts import DETAILED_PROMPT, DISTILLING_PROMPTS
from t2i.encoders.text_config import PROMPT_PREFIX
from t2i.shapes import captions, random_scene

IMAGE_SIZE = 128
PATCH_SIZE = 16
# Pixel shuffle merges 2 x 2 patches into one token of the language model.
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE // 2) ** 2
TEXT_WIDTH = 192
VOCAB_SIZE = 1024

IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS.values())

# The template of OpenGVLab/InternVL3-2B-hf.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Ordinary words, so that prompts beyond the Shapes world take few tokens too.
GENERAL_TEXT = """
A photo of a cat sleeping on a wooden chair next to a window with morning light.
Two dogs run along the beach, and behind them the sea is dark blue under a cloudy sky.
A painting of an old house in the mountains with a garden full of small orange flowers.
The woman in the black dress is holding a cup of coffee and looking at the camera.
A man with a hat rides a bicycle through the narrow street of a city at night.
Three apples, a banana and a glass of water stand on the kitchen table.
A close portrait of a young person with long brown hair and green eyes, soft background.
An oil painting of ships in a storm; a digital illustration of a robot in a forest.
The sign above the door says open, written in large white letters on a red wall.
A bowl of soup with vegetables, bread and cheese, seen from above.
The purple car is parked in front of a tall building made of glass and steel.
Children are playing with a ball in the park while birds fly over the trees.
A pink and gold sunset over the lake; the water reflects the mountains and the moon.
Highly detailed, sharp focus, natural colors, high quality photograph, wide angle view.
An image with a smooth texture, a rough surface, a pattern of dots and lines.
There are four books on the left side of the desk and five pens to the right of them.
The circle is above the square, the triangle is below the cross, and both are small.
A black and white drawing of a horse, a cow and a sheep on a green field.
He wears a blue shirt, she wears a yellow coat, they walk through the snow.
One object is in the middle, two objects are near the corner, none at the bottom.
What is shown in this picture? How many things are there, and what color are they?
"""


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text survives encoding and decoding unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [PROMPT_PREFIX, DETAILED_PROMPT, *DISTILLING_PROMPTS, "user\n", "assistant\n"]
    rng = np.random.default_rng(seed)
    shapes_text = [text for _ in range(500) for text in captions(random_scene(rng))]
    tokenizer.train_from_iterator([*shapes_text, *prompts * 50, *[GENERAL_TEXT] * 5], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_processor(folder: Path, seed: int) -> InternVLProcessor:
    """Tokenizer and image processor, saved to ``folder`` and used as read back from there."""
    build_tokenizer(seed).save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = GotOcr2ImageProcessorPil(size=size, crop_to_patches=False)
    image_processor.save_pretrained(folder)
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": NUM_IMAGE_TOKENS}
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return InternVLProcessor(
        AutoTokenizer.from_pretrained(folder), image_processor, NUM_IMAGE_TOKENS
    )


def build_model(processor: InternVLProcessor, seed: int) -> InternVLForConditionalGeneration:
    """A random InternVL of about 3M parameters: a ViT of width 128, a Qwen2 of width 192."""
    tokenizer = processor.tokenizer
    config = InternVLConfig(
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "layer_scale_init_value": 1.0,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=NUM_IMAGE_TOKENS,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return InternVLForConditionalGeneration(config)
