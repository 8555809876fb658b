"""Figures of a whole sweep: training curves, lambda against L0, how often latents fire. Table in,
figure out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
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


class Line(NamedTuple):
    """Runs of a sweep that differ in lambda and seed alone."""

    label: str
    colour: str
    marker: str
    dash: str
    rows: pd.DataFrame


def lines(df: pd.DataFrame) -> list[Line]:
    """The finished runs of one site as lines, by rising lambda: a line a series, and a setting
    where one varies.
    """
    wide = df["M"].isin(df.loc[df["arch"] == "gated", "M"] * 3 // 2)
    df = arms.named(df)
    df.loc[(df["arch"] == "baseline") & ~wide, "series"] = arms.SAME
    df = done(df)
    varying = [name for name in OTHERS if name in df and df[name].nunique() > 1]
    varying += ["M"] if (df.groupby("series")["M"].nunique() > 1).any() else []
    found: list[Line] = []
    for values, rows in df.groupby(["series", *varying], sort=False):
        label = ", ".join(
            [values[0], *(f"{k} {v}" for k, v in zip(varying, values[1:], strict=True))]
        )
        colour, marker, _ = STYLES.get(values[0], (GREY, "o", "-"))
        dash = DASHES[sum(one.colour == colour for one in found) % len(DASHES)]
        found.append(Line(label, colour, marker, dash, rows.sort_values(["lam", "seed"])))
    return found


def shaded(line: Line) -> Iterator[tuple[pd.Series, float]]:
    """Each run of a line with the strength of its colour, more for larger lambda."""
    ranks = line.rows["lam"].rank(method="dense")
    for (_, run), rank in zip(line.rows.iterrows(), ranks / ranks.max(), strict=True):
        yield run, 0.4 + 0.6 * rank


@styled
def lambda_map(df: pd.DataFrame, title: str = "") -> Figure:
    """The lambda that gives each L0, both on log axes: the map from which the grids of a sweep are
    chosen.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for label, colour, marker, dash, rows in lines(df):
        drawn, label = on_axis(rows, label)
        fill = colour if dash == DASHES[0] else "none"  # a single point has no dash to tell it by
        axes.plot([], [], color=colour, marker=marker, ls=dash, label=label, mfc=fill)
        for _, one in drawn.groupby("seed"):
            axes.plot(
                one["lam"],
                one["l0"],
                color=colour,
                marker=marker,
                ls=dash,
                lw=1,
                alpha=0.9,
                mfc=fill,
            )
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
        for line in lines(df):
            axes.plot([], [], color=line.colour, ls=line.dash, label=line.label)
            for run, strength in shaded(line):
                x, y = run["curve"]["tokens"] / 1e6, run["curve"][column]
                axes.plot(x, y, color=line.colour, ls=line.dash, alpha=strength, lw=0.9)
        if any((curve[column] > 0).any() for curve in done(df)["curve"]):
            axes.set_yscale("log", nonpositive="mask")
            plain_log(axes.yaxis)
        axes.set_ylabel(
            {"l0": "L0 (log)", "reconstruction": "squared error (log)"}.get(
                column, f"{column} (log)"
            )
        )
    last = panels[-1, 0]
    heading = f"{title}; {PALER}" if title else PALER
    finish(figure, last, df, "training tokens, millions", last.get_ylabel())
    panels[0, 0].set_title(heading)
    legend(figure, last)
    return figure


@styled
def density(df: pd.DataFrame, title: str = "") -> Figure:
    """How often latents fire, one histogram a run: shares of the latents over log10 of the share of
    tokens on which they fire, in bins of a quarter; at the left, apart, the share that never did on
    the evaluation text.
    """
    found = lines(df)
    columns = min(2, max(1, len(found)))
    depth = -(-max(1, len(found)) // columns)
    size = (6.4, 1.3 + (1.6 if columns == 2 else 2.2) * depth)
    figure, panels = plt.subplots(depth, columns, figsize=size, sharey=True, squeeze=False)
    records = [d for line in found for d in line.rows["density"]]
    fired = [
        np.array(d["edges"])[:-1][np.array(d["counts"]) > 0].min()
        for d in records
        if any(d["counts"])
    ]
    lowest = min(fired, default=-1.0)
    never = lowest - 0.75
    for axes, line in zip(panels.flat, found, strict=False):
        dead = every = 0
        for run, strength in shaded(line):
            counts, edges = np.array(run["density"]["counts"]), np.array(run["density"]["edges"])
            M = counts.sum() + run["density"]["dead"]
            dead, every = dead + run["density"]["dead"], every + M
            axes.stairs(counts / M, edges, color=line.colour, alpha=strength, lw=1)
            axes.plot(
                never, run["density"]["dead"] / M, line.marker, color=line.colour, alpha=strength
            )
        axes.axvline(lowest - 0.375, color=GREY, lw=0.8, ls=":")
        whole = np.arange(np.ceil(lowest), 1)
        axes.set_xticks([never, *whole], ["never", *(f"{v:g}" for v in whole)])
        axes.set(xlim=(never - 0.375, 0.125))
        axes.set_title(f"{line.label}\n{dead:,} of {every:,} latents never fired", fontsize=8.5)
    for axes in panels.flat[max(1, len(found)) :]:
        axes.set_axis_off()
    figure.suptitle(f"{title}; {PALER}" if title else PALER, fontsize=9.5)
    figure.supylabel("share of latents", fontsize=9)
    if not found:
        panels[0, 0].text(
            0.5,
            0.5,
            "no run on record at this scale",
            transform=panels[0, 0].transAxes,
            ha="center",
        )
    figure.supxlabel(
        "log10 of the share of tokens on which a latent fires\n" + caption(df), fontsize=7.5
    )
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
    ends = [
        f"{line.label}: {len(line.rows)} runs, lambda {line.rows['lam'].min():g} to "
        f"{line.rows['lam'].max():g}, L0 "
        f"{line.rows['l0'].min():.3g} to {line.rows['l0'].max():.3g}"
        for line in lines(df)
    ]
    return f"{shows} {'; '.join(ends)}. {caption(df)}."
