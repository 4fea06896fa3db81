"""Images in rows and columns of one picture, with words above and beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CAPTION_HEIGHT = 14  # pixels, of one line of PIL's built-in font
TEXT_WIDTH = 264  # pixels, of the texts beside rows
TEXT_COLUMNS = 42  # characters that fit into it


def paste(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Images of one size in rows of ``columns``."""
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for number, image in enumerate(images):
        grid.paste(image, (number % columns * width, number // columns * height))
    return grid


def headed(grid: Image.Image, names: Sequence[str]) -> Image.Image:
    """A grid with a line above it that names its columns, all of one width."""
    sheet = Image.new("RGB", (grid.width, grid.height + CAPTION_HEIGHT), "white")
    sheet.paste(grid, (0, CAPTION_HEIGHT))
    for number, name in enumerate(names):
        place = (number * grid.width // len(names) + 2, 1)
        ImageDraw.Draw(sheet).text(place, name, fill="black")
    return sheet


def beside_texts(grid: Image.Image, texts: Sequence[str], row_height: int) -> Image.Image:
    """A grid, perhaps headed, with a text at the left of each row of ``row_height`` pixels."""
    top = grid.height - row_height * len(texts)
    sheet = Image.new("RGB", (TEXT_WIDTH + grid.width, grid.height), "white")
    sheet.paste(grid, (TEXT_WIDTH, 0))
    font = ImageFont.load_default(size=12)
    for number, text in enumerate(texts):
        lines = "\n".join(textwrap.wrap(text, TEXT_COLUMNS))
        place = (4, top + (number + 0.5) * row_height)
        ImageDraw.Draw(sheet).text(place, lines, fill="black", font=font, anchor="lm")
    return sheet
