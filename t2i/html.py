"""HTML pages that hold their own pictures, from Jinja2 templates."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


def render_page(template: Path, **parts: Any) -> str:
    """The page of a template; all text in it is escaped, and a part that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(parts)


def image_uri(image: Image) -> str:
    """A picture as the data URI of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return data_uri(buffer.getvalue(), "png")


def data_uri(data: bytes, extension: str) -> str:
    """An image file as a URI that holds its bytes."""
    media_type = {"jpg": "jpeg"}.get(extension, extension)
    return f"data:image/{media_type};base64,{base64.b64encode(data).decode()}"
