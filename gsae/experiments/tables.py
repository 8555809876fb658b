"""Runs and results under the name of their series: what a figure draws and a verdict compares. No
torch.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import pandas as pd

from gsae.evidence import frontiers as front
from gsae.evidence import intervals, run, run_files
from gsae.evidence.arms import BOTH, GATED, PRUNED, RESCALED, SAME, UNREVIVED, WIDE, named
from gsae.evidence.verdict import count, interval
from gsae.experiments import follow_ups, records

PLACE = ["lm", "site", "layer", "tokens"]


def ablations(scale: str | None = None) -> pd.DataFrame:
    """The runs of Fig. 8 and the further arms."""
    return named(records.load("ablations", scale))


def control(row) -> str:
    """The series of a control, with what pruning was allowed to cost."""
    name = {"rescale_shift": RESCALED, "pruned": PRUNED, "pruned_rescale_shift": BOTH}[row.control]
    return f"{name} ({row.increase:.0%})" if row.increase else name


def parent(row, experiment: str) -> str:
    """What the name of a control's series begins with, where it was not computed from the
    same-width baseline.
    """
    return (
        f"{GATED}, "
        if row.arch == "gated"
        else f"{WIDE}, "
        if experiment == follow_ups.RUNS
        else ""
    )


def controls(experiment: str, scale: str | None = None) -> pd.DataFrame:
    """The controls of an experiment's runs, with the column `series`."""
    df = follow_ups.table(follow_ups.CONTROLS, experiment, scale)
    return df.assign(series=[parent(row, experiment) + control(row) for row in df.itertuples()])


def repaired(scale: str | None = None) -> pd.DataFrame:
    """Fig. 9: baselines of the gated width, the same repaired, and the Gated SAE of the same
    seeds.
    """
    at = run.scale(scale)
    gated, same = (
        named(records.load(follow_ups.RUNS, at)),
        records.load("same_width", at).assign(series=SAME),
    )
    gated = gated[(gated["series"] == GATED) & gated["seed"].isin(same["seed"])]
    return pd.concat([same, controls("same_width", at), gated], ignore_index=True)


def pruned(scale: str | None = None) -> pd.DataFrame:
    """Gated and 1.5 times wider baseline runs, as trained and with small activations pruned."""
    at = run.scale(scale)
    return pd.concat(
        [named(records.load(follow_ups.RUNS, at)), controls(follow_ups.RUNS, at)], ignore_index=True
    )


def pursuits(scale: str | None = None, experiment: str = follow_ups.RUNS) -> pd.DataFrame:
    """Figs 10, 11: the encoders' codes (`s` is 0) and pursuit with `s` latents, of the runs of an
    experiment; `l0_run` is the training run's L0 on its whole evaluation set.
    """
    df = follow_ups.table(follow_ups.ITO, experiment, scale)
    df = named(df.assign(pursuit_tokens=df["tokens"], tokens=df["tokens_run"]))
    return df.assign(series=SAME) if experiment == "same_width" else df


def resampled(scale: str | None = None) -> pd.DataFrame:
    """Runs without resampling beside the same with it, whose columns have the suffix `_with`
    (Appendix D).
    """
    at = run.scale(scale)
    usual = pd.concat(
        [records.load(name, at) for name in ("seeds", "sites", "first_pass")]
    ).drop_duplicates("id")
    keys = [*PLACE, "arch", "lam", "seed"]
    return records.load("resampling", at).merge(usual, "left", on=keys, suffixes=("", "_with"))


def streams(scale: str | None = None) -> pd.DataFrame:
    """The residual streams of `sites`, first seed, with resampling and without (D8), with the
    column `series`.
    """
    usual, without = (
        named(records.load(name, run.scale(scale))) for name in ("sites", "resampling")
    )
    usual = usual[(usual["site"] == "resid_post") & (usual["seed"] == 0)]
    without = without[(without["site"] == "resid_post") & without["tokens"].isin(usual["tokens"])]
    return pd.concat(
        [usual, without.assign(series=without["series"] + UNREVIVED)], ignore_index=True
    )


def frontiers(df: pd.DataFrame) -> pd.DataFrame:
    """Each place's gated frontier against each of its baselines of equal tokens, a row a pair: L0
    ratio at equal loss recovered and at equal FVU, the baseline's delta CE over the gated's and the
    difference in loss recovered at equal L0, each with its interval over text and, where there are
    several, over seeds. `df` has the column `series`.
    """
    by_error = partial(front.log_ratio, lost=front.unexplained)
    rows = {}
    for place, of in run_files.done(df).groupby(PLACE):
        gated = of[of["series"] == GATED]
        for name in (WIDE, SAME):
            baseline = of[of["series"] == name]
            if len(gated) and len(baseline):
                rows[*place, name] = {
                    "L0 ratio": interval(
                        intervals.by_seed((gated, baseline), front.log_ratio), exp=True
                    ),
                    "L0 ratio, equal FVU": interval(
                        intervals.by_seed((gated, baseline), by_error), exp=True
                    ),
                    "delta CE ratio": interval(
                        intervals.by_seed((baseline, gated), front.log_loss_ratio), exp=True
                    ),
                    "more recovered": interval(
                        intervals.by_seed((gated, baseline), front.recovered), 3
                    ),
                }
    return pd.DataFrame(rows).T.rename_axis([*PLACE, "against"] if rows else None)


def by_tokens(df: pd.DataFrame) -> pd.DataFrame:
    """The L0 ratio of each place trained on several numbers of tokens, on the levels of loss
    recovered that all its frontiers share: what more training does to it. Gated against the 1.5
    times wider baseline, a column a number.
    """
    rows = {}
    for place, of in run_files.done(df).groupby(PLACE[:3]):
        found = {
            key: rows for key, rows in of.groupby(["tokens", "series"]) if key[1] in (GATED, WIDE)
        }
        pairs = {
            t: [found[t, GATED], found[t, WIDE]]
            for t, name in found
            if name == GATED and (t, WIDE) in found
        }
        for tokens, pair in pairs.items() if len(pairs) > 1 else ():
            others = [arm for t, arms in pairs.items() if t != tokens for arm in arms]
            ratio = interval(intervals.by_seed([*pair, *others], front.log_ratio), exp=True)
            rows.setdefault(place, {})[tokens] = ratio
    table = (
        pd.DataFrame(rows)
        .T.sort_index(axis="columns")
        .rename_axis(PLACE[:3] if rows else None)
        .fillna("")
    )
    return table.rename(columns=lambda tokens: f"{count(tokens)} tokens")


def against(df: pd.DataFrame, names: Iterable[str], reference: str = GATED) -> pd.DataFrame:
    """Delta CE of named series over a reference's at equal L0, a row each, with both intervals (not
    their logs).

    NaN where no range of L0 is shared or where a run of the two is missing; `seeds` says over how
    many seeds.
    """
    rows = []
    for name in names:
        pair = [df[df["series"] == one] for one in (name, reference)]
        whole = all(len(one) and (one["status"] != "missing").all() for one in pair)
        found = intervals.by_seed(
            pair if whole else [one.iloc[:0] for one in pair], front.log_loss_ratio
        )
        rows.append(
            {"series": name, **{k: v if k == "seeds" else np.exp(v) for k, v in found.items()}}
        )
    return pd.DataFrame(rows)
