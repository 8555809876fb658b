"""The paper's statistics of paired ratings (section 4.3.2): differences, their intervals and test,
non-inferiority, and power. No torch.

Functions of `ratings` take the joined table of `gsae.interpretability.rating_files.join`: one row a
rating, `label` on the scale No 0, Maybe 1, Yes 2. A *pair* is one latent of each arm, drawn from
the same language model, site and layer; the unit of every test of the arms is the pair, so that
several raters of one pair count once, with their mean.
"""

import warnings

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

SCALE = {"No": 0, "Maybe": 1, "Yes": 2}
# Fixed before any rating: a loss of more than this on the 0-2 scale would count as less
# interpretable.
MARGIN = -0.15
LEVEL = 0.90  # two-sided, so that either bound is a one-sided test at 5 %
# Pairs: bootstrap intervals of fewer such labels cover less than they say (tests), so they decide
# nothing.
LEAST = 20
FEW, NO_INTERVAL = "too few pairs", "no interval"
SILENT = (FEW, NO_INTERVAL)
# Section 4.3.2, all data.
PAPER_EFFECT = 0.13
PAPER_BOUNDS = (0.0, 0.26)
PAPER_P = 0.060
PAPER_PAIRS = 171
CELL = ["lm", "site", "layer"]


def label_differences(ratings: pd.DataFrame, arm: str, reference: str) -> pd.DataFrame:
    """`label` of `arm` minus `reference`: one row for each rater and pair of which the rater saw
    both latents.
    """
    index = ["rater", *CELL, "pair", "replicate", "slot"]
    wide = ratings.pivot_table(index=index, columns="arm", values="label", aggfunc="mean")
    wide = wide.reindex(columns=[arm, reference]).dropna().reset_index()
    return wide.assign(d=wide[arm] - wide[reference])


def interval(values: ArrayLike, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """BCa bootstrap bounds of the mean; NaN for fewer than two values, or equal ones, where BCa is
    not defined.
    """
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return np.nan, np.nan
    with warnings.catch_warnings():  # few distinct values: SciPy warns, and the bounds are NaN
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        bounds = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=level,
            method="BCa",
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(bounds.low), float(bounds.high)


def wilcoxon(d: ArrayLike, alternative: str = "greater") -> float:
    """p of the Wilcoxon-Pratt signed-rank test; 1 where every difference is 0, as any exchange of
    arms gives that.
    """
    d = np.asarray(d, float)
    if not len(d):
        return np.nan
    if not d.any():
        return 1.0
    return float(stats.wilcoxon(d, zero_method="pratt", alternative=alternative).pvalue)


def non_inferiority(low: float, high: float, pairs: int, margin: float = MARGIN) -> str:
    """Non-inferiority in words, from the interval of the mean difference of so many pairs."""
    if pairs < LEAST:
        return FEW
    if np.isnan(low):
        return NO_INTERVAL
    if low > margin:
        return "not inferior"
    return "inferior" if high < margin else "underpowered"


def contrast(d: pd.DataFrame, arm: str, reference: str, test: bool = True) -> dict:
    """Pairs, mean label of each arm and mean difference with intervals, p if `test`,
    non-inferiority.
    """
    pairs = d.groupby("pair")[[arm, reference, "d"]].mean()
    bounds = {column: interval(pairs[column]) for column in pairs}
    return {
        "pairs": len(pairs),
        "mean_arm": pairs[arm].mean(),
        "arm_interval": bounds[arm],
        "mean_reference": pairs[reference].mean(),
        "reference_interval": bounds[reference],
        "difference": pairs["d"].mean(),
        "interval": bounds["d"],
        "sd": pairs["d"].std(),
        "p": wilcoxon(pairs["d"]) if test else np.nan,
        "non_inferiority": non_inferiority(*bounds["d"], len(pairs)),
    }


def contingency(d: pd.DataFrame, arm: str, reference: str) -> list[list[int]]:
    """Counts of ratings (3 x 3): rows the label of `arm`, columns that of `reference`, in the order
    of `SCALE`.
    """
    table = np.zeros((3, 3), int)
    np.add.at(table, (d[arm].astype(int), d[reference].astype(int)), 1)
    return table.tolist()


def implied_sd(low: float, high: float, pairs: int, level: float = LEVEL) -> float:
    """Standard deviation of paired differences behind a published interval of their mean."""
    return float((high - low) / 2 * np.sqrt(pairs) / stats.norm.ppf((1 + level) / 2))


def power(effect: float, sd: float, pairs: int, alpha: float = 0.05) -> float:
    """Chance that a one-sided test of the mean detects `effect`, normal approximation."""
    return float(stats.norm.cdf(effect * np.sqrt(pairs) / sd - stats.norm.ppf(1 - alpha)))


def pairs_needed(effect: float, sd: float, wanted: float = 0.8, alpha: float = 0.05) -> int:
    """Pairs that detect `effect` with power `wanted`. For non-inferiority, `effect` is the true one
    minus `MARGIN`.
    """
    standard_errors = stats.norm.ppf(1 - alpha) + stats.norm.ppf(wanted)  # from 0 to the effect
    return int(np.ceil((standard_errors * sd / effect) ** 2))


def powers(pairs: int, sd: float) -> dict:
    """What `pairs` pairs can show, and how many the paper's questions need, at a standard deviation
    of differences.
    """
    return {
        "pairs": pairs,
        "sd": sd,
        "detectable": (stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) * sd / np.sqrt(pairs),
        "power_paper_effect": power(PAPER_EFFECT, sd, pairs),
        "power_non_inferiority": power(-MARGIN, sd, pairs),
        "pairs_for_paper_effect": pairs_needed(PAPER_EFFECT, sd),
        "pairs_for_non_inferiority": pairs_needed(-MARGIN, sd),
        "pairs_for_non_inferiority_at_paper_effect": pairs_needed(PAPER_EFFECT - MARGIN, sd),
    }
