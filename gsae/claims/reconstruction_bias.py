"""Figs 6, 14: whether reconstructions are unbiased, on the neurons and at depth."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from gsae.claims.pareto import by_arch, by_cell
from gsae.evidence import intervals
from gsae.evidence.run import DEEP_SITES
from gsae.evidence.verdict import (
    NOT,
    NOT_RUN,
    NOT_TESTED,
    PARTLY,
    REPRODUCED,
    Verdict,
    graded,
    less_in_common,
    not_run,
    stated,
    unfinished,
)
from gsae.experiments import records

# A run whose gamma counts has at least this L0, and at most this share of dead latents.
HEALTHY_L0, MOST_DEAD = 5.0, 0.5
NEAR_1 = (0.98, 1.02)
WORST_FIRST = (NOT_RUN, NOT, NOT_TESTED, PARTLY, REPRODUCED)


def healthy(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs whose gamma has a meaning: L0 at least 5, at most half of the latents dead."""
    return runs[(runs["l0"] >= HEALTHY_L0) & (runs["dead_fraction"] <= MOST_DEAD)]


def falls(baseline: pd.DataFrame) -> bool:
    """Whether gamma falls from each lambda to the next, in every seed."""
    seeds = [rows.sort_values("lam")["gamma"] for _, rows in baseline.groupby("seed")]
    return all(gammas.diff().dropna().lt(0).all() for gammas in seeds)


def ends(name: str, gammas: pd.Series) -> dict[str, float]:
    """The least and the largest of several gammas, by name."""
    return {f"{name}_least": gammas.min(), f"{name}_most": gammas.max()}


def gamma(runs: pd.DataFrame) -> Verdict:
    """Gated gamma .98 to 1.02 in healthy runs; baseline below 1, and falling from each lambda to
    the next.
    """
    if unfinished(runs):
        return not_run(runs)
    gated, baseline = by_arch(runs)
    gated, healthy_baseline = healthy(gated), healthy(baseline)
    if not len(gated):
        return stated(NOT_TESTED, "no healthy gated run", runs)
    falling = falls(baseline)
    least, most = NEAR_1
    near = gated["gamma"].between(least, most).all()
    below = (baseline["gamma"] < 1).all()
    of_gated = intervals.intervals(gated, ["gamma"])
    of_baseline = intervals.intervals(baseline, ["gamma"])
    near_in_text = of_gated["gamma_low"].ge(least).all() and of_gated["gamma_high"].le(most).all()
    below_in_text = of_baseline["gamma_high"].lt(1).all()
    numbers = {
        "healthy": len(gated),
        **ends("gated", gated["gamma"]),
        **ends("baseline", baseline["gamma"]),
        **ends("healthy_baseline", healthy_baseline["gamma"]),
    }
    upper = "{healthy_baseline_most:.3f}" if len(healthy_baseline) else "none"
    return stated(
        graded(
            near and below and falling,
            near_in_text and below_in_text,
            baseline["seed"].nunique() > 1,
        ),
        "gated {gated_least:.3f} to {gated_most:.3f} in {healthy} healthy runs; "
        "baseline {baseline_least:.3f} to {baseline_most:.3f}, "
        f"{'' if falling else 'not '}falling with lambda; "
        f"at L0 {HEALTHY_L0:g} and more {{healthy_baseline_least:.3f}} to {upper}",
        runs,
        numbers=numbers,
        bounds={
            "gated_least": NEAR_1,
            "gated_most": NEAR_1,
            "baseline_most": (float("-inf"), 1),
        },
    )


def gamma_neurons(scale: str) -> Verdict:
    """Fig. 6."""
    return gamma(records.load("seeds", scale))


def gamma_deep(scale: str) -> Verdict:
    """Fig. 14, at every site of a deeper model there is."""
    runs = records.load("pareto", scale)
    deep = runs[runs["site"].isin(DEEP_SITES)]
    if from_pilot(deep):
        pilot = gamma(deep)
        finding = f"the pilot alone, on which no verdict rests: {pilot.finding}"
        return replace(pilot, verdict=NOT_RUN, finding=finding, short="")
    cells = {name: gamma(rows) for name, rows in by_cell(deep).items()}
    if len(cells) == 1:
        return next(iter(cells.values()))
    return all_of(cells, deep)


def from_pilot(runs: pd.DataFrame) -> bool:
    """Whether all runs there are were trained by `gsae run pilot`."""
    if not len(runs) or "file" not in runs:
        return False
    return bool(runs["file"].astype(str).str.startswith("pilot/").all())


def all_of(cells: Mapping[str, Verdict], runs: pd.DataFrame) -> Verdict:
    """The verdict on several sites, which all have to hold."""
    words = [cell.verdict for cell in cells.values()]
    worst = min(words, key=WORST_FIRST.index, default=NOT_RUN)
    tables = tuple(table for cell in cells.values() for table in cell.tables)
    if not cells:
        return Verdict(NOT_RUN, short="runs are missing")
    numbers = {"passed": words.count(PARTLY) + words.count(REPRODUCED), "cells": len(cells)}
    short = "runs are missing" if worst == NOT_RUN else "so in {passed} of {cells} cells"
    cells = less_in_common(cells, runs)
    return stated(worst, "", runs, short=short, numbers=numbers, cells=cells, tables=tables)
