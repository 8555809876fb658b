"""How far raters of the same latents agree. No torch."""

from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def krippendorff(values: ArrayLike) -> float:
    """Krippendorff's alpha with the interval metric. `values`: (raters, items), NaN where a rater
    did not rate.

    1 is perfect agreement, 0 what chance gives. NaN where no item has two ratings, or all ratings
    are equal.
    """
    values = np.asarray(values, float)
    values = values[:, np.isfinite(values).sum(0) >= 2]
    ratings = values[np.isfinite(values)]
    if not len(ratings) or np.ptp(ratings) == 0:
        return np.nan
    n = np.isfinite(values).sum(0)
    # Squared differences, of the pairs of ratings inside each item and of all pairs.
    within = np.nansum(np.nanvar(values, 0) * n**2 / (n - 1))
    expected = ratings.var() * len(ratings) ** 2 / (len(ratings) - 1)
    return float(1 - within / expected)


def agreement(ratings: pd.DataFrame) -> dict:
    """Krippendorff's alpha (interval metric) and the share of equal labels, over items that several
    raters rated.
    """
    wide = ratings.pivot_table(values="label", index="rater", columns="item")
    shared = wide.loc[:, wide.notna().sum() >= 2]
    equal = []
    for _, labels in shared.items():
        equal += [a == b for a, b in combinations(labels.dropna(), 2)]
    return {
        "measure": "Krippendorff's alpha, interval metric",
        "items": shared.shape[1],
        "alpha": krippendorff(shared.to_numpy()) if shared.size else np.nan,
        "equal": float(np.mean(equal)) if equal else np.nan,
    }
