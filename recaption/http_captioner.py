"""Captions from an OpenAI-compatible server: vLLM, SGLang, LMDeploy or another.

Each image's four requests follow one another; the images of a batch run at once. A request that
meets a busy or broken server is tried again. When no image of a batch was answered, the server is
asked for a word of plain text: if that too fails, the shard is tried again later; else the images
are at fault.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import aiohttp
from PIL import Image as PillowImage

from data_pipeline.jobs.runner import InfrastructureError
from recaption.captioner_config import CaptionerConfig
from recaption.captions import Captions, as_captions
from recaption.granularity import LEVELS, Answer, CaptionError, accept_caption

if TYPE_CHECKING:
    from PIL.Image import Image

# Not to be cured by another image: the key, the model's name or the address is wrong.
SETUP_STATUSES = (401, 403, 404)
BUSY_STATUSES = (408, 409, 425, 429)
LONGEST_PAUSE_SECONDS = 30.0
DETAIL_LENGTH = 300


class ServerTrouble(CaptionError):
    """A request that was tried as often as allowed; ``reason`` is "http 503", "timeout" ..."""


class HttpCaptioner:
    """Captions by a server; see `recaption.captions.Captioner`."""

    def __init__(self, config: CaptionerConfig) -> None:
        self.config, self.http = config, config.http
        key = os.environ.get(self.http.api_key_variable)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = f"{self.http.url.rstrip('/')}/chat/completions"

    def caption(self, images: Sequence[Image]) -> list[Captions | CaptionError]:
        """See `recaption.captions.Captioner`.

        Raises:
            InfrastructureError: the server answered nobody, or refuses the key, the model's name
                or the address.
        """
        return asyncio.run(self._caption_batch(images))

    async def _caption_batch(self, images: Sequence[Image]) -> list[Captions | CaptionError]:
        timeout = aiohttp.ClientTimeout(total=self.http.timeout_seconds)
        connector = aiohttp.TCPConnector(limit=0)
        free = asyncio.Semaphore(self.http.concurrency)
        async with aiohttp.ClientSession(
            headers=self.headers, timeout=timeout, connector=connector
        ) as session:

            async def caption_one(image: Image) -> Captions | CaptionError:
                try:
                    async with free:
                        return await self._caption_one(session, image)
                except CaptionError as error:
                    return error

            tasks = [asyncio.ensure_future(caption_one(image)) for image in images]
            try:
                results = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
            if all(isinstance(result, ServerTrouble) for result in results):
                await self._refuse_broken_server(session)
            return results

    async def _refuse_broken_server(self, session: aiohttp.ClientSession) -> None:
        """Raise InfrastructureError when the server does not answer to a word of text either."""
        try:
            await self._ask(session, "Hello", max_new_tokens=1)
        except CaptionError as error:
            raise InfrastructureError(f"{self.url}: {error}") from None

    async def _caption_one(self, session: aiohttp.ClientSession, image: Image) -> Captions:
        checks = self.config.levels.checks
        chain: list[str] = []
        for level in LEVELS:
            prompt = self.config.levels.prompt(level)
            content: Any = (
                f"{prompt}\n{chain[-1]}"
                if chain
                else image_content(image, prompt, self.http.max_side)
            )
            answer = await self._ask(session, content, self.config.levels.limit(level))
            chain.append(accept_caption(answer, level, checks))
        return as_captions(chain)

    async def _ask(
        self, session: aiohttp.ClientSession, content: Any, max_new_tokens: int
    ) -> Answer:
        """The server's answer to one user turn, tried again while it is busy or broken."""
        request = {
            "model": self.http.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_new_tokens,
            "temperature": 0,
        }
        pause = self.http.retry_seconds
        for attempt in range(self.http.max_attempts):
            if attempt:
                await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))
                pause *= 2
            try:
                async with session.post(self.url, json=request) as response:
                    return await self._read(response)
            except ServerTrouble as error:
                trouble = error
            except TimeoutError:
                trouble = ServerTrouble("timeout", f"{self.http.timeout_seconds:g} s")
            except aiohttp.ClientError as error:
                trouble = ServerTrouble("no connection", f"{type(error).__name__}: {error}")
        raise trouble

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        """Raises ServerTrouble for what may pass, CaptionError for what this image causes."""
        body = await response.text(errors="replace")
        status, excerpt = response.status, body[:DETAIL_LENGTH]
        if status in SETUP_STATUSES:
            raise InfrastructureError(f"{self.url}: http {status}: {excerpt}")
        if status in BUSY_STATUSES or status >= 500:
            raise ServerTrouble(f"http {status}", excerpt)
        if status != 200:
            raise CaptionError(f"http {status}", excerpt)
        try:
            choice = json.loads(body)["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ServerTrouble("malformed reply", excerpt) from None
        if finish == "content_filter":
            raise CaptionError("content filter", excerpt)
        if not isinstance(text, str):
            raise ServerTrouble("malformed reply", excerpt)
        return Answer(text, is_complete=finish != "length")


def image_content(image: Image, prompt: str, max_side: int) -> list[dict[str, Any]]:
    """The parts of a user turn with one image (as a data URL) and a prompt."""
    buffer = io.BytesIO()
    shrink(image, max_side).save(buffer, "PNG", compress_level=1)
    data = base64.b64encode(buffer.getvalue()).decode()
    url = f"data:image/png;base64,{data}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]


def shrink(image: Image, max_side: int) -> Image:
    """The image, its longer side at most ``max_side`` pixels."""
    scale = max_side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, PillowImage.Resampling.LANCZOS)
