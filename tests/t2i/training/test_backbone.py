"""Proves that the null condition is the empty caption, and where references come from (Model-guidance,
eq. 23): those of a sample are its own, in any batch, and a batch's captions are encoded once each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from t2i.batch import DROPPED, TrainingBatch
from t2i.encoders.text import TextStates
from t2i.flow import TimestepConfig
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.averages.ema import averaged_network
from t2i.training.backbone import LabelConditioner, TextConditioned, TextConditioner
from t2i.training.conditions import ContrastedConditions, repeat
from t2i.training.objectives.flow_matching import FlowMatching
from t2i.training.objectives.model_guidance import ModelGuidance
from t2i.training.objectives.model_guidance_config import ModelGuidanceConfig

CPU = torch.device("cpu")
CAPTIONS = tuple(f"caption {number}" for number in range(6))


def encode(captions: Sequence[str]) -> TextStates:
    """States that tell a caption's last letter."""
    numbers = torch.tensor([float(ord(caption[-1])) for caption in captions])
    states = torch.sin(numbers.reshape(-1, 1, 1) * torch.arange(1, 9)).expand(-1, 4, 8)
    return TextStates(states, torch.ones(len(captions), 4, dtype=torch.bool))


def encode_whole(captions: Sequence[str]) -> TextStates:
    """States and mask that tell any two captions of up to four letters apart, also "" and " "."""
    letters = [[float(ord(letter)) for letter in caption] for caption in captions]
    states = torch.tensor([[*own, *[0.0] * (4 - len(own))] for own in letters]).unsqueeze(-1)
    mask = torch.tensor([[place <= len(own) for place in range(4)] for own in letters])
    return TextStates(states, mask)


def same(first: TextStates, second: TextStates) -> bool:
    return torch.equal(first.states, second.states) and torch.equal(first.mask, second.mask)


def test_the_null_text_is_the_empty_caption(batch: TrainingBatch) -> None:
    """As samples that lost their caption have it: given and null are one condition."""
    conditioner = TextConditioner(encode_whole, CPU, ("x",))
    captions = ("a", "", " ", "null")
    dropped = replace(batch, captions=captions)
    null, given = conditioner.null(3), conditioner.given(dropped)
    assert isinstance(null, TextStates)
    assert same(null, encode_whole(["", "", ""]))
    assert same(given, encode_whole(captions))
    assert conditioner.dropped(dropped).tolist() == [False, True, False, False]


def test_the_null_label_is_the_class_after_the_last(batch: TrainingBatch) -> None:
    conditioner = LabelConditioner(4, CPU)
    dropped = replace(batch, labels=torch.tensor([3, DROPPED, 0, DROPPED]))
    assert conditioner.null(2).tolist() == [4, 4]
    assert conditioner.given(dropped).tolist() == [3, 4, 0, 4]
    assert conditioner.dropped(dropped).tolist() == [False, True, False, True]


def drawn_states(captions: Sequence[str], ids: list[int], step: int = 3) -> list[list[float]]:
    """The number of each reference of each sample."""
    conditioner = TextConditioner(encode, CPU, captions)
    references = conditioner.references(3, 1, step, torch.tensor(ids))
    assert len(references) == 3
    return torch.stack([text.states[:, 0, 0] for text in references], dim=1).tolist()


def test_the_references_of_a_sample_do_not_depend_on_its_batch() -> None:
    together = drawn_states(CAPTIONS, [100, 101, 102, 103])
    assert [drawn_states(CAPTIONS, [i])[0] for i in (103, 100)] == [together[3], together[0]]
    assert all(len(set(numbers)) == 3 for numbers in together), "three different captions"
    assert len({tuple(sorted(numbers)) for numbers in together}) > 1
    assert drawn_states(CAPTIONS, [100, 101, 102, 103], step=4) != together


def test_each_drawn_caption_is_encoded_once() -> None:
    calls: list[list[str]] = []

    def watched(captions: Sequence[str]) -> TextStates:
        calls.append(list(captions))
        return encode(captions)

    TextConditioner(watched, CPU, CAPTIONS).references(2, 1, 0, torch.arange(64))
    TextConditioner(watched, CPU, CAPTIONS).references(2, 1, 0, torch.arange(1))
    assert sorted(calls[0]) == sorted(CAPTIONS)
    assert len(calls[1]) == 2, "and what is not drawn is not encoded"
    assert len(calls) == 2


def test_labels_are_drawn_among_all_classes_but_the_null_class() -> None:
    references = LabelConditioner(4, CPU).references(3, 1, 0, torch.arange(50))
    labels = torch.stack(references, dim=1)
    assert labels.unique().tolist() == [0, 1, 2, 3]
    assert all(len(set(row)) == 3 for row in labels.tolist())


@pytest.mark.parametrize("conditioner", [LabelConditioner(2, CPU), TextConditioner(encode, CPU)])
def test_too_few_conditions_are_refused(conditioner: LabelConditioner | TextConditioner) -> None:
    with pytest.raises(ValueError, match=r"3 references asked for, but the pool has [02] cond"):
        conditioner.references(3, 1, 0, torch.arange(4))


def test_references_to_one_caption_are_the_contrast_with_that_caption(
    batch: TrainingBatch,
) -> None:
    torch.manual_seed(0)
    config = TRDiTConfig(
        num_layers=3, width=16, num_heads=2, text_width=8, adaln_rank=4, routes=((1, 1),)
    )
    network = TextConditioned(TRDiT(config))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    teacher = averaged_network(network, {n: 0.9 * p for n, p in network.named_parameters()})
    base = FlowMatching(seed=1, gamma=0.5, timestep=TimestepConfig(), patch_size=2)
    given = encode(["a", "b", "c", "d"])

    def losses(count: int, *references: TextStates) -> torch.Tensor:
        objective = ModelGuidance(base, ModelGuidanceConfig(num_references=count))
        conditions = ContrastedConditions(given, references)
        return objective.training_loss(network, teacher, batch, conditions).loss_B

    def drawn(captions: Sequence[str]) -> torch.Tensor:
        conditioner = TextConditioner(encode, CPU, captions)
        return losses(3, *conditioner.references(3, 1, batch.step, batch.sample_ids))

    contrast = losses(0, repeat(encode(["x"]), 4))
    torch.testing.assert_close(drawn(["x"] * 5), contrast)
    assert (drawn(CAPTIONS) - contrast).abs().min() > 1e-4
