"""Settings and errors of `data_pipeline.web.fetch`, apart from aiohttp, which is slow to import."""

from __future__ import annotations

from pydantic import Field

from t2i.config import Section


class FetchConfig(Section):
    """How the network is used, per worker."""

    allow_hosts: tuple[str, ...] = ()  # "host:port" that may be fetched whatever their address is
    concurrency: int = Field(default=64, gt=0)  # requests at a time
    max_per_host: int = Field(default=4, gt=0)  # requests at a time to one host
    timeout_seconds: float = Field(
        default=20.0, gt=0
    )  # for one request, from connecting to the last byte
    connect_timeout_seconds: float = Field(default=5.0, gt=0)
    max_attempts: int = Field(default=3, ge=1)  # for 429, 5xx and broken connections
    backoff_seconds: float = Field(
        default=0.5, ge=0
    )  # before the second attempt; doubles from then on
    max_redirects: int = Field(default=5, ge=0)
    user_agent: str = "Mozilla/5.0 (compatible; sparse-t2i)"


class FetchError(Exception):
    """No body. ``reason``: "refused_address", "invalid_url", "http_404" (or another status),
    "timeout", "connection_error", "too_large" or "too_many_redirects"."""

    def __init__(self, reason: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.retry_after = reason, detail, retry_after

    @property
    def may_pass(self) -> bool:
        """Whether another attempt may succeed."""
        return self.reason in ("http_429", "connection_error") or self.reason.startswith("http_5")
