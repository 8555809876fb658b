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


def log_ratio(gated: Sequence[dict], baseline: Sequence[dict], levels: int = 5) -> float:
    """Mean log ratio of L0, gated to baseline, at equal 1 - loss recovered; NaN without a shared range.

    log L0 is interpolated against log(1 - loss recovered) on each arm's envelope, without extrapolation, at `levels`
    equally spaced over the shared range. Below 0 the gated SAE needs fewer latents.
    """
    arms = []
    for arm in (gated, baseline):
        l0, loss = envelope(np.array([r["l0"] for r in arm]), 1 - np.array([r["loss_recovered"] for r in arm]))
        if len(l0) < 2:
            return np.nan
        arms.append((np.log(loss)[::-1], np.log(l0)[::-1]))  # np.interp wants a rising x
    low, high = max(a[0][0] for a in arms), min(a[0][-1] for a in arms)
    if not low < high:
        return np.nan
    at = np.linspace(low, high, levels)
    return float(np.mean(np.interp(at, *arms[0]) - np.interp(at, *arms[1])))


def compare_frontiers(gated: pd.DataFrame, baseline: pd.DataFrame, draws: int = 1000, level: float = 0.95) -> dict:
    """L0 of the gated frontier over the baseline's at equal loss recovered, with both published intervals.

    Returns:
        `ratio`; `low, high` by paired bootstrap over groups of text (averaged over seeds inside each draw);
        `t_low, t_high` over seeds (NaN with one seed); `seeds`; `delta_ce_ratio`, baseline over gated at equal L0.
        `ratio` is NaN when no seed has a shared range.
    """
    seeds = sorted(set(gated["seed"]) & set(baseline["seed"]))
    arms = [(gated[gated["seed"] == s], baseline[baseline["seed"] == s]) for s in seeds]
    runs = [sums for pair in arms for arm in pair for sums in arm["sums"]]
    sizes = [(len(g), len(b)) for g, b in arms]

    def statistic(rows: list[dict]) -> float:
        found, start = [], 0
        for g, b in sizes:
            found.append(log_ratio(rows[start : start + g], rows[start + g : start + g + b]))
            start += g + b
        return float(np.mean(found)) if found else np.nan

    if not runs:
        return {"ratio": np.nan, "low": np.nan, "high": np.nan, "t_low": np.nan, "t_high": np.nan, "seeds": 0}
    estimate, low, high = bootstrap(runs, statistic, draws, level=level)
    each = [log_ratio(g.to_dict("records"), b.to_dict("records")) for g, b in arms]
    t_low = t_high = np.nan
    if len(each) > 1 and np.isfinite(each).all():
        t_low, t_high = distributions.t.interval(level, len(each) - 1, np.mean(each), distributions.sem(each))
    logs = {"ratio": estimate, "low": low, "high": high, "t_low": t_low, "t_high": t_high}
    return {**{k: float(np.exp(v)) for k, v in logs.items()}, "seeds": len(seeds)}
