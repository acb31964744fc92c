"""Contract of the sequential networks: one suite for all of them."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recs.nn.losses import full_cross_entropy
from recs.nn.models import MODELS, build, model_class
from recs.nn.network import Chances, Histories, SequenceNetwork, Sizes
from recs.schema import PADDING

SIZES = Sizes(num_users=6, num_items=20, num_event_types=3, length=12)
CAUSAL = sorted(set(MODELS) - {"bert4rec"})
#: Settings of small networks.
SMALL: dict[str, Any] = {"dim": 16, "dropout": 0.0}
ATTENTION = [
    (name, {"norm": norm, "positions": positions, "relative_bias": relative})
    for name in ("sasrec", "bert4rec")
    for norm, positions, relative in (("pre", "learned", False), ("post", "fixed", True))
]
VARIANTS = [*((name, {}) for name in MODELS), *ATTENTION, ("gru4rec", {"layers": 2})]
#: With those that ask for nothing at each place, and so learn more slowly.
ALL_VARIANTS = [*VARIANTS, ("bert4rec", {"pooling": "mean"})]


def _network(name: str, sizes: Sizes = SIZES, seed: int = 0, **settings: Any) -> SequenceNetwork:
    torch.manual_seed(seed)
    network = build(name, sizes, SMALL | settings).eval()
    with torch.no_grad():  # so that no part of a network is lost behind zeros it starts from
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def _histories(lengths: list[int], width: int, seed: int = 0) -> Histories:
    """Return random histories; the events of a row depend on its index alone, not the width."""
    items = torch.full((len(lengths), width), PADDING)
    types, gaps = items.clone(), torch.zeros_like(items)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed * 100 + row)
        items[row, width - length :] = torch.randint(
            SIZES.num_items, (length,), generator=generator
        )
        types[row, width - length :] = torch.randint(
            SIZES.num_event_types, (length,), generator=generator
        )
    return Histories(torch.arange(len(lengths)), items, types, gaps)


def _chances(histories: Histories, seed: int = 0, step: int = 0) -> Chances:
    places = torch.arange(len(histories.items))
    return Chances.of(seed, step, places, histories.items.shape[1])


def _trained(name: str, wide: Histories) -> bool:
    """Whether the network can be trained on histories of this width, by one step."""
    network = _network(name).train()
    examples = network.examples(wide, wide.present, _chances(wide))
    asked = examples.asked >= 0
    states = network.states(examples.inputs)[asked]
    full_cross_entropy(
        states,
        examples.take(wide.items)[asked],
        network.item_vectors(),
        network.item_biases(),
        torch.ones(len(states)),
    ).backward()
    return all(
        parameter.grad is None or bool(parameter.grad.isfinite().all())
        for parameter in network.parameters()
    )


@pytest.mark.parametrize(("name", "settings"), ALL_VARIANTS)
def test_shapes(name: str, settings: dict[str, Any]) -> None:
    network = _network(name, **settings)
    histories = _histories([1, 4, 8], 8)
    vectors = network.item_vectors()
    biases = network.item_biases()
    width = vectors.shape[1]
    assert vectors.shape == (SIZES.num_items, width)
    assert biases is None or biases.shape == (SIZES.num_items,)
    assert network.states(histories).shape == (3, 8, width)
    assert network.queries(histories).shape == (3, width)


@pytest.mark.parametrize(("name", "settings"), ALL_VARIANTS)
@pytest.mark.parametrize("event_types", [False, True])
def test_padding_changes_nothing(name: str, settings: dict[str, Any], event_types: bool) -> None:
    network = _network(name, event_types=event_types, **settings)
    lengths = [1, 3, 5]
    narrow, wide = _histories(lengths, 5), _histories(lengths, 11)
    torch.testing.assert_close(network.queries(narrow), network.queries(wide))
    present = narrow.present
    states = network.states(wide)[:, -5:]
    torch.testing.assert_close(network.states(narrow)[present], states[present])
    alone = Histories(*(part[:1] for part in narrow))
    trimmed = Histories(alone.users, *(part[:, -1:] for part in alone[1:]))
    torch.testing.assert_close(network.queries(narrow)[:1], network.queries(trimmed))


@pytest.mark.parametrize(("name", "settings"), ALL_VARIANTS)
def test_gradients_are_finite_and_none_comes_from_padding(
    name: str, settings: dict[str, Any]
) -> None:
    """The gradient is the same, whatever padding stands before the events."""
    lengths = [2, 1, 5]
    grads = []
    for width in (5, 11):
        network = _network(name, event_types=True, **settings)
        (network.queries(_histories(lengths, width)) ** 2).sum().backward()
        grads.append({key: part.grad for key, part in network.named_parameters()})
    for key, grad in grads[0].items():
        if grad is None:  # of what queries do not read
            assert grads[1][key] is None
            continue
        assert grad.isfinite().all()
        if "positions" not in key and "mask_vector" not in key:
            torch.testing.assert_close(grad, grads[1][key], msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_a_history_of_one_event_can_be_learned_from(name: str) -> None:
    assert _trained(name, _histories([1, 2, 7], 7))


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in CAUSAL), ("sasrec", {"relative_bias": True})]
)
def test_states_know_nothing_of_later_events(name: str, settings: dict[str, Any]) -> None:
    network = _network(name, event_types=True, **settings)
    histories = _histories([3, 8], 8)
    before = network.states(histories)
    items, types = histories.items.clone(), histories.event_types.clone()
    items[:, -2] = (items[:, -2] + 1) % SIZES.num_items
    types[:, -2] = (types[:, -2] + 1) % SIZES.num_event_types
    after = network.states(histories._replace(items=items, event_types=types))
    kept = histories.present[:, :-2]
    torch.testing.assert_close(before[:, :-2][kept], after[:, :-2][kept])
    assert not torch.allclose(before[:, -2], after[:, -2])


@pytest.mark.parametrize("name", MODELS)
def test_the_same_in_evaluation_and_after_loading(name: str) -> None:
    network = _network(name, dropout=0.5)
    histories = _histories([1, 4, 8], 8)
    first = network.queries(histories)
    torch.testing.assert_close(first, network.queries(histories), rtol=0, atol=0)
    other = _network(name, seed=1, dropout=0.5)
    assert not torch.allclose(first, other.queries(histories))
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(first, other.queries(histories), rtol=0, atol=0)
    torch.testing.assert_close(network.item_vectors(), other.item_vectors(), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("event_types", [False, True])
def test_event_types_matter_where_asked_for(name: str, event_types: bool) -> None:
    network = _network(name, event_types=event_types)
    histories = _histories([4, 8], 8)
    types = torch.where(histories.present, (histories.event_types + 1) % 3, PADDING)
    changed = network.queries(histories._replace(event_types=types))
    assert torch.allclose(network.queries(histories), changed) is not event_types


@pytest.mark.parametrize("name", MODELS)
def test_only_wanted_events_are_targets(name: str) -> None:
    network = _network(name)
    histories = _histories([1, 4, 8, 8], 8)
    # Odd items alone are wanted, and of the last history nothing.
    wanted = histories.present & (histories.items % 2 == 1)
    wanted[3] = False
    for seed in range(20):
        examples = network.examples(histories, wanted, _chances(histories, seed))
        targets = examples.take(histories.items)
        assert (targets[targets >= 0] % 2 == 1).all()
        assert (targets[3] == PADDING).all()


@pytest.mark.parametrize(("name", "settings"), ALL_VARIANTS)
def test_examples_do_not_depend_on_the_ranks(name: str, settings: dict[str, Any]) -> None:
    network = _network(name, **settings)
    histories = _histories([2, 4, 8, 8], 8)

    def examples(rows: list[int], step: int = 0) -> tuple[Tensor, Tensor]:
        chances = Chances.of(3, step, torch.tensor(rows), 8)
        part = Histories(*(values[rows] for values in histories))
        found = network.examples(part, part.present, chances)
        return found.inputs.items, found.asked

    whole, parts = examples([0, 1, 2, 3]), (examples([0, 2]), examples([1, 3]))
    for number, values in enumerate(whole):
        assert torch.equal(values[[0, 2]], parts[0][number])
        assert torch.equal(values[[1, 3]], parts[1][number])
    if name == "bert4rec":
        assert not torch.equal(examples([0, 1, 2, 3], step=1)[1], whole[1])


def test_chances_are_spread_evenly_and_not_moved_by_padding() -> None:
    places = torch.arange(500)
    narrow, wide = (Chances.of(1, 2, places, width) for width in (100, 120))
    assert torch.equal(narrow.events, wide.events[:, 20:])
    assert torch.equal(narrow.histories, wide.histories)
    for values in (narrow.events.flatten(), narrow.histories):
        assert values.min() >= 0 and values.max() < 1
        shares = torch.histc(values, 4, 0, 1) / values.numel()
        assert (shares - 0.25).abs().max() < 5 * (0.1875 / values.numel()) ** 0.5


def test_the_network_of_the_docs_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "adding-a-network.md").read_text()
    module = types.ModuleType("recs.nn.models.newest")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(text.split("```python\n")[1].split("```")[0], module.__dict__)
    monkeypatch.setitem(MODELS, "newest_mean", "recs.nn.models.newest:NewestMean")
    test_padding_changes_nothing("newest_mean", {"window": 2}, True)
    test_states_know_nothing_of_later_events("newest_mean", {"window": 1})
    network = _network("newest_mean", window=2)
    histories = _histories([1, 3], 4)
    vectors = network.item_vectors()[histories.items]
    expected = torch.stack([vectors[0, -1], vectors[1, -2:].mean(0)])
    torch.testing.assert_close(network.queries(histories), expected)


def _cycle(width: int, num: int = SIZES.num_items) -> Histories:
    """Return a history from each of the first items, in which item i + 1 follows item i."""
    items = (torch.arange(num)[:, None] + torch.arange(width)) % SIZES.num_items
    users = torch.arange(num) % SIZES.num_users
    return Histories(users, items, torch.zeros_like(items), torch.ones_like(items))


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_a_cycle_is_learned(name: str, settings: dict[str, Any]) -> None:
    # No translation but 0 leads through a cycle: TransRec gets a chain, which does not close.
    num = SIZES.num_items - 6 if name == "transrec" else SIZES.num_items
    torch.manual_seed(0)
    # A bidirectional network has to learn both directions and the ends apart.
    slow = name == "bert4rec"
    more = {"last_only": 0.5, "dim": 32} if slow else {}
    network = build(name, SIZES, SMALL | settings | more)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002 if slow else 0.01)
    histories = _cycle(7, num)
    for step in range(600 if slow else 150):
        examples = network.examples(histories, histories.present, _chances(histories, step=step))
        asked = examples.asked >= 0
        states = network.states(examples.inputs)[asked]
        loss = full_cross_entropy(
            states,
            examples.take(histories.items)[asked],
            network.item_vectors(),
            network.item_biases(),
            torch.ones(len(states)),
        )
        optimizer.zero_grad()
        (loss / len(states)).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        assert _hit_rate(network, _cycle(6, num)) > 0.9


def _hit_rate(network: SequenceNetwork, histories: Histories) -> float:
    scores: Tensor = network.queries(histories) @ network.item_vectors().T
    biases = network.item_biases()
    if biases is not None:
        scores = scores + biases
    following = (histories.items[:, -1] + 1) % SIZES.num_items
    return (scores.argmax(1) == following).double().mean().item()


@pytest.mark.parametrize("name", ["caser", "fpmc", "transrec"])
def test_users_matter_and_unknown_ones_have_zeros(name: str) -> None:
    network = _network(name)
    histories = _histories([4, 4], 4)
    queries = network.queries(histories)
    unknown = histories._replace(users=torch.tensor([SIZES.num_users, SIZES.num_users + 7]))
    assert not torch.allclose(queries, network.queries(unknown))
    expected = network.queries(unknown)
    with torch.no_grad():
        network.get_parameter("users.weight").zero_()
    torch.testing.assert_close(network.queries(histories), expected)


def test_transrec_is_the_distance_up_to_a_constant_of_the_query() -> None:
    network = _network("transrec")
    histories = _histories([4, 2], 4)
    biases = network.item_biases()
    assert biases is not None
    folded = network.queries(histories) @ network.item_vectors().T + biases
    state = network.state_dict()
    items, users = state["events.items.weight"], state["users.weight"]
    moved = items[histories.items[:, -1]] + state["translation"] + users[histories.users]
    distances = (moved[:, None] - items).square().sum(2)
    constant = moved.square().sum(1, keepdim=True)
    torch.testing.assert_close(folded - constant, state["biases"] - distances)


def test_caser_reads_the_last_events_of_its_order_alone() -> None:
    network = _network("caser", order=3)
    histories = _histories([8], 8)
    items = histories.items.clone()
    items[0, :-3] = (items[0, :-3] + 1) % SIZES.num_items
    changed = network.queries(histories._replace(items=items))
    torch.testing.assert_close(network.queries(histories), changed)


def test_caser_equals_its_formula() -> None:
    network = _network("caser", order=3, horizontal=2, vertical=2)
    histories = _histories([8], 8)
    state = network.state_dict()
    image = state["events.items.weight"][histories.items[0, -3:]] * 4.0  # √16
    features = []
    for height in (1, 2, 3):
        filters, bias = (state[f"across.{height - 1}.{part}"] for part in ("weight", "bias"))
        responses = [
            (filters * image[first : first + height].T).sum((1, 2)) + bias
            for first in range(4 - height)
        ]
        features.append(torch.stack(responses).relu().amax(0))
    along = state["along.weight"] @ image + state["along.bias"][:, None]
    features.append(along.T.flatten())
    z = (state["hidden.weight"] @ torch.cat(features) + state["hidden.bias"]).relu()
    expected = torch.cat([z, state["users.weight"][0]])
    torch.testing.assert_close(network.queries(histories)[0], expected)


def test_lstm_adds_the_mean_of_its_inputs() -> None:
    network = _network("lstm")
    histories = _histories([3], 5)
    with torch.no_grad():
        network.get_parameter("shares").copy_(torch.tensor([0.0, 2.0]))
    mean = network.state_dict()["events.items.weight"][histories.items[0, 2:]].mean(0)
    torch.testing.assert_close(network.queries(histories)[0], 2 * mean)


def test_bert4rec_hides_a_share_and_always_something_wanted() -> None:
    network = _network("bert4rec", masked=0.3, last_only=0.0, event_types=True)
    histories = _histories([1, 2] + [12] * 400, 12)
    examples = network.examples(histories, histories.present, _chances(histories))
    inputs, targets = examples.inputs, examples.take(histories.items)
    hidden = inputs.items == SIZES.num_items
    assert torch.equal(hidden, targets >= 0)
    assert hidden.any(1).all() and not (hidden & ~histories.present).any()
    assert torch.equal(targets[hidden], histories.items[hidden])
    assert torch.equal(inputs.items[~hidden], histories.items[~hidden])
    assert (inputs.event_types[hidden] == PADDING).all()
    assert abs(hidden[2:].double().mean().item() - 0.3) < 0.03


def test_bert4rec_hides_the_last_event_alone() -> None:
    network = _network("bert4rec", last_only=1.0)
    histories = _histories([1, 5, 12], 12)
    examples = network.examples(histories, histories.present, _chances(histories))
    targets = examples.take(histories.items)
    assert torch.equal(targets[:, -1], histories.items[:, -1])
    assert (targets[:, :-1] == PADDING).all()


def test_bert4rec_pools_what_comes_before_an_event() -> None:
    network = _network("bert4rec", pooling="mean", event_types=True)
    histories = _histories([1, 2, 12, 12], 12)
    wanted = histories.present & (histories.items % 2 == 0)
    wanted[1, -1], wanted[3] = True, False
    seen = set()
    for seed in range(50):
        examples = network.examples(histories, wanted, _chances(histories, seed))
        # Of the first history nothing comes before the only event, of the last nothing is wanted.
        assert (examples.asked[[0, 3]] == PADDING).all()
        for row in (1, 2):
            at = int(examples.asked[row, -1])
            seen.add((row, at))
            before = histories.items[row, :at]
            assert wanted[row, at] and (before >= 0).any()
            for read, given in zip(examples.inputs[1:3], histories[1:3], strict=True):
                assert torch.equal(read[row, 11 - at :], given[row, :at])
            assert (examples.inputs.items[row, : 11 - at] == PADDING).all()
    possible = {(2, at) for at in range(1, 12) if wanted[2, at]}
    assert seen == possible | {(1, 11)}
    asked = network.examples(histories, wanted, _chances(histories)).asked
    assert (asked[:, :-1] == PADDING).all()


def test_bert4rec_drops_the_oldest_event_for_the_mask() -> None:
    network = _network("bert4rec")
    full = _histories([12], 12)
    kept = Histories(full.users, *(part[:, 1:] for part in full[1:]))
    torch.testing.assert_close(network.queries(full), network.queries(kept))


def test_sasrec_refuses_histories_that_are_too_long() -> None:
    with pytest.raises(ValueError, match="13 events wide, but the network reads 12"):
        _network("sasrec").states(_histories([13], 13))


def test_dropped_attention_weights_are_those_of_training_alone() -> None:
    network = _network("sasrec", attention_dropout=0.5)
    histories = _histories([8], 8)
    plain = _network("sasrec")
    torch.testing.assert_close(network.queries(histories), plain.queries(histories))
    assert not torch.allclose(network.train().queries(histories), plain.queries(histories))


def test_networks_know_no_spark() -> None:
    code = "import sys, recs.nn.losses\nfrom recs.nn.models import MODELS, model_class\n"
    code += "for name in MODELS: model_class(name)\nassert 'pyspark' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_build_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"no model is called 'sasrek'; did you mean 'sasrec'\?"):
        model_class("sasrek")
    with pytest.raises(ValueError, match=r"sasrec has no setting 'head'; did you mean 'heads'\?"):
        build("sasrec", SIZES, {"head": 2})
    with pytest.raises(ValueError, match="dim 10 is not divisible by heads 4"):
        build("sasrec", SIZES, {"dim": 10, "heads": 4})
    with pytest.raises(ValueError, match=r"fmc\.dim: Input should be greater than 0"):
        build("fmc", SIZES, {"dim": 0})
