"""What a network makes of single words: its loss under captions that say something else.

A network that ignores a word loses nothing when the word is wrong. So the loss under captions with
swapped words, beside that under the captions as they are, shows what has been learned of shapes,
colours or places long before samples do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch import distributed as dist

from t2i.batch import TrainingBatch
from t2i.training.backbone import Conditioner
from t2i.training.objectives.moving import MovingObjective


def swap_words(caption: str, words: Sequence[str]) -> str:
    """Every one of ``words`` replaced by the next one of them, the last by the first.

    Whole words, as they are written or with a capital, which they keep; of words that overlap, such as "top"
    and "top left", the longest counts.
    """
    following = dict(zip(words, [*words[1:], words[0]], strict=True))
    following |= {_capital(old): _capital(new) for old, new in following.items()}
    longest_first = sorted(following, key=len, reverse=True)
    pattern = rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b"
    return re.sub(pattern, lambda match: following[match[0]], caption)


def _capital(word: str) -> str:
    return word[0].upper() + word[1:]


@torch.no_grad()
def swapped_word_excess(
    network: nn.Module,
    objective: MovingObjective,
    conditioner: Conditioner,
    batches: Sequence[TrainingBatch],
    groups: Mapping[str, Sequence[str]],
    times: Sequence[float],
    device: torch.device,
) -> dict[str, float | None]:
    """Relative excess of the loss when a group's words are swapped, by the group's name.

    mean(loss under the swapped caption) / mean(loss under the caption) - 1, over the held-out samples
    whose captions have a word of the group and over ``times``; about 0 while the words mean nothing
    to the network. None where no caption has one. Called by all processes together.
    """
    sums_G2 = torch.zeros(len(groups), 2, dtype=torch.float64, device=device)
    for batch in batches:
        batch = batch.to(device)
        own_B = _losses(network, objective, conditioner, batch, times)
        for row, words in enumerate(groups.values()):
            captions = tuple(swap_words(caption, words) for caption in batch.captions)
            changed = [new != old for new, old in zip(captions, batch.captions, strict=True)]
            if not any(changed):
                continue
            swapped = replace(batch, captions=captions)
            swapped_B = _losses(network, objective, conditioner, swapped, times)
            changed_B = torch.tensor(changed, device=device)
            sums_G2[row] += torch.stack([swapped_B, own_B])[:, changed_B].sum(dim=1)
    dist.all_reduce(sums_G2)
    return {
        name: swapped / own - 1 if own else None
        for name, (swapped, own) in zip(groups, sums_G2.tolist(), strict=True)
    }


def _losses(
    network: nn.Module,
    objective: MovingObjective,
    conditioner: Conditioner,
    batch: TrainingBatch,
    times: Sequence[float],
) -> Tensor:
    """(B,) float64, summed over ``times``."""
    condition = conditioner.given(batch)
    return torch.stack(
        [
            objective.validation_loss(network, batch, condition, timestep).loss_B.double()
            for timestep in times
        ]
    ).sum(dim=0)
