"""What to make images of: prompts of the command line and of files, built-in ones, classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from t2i.config import ASSETS_FOLDER

# Written by launch.nano.prompts.
BUILTIN_PROMPTS = ASSETS_FOLDER / "nano" / "prompts.txt"


def read_classes(text: str) -> list[str]:
    """ "207,360" or "0-999" -> the classes as they stand in metadata, in place of prompts."""
    classes: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not all(
            end.isascii() and end.isdecimal() for end in ([first, last] if dash else [first])
        ):
            raise ValueError(
                f"--classes {text}: expected numbers of classes such as 207,360 or 0-999"
            )
        classes += map(str, range(int(first), int(last if dash else first) + 1))
    if not classes:
        raise ValueError(f"--classes {text}: no class lies in it")
    return classes


def read_prompts(prompts: Sequence[str], path: Path | None) -> list[str]:
    """Prompts of the command line, then those of a file in UTF-8, read by its ending.

    ``.jsonl``: objects with "prompt" (GenEval's metadata); ``.tsv``: a column "Prompt"
    (PartiPrompts); any other: a prompt a line.

    Raises:
        ValueError: no prompts, or a line without one; names file and line.
    """
    if path is None:
        return list(prompts)
    try:
        in_file = [prompt for prompt in _prompts_of(path) if prompt]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); convert it") from None
    if not in_file:
        raise ValueError(f"{path}: no prompts in it")
    return [*prompts, *in_file]


def _prompts_of(path: Path) -> Iterator[str]:
    # utf-8-sig: editors of Windows begin a file with a mark that is no part of the first prompt
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".tsv":
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if "Prompt" not in (rows.fieldnames or ()):
                raise ValueError(f'{path}:1: expected a column "Prompt"')
            yield from ((row["Prompt"] or "").strip() for row in rows)
        elif path.suffix == ".jsonl":
            for number, line in enumerate(file, start=1):
                yield _json_prompt(line, f"{path}:{number}") if line.strip() else ""
        else:
            yield from (line.strip() for line in file)


def _json_prompt(line: str, place: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise ValueError(f'{place}: expected a JSON object with "prompt", a string')
    return prompt


def builtin_prompts(num: int) -> list[str]:
    """The first of the bundled prompts: detailed captions of scenes that the nano models never saw.

    Raises:
        ValueError: there are fewer; names the file.
    """
    prompts = read_prompts([], BUILTIN_PROMPTS)
    if num > len(prompts):
        raise ValueError(
            f"t2i.sampling.num_builtin_prompts={num}: {BUILTIN_PROMPTS} has {len(prompts)}; make "
            "more with python -m launch.nano.prompts and give them with --prompts"
        )
    return prompts[:num]
