"""A scorer in its own virtual environment, which speaks JSON lines over its pipes. No torch here.

Scorers such as HPSv3 pin old libraries that ours clash with. The other side is a script of a dozen
lines (`t2i.evaluation.adapters`):

    it begins with    {"ready": "HPSv3", "weights": "hub:MizzenAI/HPSv3"}
    is asked          {"image": "/path/to.png", "prompt": "a red circle"}
    and answers       {"score": 7.25}    or    {"error": "what is wrong with this row"}

One that dies or hangs is started again. A row that ends it twice is given up and named; so is one
with an error. A scorer that cannot start, or loses row after row, ends the job.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from t2i.console import get_logger

logger = get_logger("evaluate")

MAX_TRIES = 2
MAX_LOST_IN_A_ROW = 5


class ScorerDied(Exception):
    """The process ended, hung or said something that is no answer."""


class SubprocessScorer:
    """A running scorer; use it as a context.

    Attributes:
        name, weights: as it says itself.
    """

    def __init__(
        self, command: Sequence[str], start_seconds: float = 900.0, row_seconds: float = 120.0
    ) -> None:
        """Start it.

        Args:
            command: what to run.
            start_seconds: patience until it is ready; it may have to load a model.
            row_seconds: patience for each row.

        Raises:
            ValueError: it cannot be started, or is not ready in time.
        """
        self.command = list(command)
        self.start_seconds, self.row_seconds = start_seconds, row_seconds
        self.num_lost_in_a_row = 0
        self.name, self.weights = "", ""
        self._start()

    def __enter__(self) -> SubprocessScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, image: str, prompt: str) -> float | None:
        """The score of a picture; None if it has none, which is logged.

        Raises:
            ValueError: one row after the other is lost, or the scorer does not start again.
        """
        reason = ""
        for _ in range(MAX_TRIES):
            try:
                answer = self._ask({"image": image, "prompt": prompt})
            except ScorerDied as error:
                reason = str(error)
                logger.warning("%s: %s; it is started again", self.name, reason)
                self.close()
                self._start()
                continue
            if "score" in answer:
                self.num_lost_in_a_row = 0
                return float(answer["score"])
            reason = str(answer.get("error", answer))
            break
        else:
            reason = f"it ended the scorer {MAX_TRIES} times ({reason})"
        logger.error("%s: %s has no score: %s", self.name, image, reason)
        self.num_lost_in_a_row += 1
        if self.num_lost_in_a_row >= MAX_LOST_IN_A_ROW:
            raise ValueError(
                f"{self.name}: {MAX_LOST_IN_A_ROW} pictures in a row have no score, the last one: {reason}"
            )
        return None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def _start(self) -> None:
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        except OSError as error:
            raise ValueError(
                f"the scorer {' '.join(self.command)} cannot be run: {error}"
            ) from None
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read, args=(self.process, self.lines), daemon=True).start()
        try:
            ready = self._answer(self.start_seconds)
            self.name, self.weights = str(ready["ready"]), str(ready["weights"])
        except (ScorerDied, KeyError) as error:
            self.close()
            raise ValueError(
                f"the scorer {' '.join(self.command)} did not get ready ({error}); see above for "
                "what it said"
            ) from None

    def _ask(self, row: dict[str, str]) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            print(json.dumps(row), file=self.process.stdin, flush=True)
        except OSError:
            raise ScorerDied(self._how_it_ended()) from None
        return self._answer(self.row_seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise ScorerDied(f"it said nothing for {seconds:g} seconds") from None
        if not line:
            raise ScorerDied(self._how_it_ended())
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise ScorerDied(f"it said {line.strip()[:200]!r}, which is no JSON object")
        return answer

    def _how_it_ended(self) -> str:
        return f"it ended with code {self.process.wait()}"


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Pass on its lines, and "" at their end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")
