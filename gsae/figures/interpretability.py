"""Figures of the study: a table in, a figure out, in the house style of `gsae.figures.base`."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gsae.figures.base import COLOURS, LABELS, MARKERS, styled
from gsae.figures.sites import SITES

SCORES = {
    "rule_balanced_accuracy": "a simple rule: balanced accuracy",
    "intruder_accuracy": "intruder found",
}
NONE, RANDOM = "none", "random directions"  # controls: none is the latents themselves
CONTROLS = (NONE, "single tokens", RANDOM, "shuffled")
PLACE = ["lm", "site", "layer"]


def finished(figure: Figure, first: plt.Axes, note: str) -> Figure:
    """The figure with its note and, above, the legend of its first panel; or, where that is empty,
    with the reason.
    """
    if first.lines:
        figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    else:
        first.text(0.5, 0.5, "not yet run at this scale", ha="center", transform=first.transAxes)
        first.set_axis_off()
    figure.supxlabel(note, fontsize=7.5, x=0.99, ha="right")
    return figure


@styled
def scores(rows: pd.DataFrame, means: pd.DataFrame, note: str) -> Figure:
    """Automated scores of both arms' latents and of each control: every latent a dot, means with 90
    % intervals.

    Args:
        rows: one row a score of an SAE or of its control, those alone that have numbers.
        means: of those rows, as `gsae.interpretability.score_tables.summary` makes them.
        note: scale, sizes and what is missing.
    """
    shown = [score for score in SCORES if score in set(means["score"])]
    figure, panels = plt.subplots(
        max(len(shown), 1),
        1,
        figsize=(6.4, 3.1 * max(len(shown), 1)),
        squeeze=False,
        layout="constrained",
    )
    rng = np.random.default_rng(0)
    for axes, name in zip(panels[:, 0], shown, strict=False):
        for shift, arm in ((-0.17, "gated"), (0.17, "baseline")):
            for k, control in enumerate(CONTROLS):
                here = (rows["score"] == name) & (rows["arm"] == arm) & (rows["control"] == control)
                values = np.concatenate([np.empty(0), *rows[here]["value"]]).astype(float)
                at_y = k + shift + rng.uniform(-0.07, 0.07, len(values))
                faint = min(0.45, 40 / max(len(values), 1))  # several places: many dots
                axes.plot(values, at_y, ls="", marker=".", ms=3, alpha=faint, color=COLOURS[arm])
                one = means[
                    (means["score"] == name) & (means["arm"] == arm) & (means["control"] == control)
                ]
                for r in one.itertuples():
                    axes.plot(
                        [r.low, r.high], [k + shift] * 2, color=COLOURS["truth"], lw=2.2, zorder=3
                    )
                    axes.plot(
                        r.mean,
                        k + shift,
                        marker=MARKERS[arm],
                        color=COLOURS[arm],
                        mec=COLOURS["truth"],
                        zorder=4,
                        label=LABELS[arm] if k == 0 else None,
                    )
        axes.axvline(
            means[means["score"] == name]["chance"].iloc[0], color=COLOURS["truth"], ls="--", lw=0.9
        )
        axes.set(xlabel=f"{SCORES[name]} (dashed: chance)", ylim=(len(CONTROLS) - 0.5, -0.6))
        axes.set_yticks(range(len(CONTROLS)), ["latents", *CONTROLS[1:]])
    return finished(figure, panels[0, 0], note)


@styled
def places(table: pd.DataFrame, note: str) -> Figure:
    """Gated minus baseline at each site and layer, with 90 % intervals: of the latents and, grey,
    of random directions, which differ between the arms in density alone.

    Args:
        table: of `gsae.interpretability.score_tables.differences`, split by place.
        note: scale, sizes and what is missing.
    """
    shown = [score for score in SCORES if score in set(table["score"])]
    cells = list(table.groupby(PLACE).groups)
    figure, panels = plt.subplots(
        1,
        max(len(shown), 1),
        figsize=(6.4, 1.5 + 0.36 * max(len(cells), 1)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    kinds = (
        (NONE, -0.13, COLOURS["gated"], "latents"),
        (RANDOM, 0.13, COLOURS["truth"], None),
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
        axes.set_xlabel(f"{SCORES[name]},\nGated minus baseline", fontsize=8.5)
    models = {lm for lm, _, _ in cells}
    named = [
        f"{SITES.get(site, site)}, layer {layer}" + f", {lm}" * (len(models) > 1)
        for lm, site, layer in cells
    ]
    if shown:
        panels[0, 0].set_yticks(range(len(cells)), named)
    return finished(figure, panels[0, 0], note)
