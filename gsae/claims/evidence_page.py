"""From a verdict or a sweep to the files, the commands and the commits behind it: text for the
book. No torch.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from functools import cache
from html import escape
from numbers import Real

import pandas as pd

from gsae.claims.claims import CLAIMS, Claim, anchor
from gsae.evidence import run
from gsae.evidence.provenance import CHECKOUT
from gsae.evidence.verdict import NOT_RUN, Verdict
from gsae.experiments import follow_ups, records, sweeps
from gsae.system.about import REPO

PAPER = run.Run()
FIELDS = (
    "id",
    "json",
    "status",
    "arm",
    "lm",
    "site",
    "layer",
    "M",
    "tokens",
    "lr",
    "resample",
    "keep_pos0",
    "lam",
    "seed",
    "control",
    "increase",
    "s",
    "data_l0",
    "noise",
    "l0",
    "loss_recovered",
    "gamma",
    "seconds",
    "commit",
    "date",
    "tree",
    "origin",
)
NAMES = {
    "json": "file",
    "lam": "lambda",
    "s": "pursuit",
    "l0": "L0",
    "loss_recovered": "loss recovered",
}
# Settings of results, which the runs that they were computed from lack.
OF_RESULTS = ("run", "control", "increase", "steps", "s", "pursuit_tokens")


def parents(results: pd.DataFrame) -> pd.DataFrame:
    """The runs that results were computed from. Their fields lie beside the result's, under the
    same name or, where both have one, under the suffix `_run`.
    """
    results = results[results["run"].notna()]
    of_result = [c for c in results if c in OF_RESULTS or f"{c}_run" in results]
    return results.drop(columns=of_result).rename(columns=lambda c: c.removesuffix("_run"))


def files(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One row for each run and result, finished or missing, in tables of runs, of results, and of
    gsae.experiments.follow_ups: where a result was computed from a run, that run's file counts too.
    """
    parts = []
    for df in tables:
        parts.append(df)
        if "id_run" in df:
            parts.append(parents(df))
    parts = [df.drop_duplicates("id").dropna(axis="columns", how="all") for df in parts if len(df)]
    if not parts:
        return pd.DataFrame(columns=["id"])
    return pd.concat(parts, ignore_index=True).drop_duplicates("id")


@cache
def homes(scale: str) -> dict[str, str]:
    """The id of every run of a scale with the experiment under which it is stored: the first that
    names it.
    """
    home: dict[str, str] = {}
    for name in sweeps.EXPERIMENTS:
        for wanted in sweeps.runs(name, scale):
            home.setdefault(wanted.id, name)
    return home


def experiment(row: pd.Series) -> str:
    """What `gsae run` calls a run or result: mostly the folder of its file, but sweeps change their
    runs.
    """
    if row["scale"] in run.SCALES and row["id"] in homes(row["scale"]):
        return homes(row["scale"])[row["id"]]
    file = row.get("file")
    if isinstance(file, str):
        return file.split("/")[0]
    if pd.notna(row.get("data_l0")):
        return follow_ups.KNOWN
    if isinstance(row.get("run"), str):
        return follow_ups.CONTROLS if isinstance(row.get("control"), str) else follow_ups.ITO
    return "own"


def commands(df: pd.DataFrame) -> list[str]:
    """The commands that make the files, and one that trains a run of theirs again and compares."""
    made, audited = {}, []
    for _, row in df.iterrows():
        name, scale = experiment(row), row["scale"]
        command = "make bench" if scale == "bench" else f"gsae run {name} --scale {scale}"
        made[command] = None  # each once, in the order of the files
        if name in sweeps.EXPERIMENTS and row["status"] != "missing":
            audited.append(f"gsae audit {row['id']} --scale {df['scale'].iloc[0]}")
    return [*made, *audited[:1]]


def plain(value) -> str:
    """A cell's text: at most four digits of a number, nothing for what is not there."""
    if value is None or value != value:
        return ""
    if isinstance(value, Real) and not isinstance(value, bool):
        return f"{int(value):,}" if value == int(value) else f"{value:.4g}"
    return escape(str(value))


def arm(row: pd.Series) -> str:
    """An architecture with the switches that differ from the paper's."""
    switched = [
        f"{name} {row[name]}"
        for name, value in PAPER.switches.items()
        if pd.notna(row.get(name)) and row[name] != value
    ]
    return escape(", ".join([plain(row.get("arch")), *switched]))


def link(text: str, address: str) -> str:
    return f'<a href="{escape(address)}">{text}</a>'


def origin(provenance: dict) -> str:
    """Where a file's numbers are from, if not from its own command."""
    parts = ["weights trained again"] if provenance.get("again") else []
    carried = provenance.get("carried")  # see how_to_run
    if carried:
        source, parent = escape(carried["from"]), escape(carried["run"])
        parts.append(f"carried over from {source}, of run {parent}")
    return "; ".join(parts)


def cells(row: pd.Series, local: str) -> dict[str, str]:
    """One run or result as cells of HTML: what it is, its numbers, its file in the repository and
    in the book.
    """
    provenance = row.get("provenance")
    provenance = provenance if isinstance(provenance, dict) else {}
    out = {name: plain(row.get(name)) for name in FIELDS} | {"arm": arm(row)}
    if isinstance(row.get("file"), str):
        place = f"{row['scale']}/{row['file']}"
        out["id"] = link(out["id"], f"{REPO}/blob/main/book/evidence/{place}")
        out["json"] = link("json", f"{local}/{place}")
    commit = provenance.get("commit")
    if commit:
        out["commit"] = link(f"<code>{commit[:7]}</code>", f"{REPO}/commit/{commit}")
    trees = {True: "uncommitted changes", False: "clean"}
    return out | {
        "seconds": plain(provenance.get("seconds")),
        "date": plain(provenance.get("date")),
        "tree": trees.get(provenance.get("dirty"), ""),
        "origin": origin(provenance),
    }


def html_row(tag: str, values: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{value}</{tag}>' for value in values)}</tr>"


def table(df: pd.DataFrame, local: str) -> str:
    """The rows of `files` as HTML; what all have in common is said once, above. `local` leads to
    the book's copies.
    """
    shown = pd.DataFrame([cells(row, local) for _, row in df.iterrows()], columns=FIELDS)
    shown = shown[[c for c in shown if shown[c].any()]].rename(columns=NAMES)
    common = []
    if len(shown) > 1:
        common = [c for c in shown if shown[c].nunique() == 1 and c not in ("id", "file")]
    differing = shown.drop(columns=common)
    alike = "; ".join(f"{c} {shown[c].iloc[0]}" for c in common)
    first = f"<p>All {len(shown)}: {alike}.</p>\n" if common else ""
    body = "".join(f"{html_row('td', row)}\n" for row in differing.to_numpy())
    rows = (
        f'<table class="table">\n<thead>{html_row("th", differing)}</thead>\n'
        f"<tbody>\n{body}</tbody>\n</table>"
    )
    return f'<div class="trail">\n{first}<div class="rows" tabindex="0">\n{rows}\n</div>\n</div>'


def behind(df: pd.DataFrame, local: str) -> str:
    """The files of a verdict or a sweep as Markdown: how many, the commands, the table."""
    on_record = int((df["status"] != "missing").sum())
    listed = "\n".join(commands(df))
    return (
        f"{on_record} of {len(df)} files on record.\n\n"
        f"```bash\n{listed}\n```\n\n"
        f"{table(df, local)}\n"
    )


def tests(judge: Callable) -> list[str]:
    """Links to the tests that name a judge."""
    module = judge.__module__.rpartition(".")[2]
    named = re.compile(rf"\b{module}\.{judge.__name__}\b")
    links = []
    for path in sorted((CHECKOUT / "tests").rglob("test_*.py")):
        for body in re.split(r"^def (?=test_)", path.read_text(), flags=re.MULTILINE)[1:]:
            if named.search(body):
                address = f"{REPO}/blob/main/{path.relative_to(CHECKOUT).as_posix()}"
                links.append(f"[`{path.name}::{body.split('(')[0]}`]({address})")
    return links


def stated(verdict: Verdict) -> list[str]:
    """What was found as an item of a list, with items of its own where it has several lines."""
    lines = verdict.lines
    if len(lines) > 1:
        return ["- Ours:", *(f"  - {line}" for line in lines)]
    return [f"- Ours: {line}" for line in lines]


def judged_by(judge: Callable) -> str:
    """The judge, its file and what it says of itself."""
    module = judge.__module__
    name = f"[`{module}.{judge.__name__}`]({REPO}/blob/main/{module.replace('.', '/')}.py)"
    return f"- Judged by {name}. {' '.join((inspect.getdoc(judge) or '').split())}"


def without_files(claim: Claim, verdict: Verdict) -> str:
    """Why a verdict has no file behind it."""
    links = ", ".join(tests(claim.judge)) if claim.judge else ""
    live = "Computed while this page is built: it rests on no run."
    why = "Nothing is on record." if verdict.verdict == NOT_RUN else live
    return f"- {why} Tested by {links}." if links else f"- {why}"


def section(claim: Claim, scale: str, prefix: str) -> str:
    """One claim with all that its verdict rests on, as Markdown; `prefix` leads from the page to
    the book's root.
    """
    verdict = claim.verdict(scale)
    df = files(verdict.tables)
    lines = [f"**{verdict.verdict}**: {claim.sentence}", "", f"- Pass rule: {claim.rule}"]
    if claim.paper:
        lines.append(f"- Paper's value: {claim.paper}")
    lines += stated(verdict)
    if claim.judge:
        lines.append(judged_by(claim.judge))
    if not len(df):
        lines.append(without_files(claim, verdict))
    pages = with_pages(scale)
    named = dict.fromkeys(experiment(row) for _, row in df.iterrows())
    links = [f"[{name}]({prefix}book/sweeps/{name}.md)" for name in named if name in pages]
    if links:
        lines.append(f"- Sweep: {', '.join(links)}")
    if claim.link:
        lines.append(f"- Chapter: []({prefix}{claim.link}.ipynb)")
    return "\n".join([*lines, "", behind(df, f"{prefix}_static/evidence") if len(df) else ""])


def sections(scale: str, prefix: str = "") -> dict[str, tuple[str, str]]:
    """Anchor -> title and Markdown of every claim, in the order of the verdict table."""
    return {anchor(claim.item): (claim.item, section(claim, scale, prefix)) for claim in CLAIMS}


def sweep(name: str, scale: str) -> dict[tuple, pd.DataFrame]:
    """The runs of an experiment by language model, site and layer: where at least one is stored as
    its own.
    """
    df = records.load(name, scale)
    stored_here = pd.Series(
        [homes(scale)[wanted.id] == name for wanted in sweeps.runs(name, scale)]
    )
    places = df.groupby(["lm", "site", "layer"], sort=False)
    return {place: rows for place, rows in places if stored_here[rows.index].any()}


def with_pages(scale: str) -> list[str]:
    """The experiments that have runs of their own at a scale, and so a page."""
    homes_of_runs = set(homes(scale).values())
    return [name for name in sweeps.EXPERIMENTS if name in homes_of_runs]
