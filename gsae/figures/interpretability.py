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
KINDS = (  # of `places`: control, shift, colour, label
    (NONE, -0.13, COLOURS["gated"], "latents"),
    (RANDOM, 0.13, COLOURS["truth"], RANDOM),
)


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
    count = max(len(shown), 1)
    figure, panels = plt.subplots(
        count, 1, figsize=(6.4, 3.1 * count), squeeze=False, layout="constrained"
    )
    rng = np.random.default_rng(0)
    for axes, score in zip(panels[:, 0], shown, strict=False):
        rows_of, means_of = rows[rows["score"] == score], means[means["score"] == score]
        for arm, shift in (("gated", -0.17), ("baseline", 0.17)):
            for line, control in enumerate(CONTROLS):
                values = selected(rows_of, arm, control)["value"]
                draw_latents(axes, np.concatenate([np.empty(0), *values]), line + shift, arm, rng)
                label = LABELS[arm] if line == 0 else None
                draw_mean(axes, selected(means_of, arm, control), line + shift, arm, label)
        axes.axvline(means_of["chance"].iloc[0], color=COLOURS["truth"], ls="--", lw=0.9)
        axes.set(xlabel=f"{SCORES[score]} (dashed: chance)", ylim=(len(CONTROLS) - 0.5, -0.6))
        axes.set_yticks(range(len(CONTROLS)), ["latents", *CONTROLS[1:]])
    return finished(figure, panels[0, 0], note)


def selected(table: pd.DataFrame, arm: str, control: str) -> pd.DataFrame:
    return table[(table["arm"] == arm) & (table["control"] == control)]


def draw_latents(
    axes: plt.Axes, values: np.ndarray, y: float, arm: str, rng: np.random.Generator
) -> None:
    """A dot a latent around a height, shaken so that equal values are seen."""
    heights = y + rng.uniform(-0.07, 0.07, len(values))
    alpha = min(0.45, 40 / max(len(values), 1))  # several places: many dots
    axes.plot(
        values.astype(float), heights, ls="", marker=".", ms=3, alpha=alpha, color=COLOURS[arm]
    )


def draw_mean(axes: plt.Axes, means: pd.DataFrame, y: float, arm: str, label: str | None) -> None:
    """The mean and its interval, where there is one."""
    black = COLOURS["truth"]
    for row in means.itertuples():
        axes.plot([row.low, row.high], [y, y], color=black, lw=2.2, zorder=3)
        axes.plot(
            row.mean,
            y,
            marker=MARKERS[arm],
            color=COLOURS[arm],
            mec=black,
            zorder=4,
            label=label,
        )


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
    for axes, score in zip(panels[0], shown, strict=False):
        for control, shift, colour, label in KINDS:
            rows = table[(table["score"] == score) & (table["control"] == control)]
            for row in rows.itertuples():
                y = cells.index((row.lm, row.site, row.layer)) + shift
                axes.plot([row.low, row.high], [y, y], color=colour, lw=1.6)
                axes.plot(row.difference, y, "o", color=colour, label=label)
                label = None  # one entry in the legend
        axes.axvline(0, color=COLOURS["truth"], ls="--", lw=0.9)
        axes.set(ylim=(len(cells) - 0.5, -0.5))
        axes.set_xlabel(f"{SCORES[score]},\nGated minus baseline", fontsize=8.5)
    if shown:
        panels[0, 0].set_yticks(range(len(cells)), place_names(cells))
    return finished(figure, panels[0, 0], note)


def place_names(cells: list[tuple[str, str, int]]) -> list[str]:
    """Places in words; the language model is named where there are several."""
    names = [f"{SITES.get(site, site)}, layer {layer}" for _, site, layer in cells]
    models = [lm for lm, _, _ in cells]
    if len(set(models)) > 1:
        names = [f"{name}, {lm}" for name, lm in zip(names, models, strict=True)]
    return names
