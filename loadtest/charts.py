"""Charts as SVG: what a run of Locust saw over time, and a comparison as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import matplotlib as mpl
from attrs import frozen
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

OURS, OTHERS, LIMIT, BAD, SECOND = "#2f6f9f", "#b8c2cc", "#c0392b", "#c0392b", "#7a5195"
WIDE = 9.0  # inches
mpl.rcParams.update(
    {
        "svg.hashsalt": "roundhouse",  # the same figures make the same file
        "svg.fonttype": "path",  # looks alike wherever it is shown
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "figure.facecolor": "white",
    }
)


@frozen
class Lines:
    """A panel over time. unit: of the left axis. series: by name, a value a moment (None: gap)."""

    title: str
    unit: str
    series: Mapping[str, Sequence[float | None]]
    log: bool = False
    step: bool = False


@frozen
class Bar:
    """One peer of a case. least, most: the spread around `value`."""

    name: str
    value: float
    least: float
    most: float
    ours: bool = False


@frozen
class Bars:
    """The peers of one case; `limit` is drawn as a line."""

    title: str
    bars: Sequence[Bar]
    limit: float | None = None


def over_time(
    path: Path,
    title: str,
    seconds: Sequence[float],
    panels: Sequence[tuple[Sequence[float], Lines]],
) -> None:
    """Panels below one another on one axis of time. seconds: where it begins and ends."""
    figure = Figure(figsize=(WIDE, 1.9 * len(panels) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axis, (moments, panel) in zip(axes[:, 0], panels, strict=True):
        _lines(axis, moments, panel)
    axes[-1, 0].set_xlabel("seconds")
    axes[-1, 0].set_xlim(seconds[0], seconds[-1])
    _save(figure, path)


def _lines(axis: Axes, moments: Sequence[float], panel: Lines) -> None:
    colours = [OURS, SECOND, BAD, "#ef8a17"]
    for colour, (name, values) in zip(colours, panel.series.items(), strict=False):
        shown = [
            float("nan") if value is None or (panel.log and not value) else value
            for value in values
        ]
        style = "steps-post" if panel.step else "default"
        axis.plot(moments, shown, label=name, color=colour, linewidth=1.4, drawstyle=style)
    axis.set_title(panel.title, loc="left", fontsize=9, fontweight="bold")
    axis.set_ylabel(panel.unit)
    if panel.log:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        highest = max((value for value in chain(*panel.series.values()) if value), default=1.0)
        axis.set_ylim(0, 1.1 * highest)
    if len(panel.series) > 1:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def bars(path: Path, title: str, note: str, groups: Sequence[Bars]) -> None:
    """A group of bars a case, the longest best, below one another."""
    rows = sum(len(group.bars) for group in groups)
    figure = Figure(figsize=(WIDE, 0.24 * rows + 0.55 * len(groups) + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(
        len(groups), 1, squeeze=False, height_ratios=[len(group.bars) + 1 for group in groups]
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        _bars(axis, group)
    figure.supxlabel(note, fontsize=8, color="#555555")
    _save(figure, path)


def _bars(axis: Axes, group: Bars) -> None:
    names = [bar.name for bar in group.bars]
    values = [bar.value for bar in group.bars]
    around = [
        [max(0.0, bar.value - bar.least) for bar in group.bars],
        [max(0.0, bar.most - bar.value) for bar in group.bars],
    ]
    axis.barh(
        range(len(names)),
        values,
        color=[OURS if bar.ours else OTHERS for bar in group.bars],
        xerr=around,
        error_kw={"elinewidth": 0.8, "ecolor": "#555555", "capsize": 2},
        height=0.7,
    )
    for place, bar in enumerate(group.bars):
        axis.annotate(
            f"{bar.value:.3g}" if bar.value < 1000 else f"{bar.value:,.0f}",
            (max(bar.value, bar.most), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_title(group.title, loc="left", fontsize=9, fontweight="bold")
    axis.margins(x=0.12)
    if group.limit is not None:
        axis.axvline(group.limit, color=LIMIT, linewidth=1)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
