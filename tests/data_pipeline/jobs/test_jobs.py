"""Proves the runner: every item ends in one row whatever its batch does, faults are pinned on the
item, the shard or the job they belong to, and a job killed at any moment is finished by the same
command. One test runs a real Ray cluster whose workers die of a poisonous item."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.ray_pool import WorkerDied
from data_pipeline.jobs.runner import InfrastructureError, Job, JobSummary, complete_shard, run_job
from data_pipeline.jobs.suspects import Suspects
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput

REPO = Path(__file__).resolve().parents[3]
LOCAL = JobsConfig(retry_seconds=0.0)


def make_toy_job(
    output: str,
    on_item: Callable[[str], None],
    on_load: Callable[[str], None] = lambda shard_id: None,
    num_shards: int = 3,
    num_items: int = 10,
) -> Job:
    """A job whose items ``on_item`` may refuse; its classes go to Ray by value."""

    @dataclass(frozen=True)
    class Item:
        key: str

    class ToyStep:
        def load(self, shard_id: str) -> list[Item]:
            on_load(shard_id)
            return [Item(f"{shard_id}-{number}") for number in range(num_items)]

        def run(self, items: Sequence[Item]) -> list[Outcome]:
            outcomes = []
            for item in items:
                on_item(item.key)
                outcomes.append(
                    Outcome(Row(item.key, "ok"), Sample(item.key, {"txt": item.key.encode()}))
                )
            return outcomes

    shard_ids = [str(number) for number in range(num_shards)]
    return Job("toy", output, shard_ids, ToyStep, {"size": 1}, batch_size=4)


def fail_on(*keys: str) -> Callable[[str], None]:
    def on_item(key: str) -> None:
        if key in keys:
            raise OSError(f"cannot do {key}")

    return on_item


def rows_of(job: Job) -> list[dict[str, Any]]:
    output = StepOutput.open(job.output)
    return [row for shard_id in output.committed() for row in output.rows(shard_id).to_pylist()]


def failed_keys(job: Job) -> list[str]:
    return [row["key"] for row in rows_of(job) if row["status"] == "failed"]


def read_keys(job: Job) -> list[str]:
    output = StepOutput.open(job.output)
    return [sample.key for shard_id in output.committed() for sample in output.read(shard_id)]


@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(bad=st.sets(st.integers(0, 9), max_size=9))
def test_an_exception_fails_exactly_the_items_that_raise_it(
    tmp_path_factory: pytest.TempPathFactory, bad: set[int]
) -> None:
    bad_keys = {f"0-{number}" for number in bad}
    job = make_toy_job(str(tmp_path_factory.mktemp("out")), fail_on(*bad_keys), num_shards=1)
    summary = run_job(job, LOCAL)
    assert summary.exit_code == 0
    assert set(failed_keys(job)) == bad_keys
    assert read_keys(job) == [f"0-{number}" for number in range(10) if number not in bad]
    assert summary.funnel.reasons == ({("failed", "error OSError"): len(bad)} if bad else {})
    assert all(row["detail"] == f"cannot do {row['key']}" for row in rows_of(job) if row["detail"])


def test_a_finished_job_does_nothing_again_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_toy_job(str(tmp_path), fail_on())
    assert run_job(job, LOCAL).num_committed == 3

    def refuse(key: str) -> None:
        raise AssertionError("work is done again")

    summary = run_job(make_toy_job(str(tmp_path), refuse, on_load=refuse), LOCAL)
    assert (summary.num_skipped, summary.num_committed, summary.exit_code) == (3, 0, 0)
    assert "3 of 3 shards were done before" in caplog.text


def test_a_shard_whose_input_is_gone_is_named_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loads: list[str] = []

    def on_load(shard_id: str) -> None:
        loads.append(shard_id)
        if shard_id == "1":
            raise FileNotFoundError("images/1.tar: no such object")

    job = make_toy_job(str(tmp_path), fail_on(), on_load)
    summary = run_job(job, LOCAL)
    assert summary.exit_code == 1
    assert summary.undone == {"1": "FileNotFoundError: images/1.tar: no such object"}
    assert loads == ["0", "1", "1", "1", "2"]
    assert StepOutput.open(job.output).committed() == ["0", "2"]
    assert "shard 1 is not done" in caplog.text
    assert run_job(make_toy_job(str(tmp_path), fail_on()), LOCAL).exit_code == 0


def test_a_fault_that_passes_is_overcome(tmp_path: Path) -> None:
    faults = iter([True, True])

    def on_item(key: str) -> None:
        if key == "0-5" and next(faults, False):
            raise InfrastructureError("the caption server is down")

    job = make_toy_job(str(tmp_path), on_item)
    assert run_job(job, LOCAL).exit_code == 0
    assert failed_keys(job) == []


def test_a_fault_that_stays_costs_the_shard_but_fails_no_item(tmp_path: Path) -> None:
    def on_item(key: str) -> None:
        if key.startswith("1"):
            raise InfrastructureError("the caption server is down")

    job = make_toy_job(str(tmp_path), on_item)
    summary = run_job(job, LOCAL)
    assert summary.undone == {"1": "InfrastructureError: the caption server is down"}
    assert failed_keys(job) == []


def test_a_bug_that_fails_most_items_is_not_committed(tmp_path: Path) -> None:
    def on_item(key: str) -> None:
        raise TypeError("a bug")

    job = make_toy_job(str(tmp_path), on_item, num_shards=1, num_items=20)
    summary = run_job(job, LOCAL)
    assert summary.exit_code == 1
    assert (
        "20 of 20 items ended in an exception, the first: TypeError: a bug" in summary.undone["0"]
    )
    assert rows_of(job) == []


def test_a_step_that_cannot_be_built_stops_the_job(tmp_path: Path) -> None:
    def make() -> Any:
        raise ValueError("recaption.captioner.path: no such model")

    job = Job("toy", str(tmp_path), ["0"], make, {}, batch_size=4)
    with pytest.raises(ValueError, match="no such model"):
        run_job(job, LOCAL)


def test_changed_settings_are_refused(tmp_path: Path) -> None:
    run_job(make_toy_job(str(tmp_path), fail_on()), LOCAL)
    job = Job("toy", str(tmp_path), ["0"], lambda: None, {"size": 2}, batch_size=4)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="size was 1, now 2"):
        run_job(job, LOCAL)


def test_a_key_that_comes_twice_in_a_shard_is_named(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Item:
        key: str

    class Twice:
        def load(self, shard_id: str) -> list[Item]:
            return [Item("a"), Item("b"), Item("a")]

        def run(self, items: Sequence[Item]) -> list[Outcome]:
            raise AssertionError

    summary = run_job(Job("toy", str(tmp_path), ["0"], Twice, {}, batch_size=4), LOCAL)
    assert summary.undone == {"0": "ValueError: shard 0: key a comes 2 times"}


class MortalWorker:
    """Stands for a worker in another process: it dies when it runs a poisonous key."""

    def __init__(self, keys: Sequence[str], poison: set[str], deaths_at_random: list[int]) -> None:
        self.keys, self.poison, self.deaths_at_random = keys, poison, deaths_at_random
        self.num_calls = self.num_deaths = 0

    def ready(self) -> None:
        self.done: list[str] = []
        self.quarantined: list[str] = []

    def renew(self) -> None:
        raise AssertionError("never needed here")

    def call(self, method: str, *arguments: Any) -> Any:
        self.num_calls += 1
        if method == "begin":
            self.ready()
            return self.keys
        if method == "commit":
            return None
        (keys,) = arguments
        if method == "quarantine":
            self.quarantined = list(keys)
            return Counter(failed=len(keys))
        if self.poison & set(keys) or self.num_calls in self.deaths_at_random:
            self.num_deaths += 1
            raise WorkerDied("exit code 1")
        self.done += keys
        return Counter(ok=len(keys))


class SilentBoard:
    """Takes what the runner tells the progress bar."""

    def begin(self, shard_id: str, num_items: int) -> None: ...
    def advance(self, shard_id: str, counts: Any) -> None: ...
    def undo(self, shard_id: str) -> None: ...
    def finish(self, shard_id: str) -> None: ...


def run_mortal(worker: MortalWorker, batch_size: int) -> str:
    job = Job("toy", "unused", ["0"], lambda: None, {}, batch_size)  # type: ignore[arg-type, return-value]
    return complete_shard("0", worker, job, LOCAL, SilentBoard())  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    num_items=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    poison=st.sets(st.integers(0, 29), max_size=3),
    deaths_at_random=st.lists(st.integers(2, 60), max_size=1),
)
def test_worker_deaths_end_in_the_quarantine_of_exactly_the_poisonous_items(
    num_items: int, batch_size: int, poison: set[int], deaths_at_random: list[int]
) -> None:
    keys = [str(number) for number in range(num_items)]
    poisonous = {str(number) for number in poison if number < num_items}
    worker = MortalWorker(keys, poisonous, deaths_at_random)
    assert run_mortal(worker, batch_size) == ""
    assert set(worker.quarantined) == poisonous
    assert sorted(worker.done) == sorted(set(keys) - poisonous)
    assert worker.num_deaths <= 4 * len(poisonous) + len(deaths_at_random)


def test_workers_that_die_of_everything_cost_the_shard() -> None:
    keys = [str(number) for number in range(100)]
    reason = run_mortal(MortalWorker(keys, set(keys), []), batch_size=10)
    assert reason == "more than 10 items ended their worker"


def test_suspects_run_first_and_alone_after_two_deaths() -> None:
    suspects = Suspects()
    assert list(suspects.batches("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    suspects.blame(["c", "d"])
    assert list(suspects.batches("abcde", 2)) == [["c", "d"], ["a", "b"], ["e"]]
    suspects.blame(["c", "d"])
    assert list(suspects.batches("abcde", 2)) == [["c"], ["d"], ["a", "b"], ["e"]]
    suspects.blame(["d"])
    assert suspects.quarantined == []
    suspects.blame(["d"])
    assert suspects.quarantined == ["d"]
    assert list(suspects.batches("abcde", 2)) == [["c"], ["a", "b"], ["e"]]


SLOW_JOB = """
import sys, time
from dataclasses import dataclass
from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import Job, run_job
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample

@dataclass(frozen=True)
class Item:
    key: str

class Slow:
    def load(self, shard_id):
        return [Item(f"{shard_id}-{number}") for number in range(5)]

    def run(self, items):
        time.sleep(0.01)
        return [Outcome(Row(i.key, "ok"), Sample(i.key, {"txt": b"x"})) for i in items]

shard_ids = [str(number) for number in range(8)]
raise SystemExit(
    run_job(Job("slow", sys.argv[1], shard_ids, Slow, {}, 1), JobsConfig()).exit_code
)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_job_ended_by_a_signal_is_finished_by_the_same_command(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", SLOW_JOB, str(tmp_path)]
    output = StepOutput.open(str(tmp_path))
    process = subprocess.Popen(
        command,
        cwd=REPO,
        stderr=subprocess.DEVNULL,
        # A background shell starts its commands with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while len(output.committed()) < 2:
        assert process.poll() is None, "the job ended by itself"
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(timeout=20) != 0
    done = output.committed()
    assert 2 <= len(done) < 8
    for shard_id in done:
        output.verify(shard_id)
    subprocess.run(command, cwd=REPO, check=True)
    assert (output.funnel().num_shards, output.funnel().num_ok) == (8, 40)
    assert len(output.storage.list()) == 8 * 4 + 1


@pytest.fixture(scope="module")
def ray_cluster() -> Any:
    import ray
    import ray.cloudpickle as cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
        )
        yield
        ray.shutdown()


def run_on_ray(job: Job, **changes: Any) -> JobSummary:
    config = {"executor": "ray", "num_workers": 2, "retry_seconds": 0.0, **changes}
    return run_job(job, JobsConfig.model_validate(config))


def exit_or_fail(key: str) -> None:
    if key == "1-6":
        os._exit(1)
    if key == "0-3":
        raise OSError(f"cannot do {key}")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_a_poisonous_item_is_quarantined_and_all_else_is_done(tmp_path: Path) -> None:
    job = make_toy_job(str(tmp_path), exit_or_fail, num_shards=4)
    summary = run_on_ray(job)
    assert summary.exit_code == 0
    assert summary.funnel.num_in == 40
    assert summary.funnel.reasons == {
        ("failed", "error OSError"): 1,
        ("failed", "worker died"): 1,
    }
    assert failed_keys(job) == ["0-3", "1-6"]
    assert read_keys(job) == [
        f"{i}-{k}" for i in range(4) for k in range(10) if f"{i}-{k}" not in ("0-3", "1-6")
    ]
    assert run_on_ray(job).num_skipped == 4


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_faults_reach_the_one_who_started_the_job(tmp_path: Path) -> None:
    def on_load(shard_id: str) -> None:
        if shard_id == "1":
            raise FileNotFoundError("images/1.tar: no such object")

    summary = run_on_ray(make_toy_job(str(tmp_path / "out"), fail_on(), on_load), num_workers=1)
    assert summary.undone == {"1": "FileNotFoundError: images/1.tar: no such object"}

    def make() -> Any:
        raise ValueError("recaption.captioner.path: no such model")

    job = Job("toy", str(tmp_path / "other"), ["0", "1"], functools.partial(make), {}, 4)
    with pytest.raises(ValueError, match="no such model"):
        run_on_ray(job, num_workers=1)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_more_workers_than_the_cluster_holds_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_toy_job("a/relative/path", fail_on(), num_shards=3)
    assert run_on_ray(job, num_workers=3, num_cpus_per_worker=2.0).exit_code == 0
    assert len(StepOutput.open(str(tmp_path / "a/relative/path")).committed()) == 3
