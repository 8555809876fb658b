"""Keep the README's headline figure and verdict table equal to the evidence."""

import re
from pathlib import Path

import matplotlib

from gsae.claims import verdict_tables
from gsae.evidence.provenance import CHECKOUT
from gsae.experiments import records
from gsae.figures import base
from gsae.system import files
from gsae.system.about import REPO

FIGURE = Path("book/pareto.svg")
OWNER, NAME = REPO.split("/")[-2:]
PAGE = f"https://{OWNER}.github.io/{NAME}/book/evidence_by_claim.html"
BEGIN, END = "<!-- verdicts:begin -->\n", "<!-- verdicts:end -->"


def with_table(text: str, scale: str = "cpu") -> str:
    """A README with its verdict table made anew. Raises ValueError where it lacks the two
    markers.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(
            f"the README has no place for the table: it needs the lines {BEGIN.strip()} and {END}"
        )
    table = verdict_tables.markdown(scale, evidence=PAGE)
    marked = f"{BEGIN}\n{table}\n{END}"
    # A function, since a backslash in a replacement text would be read as an escape.
    return re.sub(f"{BEGIN}.*?{END}", lambda _: marked, text, flags=re.DOTALL)


def write(root: Path = CHECKOUT, scale: str = "cpu") -> None:
    """Draw the headline figure and write the table, from the committed evidence of a scale."""
    df = records.load("pareto", scale)
    drawn = base.pareto(df[df["site"] == "mlp_neurons"], "one-layer LM, MLP neurons")
    with matplotlib.rc_context({"svg.hashsalt": "gsae"}):  # the same evidence, the same bytes
        drawn.savefig(root / FIGURE, metadata={"Date": None})
    page = root / "README.md"
    files.write_text(page, with_table(page.read_text(), scale))
