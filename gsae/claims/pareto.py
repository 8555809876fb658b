"""Judges of the claims about language models: each reads the evidence of a scale and says what it
finds. No torch.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from gsae.evidence import frontiers, intervals
from gsae.evidence.verdict import (
    LINE,
    NOT,
    NOT_RUN,
    NOT_TESTED,
    REPRODUCED,
    Verdict,
    by_cell,
    graded,
    inside,
    interval,
    stated,
    unfinished,  # fmt: skip
)
from gsae.experiments import records

SITES = ("mlp_out", "attn_z", "resid_post")


def arms(df: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return df[df["arch"] == "gated"], df[df["arch"] == "baseline"]


def by_place(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Runs by cell, a site and layer, under its name, with that of the language model where there
    are several.
    """
    several = df["lm"].nunique() > 1
    groups = df.groupby(["lm", "site", "layer"])
    return {f"{f'{lm} ' if several else ''}{site} {layer}": of for (lm, site, layer), of in groups}


def frontier(gated: pd.DataFrame, baseline: pd.DataFrame) -> Verdict:
    """Whether the gated frontier needs fewer latents at equal loss recovered; delta CE at equal L0
    beside it.
    """
    both = pd.concat([gated, baseline])
    if waiting := unfinished(both):
        return waiting
    found = intervals.by_seed((gated, baseline), frontiers.log_ratio)
    if not np.isfinite(found["estimate"]):
        return stated(NOT_TESTED, "no shared range of loss recovered", both)
    loss = intervals.by_seed((baseline, gated), frontiers.log_loss_ratio)
    worst = intervals.by_seed(
        (gated, baseline), partial(frontiers.log_ratio, over_levels=np.max), draws=200
    )
    brief = f"L0 ratio {interval(found, exp=True)}"
    text = (
        f"{brief}, at the least favourable of five levels {interval(worst, exp=True)}; the "
        "baseline's delta CE at "
    )
    text += f"equal L0 {interval(loss, exp=True)} times the gated"
    return stated(
        graded(*inside(found, -np.inf, 0)), text, both, brief, found | {"worst": worst["estimate"]}
    )


def neurons(scale: str) -> Verdict:
    """Fig. 5: by the loss recovered at equal L0. (It was judged by the ratio of L0, as Section 4.1
    is, until the rule was compared with its specification.)
    """
    gated, baseline = arms(records.load("seeds", scale))
    cell = frontier(gated, baseline)
    return cell if cell.verdict == NOT_RUN else recovered(cell, gated, baseline)


def half_the_latents(scale: str) -> Verdict:
    """Section 4.1: the ratio of L0 on the runs of Fig. 5, with a note whether it is at most 0.6."""
    found = frontier(*arms(records.load("seeds", scale)))
    if not found.found:
        return found
    side = "at most" if np.exp(found.found["estimate"]) <= 0.6 else "above"
    return replace(found, ours=f"{side} 0.6: {found.ours}", brief=f"{side} 0.6: {found.brief}")


def sites(scale: str) -> Verdict:
    """Figs 1, 12, 13: a cell is a site and layer; all three sites are needed.

    Attention is judged by the loss recovered, gated less baseline at equal L0: so little loss is at
    stake there that runs which lose none have no place in a ratio. An attention cell whose interval
    over text has 0 inside, or none, is `not tested`: it does not count as better. (The first rule
    took the ratio of L0 there, too. It was changed when gated runs of two million tokens at layer 8
    had lost less than nothing, before their baselines were read.)
    """
    df = records.load("pareto", scale)
    deep = df[df["site"].isin(SITES)]
    groups = by_place(deep)
    cells, ahead = {name: frontier(*arms(of)) for name, of in groups.items()}, 0
    for name, cell in cells.items():
        if cell.verdict != NOT_RUN:
            by_loss, attention = (
                recovered(cell, *arms(groups[name])),
                "attn_z" in set(groups[name]["site"]),
            )
            clear = by_loss.found["more_low"] > 0 or by_loss.found["more_high"] < 0
            if attention:
                cells[name] = by_loss if clear else replace(by_loss, verdict=NOT_TESTED)
            ahead += by_loss.found["more"] > 0 and (clear or not attention)
    text = by_cell(cells, deep)
    there = [set(of["site"]) for _, of in deep.groupby("lm")] or [set()]
    if absent := [
        site for site in SITES if any(site not in sites for sites in there)
    ]:  # of any language model
        missing = f"no runs of {', '.join(absent)}"
        return Verdict(NOT_RUN, f"{missing}{LINE * bool(text)}{text}", missing)
    if waiting := sum(found.verdict == NOT_RUN for found in cells.values()):
        return Verdict(NOT_RUN, text, f"runs are missing in {waiting} of {len(cells)} cells")
    tested = [found.verdict for found in cells.values() if found.verdict != NOT_TESTED]
    if len(tested) < len(cells) - 1:
        return Verdict(
            NOT_TESTED, text, f"a range is shared in {len(tested)} of {len(cells)} cells"
        )
    lost = tested.count(NOT) + len(cells) - len(tested)
    ratios = [cell.found for cell in cells.values() if np.isfinite(cell.found.get("low", np.nan))]
    ratios.sort(key=lambda found: found["estimate"])
    ends = (
        " to ".join(interval(found, exp=True) for found in ratios[:: max(1, len(ratios) - 1)])
        or "without interval"
    )
    everywhere = sum(cell.found.get("worst", 0) < 0 for cell in cells.values())
    brief = (
        f"better in {len(cells) - lost} of {len(cells)} cells, in {ahead} by loss recovered "
        "alone, at each of five "
    )
    brief += f"levels in {everywhere}; L0 ratio {ends}"
    verdict = graded(lost <= 1, *2 * [len(cells) - tested.count(REPRODUCED) <= 1])
    return stated(verdict, text, deep, brief)


def recovered(cell: Verdict, gated: pd.DataFrame, baseline: pd.DataFrame) -> Verdict:
    """A comparison of frontiers judged by the difference in loss recovered at equal L0, the ratio
    of L0 beside it; `not tested` where no range of L0 is shared.
    """
    more = intervals.by_seed((gated, baseline), frontiers.recovered)
    known = np.isfinite(more["estimate"])
    said = (
        f"loss recovered {interval(more, 3)} higher at equal L0"
        if known
        else "no shared range of L0"
    )
    found = cell.found | {
        "more": more["estimate"],
        "more_low": more["low"],
        "more_high": more["high"],
    }
    verdict = graded(*inside(more, 0, np.inf)) if known else NOT_TESTED
    return replace(
        cell,
        verdict=verdict,
        ours=f"{said}; {cell.ours}",
        brief=f"{said}; {cell.brief}",
        found=found,
    )
