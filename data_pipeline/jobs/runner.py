"""One runner for all steps: f(shard) in this process or on a Ray actor pool.

A `Step` turns a shard's items into outcomes, batch by batch; `run_job` sees to the rest. Shards
that are committed are skipped. An exception in a batch is bisected down to the item at fault,
whose row then says failed. When a worker dies, its shard is begun again, the batch that ran at
its death first; when that dies again, its items run one by one, and one that takes a worker with it
twice more is quarantined (failed, reason "worker died"). What cannot be done after all that, such
as a shard whose input is gone, is named at the end, and the exit code says so; the others go on.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.progress import JobProgress
from data_pipeline.jobs.ray_pool import PoolOptions, WorkerDied, run_on_pool
from data_pipeline.jobs.suspects import Suspects
from data_pipeline.outputs.committer import ShardCommitter
from data_pipeline.outputs.ledger import Funnel, Outcome, Row
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig
from data_pipeline.storage.stores import sweep_scratch
from t2i.console import get_logger, progress

ERRORS_BEFORE_STOPPING = 10  # fewer exceptions in a shard never stop it, whatever their share
DETAIL_LENGTH = 500
LONGEST_PAUSE_SECONDS = 60.0

logger = get_logger("jobs")


class InfrastructureError(RuntimeError):
    """Raised by a step when not the items are at fault (a server is down): the shard is retried."""


class TooManyErrors(RuntimeError):
    """So many of a shard's items ended in exceptions that the fault must lie elsewhere."""


class Keyed(Protocol):
    """An item of a shard: anything with a key."""

    @property
    def key(self) -> str: ...


ItemT = TypeVar("ItemT", bound=Keyed)


class Step(Protocol[ItemT]):
    """What a job does; built once per worker, used for many shards."""

    def load(self, shard_id: str) -> list[ItemT]:
        """The items of a shard; an error here is retried, then the shard is given up."""

    def run(self, items: Sequence[ItemT]) -> list[Outcome]:
        """One outcome per item of a batch, in order; an exception is bisected to its item."""


@dataclass(frozen=True)
class Job:
    """A step over shards. Everything in it must be picklable for Ray (cloudpickle).

    ``fingerprint`` holds the settings that decide the output; ``column_types`` gives Arrow type
    names ("float32", "string") to columns of the rows, which are otherwise inferred shard by shard;
    ``counted_columns`` are counted in the manifests, see `StepOutput.writer`.
    """

    name: str
    output: str
    shard_ids: Sequence[str]
    make_step: Callable[[], Step[Any]]
    fingerprint: Mapping[str, Any]
    batch_size: int
    column_types: Mapping[str, str] = field(default_factory=dict)
    counted_columns: Sequence[str] = ()
    storage: StorageConfig = field(default_factory=StorageConfig)


@dataclass(frozen=True)
class JobSummary:
    """How a run ended. ``undone`` is shard id -> why; ``funnel`` counts all committed shards."""

    num_shards: int
    num_skipped: int
    num_committed: int
    undone: Mapping[str, str]
    funnel: Funnel

    @property
    def exit_code(self) -> int:
        """0 when every shard is committed."""
        return 1 if self.undone else 0


def run_job(job: Job, config: JobsConfig) -> JobSummary:
    """Do the shards of a job that are not committed yet.

    Raises:
        ValueError: the output was made with other settings; or raised by ``make_step``.
    """
    output = StepOutput.open(job.output, job.storage)
    output.begin(job.fingerprint)
    sweep_scratch(output.storage)
    done = set(output.committed())
    todo = [shard_id for shard_id in job.shard_ids if shard_id not in done]
    num_skipped = len(job.shard_ids) - len(todo)
    if num_skipped:
        logger.info(
            "%s: %d of %d shards were done before", job.name, num_skipped, len(job.shard_ids)
        )
    undone = _run_shards(job, config, output, todo) if todo else {}
    if not undone:
        output.remove_leftovers()
    summary = JobSummary(
        len(job.shard_ids), num_skipped, len(todo) - len(undone), undone, output.funnel()
    )
    logger.info("%s: %s", job.name, summary.funnel)
    for shard_id, reason in undone.items():
        logger.error("%s: shard %s is not done: %s", job.name, shard_id, reason)
    if undone:
        logger.error("%s: run the same command again for %s", job.name, ", ".join(undone))
    return summary


def _run_shards(
    job: Job, config: JobsConfig, output: StepOutput, todo: Sequence[str]
) -> dict[str, str]:
    """Do these shards; gives those that could not be done, with the reason."""
    skipped = set(job.shard_ids) - set(todo)
    sizes = {manifest.id: manifest.num_in for manifest in output.manifests()}
    sizes = {shard_id: num for shard_id, num in sizes.items() if shard_id in skipped}
    with progress(job.name, None, "items", initial=sum(sizes.values())) as bar:
        board = JobProgress(bar, len(job.shard_ids), sizes)
        make_worker = functools.partial(ShardWorker, job, config)
        if config.executor == "local":
            worker = LocalWorker(make_worker)
            undone = {i: complete_shard(i, worker, job, config, board) for i in todo}
        else:
            options = PoolOptions(
                num_workers=config.num_workers,
                num_cpus=config.num_cpus_per_worker,
                num_gpus=config.num_gpus_per_worker,
                address=config.ray_address,
                max_starts=config.max_attempts,
            )
            undone = run_on_pool(
                options,
                make_worker,
                todo,
                lambda shard_id, remote: complete_shard(shard_id, remote, job, config, board),
            )
    return {shard_id: reason for shard_id, reason in undone.items() if reason}


# -- one shard, seen from the driver -------------------------------------------------------


class WorkerHandle(Protocol):
    """A `ShardWorker` in this process or in an actor (`data_pipeline.jobs.ray_pool.RemoteWorker`)."""

    def ready(self) -> None:
        """Build the worker if there is none."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker; WorkerDied when its process ended meanwhile."""

    def renew(self) -> None:
        """Drop the worker: the next `ready` builds another."""


class LocalWorker:
    """A `ShardWorker` in this process."""

    def __init__(self, make: Callable[[], ShardWorker]) -> None:
        self.make = make
        self.worker: ShardWorker | None = None

    def ready(self) -> None:
        self.worker = self.worker or self.make()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.worker, method)(*arguments)

    def renew(self) -> None:
        self.worker = None


def complete_shard(
    shard_id: str, worker: WorkerHandle, job: Job, config: JobsConfig, board: JobProgress
) -> str:
    """Try a shard until it is committed ("") or given up (the reason)."""
    suspects = Suspects()
    failures = 0
    while True:
        worker.ready()
        running: list[str] = []
        try:
            keys = worker.call("begin", shard_id)
            board.begin(shard_id, len(keys))
            for running in suspects.batches(keys, job.batch_size):
                board.advance(shard_id, worker.call("run", running))
            running = []
            board.advance(shard_id, worker.call("quarantine", suspects.quarantined))
            worker.call("commit")
            board.finish(shard_id)
            return ""
        except WorkerDied as error:
            reason = f"the worker died: {error}"
            suspects.blame(running)
            failures += not running
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            failures += 1
            if isinstance(error, TooManyErrors):
                worker.renew()
        board.undo(shard_id)
        logger.warning("%s: shard %s: %s", job.name, shard_id, reason)
        if failures >= config.max_attempts:
            return reason
        if len(suspects.quarantined) > config.max_quarantined_per_shard:
            return f"more than {config.max_quarantined_per_shard} items ended their worker"
        time.sleep(min(config.retry_seconds * 2 ** max(failures - 1, 0), LONGEST_PAUSE_SECONDS))


# -- one shard, in the worker --------------------------------------------------------------


class ShardWorker:
    """Runs the step on one shard after another: begin, run each batch, commit."""

    def __init__(self, job: Job, config: JobsConfig) -> None:
        self.job, self.config = job, config
        self.output = StepOutput.open(job.output, job.storage)
        self.step = job.make_step()
        self.committer: ShardCommitter | None = None

    def begin(self, shard_id: str) -> list[str]:
        """Load a shard (an unfinished one is dropped); gives the keys of its items."""
        if self.committer is not None:
            self.committer.close()
        items = self.step.load(shard_id)
        self.keys = [item.key for item in items]
        self.items = dict(zip(self.keys, items, strict=True))
        if len(self.items) < len(items):
            key, num = Counter(self.keys).most_common(1)[0]
            raise ValueError(f"shard {shard_id}: key {key} comes {num} times")
        self.outcomes: dict[str, Outcome] = {}
        self.num_added = self.num_errors = 0
        self.committer = self.output.writer(
            shard_id, self.job.column_types, self.job.counted_columns
        )
        return self.keys

    def run(self, keys: Sequence[str]) -> Counter[str]:
        """Do one batch; gives the number of rows by status."""
        return self._keep(self._run_bisecting([self.items[key] for key in keys]))

    def quarantine(self, keys: Sequence[str]) -> Counter[str]:
        """Fail these items unseen."""
        return self._keep([Outcome(Row(key, "failed", "worker died")) for key in keys])

    def commit(self) -> None:
        """Make the shard visible.

        Raises:
            TooManyErrors: more of its items than ``max_error_share`` ended in exceptions.
        """
        assert self.committer is not None
        assert self.num_added == len(self.keys), "a batch of the shard was not run"
        limit = max(ERRORS_BEFORE_STOPPING, self.config.max_error_share * len(self.keys))
        if self.num_errors > limit:
            raise TooManyErrors(
                f"{self.num_errors} of {len(self.keys)} items ended in an exception, "
                f"the first: {self.first_error}"
            )
        self.committer.commit()
        self.committer.close()

    def _run_bisecting(self, items: Sequence[Any]) -> list[Outcome]:
        try:
            outcomes = self.step.run(items)
        except InfrastructureError:
            raise
        except Exception as error:
            fault = error
        else:
            keys, expected = [o.row.key for o in outcomes], [item.key for item in items]
            assert keys == expected, f"the step gave rows {keys} for items {expected}"
            return outcomes
        if len(items) == 1:
            return [self._failed(items[0].key, fault)]
        middle = len(items) // 2
        return self._run_bisecting(items[:middle]) + self._run_bisecting(items[middle:])

    def _failed(self, key: str, error: Exception) -> Outcome:
        self.num_errors += 1
        name, message = type(error).__name__, str(error)[:DETAIL_LENGTH]
        if self.num_errors == 1:
            self.first_error = f"{name}: {message}"
            logger.warning("%s: %s fails:", self.job.name, key, exc_info=error)
        return Outcome(Row(key, "failed", f"error {name}", detail=message))

    def _keep(self, outcomes: Sequence[Outcome]) -> Counter[str]:
        """Hand outcomes on in the order of the items, whatever the order of the batches."""
        assert self.committer is not None
        self.outcomes |= {outcome.row.key: outcome for outcome in outcomes}
        for key in self.keys[self.num_added :]:
            if key not in self.outcomes:
                break
            self.committer.add(self.outcomes.pop(key))
            self.num_added += 1
        return Counter(outcome.row.status for outcome in outcomes)
