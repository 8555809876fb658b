"""Figures of named series: ablations, repairs, pursuit and the known dictionary. Table in, figure
out.
"""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsae.evidence import intervals
from gsae.evidence.arms import SAME
from gsae.evidence.run_files import done
from gsae.figures.base import (
    COLOURS,
    L0,
    LOSS,
    caption,
    finish,
    loss_axes,
    missing_share,
    plain_log,
    styled,
    values,
)

GREEN, GREY = "#4c9a5b", COLOURS["truth"]
STYLES = {  # series -> colour, marker, line
    "gated": (COLOURS["gated"], "o", "-"),
    "baseline, 1.5x as wide": (COLOURS["baseline"], "s", "-"),
    "baseline, same width": (COLOURS["baseline"], "s", "-"),
    "unfrozen decoder": ("#c98b1b", "^", "-"),
    "no r_mag": (GREEN, "v", "-"),
    "untied encoders": ("#8e6bbf", "D", "-"),
    "rescale & shift": (GREEN, "^", "-"),
    "pruned (1%)": ("#3aa6a6", "v", ":"),
    "pruned (5%)": ("#3aa6a6", "<", ":"),
    "pruned, rescale & shift (1%)": ("#8e6bbf", "D", "--"),
    "pruned, rescale & shift (5%)": ("#8e6bbf", "P", "--"),
    "baseline, 1.5x as wide, pruned (1%)": ("#3aa6a6", "v", ":"),
    "baseline, 1.5x as wide, pruned (5%)": ("#3aa6a6", "<", ":"),
    "gated, pruned (1%)": ("#e08a95", "v", ":"),
    "gated, pruned (5%)": ("#e08a95", "<", ":"),
    "gated, no resampling": ("#e08a95", "^", "--"),
    "baseline, 1.5x as wide, no resampling": ("#7fb2e5", "v", "--"),
    "no auxiliary term": (GREY, "x", ":"),
    "no step function": ("#b5651d", "P", ":"),
    "auxiliary b_dec live": ("#b03a8c", "<", ":"),
    "centring detached": ("#3aa6a6", ">", ":"),
    "penalty on magnitudes": ("#6b7f2a", "*", ":"),
}
LEAST = 0.05  # latents a token: what is below is named in the legend and not drawn


def on_axis(rows: pd.DataFrame, name: str) -> tuple[pd.DataFrame, str]:
    """The rows whose L0 a log axis can show, and the name of their series, which tells of the
    others.
    """
    drawn = rows[rows["l0"] >= LEAST]
    off = len(rows) - len(drawn)
    if off:
        name += f" ({off} with L0 {rows['l0'].min():.2g}: off the axis)"
    return drawn, name


def draw(
    axes: Axes, df: pd.DataFrame, y: str, transform: Callable = lambda v: v, bars: bool = True
) -> None:
    """Each series of a table with a line a seed and 95 % bootstrap intervals; what is off a log
    axis is named.
    """
    for name, rows in done(df).groupby("series", sort=False):
        colour, marker, line = STYLES[name]
        drawn, label = on_axis(rows.sort_values("l0"), name)
        axes.plot([], [], color=colour, marker=marker, ls=line, label=label)
        for _, seed in drawn.groupby("seed"):
            value = transform(seed[y].astype(float))
            axes.plot(seed["l0"], value, color=colour, marker=marker, ls=line, lw=1, alpha=0.9)
            if bars:
                error_bars(axes, seed, y, transform, colour)


def error_bars(axes: Axes, rows: pd.DataFrame, y: str, transform: Callable, colour: str) -> None:
    """95 % bootstrap intervals of the points of `draw`."""
    bounds = intervals.intervals(rows, [y], draws=200)
    value = transform(rows[y].astype(float))
    sides = [transform(bounds[f"{y}_low"]), transform(bounds[f"{y}_high"])]
    ends = np.sort(np.stack(sides), 0)  # a transform may turn them round
    lengths = np.abs(ends - value.to_numpy())
    axes.errorbar(rows["l0"], value, lengths, fmt="none", color=colour, lw=0.9)


def legend(figure: Figure, axes: Axes) -> None:
    """The names of the series above the panels: there are too many to lie among the points."""
    handles = axes.get_legend_handles_labels()[0]
    if handles:
        axes.get_legend().remove()
        figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8)


@styled
def series_fronts(df: pd.DataFrame, title: str = "") -> Figure:
    """L0 against loss recovered for every series, both on log axes as in the paper (Figs 8, 9)."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    draw(axes, df, "loss_recovered", missing_share)
    if len(done(df)):
        loss_axes(axes)
    finish(figure, axes, df, L0, LOSS, title)
    legend(figure, axes)
    return figure


@styled
def series_gammas(
    df: pd.DataFrame, columns: Sequence[str] = ("gamma", "gamma_centred"), title: str = ""
) -> Figure:
    """Relative reconstruction bias (Eq. 10) against L0 for every series, and the same about the
    mean; the band is 0.98 to 1.02.
    """
    titles = {"gamma": "gamma", "gamma_centred": "gamma about the mean"}
    figure, panels = plt.subplots(1, len(columns), figsize=(6.8, 3.6), squeeze=False)
    for axes, column in zip(panels[0], columns, strict=True):
        axes.axhspan(0.98, 1.02, color=GREY, alpha=0.18, lw=0)
        if len(done(df)):
            draw(axes, df, column)
            axes.set_xscale("log")
            plain_log(axes.xaxis)
        axes.set(xlabel=L0, title=titles[column])
    first = panels[0, 0]
    heading = " ".join([title, "gamma"]).strip()
    finish(figure, first, df, L0, "relative reconstruction bias", heading)
    legend(figure, first)
    return figure


@styled
def forest(
    table: pd.DataFrame, df: pd.DataFrame, xlabel: str, null: float = 1.0, band: float = 1.05
) -> Figure:
    """Ratios with intervals, a row each: `series, estimate, low, high` (text) and `t_low, t_high`
    (seeds), log axis; as `gsae.experiments.tables.against` makes them from the runs of `df`, the
    reference's among them.
    """
    figure, axes = plt.subplots(figsize=(6.4, 1.1 + 0.42 * max(2, len(table))))
    axes.axvspan(null / band, null * band, color=GREY, alpha=0.18, lw=0)
    axes.axvline(null, color=GREY, lw=0.9, ls="--")
    for y, row in enumerate(table.itertuples()):
        colour, marker, _ = STYLES[row.series]
        if not np.isfinite(row.estimate):
            axes.text(null * band, y, "  no shared range, or runs missing", va="center", fontsize=8)
            continue
        axes.plot([row.t_low, row.t_high], [y, y], color=colour, lw=4, alpha=0.3)
        axes.plot([row.low, row.high], [y, y], color=colour, lw=1.6)
        axes.plot(row.estimate, y, marker, color=colour)
    axes.set_xscale("log")
    short = np.ptp(np.log(axes.get_xlim())) < np.log(4)
    plain_log(axes.xaxis, (1, 1.1, 1.2, 1.5, 2, 3, 5, 7) if short else (1, 2, 5))
    axes.set(xlabel=xlabel, ylim=(len(table) - 0.5, -0.5))
    figure.supxlabel(
        caption(df[df["series"].isin([*table["series"], "gated"])]),
        fontsize=7.5,
        x=0.99,
        ha="right",
    )
    finite = np.isfinite(table["estimate"])
    numbers = [f"\n{r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in table.itertuples()]
    axes.set_yticks(range(len(table)), table["series"] + np.where(finite, numbers, ""), fontsize=8)
    return figure


@styled
def pursuits(df: pd.DataFrame) -> Figure:
    """Fig. 10: loss recovered with at most `s` latents found by pursuit, against the L0 of the
    training run.
    """
    sizes = sorted(set(df["s"]) - {0})
    figure, panels = plt.subplots(1, len(sizes), figsize=(7.0, 3.4), sharex=True)
    for axes, s in zip(panels, sizes, strict=True):
        rows = df[df["s"] == s]
        draw(axes, rows.assign(l0=rows["l0_run"]), "loss_recovered", missing_share)
        axes.axvline(s, color=GREY, lw=0.9, ls="--")
        if len(done(rows)):
            loss_axes(axes)
        axes.set(xlabel="L0 in training (log)", title=f"at most {s} latents")
    panels[0].set_ylabel("loss recovered (log of what is missing)")
    finish(figure, panels[0], df, "L0 in training (log)", LOSS, panels[0].get_title())
    legend(figure, panels[0])
    return figure


@styled
def encoder_gap(df: pd.DataFrame, title: str = "") -> Figure:
    """Fig. 11: fronts of encoders beside pursuit on each arm's best dictionary at each size
    (dashed), a line a seed.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    rows = done(df)
    draw(axes, rows[rows["s"] == 0], "loss_recovered", missing_share)
    for name, pursued in rows[rows["s"] > 0].groupby("series", sort=False):
        colour, marker, _ = STYLES[name]
        style = {"color": colour, "marker": marker, "ls": "--", "mfc": "none"}
        axes.plot([], [], **style, label=f"{name}: pursuit on the best dictionary")
        for _, seed in pursued.groupby("seed"):
            best = seed.loc[seed.groupby("s")["loss_recovered"].idxmax()].sort_values("l0")
            axes.plot(best["l0"], 1 - best["loss_recovered"], **style, lw=1)
            error_bars(axes, best, "loss_recovered", missing_share, colour)
    if len(rows):
        loss_axes(axes)
    finish(figure, axes, df, L0, LOSS, title)
    legend(figure, axes)
    return figure


def noise_panel(axes: Axes, df: pd.DataFrame, y: str, solid: float) -> None:
    """One quantity of the known dictionary at one noise: every result pale, means over seeds as a
    line, solid for the data of one L0.
    """
    for (arch, l0), rows in df.groupby(["arch", "data_l0"]):
        colour, marker, _ = STYLES[SAME if arch == "baseline" else arch]
        dash = "-" if l0 == solid else ":"
        label = f"{arch}, {l0:g} of the data on"
        axes.plot(rows["l0"] / l0, rows[y], marker, color=colour, alpha=0.4, ms=3)
        mean = rows.groupby("lam")[["l0", y]].mean()
        axes.plot(mean["l0"] / l0, mean[y], dash, color=colour, label=label)


def known_caption(df: pd.DataFrame) -> str:
    """Scale, seeds, tokens and width of the known dictionary's results."""
    seeds = df["seed"].nunique()
    about = f"scale {df['scale'].iloc[0]}, {seeds} seed{'s' * (seeds != 1)}"
    return f"{about}, {values(df['tokens'])} tokens a dictionary, M = {values(df['M'])}"


@styled
def known_dictionary(df: pd.DataFrame, title: str = "") -> Figure:
    """The known dictionary: slope of estimated on true magnitude, and cosine to the true
    directions, against the L0 of the SAE over that of the data; a column for each noise, a line
    through the lambdas for each L0 of the data.
    """
    noises = sorted(df["noise"].unique()) if len(df) else [0.0]
    figure, panels = plt.subplots(
        2, len(noises), figsize=(7.0, 4.6), sharex=True, sharey="row", squeeze=False
    )
    for column, noise in zip(panels.T, noises, strict=True):
        for axes, y in zip(column, ("slope", "cosine"), strict=True):
            axes.axhline(1, color=GREY, lw=0.9, ls="--")
            if len(df):
                noise_panel(axes, df[df["noise"] == noise], y, solid=df["data_l0"].min())
            axes.set_xscale("log")
            plain_log(axes.xaxis)
        column[0].set_title(f"noise {noise:g}", fontsize=9)
    for axes, name in zip(panels[:, 0], ("slope of magnitudes", "cosine"), strict=True):
        axes.set_ylabel(name)
    first = panels[0, 0]
    handles = first.get_legend_handles_labels()[0]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8)
    else:
        first.text(0.5, 0.5, "no result on record", transform=first.transAxes, ha="center")
    below = f"\n{known_caption(df)}" if len(df) else ""
    figure.supxlabel(f"latents on, over those of the data that are (log){below}", fontsize=8)
    figure.suptitle(title)
    return figure
