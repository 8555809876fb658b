"""Numbers from recorded sums: ratios divided once, intervals over groups of text, and frontiers compared. No torch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats as distributions

Sums = Mapping[str, np.ndarray | list]


def divide(a, b) -> np.ndarray:
    """`a / b`, NaN where `b` is 0."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)


def ratios(sums: Sums) -> dict:
    """Metrics from sums over groups of text, `(…, groups)`: summed over the last axis, then divided once.

    `l0` latents a token; `fvu` and `mse` in units where inputs have unit mean squared norm; `gamma` (Eq. 10) and
    `gamma_centred`, the same about the mean; cross-entropies in nats a token; `loss_recovered` (Eq. 5) against zero
    ablation, `loss_recovered_mean` against mean ablation; `delta_ce` = ce_sae - ce_clean. Metrics whose sums are
    not there are left out. Plain floats for one-dimensional sums.
    """
    s = {k: np.asarray(v, float).sum(-1) for k, v in sums.items()}
    out = {
        "l0": divide(s["l0"], s["tokens"]),
        "mse": divide(s["error"], s["tokens"]),
        "fvu": divide(s["error"], s["xc_sq"]),
        "gamma": divide(s["x_hat_sq"], s["x_dot"]),  # Eq. 10
        "gamma_centred": divide(s["x_hatc_sq"], s["xc_dot"]),
        "eval_tokens": s["tokens"],
    }
    if "ce_tokens" in s:
        ce = {k: divide(s[f"ce_{k}"], s["ce_tokens"]) for k in ("clean", "zero", "mean", "sae")}
        out |= {f"ce_{k}": v for k, v in ce.items()}
        out["delta_ce"] = ce["sae"] - ce["clean"]
        out["loss_recovered"] = 1 - divide(out["delta_ce"], ce["zero"] - ce["clean"])  # Eq. 5
        out["loss_recovered_mean"] = 1 - divide(out["delta_ce"], ce["mean"] - ce["clean"])
        out["ce_tokens"] = s["ce_tokens"]
    return {k: float(v) if np.ndim(v) == 0 else v for k, v in out.items()}


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
    """A statistic of several runs' metrics with its percentile interval; all runs resample the same groups jointly.

    Args:
        runs: the sums of each run, `(groups,)` each.
        statistic: takes one dict of metrics a run, in the same order.

    Returns:
        Estimate, lower and upper bound; bounds are NaN when fewer than 90 % of the draws are defined.
    """
    runs = [{k: np.asarray(v, float) for k, v in r.items()} for r in runs]
    groups = {len(v) for r in runs for v in r.values()}
    if len(groups) != 1:
        raise ValueError(f"runs to resample together need the same groups of text, got {sorted(groups)}")
    weights = resamples(groups.pop(), draws, seed)
    drawn = [ratios({k: (v @ weights)[:, None] for k, v in r.items()}) for r in runs]
    values = np.array([statistic([{k: v[i] for k, v in r.items()} for r in drawn]) for i in range(draws)])
    estimate = statistic([ratios(r) for r in runs])
    kept = values[np.isfinite(values)]
    if len(kept) < 0.9 * draws:
        return float(estimate), np.nan, np.nan
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(estimate), float(low), float(high)


def intervals(df: pd.DataFrame, metrics: Sequence[str], draws: int = 500, level: float = 0.95) -> pd.DataFrame:
    """Lower and upper bootstrap bounds of metrics, row by row: columns `<metric>_low`, `<metric>_high`."""
    rows = []
    for sums in df["sums"]:
        if not isinstance(sums, Mapping):
            rows.append({})
            continue
        arrays = {k: np.asarray(v, float) for k, v in sums.items()}
        weights = resamples(len(arrays["tokens"]), draws, 0)
        drawn = ratios({k: (v @ weights)[:, None] for k, v in arrays.items()})
        bounds = {m: np.nanquantile(drawn[m], [(1 - level) / 2, (1 + level) / 2]) for m in metrics if m in drawn}
        rows.append(
            {f"{m}_{side}": b for m, pair in bounds.items() for side, b in zip(("low", "high"), pair, strict=True)}
        )
    return pd.DataFrame(rows, index=df.index)


def envelope(l0: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Pareto-optimal points, by rising L0: no other point has both a lower L0 and a lower loss."""
    order = np.lexsort((loss, l0))
    l0, loss = np.asarray(l0, float)[order], np.asarray(loss, float)[order]
    best = np.minimum.accumulate(np.concatenate([[np.inf], loss[:-1]]))
    keep = (loss < best) & (l0 > 0) & (loss > 0)
    return l0[keep], loss[keep]


def shared(arms: Sequence[tuple[np.ndarray, np.ndarray]], levels: int) -> list[np.ndarray] | None:
    """Each arm's y, interpolated at `levels` points equally spaced over the range of x that all share.

    Arms are pairs of a rising x and its y. None where an arm has fewer than two points or no range is shared: nothing
    is extrapolated.
    """
    if min(len(x) for x, _ in arms) < 2:
        return None
    low, high = max(x[0] for x, _ in arms), min(x[-1] for x, _ in arms)
    return [np.interp(np.linspace(low, high, levels), x, y) for x, y in arms] if low < high else None


def unrecovered(run: Mapping) -> float:
    return 1 - run["loss_recovered"]


def unexplained(run: Mapping) -> float:
    return run["fvu"]


def log_ratio(
    gated: Sequence[dict],
    baseline: Sequence[dict],
    *others: Sequence[dict],
    levels: int = 5,
    lost: Callable = unrecovered,
    over_levels: Callable = np.mean,
) -> float:
    """Mean log ratio of L0, gated to baseline, at equal 1 - loss recovered or other loss; NaN without a shared range.

    log L0 is interpolated against log(1 - loss recovered) on each arm's envelope, without extrapolation, at `levels`
    equally spaced over the shared range. Below 0 the gated SAE needs fewer latents. With `over_levels=np.max` the
    level that favours it least. `others` have to share the range as well: so pairs are compared on common levels.
    """
    arms = []
    for arm in (gated, baseline, *others):
        l0, loss = envelope(np.array([r["l0"] for r in arm]), np.array([lost(r) for r in arm]))
        arms.append((np.log(loss)[::-1], np.log(l0)[::-1]))  # x has to rise
    found = shared(arms, levels)
    return float(over_levels(found[0] - found[1])) if found else np.nan


def log_losses(arms: Sequence[Sequence[dict]], levels: int = 5) -> list[np.ndarray] | None:
    """Each arm's log delta CE at equal L0, interpolated as `log_ratio` does it, with the axes exchanged."""
    fronts = [envelope(np.array([r["l0"] for r in arm]), np.array([r["delta_ce"] for r in arm])) for arm in arms]
    return shared([(np.log(l0), np.log(loss)) for l0, loss in fronts], levels)


def log_loss_ratio(arm: Sequence[dict], reference: Sequence[dict], levels: int = 5) -> float:
    """Mean log ratio of delta CE, arm to reference, at equal L0; above 0 the arm loses more."""
    found = log_losses((arm, reference), levels)
    return float(np.mean(found[0] - found[1])) if found else np.nan


def gap_closed(
    repaired: Sequence[dict], baseline: Sequence[dict], gated: Sequence[dict], levels: int = 5, log: bool = False
) -> float:
    """Share of the gap in loss recovered, baseline to gated, that a repaired baseline closes at equal L0 (Fig. 9).

    1 is all of it. In nats, so that the sparse end, where most is lost, weighs most; or in the logarithm of what is
    lost, in which all levels weigh alike. NaN without a shared range, or where the gated frontier is not above.
    """
    found = log_losses((repaired, baseline, gated), levels)
    if not found:
        return np.nan
    left, before, best = ((v if log else np.exp(v)).mean() for v in found)  # delta CE ~ 1 - loss recovered
    return float((before - left) / (before - best)) if before > best else np.nan


def by_seed(
    arms: Sequence[pd.DataFrame],
    statistic: Callable[..., float],
    draws: int = 1000,
    level: float = 0.95,
) -> dict[str, float]:
    """A statistic of several arms, averaged over the seeds that all have, with both published intervals.

    Args:
        arms: tables with `seed` and `sums`.
        statistic: takes one list of metrics an arm, all of one seed; NaN where it is undefined.

    Returns:
        `estimate`; `low, high` by paired bootstrap over groups of text, averaged over seeds inside each draw;
        `t_low, t_high` over seeds (NaN with one seed); `seeds`.
    """
    seeds = sorted(set.intersection(*(set(arm["seed"]) for arm in arms)))
    parts = [[arm[arm["seed"] == seed] for arm in arms] for seed in seeds]
    runs = [sums for of_seed in parts for arm in of_seed for sums in arm["sums"]]
    sizes = [list(map(len, of_seed)) for of_seed in parts]

    def mean(rows: list[dict]) -> float:
        left = iter(rows)
        return float(np.mean([statistic(*([next(left) for _ in range(n)] for n in of_seed)) for of_seed in sizes]))

    out = dict.fromkeys(("estimate", "low", "high", "t_low", "t_high"), np.nan) | {"seeds": len(seeds)}
    if not runs:
        return out
    out |= dict(zip(("estimate", "low", "high"), bootstrap(runs, mean, draws, level=level), strict=True))
    each = [statistic(*(arm.to_dict("records") for arm in of_seed)) for of_seed in parts]
    if len(each) > 1 and np.isfinite(each).all():
        bounds = distributions.t.interval(level, len(each) - 1, np.mean(each), distributions.sem(each))
        out |= dict(zip(("t_low", "t_high"), map(float, bounds), strict=True))
    return out


def recovered(arm: Sequence[dict], reference: Sequence[dict], levels: int = 5) -> float:
    """Mean difference in loss recovered, arm less reference, at equal L0 over the shared range.

    Linear where `log_loss_ratio` is logarithmic: defined also where a run recovers all of the loss, or more by chance.
    """
    fronts = [  # from 2: no loss is negative, so that `envelope` leaves no run out
        envelope(np.array([r["l0"] for r in one]), 2 - np.array([r["loss_recovered"] for r in one]))
        for one in (arm, reference)
    ]
    found = shared([(np.log(l0), -loss) for l0, loss in fronts], levels)
    return float(np.mean(found[0] - found[1])) if found else np.nan
