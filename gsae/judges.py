"""Judges of the claims about language models: each reads the evidence of a scale and says what it finds. No torch."""

import numpy as np
import pandas as pd

from gsae import evidence, stats
from gsae.verdicts import NOT, NOT_RUN, NOT_TESTED, REPRODUCED, Verdict, about, graded, inside, interval, unfinished

HEALTHY_L0, HALF = 5.0, 0.5  # the least L0, and the largest share of dead latents, of a run whose gamma counts
SITES = ("mlp_out", "attn_z", "resid_post")


def arms(df: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return df[df["arch"] == "gated"], df[df["arch"] == "baseline"]


def frontier(gated: pd.DataFrame, baseline: pd.DataFrame) -> Verdict:
    """Whether the gated frontier needs fewer latents at equal loss recovered; delta CE at equal L0 beside it."""
    both = pd.concat([gated, baseline])
    if waiting := unfinished(both):
        return waiting
    found = stats.by_seed((gated, baseline), stats.log_ratio)
    if not np.isfinite(found["estimate"]):
        return Verdict(NOT_TESTED, f"no shared range of loss recovered; {about(both)}")
    loss = stats.by_seed((baseline, gated), stats.log_loss_ratio)
    text = f"L0 ratio {interval(found, exp=True)}; the baseline's delta CE at equal L0 {interval(loss, exp=True)} times"
    return Verdict(graded(*inside(found, -np.inf, 0)), f"{text} the gated; {about(both)}")


def neurons(scale: str) -> Verdict:
    """Fig. 5."""
    return frontier(*arms(evidence.load("seeds", scale)))


def human_ratings(scale: str) -> Verdict:
    """Section 4.3, from the ratings on record."""
    from gsae.study import automated, published

    return published.judged(automated.folder(scale))


def half_the_latents(scale: str) -> Verdict:
    """Section 4.1: as Fig. 5, with a note whether the ratio is at most 0.6."""
    found = neurons(scale)
    if not found.ours.startswith("L0 ratio"):
        return found
    ratio = float(found.ours.split()[2])
    return Verdict(found.verdict, f"{'at most' if ratio <= 0.6 else 'above'} 0.6: {found.ours}")


def sites(scale: str) -> Verdict:
    """Figs 1, 12, 13: a cell is a site and layer; all three sites are needed. The pilot's cells only give numbers."""
    df = evidence.load("pareto", scale)
    deep = df[df["site"].isin(SITES)]
    cells = {f"{site} {layer}": frontier(*arms(of)) for (site, layer), of in deep.groupby(["site", "layer"])}
    text = "; ".join(f"{name}: {found.ours}" for name, found in cells.items())
    if absent := [site for site in SITES if site not in set(deep["site"])]:
        return Verdict(NOT_RUN, f"no runs of {', '.join(absent)}{'; ' * bool(text)}{text}")
    if any(found.verdict == NOT_RUN for found in cells.values()):
        return Verdict(NOT_RUN, text)
    tested = [found.verdict for found in cells.values() if found.verdict != NOT_TESTED]
    if len(tested) < len(cells) - 1:
        return Verdict(NOT_TESTED, text)
    lost = tested.count(NOT) + len(cells) - len(tested)
    return Verdict(graded(lost <= 1, *2 * [len(cells) - tested.count(REPRODUCED) <= 1]), text)


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
        return Verdict(NOT_TESTED, f"no healthy gated run; {about(df)}")
    near, below = stats.intervals(gated, ["gamma"]), stats.intervals(baseline, ["gamma"])
    runs = [of.sort_values("lam")["gamma"] for _, of in baseline.groupby("seed")]
    falling = all(of.diff().dropna().lt(0).all() for of in runs)
    estimates = gated["gamma"].between(0.98, 1.02).all() and (baseline["gamma"] < 1).all() and falling
    text = near["gamma_low"].ge(0.98).all() and near["gamma_high"].le(1.02).all() and below["gamma_high"].lt(1).all()
    said = f"gated {gated['gamma'].min():.3f} to {gated['gamma'].max():.3f} in {len(gated)} healthy runs; baseline "
    said += f"{baseline['gamma'].min():.3f} to {baseline['gamma'].max():.3f}, {'' if falling else 'not '}falling with "
    said += f"lambda; at L0 {HEALTHY_L0:g} and more {healthy(baseline)['gamma'].min():.3f} to "
    said += f"{healthy(baseline)['gamma'].max():.3f}" if len(healthy(baseline)) else "none"
    return Verdict(graded(estimates, text, len(runs) > 1), f"{said}; {about(df)}")


def gamma_neurons(scale: str) -> Verdict:
    """Fig. 6."""
    return gamma(evidence.load("seeds", scale))


def gamma_deep(scale: str) -> Verdict:
    """Fig. 14, at every site of a deeper model there is."""
    df = evidence.load("pareto", scale)
    deep = df[df["site"].isin(SITES)]
    if len(deep) and "file" in deep and deep["file"].astype(str).str.startswith("pilot/").all():
        return Verdict(NOT_RUN, f"the pilot alone, on which no verdict rests: {gamma(deep).ours}")
    found = [gamma(of) for _, of in df[df["site"].isin(SITES)].groupby(["site", "layer"])]
    if len(found) != 1:  # several sites: all have to hold
        order = (NOT_RUN, NOT, NOT_TESTED, "partly", REPRODUCED)
        worst = min((f.verdict for f in found), key=order.index, default=NOT_RUN)
        return Verdict(worst, "; ".join(f.ours for f in found))
    return found[0]
