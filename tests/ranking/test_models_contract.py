"""What every Recommender keeps to. A new model is one line in MODELS."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
from pyspark import cloudpickle
from pyspark.sql import DataFrame, Row, SparkSession

from recs.arrays.files import load_array, save_array
from recs.arrays.lists import Lists, offsets_of
from recs.arrays.matrix import write_csr
from recs.errors import UserError
from recs.ranking.catalogue import ItemCatalogue, write_catalogue, write_names
from recs.ranking.embeddings import EmbeddingScorer, write_embeddings
from recs.ranking.jobs import rank, recommend, score
from recs.ranking.popularity import PopularityModel, write_popularity
from recs.ranking.protocols import RankingProtocol
from recs.ranking.scoring import (
    BLOCK_SCORES,
    DenseScores,
    Recommender,
    Scorer,
    SparseScores,
)
from recs.ranking.slim import SlimModel, SlimScorer
from recs.storage import SCHEMES

USERS, ITEMS, K, WIDTH = 12, 30, 5, 4
Build = Callable[[SparkSession, str], Recommender]


def _popularity(spark: SparkSession, folder: str) -> Recommender:
    rows = [(item, float(item % 7)) for item in range(ITEMS - 3)]
    return write_popularity(spark.createDataFrame(rows, "item_id int, score float"), folder, ITEMS)


def _slim(spark: SparkSession, folder: str) -> Recommender:
    random = np.random.default_rng(5)
    weights = random.integers(1, 4, (ITEMS, ITEMS)) * (random.random((ITEMS, ITEMS)) < 0.2)
    np.fill_diagonal(weights, 0)
    rows = [(int(j), int(i), float(weights[j, i])) for j, i in np.argwhere(weights)]
    files = write_csr(
        spark.createDataFrame(rows, "neighbour_id int, item_id int, weight float"),
        f"{folder}/weights",
        row="neighbour_id",
        column="item_id",
        value="weight",
        shape=(ITEMS, ITEMS),
    )
    return SlimModel("slim", files)


def _dense(spark: SparkSession, folder: str) -> Recommender:
    # Local classes travel to the workers by value.
    class Sums(Scorer):
        num_items = ITEMS

        def scores(self, histories: Lists) -> DenseScores:
            first = histories.offsets[:-1]
            ends = histories.offsets[1:]
            sums = [histories.items[a:b].sum() for a, b in zip(first, ends, strict=True)]
            scores = np.add.outer(sums, np.arange(ITEMS)) * 7 % 11
            return DenseScores(scores.astype(np.float32))

    @dataclass(frozen=True)
    class Model:
        name: str = "dense"

        def open(self) -> Scorer:
            return Sums()

    return Model()


def _embeddings(spark: SparkSession, folder: str) -> Recommender:
    random = np.random.default_rng(6)
    rows = [
        (item, random.normal(size=WIDTH).tolist(), float(item % 3)) for item in range(ITEMS - 3)
    ]
    frame = spark.createDataFrame(rows, "item_id int, vector array<float>, bias float")
    return write_embeddings(frame, f"{folder}/embeddings", ITEMS, "embeddings")


MODELS: dict[str, Build] = {
    "popularity": _popularity,
    "slim": _slim,
    "dense": _dense,
    "embeddings": _embeddings,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, spark: SparkSession, folder: str) -> Recommender:
    return MODELS[request.param](spark, folder)


@pytest.fixture(scope="module")
def catalogue(spark: SparkSession, folder: str) -> ItemCatalogue:
    rows = [(item, item % 6, item % 5 != 0) for item in range(ITEMS)]
    frame = spark.createDataFrame(rows, "item_id int, train_events bigint, recommendable boolean")
    return write_catalogue(frame, folder, ITEMS)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """User 0 has neither a history nor a vector."""
    random = np.random.default_rng(1)
    users = []
    for user in range(USERS):
        items = random.permutation(ITEMS).tolist()
        history = sorted(items[: user % 5])
        users.append(
            {
                "user_id": user,
                "history": history,
                "values": [1.0 + n % 2 for n in range(len(history))],
                "vector": random.normal(size=WIDTH).tolist() if user else None,
                "history_length": len(history) + user % 2,  # not all of it is read
                "seen": sorted(items[:6]),
                "targets": [items[6], items[5 if user % 3 else 7]],  # some are seen
                "repeats": [False, user % 3 > 0],
                "interacted": sorted(items[:8]),
                "candidates": items[8:20],
            }
        )
    return users


def _frame(spark: SparkSession, rows: list[dict], partitions: int = 2) -> DataFrame:
    schema = (
        "user_id int, history array<int>, values array<float>, vector array<float>, "
        "history_length int, seen array<int>, targets array<int>, repeats array<boolean>, "
        "interacted array<int>, candidates array<int>"
    )
    return spark.createDataFrame([Row(**row) for row in rows], schema).repartition(partitions)


def _scores(spark: SparkSession, rows: list[dict], model: Recommender) -> dict[int, np.ndarray]:
    everything = [{**row, "candidates": list(range(ITEMS))} for row in rows]
    scored = score(_frame(spark, everything), model).collect()
    return {row.user_id: np.array(row.scores, np.float32) for row in scored}


def floor(model: Recommender) -> float:
    """Return the score at which the model's lists end."""
    return 0 if model.name == "slim" else -np.inf


def test_recommend_is_the_best_scores_without_seen(
    spark: SparkSession, rows: list[dict], model: Recommender, catalogue: ItemCatalogue
) -> None:
    scores = _scores(spark, rows, model)
    found = recommend(_frame(spark, rows), model, k=K, catalogue=catalogue).collect()
    for row in rows:
        values = scores[row["user_id"]]
        open_items = set(np.flatnonzero(catalogue.recommendable)) - set(row["seen"])
        open_items = {item for item in open_items if values[item] > floor(model)}
        expected = sorted(open_items, key=lambda item: (-values[item], item))[:K]
        if model.name != "popularity" and not row["history"]:
            expected = []
        mine = sorted((r for r in found if r.user_id == row["user_id"]), key=lambda r: r.rank)
        assert [r.item_id for r in mine] == expected
        assert [r.rank for r in mine] == list(range(1, len(expected) + 1))
        np.testing.assert_allclose([r.score for r in mine], values[expected], rtol=1e-5)


@pytest.mark.parametrize("protocol", ["full", "given", "uniform5", "popularity5"])
def test_ranks_agree_with_scores(
    spark: SparkSession,
    rows: list[dict],
    model: Recommender,
    catalogue: ItemCatalogue,
    protocol: str,
) -> None:
    scores = _scores(spark, rows, model)
    ranks = rank(
        _frame(spark, rows), [model], [RankingProtocol(protocol, seed=4)], catalogue=catalogue
    ).collect()
    assert len(ranks) == 2 * USERS
    by_user = {row["user_id"]: row for row in rows}
    for r in ranks:
        row, values = by_user[r.user_id], scores[r.user_id]
        nothing = model.name != "popularity" and not (row["history"] and values.any())
        assert (r.model, r.protocol) == (model.name, protocol)
        assert r.history_length == row["history_length"]
        assert r.repeat == (r.item_id in row["seen"])
        if protocol == "full":
            candidates = set(np.flatnonzero(catalogue.recommendable)) - set(row["seen"])
            rankable = r.item_id in candidates and values[r.item_id] > floor(model)
        elif protocol == "given":
            candidates, rankable = set(row["candidates"]) | set(row["targets"]), True
        else:
            assert r.candidates == 7
            assert r["rank"] in ((None,) if nothing else range(1, 8))
            continue
        assert r.candidates == len(candidates)
        if nothing or not rankable:
            assert r["rank"] is None
            continue
        others = values[list(candidates - {r.item_id})]
        assert r["rank"] == 1 + (others > values[r.item_id]).sum()
        assert r.ties == (others == values[r.item_id]).sum()


def test_results_do_not_depend_on_partitions_order_or_batch(
    spark: SparkSession, rows: list[dict], model: Recommender, catalogue: ItemCatalogue
) -> None:
    protocols = [RankingProtocol(name, seed=4) for name in ("full", "popularity5")]

    def results(users: list[dict], partitions: int) -> list:
        frame = _frame(spark, users, partitions)
        ranks = rank(frame, [model], protocols, catalogue=catalogue).collect()
        lists = recommend(frame, model, k=K, catalogue=catalogue).collect()
        return sorted(map(str, ranks)) + sorted(map(str, lists))

    expected = results(rows, 1)
    assert results(rows[::-1], 5) == expected
    alone = results(rows[3:4], 1)
    assert set(alone) <= set(expected)


def test_handle_is_small_picklable_and_equal_to_its_copy(model: Recommender) -> None:
    packed = cloudpickle.dumps(model)  # what Spark pickles with
    copy = cloudpickle.loads(packed)
    assert len(packed) < 20_000
    assert copy == model and hash(copy) == hash(model)


def _histories(rows: list[dict]) -> Lists:
    lengths = np.array([len(row["history"]) for row in rows])
    return Lists(
        offsets_of(lengths),
        np.array(sum((row["history"] for row in rows), []), np.int32),
        np.array(sum((row["values"] for row in rows), []), np.float32),
        np.array([row["vector"] or [0.0] * WIDTH for row in rows], np.float32),
    )


def test_batch_equals_single(rows: list[dict], model: Recommender) -> None:
    scorer, histories = model.open(), _histories(rows)
    sizes = scorer.sizes(histories)
    assert sizes.shape == (USERS,)
    batch = scorer.scores(histories)
    for u in range(USERS):
        single = scorer.scores(histories.rows(u, u + 1))
        if isinstance(batch, SparseScores):
            assert isinstance(single, SparseScores)
            a, b = batch.offsets[u : u + 2]
            assert b - a <= sizes[u]
            np.testing.assert_array_equal(batch.items[a:b], single.items)
            np.testing.assert_array_equal(batch.values[a:b], single.values)
        elif isinstance(batch, DenseScores):
            assert isinstance(single, DenseScores)
            np.testing.assert_array_equal(batch.values[u : u + 1], single.values)


def test_large_catalogues_are_scored_in_bounded_memory() -> None:
    num_items, num_users = 150_000, 60
    random = np.random.default_rng(2)
    vectors = random.normal(size=(num_items, WIDTH)).astype(np.float32)
    scorer = EmbeddingScorer(np.hstack([vectors, np.zeros((num_items, 1), np.float32)]))
    users = random.normal(size=(num_users, WIDTH)).astype(np.float32)
    histories = Lists(offsets_of(np.zeros(num_users, int)), np.zeros(0, np.int32), None, users)
    tracemalloc.start()
    scores = scorer.scores(histories).values
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < scores.nbytes + 1.1 * 4 * BLOCK_SCORES
    for user in (0, 54, 59):
        alone = scorer.scores(histories.rows(user, user + 1)).values
        np.testing.assert_array_equal(alone[0], scores[user])


def test_fallback_fills_in_for_users_without_history(
    spark: SparkSession, rows: list[dict], folder: str, catalogue: ItemCatalogue
) -> None:
    slim, popularity = _slim(spark, folder), _popularity(spark, folder)
    lists = recommend(
        _frame(spark, rows), slim, k=K, catalogue=catalogue, fallback=popularity
    ).collect()
    by_popularity = recommend(
        _frame(spark, rows[:1]), popularity, k=K, catalogue=catalogue
    ).collect()
    cold = {row["user_id"] for row in rows if not row["history"]}
    assert cold and {r.user_id for r in lists if r.fallback} == cold
    assert {r.user_id for r in lists} == set(range(USERS))
    filled = {(r.rank, r.item_id, r.score) for r in lists if r.user_id == 0}
    assert filled == {(r.rank, r.item_id, r.score) for r in by_popularity}
    assert all(r.model == "slim" and r.why == [] for r in lists if r.fallback)


def test_slim_says_which_history_items_gave_the_score(
    spark: SparkSession, rows: list[dict], folder: str, catalogue: ItemCatalogue
) -> None:
    slim = _slim(spark, folder)
    weights = slim.open()
    assert isinstance(weights, SlimScorer)
    dense = scipy.sparse.csr_matrix((weights.data, weights.indices, weights.indptr)).toarray()
    by_user = {row["user_id"]: row for row in rows}
    lists = recommend(_frame(spark, rows), slim, k=K, catalogue=catalogue, why=2).collect()
    assert lists
    for r in lists:
        history, values = by_user[r.user_id]["history"], by_user[r.user_id]["values"]
        terms = {j: v * dense[j, r.item_id] for j, v in zip(history, values, strict=True)}
        assert sum(terms.values()) == pytest.approx(r.score)
        largest = sorted((t for t in terms.values() if t > 0), reverse=True)[:2]
        assert [w.share * r.score for w in r.why] == pytest.approx(largest)
        assert [terms[w.item_id] for w in r.why] == pytest.approx(largest)


def test_several_models_and_protocols_are_ranked_in_one_pass(
    spark: SparkSession, rows: list[dict], folder: str, catalogue: ItemCatalogue
) -> None:
    models = [build(spark, folder) for build in MODELS.values()]
    protocols = [RankingProtocol(name) for name in ("full", "uniform5", "given")]
    together = rank(_frame(spark, rows), models, protocols, catalogue=catalogue)
    apart = [
        rank(_frame(spark, rows), [model], [protocol], catalogue=catalogue)
        for model in models
        for protocol in protocols
    ]
    expected = [str(row) for frame in apart for row in frame.collect()]
    assert sorted(map(str, together.collect())) == sorted(expected)


def test_lists_hold_the_targets_that_ranks_promise(
    spark: SparkSession, rows: list[dict], model: Recommender, catalogue: ItemCatalogue
) -> None:
    """HR@k of ranks is the share of targets among the first k of the lists, but for ties."""
    frame = _frame(spark, rows)
    ranks = rank(frame, [model], [RankingProtocol("full")], catalogue=catalogue).collect()
    lists = recommend(frame, model, k=ITEMS, catalogue=catalogue).collect()
    place = {(r.user_id, r.item_id): r.rank for r in lists}
    ties = sum(r.ties for r in ranks)
    assert {(r.user_id, r.item_id) for r in ranks if r["rank"]} <= place.keys()
    assert any(r["rank"] is None for r in ranks) and any(r["rank"] for r in ranks)
    for k in range(1, ITEMS + 1):
        listed = {
            (r.user_id, r.item_id) for r in ranks if place.get((r.user_id, r.item_id), k + 1) <= k
        }
        certain = {(r.user_id, r.item_id) for r in ranks if r["rank"] and r["rank"] + r.ties <= k}
        possible = {(r.user_id, r.item_id) for r in ranks if r["rank"] and r["rank"] <= k}
        assert certain <= listed <= possible
        assert ties or certain == listed
    assert ties == 0 or model.name != "embeddings"


def test_pairs_are_gathered_scores(rows: list[dict], model: Recommender) -> None:
    scorer, histories = model.open(), _histories(rows)
    candidates = Lists(
        offsets_of(np.full(USERS, 7)),
        np.random.default_rng(3).integers(0, ITEMS + 2, 7 * USERS).astype(np.int32),
    )
    scores = scorer.scores(histories)
    found, expected = scorer.pairs(histories, candidates), scores.gather(candidates)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    nothing = scorer.gives_nothing(histories)
    if isinstance(scores, SparseScores):
        np.testing.assert_array_equal(nothing, np.diff(scores.offsets) == 0)
    assert nothing.any() == (model.name != "popularity")


def test_lists_carry_names(
    spark: SparkSession, rows: list[dict], folder: str, catalogue: ItemCatalogue
) -> None:
    numbered = [(item, f"Gégé {item}" * (item % 3)) for item in reversed(range(ITEMS))]
    item_ids = spark.createDataFrame(numbered, "item_id int, item string").repartition(3)
    users = spark.createDataFrame(
        [(n, f"user-{n}") for n in range(USERS)], "user_id int, user string"
    )
    lists = recommend(
        _frame(spark, rows).join(users, "user_id"),
        _slim(spark, folder),
        k=K,
        catalogue=catalogue,
        fallback=_popularity(spark, folder),
        names=write_names(item_ids, folder, ITEMS),
    ).collect()
    assert {r.fallback for r in lists} == {True, False}
    assert all(r.user == f"user-{r.user_id}" for r in lists)
    assert all(r.item == dict(numbered)[r.item_id] for r in lists)
    with pytest.raises(Exception, match="item_ids do not number items from 0 to 30, each once"):
        write_names(item_ids, folder, ITEMS + 1)


def test_nan_scores_name_the_model(
    spark: SparkSession, rows: list[dict], folder: str, catalogue: ItemCatalogue
) -> None:
    broken = np.zeros(ITEMS, np.float32)
    broken[4] = np.nan
    model = PopularityModel("broken", save_array(broken, folder, "broken"))
    with pytest.raises(Exception, match="model broken scores item 4 with NaN"):
        recommend(_frame(spark, rows), model, k=K, catalogue=catalogue).collect()


def test_mistakes_are_named(
    spark: SparkSession, rows: list[dict], folder: str, catalogue: ItemCatalogue
) -> None:
    model = _popularity(spark, folder)
    with pytest.raises(ValueError, match="histories lack column interacted"):
        rank(
            _frame(spark, rows).drop("interacted"),
            [model],
            [RankingProtocol("uniform5")],
            catalogue=catalogue,
        )
    with pytest.raises(ValueError, match="protocol 'uniform' is not known"):
        RankingProtocol("uniform")
    with pytest.raises(ValueError, match="k is 0"):
        recommend(_frame(spark, rows), model, k=0, catalogue=catalogue)


def test_missing_arrays_read_as_empty_ones() -> None:
    from recs.arrays.lists import read_lists

    batch = pa.RecordBatch.from_pydict({"items": pa.array([[1, 2], None, [], [3]])})
    lists = read_lists(batch.slice(1), "items")
    assert lists.offsets.tolist() == [0, 0, 0, 1] and lists.items.tolist() == [3]


def test_arrays_on_remote_storage_are_mapped_once_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCHEMES, "memory", "memory")
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    for array in (np.arange(12.0).reshape(4, 3), np.array([True, False]), np.zeros((0, 2))):
        uri = save_array(array, "memory://arrays", "array")
        assert uri == save_array(array.copy(), "memory://arrays", "array")
        found = load_array(uri)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype and not found.flags.writeable
    assert len(list(tmp_path.glob("*/*/array.npy"))) == 3
    assert save_array(np.zeros(2), "memory://arrays", "a") != save_array(
        np.zeros(2, np.int64), "memory://arrays", "a"
    )


def test_arrays_are_written_without_copies(tmp_path: Path) -> None:
    array = np.zeros((2**22, 32), np.int8)
    tracemalloc.start()
    save_array(array, str(tmp_path), "array")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < array.nbytes / 2


def test_vectors_refuse_repeated_and_foreign_items(spark: SparkSession, tmp_path: Path) -> None:
    schema = "item_id int, score float"
    with pytest.raises(Exception, match="outside 0 to 2"):
        write_popularity(spark.createDataFrame([(3, 1.0)], schema), str(tmp_path), 3)
    with pytest.raises(Exception, match="more than one row"):
        write_popularity(spark.createDataFrame([(1, 1.0)] * 2, schema), str(tmp_path), 3)
    with pytest.raises(UserError, match="the table is empty"):
        write_popularity(spark.createDataFrame([], schema), str(tmp_path), 3)
