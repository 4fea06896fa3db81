"""Proves that answers are made once for the same facts, by one of many threads or processes, and that
only the newest are kept."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from data_pipeline.loading import remembered
from data_pipeline.loading.remembered import remember
from data_pipeline.storage.interface import StorageConfig


def test_an_answer_is_made_once_for_the_same_facts(tmp_path: Path) -> None:
    config = StorageConfig(cache_folder=str(tmp_path))
    made: list[str] = []

    def make(name: str) -> dict[str, list[int]]:
        made.append(name)
        return {name: [1, 2]}

    for facts in (["a", "b"], ["ab"], ["a", "b"], ["b", "a"]):
        name = "/".join(facts)
        assert remember(config, "kind", facts, lambda name=name: make(name)) == {name: [1, 2]}
    assert made == ["a/b", "ab", "b/a"]
    remember(config, "another kind", ["ab"], lambda: make("other"))
    assert made[3:] == ["other"]


def test_many_that_ask_together_wait_for_one(tmp_path: Path) -> None:
    config = StorageConfig(cache_folder=str(tmp_path))
    made: list[int] = []
    found: list[int] = []

    def ask() -> None:
        def make() -> int:
            made.append(1)
            time.sleep(0.05)
            return 7

        found.append(remember(config, "kind", ["fact"], make))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (made, found) == ([1], [7] * 8)


def test_a_failed_attempt_leaves_nothing(tmp_path: Path) -> None:
    config = StorageConfig(cache_folder=str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        remember(config, "kind", ["fact"], lambda: 1 // 0)
    assert remember(config, "kind", ["fact"], lambda: 3) == 3


def test_only_the_newest_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "KEPT", 2)
    for number in range(5):
        remember(StorageConfig(cache_folder=str(tmp_path)), "kind", [str(number)], lambda: number)  # noqa: B023
    assert len(list((tmp_path / "kind").glob("*.json"))) == 2
