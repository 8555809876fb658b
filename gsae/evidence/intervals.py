"""Intervals: a bootstrap over groups of evaluation text, joint for all runs, and Student's t over
seeds.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats as distributions

from gsae.evidence.metrics import Sums, ratios


def resamples(groups: int, draws: int, seed: int) -> np.ndarray:
    """How often each group is drawn in each bootstrap sample, `(groups, draws)`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).T.astype(float)


def bootstrap(
    runs: Sequence[Sums],
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
    runs = [{k: np.asarray(v, float) for k, v in r.items()} for r in runs]
    groups = {len(v) for r in runs for v in r.values()}
    if len(groups) != 1:
        raise ValueError(
            f"runs to resample together need the same groups of text, got {sorted(groups)}"
        )
    weights = resamples(groups.pop(), draws, seed)
    drawn = [ratios({k: (v @ weights)[:, None] for k, v in r.items()}) for r in runs]
    values = np.array(
        [statistic([{k: v[i] for k, v in r.items()} for r in drawn]) for i in range(draws)]
    )
    estimate = statistic([ratios(r) for r in runs])
    kept = values[np.isfinite(values)]
    if len(kept) < 0.9 * draws:
        return float(estimate), np.nan, np.nan
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(estimate), float(low), float(high)


def intervals(
    df: pd.DataFrame, metrics: Sequence[str], draws: int = 500, level: float = 0.95
) -> pd.DataFrame:
    """Lower and upper bootstrap bounds of metrics, row by row: columns `<metric>_low`,
    `<metric>_high`.
    """
    rows = []
    for sums in df["sums"]:
        if not isinstance(sums, Mapping):
            rows.append({})
            continue
        arrays = {k: np.asarray(v, float) for k, v in sums.items()}
        weights = resamples(len(arrays["tokens"]), draws, 0)
        drawn = ratios({k: (v @ weights)[:, None] for k, v in arrays.items()})
        bounds = {
            m: np.nanquantile(drawn[m], [(1 - level) / 2, (1 + level) / 2])
            for m in metrics
            if m in drawn
        }
        rows.append(
            {
                f"{m}_{side}": b
                for m, pair in bounds.items()
                for side, b in zip(("low", "high"), pair, strict=True)
            }
        )
    return pd.DataFrame(rows, index=df.index)


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
    parts = [[arm[arm["seed"] == seed] for arm in arms] for seed in seeds]
    runs = [sums for of_seed in parts for arm in of_seed for sums in arm["sums"]]
    sizes = [list(map(len, of_seed)) for of_seed in parts]

    def mean(rows: list[dict]) -> float:
        left = iter(rows)
        return float(
            np.mean(
                [statistic(*([next(left) for _ in range(n)] for n in of_seed)) for of_seed in sizes]
            )
        )

    out = dict.fromkeys(("estimate", "low", "high", "t_low", "t_high"), np.nan) | {
        "seeds": len(seeds)
    }
    if not runs:
        return out
    out |= dict(
        zip(("estimate", "low", "high"), bootstrap(runs, mean, draws, level=level), strict=True)
    )
    each = [statistic(*(arm.to_dict("records") for arm in of_seed)) for of_seed in parts]
    if len(each) > 1 and np.isfinite(each).all():
        bounds = distributions.t.interval(
            level, len(each) - 1, np.mean(each), distributions.sem(each)
        )
        out |= dict(zip(("t_low", "t_high"), map(float, bounds), strict=True))
    return out
