"""The paper's statistics for paired ratings (section 4.3.2, Appendix H), agreement between raters,
and power. No torch.

All functions take the joined table of `gsae.interpretability.rating_files.join`: one row a rating,
`label` on the scale No 0, Maybe 1, Yes 2. A *pair* is one latent of each arm, drawn from the same
language model, site and layer; the unit of every test of the arms is the pair, so that several
raters of one pair count once, with their mean.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

SCALE = {"No": 0, "Maybe": 1, "Yes": 2}
# fixed before any rating: a loss of more than this on the 0-2 scale would count as less
# interpretable
MARGIN = -0.15
LEVEL = 0.90  # two-sided, so that either bound is a one-sided test at 5 %
# pairs: bootstrap intervals of fewer such labels cover less than they say (tests), so they decide
# nothing
LEAST = 20
FEW, NO_INTERVAL = SILENT = ("too few pairs", "no interval")
PAPER_EFFECT, PAPER_BOUNDS, PAPER_P, PAPER_PAIRS = (
    0.13,
    (0.0, 0.26),
    0.060,
    171,
)  # section 4.3.2, all data
CELL = ["lm", "site", "layer"]


def differences(ratings: pd.DataFrame, arm: str, reference: str) -> pd.DataFrame:
    """`label` of `arm` minus `reference`: one row for each rater and pair of which the rater saw
    both latents.
    """
    index = ["rater", *CELL, "pair", "replicate", "slot"]
    wide = ratings.pivot_table(index=index, columns="arm", values="label", aggfunc="mean").reindex(
        columns=[arm, reference]
    )
    wide = wide.dropna().reset_index()
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
        found = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=level,
            method="BCa",
            vectorized=True,
            rng=np.random.default_rng(seed),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def wilcoxon(d: ArrayLike, alternative: str = "greater") -> float:
    """p of the Wilcoxon-Pratt signed-rank test; 1 where every difference is 0, as any exchange of
    arms gives that.
    """
    d = np.asarray(d, float)
    if not len(d):
        return np.nan
    return (
        float(stats.wilcoxon(d, zero_method="pratt", alternative=alternative).pvalue)
        if d.any()
        else 1.0
    )


def verdict(low: float, high: float, pairs: int, margin: float = MARGIN) -> str:
    """Non-inferiority in words, from the interval of the mean difference of so many pairs."""
    if pairs < LEAST:
        return FEW
    if np.isnan(low):
        return NO_INTERVAL
    return "not inferior" if low > margin else "inferior" if high < margin else "underpowered"


def contrast(d: pd.DataFrame, arm: str, reference: str, test: bool = True) -> dict:
    """Pairs, mean label of each arm and mean difference with intervals, p if `test`,
    non-inferiority.
    """
    pairs = d.groupby("pair")[[arm, reference, "d"]].mean()
    bounds = {c: interval(pairs[c]) for c in pairs}
    return {
        "pairs": len(pairs), "mean_arm": pairs[arm].mean(), "arm_interval": bounds[arm],
        "mean_reference": pairs[reference].mean(), "reference_interval": bounds[reference],
        "difference": pairs["d"].mean(), "interval": bounds["d"], "sd": pairs["d"].std(),
        "p": wilcoxon(pairs["d"]) if test else np.nan,
        "non_inferiority": verdict(*bounds["d"], len(pairs)),
    }  # fmt: skip


def contingency(d: pd.DataFrame, arm: str, reference: str) -> list[list[int]]:
    """Counts of ratings (3 x 3): rows the label of `arm`, columns that of `reference`, in the order
    of `SCALE`.
    """
    table = np.zeros((3, 3), int)
    np.add.at(table, (d[arm].astype(int), d[reference].astype(int)), 1)
    return table.tolist()


def related(blocks: pd.DataFrame) -> dict:
    """Friedman's test between the columns of complete rows; for two columns, where it has none,
    Wilcoxon-Pratt.
    """
    blocks = blocks.dropna()
    found = {"test": "Friedman", "levels": [str(c) for c in blocks.columns], "blocks": len(blocks)}
    if blocks.shape[1] < 2 or len(blocks) < 2:
        return found | {"p": np.nan, "why": "needs two levels and two complete blocks"}
    if blocks.shape[1] == 2:
        return found | {
            "test": "Wilcoxon-Pratt",
            "p": wilcoxon(blocks.iloc[:, 1] - blocks.iloc[:, 0], "two-sided"),
        }
    tied = (np.ptp(blocks.to_numpy(), axis=1) == 0).all()
    return found | {
        "p": 1.0 if tied else float(stats.friedmanchisquare(*blocks.to_numpy().T).pvalue)
    }


def page(blocks: pd.DataFrame) -> dict:
    """Page's test that the columns rise in their order; p near 1 means that they fall. Ties make it
    conservative.
    """
    blocks = blocks.dropna()
    found = {
        "test": "Page, rising",
        "levels": [str(c) for c in blocks.columns],
        "blocks": len(blocks),
    }
    if blocks.shape[1] < 3 or len(blocks) < 2:
        return found | {"p": np.nan, "why": "needs three levels and two complete blocks"}
    return found | {"p": float(stats.page_trend_test(blocks).pvalue)}


def independent(samples: dict[str, np.ndarray]) -> dict:
    """Mann-Whitney (two samples) or Kruskal-Wallis (more) between named samples."""
    found = {
        "test": "Kruskal-Wallis" if len(samples) > 2 else "Mann-Whitney",
        "levels": list(samples),
    }
    if len(samples) < 2:
        return found | {"p": np.nan, "why": "needs two levels"}
    if np.ptp(np.concatenate(list(samples.values()))) == 0:
        return found | {"p": 1.0}
    test = stats.kruskal if len(samples) > 2 else stats.mannwhitneyu
    return found | {"p": float(test(*samples.values()).pvalue)}


def samples(table: pd.DataFrame, by: str, value: str) -> dict[str, np.ndarray]:
    return {str(k): v.to_numpy(float) for k, v in table.groupby(by)[value]}


def effects(table: pd.DataFrame, value: str) -> dict:
    """Secondary tests of `value` ("label": raw; "d": differences): site, layer, model, rater
    (Tables 9, 10).

    Blocks are what a rater saw under equal conditions: the n-th latent (or pair) of each cell, arm
    by arm for raw labels. Raters of the same latent are averaged, except where raters are what is
    compared. p-values are not corrected for their number.
    """
    arm = ["arm"] if value == "label" else []
    once = table.groupby([*CELL, "pair", "replicate", *arm], as_index=False)[value].mean()
    found = {
        "site": related(
            once.pivot_table(values=value, index=["lm", "layer", "replicate", *arm], columns="site")
        )
    }
    for lm, rows in once.groupby("lm"):
        blocks = rows.pivot_table(values=value, index=["site", "replicate", *arm], columns="layer")
        found[f"layer, {lm}"], found[f"layer trend, {lm}"] = related(blocks), page(blocks)
    found["model"] = independent(samples(once, "lm", value))
    raters = samples(table, "rater", value)
    found["rater"] = independent(raters)
    for lm, rows in table.groupby("lm"):
        blocks = rows.pivot_table(
            values=value, index=["site", "layer", "slot", *arm], columns="rater"
        )
        found[f"rater, {lm}"] = related(blocks)
    return found


def krippendorff(values: ArrayLike) -> float:
    """Krippendorff's alpha with the interval metric. `values`: (raters, items), NaN where a rater
    did not rate.

    1 is perfect agreement, 0 what chance gives. NaN where no item has two ratings, or all ratings
    are equal.
    """
    values = np.asarray(values, float)[:, np.isfinite(values).sum(0) >= 2]
    every = values[np.isfinite(values)]
    if not len(every) or np.ptp(every) == 0:
        return np.nan
    n = np.isfinite(values).sum(0)
    within = np.nansum(
        np.nanvar(values, 0) * n**2 / (n - 1)
    )  # squared differences of the pairs inside each item
    return float(1 - within / (every.var() * len(every) ** 2 / (len(every) - 1)))


def agreement(ratings: pd.DataFrame) -> dict:
    """Krippendorff's alpha (interval metric) and the share of equal labels, over items that several
    raters rated.
    """
    wide = ratings.pivot_table(values="label", index="rater", columns="item")
    shared = wide.loc[:, wide.notna().sum() >= 2]
    labels = [c.dropna().to_numpy() for _, c in shared.items()]
    equal = [(a == b) for c in labels for i, a in enumerate(c) for b in c[i + 1 :]]
    return {
        "measure": "Krippendorff's alpha, interval metric", "items": shared.shape[1],
        "alpha": krippendorff(shared.to_numpy()) if shared.size else np.nan,
        "equal": float(np.mean(equal)) if equal else np.nan,
    }  # fmt: skip


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
    return int(np.ceil(((stats.norm.ppf(1 - alpha) + stats.norm.ppf(wanted)) * sd / effect) ** 2))


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


def compare(ratings: pd.DataFrame, arm: str, reference: str) -> dict:
    """Everything about one arm against the reference: all data, each model, site, layer and cell,
    and the effects.
    """
    d = differences(ratings, arm, reference)
    if d.empty:
        raise ValueError(
            f"no pair of {arm} and {reference} is rated on both sides: nothing can be compared"
        )
    groups, tested = (
        {"all": d},
        {"all", *d["lm"], *d["site"]},
    )  # by layer and cell the paper gives intervals alone
    for columns in (
        ["lm"],
        ["site"],
        ["lm", "layer"],
        CELL,
    ):  # coarse to fine; what is all the data, or was named before, is not repeated
        split = {
            " ".join(
                f"layer {v}" if c == "layer" else str(v) for c, v in zip(columns, k, strict=True)
            ): rows
            for k, rows in d.groupby(columns)
        }
        groups |= {k: rows for k, rows in split.items() if len(split) > 1 and k not in groups}
    rows = {name: contrast(rows, arm, reference, name in tested) for name, rows in groups.items()}
    tables = {name: contingency(rows, arm, reference) for name, rows in groups.items()}
    sd = rows["all"]["sd"]
    return {"arm": arm, "reference": reference, "contrasts": rows, "contingency": tables,
            "power": powers(rows["all"]["pairs"], sd) if sd > 0 else None,
            "effects_on_differences": effects(d, "d")}  # fmt: skip


def analyse(ratings: pd.DataFrame, arms: Sequence[str], reference: str) -> dict:
    """The whole analysis: every arm against `reference`, effects on raw labels, agreement between
    raters.
    """
    return {
        "ratings": len(ratings),
        "raters": sorted(ratings["rater"].unique()),
        "margin": MARGIN,
        "level": LEVEL,
        "comparisons": [compare(ratings, arm, reference) for arm in arms if arm != reference],
        "effects_on_labels": effects(ratings, "label"),
        "agreement": agreement(ratings),
    }
