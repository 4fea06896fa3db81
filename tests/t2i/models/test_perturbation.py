"""Weak branches of both families: what a perturbed forward pass computes, by its parts.

Each perturbation against the same blocks called one by one here; a block's own output is not in
question (`test_tr_dit_reference`, `test_sit`). Networks with random weights, none of them zero.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from t2i.models.perturbation import Perturbation, swap_dissimilar
from t2i.models.routing import draw_keep_ids
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit import TRDiT

SIT = SiTConfig(
    num_layers=4, width=32, num_heads=2, num_classes=5, routes=((2, 2),), internal_after=0
)
NUM_TOKENS = 16
FAMILIES = ["tr_dit", "sit"]


class Parts:
    """A network on two samples: its state before the first block, its blocks one by one, its head."""

    def __init__(self, model: TRDiT | SiT, condition: object) -> None:
        self.model, self.condition = model, condition
        self.x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        self.t = torch.tensor([0.2, 0.7])
        self.hidden = model.embed(self.x, self.t)
        self.tokens: Tensor = self.hidden.tokens_BTD

    def block(self, number: int, tokens: Tensor) -> Tensor:
        """A block's output for all tokens."""
        if isinstance(self.model, TRDiT):
            text, hidden = self.condition, self.hidden
            block = self.model.blocks[number]
            return block(
                *(tokens, hidden.time_BD, hidden.rotation),
                *(text.keys_values[number], text.mask_B11L),  # type: ignore[attr-defined]
            )
        condition_BD = self.model._condition(self.hidden, self.condition)
        return self.model.blocks[number](tokens, condition_BD)

    def head(self, tokens: Tensor, name: str = "head") -> Tensor:
        """A head's velocity."""
        head = getattr(self.model, name)
        if isinstance(self.model, TRDiT):
            return self.model._velocity(head, tokens, self.hidden)
        condition_BD = self.model._condition(self.hidden, self.condition)
        return self.model._prediction(head, tokens, condition_BD, self.hidden.grid)

    def forward(self, changed: Perturbation, *others: object, **named: object) -> Tensor:
        """The network's own forward pass."""
        return self.model(self.x, self.t, self.condition, *others, perturbation=changed, **named)


@pytest.fixture
def make_parts(make_transformer: Callable[..., TRDiT]) -> Callable[..., Parts]:
    """Of a family, with or without SPRINT's fusion; a TR-DiT has three layers, a SiT four."""

    def make(family: str, after_route: str = "put_back") -> Parts:
        if family == "tr_dit":
            model = make_transformer(0, 12, routed=1, internal=True, after_route=after_route)
            states = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(2))
            mask = torch.tensor([[True, True, True], [True, True, False]])
            return Parts(model, model.prepare_text(states, mask))
        sit = SiT(SIT.model_copy(update={"after_route": after_route})).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for parameter in sit.parameters():
            parameter.normal_(0, 0.2, generator=generator)
        return Parts(sit, torch.tensor([1, 3]))

    return make


def close(actual: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_internal_head_reads_the_tokens_after_its_block(
    make_parts: Callable[..., Parts], family: str
) -> None:
    parts = make_parts(family)
    final, internal = parts.forward(Perturbation(), internal=True)
    tokens = parts.block(0, parts.tokens)
    close(internal, parts.head(tokens, "internal_head"))
    for number in range(1, parts.model.config.num_layers):
        tokens = parts.block(number, tokens)
    close(final, parts.head(tokens))
    close(parts.forward(Perturbation()), final)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chosen", [0, 1])
def test_reordered_tokens_change_what_a_block_adds_not_where_tokens_are(
    make_parts: Callable[..., Parts], family: str, chosen: int
) -> None:
    parts, tokens = make_parts(family), None
    order = torch.rand(2, NUM_TOKENS, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    tokens = parts.tokens
    for number in range(parts.model.config.num_layers):
        moved = tokens
        if number == chosen:
            moved = torch.stack([one[ids] for one, ids in zip(tokens, order, strict=True)])
        tokens = tokens + parts.block(number, moved) - moved
    changed = Perturbation(orders={chosen: order})
    close(parts.forward(changed), parts.head(tokens))
    in_place = torch.arange(NUM_TOKENS).expand(2, -1)
    close(parts.forward(Perturbation(orders={chosen: in_place})), parts.forward(Perturbation()))


@pytest.mark.parametrize("family", FAMILIES)
def test_swapped_tokens_are_those_that_the_order_says(
    make_parts: Callable[..., Parts], family: str
) -> None:
    parts = make_parts(family)
    order = swap_dissimilar(parts.block(0, parts.tokens), 0.25)
    assert (order != torch.arange(NUM_TOKENS)).sum(dim=1).tolist() == [8, 8]
    by_order = parts.forward(Perturbation(orders={1: order}))
    close(parts.forward(Perturbation(swap_blocks=(1,), swap_ratio=0.25)), by_order)
    assert (by_order - parts.forward(Perturbation())).abs().max() > 0.01


def test_the_most_dissimilar_pairs_are_swapped_and_share_no_token() -> None:
    """Against a search through all pairs, one image at a time."""
    x = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(0))
    order = swap_dissimilar(x, 0.3)
    for tokens, own in zip(x, order.tolist(), strict=True):
        free, expected = set(range(10)), list(range(10))
        for _ in range(3):
            pairs = [(i, j) for i in free for j in free if i < j]
            similarity = {
                (i, j): torch.cosine_similarity(tokens[i], tokens[j], dim=0).item()
                for i, j in pairs
            }
            i, j = min(similarity, key=lambda pair: similarity[pair])
            expected[i], expected[j] = j, i
            free -= {i, j}
        assert own == expected
    assert torch.equal(order.gather(1, order), torch.arange(10).expand(3, -1))


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5])
def test_the_number_of_swapped_pairs_is_a_share_of_the_tokens(ratio: float) -> None:
    order = swap_dissimilar(torch.randn(2, 10, 4), ratio)
    moved = (order != torch.arange(10)).sum(dim=1)
    assert moved.tolist() == [2 * int(ratio * 10)] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_attention_is_attention_to_oneself(
    make_parts: Callable[..., Parts], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as a block whose attention sees one token at a time."""
    parts = make_parts(family)
    block = parts.model.blocks[1]
    attention: nn.Module = getattr(block, "self_attention", None) or block.attention
    plain = attention.forward

    def one_by_one(x: Tensor, *others: object) -> Tensor:
        if isinstance(parts.model, TRDiT):
            rotation = others[0]
            alone = [
                plain(x[:, [i]], type(rotation)(rotation.cos[[i]], rotation.sin[[i]]))  # type: ignore
                for i in range(NUM_TOKENS)
            ]
        else:
            alone = [plain(x[:, [i]]) for i in range(NUM_TOKENS)]
        return torch.cat(alone, dim=1)

    actual = parts.forward(Perturbation(identity_attention=(1,)))
    monkeypatch.setattr(attention, "forward", one_by_one)
    expected = parts.forward(Perturbation())
    close(actual, expected)
    monkeypatch.undo()
    assert (actual - parts.forward(Perturbation())).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_deep_path_a_routed_network_is_that_without_the_routed_blocks(
    make_parts: Callable[..., Parts], family: str
) -> None:
    parts = make_parts(family)
    ((first, last),) = parts.model.config.resolved_routes
    by_blocks = parts.forward(Perturbation(skip_blocks=tuple(range(first, last + 1))))
    close(parts.forward(Perturbation(skip_deep_path=True)), by_blocks)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [0.0, 0.75])
def test_sprint_joins_deep_and_shallow_tokens_and_masks_those_that_skipped(
    make_parts: Callable[..., Parts], family: str, gamma: float
) -> None:
    parts = make_parts(family, "fuse")
    model, ((first, last),) = parts.model, parts.model.config.resolved_routes
    keep_ids = draw_keep_ids(0, "test", 0, torch.arange(2), NUM_TOKENS, gamma) if gamma else None
    shallow = parts.tokens
    for number in range(first):
        shallow = parts.block(number, shallow)
    deep_of_kept = run_route(parts, shallow, keep_ids, first, last)
    fusion = model.fusion
    assert fusion is not None
    deep = fusion.mask_embedding.repeat(2, NUM_TOKENS, 1)
    for row in range(2):
        kept = range(NUM_TOKENS) if keep_ids is None else keep_ids[row].tolist()
        for place, token in enumerate(kept):
            deep[row, token] = deep_of_kept[row, place]
    close(parts.forward(Perturbation(), keep_ids), finish(parts, deep, shallow))
    masked = fusion.mask_embedding.repeat(2, NUM_TOKENS, 1)
    without = finish(parts, masked, shallow)
    close(parts.forward(Perturbation(skip_deep_path=True)), without)
    dropped = parts.forward(Perturbation(), keep_ids, drop_deep_B=torch.tensor([False, True]))
    close(dropped[1], without[1])
    close(dropped[0], parts.forward(Perturbation(), keep_ids)[0])


def run_route(
    parts: Parts, shallow: Tensor, keep_ids: Tensor | None, first: int, last: int
) -> Tensor:
    """The kept tokens after the routed blocks, by the network's own routing without fusion."""
    assert first == last
    if keep_ids is None:
        return parts.block(first, shallow)
    kept = torch.stack([one[ids] for one, ids in zip(shallow, keep_ids, strict=True)])
    if isinstance(parts.model, TRDiT):
        text, rotation = parts.condition, parts.hidden.rotation.rows(keep_ids)
        return parts.model.blocks[first](
            *(kept, parts.hidden.time_BD, rotation),
            *(text.keys_values[first], text.mask_B11L),  # type: ignore[attr-defined]
        )
    return parts.model.blocks[first](kept, parts.model._condition(parts.hidden, parts.condition))


def finish(parts: Parts, deep: Tensor, shallow: Tensor) -> Tensor:
    """Fusion as written in the paper, the blocks after the route, the head."""
    fusion, ((_, last),) = parts.model.fusion, parts.model.config.resolved_routes
    assert fusion is not None
    width = parts.model.config.width
    weight, bias = fusion.linear.weight, fusion.linear.bias
    tokens = deep @ weight[:, :width].T + shallow @ weight[:, width:].T
    tokens = tokens if bias is None else tokens + bias
    for number in range(last + 1, parts.model.config.num_layers):
        tokens = parts.block(number, tokens)
    return parts.head(tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_deep_path_of_a_network_without_routes_cannot_be_left_out(
    make_transformer: Callable[..., TRDiT], family: str
) -> None:
    model = SiT(SIT.model_copy(update={"routes": ()}))
    x, t = torch.zeros(1, 4, 8, 8), torch.zeros(1)
    with pytest.raises(ValueError, match="no routes, so it has no deep path to leave out"):
        model(x, t, torch.tensor([0]), perturbation=Perturbation(skip_deep_path=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"internal_after": 2}, "must lie before the route, where all tokens are: 0 to 1"),
        ({"internal_after": 3, "routes": ()}, "must lie before the last block: 0 to 2"),
        ({"after_route": "fuse", "routes": ()}, "joins the states .* one route, there are 0"),
        ({"after_route": "fuse", "routes": ((1, 1), (3, 3))}, "one route, there are 2"),
    ],
)
def test_parts_that_have_no_place_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SiTConfig.model_validate({**SIT.model_dump(), **fields})


def test_a_seed_gives_the_same_other_weights_with_and_without_the_new_parts() -> None:
    models = []
    for fields in ({}, {"after_route": "fuse"}, {"internal_after": None}):
        torch.manual_seed(0)
        models.append(SiT(SIT.model_copy(update=fields)).state_dict())
    for name in models[2]:
        assert all(torch.equal(weights[name], models[2][name]) for weights in models)
