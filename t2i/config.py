"""Typed configs: YAML with ``base:``, ``--set a.b=c``, unknown keys refused. No torch here.

A component keeps its settings class (a `Section`) beside itself. A command gathers the sections
that it reads in one schema, each field bound to a dotted name of the YAML file:

    class Config(Section):
        download: DownloadConfig = section("data_pipeline.download")

Values come from, in this order: defaults, the ``base:`` file, the file, ``--set``. Strings may
hold ``${root}`` (the file's top-level ``root``), ``${assets}`` (the bundled ``t2i/assets``) and
``${repo}`` (the folder that holds ``configs``). Relative paths are relative to the current folder.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

REPO_FOLDER = Path(__file__).resolve().parent.parent
ASSETS_FOLDER = Path(__file__).resolve().parent / "assets"
DEFAULT_CONFIG = REPO_FOLDER / "configs" / "nano.yaml"

# Every section a config file may have. The fields live beside the components.
SECTIONS = (
    "data_pipeline.source",
    "data_pipeline.class_folders",
    "data_pipeline.download",
    "data_pipeline.filter",
    "data_pipeline.latents",
    "data_pipeline.loader",
    "data_pipeline.benchmark",
    "data_pipeline.jobs",
    "data_pipeline.storage",
    "recaption.captioner",
    "recaption.job",
    "t2i.models.tr_dit",
    "t2i.models.sit",
    "t2i.models.mask_dit",
    "t2i.encoders.vae",
    "t2i.encoders.text",
    "t2i.training",
    "t2i.sampling",
    "t2i.guidance",
    "t2i.evaluation",
    "t2i.export",
    "t2i.benchmark",
    "launch.train",
    "launch.plan",
    "launch.report",
)


class ConfigError(ValueError):
    """A config file or override that cannot be used; the message names file, key and way out."""


class Section(BaseModel):
    """Base of every settings class: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


SchemaT = TypeVar("SchemaT", bound=Section)


def section(name: str) -> Any:
    """A schema's field that is read from the YAML section ``name``, such as "t2i.sampling"."""
    assert name in SECTIONS, f"{name} is not in t2i.config.SECTIONS"
    return Field(json_schema_extra={"section": name})


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``, ``--set`` and ``--print-config`` to a command."""
    group = parser.add_argument_group("config")
    group.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="YAML config (default: the nano family, configs/nano.yaml)",
    )
    group.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, e.g. --set t2i.sampling.steps=20 (may repeat)",
    )
    group.add_argument(
        "--print-config", action="store_true", help="print the config as it is used, then stop"
    )


def config_from_args(args: argparse.Namespace, schema: type[SchemaT]) -> SchemaT:
    """The validated config of a command; with ``--print-config`` print it and exit with 0.

    Raises:
        ConfigError: an unknown or invalid value; names the file, the key and the valid names.
    """
    config = load_config(args.config, args.overrides, schema)
    if args.print_config:
        print(dump_config(config), end="")
        raise SystemExit(0)
    return config


def describe_config(args: argparse.Namespace) -> str:
    """One line for the user: which config a command runs with, and the way to full scale."""
    if args.config.resolve() == DEFAULT_CONFIG:
        return "using configs/nano.yaml (built-in nano family); full scale: --config FILE, e.g. configs/tr_dit_2b5.yaml"
    return f"using {args.config}"


def load_config(path: Path, overrides: Sequence[str], schema: type[SchemaT]) -> SchemaT:
    """Read ``path`` and its bases, apply ``overrides``, validate the schema's sections.

    Raises:
        ConfigError: see `config_from_args`.
    """
    tree = _read_tree(path, ())
    for override in overrides:
        tree = _apply_override(tree, override)
    _refuse_unknown_sections(tree, path)
    variables = {
        "root": str(tree.get("root", "outputs")),
        "assets": str(ASSETS_FOLDER),
        "repo": str(REPO_FOLDER),
    }
    values: dict[str, Any] = {}
    for field, name in section_names(schema).items():
        subtree = _substitute(_lookup(tree, name), variables, path, name)
        values[field] = _validate(subtree, schema, field, path, name)
    return schema.model_construct(**values)


def section_names(schema: type[Section]) -> dict[str, str]:
    """Field name -> dotted YAML section, for a command's schema."""
    names = {}
    for field, info in schema.model_fields.items():
        extra = info.json_schema_extra
        assert isinstance(extra, dict), f"{schema.__name__}.{field} is not bound with section()"
        names[field] = str(extra["section"])
    return names


def dump_config(config: Section) -> str:
    """YAML of a command's config, defaults included; `load_config` reads it back."""
    tree: dict[str, Any] = {}
    for field, name in section_names(type(config)).items():
        value = getattr(config, field).model_dump(mode="json")
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return yaml.safe_dump(tree, sort_keys=False)


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: base: goes in a circle through {[str(p) for p in seen]}")
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    return _merge(_read_tree(path.parent / base, (*seen, path.resolve())), tree)


def _merge(base: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in difference.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _apply_override(tree: dict[str, Any], override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, e.g. t2i.sampling.steps=20")
    difference: Any = yaml.safe_load(text)
    for part in reversed(key.split(".")):
        difference = {part: difference}
    return _merge(tree, difference)


def _refuse_unknown_sections(tree: Mapping[str, Any], path: Path) -> None:
    for name in _unknown_names(tree):
        raise ConfigError(f"{path}: unknown section '{name}'{_suggest(name, (*SECTIONS, 'root'))}")


def _unknown_names(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in SECTIONS or name in ("root", "stage"):  # stage: of a run's config.yaml
            continue
        is_parent = any(known.startswith(f"{name}.") for known in SECTIONS)
        if not is_parent or not isinstance(value, dict):
            yield name
        else:
            yield from _unknown_names(value, f"{name}.")


def _suggest(name: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    listing = ", ".join(sorted(valid))
    return f"; did you mean '{close[0]}'? valid: {listing}" if close else ""


def _lookup(tree: Mapping[str, Any], name: str) -> Any:
    node: Any = tree
    for part in name.split("."):
        node = (node or {}).get(part, {})
    return {} if node is None else node


def _substitute(value: Any, variables: Mapping[str, str], path: Path, name: str) -> Any:
    if isinstance(value, dict):
        return {k: _substitute(v, variables, path, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_substitute(v, variables, path, name) for v in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        return Template(value).substitute(variables)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: {name}: {value!r}: unknown variable {error}; valid: "
            + ", ".join(f"${{{variable}}}" for variable in variables)
        ) from None


def _validate(subtree: Any, schema: type[Section], field: str, path: Path, name: str) -> BaseModel:
    section_class = schema.model_fields[field].annotation
    assert isinstance(section_class, type)
    assert issubclass(section_class, BaseModel)
    try:
        return section_class.model_validate(subtree)
    except ValidationError as error:
        lines = [_explain(details, section_class, name) for details in error.errors()]
        raise ConfigError(f"{path}: " + "; ".join(lines)) from None


def _explain(details: Any, section_class: type[BaseModel], name: str) -> str:
    location = [str(part) for part in details["loc"]]
    parts, owner = [name], section_class
    for part in location[:-1]:
        choice = _choice(owner, part)
        if choice is None:
            parts.append(part)
        owner = choice or _type_of_field(owner, part)
    key = ".".join([*parts, *location[-1:]])
    if details["type"] == "union_tag_not_found":
        return f"{key}: the key 'name' is missing, which says what it is (got {details['input']!r})"
    if details["type"] != "extra_forbidden":
        message = details["msg"].removeprefix("Value error, ")
        # a validator of ours that sees a whole section says itself which of its values are wrong
        names_values = details["type"] == "value_error" and isinstance(details["input"], dict)
        return f"{key}: {message}" + ("" if names_values else f" (got {details['input']!r})")
    valid = tuple(owner.model_fields) if hasattr(owner, "model_fields") else ()
    return f"unknown key '{key}'{_suggest(location[-1], valid)}"


def _choice(owner: Any, part: str) -> Any:
    """Of settings classes that are told apart by their key ``name``, the one named ``part``.

    A location of pydantic's names it, although it is no key of the file.
    """
    choices = [
        c for c in get_args(owner) if hasattr(c, "model_fields") and "name" in c.model_fields
    ]
    return next((c for c in choices if c.model_fields["name"].default == part), None)


def _type_of_field(owner: Any, part: str) -> Any:
    field = owner.model_fields.get(part) if hasattr(owner, "model_fields") else None
    return field.annotation if field is not None else None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"t2i.training.steps": 200, ...} of a nested mapping; empty ones are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
