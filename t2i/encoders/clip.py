"""CLIP: pictures and texts as vectors of length 1 that lie close where they fit.

(Radford et al., "Learning transferable visual models from natural language supervision", 2021.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast, PreTrainedTokenizerFast

from t2i.config import ASSETS_FOLDER
from t2i.encoders.pictures import Preparation, prepare_pictures
from t2i.encoders.random_weights import randomize
from t2i.encoders.weights_hash import folder_hash, no_weights

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_TOKENS = 77
# SHA-256 of model.safetensors, by the name on the hub
PUBLISHED = {
    "openai/clip-vit-large-patch14": (
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"
    )
}


class Clip:
    """A frozen CLIP; make it with `load_clip` or `random_clip`.

    Attributes:
        weights_hash: SHA-256 of the weights' file, or "random-SEED".
        is_published: whether the weights are those of OpenAI.
        size: pixels of a side that its pictures have.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenize: Callable[[list[str]], dict[str, Tensor]],
        weights_hash: str,
        is_published: bool,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenize = tokenize
        self.weights_hash, self.is_published = weights_hash, is_published
        self.size = int(model.config.vision_config.image_size)

    @torch.inference_mode()
    def embed_pictures(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """(B, D) float32 of length 1, on the CPU.

        Args:
            pixels: (H, W, 3) uint8 RGB each; the middle square counts.
        """
        how = Preparation(self.size, crop=True, mean=MEAN, std=STD)
        images = prepare_pictures(pixels, how).to(self.model.device, self.model.dtype)
        pooled = self.model.vision_model(pixel_values=images).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=1).cpu()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, D) float32 of length 1, on the CPU; what is beyond 77 tokens is cut off."""
        tokens = {name: ids.to(self.model.device) for name, ids in self.tokenize([*texts]).items()}
        pooled = self.model.text_model(**tokens).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=1).cpu()


def load_clip(name: str, device: torch.device | str = "cpu") -> Clip:
    """CLIP of a local folder, or of a name on the hub.

    Raises:
        FileNotFoundError: it is neither; says what to get, and where.
    """
    try:
        model = CLIPModel.from_pretrained(name, dtype=torch.float32)
        tokenizer = CLIPTokenizerFast.from_pretrained(name)
    except OSError as error:
        raise no_weights("CLIP", name, error, PUBLISHED.get(name, "")) from None
    found = folder_hash(Path(name)) if Path(name).is_dir() else f"hub:{name}"
    is_published = not Path(name).is_dir() or found in PUBLISHED.values()
    return Clip(model.to(device), _tokenizer(tokenizer), found, is_published)


def random_clip(seed: int, device: torch.device | str = "cpu") -> Clip:
    """A tiny CLIP with random weights, for trying the way; its texts are nano's tokens."""
    path = ASSETS_FOLDER / "nano" / "text_encoder"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    end = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**shape, **heads, **end, "vocab_size": len(tokenizer)},
        vision_config={**shape, **heads, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = CLIPModel(config)
    randomize(model, seed)
    return Clip(model.to(device), _tokenizer(tokenizer), f"random-{seed}", is_published=False)


def _tokenizer(
    tokenizer: CLIPTokenizerFast | PreTrainedTokenizerFast,
) -> Callable[[list[str]], dict[str, Tensor]]:
    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    return tokenize
