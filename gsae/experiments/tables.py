"""Runs and results under the name of their series: what a figure draws and a verdict compares. No
torch.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import pandas as pd

from gsae.evidence import intervals, run_files
from gsae.evidence.arms import BOTH, GATED, PRUNED, RESCALED, SAME, UNREVIVED, WIDE, named
from gsae.evidence.frontiers import log_loss_ratio, log_ratio, recovered, unexplained
from gsae.evidence.verdict import count, interval, unfinished
from gsae.experiments import follow_ups, records, sweeps

PLACE = ["lm", "site", "layer", "tokens"]
CONTROL_SERIES = {"rescale_shift": RESCALED, "pruned": PRUNED, "pruned_rescale_shift": BOTH}


def ablation_runs(scale: str | None = None) -> pd.DataFrame:
    """The runs of Fig. 8 and the further arms."""
    return named(records.load("ablations", scale))


def control_series(row, experiment: str) -> str:
    """The series of a control: what it was computed from, unless that is the same-width baseline,
    and what pruning was allowed to cost.
    """
    series = CONTROL_SERIES[row.control]
    if row.increase:
        series = f"{series} ({row.increase:.0%})"
    if row.arch == "gated":
        return f"{GATED}, {series}"
    if experiment == follow_ups.RUNS:
        return f"{WIDE}, {series}"
    return series


def controls(experiment: str, scale: str | None = None) -> pd.DataFrame:
    """The controls of an experiment's runs, with the column `series`."""
    df = follow_ups.table(follow_ups.CONTROLS, experiment, scale)
    return df.assign(series=[control_series(row, experiment) for row in df.itertuples()])


def repaired(scale: str | None = None) -> pd.DataFrame:
    """Fig. 9: baselines of the gated width, the same repaired, and the Gated SAE of the same
    seeds.
    """
    scale = sweeps.scale(scale)
    same = records.load("same_width", scale).assign(series=SAME)
    runs = named(records.load(follow_ups.RUNS, scale))
    gated = runs[(runs["series"] == GATED) & runs["seed"].isin(same["seed"])]
    return pd.concat([same, controls("same_width", scale), gated], ignore_index=True)


def pruned(scale: str | None = None) -> pd.DataFrame:
    """Gated and 1.5 times wider baseline runs, as trained and with small activations pruned."""
    scale = sweeps.scale(scale)
    trained = named(records.load(follow_ups.RUNS, scale))
    return pd.concat([trained, controls(follow_ups.RUNS, scale)], ignore_index=True)


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
    scale = sweeps.scale(scale)
    experiments = [records.load(name, scale) for name in ("seeds", "sites", "first_pass")]
    usual = pd.concat(experiments).drop_duplicates("id")
    keys = [*PLACE, "arch", "lam", "seed"]
    without = records.load("resampling", scale)
    return without.merge(usual, "left", on=keys, suffixes=("", "_with"))


def residual_streams(scale: str | None = None) -> pd.DataFrame:
    """The residual streams of `sites`, first seed, with resampling and without (D8), with the
    column `series`.
    """
    scale = sweeps.scale(scale)
    usual = named(records.load("sites", scale))
    usual = usual[(usual["site"] == "resid_post") & (usual["seed"] == 0)]
    without = named(records.load("resampling", scale))
    without = without[(without["site"] == "resid_post") & without["tokens"].isin(usual["tokens"])]
    without = without.assign(series=without["series"] + UNREVIVED)
    return pd.concat([usual, without], ignore_index=True)


def frontiers(df: pd.DataFrame) -> pd.DataFrame:
    """Each place's gated frontier against each of its baselines of equal tokens, a row a pair: L0
    ratio at equal loss recovered and at equal FVU, the baseline's delta CE over the gated's and the
    difference in loss recovered at equal L0, each with its interval over text and, where there are
    several, over seeds. `df` has the column `series`.
    """
    rows = {}
    for place, runs in run_files.done(df).groupby(PLACE):
        gated = runs[runs["series"] == GATED]
        for name in (WIDE, SAME):
            baseline = runs[runs["series"] == name]
            if len(gated) and len(baseline):
                rows[*place, name] = comparison(gated, baseline)
    return pd.DataFrame(rows).T.rename_axis([*PLACE, "against"] if rows else None)


def comparison(gated: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, str]:
    """One row of `frontiers`."""
    log_ratio_by_error = partial(log_ratio, lost=unexplained)
    ratio = intervals.by_seed((gated, baseline), log_ratio)
    ratio_by_error = intervals.by_seed((gated, baseline), log_ratio_by_error)
    loss_ratio = intervals.by_seed((baseline, gated), log_loss_ratio)
    more_recovered = intervals.by_seed((gated, baseline), recovered)
    return {
        "L0 ratio": interval(ratio, exp=True),
        "L0 ratio, equal FVU": interval(ratio_by_error, exp=True),
        "delta CE ratio": interval(loss_ratio, exp=True),
        "more recovered": interval(more_recovered, 3),
    }


def by_tokens(df: pd.DataFrame) -> pd.DataFrame:
    """The L0 ratio of each place trained on several numbers of tokens, on the levels of loss
    recovered that all its frontiers share: what more training does to it. Gated against the 1.5
    times wider baseline, a column a number.
    """
    rows = {}
    for place, runs in run_files.done(df).groupby(PLACE[:3]):
        pairs = pairs_by_tokens(runs)
        if len(pairs) < 2:
            continue
        rows[place] = {}
        for tokens, pair in pairs.items():
            # Frontiers of other numbers of tokens narrow the levels that are compared.
            others = [arm for number in pairs if number != tokens for arm in pairs[number]]
            ratio = intervals.by_seed([*pair, *others], log_ratio)
            rows[place][tokens] = interval(ratio, exp=True)
    table = pd.DataFrame(rows).T.sort_index(axis="columns")
    table = table.rename_axis(PLACE[:3] if rows else None).fillna("")
    return table.rename(columns=lambda tokens: f"{count(tokens)} tokens")


def pairs_by_tokens(runs: pd.DataFrame) -> dict[int, list[pd.DataFrame]]:
    """Number of tokens -> gated and wider baseline runs of one place, where it has both."""
    arms = dict(list(runs.groupby(["tokens", "series"])))
    return {
        tokens: [arms[tokens, GATED], arms[tokens, WIDE]]
        for tokens, series in arms
        if series == GATED and (tokens, WIDE) in arms
    }


def against(df: pd.DataFrame, names: Iterable[str], reference: str = GATED) -> pd.DataFrame:
    """Delta CE of named series over a reference's at equal L0, a row each, with both intervals (not
    their logs).

    NaN where no range of L0 is shared or where a run of the two is missing; `seeds` says over how
    many seeds.
    """
    rows = []
    for name in names:
        pair = [df[df["series"] == series] for series in (name, reference)]
        if any(unfinished(runs) for runs in pair):
            pair = [runs.iloc[:0] for runs in pair]
        logs = intervals.by_seed(pair, log_loss_ratio)
        ratios = {key: value if key == "seeds" else np.exp(value) for key, value in logs.items()}
        rows.append({"series": name, **ratios})
    return pd.DataFrame(rows)
