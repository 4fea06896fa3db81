"""A page as headless Chromium shows it on a phone: script errors, pictures, overflow. Helper of tests."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

# Chromium's window cannot be as narrow as a phone, a frame can.
WIDTH = 390
LOOKING = """<!doctype html>
<iframe id="page" src="page.html" style="width: {width}px; height: 800px; border: 0"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("page").onload = event => {{
  const page = event.target.contentDocument;
  const images = [...page.images];
  document.getElementById("found").textContent = JSON.stringify({{
    images: images.length,
    broken: images.filter(image => !image.naturalWidth).length,
    width: page.documentElement.scrollWidth,
    text: page.body.innerText.length,
  }});
}};
</script>
"""


@dataclass(frozen=True)
class Seen:
    """What Chromium says of a page.

    Attributes:
        errors: messages of scripts.
        images, broken: how many pictures there are, and how many are not shown.
        width: pixels that the page wants, of `WIDTH` that there are.
        text: characters that are shown.
    """

    errors: list[str]
    images: int
    broken: int
    width: int
    text: int


def look_at(page: str, folder: Path) -> Seen:
    """The page in a frame of a phone's width; skips the test where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here")
    folder.mkdir(exist_ok=True)
    # Its load event waits for pictures, but for those that wait to be scrolled to.
    (folder / "page.html").write_text(page.replace(' loading="lazy"', ""), encoding="utf-8")
    (folder / "looking.html").write_text(LOOKING.format(width=WIDTH))
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{server.server_port}/looking.html"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        server.shutdown()
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    errors = re.findall(r'CONSOLE.*?"(Uncaught .*?)"', done.stderr)
    return Seen(errors, **json.loads(found.group(1)))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without a word."""

    def log_message(self, *_: object) -> None:
        pass
