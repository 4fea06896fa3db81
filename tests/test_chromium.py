"""Proves that looking at pages sees what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chromium import WIDTH, look_at

BAD = """<!doctype html>
<script>nothing.like.this()</script>
<img src="data:image/png;base64,AAAA"><p style="width: 600px">wide</p>
"""


@pytest.mark.slow
def test_a_bad_page_is_seen(tmp_path: Path) -> None:
    seen = look_at(BAD, tmp_path)
    assert seen.errors == ["Uncaught ReferenceError: nothing is not defined"]
    assert (seen.images, seen.broken) == (1, 1)
    assert seen.width >= 600 > WIDTH
    assert seen.text == len("wide")
