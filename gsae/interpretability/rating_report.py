"""The analysis of a study as a text that a person reads."""

import math
from collections.abc import Mapping

from gsae.interpretability.rating_statistics import (
    LEAST,
    PAPER_BOUNDS,
    PAPER_EFFECT,
    PAPER_P,
    PAPER_PAIRS,
    SCALE,
)


def text(analysis: Mapping) -> str:
    """The whole analysis (`rating_analysis.analyse`) as text."""
    raters, level, margin = analysis["raters"], analysis["level"], analysis["margin"]
    lines = [
        f"{several(analysis['ratings'], 'rating')} by {several(len(raters), 'rater')}: "
        f"{', '.join(raters)}"
    ]
    for comparison in analysis["comparisons"]:
        lines += ["", *compared_arms(comparison, level, margin)]
    lines += ["", "== raw labels ==", *tests(analysis["effects_on_labels"])]
    lines += ["", agreement_line(analysis["agreement"])]
    return "\n".join(lines)


def compared_arms(comparison: Mapping, level: float, margin: float) -> list[str]:
    """Everything about one arm against the reference."""
    arm, reference = comparison["arm"], comparison["reference"]
    contrasts, squares = comparison["contrasts"], comparison["contingency"]
    lines = [f"== {arm} minus {reference}, labels No 0, Maybe 1, Yes 2 =="]
    lines += differences_of_means(contrasts, arm, reference, level)
    lines += [
        "p: one-sided Wilcoxon-Pratt, for all data, models and sites.",
        "Unit: the pair; several raters of one pair are averaged.",
        f"Verdict: the interval against the margin {margin}, fixed beforehand; from {LEAST} pairs "
        "on.",
    ]
    if (arm, reference) == ("gated", "baseline"):
        lines.append(
            f"The paper, {PAPER_PAIRS} pairs: {PAPER_EFFECT:+.2f} {bounds(PAPER_BOUNDS, '+')}, "
            f"p {PAPER_P:.3f}"
        )
    lines += ["", "Mean labels of each arm:", *arm_means(contrasts, arm, reference, level)]
    for name, contrast in contrasts.items():
        if tested(contrast):
            lines += ["", f"Ratings, {name}:", *counts(squares[name], arm, reference)]
    lines += ["", "Effects on the differences (p not corrected for their number):"]
    lines += tests(comparison["effects_on_differences"])
    lines += ["", *power_lines(comparison["power"])]
    return lines


def tested(contrast: Mapping) -> bool:
    """Whether a contrast has a p: the finer ones have none, and are whole in the json alone."""
    return not math.isnan(contrast["p"])


def differences_of_means(
    contrasts: Mapping[str, dict], arm: str, reference: str, level: float
) -> list[str]:
    """Mean labels, their difference with its interval, p and verdict: all data, then each group."""
    rows = [["", "pairs", arm, reference, "difference", f"{level:.0%} BCa", "p", "verdict"]]
    for name, contrast in contrasts.items():
        rows.append(
            [
                name,
                str(contrast["pairs"]),
                number(contrast["mean_arm"]),
                number(contrast["mean_reference"]),
                number(contrast["difference"], "+.2f"),
                bounds(contrast["interval"], "+"),
                number(contrast["p"], ".3f"),
                contrast["non_inferiority"] if tested(contrast) else "",
            ]
        )
    return aligned(rows)


def arm_means(contrasts: Mapping[str, dict], arm: str, reference: str, level: float) -> list[str]:
    """Each arm's mean label with its interval: all data, then by model, site, layer and cell (Figs
    18, 19).
    """
    rows = [["", "pairs", arm, f"{level:.0%} BCa", reference, f"{level:.0%} BCa"]]
    for name, contrast in contrasts.items():
        rows.append(
            [
                name,
                str(contrast["pairs"]),
                number(contrast["mean_arm"]),
                bounds(contrast["arm_interval"]),
                number(contrast["mean_reference"]),
                bounds(contrast["reference_interval"]),
            ]
        )
    return aligned(rows)


def counts(square: list[list[int]], arm: str, reference: str) -> list[str]:
    """A 3 x 3 table of ratings with its margins (Figs 7, 20, 21)."""
    rows = [[f"{arm} \\ {reference}", *SCALE, "all"]]
    for name, row in zip(SCALE, square, strict=True):
        rows.append([name, *map(str, row), str(sum(row))])
    totals = [sum(column) for column in zip(*square, strict=True)]
    rows.append(["all", *map(str, totals), str(sum(totals))])
    return aligned(rows)


def tests(effects: Mapping[str, dict]) -> list[str]:
    """A line a secondary test; where it could not be made, why."""
    rows = [["effect of", "test", "p", "blocks", "between"]]
    for name, test in effects.items():
        between = test.get("why") or ", ".join(test["levels"])
        blocks = str(test.get("blocks", "-"))
        rows.append([name, test["test"], number(test["p"], ".3f"), blocks, between])
    return aligned(rows)


def power_lines(powers: Mapping | None) -> list[str]:
    """What so many pairs can show (`rating_statistics.powers`)."""
    if powers is None:
        return ["Power: all differences are equal, no standard deviation to go by."]
    p = powers
    return [
        f"Power (normal approximation, one-sided 5 %), s.d. of differences {p['sd']:.2f}, "
        f"{p['pairs']} pairs:",
        f"  smallest difference found with 80 % power       {p['detectable']:+.2f}",
        f"  power to find the paper's +0.13                 {p['power_paper_effect']:.0%}, "
        f"80 % needs {p['pairs_for_paper_effect']} pairs",
        "  power to exclude the margin if there is no difference   "
        f"{p['power_non_inferiority']:.0%}, 80 % needs {p['pairs_for_non_inferiority']} pairs "
        f"({p['pairs_for_non_inferiority_at_paper_effect']} if it is +0.13)",
    ]


def agreement_line(agreement: Mapping) -> str:
    """How far raters agree (`rating_agreement.agreement`)."""
    a = agreement
    if not a["items"]:
        return "Agreement between raters: no latent was rated by two raters."
    return (
        f"Agreement between raters: {a['measure']} {number(a['alpha'])}, "
        f"equal labels {number(a['equal'], '.0%')}, {a['items']} latents."
    )


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or "-" where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def bounds(pair: tuple, sign: str = "") -> str:
    return f"[{number(pair[0], sign + '.2f')}, {number(pair[1], sign + '.2f')}]"


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of equal length, columns aligned: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
