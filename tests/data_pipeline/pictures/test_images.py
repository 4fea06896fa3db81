"""Proves safe decoding: what is accepted comes out upright and RGB, what is not has a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipeline.pictures.images import ImageConfig, ImageError, decode_image, store_image

CONFIG = ImageConfig(min_side=8)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG header of these sides with next to no pixels behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def reason_of(data: bytes, config: ImageConfig = CONFIG) -> str:
    with pytest.raises(ImageError) as error:
        decode_image(data, config)
    return error.value.reason


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1"])
def test_each_mode_of_a_png_becomes_rgb(mode: str) -> None:
    image = decode_image(encoded(noise().convert(mode), "PNG"), CONFIG)
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_cmyk_jpegs_become_rgb_of_the_same_colour() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    pixel = decode_image(encoded(red, "JPEG"), CONFIG).getpixel((8, 8))
    assert np.allclose(pixel, (220, 30, 40), atol=8)


def test_sixteen_bit_gray_keeps_its_brightness() -> None:
    gray = Image.fromarray(np.full((16, 16), 0x8000, np.uint16))
    assert decode_image(encoded(gray, "PNG"), CONFIG).getpixel((0, 0)) == (128, 128, 128)


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert decode_image(encoded(clear, "PNG"), CONFIG).getpixel((8, 8)) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    data = encoded(noise(40, 30), "JPEG", exif=exif)
    assert decode_image(data, CONFIG).size == (30, 40)
    stored = store_image(data, CONFIG)
    assert (stored.width, stored.height, stored.data) == (30, 40, data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_pictures_cut_anywhere_are_undecodable(image_format: str) -> None:
    data = encoded(noise(), image_format)
    for share in (0.02, 0.3, 0.55, 0.9):
        assert reason_of(data[: int(share * len(data))]) == "undecodable"


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"\xff\xd8\xff" + bytes(500), b"GIF89a"])
def test_what_is_no_picture_is_undecodable(data: bytes) -> None:
    assert reason_of(data) == "undecodable"


def test_a_damaged_checksum_is_undecodable() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert reason_of(bytes(data)) == "undecodable"


@pytest.mark.parametrize("side", [11_000, 30_000])
def test_pixel_bombs_are_refused_by_their_header(side: int) -> None:
    assert reason_of(png_that_claims(side, side)) == "too_large"


def test_limits_of_bytes_and_sides_have_their_reasons() -> None:
    data = encoded(noise(40, 30), "PNG")
    assert reason_of(data, ImageConfig(max_bytes=len(data) - 1)) == "too_large"
    assert reason_of(data, ImageConfig(min_side=8, max_pixels=40 * 30 - 1)) == "too_large"
    assert reason_of(data, ImageConfig(min_side=31)) == "too_small"
    assert decode_image(data, ImageConfig(min_side=30)).size == (40, 30)


@pytest.mark.parametrize(
    ("image_format", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")]
)
def test_original_bytes_are_kept_where_nothing_has_to_change(
    image_format: str, extension: str
) -> None:
    data = encoded(noise(), image_format)
    stored = store_image(data, ImageConfig(min_side=8, max_side=40))
    assert (stored.extension, stored.data) == (extension, data)


def test_gif_and_bmp_are_stored_as_png() -> None:
    for image_format in ("GIF", "BMP"):
        stored = store_image(encoded(noise(), image_format), CONFIG)
        assert (stored.extension, stored.width, stored.height) == ("png", 40, 30)


def test_long_sides_are_scaled_down_in_the_own_format_or_the_wanted_one() -> None:
    data = encoded(noise(400, 100), "PNG")
    own = store_image(data, ImageConfig(max_side=50, min_side=8))
    assert (own.extension, own.width, own.height) == ("png", 50, 12)
    wanted = store_image(data, ImageConfig(max_side=50, min_side=8, encoding="webp"))
    assert wanted.extension == "webp"
    with Image.open(io.BytesIO(wanted.data)) as image:
        assert (image.format, image.size) == ("WEBP", (50, 12))
