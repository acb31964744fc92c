"""Plots, drawn without a display and written to any storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recs.evaluation.sequentiality import Loss
from recs.storage import filesystem

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG, _KEPT, _NEW = "#1f4e79", "#7f9fbf", "#d9d9d9"


def plot_sequentiality(losses: Sequence[Loss], name: str) -> Figure:
    """Draw the rules of a log beside those of its shuffled histories, for each length of rules.

    Parameters
    ----------
    losses
        Of :func:`recs.evaluation.sequentiality.losses`: every shuffle of 2 and 3 items.
    name
        Name of the data set, for the title.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    lengths = sorted({loss.items for loss in losses})
    for axes, items in zip(
        figure.subplots(1, len(lengths), squeeze=False)[0], lengths, strict=True
    ):
        _draw_rules(axes, [loss for loss in losses if loss.items == items])
    figure.suptitle(f"{name}: frequent item sequences, before and after shuffling histories")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _draw_rules(axes: Axes, losses: Sequence[Loss]) -> None:
    """Two bars: the log's rules, and the shuffled ones' mean with the range of the shuffles."""
    rules = losses[0].rules
    shuffled = [loss.shuffled_rules for loss in losses]
    mean = sum(shuffled) / len(losses)
    kept = rules - sum(loss.lost for loss in losses) / len(losses)
    axes.bar(["as it is"], [rules], color=_LOG, width=0.6, label="rules of the log")
    axes.bar(["shuffled"], [kept], color=_KEPT, width=0.6, label="of these, still there")
    axes.bar(
        ["shuffled"],
        [mean - kept],
        bottom=[kept],
        color=_NEW,
        width=0.6,
        label="rules by chance only",
        yerr=[[mean - min(shuffled)], [max(shuffled) - mean]],
        capsize=4,
    )
    axes.text(0, rules, f"{rules:,}", ha="center", va="bottom")
    axes.text(1, max(shuffled), f"{mean:,.0f}", ha="center", va="bottom")
    change = f"{mean / rules - 1:+.0%}" if rules else "no rules"
    axes.set_title(f"{losses[0].items} items in a row: {change}")
    axes.set_ylabel("rules")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, uri: str) -> None:
    """Write a figure in the format that the end of its path or URI names (png, svg)."""
    fs, path = filesystem(uri)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    with fs.open(path, "wb") as out:
        figure.savefig(out, format=path.rpartition(".")[2], dpi=150)
