"""A settings class as flags of a command: --other-weights of the field other_weights. No torch here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from t2i.config import Section
from t2i.sampling.flags import SectionT, validated


def add_settings_flags(
    parser: argparse.ArgumentParser, settings: type[Section], title: str
) -> None:
    """A flag for each field; what is not given is taken from the config."""
    group = parser.add_argument_group(title)
    for name, field in settings.model_fields.items():
        flag, text = f"--{name.replace('_', '-')}", field.description or ""
        if field.annotation is bool:
            group.add_argument(flag, action="store_true", default=None, help=text)
            continue
        is_list = get_origin(field.annotation) is tuple
        default = "" if field.is_required() or field.default in (None, ()) else field.default
        group.add_argument(
            flag,
            nargs="+" if is_list else None,
            metavar=_metavar(field.annotation),
            help=f"{text} (default: {default})".replace("%", "%%") if default != "" else text,
        )


def read_settings(
    args: argparse.Namespace, settings: type[SectionT], config: Mapping[str, Any]
) -> SectionT:
    """The config's values with the flags that were given in their place.

    Raises:
        ValueError: one that does not fit; names its flag.
    """
    given = {name: getattr(args, name) for name in settings.model_fields}
    return validated(
        settings, {**config, **{name: value for name, value in given.items() if value is not None}}
    )


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is not None and all(isinstance(a, str) for a in get_args(annotation)):
        return "|".join(get_args(annotation))
    numbers = {int: "N", float: "X"}
    return numbers.get(annotation, "VALUE")
