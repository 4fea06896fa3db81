"""Proves fetching from a real HTTP server on loopback: limits, retries, redirects, and above all
that an address which is not public is refused before any connection to it is tried."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_pipeline.web import fetch
from data_pipeline.web.fetch import CheckedResolver, Fetcher, Response
from data_pipeline.web.fetch_config import FetchConfig, FetchError

FORBIDDEN_URLS = (
    "http://10.0.0.1/x",
    "http://127.0.0.1:1/x",
    "http://169.254.169.254/latest/meta-data",
    "http://0.0.0.0/x",
    "http://100.64.0.1/x",
    "http://224.0.0.1/x",
    "http://255.255.255.255/x",
    "http://2130706433/x",
    "http://127.1/x",
    "http://0177.0.0.1/x",
    "http://0x7f000001/x",
    "http://localhost:1/x",
    "http://LOCALHOST:1/x",
    "http://[::1]/x",
    "http://[::]/x",
    "http://[fe80::1]/x",
    "http://[fd00::1]/x",
    "http://[::ffff:10.0.0.1]/x",
    "http://[64:ff9b::7f00:1]/x",
    "http://[2002:7f00:1::]/x",
    "http://user@127.0.0.1:1/x",
    "file:///etc/passwd",
    "ftp://example.org/x",
    "gopher://127.0.0.1/x",
    "//example.org/x",
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counts: Counter[str]

    def do_GET(self) -> None:
        self.counts[self.path] += 1
        kind, _, argument = self.path[1:].partition("/")
        if kind == "status":
            self.answer(int(argument), b"")
        elif kind == "flaky":
            self.answer(200 if self.counts[self.path] == 3 else 503, b"at last")
        elif kind == "redirect":
            self.answer(302, b"", {"Location": argument})
        elif kind == "slow":
            time.sleep(0.5)
            self.close_connection = True
        elif kind == "endless":
            self.endless()
        elif kind == "hang_up":
            self.close_connection = True
        else:
            self.answer(200, b"hello")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def endless(self) -> None:
        """A body without announced length, until the client hangs up."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"8000\r\n" + bytes(0x8000) + b"\r\n")
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Handler.counts = Counter()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def base(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def settings(base: str, **changes: object) -> FetchConfig:
    values = {"allow_hosts": [base.removeprefix("http://")], "backoff_seconds": 0.01}
    return FetchConfig.model_validate(values | changes)


def get(url: str, config: FetchConfig, max_bytes: int = 1000) -> Response:
    async def run() -> Response:
        async with Fetcher(config, max_bytes) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(run())


def reason_of(url: str, config: FetchConfig) -> str:
    with pytest.raises(FetchError) as error:
        get(url, config)
    return error.value.reason


def test_a_body_comes_with_the_url_that_answered(base: str) -> None:
    assert get(f"{base}/x", settings(base)) == Response(b"hello", f"{base}/x")


@pytest.mark.parametrize("url", FORBIDDEN_URLS)
def test_forbidden_addresses_are_refused_without_a_connection(
    url: str, connections: list[object]
) -> None:
    assert reason_of(url, FetchConfig()) == "refused_address"
    assert connections == []


def test_the_exception_holds_for_its_port_alone(base: str, connections: list[object]) -> None:
    assert get(f"{base}/x", settings(base)).body == b"hello"
    connections.clear()
    assert reason_of(f"{base}/x", settings("http://127.0.0.1:1")) == "refused_address"
    assert reason_of(base.replace("127.0.0.1", "localhost"), settings(base)) == "refused_address"
    assert connections == []


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data", "http://localhost:1/", "file:///etc"]
)
def test_each_hop_of_a_redirect_is_checked(
    base: str, target: str, connections: list[object]
) -> None:
    port = int(base.rpartition(":")[2])
    assert reason_of(f"{base}/redirect/{target}", settings(base)) == "refused_address"
    assert connections == [("127.0.0.1", port)]


def test_redirects_are_followed_but_not_for_ever(base: str) -> None:
    assert get(f"{base}/redirect//x", settings(base)) == Response(b"hello", f"{base}/x")
    two_hops = f"{base}/redirect/{base}/redirect/{base}/x"
    assert get(two_hops, settings(base, max_redirects=2)).body == b"hello"
    assert reason_of(two_hops, settings(base, max_redirects=1)) == "too_many_redirects"


class NamesThatMove:
    """A resolver whose names point elsewhere at each question."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int, family: int) -> list[dict[str, object]]:
        address = self.answers.pop(0)
        details = {"proto": 0, "flags": 0, "family": socket.AF_INET}
        return [{"hostname": host, "host": address, "port": port, **details}]

    async def close(self) -> None:
        return


def test_the_address_that_was_checked_is_the_one_connected_to(
    base: str, connections: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 plays a public address, where nobody listens; the name then moves to the server."""
    names = NamesThatMove("127.0.0.2", "127.0.0.1")
    monkeypatch.setattr(fetch, "is_public_address", lambda address: address == "127.0.0.2")
    monkeypatch.setattr("aiohttp.ThreadedResolver", lambda: names)
    port = int(base.rpartition(":")[2])
    url, config = f"http://moving.test:{port}/x", FetchConfig(max_attempts=1)
    assert reason_of(url, config) == "connection_error"
    assert reason_of(url, config) == "refused_address"
    assert connections == [("127.0.0.2", port)]


def test_a_name_with_any_forbidden_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Both:
        async def resolve(self, *args: object) -> list[dict[str, str]]:
            return [{"host": "93.184.215.14"}, {"host": "fd00::1"}]

    async def run() -> None:
        resolver = CheckedResolver(frozenset())
        resolver.inner = Both()  # type: ignore[assignment]
        await resolver.resolve("both.test", 80)

    with pytest.raises(FetchError, match="refused_address"):
        asyncio.run(run())


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert fetch.is_public_address(address)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_final_statuses_are_reasons_and_not_tried_again(base: str, status: int) -> None:
    assert reason_of(f"{base}/status/{status}", settings(base)) == f"http_{status}"
    assert Handler.counts[f"/status/{status}"] == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again_up_to_the_limit(base: str, status: int) -> None:
    assert reason_of(f"{base}/status/{status}", settings(base)) == f"http_{status}"
    assert Handler.counts[f"/status/{status}"] == 3


def test_a_server_that_recovers_gives_the_body(base: str) -> None:
    assert get(f"{base}/flaky", settings(base)).body == b"at last"


def test_bodies_above_the_limit_are_cut_off_while_they_stream(base: str) -> None:
    assert reason_of(f"{base}/endless", settings(base)) == "too_large"
    with pytest.raises(FetchError, match="5 bytes announced"):
        get(f"{base}/x", settings(base), max_bytes=4)


def test_slow_and_broken_connections_have_their_reasons(base: str) -> None:
    assert reason_of(f"{base}/slow", settings(base, timeout_seconds=0.2)) == "timeout"
    assert reason_of(f"{base}/hang_up", settings(base)) == "connection_error"
    assert reason_of("http://nowhere.invalid/", settings(base)) == "connection_error"


@pytest.mark.parametrize("url", ["http://", "http://[", "http://a:b:c/"])
def test_urls_that_are_none_are_refused(url: str) -> None:
    assert reason_of(url, FetchConfig(max_attempts=1)) in ("invalid_url", "refused_address")
