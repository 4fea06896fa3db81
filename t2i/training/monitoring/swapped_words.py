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
from t2i.training.monitoring.held_out import held_out_losses
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


def swapped_word_excess(
    network: nn.Module,
    objective: MovingObjective,
    conditioner: Conditioner,
    batches: Sequence[TrainingBatch],
    own_losses: Sequence[Tensor],
    groups: Mapping[str, Sequence[str]],
    times: Sequence[float],
) -> dict[str, float | None]:
    """Relative excess of the loss when a group's words are swapped, by the group's name.

    mean(loss under the swapped caption) / mean(loss under the caption) - 1, over the held-out samples
    whose captions have a word of the group and over ``times``; about 0 while the words mean nothing
    to the network. None where no caption has one. Called by all processes together.

    Args:
        batches: on the network's device, at least one.
        own_losses: of each, `held_out_losses` under the captions as they are.
    """
    sums_G2 = torch.zeros(len(groups), 2, dtype=torch.float64, device=own_losses[0].device)
    for batch, own_TB in zip(batches, own_losses, strict=True):
        for row, words in enumerate(groups.values()):
            captions = tuple(swap_words(caption, words) for caption in batch.captions)
            changed = [new != old for new, old in zip(captions, batch.captions, strict=True)]
            if not any(changed):
                continue
            swapped = replace(batch, captions=captions)
            swapped_TB = held_out_losses(network, objective, conditioner, swapped, times)
            changed_B = torch.tensor(changed, device=own_TB.device)
            sums_G2[row] += torch.stack([swapped_TB, own_TB])[:, :, changed_B].sum(dim=(1, 2))
    dist.all_reduce(sums_G2)
    return {
        name: swapped / own - 1 if own else None
        for name, (swapped, own) in zip(groups, sums_G2.tolist(), strict=True)
    }
