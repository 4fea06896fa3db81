"""A pool of long-lived Ray actors behind plain calls; it knows nothing of shards.

One thread of this process looks after one actor: it takes a task, calls methods of the actor and
waits for each answer, so the logic of a task reads from top to bottom and lives here, where it
survives the death of the actor.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from t2i.console import get_logger

SECONDS_BEFORE_TELLING = 30.0
LAST_WORDS_LENGTH = 300

logger = get_logger("ray")

ResultT = TypeVar("ResultT")


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a call."""


class _Stopped(BaseException):
    """The pool is being ended: no error of the task, so no `except Exception` may take it."""


@dataclass(frozen=True)
class PoolOptions:
    """Size of the pool, resources of one actor, and the cluster (see `connect`)."""

    num_workers: int
    num_cpus: float
    num_gpus: float
    address: str
    max_starts: int


class _Actor:
    """The remote side: holds the object that ``make`` builds and calls its methods.

    It works in the driver's folder where there is such a one, so that relative paths agree.
    """

    def __init__(self, make: Callable[[], Any], folder: str) -> None:
        self.make = make
        if os.path.isdir(folder):
            os.chdir(folder)

    def start(self) -> None:
        self.worker = self.make()

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        return getattr(self.worker, method)(*arguments)


@dataclass
class RemoteWorker:
    """The near side of one actor, which is started when needed and again after its death."""

    make: Callable[[], Any]
    options: PoolOptions
    stop: threading.Event
    actor: Any = field(default=None, init=False)

    def ready(self, give_up: Callable[[], bool] = lambda: False) -> None:
        """Wait until the actor runs and its worker is built.

        Raises:
            RuntimeError: the actor died ``max_starts`` times while starting.
            Exception: what ``make`` raised.
        """
        for _ in range(self.options.max_starts):
            if self.actor is not None:
                return
            try:
                self._start(give_up)
            except WorkerDied as error:
                last_words = error
        if self.actor is None:
            raise RuntimeError(f"workers die while starting (too little memory?): {last_words}")

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of a method of the worker.

        Raises:
            WorkerDied: the process is gone; the next `ready` starts another.
            Exception: what the method raised.
        """
        return self._wait(self.actor.call.remote(method, arguments))

    def renew(self) -> None:
        """End the actor; the next `ready` starts another."""
        import ray

        if self.actor is not None:
            ray.kill(self.actor)
            self.actor = None

    def _start(self, give_up: Callable[[], bool]) -> None:
        import ray

        make_actor = ray.remote(_Actor).options(
            num_cpus=self.options.num_cpus, num_gpus=self.options.num_gpus, max_restarts=0
        )
        self.actor = make_actor.remote(self.make, os.getcwd())
        try:
            self._wait(self.actor.start.remote(), give_up, "a worker to start")
        except BaseException:
            self.renew()
            raise

    def _wait(
        self, answer: Any, give_up: Callable[[], bool] = lambda: False, told: str = ""
    ) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        tell_at = time.monotonic() + SECONDS_BEFORE_TELLING
        while not ray.wait([answer], timeout=0.5)[0]:
            if self.stop.is_set() or give_up():
                raise _Stopped
            if told and time.monotonic() > tell_at:
                logger.info("waiting for %s; free in the cluster: %s", told, _free_resources(ray))
                tell_at = float("inf")
        try:
            return ray.get(answer)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            self.renew()
            raise WorkerDied(_last_words(error)) from None


def run_on_pool(
    options: PoolOptions,
    make: Callable[[], Any],
    tasks: Sequence[str],
    do: Callable[[str, RemoteWorker], ResultT],
) -> dict[str, ResultT]:
    """``do(task, worker)`` for every task, as many at once as there are actors; task -> result.

    Args:
        make: builds the worker object inside the actor; sent there by cloudpickle.

    Raises:
        Exception: the first that ``do`` or ``make`` raised; the other tasks are given up.
    """
    queue: SimpleQueue[str] = SimpleQueue()
    for task in tasks:
        queue.put(task)
    results: dict[str, ResultT] = {}
    errors: list[BaseException] = []
    stop = threading.Event()

    def look_after_one_worker() -> None:
        worker = RemoteWorker(make, options, stop)
        try:
            while not stop.is_set():
                worker.ready(give_up=queue.empty)
                task = queue.get_nowait()
                results[task] = do(task, worker)
        except (Empty, _Stopped):
            pass
        except BaseException as error:
            errors.append(error)
            stop.set()
        finally:
            worker.renew()

    started_here = connect(options)
    threads = [
        threading.Thread(target=look_after_one_worker, daemon=True)
        for _ in range(min(options.num_workers, len(tasks)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=5)
        if started_here:
            _shut_down()
    if errors:
        raise errors[0]
    return results


def connect(options: PoolOptions) -> bool:
    """Join a Ray cluster; True when one was started for this process.

    ``address`` "auto": $RAY_ADDRESS or the cluster that runs on this machine, else a new one;
    "local": a new one; anything else: that cluster.

    Raises:
        ConnectionError: the named cluster cannot be reached.
    """
    import ray

    if ray.is_initialized():
        return False
    if options.address != "local":
        try:
            ray.init(address=options.address, logging_level=logging.WARNING)
            return False
        except ConnectionError:
            if options.address != "auto" or "RAY_ADDRESS" in os.environ:
                raise
            logger.info("no Ray cluster is running: starting one on this machine")
    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)
    return True


def _last_words(error: Exception) -> str:
    """Ray's account of a death, from where it says how the process ended."""
    text = " ".join(str(error).split())
    return text[max(text.find("Worker exit type"), 0) :][:LAST_WORDS_LENGTH]


def _shut_down() -> None:
    import ray

    ray.shutdown()


def _free_resources(ray: Any) -> str:
    free = ray.available_resources()
    return ", ".join(f"{free.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
