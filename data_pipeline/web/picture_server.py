"""A folder of pictures behind HTTP on loopback: the toy web that downloads are tried on."""

from __future__ import annotations

import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class PictureServer(ThreadingHTTPServer):
    """Serves ``folder`` on 127.0.0.1:``port``. Query strings are ignored, the rest is 404.

    Raises:
        ValueError: the port is taken.
    """

    daemon_threads = True
    request_queue_size = 256  # more than a downloader opens at a time

    def __init__(self, folder: Path, port: int) -> None:
        handler = functools.partial(_QuietHandler, directory=str(folder))
        try:
            super().__init__(("127.0.0.1", port), handler)
        except OSError as error:
            raise ValueError(
                f"port {port} of 127.0.0.1: {error.strerror}; stop what uses it, or choose "
                "another data_pipeline.source.port before making the pictures"
            ) from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _QuietHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are used again
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        return
