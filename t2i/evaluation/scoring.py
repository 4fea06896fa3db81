"""Score a set of pictures: rows batch by batch, shared among processes, remembered; then scores.

Under `accelerate launch` the pictures are dealt out by number, and each process holds all rows
afterwards, in the order of the set: scores are the same at any number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.console import get_logger, progress
from t2i.devices import process_state
from t2i.encoders.weights_hash import file_hash
from t2i.evaluation.context import Context
from t2i.evaluation.picture_sets import PictureSet, Policy, read_batches

if TYPE_CHECKING:
    from t2i.evaluation.metric import Scorer, Scores

logger = get_logger("evaluate")
INDICES = "indices"  # beside the rows: which pictures they are of


def score_set(scorer: Scorer, pictures: PictureSet, context: Context, label: str) -> Scores:
    """The scores of a set; every process gets them.

    Args:
        label: what it is called beside the progress bar.

    Raises:
        ValueError: as `read_batches` and the scorer do.
    """
    rows = rows_of(scorer, pictures, context, label)
    indices = rows.pop(INDICES).tolist()
    prompts = [pictures.prompts[index] for index in indices] if pictures.prompts else None
    return scorer.score(rows, prompts)


def rows_of(
    scorer: Scorer,
    pictures: PictureSet,
    context: Context,
    label: str,
    indices: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Rows of all pictures, in order, and the pictures' numbers as `INDICES`.

    With a cache they are computed once for the same files, weights and way of making rows.

    Args:
        indices: numbers of the pictures that are wanted, ascending; None = all.
    """
    remembered = None
    if context.cache is not None:
        key = rows_key(scorer, pictures, context.policy, indices)
        remembered = context.cache / f"{scorer.rows_name.split()[0]}-{key}.safetensors"
        if remembered.is_file():
            logger.info("%s: rows of %s are remembered (%s)", label, pictures.path, remembered)
            return load_file(remembered)
    rows = _gathered(_own_rows(scorer, pictures, context, label, indices))
    if remembered is not None and process_state().is_main_process:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        temporary = remembered.with_suffix(".tmp")
        save_file(rows, temporary)
        temporary.replace(remembered)
    return rows


def rows_key(
    scorer: Scorer, pictures: PictureSet, policy: Policy, indices: Sequence[int] | None = None
) -> str:
    """16 hex digits of all that rows depend on: the files' bytes, the prompts, the networks."""
    asked = scorer.rows_name, policy, pictures.prompts, indices
    digest = hashlib.sha256(repr(asked).encode())
    for one in scorer.weights:
        digest.update(one.hash.encode())
    digest.update(pictures_hash(pictures).encode())
    return digest.hexdigest()[:16]


def pictures_hash(pictures: PictureSet) -> str:
    """SHA-256 of the files' bytes, in their order."""
    digest = hashlib.sha256()
    for file in pictures.files or (pictures.path,):
        digest.update(file_hash(file).encode())
    return digest.hexdigest()


def _own_rows(
    scorer: Scorer,
    pictures: PictureSet,
    context: Context,
    label: str,
    indices: Sequence[int] | None,
) -> dict[str, Tensor]:
    """Rows of this process's pictures: every n-th of n processes."""
    state = process_state()
    wanted = range(pictures.num) if indices is None else indices
    own = wanted[state.process_index :: state.num_processes]
    batches: list[Mapping[str, Tensor]] = []
    with torch.inference_mode(), progress(label, total=len(own), unit="pictures") as bar:
        reader = read_batches(
            pictures, context.batch_size, context.policy, own, context.num_threads
        )
        for batch in reader:
            indices_B = torch.tensor([picture.index for picture in batch])
            batches.append({**scorer.rows(batch), INDICES: indices_B})
            bar.update(len(batch))
    return (
        {name: torch.cat([rows[name] for rows in batches]) for name in batches[0]}
        if batches
        else {}
    )


def _gathered(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of all processes in the order of the set."""
    if process_state().num_processes == 1:
        return own
    parts = [part for part in gather_object([own]) if part]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = rows[INDICES].argsort()
    return {name: values[order] for name, values in rows.items()}
