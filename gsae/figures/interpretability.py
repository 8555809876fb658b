"""Figures of the study: a table in, a figure out, in the house style of `gsae.figures.base`."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gsae.figures.base import COLOURS, LABELS, MARKERS, styled
from gsae.figures.sites import SITES
from gsae.interpretability import rating_report, rating_statistics, score_tables

NAMES = {score_tables.RULE: "a simple rule: balanced accuracy", score_tables.INTRUDER: "intruder found"}
ROWS = {score_tables.NONE: "latents"}


def note(rows: pd.DataFrame, at: str) -> str:
    """Scale, sizes, and what is missing."""
    latents, tokens = score_tables.sizes(at)
    places = rating_report.several(len(rows.groupby(rating_statistics.CELL)), "place")
    text = f"scale {at}: {latents} latents an SAE, {places}, {tokens:,} tokens of text, "
    text += "bars 90 % BCa intervals"
    text += {"smoke": ". A test of the code, not a result"}.get(at, "")
    missing = int((rows["status"] == "missing").sum())
    return text + (f". MISSING: {missing} of {len(rows)} scores" if missing else "")


def finished(figure: Figure, first: plt.Axes, rows: pd.DataFrame, at: str) -> Figure:
    """The figure with its note and, above, the legend of its first panel; or, where that is empty, with the reason."""
    if first.lines:
        figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    else:
        first.text(0.5, 0.5, "not yet run at this scale", ha="center", transform=first.transAxes)
        first.set_axis_off()
    figure.supxlabel(note(rows, at), fontsize=7.5, x=0.99, ha="right")
    return figure


@styled
def scores(rows: pd.DataFrame, at: str) -> Figure:
    """Automated scores of both arms' latents and of each control: every latent a dot, means with 90 % intervals.

    Args:
        rows: of `automated.table`.
    """
    means, kept = score_tables.summary(rows), score_tables.done(rows)
    shown = [s for s in NAMES if s in set(means["score"])]
    figure, panels = plt.subplots(
        max(len(shown), 1), 1, figsize=(6.4, 3.1 * max(len(shown), 1)), squeeze=False, layout="constrained"
    )
    rng = np.random.default_rng(0)
    for axes, name in zip(panels[:, 0], shown, strict=False):
        for shift, arm in ((-0.17, "gated"), (0.17, "baseline")):
            for k, control in enumerate(score_tables.CONTROLS):
                here = (kept["score"] == name) & (kept["arm"] == arm) & (kept["control"] == control)
                values = np.concatenate([np.empty(0), *kept[here]["value"]]).astype(float)
                at_y = k + shift + rng.uniform(-0.07, 0.07, len(values))
                faint = min(0.45, 40 / max(len(values), 1))  # several places: many dots
                axes.plot(values, at_y, ls="", marker=".", ms=3, alpha=faint, color=COLOURS[arm])
                one = means[(means["score"] == name) & (means["arm"] == arm) & (means["control"] == control)]
                for r in one.itertuples():
                    axes.plot([r.low, r.high], [k + shift] * 2, color=COLOURS["truth"], lw=2.2, zorder=3)
                    axes.plot(r.mean, k + shift, marker=MARKERS[arm], color=COLOURS[arm], mec=COLOURS["truth"],
                              zorder=4, label=LABELS[arm] if k == 0 else None)  # fmt: skip
        axes.axvline(score_tables.CHANCE[name], color=COLOURS["truth"], ls="--", lw=0.9)
        axes.set(xlabel=f"{NAMES[name]} (dashed: chance)", ylim=(len(score_tables.CONTROLS) - 0.5, -0.6))
        axes.set_yticks(range(len(score_tables.CONTROLS)), [ROWS.get(c, c) for c in score_tables.CONTROLS])
    return finished(figure, panels[0, 0], rows, at)


@styled
def places(rows: pd.DataFrame, at: str) -> Figure:
    """Gated minus baseline at each site and layer, with 90 % intervals: of the latents and, grey, of random directions,
    which differ between the arms in density alone.

    Args:
        rows: of `automated.table`.
    """
    table = score_tables.differences(rows, rating_statistics.CELL)
    shown = [s for s in NAMES if s in set(table["score"])]
    cells = list(table.groupby(rating_statistics.CELL).groups)
    figure, panels = plt.subplots(1, max(len(shown), 1), figsize=(6.4, 1.5 + 0.36 * max(len(cells), 1)), squeeze=False,
                                  sharey=True, layout="constrained")  # fmt: skip
    kinds = (
        (score_tables.NONE, -0.13, COLOURS["gated"], "latents"),
        (score_tables.RANDOM, 0.13, COLOURS["truth"], None),
    )
    for axes, name in zip(panels[0], shown, strict=False):
        for control, shift, colour, label in kinds:
            of = table[(table["score"] == name) & (table["control"] == control)]
            for n, r in enumerate(of.itertuples()):
                y = cells.index((r.lm, r.site, r.layer)) + shift
                axes.plot([r.low, r.high], [y, y], color=colour, lw=1.6)
                axes.plot(r.difference, y, "o", color=colour, label=None if n else label or control)
        axes.axvline(0, color=COLOURS["truth"], ls="--", lw=0.9)
        axes.set(ylim=(len(cells) - 0.5, -0.5))
        axes.set_xlabel(f"{NAMES[name]},\nGated minus baseline", fontsize=8.5)
    models = {lm for lm, _, _ in cells}
    named = [f"{SITES.get(site, site)}, layer {layer}" + f", {lm}" * (len(models) > 1) for lm, site, layer in cells]
    if shown:
        panels[0, 0].set_yticks(range(len(cells)), named)
    return finished(figure, panels[0, 0], rows, at)
