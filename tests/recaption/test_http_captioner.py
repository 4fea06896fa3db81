"""Proves captioning over HTTP against a real server on loopback that speaks OpenAI's protocol.

What is wrong with one image is told of that image; what is wrong with the server stops the shard.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from data_pipeline.jobs.runner import InfrastructureError
from recaption.captioner import make_captioner
from recaption.captioner_config import CaptionerConfig, HttpConfig
from recaption.granularity import CaptionError, LevelsConfig

PROMPTS = LevelsConfig().prompts


@dataclass
class Request:
    """What the server was asked: prompt, the image's size if there was one, the whole body."""

    prompt: str
    size: tuple[int, int] | None
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Server:
    """Answers like a model whose caption of an image is its width; ``misbehave`` may step in."""

    misbehave: Callable[[Request], web.Response | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    seconds: float = 0.0
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        read = parse(await request.json(), dict(request.headers))
        self.requests.append(read)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        return self.misbehave(read) or reply(f"An image {read.size[0]} wide" if read.size else "-x")


def parse(body: dict[str, Any], headers: dict[str, str]) -> Request:
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return Request(content, None, body, headers)
    image, text = content
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    size = Image.open(io.BytesIO(base64.b64decode(data))).size
    return Request(text["text"], size, body, headers)


def reply(text: str | None, finish: str = "stop") -> web.Response:
    message = {"role": "assistant", "content": text}
    return web.json_response({"choices": [{"message": message, "finish_reason": finish}]})


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    loop = asyncio.new_event_loop()
    application = web.Application(client_max_size=2**26)
    application.router.add_post("/v1/chat/completions", state.answer)
    runner = web.AppRunner(application)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    state.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield state
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(runner.cleanup())
    loop.close()


def caption(server: Server, *widths: int, **changes: Any) -> list[Any]:
    """Captions of images of these widths; of a failure, its reason."""
    settings = {"url": server.url, "retry_seconds": 0.01, "max_attempts": 3, **changes}
    config = CaptionerConfig(engine="http", http=HttpConfig.model_validate(settings))
    images = [Image.new("RGB", (width, 8)) for width in widths]
    results = make_captioner(config).caption(images)
    return [r.reason if isinstance(r, CaptionError) else r for r in results]


def for_width(width: int, response: Callable[[], web.Response]) -> Any:
    """Misbehaves for one image only."""
    return lambda request: response() if request.size and request.size[0] == width else None


def test_four_levels_each_from_the_one_above(server: Server) -> None:
    (captions,) = caption(server, 30, model="some-model")
    assert captions == ("An image 30 wide", "-x", "-x", "-x")
    assert [request.prompt for request in server.requests] == [
        PROMPTS.detailed,
        f"{PROMPTS.multi_sentence}\nAn image 30 wide",
        f"{PROMPTS.sentence}\n-x",
        f"{PROMPTS.keywords}\n-x",
    ]
    assert [request.size for request in server.requests] == [(30, 8), None, None, None]
    body = server.requests[0].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, 512)


def test_images_are_captioned_at_once_but_not_more_than_allowed(server: Server) -> None:
    server.seconds = 0.02
    results = caption(server, *range(10, 22), concurrency=4)
    assert [captions[0] for captions in results] == [f"An image {w} wide" for w in range(10, 22)]
    assert server.most_running == 4


def test_large_images_are_sent_smaller(server: Server) -> None:
    caption(server, 400, max_side=100)
    assert server.requests[0].size == (100, 2)


def test_the_key_is_read_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    caption(server, 10, api_key_variable="MY_KEY")
    assert server.requests[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, status: int) -> None:
    server.misbehave = lambda request: (
        web.Response(status=status) if len(server.requests) in (1, 2, 4) else None
    )
    assert caption(server, 10) == [("An image 10 wide", "-x", "-x", "-x")]
    assert len(server.requests) == 7


MALFORMED = {
    "not json": lambda: web.Response(text="<html>oops"),
    "no choices": lambda: web.json_response({"choices": []}),
    "a list": lambda: web.json_response([1, 2]),
    "no text": lambda: reply(None),
    "text of a wrong type": lambda: web.json_response({"choices": [{"message": {"content": 3}}]}),
    "invalid utf-8": lambda: web.Response(body=b'{"choices": "\xff\xfe'),
}


@pytest.mark.parametrize("response", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_reply_fails_its_image_only(
    server: Server, response: Callable[[], web.Response]
) -> None:
    server.misbehave = for_width(20, response)
    good, bad = caption(server, 10, 20)
    assert good[0] == "An image 10 wide"
    assert bad == "malformed reply"


FAULTS_OF_AN_IMAGE = {
    "http 400": lambda: web.Response(status=400, text="too many tokens"),
    "http 500": lambda: web.Response(status=500),
    "detailed: truncated": lambda: reply("An image of", "length"),
    "detailed: refusal": lambda: reply("I'm sorry, I can't."),
    "detailed: empty": lambda: reply(" "),
    "content filter": lambda: reply(None, "content_filter"),
}


@pytest.mark.parametrize(("reason", "response"), FAULTS_OF_AN_IMAGE.items(), ids=FAULTS_OF_AN_IMAGE)
def test_an_image_at_fault_is_told_apart_even_when_it_is_alone(
    server: Server, reason: str, response: Callable[[], web.Response]
) -> None:
    server.misbehave = for_width(20, response)
    assert caption(server, 20) == [reason]
    assert caption(server, 10, 20)[1] == reason


def test_a_reply_with_half_a_surrogate_can_be_stored(server: Server) -> None:
    server.misbehave = lambda request: reply("A cat \ud83d here")
    ((detailed, *_),) = caption(server, 10)
    assert detailed == "A cat ? here"


def test_a_slow_answer_is_a_timeout(server: Server) -> None:
    server.seconds = 0.5
    with pytest.raises(InfrastructureError, match="timeout"):
        caption(server, 10, timeout_seconds=0.05, max_attempts=1)


def test_a_broken_server_is_no_fault_of_the_images(server: Server) -> None:
    server.misbehave = lambda request: web.Response(status=503, text="loading the model")
    with pytest.raises(InfrastructureError, match=r"503.*loading the model"):
        caption(server, 10, 20)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_work_at_once(server: Server, status: int) -> None:
    server.misbehave = lambda request: web.Response(status=status, text="no such model")
    with pytest.raises(InfrastructureError, match=f"{status}: no such model"):
        caption(server, *range(10, 30))
    assert len(server.requests) <= 20


def test_no_server_at_all_is_no_fault_of_the_images(server: Server) -> None:
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(InfrastructureError, match="no connection"):
        caption(server, 10)
