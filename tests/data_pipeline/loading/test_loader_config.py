"""Proves that impossible loader settings are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from data_pipeline.loading.loader_config import LoaderConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": []}, "at least one dataset"),
        ({"caption_levels": [0.5, 0.5, 0.5, -0.5]}, "at least 0 and sum to 1"),
        ({"caption_levels": [0.5, 0.1, 0.1, 0.1]}, "at least 0 and sum to 1"),
        ({"caption_dropout": 1.5}, "caption_dropout"),
        ({"datasets": [{"path": "x", "weight": 0}]}, "weight"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoaderConfig.model_validate(changes)
