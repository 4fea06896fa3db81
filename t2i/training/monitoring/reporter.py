"""Where a run's metrics go: a line of metrics.jsonl and, if asked, Weights & Biases."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from t2i.console import MetricsFile, get_logger

logger = get_logger("train")
WandBMode = Literal["offline", "online"]


def drop_lines_after(path: Path, step: int) -> None:
    """Remove a metrics file's lines of steps after ``step``, which are about to be run again.

    So are lines that a power cut left unreadable; they are counted in a warning.
    """
    if not path.exists():
        return
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    steps = [_step_of_line(line) for line in lines]
    kept = [line for line, of in zip(lines, steps, strict=True) if of is not None and of <= step]
    if num_unreadable := steps[:-1].count(None):  # a last line that was cut is nothing new
        logger.warning("%s: %d unreadable line(s) removed", path, num_unreadable)
    if len(kept) < len(lines):
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(kept))
        replacement.replace(path)


def _step_of_line(line: str) -> int | None:
    """None for a line that is cut or garbled."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError):
        return None


class Reporter:
    """Writes metrics.jsonl and, if asked, Weights & Biases; used on rank 0 only."""

    def __init__(
        self,
        folder: Path,
        step: int,
        wandb_mode: WandBMode | Literal["off"],
        name: str,
        settings: Mapping[str, Any],
    ) -> None:
        """``step``: steps done; later lines of an interrupted run are removed."""
        drop_lines_after(folder / "metrics.jsonl", step)
        self.file = MetricsFile(folder / "metrics.jsonl")
        self.wandb = WandB(folder, wandb_mode, name, settings) if wandb_mode != "off" else None

    def write(self, fields: Mapping[str, Any]) -> None:
        """One line of metrics; ``step`` is among the fields."""
        self.file.write(fields)
        if self.wandb is not None:
            self.wandb.write(fields)

    def show_image(self, step: int, name: str, path: Path) -> None:
        """Show a picture in Weights & Biases, if that is asked for."""
        if self.wandb is not None:
            self.wandb.show_image(step, name, path)

    def close(self) -> None:
        """Finish the W&B run, if there is one."""
        if self.wandb is not None:
            self.wandb.close()


class WandB:
    """A run's page on Weights & Biases: its config, its metrics, the samples of skipped steps.

    The run's folder holds the page's id (``wandb_id``), so a run that goes on does so on its page.
    The steps since its checkpoint are then logged again: the x axis is the field ``step``. A page
    that cannot be opened online is kept on disk, because the other processes train already. All files
    of W&B lie in ``wandb/`` of the run's folder.
    """

    def __init__(
        self, folder: Path, mode: WandBMode, name: str, settings: Mapping[str, Any]
    ) -> None:
        for kind in (
            "cache",
            "data",
        ):  # else in the home folder, which a cluster may not let us fill
            os.environ.setdefault(f"WANDB_{kind.upper()}_DIR", str(folder / "wandb" / kind))
        import wandb

        id_file = folder / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex)
        self.folder, self.num_skipped = folder, 0

        def start(mode: WandBMode) -> Any:
            return wandb.init(
                dir=folder,
                mode=mode,
                name=name,
                id=id_file.read_text(),
                resume="allow",
                config=dict(settings),
            )

        try:
            self.run = start(mode)
        except Exception as error:  # wandb has no common class for what a network can do
            if mode != "online":
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logger.warning(
                "Weights & Biases is not reached (%s): this run is logged offline; later send it with "
                "wandb sync %s/wandb/offline-run-*",
                *(reason, folder),
            )
            self.run = start("offline")
        self.run.define_metric("*", step_metric="step")

    def write(self, fields: Mapping[str, Any]) -> None:
        """Log the fields; the files of skipped samples are sent again whenever there are more."""
        self.run.log(flat_fields(fields))
        if fields.get("skipped", 0) > self.num_skipped:
            self.num_skipped = fields["skipped"]
            self.run.save(str(self.folder / "skipped-rank*.jsonl"), self.folder, policy="now")

    def show_image(self, step: int, name: str, path: Path) -> None:
        """Log a picture."""
        import wandb

        self.run.log({"step": step, name: wandb.Image(str(path))})

    def close(self) -> None:
        """Finish."""
        self.run.finish()


def flat_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with one number each, so that each has a curve; numbers that are not known are left out.

    A list by eighths of time becomes ``loss_by_time/0.000`` ... ``loss_by_time/0.875``.
    """
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, list):
            flat |= {f"{name}/{i / len(value):.3f}": part for i, part in enumerate(value)}
        else:
            flat[name] = value
    return {name: value for name, value in flat.items() if value is not None}
