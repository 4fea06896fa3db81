"""What picture files of the wild need before they are pictures: upright, in RGB, freed of long texts."""

from __future__ import annotations

import struct

from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTATION = 0x0112  # of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says; as it is where there is none that can be read.

    Unlike ImageOps.exif_transpose it writes no EXIF anew, which fails where another tag is malformed.
    """
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # EXIF of any bytes, answered with errors of any type
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def without_texts(data: bytes) -> bytes:
    """A PNG without its text chunks, of which Pillow refuses long ones; any other file as it is."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length  # length, kind, content, checksum
        if kind not in TEXT_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB of 8 bits; what is transparent lies over white."""
    if image.mode.startswith("I"):  # 16 bit gray: keep the upper eight
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert("RGB")
