"""The whole analysis of a study's ratings (section 4.3.2, Appendix H) as data. No torch."""

from collections.abc import Sequence

import pandas as pd

from gsae.interpretability.rating_agreement import agreement
from gsae.interpretability.rating_effects import effects
from gsae.interpretability.rating_statistics import (
    CELL,
    LEVEL,
    MARGIN,
    contingency,
    contrast,
    label_differences,
    powers,
)


def analyse(ratings: pd.DataFrame, arms: Sequence[str], reference: str) -> dict:
    """The whole analysis: every arm against `reference`, effects on raw labels, agreement between
    raters.

    Args:
        ratings: as `gsae.interpretability.rating_files.join` makes it.
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


def compare(ratings: pd.DataFrame, arm: str, reference: str) -> dict:
    """Everything about one arm against the reference: all data, each model, site, layer and cell,
    and the effects.

    Raises ValueError where no pair is rated on both sides.
    """
    d = label_differences(ratings, arm, reference)
    if d.empty:
        raise ValueError(
            f"no pair of {arm} and {reference} is rated on both sides: nothing can be compared"
        )
    groups = grouped(d)
    tested = {"all", *d["lm"], *d["site"]}  # by layer and cell the paper gives intervals alone
    contrasts, tables = {}, {}
    for name, rows in groups.items():
        contrasts[name] = contrast(rows, arm, reference, name in tested)
        tables[name] = contingency(rows, arm, reference)
    pairs, sd = contrasts["all"]["pairs"], contrasts["all"]["sd"]
    return {
        "arm": arm,
        "reference": reference,
        "contrasts": contrasts,
        "contingency": tables,
        "power": powers(pairs, sd) if sd > 0 else None,
        "effects_on_differences": effects(d, "d"),
    }


def grouped(d: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The differences by group, coarse to fine: all data, then each model, site, layer and cell.
    What is all the data, or was named before, is not repeated.
    """
    groups = {"all": d}
    for columns in (["lm"], ["site"], ["lm", "layer"], CELL):
        split = list(d.groupby(columns))
        if len(split) < 2:
            continue
        for values, rows in split:
            groups.setdefault(group_name(columns, values), rows)
    return groups


def group_name(columns: Sequence[str], values: Sequence) -> str:
    """A group in words, as "smollm2 layer 8"."""
    named = zip(columns, values, strict=True)
    return " ".join(f"layer {v}" if column == "layer" else str(v) for column, v in named)
