"""Intervals: a bootstrap over groups of evaluation text, joint for all runs, and Student's t over
seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import numpy as np
import pandas as pd
from scipy import stats as distributions

from gsae.evidence.metrics import SumsByGroup, ratios


def resamples(groups: int, draws: int, seed: int) -> np.ndarray:
    """How often each group is drawn in each bootstrap sample, `(groups, draws)`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).T.astype(float)


def arrays(sums: SumsByGroup) -> dict[str, np.ndarray]:
    return {name: np.asarray(groups, float) for name, groups in sums.items()}


def resampled(sums: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of a run in each bootstrap sample, `(draws,)` each."""
    # One last axis of length 1, over which `ratios` sums.
    return ratios({name: (groups @ weights)[:, None] for name, groups in sums.items()})


def at_draw(metrics: Mapping[str, np.ndarray], draw: int) -> dict[str, float]:
    """The metrics of a run in one bootstrap sample."""
    return {name: values[draw] for name, values in metrics.items()}


def ends(level: float) -> list[float]:
    """The two quantiles between which a share `level` of the draws lies."""
    return [(1 - level) / 2, (1 + level) / 2]


def bootstrap(
    runs: Sequence[SumsByGroup],
    statistic: Callable[[list[dict]], float],
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """A statistic of several runs' metrics with its percentile interval; all runs resample the same
    groups jointly.

    Args:
        runs: the sums of each run, `(groups,)` each.
        statistic: takes one dict of metrics a run, in the same order.

    Returns:
        Estimate, lower and upper bound; bounds are NaN when fewer than 90 % of the draws are
        defined.
    """
    runs = [arrays(sums) for sums in runs]
    groups = {len(values) for sums in runs for values in sums.values()}
    if len(groups) != 1:
        raise ValueError(
            f"runs to resample together need the same groups of text, got {sorted(groups)}"
        )
    weights = resamples(groups.pop(), draws, seed)
    drawn = [resampled(sums, weights) for sums in runs]
    values = np.empty(draws)
    for draw in range(draws):
        values[draw] = statistic([at_draw(run, draw) for run in drawn])
    estimate = statistic([ratios(sums) for sums in runs])
    kept = values[np.isfinite(values)]
    if len(kept) < 0.9 * draws:
        return float(estimate), np.nan, np.nan
    low, high = np.quantile(kept, ends(level))
    return float(estimate), float(low), float(high)


def intervals(
    df: pd.DataFrame, metrics: Sequence[str], draws: int = 500, level: float = 0.95
) -> pd.DataFrame:
    """Lower and upper bootstrap bounds of metrics, row by row: columns `<metric>_low`,
    `<metric>_high`.
    """
    rows = []
    for sums in df["sums"]:
        row: dict[str, float] = {}
        if isinstance(sums, Mapping):  # else the run is missing
            weights = resamples(len(sums["tokens"]), draws, 0)
            drawn = resampled(arrays(sums), weights)
            for name in metrics:
                if name in drawn:
                    low, high = np.nanquantile(drawn[name], ends(level))
                    row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows, index=df.index)


def over_seeds(values: Sequence[float] | pd.Series, level: float) -> tuple[float, float]:
    """Student's t interval of one value a seed; NaN with one seed, or where one is undefined."""
    if len(values) < 2 or not np.isfinite(values).all():
        return np.nan, np.nan
    spread = distributions.sem(values)
    low, high = distributions.t.interval(level, len(values) - 1, np.mean(values), spread)
    return float(low), float(high)


def of_one_seed(arms: Sequence[pd.DataFrame], seed: int) -> list[pd.DataFrame]:
    return [arm[arm["seed"] == seed] for arm in arms]


def records(arm: pd.DataFrame) -> list[dict]:
    return arm.to_dict("records")


def by_seed(
    arms: Sequence[pd.DataFrame],
    statistic: Callable[..., float],
    draws: int = 1000,
    level: float = 0.95,
) -> dict[str, float]:
    """A statistic of several arms, averaged over the seeds that all have, with both published
    intervals.

    Args:
        arms: tables with `seed` and `sums`.
        statistic: takes one list of metrics an arm, all of one seed; NaN where it is undefined.

    Returns:
        `estimate`; `low, high` by paired bootstrap over groups of text, averaged over seeds inside
        each draw; `t_low, t_high` over seeds (NaN with one seed); `seeds`.
    """
    seeds = sorted(set.intersection(*(set(arm["seed"]) for arm in arms)))
    parts = [of_one_seed(arms, seed) for seed in seeds]
    nothing = dict.fromkeys(("estimate", "low", "high", "t_low", "t_high"), np.nan)
    runs = [sums for of_seed in parts for arm in of_seed for sums in arm["sums"]]
    if not runs:
        return nothing | {"seeds": len(seeds)}

    def mean_over_seeds(metrics: list[dict]) -> float:
        """Of the metrics of all runs, in the order of `runs`: seed by seed, arm by arm."""
        left = iter(metrics)
        values = []
        for of_seed in parts:
            values.append(statistic(*[list(islice(left, len(arm))) for arm in of_seed]))
        return float(np.mean(values))

    estimate, low, high = bootstrap(runs, mean_over_seeds, draws, level=level)
    each = [statistic(*map(records, of_seed)) for of_seed in parts]
    t_low, t_high = over_seeds(each, level)
    return {
        "estimate": estimate,
        "low": low,
        "high": high,
        "t_low": t_low,
        "t_high": t_high,
        "seeds": len(seeds),
    }
