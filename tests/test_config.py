"""What a configuration refuses, and how it says so."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipelines.resources import conf_folder
from recs import storage
from recs.config import Config, ConfigError, load_config
from recs.settings import Strict
from recs.storage import StorageError

MINIMAL = {
    "events": {
        "sources": [{"path": "e.csv", "columns": {"user": "u", "item": "i", "timestamp": "t"}}]
    }
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "e.csv").write_text("u,i,t\n")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def load(file: Path, *overrides: str) -> Config:
    return load_config(file, [f"data={file.parent}", f"root={file.parent}/lake", *overrides])


def test_overrides_reach_nested_keys(file: Path) -> None:
    config = load(file, "slim.l1=2.5", "models=slim", "events.sources.0.separator=;")
    assert config.name == "mine"
    assert config.slim.l1 == 2.5
    assert config.models == ["slim"]
    assert config.events.sources[0].separator == ";"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("slim.lamda=1", "unknown key 'slim.lamda'; the nearest known key is"),
        ("slm.l1=1", "unknown key 'slm'; the nearest known key is 'slim'"),
        ("evaluate.protocol=full", "the nearest known key is 'protocols'"),
        ("events.sources.0.seperator=;", "the nearest known key is 'separator'"),
        ("slim.l1=many", "key 'slim.l1': Input should be a valid number"),
        ("slim.l1=-1", "greater than or equal to 0"),
        ("mode=production", "'backtest' or 'serve'"),
        ("models=slim,svd", "key 'models.1'"),
        ("split.method=global_time", "validation_from and test_from"),
        ("events.default_type=glance", "default_type 'glance' is none of"),
        ("root=ftp://host/lake", "scheme 'ftp'"),
        ("root=s3a://key:secret@bucket/lake", "carries credentials"),
        ("root=s3a://key:sec/ret+secret@bucket/lake", "carries credentials"),
        ("root=//me:secret@host/lake", "carries credentials"),
        ("root= s3a://key:secret@bucket/lake", "spaces at an end"),
        ("catalog=a.b.c", "key 'catalog': catalog 'a.b.c' is no name: give 'schema' or"),
        ("catalog=dev_ml.ré", "of letters, digits, hyphens and underscores"),
        ("run_id=a b", "run_id"),
        ("run_id=..", "run_id"),
        ("models=[slim", "override 'models=[slim': '[slim' is no YAML"),
        ("models=5", "key 'models'"),
        ("evaluate.protocols=[full,given]", "there are no candidates"),
        ("slim", "form key=value"),
        ("models.first.x=1", "there is no 'first'"),
        (
            "split={method: random, method: files}",
            "override 'split={method: random, method: files}': key 'split.method' is given twice",
        ),
        ("events.types={[a]: {}}", "line 1: a key is a list or a mapping: put it in quotes"),
        ("split={validation_from: 2024-13-01}", "key 'split.validation_from': Input should be"),
        ("split={validation_from: !!date 1}", "is no YAML"),
        ("split=&a [*a]", "is no YAML"),
        ("seed=1e-3", "key 'seed': Input should be a valid integer"),
        ("seed=!!int x", "is no YAML"),
        ("rebuild=yes", "key 'rebuild': true or false is needed (given: 'yes')"),
        ("rebuild=1", "key 'rebuild': true or false is needed (given: 1)"),
        ("popularity.days=true", "key 'popularity.days': a number is needed (given: True)"),
        ("slim.l1=false", "key 'slim.l1': a number is needed (given: False)"),
        ("evaluate.ks=[1, true]", "key 'evaluate.ks': a number is needed (given: [1, True])"),
        ("models=slim,popularity,slim", "key 'models': 'slim' is given twice: name it once"),
        ("evaluate.protocols=[full, full]", "key 'evaluate.protocols': 'full' is given twice"),
        ("evaluate.ks=[5, 10, 5]", "key 'evaluate.ks': 5 is given twice"),
        ("tune_slim.l1=[1, 1.0]", "key 'tune_slim.l1': 1.0 is given twice"),
    ],
)
def test_mistakes_are_named(file: Path, override: str, message: str) -> None:
    file.write_text(yaml.safe_dump(MINIMAL | {"models": ["slim"]}))
    with pytest.raises(ConfigError) as error:
        load(file, override)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("metric: ndgc", "no metric is called 'ndgc'; the nearest is 'ndcg'"),
        ("metric: hr, protocol: ful", "key 'evaluate.gates.0.protocol'"),
        ("metric: hr, at_least: .nan", "key 'evaluate.gates.0.at_least'"),
        ("metric: auc", "auc is not measured at a length: give k: null"),
        ("metric: gini, k: null", "gini is measured at a length: give k"),
        ("metric: gini, protocol: uniform100", "gini is of lists: leave out protocol"),
        ("metric: accuracy, k: null", "give protocol: relevance"),
        ("metric: accuracy, k: null, protocol: relevance", "accuracy is measured of networks"),
        ("metric: hr, protocol: relevance", "relevance measures auc, accuracy alone"),
    ],
)
def test_a_gate_that_cannot_be_measured_is_refused(file: Path, gate: str, message: str) -> None:
    given = {"model": "slim", "at_least": 0.1} | yaml.safe_load(f"{{{gate}}}")
    file.write_text(yaml.safe_dump(MINIMAL | {"models": ["slim"], "evaluate": {"gates": [given]}}))
    with pytest.raises(ConfigError) as error:
        load(file)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.split=validation", "trains on the events that evaluate.split: validation ranks"),
        ("sequences.stride=10", "leave out sequences.stride and sequences.session_gap_minutes"),
        ("sequences.session_gap_minutes=30", "leave out sequences.stride and"),
    ],
)
def test_with_nothing_held_out_some_settings_cannot_be(
    file: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(file, "export.hold_out=false", override)


def test_credentials_are_in_no_message(file: Path) -> None:
    secret = {"spark.hadoop.fs.s3a.secret.key": "TOPSECRET"}
    for settings in (
        {"negatives": {"explicit": ["nope"]}},
        {"spark": secret | {"a": ["TOPSECRET"]}},
    ):
        file.write_text(yaml.safe_dump(MINIMAL | {"spark": secret} | settings))
        with pytest.raises(ConfigError) as error:
            load(file)
        assert "TOPSECRET" not in str(error.value) and "key ''" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spark.hadoop.fs.s3a.secret.key", "TOPSECRET"),
        ("spark.hadoop.fs.s3a.encryption.key", "TOPSECRET"),
        ("spark.hadoop.fs.azure.account.key.me.dfs.core.windows.net", "TOPSECRET"),
        ("spark.hadoop.fs.azure.account.oauth2.client.secret.me.dfs", "TOPSECRET"),
        ("spark.hadoop.fs.azure.sas.box.me.blob.core.windows.net", "TOPSECRET"),
        ("spark.hadoop.fs.gs.auth.service.account.private.key", "TOPSECRET"),
        ("spark.jars.repositories", "https://me:TOPSECRET@nexus/r"),
        ("spark.driver.extraJavaOptions", "-Djavax.net.ssl.trustStorePassword=TOPSECRET"),
    ],
)
def test_credentials_are_not_for_a_command_line(file: Path, key: str, value: str) -> None:
    file.write_text(yaml.safe_dump(MINIMAL | {"spark": {key: value}}))
    with pytest.raises(ConfigError) as error:
        load(file)
    assert f"{key} holds a credential" in str(error.value)
    assert "TOPSECRET" not in str(error.value)


def test_where_credentials_lie_may_be_told(file: Path) -> None:
    spark = {
        "spark.hadoop.fs.azure.account.oauth2.token.file.me.dfs": "/var/run/token",
        "spark.hadoop.fs.azure.sas.token.provider.type.me.dfs": "com.me.Tokens",
        "spark.hadoop.fs.s3a.delegation.token.binding": "org.me.Binding",
        "spark.hadoop.security.credstore.java-keystore-provider.password-file": "/etc/me",
        "spark.hadoop.security.credential.provider.path": "jceks://hdfs@namenode:8020/me.jceks",
        "spark.kubernetes.driver.secrets.mine": "/etc/secrets",
        "spark.kubernetes.executor.secretKeyRef.KEY": "name:key",
        "spark.kubernetes.authenticate.oauthTokenFile": "/etc/token",
    }
    file.write_text(yaml.safe_dump(MINIMAL | {"spark": spark}))
    assert load(file).spark == spark


def test_spark_takes_numbers_booleans_and_overrides(file: Path) -> None:
    file.write_text(yaml.safe_dump(MINIMAL | {"spark": {"spark.task.resource.gpu.amount": 1}}))
    config = load(file, "spark.spark.sql.shuffle.partitions=400", "spark.spark.x.enabled=false")
    assert config.spark == {
        "spark.task.resource.gpu.amount": "1",
        "spark.sql.shuffle.partitions": "400",
        "spark.x.enabled": "false",
    }


def test_a_path_is_read_by_one_source_of_events(file: Path) -> None:
    sources = MINIMAL["events"]["sources"] * 2
    file.write_text(yaml.safe_dump({"events": {"sources": sources}}))
    with pytest.raises(
        ConfigError, match=r"events.sources.0 and events.sources.1 both read .*e.csv"
    ):
        load(file).require_sources()


def test_times_with_a_zone_are_converted(file: Path) -> None:
    times = "split={method: global_time, validation_from: 2024-01-01T00:00+05:00, test_from: %s}"
    assert load(file, times % "2024-02-01").split.validation_from == datetime(2023, 12, 31, 19)
    with pytest.raises(ConfigError, match="is not before test_from .*: exchange them"):
        load(file, times % "2023-12-31")


@pytest.mark.parametrize("text", ["|", "'", '"\\t"', ";", "\\t", "'\\t'", "::"])
def test_separators_are_taken_as_they_are(file: Path, text: str) -> None:
    config = load(file, f"events.sources.0.separator={text}")
    expected = "\t" if "\\t" in text else text
    assert config.events.sources[0].separator == expected


#: Texts that look like something else, to YAML 1.1 if not to 1.2.
LOOKALIKES = ["no", "On", "y", "true", "null", "~", "010", "1e3", "20260101", "2026-01-01", "1_0"]
LOOKALIKES += ["12:30", ".inf", "=", "0x1F", "1.0"]


@pytest.mark.parametrize("text", LOOKALIKES)
def test_texts_are_taken_as_they_are_written(file: Path, text: str) -> None:
    given = f"""
events:
  default_type: {text}
  types: {{{text}: {{weight: 2}}, "view": {{}}}}
  sources:
  - path: {text}
    fields: [{text}, i]
    columns: {{user: {text}, item: "{text}", timestamp: null}}
  - path: [{text}, b]
    columns: {{user: u, item: i, timestamp: null}}
"""
    file.write_text(given)
    config = load(file)
    assert config.events.default_type == text
    assert config.events.types[text].weight == 2
    one, other = config.events.sources
    assert one.path == text and other.path == [text, "b"]
    assert one.fields == [text, "i"]
    assert (one.columns.user, one.columns.item, one.columns.timestamp) == (text, text, None)
    keys = ("name", "events.default_type", "events.sources.0.path", "events.sources.0.quote")
    config = load(file, *(f"{key}={text}" for key in keys))
    assert config.name == config.events.default_type == text
    assert config.events.sources[0].path == config.events.sources[0].quote == text


def test_keys_of_overrides_are_taken_as_they_are_written(file: Path) -> None:
    config = load(file, "events.types={no: {}, view: {}}", "events.types.1.weight=2")
    assert list(config.events.types) == ["no", "view", "1"]


@pytest.mark.parametrize(
    ("override", "folder"),
    [
        ("folder=null", None),
        ("folder=~", "~"),
        ("folder='null'", "null"),
        ('folder="a b"', "a b"),
        ("folder=a # b", "a # b"),
        ("folder=", ""),
        ("folder={a: b}", "{a: b}"),
        ("folder=[a]", "[a]"),
        ("folder='a", "'a"),
    ],
)
def test_a_text_of_an_override_may_be_none_or_in_quotes(
    file: Path, override: str, folder: str | None
) -> None:
    assert load(file, override).folder == folder


@pytest.mark.parametrize(
    ("text", "paths"),
    [("[a, 010]", ["a", "010"]), ("[ab]*.csv", ["[ab]*.csv"]), ("'[a]'", ["[a]"])],
)
def test_several_texts_of_an_override_are_a_list(file: Path, text: str, paths: list[str]) -> None:
    assert load(file, f"events.sources.0.path={text}").events.sources[0].paths == paths


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e3", 1000), ("1000.0", 1000), ("010", 10), ("0o10", 8), ("0x10", 16), ("-1", -1)],
)
def test_whole_numbers_may_be_written_as_fractions(file: Path, text: str, number: int) -> None:
    assert load(file, f"seed={text}").seed == number
    file.write_text(yaml.safe_dump(MINIMAL) + f"seed: {text}\n")
    assert load(file).seed == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("True", True),
        ("FALSE", False),
        ("Null", None),
        ("", None),
        ("no", "no"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("'1'", "1"),
        ("[no, 010, ~]", ["no", 10, None]),
        ("{no: 1}", {"no": 1}),
    ],
)
def test_what_is_of_no_declared_type_is_read_by_the_core_schema(
    file: Path, text: str, value: object
) -> None:
    """Settings of networks, which their own classes check."""
    for config in (
        load(file, f"networks.sasrec.model.x={text}"),
        load(file, f"networks={{sasrec: {{model: {{x: {text}}}}}}}"),
    ):
        found = config.networks["sasrec"].model["x"]
        assert found == value and type(found) is type(value)


def test_all_settings_tell_truth_values_from_numbers() -> None:
    class Some(Strict):
        many: list[tuple[float, int]] = []
        number: float | None = None
        either: bool | int = 0
        truth: bool | None = None

    assert Some(many=[(1, 2)], number=1, either=True, truth=None).either is True
    wrong: list[dict[str, Any]] = [{"many": [(1.0, True)]}, {"number": False}]
    wrong += [{"truth": 1}, {"truth": "yes"}, {"truth": 0.0}]
    for values in wrong:
        with pytest.raises(ValidationError, match="is needed"):
            Some(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split: {min_user_events: 5}\nslim: {l1: 2}\nsplit: {}", "key 'split' .* 1 and 3"),
        ("slim:\n  l1: 1\n  l2: 1\n  l1: 2", "key 'slim.l1' is given twice .lines 2 and 4."),
        ("items:\n- item: a\n  item: b", "key 'items.0.item' is given twice .lines 2 and 3."),
        ("events:\n  types:\n    ? [no]\n    : {}", "line 3: a key is a list or a mapping"),
        ("events:\n  types: {no: {}, 'no': {}}", "key 'events.types.no' is given twice"),
        ("a: [1, 2\nb: 3", r"is not YAML: .* \(line 2, column 2\)"),
        ("- a", "must hold keys and values, it holds list"),
    ],
)
def test_what_yaml_would_take_in_silence_is_told(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^config {file}.*{message}") as error:
        load(file)
    assert "\n" not in str(error.value)


def test_a_mapping_may_be_named_and_merged(file: Path) -> None:
    file.write_text(yaml.safe_dump(MINIMAL) + "slim: &s {l1: 3}\npopularity: {<<: {days: 2}}\n")
    assert load(file).slim.l1 == 3 and load(file).popularity.days == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_is_utf8(file: Path, encoding: str) -> None:
    text = yaml.safe_dump(MINIMAL | {"name": "événements"}, allow_unicode=True)
    file.write_text(text, encoding=encoding)
    assert load(file).name == "événements"
    for other in ("latin-1", "utf-16", "utf-16-le"):
        file.write_text(text, encoding=other)
        with pytest.raises(ConfigError, match=f"config {file} is not UTF-8: save it as UTF-8"):
            load(file)
    with pytest.raises(ConfigError, match=f"config {file.parent} is a folder"):
        load(file.parent)


@pytest.mark.parametrize("folder", ["s3://bucket/conf", "s3a://bucket/conf"])
def test_a_file_may_lie_on_any_storage(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setitem(storage.SCHEMES, "s3", "memory")
    monkeypatch.setitem(storage.SCHEMES, "s3a", "memory")
    uri = f"{folder}/mine.yaml"
    text = yaml.safe_dump(MINIMAL | {"folder": "été"}, allow_unicode=True)
    storage.write_file(uri, text.encode())
    config = load_config(uri, ["root=lake"])
    assert (config.name, config.folder) == ("mine", "été")
    with pytest.raises(ConfigError, match=f"config {uri}: unknown key 'slm'"):
        load_config(uri, ["root=lake", "slm=1"])
    storage.write_file(uri, text.encode("latin-1"))
    with pytest.raises(ConfigError, match=f"config {uri} is not UTF-8"):
        load_config(uri)
    with pytest.raises(ConfigError, match=f"config {folder} is a folder"):
        load_config(folder)
    storage.remove_tree(folder)
    with pytest.raises(ConfigError, match=f"config {uri} does not exist"):
        load_config(uri)
    with pytest.raises(StorageError, match="carries credentials"):
        load_config("s3://me:secret@bucket/mine.yaml")


def test_a_file_may_lie_at_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.parent))
    config = load_config("~/mine.yaml", ["root=~/lake", "data=~"])
    assert (config.root, config.data) == (f"{file.parent}/lake", str(file.parent))


def test_sections_without_keys_are_not_there(file: Path) -> None:
    file.write_text(yaml.safe_dump(MINIMAL | {"slim": None, "models": None}))
    assert load(file).slim.l1 == 5.0
    assert load(file, "slim.l1=2").slim.l1 == 2


@pytest.mark.parametrize("catalog", ["recs", "main.recs", "dev-ml.recs", "_a.b-1"])
def test_tables_may_be_of_a_catalog(file: Path, catalog: str) -> None:
    assert load(file, f"catalog={catalog}").catalog == catalog


def test_missing_file_root_and_data_are_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.yaml does not exist"):
        load_config(file.parent / "nothing.yaml")
    with pytest.raises(ConfigError, match="add root=FOLDER"):
        load_config(file, [f"data={file.parent}"])
    with pytest.raises(ConfigError, match="give it as data=FOLDER"):
        load_config(file, ["root=lake"]).require_sources()
    with pytest.raises(ConfigError, match="none of these exists: .*e.csv"):
        load_config(file, ["root=lake", "data=/nowhere"]).require_sources()


def test_data_without_times_must_say_so(file: Path) -> None:
    source = {"path": "e.csv", "columns": {"user": "u", "item": "i"}}
    file.write_text(yaml.safe_dump({"events": {"sources": [source]}}))
    with pytest.raises(ConfigError, match="timestamp"):
        load(file)


def test_files_are_found_in_the_folder_and_gzipped(file: Path) -> None:
    (file.parent / "set").mkdir()
    (file.parent / "e.csv").unlink()
    (file.parent / "set" / "e.csv.gz").write_bytes(b"")
    config = load(file, "folder=set")
    assert config.locate(config.events.sources[0]).endswith("set/e.csv.gz")
    local = load_config(file, [f"data=file:{file.parent}", "root=lake", "folder=set"])
    assert local.locate(local.events.sources[0]) == f"file:{file.parent}/set/e.csv.gz"


def test_hash_depends_on_the_named_settings_only(file: Path) -> None:
    once, other = load(file), load(file, "slim.l1=9")
    assert once.hash("slim") != other.hash("slim")
    assert once.hash("split") == other.hash("split")


@pytest.mark.parametrize("path", sorted(conf_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(path.read_text()) | {"root": str(tmp_path), "name": path.stem}
    Config.model_validate(values)
