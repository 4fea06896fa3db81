"""Proves where a contact sheet puts images, names of columns and texts of rows."""

from __future__ import annotations

from PIL import Image, ImageChops

from t2i.sampling.contact_sheet import CAPTION_HEIGHT, TEXT_WIDTH, beside_texts, headed, paste

RED, BLUE = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (60, 40), "blue")


def is_blank(picture: Image.Image) -> bool:
    return ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox() is None


def test_images_stand_in_rows() -> None:
    grid = paste([RED, BLUE, BLUE], columns=2)
    assert grid.size == (120, 80)
    corners = [grid.getpixel(place) for place in ((59, 39), (60, 0), (0, 40), (60, 40))]
    assert corners == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 255, 255)]


def test_names_stand_above_their_columns() -> None:
    sheet = headed(paste([RED, BLUE], columns=2), ["cfg", ""])
    assert sheet.size == (120, 40 + CAPTION_HEIGHT)
    assert not is_blank(sheet.crop((0, 0, 60, CAPTION_HEIGHT)))
    assert is_blank(sheet.crop((60, 0, 120, CAPTION_HEIGHT)))


def test_texts_stand_beside_their_rows_below_the_heading() -> None:
    grid = headed(paste([RED, BLUE], columns=1), ["none"])
    sheet = beside_texts(grid, ["", "a blue one"], row_height=40)
    assert sheet.size == (TEXT_WIDTH + 60, 80 + CAPTION_HEIGHT)
    assert is_blank(sheet.crop((0, 0, TEXT_WIDTH, 40 + CAPTION_HEIGHT)))
    assert not is_blank(sheet.crop((0, 40 + CAPTION_HEIGHT, TEXT_WIDTH, sheet.height)))
    assert sheet.getpixel((TEXT_WIDTH, CAPTION_HEIGHT)) == (255, 0, 0)


def test_a_long_text_stays_left_of_its_row() -> None:
    grid = paste([Image.new("RGB", (128, 128), "white")], columns=1)
    sheet = beside_texts(grid, ["a magenta square at the bottom right " * 8], row_height=128)
    assert is_blank(sheet.crop((TEXT_WIDTH, 0, sheet.width, 128)))
