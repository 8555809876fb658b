"""The judge of the known dictionary, ours. No torch at import."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats as distributions

from gsae.evidence import result_files
from gsae.evidence.verdict import NOT_RUN, Verdict, inside, rests_on, together
from gsae.experiments import follow_ups, sweeps

NEAR_SLOPE, NEAR_GAMMA = 0.05, 0.02  # of 1, in the known dictionary


def over_seeds(values: pd.Series) -> dict[str, float]:
    """A mean with its interval over seeds, in the form of gsae.evidence.metrics.by_seed; there is no evaluation text
    here.
    """
    low, high = distributions.t.interval(0.95, len(values) - 1, values.mean(), values.sem()) if len(values) > 1 else (
        np.nan, np.nan)  # fmt: skip
    return {"estimate": values.mean(), "low": low, "high": high, "t_low": low, "t_high": high}


def known_dictionary(scale: str) -> Verdict:
    """Ours: gated gamma and slope near 1, its cosine at least the baseline's, the baseline's slope below 1."""
    from gsae.experiments import run_known_dictionary  # needs torch, to say which results there should be

    at = sweeps.scale(scale)
    wanted = run_known_dictionary.grid(at)
    missing = follow_ups.missing(run_known_dictionary.EXPERIMENT, wanted, at)
    df = result_files.load(run_known_dictionary.EXPERIMENT, at)
    df = df[df["status"] == "done"]
    recipe = result_files.recipe(run_known_dictionary.EXPERIMENT)
    absent = [
        of | {"id": result_files.result_id(run_known_dictionary.EXPERIMENT, of, recipe), "status": "missing"}
        for of in missing
    ]
    rests_on(pd.concat([df, pd.DataFrame(absent)], ignore_index=True).assign(scale=at))
    if missing:
        return Verdict(NOT_RUN, f"{len(wanted) - len(missing)} of {len(wanted)} results on record")
    columns = ["gamma", "slope", "cosine"]
    gated, baseline = (df[df["arch"] == a].groupby("seed")[columns].mean() for a in ("gated", "baseline"))
    found: Mapping[str, tuple[dict, tuple]] = {
        "gated gamma": (over_seeds(gated["gamma"]), (1 - NEAR_GAMMA, 1 + NEAR_GAMMA)),
        "gated slope": (over_seeds(gated["slope"]), (1 - NEAR_SLOPE, 1 + NEAR_SLOPE)),
        "baseline slope": (over_seeds(baseline["slope"]), (-np.inf, 1)),
        "cosine, gated less baseline": (over_seeds(gated["cosine"] - baseline["cosine"]), (0, np.inf)),
    }
    bounds = lambda one: f" [{one['low']:.3f}, {one['high']:.3f}]" if len(gated) > 1 else ""  # noqa: E731
    said = "; ".join(f"{name} {one['estimate']:.3f}{bounds(one)}" for name, (one, _) in found.items())
    verdict = together([inside(one, *limits) for one, limits in found.values()])
    seeds = f"{len(gated)} seeds" if len(gated) > 1 else "single seed"
    return Verdict(verdict, f"{said}; scale {at}, {seeds}, {len(df)} results", said, f"{at}, {seeds}")
