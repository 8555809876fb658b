"""Table in, figure out. One colour an architecture everywhere; what is missing is said in the
plot.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gsae.evidence import intervals
from gsae.evidence.run_files import done
from gsae.evidence.verdict import about, count, span

COLOURS = {
    "gated": "#d1495b",
    "baseline": "#3d85c6",
    "truth": "#767b82",
    "relu": "#3d85c6",
    "jumprelu": "#d1495b",
}
LABELS = {"gated": "Gated SAE", "baseline": "baseline SAE, 1.5x as wide"}
MARKERS = {"gated": "o", "baseline": "s"}
L0, LOSS = "L0, latents on per token (log)", "loss recovered (log of what is missing)"
STYLE = Path(__file__).parent / "paper.mplstyle"


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw with the house style, without changing the reader's own; the figure is closed, so that
    it shows once.
    """

    @wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with plt.style.context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return wrapper


def values(column: pd.Series) -> str:
    """The different numbers of a column, with their thousands apart."""
    return " and ".join(f"{value:,}" for value in sorted(column.unique()))


def caption(df: pd.DataFrame) -> str:
    """Scale, seeds, tokens, lambdas (of a series and place) and widths of the runs drawn, a
    pursuit's text, and how many are missing.
    """
    series = [c for c in ("lm", "site", "layer", "series", "arch") if c in df]
    lams = span(df.groupby(series)["lam"].nunique())
    text = f"{about(df)}, {lams} lambda{'s' * (lams != '1')}, M = {values(df['M'])}"
    if "pursuit_tokens" in df:
        text += f", on {count(int(df['pursuit_tokens'].max()))} tokens of text"
    if df["scale"].iloc[0] == "smoke":
        text += ". A test of the code, not a result"
    missing = int((df["status"] == "missing").sum())
    if missing:
        text += f". MISSING: {missing} of {len(df)} runs"
    return text


def by_arch(df: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """Each architecture's finished runs, by rising L0."""
    finished = done(df)
    for arch in ("baseline", "gated"):
        rows = finished[finished["arch"] == arch]
        if len(rows):
            yield arch, rows.sort_values("l0")


def finish(figure: Figure, axes: Axes, df: pd.DataFrame, x: str, y: str, title: str = "") -> Figure:
    axes.set(xlabel=x, ylabel=y, title=title)
    if not len(done(df)):
        axes.text(0.5, 0.5, "no run on record at this scale", transform=axes.transAxes, ha="center")
    elif axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.supxlabel(caption(df), fontsize=7.5, x=0.99, ha="right")
    return figure


def plain_log(axis, subs: tuple[float | int, ...] = (1, 2, 5)) -> None:
    """Plain numbers on a log axis, at these multiples of the powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def loss_axes(axes: Axes) -> None:
    """L0 and 1 - loss recovered on log axes, up is better, ticks in loss recovered."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_yaxis()
    plain_log(axes.xaxis)
    plain_log(axes.yaxis)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{1 - v:.4g}"))


def missing_share(recovered: pd.Series) -> pd.Series:
    """1 - loss recovered: what the log axis of `loss_axes` shows."""
    return 1 - recovered


def points(axes: Axes, df: pd.DataFrame, y: str, transform: Callable = lambda v: v) -> None:
    """Every finished run with its 95 % bootstrap interval in L0 and `y`; seeds of an arm share its
    colour.
    """
    for arch, rows in by_arch(df):
        bounds = intervals.intervals(rows, ["l0", y])
        for seed, (_, runs) in enumerate(rows.groupby("seed")):
            ends = bounds.loc[runs.index]
            value = transform(runs[y])
            sides = [transform(ends[f"{y}_low"]), transform(ends[f"{y}_high"])]
            upward = np.abs(np.sort(np.stack(sides), 0) - value.to_numpy())
            across = np.abs(np.stack([ends["l0_low"], ends["l0_high"]]) - runs["l0"].to_numpy())
            axes.errorbar(
                runs["l0"],
                value,
                upward,
                across,
                color=COLOURS[arch],
                marker=MARKERS[arch],
                capsize=0,
                elinewidth=0.9,
                alpha=0.9,
                label=LABELS[arch] if seed == 0 else None,
            )


@styled
def pareto(df: pd.DataFrame, title: str = "") -> Figure:
    """L0 against loss recovered, both on log axes as in the paper (Figs 1, 5, 12, 13): up and left
    is better.
    """
    figure, axes = plt.subplots()
    points(axes, df, "loss_recovered", missing_share)
    if len(done(df)):
        loss_axes(axes)
    return finish(figure, axes, df, L0, LOSS, title)


@styled
def shrinkage(df: pd.DataFrame, title: str = "") -> Figure:
    """Relative reconstruction bias gamma (Eq. 10) against L0 (Figs 6, 14): below 1 is shrinkage."""
    figure, axes = plt.subplots()
    points(axes, df, "gamma")
    axes.axhline(1, color=COLOURS["truth"], lw=0.9, ls="--")
    if len(done(df)):
        axes.set_xscale("log")
        plain_log(axes.xaxis)
    return finish(figure, axes, df, L0, "relative reconstruction bias gamma", title)


@styled
def lines(
    table: pd.DataFrame, x: str, ys: dict[str, str], ylabel: str, title: str = "", log: bool = False
) -> Figure:
    """Columns of a table against one of them; `ys` maps a column to the name of its colour."""
    figure, axes = plt.subplots()
    for i, (column, colour) in enumerate(ys.items()):
        # Where lines coincide, the one below shows on both sides.
        width = 1.4 + 3 * (len(ys) - 1 - i)
        colour = COLOURS.get(colour, colour)
        axes.plot(table[x], table[column], label=column, color=colour, lw=width)
    axes.set(xlabel=x, ylabel=ylabel, title=title, **({"xscale": "log"} if log else {}))
    axes.legend()
    return figure


@styled
def histogram(
    values: dict[str, np.ndarray], xlabel: str, bins: int = 80, title: str = ""
) -> Figure:
    """Overlaid histograms of named samples; a name that is an architecture takes its colour."""
    figure, axes = plt.subplots()
    for i, (name, sample) in enumerate(values.items()):
        colour = COLOURS.get(name, f"C{i}")
        axes.hist(np.asarray(sample), bins, histtype="step", label=name, color=colour, lw=1.4)
    axes.set(xlabel=xlabel, ylabel="count", title=title)
    axes.legend()
    return figure
