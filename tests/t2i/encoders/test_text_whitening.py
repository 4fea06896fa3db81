"""Whitening of text states: the property that names it, what it is for, and its file."""

from pathlib import Path

import pytest
import torch

from t2i.encoders.text import TextEncoder, load_text_encoder
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.text_whitening import VARIANCE_FLOOR, main, measure_whitening
from t2i.encoders.whitening import FILE_NAME, load_whitening

CAPTIONS = [f"a {color} circle" for color in ("red", "green", "blue")] + ["a white square", ""]


def test_measured_states_become_white_up_to_the_floor(bare: TextEncoder) -> None:
    encoded = bare.encode(CAPTIONS)
    raw_ND = encoded.states[encoded.mask].double()
    white_ND = measure_whitening(bare, CAPTIONS)(raw_ND)
    assert white_ND.mean(0).abs().max() < 1e-3
    # by the definition: eigenvalues v of the covariance become v / (v + floor)
    centred_ND = raw_ND - raw_ND.mean(0)
    variance = torch.linalg.eigvalsh(centred_ND.T @ centred_ND / len(raw_ND))
    centred_ND = (white_ND - white_ND.mean(0)).double()
    whitened = torch.linalg.eigvalsh(centred_ND.T @ centred_ND / len(raw_ND))
    expected = variance / (variance + VARIANCE_FLOOR * variance.mean())
    torch.testing.assert_close(whitened, expected.sort().values, atol=2e-3, rtol=2e-3)


def cosine(encoder: TextEncoder, captions: list[str], token: int) -> float:
    states = encoder.encode(captions).states[:, token]
    return torch.cosine_similarity(states[0], states[1], dim=0).item()


def test_the_shipped_encoder_tells_colors_apart(shipped: TextEncoder, bare: TextEncoder) -> None:
    captions = ["a red circle", "a blue circle"]
    assert shipped.caption_ids(captions[0])[0] == shipped.caption_ids(captions[1])[0]
    assert cosine(bare, captions, token=1) > 0.99
    assert cosine(shipped, captions, token=1) < 0.9


def test_white_states_do_not_depend_on_the_batch(shipped: TextEncoder) -> None:
    together = shipped.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        alone = shipped.encode([caption])
        torch.testing.assert_close(
            together.states[row][together.mask[row]],
            alone.states[0][alone.mask[0]],
            atol=2e-3,
            rtol=2e-3,
        )


def test_the_file_gives_the_same_map(bare: TextEncoder, tmp_path: Path) -> None:
    measured = measure_whitening(bare, CAPTIONS)
    assert load_whitening(str(tmp_path)) is None
    measured.save(tmp_path)
    loaded = load_whitening(str(tmp_path))
    assert loaded is not None
    states = torch.randn(2, 3, bare.width)
    assert torch.equal(loaded(states), measured(states))


def test_measuring_twice_is_refused(shipped: TextEncoder, bare: TextEncoder) -> None:
    with pytest.raises(ValueError, match=f"{FILE_NAME}: remove it to measure anew"):
        measure_whitening(shipped, CAPTIONS)
    with pytest.raises(ValueError, match="no captions"):
        measure_whitening(bare, [])


def test_the_command_writes_beside_the_weights(tmp_path: Path) -> None:
    source = Path(TextEncoderConfig().path)
    folder = tmp_path / "model"
    folder.mkdir()
    for file in source.iterdir():
        if file.name != FILE_NAME:
            (folder / file.name).symlink_to(file)
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(CAPTIONS))
    assert main(["--path", str(folder), "--captions", str(captions)]) == 0
    assert load_text_encoder(TextEncoderConfig(path=str(folder))).whitening is not None
