"""Secondary tests of ratings: the effects of site, layer, model and rater (Tables 9, 10). No
torch.
"""

import numpy as np
import pandas as pd
from scipy import stats

from gsae.interpretability.rating_statistics import CELL, wilcoxon


def related(blocks: pd.DataFrame) -> dict:
    """Friedman's test between the columns of complete rows; for two columns, where it has none,
    Wilcoxon-Pratt.
    """
    blocks = blocks.dropna()
    test = block_test("Friedman", blocks)
    if blocks.shape[1] < 2 or len(blocks) < 2:
        return test | {"p": np.nan, "why": "needs two levels and two complete blocks"}
    if blocks.shape[1] == 2:
        p = wilcoxon(blocks.iloc[:, 1] - blocks.iloc[:, 0], "two-sided")
        return test | {"test": "Wilcoxon-Pratt", "p": p}
    values = blocks.to_numpy()
    if (np.ptp(values, axis=1) == 0).all():  # tied throughout: any exchange gives that
        return test | {"p": 1.0}
    return test | {"p": float(stats.friedmanchisquare(*values.T).pvalue)}


def page_trend(blocks: pd.DataFrame) -> dict:
    """Page's test that the columns rise in their order; p near 1 means that they fall. Ties make it
    conservative.
    """
    blocks = blocks.dropna()
    test = block_test("Page, rising", blocks)
    if blocks.shape[1] < 3 or len(blocks) < 2:
        return test | {"p": np.nan, "why": "needs three levels and two complete blocks"}
    return test | {"p": float(stats.page_trend_test(blocks).pvalue)}


def block_test(name: str, blocks: pd.DataFrame) -> dict:
    """What a test of complete blocks is between."""
    return {"test": name, "levels": [str(c) for c in blocks.columns], "blocks": len(blocks)}


def independent(samples: dict[str, np.ndarray]) -> dict:
    """Mann-Whitney (two samples) or Kruskal-Wallis (more) between named samples."""
    several = len(samples) > 2
    test = {"test": "Kruskal-Wallis" if several else "Mann-Whitney", "levels": list(samples)}
    if len(samples) < 2:
        return test | {"p": np.nan, "why": "needs two levels"}
    if np.ptp(np.concatenate(list(samples.values()))) == 0:
        return test | {"p": 1.0}
    run = stats.kruskal if several else stats.mannwhitneyu
    return test | {"p": float(run(*samples.values()).pvalue)}


def samples(table: pd.DataFrame, by: str, value: str) -> dict[str, np.ndarray]:
    return {str(level): values.to_numpy(float) for level, values in table.groupby(by)[value]}


def effects(table: pd.DataFrame, value: str) -> dict:
    """Secondary tests of `value` ("label": raw; "d": differences): site, layer, model, rater
    (Tables 9, 10).

    Blocks are what a rater saw under equal conditions: the n-th latent (or pair) of each cell, arm
    by arm for raw labels. Raters of the same latent are averaged, except where raters are what is
    compared. p-values are not corrected for their number.
    """
    arm = ["arm"] if value == "label" else []
    averaged = table.groupby([*CELL, "pair", "replicate", *arm], as_index=False)[value].mean()

    def blocks(rows: pd.DataFrame, equal: list[str], between: str) -> pd.DataFrame:
        return rows.pivot_table(values=value, index=[*equal, *arm], columns=between)

    tests = {"site": related(blocks(averaged, ["lm", "layer", "replicate"], "site"))}
    for lm, rows in averaged.groupby("lm"):
        by_layer = blocks(rows, ["site", "replicate"], "layer")
        tests[f"layer, {lm}"] = related(by_layer)
        tests[f"layer trend, {lm}"] = page_trend(by_layer)
    tests["model"] = independent(samples(averaged, "lm", value))
    tests["rater"] = independent(samples(table, "rater", value))
    for lm, rows in table.groupby("lm"):
        tests[f"rater, {lm}"] = related(blocks(rows, ["site", "layer", "slot"], "rater"))
    return tests
