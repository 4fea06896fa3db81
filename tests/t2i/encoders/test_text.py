"""The text encoder: a caption's states depend on the caption alone, and any caption works."""

import pytest
import torch

from t2i.encoders import text
from t2i.encoders.internvl import load_internvl
from t2i.encoders.text import TextEncoder, load_text_encoder
from t2i.encoders.text_config import TextEncoderConfig

CAPTIONS = ("A red circle on a white background.", "", "blue cross, beige " * 10)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    """Without whitening: the bare states of the language model."""
    loaded = load_text_encoder(TextEncoderConfig())
    return TextEncoder(loaded.language_model, loaded.tokenizer, loaded.config)


def test_states_have_the_encoders_width_and_a_length_in_whole_buckets(
    encoder: TextEncoder,
) -> None:
    encoded = encoder.encode(CAPTIONS)
    num_captions, length, width = encoded.states.shape
    assert (num_captions, width) == (len(CAPTIONS), encoder.width)
    assert length % encoder.config.bucket == 0
    assert encoded.mask.shape == (num_captions, length)
    assert encoded.mask.dtype == torch.bool


def test_states_do_not_depend_on_the_batch_or_the_padding(encoder: TextEncoder) -> None:
    together = encoder.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        torch.testing.assert_close(
            together.states[row][together.mask[row]], alone.states[0][alone.mask[0]]
        )


def test_only_captions_of_one_padded_length_run_together(encoder: TextEncoder) -> None:
    shapes = []
    handle = encoder.language_model.register_forward_pre_hook(
        lambda _model, _args, inputs: shapes.append(tuple(inputs["input_ids"].shape)),
        with_kwargs=True,
    )
    encoded = encoder.encode([CAPTIONS[0], CAPTIONS[2], "", CAPTIONS[0]])
    handle.remove()
    num_prefix, longest = len(encoder.prefix_ids), encoded.mask.shape[1]
    assert sorted(shapes) == [(1, num_prefix + longest), (3, num_prefix + encoder.config.bucket)]
    assert longest > encoder.config.bucket


def test_the_empty_caption_has_one_state(encoder: TextEncoder) -> None:
    assert encoder.encode([""]).mask.sum() == 1


def test_the_prefix_is_read_but_its_states_are_dropped(encoder: TextEncoder) -> None:
    caption = CAPTIONS[0]
    num_tokens = int(encoder.encode([caption]).mask.sum())
    whole = load_internvl(encoder.config.path)
    ids = encoder.prefix_ids + encoder.caption_ids(caption)
    states = whole.model.model(input_ids=torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(
        encoder.encode([caption]).states[0, :num_tokens], states[0, len(encoder.prefix_ids) :]
    )
    assert whole.processor.tokenizer.decode(ids).startswith(f"{encoder.config.prefix} {caption}")


def test_a_long_caption_is_cut_and_still_ends_with_the_end_token(encoder: TextEncoder) -> None:
    ids = encoder.caption_ids("red " * 1000)
    assert len(ids) == encoder.config.max_tokens
    assert ids[-1] == encoder.tokenizer.eos_token_id


def test_cut_captions_are_counted_and_told_once(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit nothing is cut: 127 words and the end token."""
    warnings: list[str] = []
    monkeypatch.setattr(text.LOG, "warning", lambda line, *parts: warnings.append(line % parts))
    limit = encoder.config.max_tokens
    captions = ["red " * number for number in (limit, limit - 1, limit + 99)]
    assert [len(encoder.whole_ids(caption)) - limit for caption in captions] == [2, 1, 101]
    whole = encoder.tokenizer.decode(encoder.whole_ids(captions[0])[: limit - 1])
    assert len(encoder.whole_ids(whole.strip())) == limit
    assert encoder.encode([whole.strip(), ""]).num_cut == 0
    encoder.warn_of_cut([whole.strip(), ""])
    assert encoder.encode([captions[0], "", captions[2]]).num_cut == 2
    assert warnings == []
    encoder.warn_of_cut([captions[0], "", captions[2]])
    encoder.warn_of_cut(captions)
    (warning,) = warnings
    assert warning.startswith(f"2 of 3 prompts are longer than the {limit} tokens")
    assert "the longest by 101" in warning
    assert "raise t2i.encoders.text.max_tokens" in warning


def test_special_tokens_in_a_caption_are_plain_characters(encoder: TextEncoder) -> None:
    ids = encoder.caption_ids("<|im_end|><IMG_CONTEXT>")
    assert not set(ids[:-1]) & set(encoder.tokenizer.all_special_ids)


def test_a_layer_can_be_trained_on_the_states_but_the_encoder_not(encoder: TextEncoder) -> None:
    layer = torch.nn.Linear(encoder.width, 1)
    layer(encoder.encode(CAPTIONS).states).sum().backward()
    assert layer.weight.grad is not None
    assert not any(p.requires_grad for p in encoder.language_model.parameters())


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/model"):
        load_text_encoder(TextEncoderConfig(path="/no/such/model"))
