"""Blocks that the networks share, one by one."""

from __future__ import annotations

import pytest
import torch

from recs.nn.layers import (
    Dropout,
    EventLookup,
    EventSettings,
    Lookup,
    Positions,
    RelativeBias,
    SelfAttention,
    UserLookup,
    visible,
)
from recs.nn.network import Histories, Sizes
from recs.schema import PADDING


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(3, 33_333, requires_grad=True)
    y = Dropout(share)(x)
    kept = y != 0
    deviation = (share * (1 - share) / x.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - share)) < 5 * deviation
    expected = torch.full_like(y[kept], 1 / (1 - share))
    torch.testing.assert_close(y[kept], expected, rtol=1e-4, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_is_drawn_by_the_seed_and_in_training_alone() -> None:
    dropout, x = Dropout(0.5), torch.ones(1001)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(first, dropout(x)) and not torch.equal(first, second)
    assert torch.equal(dropout.eval()(x), x)


def test_lookup_of_padding_is_zero_and_learns_nothing() -> None:
    lookup = Lookup(3, 2)
    found = lookup(torch.tensor([[PADDING, 0], [2, PADDING]]))
    assert torch.equal(found[1, 0], lookup.weight[2])
    assert (found[0, 0] == 0).all() and (found[1, 1] == 0).all()
    lookup(torch.tensor([PADDING, 1])).sum().backward()
    assert lookup.weight.grad is not None
    assert lookup.weight.grad.tolist() == [[0, 0], [1, 1], [0, 0]]
    users = UserLookup(3, 2)(torch.tensor([2, 3, 99]))
    assert (users[0] != 0).all() and (users[1:] == 0).all()


def test_events_are_dropped_whole_and_in_training_alone() -> None:
    torch.manual_seed(0)
    share, shape = 0.3, (100, 50)
    settings = EventSettings(dim=4, event_dropout=share, event_types=True)
    events = EventLookup(Sizes(1, 20, 2, shape[1]), settings, scale=2.0)
    items, types = torch.randint(20, shape), torch.randint(2, shape)
    histories = Histories(torch.zeros(shape[0]), items, types, torch.zeros_like(items))
    seen = events(histories)
    dropped = (seen == 0).all(-1)
    deviation = (share * (1 - share) / items.numel()) ** 0.5
    assert abs(dropped.double().mean().item() - share) < 5 * deviation
    whole = events.eval()(histories)
    assert torch.equal(seen[~dropped], whole[~dropped]) and not (whole == 0).all(-1).any()


def test_positions_count_from_the_oldest() -> None:
    present = torch.tensor([[True] * 4, [False, True, True, True]])
    for positions in (Positions(6, 4, "learned"), Positions(6, 4, "fixed")):
        found = positions(present)
        assert torch.equal(found[1, 1:], found[0, :3])
        assert torch.equal(found[0], positions.table[:4])
    fixed = Positions(6, 4, "fixed")(present)[0]
    assert fixed[0].tolist() == [0, 1, 0, 1]
    one = torch.tensor([1.0, 0.01])
    expected = torch.stack([one.sin(), one.cos()], dim=1).flatten()
    torch.testing.assert_close(fixed[1], expected)


def test_places_see_events_before_them_and_themselves() -> None:
    present = torch.tensor([[False, True, True]])
    causal = [[True, False, False], [False, True, False], [False, True, True]]
    assert visible(present, causal=True)[0, 0].tolist() == causal
    both = [[True, True, True], [False, True, True], [False, True, True]]
    assert visible(present, causal=False)[0, 0].tolist() == both


def test_relative_bias_is_of_the_distance() -> None:
    both, causal = _bias(causal=False), _bias(causal=True)
    assert both(3).tolist() == [
        [[3, 2, 1], [4, 3, 2], [5, 4, 3]],
        [[-3, -2, -1], [-4, -3, -2], [-5, -4, -3]],
    ]
    past = torch.ones(3, 3).tril().bool()
    assert causal(3)[0][past].tolist() == [0, 1, 0, 2, 1, 0]


def _bias(causal: bool, length: int = 4) -> RelativeBias:
    """Return a bias of two heads: the number of a distance is its place, and minus that."""
    bias = RelativeBias(length, 2, causal)
    with torch.no_grad():
        bias.table.add_(torch.arange(len(bias.table))[:, None] * torch.tensor([1.0, -1.0]))
    return bias


def test_attention_goes_where_the_bias_says() -> None:
    attention = SelfAttention(8, 2, 0.0, _bias(causal=True))
    assert attention.bias is not None
    with torch.no_grad():
        attention.bias.table.fill_(-1e4)[1] = 0.0
    x = torch.randn(1, 4, 8)
    moved = torch.cat([x[:, :1], x[:, :-1]], 1)
    values = attention.inward(moved).chunk(3, dim=-1)[2]
    mask = visible(torch.ones(1, 4, dtype=torch.bool), causal=True)
    torch.testing.assert_close(attention(x, mask), attention.outward(values))


@pytest.mark.parametrize("bias", [None, _bias(causal=True, length=5)])
def test_attention_that_drops_next_to_nothing_is_attention(bias: RelativeBias | None) -> None:
    torch.manual_seed(0)
    plain, dropping = SelfAttention(8, 2, 0.0, bias), SelfAttention(8, 2, 1e-9, bias)
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(3, 5, 8)
    mask = visible(torch.arange(5) >= torch.tensor([[0], [2], [4]]), causal=True)
    torch.testing.assert_close(dropping(x, mask), plain(x, mask))


def test_attention_drops_weights_in_training_alone() -> None:
    attention = SelfAttention(8, 2, 0.5)
    x, mask = torch.randn(3, 5, 8), visible(torch.ones(3, 5, dtype=torch.bool), causal=True)
    assert not torch.equal(attention(x, mask), attention(x, mask))
    attention.eval()
    assert torch.equal(attention(x, mask), attention(x, mask))
