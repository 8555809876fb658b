"""Judges of why it works: ablations, repairs, dictionaries and resampling. No torch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from gsae.claims.pareto import arms, frontier, healthy
from gsae.evidence import metrics
from gsae.evidence.verdict import (
    LINE,
    NOT_TESTED,
    Verdict,
    count,
    graded,
    inside,
    interval,
    stated,
    together,
    unfinished,
)
from gsae.experiments import follow_ups, tables

CLEARLY, HALF = 1.05, 0.5  # of delta CE at equal L0; of a gap, of the targets
WELL_BELOW = 0.4  # a half, of a gap
HIGHER = 1.5  # times the number of latents at test time, in training: what is nearer was trained for that number
FEW_DEAD = 0.01  # share of dead latents below which resampling has nothing to do
FEWER_DEAD = 0.005  # what it has to save of them: of single runs, less is chance


def above(found: dict, least: float | int) -> tuple[bool, ...]:
    return inside(found, least, np.inf)


def ratios(df: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """Delta CE of each arm over the gated SAE's at equal L0, and the same as text."""
    table = tables.against(df, names)
    said = [f"{row.series} {interval(row._asdict())}" for row in table.itertuples(index=False)]
    return table, "; ".join(said)


def compared(df: pd.DataFrame, names: Sequence[str], conditions) -> Verdict:
    """Arms of Fig. 8 against the gated SAE: `conditions` maps an arm to the bounds of its delta CE ratio."""
    used = df[df["series"].isin([*names, tables.GATED])]
    if waiting := unfinished(used):
        return waiting
    table, said = ratios(df, names)
    if not np.isfinite(table["estimate"]).all():
        return stated(NOT_TESTED, f"no shared range of L0: {said}", used)
    parts = [inside(row._asdict(), *conditions[row.series]) for row in table.itertuples(index=False)]
    return stated(together(parts), f"delta CE over the gated SAE's at equal L0: {said}", used)


def unfrozen(scale: str) -> Verdict:
    """Fig. 8: clearly below is a ratio of delta CE above 1.05."""
    name = "unfrozen decoder"
    return compared(tables.ablations(scale), [name], {name: (CLEARLY, np.inf)})


def small_changes(scale: str) -> Verdict:
    """Fig. 8: no r_mag and untied encoders within 1.05 of the gated SAE, either way; the baseline below it. That the
    gated SAE is on top is read so: no arm of the paper is better by more than 1.05.
    """
    close = (1 / CLEARLY, CLEARLY)
    bounds = {"no r_mag": close, "untied encoders": close, tables.WIDE: (1, np.inf)}
    return compared(tables.ablations(scale), list(bounds), bounds)


def no_auxiliary(scale: str) -> Verdict:
    """Pitfall of section 3.2: without the auxiliary term L0 is below 1, or below a tenth of the paper's arm's."""
    df = tables.ablations(scale)
    shut, gated = df[df["series"] == "no auxiliary term"], df[df["series"] == tables.GATED]
    pairs = shut.merge(gated, on=["lam", "seed"], suffixes=("", "_gated"))
    if waiting := unfinished(pd.concat([shut, gated])):
        return waiting
    near = ((pairs["l0"] < 1) | (pairs["l0"] < 0.1 * pairs["l0_gated"])).all()
    said = ", ".join(f"{row.l0:.2g} instead of {row.l0_gated:.3g}" for row in pairs.itertuples())
    return stated(graded(near, True, shut["seed"].nunique() > 1), f"L0 {said}", shut)


def shrinkage_alone(scale: str) -> Verdict:
    """Fig. 9: the share of the gap that rescale & shift closes, with gamma within .05 of 1 afterwards.

    A small part is one well below a half, here .4; from there to a half it is `partly`. (The first rule had no number,
    the next was a half. This one is stricter, written down when one seed had closed .48, before the others were read.)
    """
    df = tables.repaired(scale)
    of = {name: rows for name, rows in df.groupby("series")}
    used = pd.concat([of[name] for name in (tables.RESCALED, tables.SAME, tables.GATED)])
    if waiting := unfinished(used):
        return waiting
    after = healthy(of[tables.RESCALED])["gamma"]
    if not len(after) or not after.between(0.95, 1.05).all():
        return stated(NOT_TESTED, f"gamma {after.min():.3f} to {after.max():.3f}: not repaired", used)

    def closed(name: str, log: bool = False) -> dict:
        return metrics.by_seed((of[name], of[tables.SAME], of[tables.GATED]), partial(metrics.gap_closed, log=log))

    found = closed(tables.RESCALED)
    if not np.isfinite(found["estimate"]):
        return stated(NOT_TESTED, "no shared range of L0, or no gap", used)
    strongest = [name for name in of if name.startswith(tables.BOTH) and unfinished(of[name]) is None]
    said = "; ".join(f"{name} {interval(closed(name))}" for name in strongest)
    said = f"share closed {interval(found)}, gamma {after.min():.3f} to {after.max():.3f}; {said or 'no pruning yet'}"
    said += f"; counted in logarithms, in which all levels weigh alike, {interval(closed(tables.RESCALED, log=True))}"
    small = inside(found, -np.inf, WELL_BELOW)
    verdict = graded(found["estimate"] < HALF, all(small[:2]), small[2])
    return stated(verdict, said, used, f"share closed {interval(found)}")


def tiny_activations(scale: str) -> Verdict:
    """Limitations: Fig. 5 against the better of the baseline and its pruned versions at each L0."""
    df = tables.pruned(scale)
    baseline = df[(df["arch"] == "baseline")]
    found = frontier(df[df["series"] == tables.GATED], baseline)
    return replace(found, ours=found.ours and f"against the baseline, pruned or not: {found.ours}")


def best(rows: Sequence[dict]) -> float:
    return min((row["delta_ce"] for row in rows), default=np.nan)


def advantage(worse: Sequence[dict], better: Sequence[dict]) -> float:
    """Log ratio of the least delta CE of two sets of dictionaries."""
    return float(np.log(best(worse) / best(better))) if min(best(worse), best(better)) > 0 else np.nan


def dictionaries(scale: str) -> Verdict:
    """Fig. 10: the best dictionary of each arm at each number of latents; better at most of them."""
    df = tables.pursuits(scale)
    if waiting := unfinished(df):
        return waiting

    gated, baseline = arms(df)
    found = {s: metrics.by_seed([of[of["s"] == s] for of in (baseline, gated)], advantage) for s in follow_ups.PURSUITS}
    if not all(np.isfinite(one["estimate"]) for one in found.values()):
        return stated(NOT_TESTED, "nothing left to recover", df)
    passed = [above(one, 0) for one in found.values()]
    most = [sum(column) > len(found) / 2 for column in zip(*passed, strict=True)]
    said = "; ".join(f"at most {s}: {interval(one, exp=True)}" for s, one in found.items())
    brief = "; ".join(f"at {s} {interval(one, exp=True)}" for s, one in found.items())
    return stated(
        graded(*most),
        f"delta CE of the best dictionaries, baseline over gated, {said}",
        df,
        f"delta CE, baseline over gated: {brief}",
    )


def training_l0(scale: str) -> Verdict:
    """Fig. 10: whether a dictionary trained clearly above a number of latents beats the one trained nearest to it.

    Clearly above is an L0 of 1.5 times it; numbers that no run lies so far above are left out. (The first rule asked
    that the best dictionary's L0 be above the number, by however little: it passed because the runs nearest to 10 and
    30 happened to lie at 12 and 32. It was replaced by this one, which fails, after that was seen.)
    """
    df = tables.pursuits(scale)
    df = df[df["s"] > 0]
    if waiting := unfinished(df):
        return waiting
    found = {}
    for (arch, s), rows in df.groupby(["arch", "s"]):
        far = np.log(rows["l0_run"] / s)
        nearest = rows.loc[far.abs().groupby(rows["seed"]).idxmin()]
        higher = rows[far > np.log(HIGHER)]
        if set(higher["seed"]) == set(rows["seed"]):
            found[f"{arch}, at most {s}"] = metrics.by_seed((nearest, higher), advantage)
    if not found or not all(np.isfinite(one["estimate"]) for one in found.values()):
        return stated(NOT_TESTED, "no run was trained clearly above a number of latents", df)
    passed = [above(one, 0) for one in found.values()]
    most = [sum(column) > HALF * len(found) for column in zip(*passed, strict=True)]
    said = "; ".join(f"{name}: {interval(one, exp=True)}" for name, one in found.items())
    brief = f"so in {sum(p[0] for p in passed)} of {len(found)} cases"
    text = f"delta CE of the dictionary trained nearest to the number, over the best trained above it, {said}"
    return stated(graded(*most), text, df, brief)


def encoder_gap(scale: str) -> Verdict:
    """Fig. 11: delta CE of encoder over pursuit at equal L0, the baseline's over the gated's, on one range of L0."""
    df = tables.pursuits(scale)
    if waiting := unfinished(df):
        return waiting
    gated, baseline = arms(df)
    parts = [of[(of["s"] == 0) == encoder] for of in (baseline, gated) for encoder in (True, False)]

    def excess(*fronts: Sequence[dict]) -> float:
        found = metrics.log_losses(fronts)
        return float(np.mean(found[0] - found[1] - (found[2] - found[3]))) if found else np.nan

    found = metrics.by_seed(parts, excess)
    if not np.isfinite(found["estimate"]):
        return stated(NOT_TESTED, "no shared range of L0", df)
    return stated(graded(*above(found, 0)), f"gap, baseline over gated, {interval(found, exp=True)}", df)


def resampling(scale: str) -> Verdict:
    """Appendix D: the share of dead latents with resampling: lower than without by half a point, in both arms.

    Not tested where less than 1 % are dead without it. (This premise was written down after the first pair of runs, in
    which one latent in 2,048 was dead: by the bare rule they would have been `not reproduced`. The pairs at residual
    streams were added after it, since latents die there with resampling, and before they were trained.)
    """
    pairs = tables.resampled(scale)
    usual = {c: c.removesuffix("_with") for c in pairs if c.endswith("_with")}
    both = pd.concat([pairs, pairs.drop(columns=list(usual.values())).rename(columns=usual)], ignore_index=True)
    if waiting := unfinished(both):
        return waiting
    if (pairs["resample"] == pairs["resample_with"]).all():
        return stated(NOT_TESTED, "no run of this scale resamples", pairs)
    some = pairs[pairs["dead_fraction"] >= FEW_DEAD]
    said = LINE.join(f"{r.site} {r.layer}, {r.arch}, {count(r.tokens)}, lambda {r.lam:g}: {r.dead_fraction_with:.1%} "
                     f"dead with, {r.dead_fraction:.1%} without, L0 {r.l0_with:.3g} and {r.l0:.3g}"
                     for r in (some if len(some) else pairs).sort_values(["site", "layer", "arch", "tokens", "lam"])
                     .itertuples())  # fmt: skip
    if 0 < len(some) < len(pairs):
        said += f"{LINE}fewer than {FEW_DEAD:.0%} are dead without it in {len(pairs) - len(some)} other pairs"
    if some.empty:
        nothing = "hardly a latent is dead without it, so there is nothing to revive"
        return stated(NOT_TESTED, f"{nothing}: {said}", pairs, nothing)
    fewer = some["dead_fraction_with"] < some["dead_fraction"] - FEWER_DEAD
    brief = f"fewer in {fewer.sum()} of {len(fewer)} pairs that had some"
    verdict = graded(fewer.all(), some["arch"].nunique() > 1, some["seed"].nunique() > 1)
    return stated(verdict, said, pairs, brief)
