"""The command line ``recs``; ``jobs/*.py`` call the same commands under spark-submit."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

import recs
from pipelines.output import Output, metrics_table
from pipelines.progress import set_up_logging
from pipelines.resources import conf_folder
from pipelines.signals import Signals
from recs.config import NETWORKS, Config, load_config
from recs.errors import tell
from recs.storage import join

if TYPE_CHECKING:
    from pipelines.job import Stage
    from recs.lake import Lake

#: Groups of commands in the help.
_RUN, _STAGES, _LOOK, _SEARCH = "Run", "Stages", "Look", "Search and study"

app = typer.Typer(
    help="Distributed training of recommenders on Spark, Torch and Delta.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tune = typer.Typer(help="Search a model's settings on validation events.", no_args_is_help=True)
app.add_typer(tune, name="tune", rich_help_panel=_SEARCH)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"recs {recs.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


ConfigFile = Annotated[
    str, typer.Option("--config", help="YAML file; a name of conf/ is found wherever recs lies.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over those of FILE.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show Spark's and recs' own log.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print stages and tables; touch nothing.")]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Go on in place of a run that is at work at the stage.")
]
Select = Annotated[
    list[str] | None,
    typer.Option("--select", metavar="STAGE[,...]", help="Only these, as recommend or fit/slim."),
]
From = Annotated[
    str | None, typer.Option("--from", metavar="STAGE", help="Only this and what comes of it.")
]
To = Annotated[
    str | None, typer.Option("--to", metavar="STAGE", help="Only this and what it comes of.")
]


@app.command(rich_help_panel=_RUN)
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    names: Select = None,
    start: From = None,
    end: To = None,
    dry_run: DryRun = False,
    take_over: TakeOver = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run all stages of a configuration, or some of them."""
    from pipelines.graph import select
    from pipelines.run import stages_of

    settings = _load(config, overrides)
    asked = [name for given in names or [] for name in given.split(",")]
    stages = select(stages_of(settings), asked, start, end)
    _run(stages, settings, dry_run=dry_run, take_over=take_over, as_json=as_json, verbose=verbose)


@app.command(rich_help_panel=_RUN)
def demo(
    overrides: Overrides = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Generate events with planted structure and run all stages on them, under root=out/demo."""
    from pipelines.demo import make_input, one_user
    from pipelines.run import stages_of

    set_up_logging(verbose)
    settings = _load("demo.yaml", ["root=out/demo", *(overrides or [])])
    settings = settings.model_copy(update={"data": join(settings.root, "raw")})
    make_input(str(settings.data), verbose)
    lake = _run(stages_of(settings), settings, as_json=as_json, verbose=verbose)
    out = Output(as_json)
    for line in one_user(lake, settings) if lake else ():
        out.say(line)


@app.command(rich_help_panel=_RUN)
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


@app.command(rich_help_panel=_RUN)
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
    out = Output(as_json)
    out.say(f"{rows} in {done['folder']}: {done['seconds']:.1f} s")
    out.document(done)


@app.command(rich_help_panel=_LOOK)
def tables(
    config: ConfigFile, overrides: Overrides = None, as_json: Json = False, verbose: Verbose = False
) -> None:
    """List the committed tables with versions and row counts."""
    from pipelines.run import list_tables, open_lake

    set_up_logging(verbose)
    settings = _load(config, overrides)
    listed = list_tables(open_lake(settings, verbose=verbose))
    out = Output(as_json)
    out.rows(listed, ["table", "version", "rows", "comment", "path"])
    out.document({"tables": {row.pop("table"): row for row in listed}})


@app.command(rich_help_panel=_LOOK)
def runs(
    config: ConfigFile,
    overrides: Overrides = None,
    last: Annotated[int, typer.Option("--last", min=1, help="So many of those ended.")] = 20,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the last runs of stages: state, seconds, rows, error; and those at work."""
    from pipelines.look import COLUMNS, list_runs
    from pipelines.run import open_lake

    set_up_logging(verbose)
    listed = list_runs(open_lake(_load(config, overrides), verbose=verbose), last)
    out = Output(as_json)
    out.rows(listed, COLUMNS)
    out.document({"runs": listed})


@app.command(rich_help_panel=_LOOK)
def check(
    config: ConfigFile, overrides: Overrides = None, as_json: Json = False, verbose: Verbose = False
) -> None:
    """Try what a run needs: configuration, storage, Java, Spark with Delta, rights on tables."""
    from pipelines.checks import check_all

    set_up_logging(verbose)
    settings, out, checked = _load(config, overrides), Output(as_json), []
    for result in check_all(settings, verbose=verbose):
        out.say(f"{'ok' if result.well else 'NOT OK':<7}{result.what}: {result.told}")
        checked.append(result)
    out.document({"checks": [result._asdict() for result in checked]})
    if not all(result.well for result in checked):
        raise typer.Exit(2)


@app.command(rich_help_panel=_RUN)
def repair(
    table: Annotated[str, typer.Argument(help="As recs tables lists it, without the mode.")],
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a table anew of which files are gone that a run has committed."""
    from pipelines.repair import repair
    from pipelines.run import open_lake
    from recs import readers
    from recs.runs import new_run_id

    set_up_logging(verbose)
    settings = _load(config, overrides)
    lake = open_lake(settings, verbose=verbose)
    done = repair(table, settings, lake, new_run_id())
    readers.write_down(lake)
    out = Output(as_json)
    out.say(f"run {done.run_id} has repaired {table}: {done.seconds:.1f} s")
    out.document({"run_id": done.run_id, "outputs": done.outputs})


def _tune_command(name: str, summary: str) -> None:
    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        take_over: TakeOver = False,
        as_json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        from pipelines.graph import select
        from pipelines.run import all_stages, check, open_lake, read_trials, run_stages

        set_up_logging(verbose)
        given = [*(overrides or []), f"models={name}"]
        if name == "slim":
            given += ["evaluate.split=validation", "export.hold_out=true"]
        settings = _load(config, given)
        stages = select(all_stages(settings), end=f"tune/{name}")
        check(stages, settings)
        out = Output(as_json)
        lake = open_lake(settings, verbose=verbose)
        with out.at_work():
            outcome = run_stages(stages, settings, lake, take_over=take_over)
        done = outcome.finished[f"tune/{name}"]
        trials = read_trials(lake, done)
        measured = ("protocol", "metric", "k", "value", "nonzeros", "seconds")
        first = trials[0] if trials else {"settings": {}}
        columns = [*sorted(first["settings"]), *(c for c in measured if first.get(c) is not None)]
        trials = [trial.pop("settings") | trial for trial in trials]
        out.rows(trials, columns)
        best = [f"{key}={value}" for key, value in sorted(done.details.items()) if "." in key]
        out.say("best: " + " ".join(best))
        if "model" in done.details:
            out.say(f"model: {done.details['model']}")
        out.document(outcome.document() | {"trials": trials})

    tune.command(name, help=summary)(command)


_tune_command("slim", "Search l1 and l2 on validation events, reusing one Gram matrix.")
for _name in NETWORKS:
    _tune_command(_name, f"Search the space that networks.{_name}.tune declares.")


@app.command(rich_help_panel=_SEARCH)
def sequentiality(
    config: ConfigFile, overrides: Overrides = None, as_json: Json = False, verbose: Verbose = False
) -> None:
    """Tell what is lost when histories are shuffled: frequent sequences, quality of networks."""
    from pipelines.ingest import INGEST
    from pipelines.prepare import SPLIT, VOCABULARY
    from pipelines.run import check, open_lake, run_stages
    from pipelines.sequentiality import (
        draw,
        read_changes,
        read_losses,
        sequentiality_stage,
        summary,
    )

    set_up_logging(verbose)
    settings = _load(config, overrides)
    stages = [INGEST, VOCABULARY, SPLIT, sequentiality_stage(settings.models)]
    check(stages, settings)
    lake = open_lake(settings, verbose=verbose)
    outcome = run_stages(stages, settings, lake)
    done = outcome.finished["sequentiality"]
    losses = read_losses(lake, done)
    rows = summary(losses)
    out = Output(as_json)
    out.rows(rows, ["items", "rules", "shuffled_rules", "change", "lost", "lost_share"])
    models = read_changes(lake, done)
    if models:
        out.rows(models, list(models[0]))
    plot = draw(settings, losses)
    out.say(f"plot: {plot}")
    found = {"sequentiality": rows, "model_sequentiality": models, "plot": plot}
    out.document(outcome.document() | found)


def _stage_command(name: str, summary: str) -> None:
    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        take_over: TakeOver = False,
        as_json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        from pipelines.run import stages_named

        settings = _load(config, overrides)
        stages = stages_named(settings, name)
        _run(
            stages, settings, dry_run=dry_run, take_over=take_over, as_json=as_json, verbose=verbose
        )

    app.command(name, help=summary, rich_help_panel=_STAGES)(command)


#: Stage → help. Kept beside the stages' own list by a test, so that ``--help`` needs no Spark.
STAGE_COMMANDS = {
    "ingest": "Read new events, items, users and candidate lists; put bad rows in quarantine.",
    "vocabulary": "Number new users and items.",
    "split": "Order events and put each in training, validation or test.",
    "sequences": "Write the last events of users as arrays.",
    "positives": "Write all items that each user has wanted.",
    "negatives": "Draw the negatives of every positive event.",
    "fit": "Fit popularity and SLIM, those of them that models names.",
    "export": "Write the files that networks are trained on.",
    "train": "Train a network through TorchDistributor.",
    "embed": "Write the vectors of users and items that a network has learned.",
    "recommend": "Write a model's top items of every user.",
    "rank": "Rank held-out events by a model and measure it (mode backtest).",
    "compare": "Compare the models by what rank has measured, and hold them to the gates.",
    "upkeep": "Compact and vacuum tables, and remove old models, studies and training sets.",
}
for _name, _summary in STAGE_COMMANDS.items():
    _stage_command(_name, _summary)


def _load(config: str, overrides: list[str] | None) -> Config:
    path = Path(config)
    shipped = conf_folder() / path.name
    # Not for a path of one's own that is not there: another file would run in its place.
    by_name = path in (Path(path.name), Path("conf", path.name))
    is_shipped = by_name and not path.is_file() and shipped.is_file()
    return load_config(shipped if is_shipped else config, overrides)


def _run(
    stages: list[Stage],
    config: Config,
    *,
    dry_run: bool = False,
    take_over: bool = False,
    as_json: bool,
    verbose: bool,
) -> Lake | None:
    """Run stages and tell what came of them; return the lake, None where nothing is to be run."""
    from pipelines.compare import check_gates
    from pipelines.run import check, open_lake, run_stages

    set_up_logging(verbose)
    check(stages, config)
    out = Output(as_json)
    if dry_run:
        _print_plan(stages, out)
        return None
    lake = open_lake(config, verbose=verbose)
    with out.at_work():
        outcome = run_stages(stages, config, lake, take_over=take_over)
    if outcome.metrics:
        out.say(metrics_table(outcome.metrics))
    out.say(f"run {outcome.run_id}: {sum(outcome.seconds.values()):.1f} s in stages; tables:")
    for name, table in outcome.tables.items():
        out.say(f"  {name:<26} version {table['version']:>4}  {table['path']}")
    out.document(outcome.document())
    if outcome.metrics:
        check_gates(config, outcome.metrics)
    return lake


def _print_plan(stages: list[Stage], out: Output) -> None:
    plan = [{"stage": s.label, "reads": list(s.reads), "writes": list(s.writes)} for s in stages]
    for step in plan:
        reads, writes = ", ".join(step["reads"]), ", ".join(step["writes"])
        out.say(f"{step['stage']}: reads {reads}; writes {writes}")
    out.document({"stages": plan})


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
    print(f"error: {told.message}{_last_words(error)}", file=sys.stderr)
    return told.exit_code


def _last_words(error: Exception) -> str:
    """Return what the JVM has said last, where it does not answer any more."""
    session = sys.modules.get("recs.session")
    if session is None or type(error).__name__ != "Py4JNetworkError":
        return ""
    words = session.last_words()
    return f" ({words})" if words else ""


if __name__ == "__main__":
    console()
