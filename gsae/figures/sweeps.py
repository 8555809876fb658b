"""Figures of a whole sweep: training curves, lambda against L0, how often latents fire. Table in,
figure out.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsae.evidence import arms
from gsae.evidence.run_files import done
from gsae.figures.arms import GREY, STYLES, legend, on_axis
from gsae.figures.base import L0, caption, finish, plain_log, styled

# What sets runs of one series apart, where it varies in a sweep, beside lambda and seed.
OTHERS = (
    "tokens",
    "batch",
    "lr",
    "lam_warmup",
    "lr_warmup",
    "lr_decay",
    "resample",
    "keep_pos0",
    "text",
    "context",
)
DASHES = ("-", "--", ":", "-.")
PALER = "paler: smaller lambda"
CURVES = {"l0": "L0", "reconstruction": "squared error"}  # columns of a training curve


class Line(NamedTuple):
    """Runs of a sweep that differ in lambda and seed alone."""

    label: str
    colour: str
    marker: str
    dash: str
    rows: pd.DataFrame


def settings_that_vary(df: pd.DataFrame) -> list[str]:
    """What sets the runs of one series apart, beside lambda and seed."""
    varying = [name for name in OTHERS if name in df and df[name].nunique() > 1]
    if (df.groupby("series")["M"].nunique() > 1).any():
        varying.append("M")
    return varying


def sweep_lines(df: pd.DataFrame) -> list[Line]:
    """The finished runs of one site as lines, by rising lambda: a line a series, and a setting
    where one varies.
    """
    wide = df["M"].isin(df.loc[df["arch"] == "gated", "M"] * 3 // 2)
    df = arms.named(df)
    df.loc[(df["arch"] == "baseline") & ~wide, "series"] = arms.SAME
    df = done(df)
    varying = settings_that_vary(df)
    lines: list[Line] = []
    for (series, *values), rows in df.groupby(["series", *varying], sort=False):
        settings = [f"{name} {value}" for name, value in zip(varying, values, strict=True)]
        label = ", ".join([series, *settings])
        colour, marker, _ = STYLES.get(series, (GREY, "o", "-"))
        alike = sum(line.colour == colour for line in lines)
        dash = DASHES[alike % len(DASHES)]
        lines.append(Line(label, colour, marker, dash, rows.sort_values(["lam", "seed"])))
    return lines


def shaded(line: Line) -> Iterator[tuple[pd.Series, float]]:
    """Each run of a line with the strength of its colour, more for larger lambda."""
    ranks = line.rows["lam"].rank(method="dense")
    for (_, run), rank in zip(line.rows.iterrows(), ranks / ranks.max(), strict=True):
        yield run, 0.4 + 0.6 * rank


def with_key(title: str) -> str:
    """A title with what the strength of colours means."""
    return f"{title}; {PALER}" if title else PALER


@styled
def lambda_map(df: pd.DataFrame, title: str = "") -> Figure:
    """The lambda that gives each L0, both on log axes: the map from which the grids of a sweep are
    chosen.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for line in sweep_lines(df):
        drawn, label = on_axis(line.rows, line.label)
        style = {"color": line.colour, "marker": line.marker, "ls": line.dash}
        # A single point has no dash to tell it by.
        style["mfc"] = line.colour if line.dash == DASHES[0] else "none"
        axes.plot([], [], **style, label=label)
        for _, seed in drawn.groupby("seed"):
            axes.plot(seed["lam"], seed["l0"], **style, lw=1, alpha=0.9)
    if len(done(df)):
        axes.set(xscale="log", yscale="log")
        plain_log(axes.xaxis)
        plain_log(axes.yaxis)
    finish(figure, axes, df, "lambda (log)", L0, title)
    legend(figure, axes)
    return figure


@styled
def curves(
    df: pd.DataFrame, title: str = "", columns: tuple[str, ...] = ("reconstruction", "l0")
) -> Figure:
    """Training curves on log axes, one line a run: reconstruction error and L0 of the batch over
    training tokens.
    """
    figure, panels = plt.subplots(
        len(columns), 1, figsize=(6.4, 0.8 + 2.1 * len(columns)), sharex=True, squeeze=False
    )
    for axes, column in zip(panels[:, 0], columns, strict=True):
        for line in sweep_lines(df):
            axes.plot([], [], color=line.colour, ls=line.dash, label=line.label)
            for run, strength in shaded(line):
                x, y = run["curve"]["tokens"] / 1e6, run["curve"][column]
                axes.plot(x, y, color=line.colour, ls=line.dash, alpha=strength, lw=0.9)
        if any((curve[column] > 0).any() for curve in done(df)["curve"]):
            axes.set_yscale("log", nonpositive="mask")
            plain_log(axes.yaxis)
        axes.set_ylabel(f"{CURVES.get(column, column)} (log)")
    last = panels[-1, 0]
    finish(figure, last, df, "training tokens, millions", last.get_ylabel())
    panels[0, 0].set_title(with_key(title))
    legend(figure, last)
    return figure


def lowest_share(densities: Iterable[dict]) -> float:
    """The lower end of the lowest bin with a latent that fires, a power of ten; -1 where none
    does.
    """
    fired = []
    for record in densities:
        filled = np.array(record["counts"]) > 0
        fired += list(np.array(record["edges"])[:-1][filled][:1])
    return min(fired, default=-1.0)


def density_panel(axes: Axes, line: Line, never: float) -> None:
    """The histograms of one line's runs; at `never` the share that did not fire at all."""
    dead = every = 0
    for run, strength in shaded(line):
        counts, edges = np.array(run["density"]["counts"]), np.array(run["density"]["edges"])
        dead_of_run = run["density"]["dead"]
        M = counts.sum() + dead_of_run
        dead, every = dead + dead_of_run, every + M
        axes.stairs(counts / M, edges, color=line.colour, alpha=strength, lw=1)
        axes.plot(never, dead_of_run / M, line.marker, color=line.colour, alpha=strength)
    axes.set_title(f"{line.label}\n{dead:,} of {every:,} latents never fired", fontsize=8.5)


@styled
def density(df: pd.DataFrame, title: str = "") -> Figure:
    """How often latents fire, one histogram a run: shares of the latents over log10 of the share of
    tokens on which they fire, in bins of a quarter; at the left, apart, the share that never did on
    the evaluation text.
    """
    lines = sweep_lines(df)
    count = max(1, len(lines))
    columns = min(2, count)
    depth = -(-count // columns)
    size = (6.4, 1.3 + (1.6 if columns == 2 else 2.2) * depth)
    figure, panels = plt.subplots(depth, columns, figsize=size, sharey=True, squeeze=False)
    lowest = lowest_share(record for line in lines for record in line.rows["density"])
    never = lowest - 0.75  # three bins to the left
    whole = np.arange(np.ceil(lowest), 1)
    for axes, line in zip(panels.flat, lines, strict=False):
        density_panel(axes, line, never)
        axes.axvline((never + lowest) / 2, color=GREY, lw=0.8, ls=":")
        axes.set_xticks([never, *whole], ["never", *(f"{v:g}" for v in whole)])
        axes.set(xlim=(never - 0.375, 0.125))
    for axes in panels.flat[count:]:
        axes.set_axis_off()
    figure.suptitle(with_key(title), fontsize=9.5)
    figure.supylabel("share of latents", fontsize=9)
    if not lines:
        first, text = panels[0, 0], "no run on record at this scale"
        first.text(0.5, 0.5, text, transform=first.transAxes, ha="center")
    xlabel = "log10 of the share of tokens on which a latent fires"
    figure.supxlabel(f"{xlabel}\n{caption(df)}", fontsize=7.5)
    return figure


FIGURES = {  # in the order of a page, each with what it shows
    "curves": (curves, "Reconstruction error and L0 of the training batches."),
    "lambda_map": (lambda_map, "The lambda that gives each L0, on the evaluation text."),
    "density": (
        density,
        "How often latents fire on the evaluation text; apart, at the left, those that never do.",
    ),
}


def alt(df: pd.DataFrame, shows: str) -> str:
    """What a figure of a sweep shows, in words, with the numbers at its ends."""
    ends = []
    for line in sweep_lines(df):
        lams, l0s = line.rows["lam"], line.rows["l0"]
        ends.append(
            f"{line.label}: {len(line.rows)} runs, lambda {lams.min():g} to {lams.max():g}, "
            f"L0 {l0s.min():.3g} to {l0s.max():.3g}"
        )
    return f"{shows} {'; '.join(ends)}. {caption(df)}."
