"""Proves that pictures stand upright whatever else their EXIF says, and that long texts are dropped."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from data_pipeline.pictures.images import ImageConfig, decode_image
from t2i.evaluation.picture_sets import open_set, read_batches
from t2i.picture_files import ORIENTATION, upright, without_texts

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "images"
RIGHT_SIZES = {
    "exif_good.jpg": (96, 128),
    "exif_rational_m1_0.jpg": (96, 128),
    "exif_ascii_number.jpg": (96, 128),
    "png_exif_garbage.png": (128, 96),
    "png_big_ztxt.png": (128, 96),
}


def picture() -> Image.Image:
    image = Image.new("RGB", (4, 2))
    image.putdata([(n, 0, 0) for n in range(8)])
    return image


def png(image: Image.Image, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    with Image.open(io.BytesIO(png(picture(), exif=exif))) as image:
        ours, theirs = upright(image), ImageOps.exif_transpose(image)
        assert ours.size == theirs.size
        assert ours.tobytes() == theirs.tobytes()


def test_texts_are_dropped_and_nothing_else() -> None:
    texts = PngInfo()
    for number in range(3):
        texts.add_itxt("key", "word " * number)
        texts.add_text("other", "word", zip=number == 1)
    written = png(picture(), pnginfo=texts, dpi=(72, 72))
    stripped = without_texts(written)
    assert len(stripped) < len(written)
    with Image.open(io.BytesIO(stripped)) as image:
        assert image.tobytes() == picture().tobytes()
        assert set(image.info) == {"dpi"}
    assert without_texts(png(picture())) == png(picture())
    assert without_texts(written[:40]) == written[:40][: len(without_texts(written[:40]))]
    assert without_texts(b"\xff\xd8 a JPEG") == b"\xff\xd8 a JPEG"


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared is not here")
@pytest.mark.parametrize("name", RIGHT_SIZES)
def test_pictures_that_tools_trip_over(name: str, tmp_path: Path) -> None:
    data = (CASES / name).read_bytes()
    assert decode_image(data, ImageConfig(min_side=1)).size == RIGHT_SIZES[name]
    (tmp_path / name).write_bytes(data)
    ((found,),) = read_batches(open_set(tmp_path), 1, "refuse")
    assert found.pixels_HW3.shape[:2] == RIGHT_SIZES[name][::-1]
