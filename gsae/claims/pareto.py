"""Judges of the claims about language models: each reads the evidence of a scale and says what it finds. No torch."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from gsae.evidence import metrics, run_files
from gsae.evidence.verdict import (
    LINE,
    NOT,
    NOT_RUN,
    NOT_TESTED,
    PARTLY,
    REPRODUCED,
    Verdict,
    by_cell,
    graded,
    inside,
    interval,
    stated,
    unfinished,  # fmt: skip
)

HEALTHY_L0, HALF = 5.0, 0.5  # the least L0, and the largest share of dead latents, of a run whose gamma counts
SITES = ("mlp_out", "attn_z", "resid_post")


def arms(df: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return df[df["arch"] == "gated"], df[df["arch"] == "baseline"]


def by_place(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Runs by cell, a site and layer, under its name, with that of the language model where there are several."""
    several = df["lm"].nunique() > 1
    groups = df.groupby(["lm", "site", "layer"])
    return {f"{f'{lm} ' if several else ''}{site} {layer}": of for (lm, site, layer), of in groups}


def frontier(gated: pd.DataFrame, baseline: pd.DataFrame) -> Verdict:
    """Whether the gated frontier needs fewer latents at equal loss recovered; delta CE at equal L0 beside it."""
    both = pd.concat([gated, baseline])
    if waiting := unfinished(both):
        return waiting
    found = metrics.by_seed((gated, baseline), metrics.log_ratio)
    if not np.isfinite(found["estimate"]):
        return stated(NOT_TESTED, "no shared range of loss recovered", both)
    loss = metrics.by_seed((baseline, gated), metrics.log_loss_ratio)
    worst = metrics.by_seed((gated, baseline), partial(metrics.log_ratio, over_levels=np.max), draws=200)
    brief = f"L0 ratio {interval(found, exp=True)}"
    text = f"{brief}, at the least favourable of five levels {interval(worst, exp=True)}; the baseline's delta CE at "
    text += f"equal L0 {interval(loss, exp=True)} times the gated"
    return stated(graded(*inside(found, -np.inf, 0)), text, both, brief, found | {"worst": worst["estimate"]})


def neurons(scale: str) -> Verdict:
    """Fig. 5: by the loss recovered at equal L0. (It was judged by the ratio of L0, as Section 4.1 is, until the rule
    was compared with its specification.)
    """
    gated, baseline = arms(run_files.load("seeds", scale))
    cell = frontier(gated, baseline)
    return cell if cell.verdict == NOT_RUN else recovered(cell, gated, baseline)


def human_ratings(scale: str) -> Verdict:
    """Section 4.3, from the ratings on record."""
    from gsae.interpretability import published_study, score_tables

    return published_study.judged(score_tables.folder(scale))


def half_the_latents(scale: str) -> Verdict:
    """Section 4.1: the ratio of L0 on the runs of Fig. 5, with a note whether it is at most 0.6."""
    found = frontier(*arms(run_files.load("seeds", scale)))
    if not found.found:
        return found
    side = "at most" if np.exp(found.found["estimate"]) <= 0.6 else "above"
    return replace(found, ours=f"{side} 0.6: {found.ours}", brief=f"{side} 0.6: {found.brief}")


def sites(scale: str) -> Verdict:
    """Figs 1, 12, 13: a cell is a site and layer; all three sites are needed.

    Attention is judged by the loss recovered, gated less baseline at equal L0: so little loss is at stake there that
    runs which lose none have no place in a ratio. An attention cell whose interval over text has 0 inside, or none, is
    `not tested`: it does not count as better. (The first rule took the ratio of L0 there, too. It was changed when
    gated runs of two million tokens at layer 8 had lost less than nothing, before their baselines were read.)
    """
    df = run_files.load("pareto", scale)
    deep = df[df["site"].isin(SITES)]
    groups = by_place(deep)
    cells, ahead = {name: frontier(*arms(of)) for name, of in groups.items()}, 0
    for name, cell in cells.items():
        if cell.verdict != NOT_RUN:
            by_loss, attention = recovered(cell, *arms(groups[name])), "attn_z" in set(groups[name]["site"])
            clear = by_loss.found["more_low"] > 0 or by_loss.found["more_high"] < 0
            if attention:
                cells[name] = by_loss if clear else replace(by_loss, verdict=NOT_TESTED)
            ahead += by_loss.found["more"] > 0 and (clear or not attention)
    text = by_cell(cells, deep)
    there = [set(of["site"]) for _, of in deep.groupby("lm")] or [set()]
    if absent := [site for site in SITES if any(site not in sites for sites in there)]:  # of any language model
        missing = f"no runs of {', '.join(absent)}"
        return Verdict(NOT_RUN, f"{missing}{LINE * bool(text)}{text}", missing)
    if waiting := sum(found.verdict == NOT_RUN for found in cells.values()):
        return Verdict(NOT_RUN, text, f"runs are missing in {waiting} of {len(cells)} cells")
    tested = [found.verdict for found in cells.values() if found.verdict != NOT_TESTED]
    if len(tested) < len(cells) - 1:
        return Verdict(NOT_TESTED, text, f"a range is shared in {len(tested)} of {len(cells)} cells")
    lost = tested.count(NOT) + len(cells) - len(tested)
    ratios = [cell.found for cell in cells.values() if np.isfinite(cell.found.get("low", np.nan))]
    ratios.sort(key=lambda found: found["estimate"])
    ends = " to ".join(interval(found, exp=True) for found in ratios[:: max(1, len(ratios) - 1)]) or "without interval"
    everywhere = sum(cell.found.get("worst", 0) < 0 for cell in cells.values())
    brief = f"better in {len(cells) - lost} of {len(cells)} cells, in {ahead} by loss recovered alone, at each of five "
    brief += f"levels in {everywhere}; L0 ratio {ends}"
    verdict = graded(lost <= 1, *2 * [len(cells) - tested.count(REPRODUCED) <= 1])
    return stated(verdict, text, deep, brief)


def recovered(cell: Verdict, gated: pd.DataFrame, baseline: pd.DataFrame) -> Verdict:
    """A comparison of frontiers judged by the difference in loss recovered at equal L0, the ratio of L0 beside it;
    `not tested` where no range of L0 is shared.
    """
    more = metrics.by_seed((gated, baseline), metrics.recovered)
    known = np.isfinite(more["estimate"])
    said = f"loss recovered {interval(more, 3)} higher at equal L0" if known else "no shared range of L0"
    found = cell.found | {"more": more["estimate"], "more_low": more["low"], "more_high": more["high"]}
    verdict = graded(*inside(more, 0, np.inf)) if known else NOT_TESTED
    return replace(cell, verdict=verdict, ours=f"{said}; {cell.ours}", brief=f"{said}; {cell.brief}", found=found)


def healthy(df: pd.DataFrame) -> pd.DataFrame:
    """Runs whose gamma has a meaning: L0 at least 5, at most half of the latents dead."""
    return df[(df["l0"] >= HEALTHY_L0) & (df["dead_fraction"] <= HALF)]


def gamma(df: pd.DataFrame) -> Verdict:
    """Gated gamma .98 to 1.02 in healthy runs; baseline below 1, and falling from each lambda to the next."""
    if waiting := unfinished(df):
        return waiting
    gated, baseline = arms(df)
    gated = healthy(gated)
    if not len(gated):
        return stated(NOT_TESTED, "no healthy gated run", df)
    near, below = metrics.intervals(gated, ["gamma"]), metrics.intervals(baseline, ["gamma"])
    runs = [of.sort_values("lam")["gamma"] for _, of in baseline.groupby("seed")]
    falling = all(of.diff().dropna().lt(0).all() for of in runs)
    estimates = gated["gamma"].between(0.98, 1.02).all() and (baseline["gamma"] < 1).all() and falling
    text = near["gamma_low"].ge(0.98).all() and near["gamma_high"].le(1.02).all() and below["gamma_high"].lt(1).all()
    said = f"gated {gated['gamma'].min():.3f} to {gated['gamma'].max():.3f} in {len(gated)} healthy runs; baseline "
    said += f"{baseline['gamma'].min():.3f} to {baseline['gamma'].max():.3f}, {'' if falling else 'not '}falling with "
    said += f"lambda; at L0 {HEALTHY_L0:g} and more {healthy(baseline)['gamma'].min():.3f} to "
    said += f"{healthy(baseline)['gamma'].max():.3f}" if len(healthy(baseline)) else "none"
    return stated(graded(estimates, text, len(runs) > 1), said, df)


def gamma_neurons(scale: str) -> Verdict:
    """Fig. 6."""
    return gamma(run_files.load("seeds", scale))


def gamma_deep(scale: str) -> Verdict:
    """Fig. 14, at every site of a deeper model there is."""
    df = run_files.load("pareto", scale)
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
