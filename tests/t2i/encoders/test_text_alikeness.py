"""Proves that alike states are found and said: the nano model's raw ones, against its whitened ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from t2i.encoders.text import TextEncoder
from t2i.encoders.text_alikeness import (
    TOO_ALIKE,
    WORDS,
    Alikeness,
    first_difference,
    measure_alikeness,
)
from t2i.encoders.text_config import TextEncoderConfig
from t2i.encoders.text_whitening import main
from t2i.encoders.whitening import FILE_NAME


def test_the_nano_models_raw_colors_are_too_alike_and_its_whitened_ones_are_not(
    shipped: TextEncoder, bare: TextEncoder
) -> None:
    raw, white = measure_alikeness(bare), measure_alikeness(shipped)
    assert "color" in raw.too_alike
    assert raw.cosines["color"] > 0.99
    assert white.too_alike == ()
    assert white.cosines.keys() == raw.cosines.keys() == WORDS.keys()
    assert all(white.variance_shares[n] < raw.variance_shares[n] for n in raw.variance_shares)


def test_the_numbers_are_those_of_a_measurement_by_hand(bare: TextEncoder) -> None:
    template, (left, right) = WORDS["side"]
    captions = [template.format(word) for word in (left, right)]
    ids = [bare.caption_ids(caption) for caption in captions]
    token = next(i for i in range(99) if ids[0][i] != ids[1][i])
    first, second = (bare.encode([caption]).states[0, token] for caption in captions)
    cosine = (first @ second / (first.norm() * second.norm())).item()
    measured = measure_alikeness(bare)
    assert measured.cosines["side"] == pytest.approx(cosine, abs=1e-4)
    states = []
    for template, words in WORDS.values():
        encoded = bare.encode([template.format(word) for word in words])
        states.append(encoded.states[encoded.mask].double())
    values = torch.linalg.eigvalsh(torch.cat(states).T.cov()).flip(0)
    for count, share in measured.variance_shares.items():
        assert share == pytest.approx((values[:count].sum() / values.sum()).item(), rel=1e-6)


def test_the_first_difference_is_found() -> None:
    assert first_difference([1, 2, 3], [1, 2, 4, 5]) == 2


def test_the_verdict_names_the_groups_and_the_way_out() -> None:
    alike = Alikeness({"color": TOO_ALIKE + 0.01, "size": TOO_ALIKE}, {1: 0.5})
    assert alike.too_alike == ("color",)
    assert "one word of color have nearly" in alike.verdict()
    assert "python -m t2i.encoders.text_whitening" in alike.verdict()
    assert "nothing to do" in Alikeness({"color": 0.5}, {1: 0.5}).verdict()


def test_the_command_checks_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the file of the whitening and, after its removal, without."""
    folder = shutil.copytree(TextEncoderConfig().path, tmp_path / "encoder")
    assert main(["--path", str(folder), "--check"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    (folder / FILE_NAME).unlink()
    assert main(["--path", str(folder), "--check"]) == 1
    out = capsys.readouterr().out
    assert "color    cosine 0.99" in out
    assert "share of variance in the strongest directions: 1: " in out
