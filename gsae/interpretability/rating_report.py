"""The analysis of a study as a text that a person reads."""

from collections.abc import Mapping

from gsae.interpretability.rating_statistics import (
    LEAST,
    PAPER_BOUNDS,
    PAPER_EFFECT,
    PAPER_P,
    PAPER_PAIRS,
    SCALE,
)


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or "-" where there is none."""
    return "-" if value is None or value != value else format(value, form)


def bounds(pair: tuple, sign: str = "") -> str:
    return f"[{number(pair[0], sign + '.2f')}, {number(pair[1], sign + '.2f')}]"


def table(rows: list[list[str]]) -> list[str]:
    """Rows of equal length, columns aligned: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def counts(square: list[list[int]], arm: str, reference: str) -> list[str]:
    """A 3 x 3 table of ratings with its margins (Figs 7, 20, 21)."""
    rows = [[f"{arm} \\ {reference}", *SCALE, "all"]]
    rows += [[name, *map(str, row), str(sum(row))] for name, row in zip(SCALE, square, strict=True)]
    totals = [sum(column) for column in zip(*square, strict=True)]
    return table([*rows, ["all", *map(str, totals), str(sum(totals))]])


def arm_means(contrasts: Mapping[str, dict], arm: str, reference: str, level: float) -> list[str]:
    """Each arm's mean label with its interval: all data, then by model, site, layer and cell (Figs
    18, 19).
    """
    rows = [["", "pairs", arm, f"{level:.0%} BCa", reference, f"{level:.0%} BCa"]]
    for name, r in contrasts.items():
        rows.append([name, str(r["pairs"]), number(r["mean_arm"]), bounds(r["arm_interval"]),
                     number(r["mean_reference"]), bounds(r["reference_interval"])])  # fmt: skip
    return table(rows)


def several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def tests(effects: Mapping[str, dict]) -> list[str]:
    rows = [["effect of", "test", "p", "blocks", "between"]]
    for name, e in effects.items():
        between = e.get("why") or ", ".join(e["levels"])
        rows.append([name, e["test"], number(e["p"], ".3f"), str(e.get("blocks", "-")), between])
    return table(rows)


def power(p: Mapping | None) -> list[str]:
    if p is None:
        return ["Power: all differences are equal, no standard deviation to go by."]
    return [
        f"Power (normal approximation, one-sided 5 %), s.d. of differences {p['sd']:.2f}, "
        f"{p['pairs']} pairs:",
        f"  smallest difference found with 80 % power       {p['detectable']:+.2f}",
        f"  power to find the paper's +0.13                 {p['power_paper_effect']:.0%}, 80 % "
        "needs "
        f"{p['pairs_for_paper_effect']} pairs",
        "  power to exclude the margin if there is no difference   "
        f"{p['power_non_inferiority']:.0%}, 80 % needs "
        f"{p['pairs_for_non_inferiority']} pairs "
        f"({p['pairs_for_non_inferiority_at_paper_effect']} if it is +0.13)",
    ]


def text(found: Mapping) -> str:
    """The whole analysis (`statistics.analyse`) as text."""
    who = found["raters"]
    lines = [
        f"{several(found['ratings'], 'rating')} by {several(len(who), 'rater')}: {', '.join(who)}"
    ]
    for c in found["comparisons"]:
        arm, reference = c["arm"], c["reference"]
        lines += ["", f"== {arm} minus {reference}, labels No 0, Maybe 1, Yes 2 =="]
        rows = [
            ["", "pairs", arm, reference, "difference", f"{found['level']:.0%} BCa", "p", "verdict"]
        ]
        tested = [
            name for name, r in c["contrasts"].items() if r["p"] == r["p"]
        ]  # the finer ones are in the json
        for name, r in c["contrasts"].items():
            means = (
                number(r["mean_arm"]),
                number(r["mean_reference"]),
                number(r["difference"], "+.2f"),
            )
            word = r["non_inferiority"] if name in tested else ""
            rows.append(
                [
                    name,
                    str(r["pairs"]),
                    *means,
                    bounds(r["interval"], "+"),
                    number(r["p"], ".3f"),
                    word,
                ]
            )
        lines += table(rows)
        lines += ["p: one-sided Wilcoxon-Pratt, for all data, models and sites.",
                  "Unit: the pair; several raters of one pair are averaged.",
                  f"Verdict: the interval against the margin {found['margin']}, fixed beforehand; "
                  f"from {LEAST} pairs on."]  # fmt: skip
        if (arm, reference) == ("gated", "baseline"):
            lines.append(
                f"The paper, {PAPER_PAIRS} pairs: {PAPER_EFFECT:+.2f} "
                f"{bounds(PAPER_BOUNDS, '+')}, p {PAPER_P:.3f}"
            )
        lines += [
            "",
            "Mean labels of each arm:",
            *arm_means(c["contrasts"], arm, reference, found["level"]),
        ]
        for name in tested:
            lines += ["", f"Ratings, {name}:", *counts(c["contingency"][name], arm, reference)]
        lines += [
            "",
            "Effects on the differences (p not corrected for their number):",
            *tests(c["effects_on_differences"]),
        ]
        lines += ["", *power(c["power"])]
    a = found["agreement"]
    lines += ["", "== raw labels ==", *tests(found["effects_on_labels"]), ""]
    told = (
        f"{a['measure']} {number(a['alpha'])}, equal labels {number(a['equal'], '.0%')}, "
        f"{a['items']} latents"
    )
    lines.append(
        f"Agreement between raters: {told if a['items'] else 'no latent was rated by two raters'}."
    )
    return "\n".join(lines)
