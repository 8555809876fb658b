"""Figures with one panel a site and layer of a deeper model: Figs 1, 12, 13 and 14. Table in,
figure out.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsae.evidence.run_files import done
from gsae.evidence.verdict import span
from gsae.figures.arms import GREY, draw
from gsae.figures.base import L0, LOSS, caption, loss_axes, missing_share, plain_log, styled

SITES = {"mlp_out": "MLP output", "attn_z": "attention before W_O", "resid_post": "residual stream"}
ERRORS = {
    "fvu": "fraction of variance unexplained (log)",
    "delta_ce": "delta cross-entropy, nats per token (log)",
}


def cells(df: pd.DataFrame, panel: Callable[[Axes, pd.DataFrame], None], ylabel: str) -> Figure:
    """A row of panels a layer of a language model, a column a site, as in the paper, or one row
    where there is one site; a site without a finished run says so, and so does a table without one
    of these sites.
    """
    df = df[df["site"].isin(SITES)]
    if not len(df):
        figure, axes = plt.subplots()
        axes.text(0.5, 0.5, "no run on record", transform=axes.transAxes, ha="center")
        return figure
    layers = sorted(set(zip(df["lm"], df["layer"], strict=True)))
    sites = [site for site in SITES if site in set(df["site"])]
    rows, columns = (len(layers), len(sites)) if len(sites) > 1 else (1, len(layers))
    size = (max(6.4, 1 + 2.1 * columns), 0.9 + 2.4 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False)
    by_layer = panels.reshape(len(layers), len(sites))
    for row, (lm, layer) in zip(by_layer, layers, strict=True):
        model = f"{lm}\n" if df["lm"].nunique() > 1 else ""
        for axes, site in zip(row, sites, strict=True):
            runs = df[(df["lm"] == lm) & (df["layer"] == layer) & (df["site"] == site)]
            title = f"{model}{SITES[site]}, layer {layer}{held(done(runs))}"
            axes.set_title(title, fontsize=8)
            fill(axes, runs, panel)
    figure_legend(figure, panels)
    figure.supylabel(ylabel, fontsize=9)
    figure.supxlabel(f"{L0}\n{caption(df)}", fontsize=7.5)
    return figure


def fill(axes: Axes, runs: pd.DataFrame, panel: Callable[[Axes, pd.DataFrame], None]) -> None:
    """Draw the runs of one cell, or say that none is finished."""
    if len(done(runs)):
        panel(axes, runs)
        axes.tick_params(labelsize=7)
    else:
        axes.text(0.5, 0.5, "no run on record", transform=axes.transAxes, ha="center", fontsize=8)


def figure_legend(figure: Figure, panels: np.ndarray) -> None:
    """One legend for all panels: each name once."""
    lines = {}
    for axes in panels.flat:
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True):
            lines[name] = line
    if lines:
        figure.legend(lines.values(), lines, loc="outside upper center", ncols=2, fontsize=8)


def held(runs: pd.DataFrame) -> str:
    """A second line for a panel's title: seeds and lambdas of its finished series, as cells differ
    in it.
    """
    if not len(runs):
        return ""
    seeds, lams = (span(runs.groupby("series")[field].nunique()) for field in ("seed", "lam"))
    return f"\n{seeds} seed{'s' * (seeds != '1')}, {lams} lambda{'s' * (lams != '1')}"


@styled
def site_fronts(df: pd.DataFrame) -> Figure:
    """L0 against loss recovered, both on log axes, of each cell (Figs 1, 12, 13). `df` has the
    column `series`.
    """

    def panel(axes: Axes, runs: pd.DataFrame) -> None:
        draw(axes, runs, "loss_recovered", missing_share)
        loss_axes(axes)
        left_out(axes, runs, "bottom")

    return cells(df, panel, LOSS)


def left_out(axes: Axes, runs: pd.DataFrame, side: str) -> None:
    """Runs that lose nothing, for which a log axis has no place, by name in a corner on the
    right.
    """
    finished = done(runs)
    whole = finished[finished["loss_recovered"] >= 1].sort_values("l0")
    if not len(whole):
        return
    lines = ["all recovered:"]
    for arch, rows in whole.groupby("arch"):
        lines.append(f"{arch} at {', '.join(f'{l0:.0f}' for l0 in rows['l0'])}")
    y = {"bottom": 0.03, "top": 0.97}[side]
    place = {"transform": axes.transAxes, "ha": "right", "va": side}
    axes.text(0.97, y, "\n".join(lines), **place, fontsize=7)


@styled
def site_errors(df: pd.DataFrame, column: str = "fvu") -> Figure:
    """L0 against what a reconstruction misses, on log axes, of each cell: of the variance (`fvu`),
    with no language model in between, or of the language model's prediction (`delta_ce`), which
    compares across depth.
    """

    def panel(axes: Axes, runs: pd.DataFrame) -> None:
        draw(axes, runs, column)
        if column == "delta_ce":
            left_out(axes, runs, "top")
        axes.set(xscale="log", yscale="log")
        plain_log(axes.xaxis)
        plain_log(axes.yaxis)

    return cells(df, panel, ERRORS[column])


@styled
def site_gammas(df: pd.DataFrame, column: str = "gamma") -> Figure:
    """Relative reconstruction bias (Eq. 10) against L0 in each cell (Fig. 14); the band is 0.98 to
    1.02. A panel holds all points; an interval may run out of it.
    """

    def panel(axes: Axes, runs: pd.DataFrame) -> None:
        axes.axhspan(0.98, 1.02, color=GREY, alpha=0.18, lw=0)
        draw(axes, runs, column)
        points = done(runs)
        if len(points) and points[column].notna().any():
            low, high = min(points[column].min(), 0.98), max(points[column].max(), 1.02)
            margin = 0.05 * (high - low)
            axes.set_ylim(low - margin, high + margin)
        axes.set_xscale("log")
        plain_log(axes.xaxis)

    about = " about the mean" if column == "gamma_centred" else ""
    return cells(df, panel, f"relative reconstruction bias{about}, gamma")
