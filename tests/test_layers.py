"""Proves the layers: imports point down the list only, and each dependency stays in its room.

Every import of the four packages is read from the source, those inside functions too, and held
against LAYERS (top to bottom) and ALLOWED_IN (who may import a heavy dependency).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("launch", "recaption", "data_pipeline", "t2i")

# Top to bottom. A module belongs to the longest prefix that fits it; modules of one layer
# may import each other.
LAYERS = (
    ("launch",),
    ("recaption.cli",),
    ("recaption",),
    ("data_pipeline.benchmark",),
    ("data_pipeline.loader", "data_pipeline.benchmarks"),
    ("data_pipeline.latents", "data_pipeline.filter", "data_pipeline.download"),
    ("data_pipeline.sources",),
    ("data_pipeline.loading.sample_reader", "data_pipeline.loading.catalogs"),
    ("data_pipeline.loading.order", "data_pipeline.loading.tar_catalog"),
    ("data_pipeline.loading.catalog",),
    ("data_pipeline.loading",),
    ("data_pipeline.jobs.runner",),
    ("data_pipeline.jobs",),
    ("data_pipeline.outputs.fingerprint",),
    ("data_pipeline.outputs.step_output",),
    ("data_pipeline.outputs.committer",),
    ("data_pipeline.outputs.ledger",),
    ("data_pipeline.outputs",),
    ("data_pipeline.pictures", "data_pipeline.web"),
    ("data_pipeline.storage.stores",),
    ("data_pipeline.storage.local", "data_pipeline.storage.s3"),
    ("data_pipeline.storage",),
    ("t2i.sample", "t2i.evaluate", "t2i.side_by_side", "t2i.benchmark", "t2i.export"),
    ("t2i.benchmarks.inference", "t2i.benchmarks.training"),
    ("t2i.benchmarks",),
    ("t2i.evaluation.commands",),
    ("t2i.evaluation.runs", "t2i.evaluation.report", "t2i.evaluation.benchmark"),
    ("t2i.evaluation.registry",),
    ("t2i.evaluation.metrics",),
    ("t2i.evaluation", "t2i.training.trainer", "t2i.training.plot", "t2i.training.trained"),
    ("t2i.training.monitoring.validation", "t2i.training.monitoring.swapped_words"),
    ("t2i.training.monitoring.held_out",),
    ("t2i.training.averages",),
    ("t2i.training.saving", "t2i.training.run", "t2i.training.memory"),
    ("t2i.training.monitoring.throughput", "t2i.training.spikes"),
    ("t2i.training.objectives.moving",),
    ("t2i.training.backbone", "t2i.training.engine", "t2i.training.checkpoint"),
    ("t2i.training.training_config",),
    ("t2i.training.objectives",),
    (
        "t2i.training.conditions",
        "t2i.training.averages.ema",
        "t2i.training.averages.power_functions",
        "t2i.training.monitoring",
    ),
    ("t2i.training",),
    ("t2i.generation",),
    ("t2i.pipeline", "t2i.class_pipeline"),
    ("t2i.image_pipeline",),
    ("t2i.sampling",),
    ("t2i.guidance",),
    ("t2i.encoders",),
    ("t2i.models",),
    ("t2i.batch",),
    ("t2i.flow", "t2i.shapes"),
    ("t2i.rng",),
    (
        "t2i.console",
        "t2i.hardware",
        "t2i.devices",
        "t2i.environment",
        "t2i.html",
        "t2i.picture_files",
    ),
    ("t2i.config",),
)
NEVER_EACH_OTHER = (("t2i.evaluation", "t2i.training"),)
ALLOWED_IN = {
    "deepspeed": ("t2i.training.engine",),
    "ray": ("data_pipeline", "recaption", "launch"),
    "webdataset": ("data_pipeline", "recaption", "launch"),
    "boto3": ("data_pipeline.storage",),
    "torchvision": (),
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((REPO / package).rglob("*.py")):
            parts = path.relative_to(REPO).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def imported_names(path: Path) -> Iterator[str]:
    """Absolute names that a file imports, with ``from a import b`` read as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(name: str) -> int | None:
    """Index in LAYERS of the longest prefix of ``name``, None outside them."""
    fits = [
        (len(prefix), index)
        for index, layer in enumerate(LAYERS)
        for prefix in layer
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    return max(fits)[1] if fits else None


def is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def test_the_packages_hold_modules() -> None:
    assert {name.split(".")[0] for name, _ in modules()} == set(PACKAGES)


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_point_down_the_layers(module: str, path: Path) -> None:
    own = layer_of(module)
    if module in PACKAGES or path.name == "__init__.py":
        return
    assert own is not None, f"{module} has no place in LAYERS"
    for name in imported_names(path):
        other = layer_of(name)
        assert other is None or other >= own, f"{module} imports {name}, which lies above it"


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_each_dependency_stays_in_its_room(module: str, path: Path) -> None:
    for name in imported_names(path):
        rooms = ALLOWED_IN.get(name.split(".")[0])
        assert rooms is None or any(is_within(module, room) for room in rooms), (
            f"{module} imports {name}; only {rooms} may"
        )


@pytest.mark.parametrize(("one", "other"), NEVER_EACH_OTHER)
def test_these_rooms_never_import_each_other(one: str, other: str) -> None:
    for module, path in modules():
        for source, target in ((one, other), (other, one)):
            if is_within(module, source):
                assert not any(is_within(name, target) for name in imported_names(path)), module


def test_every_init_file_is_empty() -> None:
    files = [path for package in PACKAGES for path in (REPO / package).rglob("__init__.py")]
    assert files
    assert [str(path) for path in files if path.read_text().strip()] == []


def test_no_modules_import_each_other_in_circles() -> None:
    """Imports for types and inside functions count."""
    names = {name: path for name, path in modules() if path.name != "__init__.py"}

    def home(name: str) -> str | None:
        """The module that a name lies in."""
        while name and name not in names:
            name = name.rpartition(".")[0]
        return name or None

    imported = {
        name: {other for one in imported_names(path) if (other := home(one)) and other != name}
        for name, path in names.items()
    }
    TopologicalSorter(imported).prepare()  # CycleError names the modules of a circle
