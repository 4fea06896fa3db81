"""Plant one fault at a time in copies of the repository, and see which tests fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.mutant import Mutant

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("t2i", "data_pipeline", "recaption", "launch")
# one failure is enough; --tb=no and -rfE leave a line of each, which begins with its kind
PYTEST = ("pytest", "-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-n0")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)
SECONDS_AT_MOST = 900


@dataclass(frozen=True)
class Outcome:
    """What the tests said to a fault.

    Attributes:
        mutant: the fault.
        killers: node ids of the tests that failed, the first ones only; () = it survived.
        seconds: that its tests took.
    """

    mutant: Mutant
    killers: tuple[str, ...]
    seconds: float


def copy_repository(target: Path, source: Path = REPO) -> Path:
    """The files that git tracks, as they stand in the working tree.

    Raises:
        ValueError: `source` is not a checkout of git.
    """
    listing = ["git", "-C", str(source), "ls-files", "-z", "--cached"]
    listed = subprocess.run(listing, capture_output=True, text=True)
    if listed.returncode:
        raise ValueError(f"faults are planted in what git tracks: {listed.stderr.strip()}")
    for name in filter(None, listed.stdout.split("\0")):
        if (source / name).exists():  # else it was deleted, but not yet in git
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
    return target


def run_python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python within a copy, which comes before an installed package.

    No bytecode is written: a file that changes twice in a second would be taken for its old self.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    environment |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS_AT_MOST,
    )


def failing(copy: Path, tests: Sequence[str]) -> tuple[str, ...]:
    """Node ids of the first tests that fail in a copy, () if all pass.

    Raises:
        ValueError: the tests could not be run at all, which says nothing of them.
    """
    try:
        done = run_python(copy, "-m", *PYTEST, *tests)
    except subprocess.TimeoutExpired:
        return (f"no end after {SECONDS_AT_MOST} s",)
    killers = tuple(FAILED.findall(done.stdout))
    if done.returncode not in (0, 1) or bool(killers) != bool(done.returncode):
        raise ValueError(f"these tests do not run: {' '.join(tests)}\n{done.stdout.strip()}")
    return killers


def check_without_fault(copy: Path, tests: Sequence[str]) -> None:
    """The copy is what its tests import, and they pass.

    Raises:
        ValueError: they do not.
    """
    files = ", ".join(f"{package}.__file__" for package in PACKAGES)
    code = f"import {', '.join(PACKAGES)}; print({files}, sep='\\n')"
    found = run_python(copy, "-c", code).stdout.split()
    if found != [str(copy / package / "__init__.py") for package in PACKAGES]:
        raise ValueError(f"tests in the copy {copy} import other code: {' '.join(found)}")
    if failed := failing(copy, tests):
        raise ValueError(f"a test fails without any fault: {' '.join(failed)}")


def try_mutant(mutant: Mutant, copy: Path) -> Outcome:
    """Plant a fault in a copy, run its tests there, and take the fault out again.

    Raises:
        ValueError: there is not exactly one place for it, or its tests could not be run.
    """
    path = copy / mutant.file
    sound, start = path.read_text(), time.perf_counter()
    path.write_text(mutant.planted(sound))
    try:
        killers = failing(copy, mutant.tests)
    except ValueError as error:
        raise ValueError(f"mutant {mutant.name!r}: {error}") from error
    finally:
        path.write_text(sound)
    return Outcome(mutant, killers, time.perf_counter() - start)


def try_all(mutants: Sequence[Mutant], folder: Path, jobs: int = 1) -> Iterator[Outcome]:
    """Try faults in copies under an empty folder, `jobs` at a time; outcomes come in order.

    Raises:
        ValueError: as of `try_mutant`, or the tests fail without any fault.
    """
    for mutant in mutants:
        mutant.planted((REPO / mutant.file).read_text())
    copies = [copy_repository(folder / str(number)) for number in range(min(jobs, len(mutants)))]
    check_without_fault(copies[0], sorted({test for mutant in mutants for test in mutant.tests}))
    free: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def try_one(mutant: Mutant) -> Outcome:
        copy = free.get()
        try:
            return try_mutant(mutant, copy)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(jobs) as workers:
        yield from workers.map(try_one, mutants)
