"""Proves that tables of the documentation are whole: each row has as many cells as its header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
CODE = re.compile(r"`[^`]*`")


def tables(text: str) -> Iterator[list[str]]:
    """Rows of each table outside of fenced blocks, as they are written."""
    rows: list[str] = []
    for line in [*re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).split("\n"), ""]:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            yield rows
            rows = []


def cells(row: str) -> list[str]:
    """A bar parts cells also within code, unless it is escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def faults(text: str) -> list[str]:
    """Rows with other cells than their header, with code that does not end, or that is cut short."""
    found = []
    for header, *rows in tables(text):
        for row in rows:
            code = [span.strip("`") for span in CODE.findall(row)]
            is_whole = len(cells(row)) == len(cells(header)) and row.rstrip().endswith("|")
            if not is_whole or row.count("`") % 2 or any(part.endswith(",") for part in code):
                found.append(row)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_tables_are_whole(page: Path) -> None:
    assert faults(page.read_text()) == []


@pytest.mark.parametrize(
    "row", ["| a |", "| a | b | c |", "| a | `b |", "| a | b", "| `a,` | b |", "| `a|b` | c |"]
)
def test_a_broken_row_is_found(row: str) -> None:
    head = "| one | two |\n|---|---|\n"
    assert faults(f"{head}| `a` | b |\n{row}\n") == [row]
    assert faults(f"{head}| `a\\|b` | |\n\n```\n| x |\n```\n") == []
