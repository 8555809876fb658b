"""From a verdict or a sweep to the files, the commands and the commits behind it: text for the
book. No torch.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from numbers import Real

import pandas as pd

from gsae.claims.claims import CLAIMS, Claim, anchor
from gsae.evidence import run as run_module
from gsae.evidence import verdict
from gsae.evidence.provenance import CHECKOUT
from gsae.experiments import follow_ups, records
from gsae.experiments import sweeps as experiments
from gsae.system.about import REPO

PAPER = run_module.Run()
COLUMNS = (
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
OF_RESULTS = [
    "run",
    "control",
    "increase",
    "steps",
    "s",
    "pursuit_tokens",
]  # settings, which their parents lack


def files(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One row for each run and result, finished or missing, in tables of gsae.evidence.run_files,
    results and aftermath.

    A result was computed from a run, whose own file counts too: its fields lie beside the result's,
    under the same name or, where both have one, under the suffix `_run`.
    """
    found = []
    for df in tables:
        found.append(df)
        if "id_run" in df:
            results = df[df["run"].notna()]
            of_result = [c for c in results if c in OF_RESULTS or f"{c}_run" in results]
            found.append(
                results.drop(columns=of_result).rename(columns=lambda c: c.removesuffix("_run"))
            )
    found = [df.drop_duplicates("id").dropna(axis="columns", how="all") for df in found if len(df)]
    return (
        pd.concat(found, ignore_index=True).drop_duplicates("id")
        if found
        else pd.DataFrame(columns=["id"])
    )


@cache
def homes(scale: str) -> dict[str, str]:
    """The id of every run of a scale with the experiment under which it is stored: the first that
    names it.
    """
    pairs = [
        (run.id, name) for name in experiments.EXPERIMENTS for run in experiments.runs(name, scale)
    ]
    return dict(reversed(pairs))


def experiment(row: pd.Series) -> str:
    """What `gsae run` calls a run or result: mostly the folder of its file, but sweeps change their
    runs.
    """
    named = homes(row["scale"]).get(row["id"]) if row["scale"] in run_module.SCALES else None
    if named:
        return named
    if isinstance(file := row.get("file"), str):
        return file.split("/")[0]
    if "data_l0" in row and row["data_l0"] == row["data_l0"]:
        return "known"
    if isinstance(row.get("run"), str):
        return follow_ups.CONTROLS if isinstance(row.get("control"), str) else follow_ups.ITO
    return "own"


def commands(df: pd.DataFrame) -> list[str]:
    """The commands that make the files, and one that trains a run of theirs again and compares."""
    pairs = dict.fromkeys((experiment(row), row["scale"]) for _, row in df.iterrows())
    made = [
        f"gsae run {name} --scale {scale}" if scale != "bench" else "make bench"
        for name, scale in pairs
    ]
    runs = [row["id"] for _, row in df.iterrows() if experiment(row) in experiments.EXPERIMENTS]
    done = set(df.loc[df["status"] != "missing", "id"])
    return (
        made
        + [f"gsae audit {one} --scale {df['scale'].iloc[0]}" for one in runs if one in done][:1]
    )


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
        f"{k} {row[k]}"
        for k in PAPER.switches
        if k in row and row[k] == row[k] and row[k] != PAPER.switches[k]
    ]
    return escape(", ".join([plain(row.get("arch")), *switched]))


def link(text: str, address: str) -> str:
    return f'<a href="{escape(address)}">{text}</a>'


def cells(row: pd.Series, local: str) -> dict[str, str]:
    """One run or result as cells of HTML: what it is, its numbers, its file in the repository and
    in the book.
    """
    made = row.get("provenance")
    made = made if isinstance(made, dict) else {}
    out = {name: plain(row.get(name)) for name in COLUMNS} | {"arm": arm(row)}
    if isinstance(row.get("file"), str):
        place = f"{row['scale']}/{row['file']}"
        out["id"] = link(out["id"], f"{REPO}/blob/main/book/evidence/{place}")
        out["json"] = link("json", f"{local}/{place}")
    if commit := made.get("commit"):
        out["commit"] = link(f"<code>{commit[:7]}</code>", f"{REPO}/commit/{commit}")
    tree = {True: "uncommitted changes", False: "clean"}.get(made.get("dirty"), "")
    origin = ["weights trained again"] if made.get("again") else []
    if carried := made.get("carried"):  # see how_to_run
        origin.append(
            f"carried over from {escape(carried['from'])}, of run {escape(carried['run'])}"
        )
    out |= {"seconds": plain(made.get("seconds")), "date": plain(made.get("date"))}
    return out | {"tree": tree, "origin": "; ".join(origin)}


def table(df: pd.DataFrame, local: str) -> str:
    """The rows of `files` as HTML; what all have in common is said once, above. `local` leads to
    the book's copies.
    """
    shown = pd.DataFrame([cells(row, local) for _, row in df.iterrows()], columns=COLUMNS)
    shown = shown[[c for c in shown if shown[c].any()]].rename(columns=NAMES)
    common = [
        c for c in shown if len(shown) > 1 and shown[c].nunique() == 1 and c not in ("id", "file")
    ]
    head = "".join(f"<th>{c}</th>" for c in shown if c not in common)
    body = "".join(
        f"<tr>{''.join(f'<td>{v}</td>' for v in row)}</tr>\n"
        for row in shown.drop(columns=common).to_numpy()
    )
    alike = "; ".join(f"{c} {shown[c].iloc[0]}" for c in common)
    first = f"<p>All {len(shown)}: {alike}.</p>\n" if common else ""
    rows = (
        f'<table class="table">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>'
    )
    return f'<div class="trail">\n{first}<div class="rows" tabindex="0">\n{rows}\n</div>\n</div>'


def behind(df: pd.DataFrame, local: str) -> str:
    """The files of a verdict or a sweep as Markdown: how many, the commands, the table."""
    on_record = int((df["status"] != "missing").sum())
    listed = "\n".join(commands(df))
    return (
        f"{on_record} of {len(df)} files on "
        f"record.\n\n```bash\n{listed}\n```\n\n{table(df, local)}\n"
    )


def tests(judge: Callable) -> list[str]:
    """Links to the tests that name a judge."""
    name, found = f"{judge.__module__.rpartition('.')[2]}.{judge.__name__}", []
    for path in sorted((CHECKOUT / "tests").glob("test_*.py")):
        for body in re.split(r"^def (?=test_)", path.read_text(), flags=re.MULTILINE)[1:]:
            if re.search(rf"\b{re.escape(name)}\b", body):
                address = f"{REPO}/blob/main/tests/{path.name}"
                found.append(f"[`{path.name}::{body.split('(')[0]}`]({address})")
    return found


def claim(of: Claim, scale: str, prefix: str) -> str:
    """One claim with all that its verdict rests on, as Markdown; `prefix` leads from the page to
    the book's root.
    """
    with verdict.noting() as tables:
        found = of.verdict(scale)
    df = files(tables)
    lines = [f"**{found.verdict}**: {of.sentence}", "", f"- Pass rule: {of.rule}"]
    lines += [f"- Paper's value: {of.paper}"] if of.paper else []
    ours = found.ours.split(verdict.LINE)
    lines += [f"- Ours: {ours[0]}"] if found.ours and len(ours) == 1 else []
    lines += ["- Ours:", *(f"  - {line}" for line in ours)] if len(ours) > 1 else []
    if of.judge:
        source = of.judge.__module__.replace(".", "/") + ".py"
        name = f"[`{of.judge.__module__}.{of.judge.__name__}`]({REPO}/blob/main/{source})"
        lines.append(f"- Judged by {name}. {' '.join((inspect.getdoc(of.judge) or '').split())}")
    if not len(df):
        by = ", ".join(tests(of.judge)) if of.judge else ""
        checked = f" Tested by {by}." if by else ""
        live = "Computed while this page is built: it rests on no run."
        how = "Nothing is on record." if found.verdict == verdict.NOT_RUN else live
        lines.append(f"- {how}{checked}")
    pages, named = sweeps(scale), dict.fromkeys(experiment(row) for _, row in df.iterrows())
    of_sweeps = [name for name in named if name in pages]
    lines += (
        [f"- Sweep: {', '.join(f'[{n}]({prefix}book/sweeps/{n}.md)' for n in of_sweeps)}"]
        if of_sweeps
        else []
    )
    lines += [f"- Chapter: []({prefix}{of.link}.ipynb)"] if of.link else []
    return "\n".join([*lines, "", behind(df, f"{prefix}_static/evidence") if len(df) else ""])


def claims(scale: str, prefix: str = "") -> dict[str, tuple[str, str]]:
    """Anchor -> title and Markdown of every claim, in the order of the verdict table."""
    return {anchor(of.item): (of.item, claim(of, scale, prefix)) for of in CLAIMS}


def sweep(name: str, scale: str) -> dict[tuple, pd.DataFrame]:
    """The runs of an experiment by language model, site and layer: where at least one is stored as
    its own.
    """
    df = records.load(name, scale)
    own = [homes(scale)[run.id] == name for run in experiments.runs(name, scale)]
    return {
        where: rows
        for where, rows in df.groupby(["lm", "site", "layer"], sort=False)
        if any(own[i] for i in rows.index)
    }


def sweeps(scale: str) -> list[str]:
    """The experiments that have runs of their own at a scale."""
    own = set(homes(scale).values())
    return [name for name in experiments.EXPERIMENTS if name in own]
