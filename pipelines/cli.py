"""The command line ``recs``; ``jobs/*.py`` call the same commands under spark-submit."""

from __future__ import annotations

import json
import math
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipelines.progress import set_up_logging
from pipelines.resources import conf_folder
from pipelines.signals import Signals
from recs.config import NETWORKS, Config, ConfigError, load_config
from recs.errors import tell

app = typer.Typer(
    help="Distributed training of recommenders on Spark, Torch and Delta.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tune = typer.Typer(help="Search a model's settings on validation events.", no_args_is_help=True)
app.add_typer(tune, name="tune")

ConfigFile = Annotated[
    str, typer.Option("--config", help="YAML file; a name of conf/ is found wherever recs lies.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over those of FILE.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show Spark's and recs' own log.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print stages and tables; touch nothing.")]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run all stages of a configuration."""
    settings = _load(config, overrides)
    _run(None, settings, dry_run=dry_run, as_json=as_json, verbose=verbose)


@app.command()
def demo(
    overrides: Overrides = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Generate events with planted structure and run all stages on them, under root=out/demo."""
    from pipelines.demo import make_input

    set_up_logging(verbose)
    given = ["root=out/demo", *(overrides or [])]
    root = [override for override in given if override.startswith("root=")][-1]
    raw = str(Path(root.removeprefix("root=")).absolute() / "raw")
    make_input(raw, verbose)
    settings = _load("demo.yaml", [*given, f"data={raw}"])
    _run(None, settings, dry_run=False, as_json=as_json, verbose=verbose)


@app.command()
def init(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file of events, or a folder.")],
    user: Annotated[str | None, typer.Option(metavar="COLUMN", help="Who; not guessed.")] = None,
    item: Annotated[str | None, typer.Option(metavar="COLUMN", help="What; not guessed.")] = None,
    timestamp: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="When; not guessed.")
    ] = None,
) -> None:
    """Guess the configuration of raw events and print it as YAML; standard error says by what."""
    from pipelines.init import draft

    given = {"user": user, "item": item, "timestamp": timestamp}
    drafted = draft(path, {role: name for role, name in given.items() if name is not None})
    print("\n".join(drafted.notes), file=sys.stderr)
    print(drafted.yaml, end="")


@app.command()
def generate(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="data=FOLDER [KEY=VALUE]...",
            help="events, users, items, clusters, days, first_day, heavy_user_events, bad_share, "
            "seed, format (csv, parquet).",
        ),
    ],
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write raw files of generated events with planted structure, as many as 1e9 and more."""
    from pipelines.generate import generate_log, parse

    set_up_logging(verbose)
    done = generate_log(parse(settings), verbose=verbose)
    rows = ", ".join(f"{number:,} {kind}" for kind, number in done["rows"].items())
    print(f"{rows} in {done['folder']}: {done['seconds']:.1f} s")
    if as_json:
        _print_document(done)


@app.command()
def tables(
    config: ConfigFile, overrides: Overrides = None, as_json: Json = False, verbose: Verbose = False
) -> None:
    """List the committed tables with versions and row counts."""
    from pipelines.run import list_tables, open_lake

    settings = _load(config, overrides)
    listed = list_tables(open_lake(settings, verbose=verbose))
    _print_rows(listed, ["table", "version", "rows", "comment", "path"])
    if as_json:
        _print_document({"tables": {row.pop("table"): row for row in listed}})


@tune.command("slim")
def tune_slim(
    config: ConfigFile, overrides: Overrides = None, as_json: Json = False, verbose: Verbose = False
) -> None:
    """Search l1 and l2 on validation events, reusing one Gram matrix."""
    from pipelines.ingest import INGEST
    from pipelines.prepare import SPLIT, VOCABULARY
    from pipelines.run import open_lake, read_trials, run_stages
    from pipelines.tune import TUNE_SLIM

    set_up_logging(verbose)
    held_out = ["evaluate.split=validation", "export.hold_out=true"]
    settings = _load(config, [*(overrides or []), *held_out])
    if settings.mode == "serve":
        raise ConfigError("mode serve holds nothing out; search with mode=backtest")
    lake = open_lake(settings, verbose=verbose)
    outcome = run_stages([INGEST, VOCABULARY, SPLIT, TUNE_SLIM], settings, lake)
    done = outcome.finished[TUNE_SLIM.name]
    trials = [trial.pop("settings") | trial for trial in read_trials(lake, done)]
    _print_rows(trials, ["l1", "l2", "protocol", "metric", "k", "value", "nonzeros", "seconds"])
    print(f"best: slim.l1={trials[0]['l1']} slim.l2={trials[0]['l2']}")
    if as_json:
        _print_document(outcome.document() | {"trials": trials})


def _tune_command(name: str) -> None:
    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        as_json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        from pipelines.examples import POSITIVES, SEQUENCES
        from pipelines.ingest import INGEST
        from pipelines.networks import EXPORT
        from pipelines.prepare import SPLIT, VOCABULARY
        from pipelines.run import open_lake, read_trials, run_stages
        from pipelines.tune import TUNE_NETWORKS, check_spaces

        set_up_logging(verbose)
        settings = _load(config, [*(overrides or []), f"models={name}"])
        space = check_spaces(settings)[name].space
        lake = open_lake(settings, verbose=verbose)
        prepared = [INGEST, VOCABULARY, SPLIT, SEQUENCES, POSITIVES, EXPORT]
        outcome = run_stages([*prepared, TUNE_NETWORKS], settings, lake)
        done = outcome.finished[TUNE_NETWORKS.name]
        trials = [trial.pop("settings") | trial for trial in read_trials(lake, done)]
        _print_rows(trials, [*space, "metric", "k", "value", "seconds"])
        keys = [f"networks.{name}.{key}" for key in space]
        print("best: " + " ".join(f"{key}={done.details[key]}" for key in keys))
        print(f"model: {done.details[name]}")
        if as_json:
            _print_document(outcome.document() | {"trials": trials})

    tune.command(name, help=f"Search the space that networks.{name}.tune declares.")(command)


for _name in NETWORKS:
    _tune_command(_name)


@app.command()
def sequentiality(
    config: ConfigFile, overrides: Overrides = None, as_json: Json = False, verbose: Verbose = False
) -> None:
    """Tell what is lost when histories are shuffled: frequent sequences, quality of networks."""
    from pipelines.ingest import INGEST
    from pipelines.prepare import SPLIT, VOCABULARY
    from pipelines.run import open_lake, run_stages
    from pipelines.sequentiality import SEQUENTIALITY, draw, read_changes, read_losses, summary

    set_up_logging(verbose)
    settings = _load(config, overrides)
    lake = open_lake(settings, verbose=verbose)
    outcome = run_stages([INGEST, VOCABULARY, SPLIT, SEQUENTIALITY], settings, lake)
    done = outcome.finished[SEQUENTIALITY.name]
    losses = read_losses(lake, done)
    rows = summary(losses)
    _print_rows(rows, ["items", "rules", "shuffled_rules", "change", "lost", "lost_share"])
    models = read_changes(lake, done)
    if models:
        _print_rows(models, list(models[0]))
    plot = draw(settings, losses)
    print(f"plot: {plot}")
    if as_json:
        found = {"sequentiality": rows, "model_sequentiality": models, "plot": plot}
        _print_document(outcome.document() | found)


def _stage_command(name: str, summary: str) -> None:
    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        as_json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        settings = _load(config, overrides)
        _run(name, settings, dry_run=dry_run, as_json=as_json, verbose=verbose)

    app.command(name.replace("_", "-"), help=summary)(command)


#: Stage → help. Kept beside the stages' own list by a test, so that ``--help`` needs no Spark.
STAGE_COMMANDS = {
    "ingest": "Read new events, items, users and candidate lists; put bad rows in quarantine.",
    "vocabulary": "Number new users and items.",
    "split": "Order events and put each in training, validation or test.",
    "sequences": "Write the last events of users as arrays.",
    "positives": "Write all items that each user has wanted.",
    "negatives": "Draw the negatives of every positive event.",
    "fit_popularity": "Count how popular items are.",
    "fit_slim": "Solve SLIM per item in parallel.",
    "export": "Write the files that networks are trained on.",
    "train": "Train networks through TorchDistributor.",
    "embed": "Write the vectors of users and items that networks have learned.",
    "recommend": "Write the top items of every user.",
    "evaluate": "Rank held-out events and measure (mode backtest).",
}
for _name, _summary in STAGE_COMMANDS.items():
    _stage_command(_name, _summary)


def _load(config: str, overrides: list[str] | None) -> Config:
    path = Path(config)
    shipped = conf_folder() / path.name
    # Not for a path of one's own that is not there: another file would run in its place.
    by_name = path in (Path(path.name), Path("conf", path.name))
    found = shipped if by_name and not path.is_file() and shipped.is_file() else path
    return load_config(found, overrides)


def _run(stage: str | None, config: Config, *, dry_run: bool, as_json: bool, verbose: bool) -> None:
    from pipelines.evaluate import check_gates
    from pipelines.run import STAGES, check, open_lake, run_stages, stages_of

    set_up_logging(verbose)
    stages = stages_of(config) if stage is None else [STAGES[stage]]
    if stage == "evaluate" and config.mode == "serve":
        raise ConfigError("mode serve holds nothing out; evaluate with mode=backtest")
    if dry_run:
        plan = [{"stage": s.name, "reads": list(s.reads), "writes": list(s.writes)} for s in stages]
        for step in plan:
            reads, writes = ", ".join(step["reads"]), ", ".join(step["writes"])
            print(f"{step['stage']}: reads {reads}; writes {writes}")
        if as_json:
            _print_document({"stages": plan})
        return
    check(stages, config)
    outcome = run_stages(stages, config, open_lake(config, verbose=verbose))
    if outcome.metrics:
        print(_metrics_table(outcome.metrics))
    print(f"run {outcome.run_id}: {sum(outcome.seconds.values()):.1f} s in stages; tables:")
    for name, table in outcome.tables.items():
        print(f"  {name:<20} version {table['version']:>4}  {table['path']}")
    if as_json:
        _print_document(outcome.document())
    if outcome.metrics:
        check_gates(config, outcome.metrics)


def _metrics_table(metrics: list[dict[str, Any]]) -> str:
    """Lay the headline metrics out with a column a model: those at 10 (or the longest list), and
    of the whole ranking AUC and MRR. All the others are in table ``metrics``."""
    models = sorted({row["model"] for row in metrics})
    lengths = {row["k"] for row in metrics} - {None}
    headline = 10 if 10 in lengths else max(lengths, default=None)
    values = {
        (row["protocol"], row["metric"], row["k"], row["model"]): row["value"]
        for row in metrics
        if row["k"] == headline or (row["k"] is None and row["metric"] in ("auc", "mrr"))
    }
    keys = sorted({key[:3] for key in values}, key=lambda key: (key[0], key[1], key[2] or 0))
    lines = [f"{'protocol':<15}{'metric':<20}" + "".join(f"{model:>14}" for model in models)]
    for protocol, metric, k in keys:
        name = metric if k is None else f"{metric}@{k}"
        cells = [values.get((protocol, metric, k, model)) for model in models]
        shown = "".join(f"{'–' if cell is None else format(cell, '.4f'):>14}" for cell in cells)
        lines.append(f"{protocol:<15}{name:<20}{shown}")
    return "\n".join(lines)


def _print_rows(rows: list[dict[str, Any]], columns: list[str]) -> None:
    cells = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _print_document(document: dict[str, Any]) -> None:
    print(json.dumps(_without_nan(document), default=str, allow_nan=False), flush=True)


def _without_nan(value: Any) -> Any:
    """Return a document with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0: done; 1: a fault; 2: a user's mistake (configuration, data, lake), told in one line; 3: a
    metric missed its gate.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _call(arguments)
    except Exception as error:
        return _report(error, arguments)


def console(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line as this process, which ends with the exit code of :func:`main`.

    Told to end by SIGINT (Ctrl-C) or SIGTERM it ends in one line, with 130 or 143.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    signals = Signals()
    signals.install()
    try:
        try:
            code = _call(arguments)
        finally:
            if signals.received is not None:  # whatever has broken because of it
                signals.leave()
    except Exception as error:
        code = _report(error, arguments)
    signals.over = True
    sys.exit(code)


def _call(arguments: list[str]) -> int:
    try:
        app(arguments)
    except SystemExit as ended:  # how typer ends, with its own message for a wrong option
        return int(ended.code or 0)
    return 0


def _report(error: Exception, arguments: list[str]) -> int:
    """Tell an error on standard error, and return the exit code."""
    told = tell(error)
    if not told.whole or {"-v", "--verbose"} & set(arguments):
        traceback.print_exception(error)
    print(f"error: {told.message}", file=sys.stderr)
    return told.exit_code


if __name__ == "__main__":
    console()
