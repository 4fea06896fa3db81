"""Proves the commit protocol: whatever the moment at which a writer dies, a reader sees a shard
whole or not at all; one of several writers wins; counts add up; changed settings are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.outputs.ledger import Funnel, Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig

REPO = Path(__file__).resolve().parents[3]


def kept(key: str) -> Outcome:
    return Outcome(Row(key, "ok"), Sample(key, {"txt": key.encode()}))


OUTCOMES = [
    kept("a"),
    Outcome(Row("b", "filtered", "score<=5", {"score": 4.5})),
    Outcome(Row("c", "failed", "http 404", detail="GET http://localhost/c")),
    kept("d"),
]


def commit(output: StepOutput, shard_id: str, outcomes: list[Outcome]) -> None:
    with output.writer(shard_id, {"score": "float32"}) as writer:
        for outcome in outcomes:
            writer.add(outcome)
        writer.commit()


@pytest.fixture
def output(tmp_path: Path) -> StepOutput:
    return StepOutput.open(str(tmp_path / "out"))


def test_a_committed_shard_is_read_back(output: StepOutput) -> None:
    commit(output, "00000", OUTCOMES)
    assert output.committed() == ["00000"]
    assert [(s.key, dict(s.parts)) for s in output.read("00000")] == [
        ("a", {"txt": b"a"}),
        ("d", {"txt": b"d"}),
    ]
    assert output.index("00000").keys == ("a", "d")
    assert output.ok_keys("00000") == ["a", "d"]
    assert output.rows("00000").to_pylist() == [
        {"key": "a", "status": "ok", "reason": "", "detail": "", "score": None},
        {"key": "b", "status": "filtered", "reason": "score<=5", "detail": "", "score": 4.5},
        {
            "key": "c",
            "status": "failed",
            "reason": "http 404",
            "detail": "GET http://localhost/c",
            "score": None,
        },
        {"key": "d", "status": "ok", "reason": "", "detail": "", "score": None},
    ]
    assert str(output.rows("00000").schema.field("score").type) == "float"
    output.verify("00000")


def test_the_same_works_on_s3(s3_url: str, s3_config: StorageConfig) -> None:
    output = StepOutput.open(s3_url, s3_config)
    output.begin({"size": 1})
    for shard_id in ("00000", "00001"):
        commit(output, shard_id, OUTCOMES)
    assert [sample.key for sample in output.read("00001")] == ["a", "d"]
    assert output.funnel().num_in == 8
    output.verify("00000")


STATUSES = st.sampled_from([("ok", ""), ("filtered", "small"), ("failed", "404"), ("failed", "x")])


@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(shards=st.lists(st.lists(STATUSES, max_size=8), max_size=4))
def test_the_funnel_accounts_for_every_item(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[tuple[str, str]]]
) -> None:
    output = StepOutput.open(str(tmp_path_factory.mktemp("out")))
    for number, statuses in enumerate(shards):
        outcomes = [
            kept(f"k{i}") if status == "ok" else Outcome(Row(f"k{i}", status, reason))  # type: ignore[arg-type]
            for i, (status, reason) in enumerate(statuses)
        ]
        commit(output, f"{number:05d}", outcomes)
    everything = [pair for statuses in shards for pair in statuses]
    funnel = output.funnel()
    assert funnel.num_shards == len(shards)
    assert funnel.num_in == len(everything)
    assert funnel.num_in == funnel.num_ok + funnel.num_filtered + funnel.num_failed
    assert sum(funnel.reasons.values()) == funnel.num_filtered + funnel.num_failed
    for pair in set(everything) - {("ok", "")}:
        assert funnel.reasons[pair] == everything.count(pair)
    read = [len(list(output.read(shard_id))) for shard_id in output.committed()]
    assert read == [statuses.count(("ok", "")) for statuses in shards]


WRITE_AND_DIE = """
import os, sys
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.outputs.shards import Sample
from data_pipeline.storage.local import LocalStorage

writes_left = int(sys.argv[2])

def dying(write):
    def wrapper(self, key, *data):
        global writes_left
        if writes_left == 0:
            os.kill(os.getpid(), 9)
        writes_left -= 1
        return write(self, key, *data)
    return wrapper

for name in ("put", "put_file", "put_if_absent"):
    setattr(LocalStorage, name, dying(getattr(LocalStorage, name)))
with StepOutput.open(sys.argv[1]).writer("00000") as writer:
    writer.add(Outcome(Row("a", "ok"), Sample("a", {"txt": b"a"})))
    writer.commit()
"""


@pytest.mark.parametrize("num_writes", [0, 2, 3, 4])
def test_a_writer_killed_between_any_two_writes_shows_nothing_half_done(
    output: StepOutput, num_writes: int
) -> None:
    command = [sys.executable, "-c", WRITE_AND_DIE, output.url, str(num_writes)]
    process = subprocess.run(command, cwd=REPO, check=False)
    assert process.returncode == (-9 if num_writes < 4 else 0)
    assert output.committed() == (["00000"] if num_writes == 4 else [])
    commit(output, "00000", [kept("a")])
    assert [sample.key for sample in output.read("00000")] == ["a"]
    output.remove_leftovers()
    assert len(output.storage.list()) == 4
    output.verify("00000")


def test_of_two_writers_the_first_wins_and_the_other_leaves_nothing(output: StepOutput) -> None:
    with output.writer("00000") as slow, output.writer("00000") as fast:
        slow.add(kept("slow"))
        fast.add(kept("fast"))
        manifest = fast.commit()
        assert slow.commit() == manifest
    assert [sample.key for sample in output.read("00000")] == ["fast"]
    assert len(output.storage.list()) == 4
    assert list(output.storage.scratch().iterdir()) == []


def test_leftovers_of_shards_not_yet_committed_are_not_touched(output: StepOutput) -> None:
    output.storage.put("shards/00001-abcd.tar", b"still being written")
    output.storage.put("shards/00000-abcd.tar", b"lost")
    commit(output, "00000", [kept("a")])
    assert output.remove_leftovers() == 1
    assert output.storage.list("shards/00001") == ["shards/00001-abcd.tar"]


def test_changed_settings_are_refused_with_both_values(output: StepOutput) -> None:
    output.begin({"model": {"path": "one", "tokens": 4}, "size": 256})
    output.begin({"size": 256, "model": {"path": "one", "tokens": 4}})
    commit(output, "00000", [kept("a")])
    with pytest.raises(ValueError, match=r'model\.path was "one", now "two"') as caught:
        output.begin({"model": {"path": "two", "tokens": 4}, "size": 256})
    assert output.url in str(caught.value)
    with pytest.raises(ValueError, match=r"size was 256, now not set"):
        output.begin({"model": {"path": "one", "tokens": 4}})
    assert output.fingerprint() == {"model": {"path": "one", "tokens": 4}, "size": 256}


def test_settings_may_change_while_nothing_is_committed(output: StepOutput) -> None:
    assert output.fingerprint() is None
    output.begin({"path": "mistyped"})
    output.begin({"path": "right"})
    assert output.fingerprint() == {"path": "right"}


def test_a_shard_of_failures_reads_as_empty(output: StepOutput) -> None:
    commit(output, "00000", [OUTCOMES[2]])
    assert list(output.read("00000")) == []
    assert output.index("00000").keys == ()


def test_a_step_that_keeps_rows_only_has_no_samples_to_read(output: StepOutput) -> None:
    commit(output, "00000", [Outcome(Row("a", "ok"))])
    assert output.ok_keys("00000") == ["a"]
    with pytest.raises(ValueError, match="rows only"):
        list(output.read("00000"))
    with pytest.raises(ValueError, match="rows only"):
        output.index("00000")


def test_a_tar_that_was_cut_or_removed_is_named(output: StepOutput) -> None:
    commit(output, "00000", OUTCOMES)
    path = output.shard_path("00000")
    data = path.read_bytes()
    path.write_bytes(data[:-512])
    with pytest.raises(ValueError, match=r"00000-.*were committed"):
        list(output.read("00000"))
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(ValueError, match="differs from what was committed"):
        output.verify("00000")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="00000-"):
        list(output.read("00000"))


def test_what_is_not_committed_cannot_be_read(output: StepOutput) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest/00007\.json"):
        list(output.read("00007"))


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(Row("a", "failed", "404"), Sample("a", {"txt": b""})),
        Outcome(Row("a", "ok"), Sample("b", {"txt": b""})),
    ],
)
def test_a_sample_belongs_to_an_ok_row_of_its_key(output: StepOutput, outcome: Outcome) -> None:
    with output.writer("00000") as writer, pytest.raises(AssertionError):
        writer.add(outcome)


def test_a_key_with_two_rows_is_refused(output: StepOutput) -> None:
    with pytest.raises(ValueError, match="key c has more than one row"):
        commit(output, "00000", [OUTCOMES[2], OUTCOMES[2]])
    assert output.committed() == []


def test_a_column_that_does_not_fit_its_type_is_named(output: StepOutput) -> None:
    with pytest.raises(ValueError, match="ledger column score"):
        commit(output, "00000", [Outcome(Row("a", "ok", columns={"score": "high"}))])


def test_ok_rows_are_counted_by_the_values_of_a_column(output: StepOutput) -> None:
    rows = [Row(f"{n}", "ok", columns={"size": size}) for n, size in enumerate("smlmm")]
    with output.writer("00000", counted_columns=["size"]) as writer:
        for row in (*rows, Row("lost", "failed", "404")):
            writer.add(Outcome(row))
        manifest = writer.commit()
    assert manifest.num_ok_by == {"size": {"s": 1, "m": 3, "l": 1}}
    assert StepOutput.open(output.url).manifests() == [manifest]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_ok": 3}, "num_in is 4, but its parts are 5"),
        ({"num_ok_by": {"size": {"s": 1}}}, r"num_ok is 2, but num_ok_by\.size are 1"),
    ],
)
def test_a_manifest_whose_counts_do_not_add_up_is_refused(
    output: StepOutput, change: dict[str, object], reason: str
) -> None:
    commit(output, "00000", OUTCOMES)
    text = json.loads(output.storage.get("manifest/00000.json")) | change
    output.storage.put("manifest/00000.json", json.dumps(text).encode())
    with pytest.raises(ValueError, match=rf"out/manifest/00000\.json: damaged \({reason}\)"):
        output.manifests()
    output.storage.put("manifest/00000.json", b'{"id"')
    with pytest.raises(ValueError, match=r"out/manifest/00000\.json: damaged"):
        output.manifests()


def test_a_funnel_prints_its_most_frequent_reasons() -> None:
    funnel = Funnel(
        1, 10, 4, 1, 5, {("failed", "404"): 3, ("failed", "x"): 2, ("filtered", "s"): 1}
    )
    assert str(funnel) == "in 10, ok 4, filtered 1 (s: 1), failed 5 (404: 3, x: 2)"
