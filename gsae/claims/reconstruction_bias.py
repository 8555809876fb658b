"""Figs 6, 14: whether reconstructions are unbiased, on the neurons and at depth."""

import pandas as pd

from gsae.claims.pareto import SITES, arms, by_place
from gsae.evidence import intervals
from gsae.evidence.verdict import (
    NOT,
    NOT_RUN,
    NOT_TESTED,
    PARTLY,
    REPRODUCED,
    Verdict,
    by_cell,
    graded,
    stated,
    unfinished,  # fmt: skip
)
from gsae.experiments import records

HEALTHY_L0, HALF = (
    5.0,
    0.5,
)  # the least L0, and the largest share of dead latents, of a run whose gamma counts


def healthy(df: pd.DataFrame) -> pd.DataFrame:
    """Runs whose gamma has a meaning: L0 at least 5, at most half of the latents dead."""
    return df[(df["l0"] >= HEALTHY_L0) & (df["dead_fraction"] <= HALF)]


def gamma(df: pd.DataFrame) -> Verdict:
    """Gated gamma .98 to 1.02 in healthy runs; baseline below 1, and falling from each lambda to
    the next.
    """
    if waiting := unfinished(df):
        return waiting
    gated, baseline = arms(df)
    gated = healthy(gated)
    if not len(gated):
        return stated(NOT_TESTED, "no healthy gated run", df)
    near, below = intervals.intervals(gated, ["gamma"]), intervals.intervals(baseline, ["gamma"])
    runs = [of.sort_values("lam")["gamma"] for _, of in baseline.groupby("seed")]
    falling = all(of.diff().dropna().lt(0).all() for of in runs)
    estimates = (
        gated["gamma"].between(0.98, 1.02).all() and (baseline["gamma"] < 1).all() and falling
    )
    text = (
        near["gamma_low"].ge(0.98).all()
        and near["gamma_high"].le(1.02).all()
        and below["gamma_high"].lt(1).all()
    )
    said = (
        f"gated {gated['gamma'].min():.3f} to {gated['gamma'].max():.3f} in {len(gated)} "
        "healthy runs; baseline "
    )
    said += (
        f"{baseline['gamma'].min():.3f} to {baseline['gamma'].max():.3f}, "
        f"{'' if falling else 'not '}falling with "
    )
    said += f"lambda; at L0 {HEALTHY_L0:g} and more {healthy(baseline)['gamma'].min():.3f} to "
    said += f"{healthy(baseline)['gamma'].max():.3f}" if len(healthy(baseline)) else "none"
    return stated(graded(estimates, text, len(runs) > 1), said, df)


def gamma_neurons(scale: str) -> Verdict:
    """Fig. 6."""
    return gamma(records.load("seeds", scale))


def gamma_deep(scale: str) -> Verdict:
    """Fig. 14, at every site of a deeper model there is."""
    df = records.load("pareto", scale)
    deep = df[df["site"].isin(SITES)]
    if len(deep) and "file" in deep and deep["file"].astype(str).str.startswith("pilot/").all():
        return Verdict(NOT_RUN, f"the pilot alone, on which no verdict rests: {gamma(deep).ours}")
    cells = {name: gamma(of) for name, of in by_place(deep).items()}
    found = list(cells.values())
    if len(found) != 1:  # several sites: all have to hold
        order = (NOT_RUN, NOT, NOT_TESTED, PARTLY, REPRODUCED)
        worst = min((f.verdict for f in found), key=order.index, default=NOT_RUN)
        passed = sum(f.verdict in (PARTLY, REPRODUCED) for f in found)
        brief = f"so in {passed} of {len(found)} cells" if worst != NOT_RUN else "runs are missing"
        text = by_cell(cells, deep)
        return stated(worst, text, deep, brief) if len(deep) else Verdict(worst, text, brief)
    return found[0]
