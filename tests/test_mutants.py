"""Proves the tool that plants faults: each fault has one place in today's code and tests that exist,
a fault is told from a harmless change, and a fault that proves nothing is refused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.__main__ import all_mutants, chosen, main, try_and_report
from tests.mutants.mutant import Mutant
from tests.mutants.run import REPO, check_without_fault, copy_repository, try_mutant

CONFIG, CONFIG_TESTS = (
    "data_pipeline/loading/loader_config.py",
    "tests/data_pipeline/loading/test_loader_config.py",
)
MESSAGE = "name at least one dataset"
REWORDED = Mutant("reworded", CONFIG, MESSAGE, "name a dataset", (CONFIG_TESTS,))
HARMLESS = Mutant("harmless", CONFIG, MESSAGE, f"really {MESSAGE}", (CONFIG_TESTS,))


@pytest.mark.parametrize("mutant", all_mutants(), ids=lambda mutant: mutant.name)
def test_every_fault_has_its_place_and_its_tests(mutant: Mutant) -> None:
    sound = (REPO / mutant.file).read_text()
    assert mutant.planted(sound) != sound
    assert mutant.tests
    for node in mutant.tests:
        file, *names = node.partition("[")[0].split("::")
        text = (REPO / file).read_text()
        assert all(re.search(rf"(def|class) {name}\b", text) for name in names), node


def test_names_are_unique() -> None:
    names = Counter(mutant.name for mutant in all_mutants())
    assert names.most_common(1)[0][1] == 1


@pytest.mark.parametrize("text", ["nothing", f"{MESSAGE}, {MESSAGE}"])
def test_a_fault_without_exactly_one_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"must occur once in {re.escape(CONFIG)}"):
        REWORDED.planted(text)


@pytest.mark.slow
def test_a_fault_is_killed_and_a_harmless_change_survives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (REPO / CONFIG).read_text()
    assert try_and_report([REWORDED, HARMLESS], jobs=1) == 1
    *_, killed, survived, total = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"reworded  {CONFIG_TESTS}::test_impossible_\w+\[.*at least one.*\] +\S+s", killed
    )
    assert re.fullmatch(rf"harmless  SURVIVED {CONFIG_TESTS} +\S+s", survived)
    assert total == "1 of 2 killed"
    assert (REPO / CONFIG).read_text() == before


def test_a_fault_that_stops_its_tests_from_running_is_refused_and_taken_out(tmp_path: Path) -> None:
    copy = copy_repository(tmp_path)
    broken = Mutant("broken", CONFIG, MESSAGE, '"', (CONFIG_TESTS,))
    with pytest.raises(ValueError, match="mutant 'broken': these tests do not run"):
        try_mutant(broken, copy)
    assert (copy / CONFIG).read_text() == (REPO / CONFIG).read_text()


def test_a_test_that_fails_without_any_fault_is_an_error(tmp_path: Path) -> None:
    path = copy_repository(tmp_path) / CONFIG
    path.write_text(REWORDED.planted(path.read_text()))
    with pytest.raises(ValueError, match=f"fails without any fault: {CONFIG_TESTS}::test_imp"):
        check_without_fault(tmp_path, [CONFIG_TESTS])


def test_faults_are_chosen_by_parts_of_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen([REWORDED, HARMLESS], []) == [REWORDED, HARMLESS]
    assert chosen([REWORDED, HARMLESS], ["HARM"]) == [HARMLESS]
    with pytest.raises(ValueError, match="no fault has 'other' in its name"):
        chosen([REWORDED, HARMLESS], ["reworded", "other"])
    assert main(["--list", "block: shift"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("block: shift and scale swapped  ")


def test_jobs_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="--jobs 0: at least 1"):
        main(["--jobs", "0"])
