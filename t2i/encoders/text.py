"""The frozen text encoder: last hidden states of InternVL's language model, whitened.

A caption is read behind a fixed prefix, whose own states are dropped, and is closed by the end
token: its state has seen the whole caption, and the empty caption has that one position.
Source: Sparse Guidance, section 4.1 and supplementary A.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from t2i.console import get_logger
from t2i.encoders.internvl import encode_text, refuse_missing_folder
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.whitening import TextWhitening, load_whitening

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = get_logger("text")


@dataclass(frozen=True)
class TextStates:
    """Encoded captions, padded on the right.

    Attributes:
        states: (B, L, D) in the encoder's dtype, float32 when whitened; L is a multiple of the bucket. What stands in
            padded positions means nothing.
        mask: (B, L) bool, true for a caption's tokens; at least one in each row.
        num_cut: how many of the captions were longer than the encoder reads.
    """

    states: Tensor
    mask: Tensor
    num_cut: int = 0


class TextEncoder:
    """A frozen language model that encodes captions; see `load_text_encoder`.

    Attributes:
        width: D, the size of one state.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: TextEncoderConfig,
        whitening: TextWhitening | None = None,
    ) -> None:
        self.language_model = language_model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.config = config
        self.whitening = whitening
        self.width: int = language_model.config.hidden_size
        self.prefix_ids = encode_text(tokenizer, config.prefix)
        self._has_warned = False

    # Not inference_mode: layers that are trained on the states keep them for their backward pass.
    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> TextStates:
        """Encode captions (any text, "" too). A state depends on its own caption alone.

        Captions of one padded length run together: few are long, and all of them padded to the
        longest would cost half as much again.
        """
        whole = [self.whole_ids(caption) for caption in captions]
        texts = [self._cut(ids) for ids in whole]
        rows_by_length: dict[int, list[int]] = {}
        for row, ids in enumerate(texts):
            rows_by_length.setdefault(self._padded(len(ids)), []).append(row)
        device, longest = self.language_model.device, max(rows_by_length)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool, device=device)
        states: Tensor | None = None
        for length, rows in rows_by_length.items():
            own_states, own_mask = self._encode_padded([texts[row] for row in rows], length)
            if states is None:
                states = own_states.new_zeros(len(texts), longest, self.width)
            at = torch.tensor(rows, device=device)
            states[at, :length] = own_states
            mask[at, :length] = own_mask
        assert states is not None
        num_cut = sum(len(ids) > self.config.max_tokens for ids in whole)
        return TextStates(states, mask, num_cut)

    def _encode_padded(self, texts: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
        """States (B, length, D) and mask of captions' token ids, behind the prefix."""
        num_prefix = len(self.prefix_ids)
        input_ids = torch.full((len(texts), num_prefix + length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(texts):
            sequence = [*self.prefix_ids, *ids]
            input_ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        device = self.language_model.device
        states = self.language_model(
            input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).last_hidden_state[:, num_prefix:]
        if self.whitening is not None:
            states = self.whitening(states)
        return states, mask[:, num_prefix:].bool().to(device)

    def _padded(self, num_tokens: int) -> int:
        """The next multiple of the bucket."""
        return -(-num_tokens // self.config.bucket) * self.config.bucket

    def whole_ids(self, caption: str) -> list[int]:
        """Token ids of a caption of any length, with the end token."""
        # A space parts the caption from the prefix.
        separated = f" {caption}" if caption and self.prefix_ids else caption
        return [*encode_text(self.tokenizer, separated), self.tokenizer.eos_token_id]

    def caption_ids(self, caption: str) -> list[int]:
        """Token ids of a caption, cut to ``max_tokens`` with the end token."""
        return self._cut(self.whole_ids(caption))

    def warn_of_cut(self, prompts: Sequence[str]) -> None:
        """Log how many of some prompts are cut and by how much; once, at the first that are."""
        if self._has_warned:
            return
        limit = self.config.max_tokens
        cut = [length for prompt in prompts if (length := len(self.whole_ids(prompt))) > limit]
        if cut:
            self._has_warned = True
            LOG.warning(
                "%d of %d prompts are longer than the %d tokens that the text encoder reads, the "
                "longest by %d: their ends are cut off. Shorten them; or, if the model was trained "
                "on captions as long, raise t2i.encoders.text.max_tokens (text_encoder.max_tokens "
                "in a pipeline folder's model_index.json)",
                *(len(cut), len(prompts), limit, max(cut) - limit),
            )

    def _cut(self, ids: list[int]) -> list[int]:
        """At most ``max_tokens`` of a caption's ids; the last one stays."""
        limit = self.config.max_tokens
        return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def load_text_encoder(
    config: TextEncoderConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """Load the language model of the InternVL checkpoint that ``config.path`` names.

    The checkpoint's vision tower is dropped. States are whitened when the checkpoint's folder says
    how, see `t2i.encoders.text_whitening`.

    Raises:
        FileNotFoundError: ``config.path`` looks like a folder and is not there.
    """
    from transformers import AutoTokenizer, InternVLForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would cut through our own
    refuse_missing_folder(config.path)
    model = InternVLForConditionalGeneration.from_pretrained(config.path, dtype=dtype)
    language_model = model.model.language_model.to(device)
    tokenizer = AutoTokenizer.from_pretrained(config.path)
    return TextEncoder(language_model, tokenizer, config, load_whitening(config.path))
