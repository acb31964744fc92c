"""``recs init``: what it prints is read by load_config, and is what the data is."""

from __future__ import annotations

import bz2
import gzip
import json
import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pipelines import cli
from recs.config import Config, EventSource, load_config
from recs.data.files import new_deliveries
from recs.data.ingest import columns_read, parse
from recs.data.sources import REASON, read_rows
from recs.guess import files

ROWS = range(60)
START = datetime(2024, 1, 1)
USERS, ITEMS = [f"u{n // 6}" for n in ROWS], [f"i{n * 7 % 20}" for n in ROWS]
TIMES = [START + timedelta(days=n, minutes=n) for n in ROWS]
SECONDS = [int((time - datetime(1970, 1, 1)).total_seconds()) for time in TIMES]


def lines(separator: str, *columns: Any, header: str = "") -> str:
    """Return rows of columns, each a list or one value for all, as text."""
    values = [column if isinstance(column, list) else [column] * len(ROWS) for column in columns]
    rows = [separator.join(map(str, row)) for row in zip(*values, strict=True)]
    return "\n".join([*([header] if header else []), *rows, ""])


def records(**columns: Any) -> str:
    """Return the same as lines of JSON."""
    values = [
        column if isinstance(column, list) else [column] * len(ROWS) for column in columns.values()
    ]
    rows = zip(*values, strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)


@pytest.fixture
def guess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Config, str]]:
    """Return the configuration that ``recs init`` prints of a file, and what it says."""

    def run(path: Path | str, *options: str) -> tuple[Config, str]:
        code = cli.main(["init", str(path), *options])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        yaml = tmp_path / "_mine.yaml"
        yaml.write_text(printed.out)
        given = shlex.split(printed.err.splitlines()[-1])
        return load_config(yaml, [part for part in given if part.startswith(("root=", "data="))]), (
            printed.err
        )

    return run


def source_of(config: Config) -> EventSource:
    (source,) = config.events.sources
    assert config.locate(source)
    return source


N = list(ROWS)
INTS = [n // 6 + 100 for n in N], [n * 7 % 20 + 300 for n in N]
STARS = [n % 5 + 1 for n in N]
HALVES = [star - 0.5 for star in STARS]
QUOTED = [f"'{user}'" for user in USERS], [f"'{item}, or so'" for item in ITEMS]
LIVE = [f'"{item} (live)' for item in ITEMS]
TYPES = ["view", "view", "addtocart", "view", "transaction"] * 12

#: Name → file, what is in it, and the roles and the form that are to be found.
FORMS: dict[str, tuple[str, str | bytes, dict[str, Any], dict[str, Any]]] = {
    "ml-100k": (
        "u.data",
        lines("\t", *INTS, STARS, SECONDS),
        {"user": "user", "item": "item", "timestamp": "timestamp", "weight": "rating"},
        {
            "separator": "\t",
            "fields": ["user", "item", "rating", "timestamp"],
            "timestamp_format": "seconds",
        },
    ),
    "ml-1m": (
        "ratings.dat",
        lines("::", *INTS, STARS, SECONDS),
        {"user": "user", "item": "item", "timestamp": "timestamp", "weight": "rating"},
        {
            "separator": "::",
            "fields": ["user", "item", "rating", "timestamp"],
            "timestamp_format": "seconds",
        },
    ),
    "ml-25m": (
        "ratings.csv",
        lines(",", *INTS, HALVES, SECONDS, header="userId,movieId,rating,timestamp"),
        {"user": "userId", "item": "movieId", "timestamp": "timestamp", "weight": "rating"},
        {"separator": ",", "fields": None, "timestamp_format": "seconds"},
    ),
    "amazon ratings, items first": (
        "Video_Games.csv",
        lines(",", [f"B00{n % 20:07}" for n in N], [f"A{n // 6:013}" for n in N], "5.0", SECONDS),
        {"user": "user", "item": "item", "timestamp": "timestamp", "weight": "rating"},
        {"fields": ["item", "user", "rating", "timestamp"], "timestamp_format": "seconds"},
    ),
    "amazon reviews": (
        "reviews.json",
        records(
            overall=[float(star) for star in STARS],
            verified=True,
            reviewTime="09 1, 2016",
            reviewerID=USERS,
            asin=ITEMS,
            style={"Format:": "Hardcover"},
            reviewText="A game that one plays once, and then again, and never after that. " * 3,
            unixReviewTime=SECONDS,
        ),
        {
            "user": "reviewerID",
            "item": "asin",
            "timestamp": "unixReviewTime",
            "weight": "overall",
            "context": ["verified", "reviewTime"],
        },
        {"format": "jsonl", "timestamp_format": "seconds"},
    ),
    "amazon 2023": (
        "Books.jsonl",
        records(
            rating=5.0,
            title="Good",
            images=[[]] * len(N),
            asin="B1",
            parent_asin=ITEMS,
            user_id=USERS,
            timestamp=[second * 1000 + 117 for second in SECONDS],
        ),
        {
            "user": "user_id",
            "item": "parent_asin",
            "timestamp": "timestamp",
            "weight": "rating",
            "context": ["title", "asin"],
        },
        {"format": "jsonl", "timestamp_format": "milliseconds"},
    ),
    "retailrocket": (
        "events.csv",
        lines(
            ",",
            [second * 1000 + 1 for second in SECONDS],
            INTS[0],
            TYPES,
            INTS[1],
            [1000 + n if n % 5 == 4 else "" for n in N],
            header="timestamp,visitorid,event,itemid,transactionid",
        ),
        {
            "user": "visitorid",
            "item": "itemid",
            "timestamp": "timestamp",
            "event_type": "event",
            "context": ["transactionid"],
        },
        {"timestamp_format": "milliseconds"},
    ),
    "a shop's clicks": (
        "2019-Oct.csv",
        lines(
            ",",
            [f"{time} UTC" for time in TIMES],
            ["view", "cart", "remove_from_cart", "purchase"] * 15,
            INTS[1],
            "2053013555631882655",
            [f"{n}.50" for n in N],
            INTS[0],
            [f"s-{n // 3}" for n in N],
            header="event_time,event_type,product_id,category_id,price,user_id,user_session",
        ),
        {
            "user": "user_id",
            "item": "product_id",
            "timestamp": "event_time",
            "event_type": "event_type",
            "weight": None,
            "context": ["category_id", "price", "user_session"],
        },
        {"timestamp_format": "iso"},
    ),
    "french": (
        "événements.csv",
        lines(
            ";",
            USERS,
            [f"référence {item}" for item in ITEMS],
            ["vue", "panier", "achat"] * 20,
            [f"{time:%d/%m/%Y %H:%M:%S}" for time in TIMES],
            "12,50",
            header="client;article;évènement;horodatage;prix",
        ).encode("latin-1"),
        {
            "user": "client",
            "item": "article",
            "event_type": "évènement",
            "timestamp": "horodatage",
            "context": ["prix"],
        },
        {"separator": ";", "encoding": "latin-1", "timestamp_format": "dd/MM/yyyy HH:mm:ss"},
    ),
    "a book site": (
        "ratings.csv.gz",
        gzip.compress(
            lines(
                ";",
                [f'"{n}"' for n in INTS[0]],
                [f'"0{n:08};X"' for n in INTS[1]],
                [f'"{n % 11}"' for n in N],
                header='"User-ID";"ISBN";"Book-Rating"',
            ).encode()
        ),
        {"user": "User-ID", "item": "ISBN", "timestamp": None, "weight": "Book-Rating"},
        {"separator": ";", "quote": '"'},
    ),
    "sessions of clicks": (
        "yoochoose-clicks.dat",
        lines(",", INTS[0], [f"{time:%Y-%m-%dT%H:%M:%S}.277Z" for time in TIMES], INTS[1], "S"),
        {"user": "user", "item": "item", "timestamp": "timestamp", "context": ["column_4"]},
        {"fields": ["user", "timestamp", "item", "column_4"], "timestamp_format": "iso"},
    ),
    "taobao": (
        "UserBehavior.csv.bz2",
        bz2.compress(lines(",", *INTS, 4602, ["pv", "pv", "buy", "fav"] * 15, SECONDS).encode()),
        {
            "user": "user",
            "item": "item",
            "timestamp": "timestamp",
            "event_type": "event_type",
            "context": ["column_3"],
        },
        {"fields": ["user", "item", "column_3", "event_type", "timestamp"]},
    ),
    "games played": (
        "steam-200k.csv",
        lines(",", INTS[0], '"The Elder Scrolls, Skyrim"', ["purchase", "play"] * 30, "73.5", 0),
        {
            "user": "user",
            "item": "item",
            "timestamp": None,
            "event_type": "event_type",
            "context": ["column_4", "column_5"],
        },
        {"quote": '"', "fields": ["user", "item", "event_type", "column_4", "column_5"]},
    ),
    "online retail": (
        "Online Retail.csv",
        lines(
            ",",
            [536000 + n // 3 for n in N],
            ITEMS,
            '"WHITE HANGING HEART, T-LIGHT"',
            [6 if n else -1 for n in N],
            [f"{time.month}/{time.day}/{time.year} {time.hour}:{time:%M}" for time in TIMES],
            "2.55",
            INTS[0],
            header="InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID",
        ),
        {
            "user": "CustomerID",
            "item": "StockCode",
            "timestamp": "InvoiceDate",
            "weight": "Quantity",
            "context": ["InvoiceNo", "Description", "UnitPrice"],
        },
        {"timestamp_format": "M/d/yyyy H:mm"},
    ),
    "fashion": (
        "transactions_train.csv",
        lines(
            ",",
            [f"{time:%Y-%m-%d}" for time in TIMES],
            USERS,
            INTS[1],
            "0.0508",
            2,
            header="t_dat,customer_id,article_id,price,sales_channel_id",
        ),
        {
            "user": "customer_id",
            "item": "article_id",
            "timestamp": "t_dat",
            "weight": "price",
            "context": ["sales_channel_id"],
        },
        {"timestamp_format": "iso"},
    ),
    "order without times": (
        "order.csv",
        lines(",", *INTS, STARS, [n % 6 for n in N], header="user,item,rating,pos"),
        {"user": "user", "item": "item", "timestamp": None, "position": "pos", "weight": "rating"},
        {"fields": None},
    ),
    "pairs": (
        "ml-1m.txt",
        lines(" ", *INTS),
        {"user": "user", "item": "item", "timestamp": None},
        {"separator": " ", "fields": ["user", "item"]},
    ),
    "apostrophes": (
        "quoted.csv",
        lines(",", *QUOTED, header="uid,sku"),
        {"user": "uid", "item": "sku", "timestamp": None},
        {"quote": "'"},
    ),
    "quotes within values": (
        "plays.tsv",
        lines("\t", USERS, LIVE, SECONDS, header="user\ttrack\tts"),
        {"user": "user", "item": "track", "timestamp": "ts"},
        {"quote": "", "separator": "\t", "timestamp_format": "seconds"},
    ),
    "windows": (
        "windows.csv",
        lines(
            "|", USERS, ITEMS, TIMES, "no", header="\ufeffUserID|Item Id|When|no: #"
        ).replace("\n", "\r\n"),
        {"user": "UserID", "item": "Item Id", "timestamp": "When", "context": ["no: #"]},
        {"separator": "|", "encoding": "utf-8"},
    ),
    "hive": (
        "clicks.txt",
        lines("\x01", USERS, ITEMS, SECONDS),
        {"user": "user", "item": "item", "timestamp": "timestamp"},
        {"separator": "\x01"},
    ),
    "visitors who log in seldom": (
        "clicks.csv",
        lines(
            ";",
            [n // 5 for n in N],
            [n if n % 9 == 0 else "NA" for n in N],
            INTS[1],
            [f"{time:%Y-%m-%d}" for time in TIMES],
            header="session_id;user_id;item_id;eventdate",
        ),
        {"user": "session_id", "item": "item_id", "timestamp": "eventdate", "context": ["user_id"]},
        {"timestamp_format": "iso"},
    ),
}  # fmt: skip


def check(config: Config, roles: dict[str, Any], form: dict[str, Any]) -> None:
    source = source_of(config)
    found = source.columns.model_dump()
    assert found == {
        "position": None, "event_type": None, "weight": None, "context": [], **roles,
    }  # fmt: skip
    assert {key: getattr(source, key) for key in form} == form
    assert config.models == ["popularity", "slim"]
    ordered = roles["timestamp"] or roles.get("position")
    assert config.split.method == ("leave_one_out" if ordered else "random")


def write(folder: Path, form: str) -> Path:
    name, content, _, _ = FORMS[form]
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("form", FORMS)
def test_text_files(form: str, tmp_path: Path, guess: Callable[..., tuple[Config, str]]) -> None:
    config, _ = guess(write(tmp_path, form))
    check(config, *FORMS[form][2:])


def test_the_first_line_is_no_header_where_it_looks_like_the_others(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "plays.csv"
    path.write_text(lines(",", USERS, ["book"] * 60, header=""))
    source = source_of(guess(path)[0])
    assert source.fields == ["user", "item"]
    path.write_text(lines(",", USERS, ITEMS, "like", header="user,item,like"))
    assert source_of(guess(path)[0]).fields is None
    path.write_text(lines(",", USERS, ITEMS, header="who,what"))
    _, told = guess(path, "--user", "who", "--item", "what")
    assert "header: the first line, as it seems" in told


EVENTS = pa.table({"user_id": USERS, "item_id": ITEMS, "ts": pa.array(TIMES, pa.timestamp("ns"))})


def test_parquet_keeps_times_as_such(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "events.parquet"
    lists = pa.array([["a"]] * len(ROWS))
    pq.write_table(EVENTS.append_column("tags", lists), path, row_group_size=20)
    config, told = guess(path)
    check(config, {"user": "user_id", "item": "item_id", "timestamp": "ts"}, {"format": "parquet"})
    assert "timestamp: 'ts', kept as times (by its name and values; 2024-01-01 to" in told
    assert "left out: 'tags' holds lists or records" in told


def test_times_without_a_value_are_none(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "events.parquet"
    empty = pa.array([None] * len(ROWS), pa.timestamp("us"))
    pq.write_table(EVENTS.drop(["ts"]).append_column("ts", empty), path)
    assert source_of(guess(path)[0]).columns.timestamp is None


def test_numbers_for_times_in_parquet_get_a_unit(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "events.parquet"
    micros = pa.array([second * 10**6 for second in SECONDS])
    ids = pa.array([float(n) for n in INTS[0]])
    pq.write_table(pa.table({"uid": ids, "sku": INTS[1], "time": micros}), path)
    config, _ = guess(path)
    check(
        config,
        {"user": "uid", "item": "sku", "timestamp": "time"},
        {"timestamp_format": "microseconds"},
    )


def test_a_folder_is_given_as_such(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    folder = tmp_path / "my clicks"
    for day, country in ((1, "ch"), (2, "fr")):
        part = folder / f"country={country}"
        part.mkdir(parents=True)
        (part / f"day-{day}.csv").write_text(
            lines(",", USERS, ITEMS, SECONDS, header="u_id,sku,ts")
        )
        (part / "_SUCCESS").write_text("")
    (folder / "_notes.txt").write_text("not read")
    config, _ = guess(folder, "--user", "u_id")
    assert source_of(config).path == "my clicks"
    assert config.data == str(tmp_path)
    roles = {"user": "u_id", "item": "sku", "timestamp": "ts", "context": ["country"]}
    check(config, roles, {"timestamp_format": "seconds"})


def test_a_delta_table_is_known_by_its_log(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    folder = tmp_path / "events"
    (folder / "_delta_log").mkdir(parents=True)
    pq.write_table(EVENTS, folder / "part-0.parquet")
    assert source_of(guess(folder)[0]).format == "delta"
    pq.write_table(EVENTS.drop(["ts"]), folder / "part-0.parquet")
    assert cli.main(["init", str(folder)]) == 2


@pytest.mark.parametrize("form", ["relative", "uri"])
def test_paths_are_completed(
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    guess: Callable[..., tuple[Config, str]],
) -> None:
    write(tmp_path, "ml-100k")
    monkeypatch.chdir(tmp_path)
    config, _ = guess("u.data" if form == "relative" else f"file://{tmp_path}/u.data")
    assert source_of(config).path == "u.data"


def test_types_are_weighed_and_dislikes_are_negative(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "events.csv"
    names = ["view", "view", "like", "add_to_cart", "purchase", "dislike", "impression", "zoom",
             "Thumbs Down", "remove_from_cart"] * 6  # fmt: skip
    path.write_text(lines(",", USERS, ITEMS, TIMES, names, header="user,item,time,action"))
    config, told = guess(path)
    types = {name: (kind.weight, kind.polarity) for name, kind in config.events.types.items()}
    assert types == {
        "view": (1, "positive"),
        "like": (2, "positive"),
        "add_to_cart": (3, "positive"),
        "purchase": (4, "positive"),
        "dislike": (1, "negative"),
        "impression": (1, "shown"),
        "zoom": (1, "positive"),
        "Thumbs Down": (1, "negative"),
        "remove_from_cart": (1, "shown"),
    }
    assert config.events.default_type == "view"
    assert "what 'zoom' mean is not known" in told


def test_ratings_become_likes_and_dislikes_as_the_comment_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "ml-25m")
    assert cli.main(["init", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "write `event_type: rating` for `weight: rating`" in printed
    head, _, block = printed.partition("  # types:")
    changed = head.replace("weight: rating  ", "event_type: rating  ")
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"{changed}  # types:{block}".replace("\n  # ", "\n  ").replace("  To", "  # To")
    )
    config = load_config(mine, ["root=lake", f"data={tmp_path}"])
    source = source_of(config)
    assert (source.columns.weight, source.columns.event_type) == (None, "rating")
    polarities = {name: kind.polarity for name, kind in config.events.types.items()}
    assert polarities == {
        "0.5": "negative",
        "1.5": "negative",
        "2.5": "negative",
        "3.5": "positive",
        "4.5": "positive",
    }


def test_negative_ratings_are_no_weight(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "votes.csv"
    path.write_text(lines(",", USERS, ITEMS, TIMES, [-1, 1] * 30, header="user,item,time,rating"))
    config, told = guess(path)
    assert source_of(config).columns.weight is None
    assert "'rating' is no weight: 30 of its values are negative" in told


def test_a_rating_is_the_weight_before_a_count(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "orders.csv"
    path.write_text(lines(",", USERS, ITEMS, TIMES, 2, 5, header="user,item,time,quantity,stars"))
    columns = source_of(guess(path)[0]).columns
    assert (columns.weight, columns.context) == ("stars", ["quantity"])


def test_options_are_taken_before_guesses(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = write(tmp_path, "retailrocket")
    config, _ = guess(path, "--item", "transactionid", "--user", "itemid")
    columns = source_of(config).columns
    assert (columns.user, columns.item, columns.timestamp) == (
        "itemid",
        "transactionid",
        "timestamp",
    )
    path = write(tmp_path, "pairs")
    config, _ = guess(path, "--item", "column_1")
    assert source_of(config).fields == ["item", "user"]


def test_a_time_in_no_format_that_is_known_is_said_to_be_so(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "events.csv"
    path.write_text(lines(",", USERS, ITEMS, "Tue of week 3", header="user,item,time"))
    config, told = guess(path)
    assert source_of(config).columns.timestamp is None
    assert "'time' may be a time, but in no format that is known" in told
    config, told = guess(path, "--timestamp", "time")
    assert source_of(config).columns.timestamp == "time"
    assert "the values of 'time' are no times: mend timestamp_format" in told


def test_an_event_of_too_many_types_is_said_to_be_so(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "events.csv"
    path.write_text(lines(",", USERS, ITEMS, TIMES, SECONDS, header="user,item,time,event"))
    config, told = guess(path)
    assert list(config.events.types) == ["view"]
    assert "'event' has 60 values, too many for types" in told


def test_what_ingest_would_reject_is_told(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = tmp_path / "events.csv"
    rows = lines(",", USERS, ITEMS, TIMES, header="user,item,time").splitlines()
    bad = [",i1,2024-01-01", "u1,,2024-01-01", "u1,i1,soon", "u1,i1,1901-01-01", "u1,i1", "u1,i1,"]
    path.write_text("\n".join([*rows, *bad, "u1,i1,2999-01-01"]))
    _, told = guess(path)
    assert (
        "warning: 7 of 67 rows would be put in quarantine (bad_time: 2, future_time: 1, "
        "malformed: 1, null_item: 1, null_user: 1, time_before_floor: 1), too many for "
        "max_reject_share" in told
    )


def test_the_middle_of_a_large_file_is_looked_at(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "HEAD", 1000)
    monkeypatch.setattr(files, "MIDDLE", 500)
    path = tmp_path / "events.csv"
    first = lines(",", USERS, ITEMS, TIMES, "view", header="user,item,time,event")
    path.write_text(first + lines(",", USERS, ITEMS, TIMES, "buy") * 2)
    config, told = guess(path)
    assert list(config.events.types) == ["view", "buy"]
    assert "quarantine" not in told
    packed = tmp_path / "events.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(guess(packed)[0].events.types) == ["view"]


def test_what_was_guessed_is_told_with_its_reason(
    tmp_path: Path, guess: Callable[..., tuple[Config, str]]
) -> None:
    path = write(tmp_path, "retailrocket")
    config, told = guess(path)
    assert told.splitlines() == [
        "format: csv (60 rows looked at)",
        "encoding: utf-8",
        "separator: ',' (5 columns in 61 of 61 lines)",
        "header: the first line, which has names as 'timestamp' and 'visitorid'",
        "user: 'visitorid' (by its name; 10 values in 60 rows)",
        "item: 'itemid' (by its name; 20 values in 60 rows)",
        "timestamp: 'timestamp', milliseconds since 1970 "
        "(by its name and values; 2024-01-01 to 2024-02-29)",
        "event_type: 'event' (by its name): view 1, addtocart 3, transaction 4",
        f"next: recs run --config mine.yaml data={tmp_path} root=out/lake",
    ]


def test_each_key_has_a_line_and_what_has_no_obvious_value_a_comment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", str(write(tmp_path, "retailrocket"))]) == 0
    printed = capsys.readouterr().out
    assert "{" not in printed and "[" not in printed
    keys = ("path", "format", "separator", "user", "timestamp", "event_type", "types", "method")
    for key in keys:
        (line,) = [line for line in printed.splitlines() if line.strip(" -").startswith(f"{key}:")]
        assert "  # " in line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "holds nothing"),
        ("blank.csv", b"\n \n", "holds nothing"),
        ("header.csv", b"user,item,time\n", "holds a header and no events"),
        ("binary.csv", b"\x89PNG\r\n\x1a\n\x00\x00", "is UTF-16 or binary"),
        ("utf16.csv", "user,item\n1,2\n".encode("utf-16"), "is UTF-16 or binary"),
        ("book.xlsx", b"PK\x03\x04rest", "is a zip file"),
        ("plain.csv", gzip.compress(b"user,item\n1,2\n", mtime=0), "let it end in .gz or .bz2"),
        ("plain.csv.gz", b"user,item\n1,2\n", "cannot be unpacked"),
        ("list.json", b'[{"user": 1, "item": 2}]', "is one JSON document"),
        ("python.json", b"{'user': 1, 'item': 2}\n" * 3, "are no JSON"),
        ("words.txt", b"one\ntwo\nthree\n", "no separator"),
        ("_hidden.csv", b"user,item\n1,2\n", "rename it"),
        ("broken.parquet", b"PAR1 and no more", "is broken Parquet"),
        (
            "sales.csv",
            b"user_id,when,total\n1,2024-01-01,5\n1,2024-01-02,6\n",
            "no column looks like an item: say --item COLUMN, one of user_id, when, total",
        ),
        (
            "sessions.jsonl",
            b'{"session": 1, "events": [{"aid": 2}]}',
            "say --item COLUMN, one of session (unnest events before)",
        ),
        ("late.csv", b"\nuser,item\n1,2\n", "the line before the header is empty"),
        (
            "items.csv",
            b"sku,label\n1,a\n2,b\n",
            "no column looks like a user: say --user COLUMN, one of sku, label",
        ),
        ("wide.csv", b"1,2,3,4,5,6,7,8,9\n" * 3, "one of column_1 to column_9"),
    ],
)
def test_what_cannot_be_guessed_is_refused(
    name: str,
    content: bytes,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    assert cli.main(["init", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out and "Traceback" not in printed.err


def test_a_folder_without_one_form_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error() -> str:
        assert cli.main(["init", str(tmp_path / "raw")]) == 2
        return capsys.readouterr().err

    assert "does not exist" in error()
    (tmp_path / "raw").mkdir()
    assert "holds no files" in error()
    (tmp_path / "raw" / "events.csv").write_text(lines(",", USERS, ITEMS, header="user,item"))
    (tmp_path / "raw" / "items.csv").write_text("item,title\n1,a\n")
    assert "events.csv and " in error()
    (tmp_path / "raw" / "items.csv").unlink()
    (tmp_path / "raw" / "more.jsonl").write_text(records(user=USERS, item=ITEMS))
    assert "are not of one form: name the one that holds events" in error()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--user", "who"], "--user who: no such column"),
        (["--user", "itemid", "--item", "itemid"], "or it has a role already"),
    ],
)
def test_options_name_columns_that_are_there(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", str(write(tmp_path, "retailrocket")), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("form", ["ml-1m", "french", "amazon reviews", "a book site"])
def test_ingest_reads_what_was_guessed(
    form: str, tmp_path: Path, guess: Callable[..., tuple[Config, str]], spark: SparkSession
) -> None:
    config, _ = guess(write(tmp_path, form))
    source = source_of(config)
    found = new_deliveries(spark, source, config.locate(source), None, 0)
    rows = read_rows(spark, source, found, columns_read(source), work=str(tmp_path / "work"))
    parsed = parse(rows, source, config.events, now=datetime(2026, 1, 1))
    events = parsed.select("user", "item", "value", "timestamp", REASON).collect()
    assert len(events) == len(ROWS)
    assert {row[REASON] for row in events} == {None}
    assert all(row["user"] and row["item"] for row in events)
