"""Safe decoding of pictures from the web: whatever the bytes are, a picture or a typed refusal.

Only web formats are tried, sizes are checked before pixels are unpacked, cut files are refused.
Every reader of image shards decodes with `decode_image`, so that orientation and transparency
are settled in one place.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from t2i.config import Section
from t2i.picture_files import as_rgb, upright, without_texts

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# Pillow's name of a format that is kept as it came -> extension in a shard.
KEPT_FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
IMAGE_EXTENSIONS = ("jpg", "png", "webp")
SAVE_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
# Ledger columns of a stored picture (`StoredImage.columns`), and their Arrow types.
STORED_COLUMNS = {
    "sha256": "string",
    "num_bytes": "int64",
    "image_extension": "string",
    "image_width": "int64",
    "image_height": "int64",
}
PILLOW_MAX_PIXELS = 178_956_970  # above it Pillow refuses by itself


class ImageConfig(Section):
    """What is accepted as a picture, and how it is stored."""

    max_bytes: int = Field(default=50_000_000, gt=0)
    max_pixels: int = Field(default=100_000_000, gt=0, le=PILLOW_MAX_PIXELS)
    min_side: int = Field(default=64, gt=0)  # pixels of the shorter side
    max_side: int | None = Field(
        default=None, gt=0
    )  # pixels; longer pictures are scaled down to it
    encoding: Literal["original", "jpg", "png", "webp"] = "original"
    quality: int = Field(default=95, ge=1, le=100)  # of jpg and webp, where encoded again


class ImageError(Exception):
    """Bytes that are not accepted. ``reason``: "undecodable", "too_large" or "too_small"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class StoredImage:
    """A picture as it goes into a shard; width and height are those a viewer sees, in pixels."""

    extension: str
    data: bytes
    width: int
    height: int

    @property
    def columns(self) -> dict[str, Any]:
        """What the ledger says of it: a value for each of `STORED_COLUMNS`."""
        digest = hashlib.sha256(self.data).hexdigest()
        values = (digest, len(self.data), self.extension, self.width, self.height)
        return dict(zip(STORED_COLUMNS, values, strict=True))


def decode_image(data: bytes, config: ImageConfig) -> Image.Image:
    """Decode one picture (of an animation the first) to upright RGB.

    EXIF orientation is applied, transparency is laid over white, colour profiles are not applied.

    Raises:
        ImageError: more than ``max_bytes`` or ``max_pixels``, a side under ``min_side``, or
            nothing that decodes whole.
    """
    return _decode(data, config)[0]


def store_image(data: bytes, config: ImageConfig) -> StoredImage:
    """Check a picture by decoding it and give what to store.

    The bytes stay as they came when ``encoding`` is "original", the format is JPEG, PNG or WebP
    and the longer side fits ``max_side``. Otherwise the upright RGB picture is encoded, without
    metadata: as ``encoding`` says, or in its own format (PNG for GIF and BMP).

    Raises:
        ImageError: as `decode_image`.
    """
    image, image_format = _decode(data, config)
    fits = config.max_side is None or max(image.size) <= config.max_side
    if config.encoding == "original" and image_format in KEPT_FORMATS and fits:
        return StoredImage(KEPT_FORMATS[image_format], data, image.width, image.height)
    if config.max_side is not None and not fits:
        scale = config.max_side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    own_extension = KEPT_FORMATS.get(image_format, "png")
    extension = own_extension if config.encoding == "original" else config.encoding
    return StoredImage(extension, encode_image(image, extension, config.quality), *image.size)


def encode_image(image: Image.Image, extension: str, quality: int) -> bytes:
    """Encode an RGB picture as ``extension`` ("jpg", "png", "webp"), without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, SAVE_FORMATS[extension], quality=quality)
    return buffer.getvalue()


def _decode(data: bytes, config: ImageConfig) -> tuple[Image.Image, str]:
    """(upright RGB picture, Pillow's name of the format). Raises as `decode_image`."""
    if len(data) > config.max_bytes:
        raise ImageError("too_large", f"{len(data)} bytes, limit {config.max_bytes}")
    try:
        data = without_texts(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image_format = image.format or ""
            _check_sides(image, config)
            image.verify()  # checksums; the picture has to be opened again afterwards
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return as_rgb(upright(image)), image_format
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except Exception as error:  # decoders answer hostile bytes with errors of any type
        raise ImageError("undecodable", f"{type(error).__name__}: {error}") from error


def _check_sides(image: Image.Image, config: ImageConfig) -> None:
    width, height = image.size
    if width * height > config.max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels, limit {config.max_pixels}")
    if min(width, height) < config.min_side:
        raise ImageError("too_small", f"{width} x {height} pixels, shorter side {config.min_side}")
