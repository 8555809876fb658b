"""The verdicts as tables: all of them, those of one chapter to show, and Markdown for the book and
the README. No torch at import.
"""

import pandas as pd
from pandas.io.formats.style import Styler

from gsae.claims.claims import CLAIMS, Claim, anchor
from gsae.evidence import run
from gsae.evidence.verdict import NOT, NOT_RUN, NOT_TESTED, PARTLY, REPRODUCED, Verdict

MARKS = {REPRODUCED: "✓", PARTLY: "◐", NOT: "✗", NOT_TESTED: "○", NOT_RUN: "…"}
COLUMNS = ("item", "claim", "rule", "paper", "ours", "brief", "runs", "verdict", "link")


def verdicts(scale: str | None = None, link: str | None = None) -> pd.DataFrame:
    """One row a claim at a scale, of one page or all: item, sentence, rule, the paper's number,
    ours, ours in brief, runs, verdict, link.
    """
    scale = run.scale(scale)
    claims = [claim for claim in CLAIMS if link is None or claim.link == link]
    rows = [row(claim, claim.verdict(scale)) for claim in claims]
    return pd.DataFrame(rows, columns=COLUMNS)


def row(claim: Claim, verdict: Verdict) -> dict[str, str]:
    return {
        "item": claim.item,
        "claim": claim.sentence,
        "rule": claim.rule,
        "paper": claim.paper,
        "ours": verdict.ours,
        "brief": verdict.brief,
        "runs": verdict.runs,
        "verdict": verdict.verdict,
        "link": claim.link,
    }


def of(chapter: str, scale: str | None = None) -> Styler:
    """The verdicts of one chapter, by the name of its notebook, to show. Raises KeyError where no
    claim links to it.
    """
    link = f"notebooks/{chapter}"
    links = {claim.link for claim in CLAIMS if claim.link}
    if link not in links:
        known = ", ".join(sorted(known.removeprefix("notebooks/") for known in links))
        raise KeyError(f"no claim links to {chapter!r}: expected one of {known}")
    table = verdicts(scale, link).drop(columns=["brief", "runs", "link"]).set_index("item")
    table.insert(0, "verdict", [f"{MARKS[word]} {word}" for word in table.pop("verdict")])
    aligned = {"text-align": "left", "vertical-align": "top", "white-space": "pre-line"}
    cards = table.style.set_properties(**aligned)
    cards = cards.set_properties(subset=["ours"], **{"min-width": "24em"})
    # The book's style sheet makes a card of each row.
    return cards.set_table_attributes('class="claims"')


def counted(verdicts: list[Verdict]) -> str:
    """How many verdicts there are of each word."""
    words = [verdict.verdict for verdict in verdicts]
    return ", ".join(f"{words.count(word)} {word}" for word in MARKS if word in words)


def markdown(scale: str = "cpu", prefix: str = "", evidence: str = "") -> str:
    """How many claims have which verdict, and the table of verdicts, in Markdown; `prefix` leads
    from the page to the root of the book, `evidence` to the page of evidence, and is empty in the
    book itself.
    """
    judged = [(claim, claim.verdict(run.scale(scale))) for claim in CLAIMS]
    counts = counted([verdict for _, verdict in judged])
    lines = [
        f"{len(judged)} claims at scale `{scale}`: {counts}.",
        "",
        "| paper | claim | paper's value | ours | runs | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim, verdict in judged:
        item = f"[{claim.item}]({prefix}{claim.link}.ipynb)" if claim.link else claim.item
        word = verdict.verdict
        marked = f"{MARKS[word]} [**{word}**]({evidence}#{anchor(claim.item)})"
        # The scale is said above the table.
        runs = verdict.basis.brief if verdict.basis else ""
        cells = (item, claim.sentence, claim.paper, verdict.brief, runs, marked)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
