"""Proves the picture of samples side by side: which images, in which cells, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.sampling.contact_sheet import CAPTION_HEIGHT, TEXT_WIDTH
from t2i.sampling.image_folder import ImageFolder, plan_images
from t2i.sampling.prompts import builtin_prompts
from t2i.shapes import detect, parse_caption
from t2i.side_by_side import GAP, main, read_columns

PROMPTS = builtin_prompts(4)
SIDE = 128 + GAP


def write(folder: Path, color: str, prompts: list[str] = PROMPTS) -> str:
    """A finished set of samples, all of one colour."""
    jobs = plan_images(prompts, 1, first_seed=0, settings={})
    for job in jobs:
        ImageFolder(folder).write(job, Image.new("RGB", (128, 128), color))
    ImageFolder(folder).finish(jobs)
    return str(folder)


def test_each_row_has_the_truth_and_then_each_folder(tmp_path: Path) -> None:
    none, sg = write(tmp_path / "none", "black"), write(tmp_path / "sg", "white")
    output = tmp_path / "new" / "picture.png"
    assert main([none, sg, "--num", "3", "--output", str(output)]) == 0
    with Image.open(output) as sheet:
        assert sheet.size == (TEXT_WIDTH + 3 * SIDE, CAPTION_HEIGHT + 3 * SIDE)
        for row, prompt in enumerate(PROMPTS[:3]):
            top = CAPTION_HEIGHT + GAP // 2 + SIDE * row
            cells = [
                sheet.crop((left, top, left + 128, top + 128))
                for left in range(TEXT_WIDTH + GAP // 2, sheet.width, SIDE)
            ]
            assert detect(cells[0]) == parse_caption(prompt)
            assert [np.asarray(cell).mean() for cell in cells[1:]] == [0, 255]


def test_folders_of_one_name_keep_their_columns(tmp_path: Path) -> None:
    folders = [Path(write(tmp_path / model / "sg", "black")) for model in ("demo", "nano")]
    prompts, columns = read_columns(folders, 9, with_truth=False)
    assert prompts == PROMPTS
    assert list(columns) == ["demo/sg", "nano/sg"]


def test_prompts_that_tell_no_scene_have_no_truth(tmp_path: Path) -> None:
    folder = write(tmp_path / "sg", "black", ["a dog"])
    with pytest.raises(ValueError, match="'a dog' does not tell a whole scene"):
        main([folder])
    output = tmp_path / "picture.jpg"
    assert main([folder, "--no-truth", "--output", str(output)]) == 0
    with Image.open(output) as sheet:
        assert sheet.format == "JPEG"
        assert sheet.width == TEXT_WIDTH + SIDE


def test_folders_of_other_prompts_are_refused(tmp_path: Path) -> None:
    none, sg = write(tmp_path / "none", "black"), write(tmp_path / "sg", "black", PROMPTS[1:])
    with pytest.raises(ValueError, match=r"sg and .*none hold images of other prompts"):
        main([none, sg])
