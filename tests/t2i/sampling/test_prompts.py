"""Prompts: the command line's, those of text, JSON lines and tables, built-in ones; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2i.sampling.prompts import builtin_prompts, read_prompts
from t2i.shapes import parse_scene


def test_prompts_come_from_arguments_and_files(tmp_path: Path) -> None:
    text, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_text("a circle\n\n a square \n")
    lines.write_text(json.dumps({"prompt": "a cross", "tag": "x"}) + "\n")
    assert read_prompts(["first"], text) == ["first", "a circle", "a square"]
    assert read_prompts([], lines) == ["a cross"]
    lines.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl:2: expected a JSON object"):
        read_prompts([], lines)


def test_prompts_of_a_table_keep_their_quotation_marks(tmp_path: Path) -> None:
    table = tmp_path / "prompts.tsv"
    table.write_text('Prompt\tCategory\n"G I G" painted\tArts\na dog\tAnimals\n')
    assert read_prompts([], table) == ['"G I G" painted', "a dog"]
    table.write_text("Text\na dog\n")
    with pytest.raises(ValueError, match=r'prompts\.tsv:1: expected a column "Prompt"'):
        read_prompts([], table)


@pytest.mark.parametrize(
    ("name", "count"), [("evaluation_metadata.jsonl", 553), ("PartiPrompts.tsv", 1632)]
)
def test_public_prompt_sets_are_read_whole(name: str, count: int) -> None:
    path = Path(__file__).parents[4] / "shared/data/prompts" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    assert len(set(read_prompts([], path))) == count


def test_builtin_prompts_tell_whole_scenes() -> None:
    prompts = builtin_prompts(512)
    assert len({parse_scene(prompt) for prompt in prompts}) == 512
    assert builtin_prompts(16) == prompts[:16]
    with pytest.raises(ValueError, match=r"num_builtin_prompts=513: .*prompts\.txt has 512"):
        builtin_prompts(513)


@pytest.mark.parametrize("line", ['{"prompt": null}', '{"prompt": ["x"]}', '{"prompt": 3}'])
def test_only_text_is_a_prompt(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=r'prompts\.jsonl:2: expected .* "prompt", a string'):
        read_prompts([], path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "a dog\n"), ("a.tsv", "Prompt\na dog\n"), ("a.jsonl", '{"prompt": "a dog"}\n')],
)
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig")
    assert read_prompts([], path) == ["a dog"]


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("caf\u00e9\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"prompts\.txt: not UTF-8 text"):
        read_prompts([], path)
