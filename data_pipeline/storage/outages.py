"""Waits for a service that cannot be reached, as long as its errors may pass by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from t2i.console import format_seconds, get_logger

ResultT = TypeVar("ResultT")
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts; doubled after each
SECONDS_BETWEEN_WARNINGS = 60.0
TRANSIENT_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException")

logger = get_logger("storage")


def outlast(read: Callable[[], ResultT], address: str, minutes: float) -> ResultT:
    """What ``read`` gives, tried again after pauses while `is_outage` says that it may succeed.

    Args:
        address: of what is read, for the warnings (at most one a minute).
        minutes: after which no further attempt begins; those of boto3 itself come on top.

    Raises:
        TimeoutError: none has succeeded by then. Other errors than outages pass at once.
    """
    started, pause, warned = time.monotonic(), FIRST_PAUSE, -SECONDS_BETWEEN_WARNINGS
    while True:
        try:
            return read()
        except Exception as error:  # boto3 has no common class for what a network can do
            if not is_outage(error):
                raise
            elapsed, reason = time.monotonic() - started, f"{type(error).__name__}: {error}"
        if elapsed + pause > 60 * minutes:
            raise TimeoutError(
                f"{address}: not reached for {format_seconds(elapsed)} ({reason}); the same command "
                "goes on from the newest checkpoint; data_pipeline.loader.retry_minutes "
                f"({minutes:g}) is how long an outage is waited for"
            )
        if elapsed - warned >= SECONDS_BETWEEN_WARNINGS:
            warned = elapsed
            logger.warning(
                "%s: not reached for %s, trying again for %s (%s)",
                *(address, format_seconds(elapsed), format_seconds(60 * minutes - elapsed), reason),
            )
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def is_outage(error: Exception) -> bool:
    """Whether network or service failed: connections, time-outs, 5xx, throttling.

    False for what another attempt would meet again: a missing key, refused access, bad content.
    """
    from boto3.exceptions import RetriesExceededError
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        answer = error.response
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or answer["Error"].get("Code") in TRANSIENT_CODES
    return isinstance(
        error,
        (
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
            exceptions.IncompleteReadError,
            RetriesExceededError,
        ),
    )
