"""Proves that no file of others can run code here: what unpickles is named and told to refuse objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("launch", "recaption", "data_pipeline", "t2i")
UNPICKLERS = {"pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load"}


def dangers(source: str) -> Iterator[str]:
    """The calls of a module that would unpickle any object."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            name in UNPICKLERS
            or (name == "torch.load" and settings.get("weights_only") != "True")
            or settings.get("allow_pickle", "False") != "False"
        ):
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_call_unpickles_objects(package: str) -> None:
    for path in sorted((REPO / package).rglob("*.py")):
        assert list(dangers(path.read_text())) == [], path


def test_the_search_finds_them() -> None:
    assert list(dangers("torch.load(path)"))
    assert list(dangers("torch.load(path, weights_only=False)"))
    assert list(dangers("np.load(path, allow_pickle=True)"))
    assert list(dangers("pickle.loads(data)"))
    assert not list(dangers("torch.load(path, weights_only=True); np.load(path)"))
