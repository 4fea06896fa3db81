"""Proves the gallery: pictures beside their captions, counts and reasons, nothing unescaped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from recaption.gallery import main, spread
from recaption.granularity import LEVELS
from tests.chromium import WIDTH, look_at

ATTACK = "<script>alert(1)</script>"


@pytest.fixture
def captions(images: StepOutput, tmp_path: Path) -> StepOutput:
    output = StepOutput.open(str(tmp_path / "captions"))
    output.begin({})
    for shard_id in images.committed():
        with output.writer(shard_id) as writer:
            for sample in images.read(shard_id):
                writer.add(outcome(sample.key))
            writer.commit()
    return output


def outcome(key: str) -> Outcome:
    if key == "00001000001":
        return Outcome(Row(key, "failed", "undecodable", detail=ATTACK))
    if key == "00002000000":
        return Outcome(Row(key, "failed", "detailed: empty", detail="saw nothing"))
    texts = [f"{level} of {key} {ATTACK}" for level in LEVELS]
    content = {"captions": texts, "levels": LEVELS, "model": "test"}
    return Outcome(Row(key, "ok"), Sample(key, {"json": json.dumps(content).encode()}))


def make(images: StepOutput, captions: StepOutput, tmp_path: Path, *options: str) -> str:
    page = tmp_path / "page.html"
    arguments = ["--images", images.url, "--captions", captions.url, "--output", str(page)]
    assert main([*arguments, *options]) == 0
    return page.read_text()


@pytest.mark.slow
def test_a_phone_shows_the_page(images: StepOutput, captions: StepOutput, tmp_path: Path) -> None:
    (tmp_path / "looking").mkdir()
    seen = look_at(make(images, captions, tmp_path), tmp_path / "looking")
    assert (seen.errors, seen.images, seen.broken) == ([], 5, 0)
    assert seen.width <= WIDTH


def test_the_page_shows_pictures_captions_counts_and_reasons(
    images: StepOutput, captions: StepOutput, tmp_path: Path
) -> None:
    page = make(images, captions, tmp_path)
    for level in LEVELS:
        assert page.count(f"<dd>{level} of ") == 4
    # Four with captions and one that failed; the cut picture has no thumbnail.
    assert page.count("data:image/jpeg;base64,") == 5
    assert page.count("no picture") == 1
    assert "<td>captioned</td><td>4</td>" in page
    assert "<td>failed: undecodable</td><td>1</td>" in page
    assert "saw nothing" in page


def test_texts_are_escaped_and_nothing_is_loaded_from_elsewhere(
    images: StepOutput, captions: StepOutput, tmp_path: Path
) -> None:
    page = make(images, captions, tmp_path)
    assert "<script" not in page
    assert "http" not in page


def test_the_number_of_cards_is_bounded_and_spread_over_the_shards(
    images: StepOutput, captions: StepOutput, tmp_path: Path
) -> None:
    page = make(images, captions, tmp_path, "--num", "2", "--num-failed", "1")
    assert page.count("<article>") == 2
    assert page.count('<article class="failed">') == 1
    assert "of 00000000000 " in page
    assert "of 00001000000 " in page
    assert "<article" not in make(images, captions, tmp_path, "--num", "0", "--num-failed", "0")


def test_no_captions_are_told_with_the_way_out(images: StepOutput, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run recaption first"):
        make(images, StepOutput.open(str(tmp_path / "none")), tmp_path)


def test_spread_takes_even_distances() -> None:
    keys = [str(number) for number in range(10)]
    assert spread(keys, 3) == ["0", "3", "6"]
    assert spread(keys, 99) == keys
