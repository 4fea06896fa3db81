"""Fetching untrusted URLs: one URL in, the body or a typed refusal out.

URLs of the web may point anywhere, also into the network of the machine that fetches them. So
redirects are followed by hand, each hop is checked, names are resolved by `CheckedResolver`, and
the addresses that it has checked are the ones that are connected to: a name that resolves to
another address a moment later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from data_pipeline.web.fetch_config import FetchConfig, FetchError

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
REDIRECTS = (301, 302, 303, 307, 308)
MAX_RETRY_AFTER_SECONDS = 30.0
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Response:
    """A body (not empty only by chance) and the URL that answered, after all redirects."""

    body: bytes
    url: str


def is_public_address(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    Not private, loopback, link-local, shared, reserved, multicast or unspecified; IPv4 inside
    IPv6 (mapped, NAT64) is judged by the IPv4 address; 6to4 is refused.

    Raises:
        ValueError: not an IP address in its canonical notation.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip.sixtofour is not None or ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class CheckedResolver(AbstractResolver):
    """Resolves names for aiohttp's connector and refuses those with any address not public."""

    def __init__(self, allow_hosts: frozenset[str]) -> None:
        self.allow_hosts = allow_hosts
        self.inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of ``host``. Raises FetchError "refused_address"; OSError: unknown name."""
        results = await self.inner.resolve(host, port, family)
        if f"{host}:{port}" not in self.allow_hosts:
            for result in results:
                if not is_public_address(result["host"]):
                    raise FetchError("refused_address", f"{host} resolves to {result['host']}")
        return results

    async def close(self) -> None:
        await self.inner.close()


def check_url(url: str, allow_hosts: frozenset[str]) -> URL:
    """Parse a URL and refuse what can be refused without resolving a name.

    Raises:
        FetchError: "refused_address": another scheme than http(s), or an IP address that is not
            public or not in canonical notation (127.1, 2130706433); "invalid_url".
    """
    try:
        parsed = URL(url.strip())
        host, port = parsed.host, parsed.port
    except ValueError as error:
        raise FetchError("invalid_url", str(error)) from None
    if parsed.scheme not in ("http", "https"):
        raise FetchError("refused_address", f"scheme {parsed.scheme!r}, not http or https")
    if not host:
        raise FetchError("invalid_url", "no host")
    # aiohttp takes hosts of digits and dots, or with a colon, for addresses: no name is resolved.
    looks_like_address = ":" in host or host.replace(".", "").isdigit()
    if looks_like_address and f"{host}:{port}" not in allow_hosts:
        try:
            is_public = is_public_address(host)
        except ValueError:
            is_public = False
        if not is_public:
            raise FetchError("refused_address", f"{host} is not a public address")
    return parsed


class Fetcher:
    """An HTTP client for untrusted URLs. Use as ``async with Fetcher(config, max_bytes)``."""

    def __init__(self, config: FetchConfig, max_bytes: int) -> None:
        self.config, self.max_bytes = config, max_bytes
        self.allow_hosts = frozenset(config.allow_hosts)

    async def __aenter__(self) -> Fetcher:
        config = self.config
        # Names are resolved in threads, each for as long as an answer takes.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(config.concurrency))
        self.slots = asyncio.Semaphore(config.concurrency)
        self.host_slots: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(config.max_per_host)
        )
        self.session = aiohttp.ClientSession(
            # The connector itself must not queue: the wait would count as the request's time.
            connector=aiohttp.TCPConnector(
                resolver=CheckedResolver(self.allow_hosts), limit=0, limit_per_host=0
            ),
            timeout=aiohttp.ClientTimeout(
                total=config.timeout_seconds, sock_connect=config.connect_timeout_seconds
            ),
            # Without decompression the limit of bytes holds for what is unpacked, too.
            headers={"User-Agent": config.user_agent, "Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.session.close()

    async def fetch(self, url: str) -> Response:
        """The body behind a URL, with retries and redirects.

        Raises:
            FetchError: see there.
        """
        attempt = 1
        while True:
            try:
                return await self._follow(url)
            except FetchError as error:
                if not error.may_pass or attempt == self.config.max_attempts:
                    raise
                delay = self.config.backoff_seconds * 2 ** (attempt - 1)
                await asyncio.sleep(max(delay, error.retry_after or 0.0))
            attempt += 1

    async def _follow(self, url: str) -> Response:
        for _ in range(self.config.max_redirects + 1):
            parsed = check_url(url, self.allow_hosts)
            # The host's slot first: waiting for a slow host must not hold up the others.
            async with self.host_slots[parsed.host or ""], self.slots:
                answer = await self._request(parsed)
            if isinstance(answer, Response):
                return answer
            url = answer
        raise FetchError("too_many_redirects", f"more than {self.config.max_redirects}")

    async def _request(self, url: URL) -> Response | str:
        """One request: the response, or the address that it redirects to."""
        try:
            async with self.session.get(url, allow_redirects=False) as response:
                if response.status in REDIRECTS and "Location" in response.headers:
                    return _join(url, response.headers["Location"])
                if response.status != 200:
                    raise FetchError(
                        f"http_{response.status}",
                        str(url),
                        _retry_after(response.headers.get("Retry-After", "")),
                    )
                return Response(await self._read(response), str(url))
        except TimeoutError:
            raise FetchError("timeout", f"{self.config.timeout_seconds} s at most") from None
        except aiohttp.InvalidURL as error:
            raise FetchError("invalid_url", str(error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise FetchError("connection_error", f"{type(error).__name__}: {error}") from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if (response.content_length or 0) > self.max_bytes:
            raise FetchError("too_large", f"{response.content_length} bytes announced")
        body = bytearray()
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            body += chunk
            if len(body) > self.max_bytes:
                raise FetchError("too_large", f"more than {self.max_bytes} bytes")
        return bytes(body)


def _join(url: URL, location: str) -> str:
    try:
        return str(url.join(URL(location)))
    except ValueError as error:
        raise FetchError("invalid_url", f"redirect to {location!r}: {error}") from None


def _retry_after(value: str) -> float | None:
    """Seconds of a ``Retry-After`` header (its form as a date is not read), capped."""
    return min(float(value), MAX_RETRY_AFTER_SECONDS) if value.isdigit() else None
