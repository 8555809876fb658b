"""The record of `make bench` as tables and as a figure. Made by `benchmarks/`, shown by the book's
page on cost.
"""

import json
from itertools import product
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from gsae.figures.base import COLOURS, MARKERS, styled

NAMES = {"sae-lens": "SAELens", "dictionary-learning": "dictionary_learning"}
PEER_MARKERS = {"sae-lens": "^", "dictionary-learning": "v"}


def newest(folder: Path) -> dict | None:
    """The record of the latest date in a folder, None where there is none."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return max(records, key=lambda r: r["date"], default=None)


def headline(record: dict) -> str:
    """Date, machine and versions in one paragraph."""
    m, v, settings = record["machine"], record["versions"], record["settings"]
    where = m["cpu"] if m["device"] == "cpu" else f"{m['device']}, {m['cpu']}"
    flags = f" ({', '.join(m['flags'])})" if m["flags"] else ""
    peers = "".join(
        f", {name} {record['peers'][key]}" for key, name in NAMES.items() if key in record["peers"]
    )
    busy = (
        f" The processors were {m['busy_before']:.0%} busy before the first round."
        if m["busy_before"] > 0.1
        else ""
    )
    threads = f"{m['threads']} thread{'s' * (m['threads'] > 1)}"
    return (
        f"Measured {record['date']} on {where}{flags}, {threads} on {m['cores']} cores, "
        f"torch {v['torch']}{peers}, commit {record['commit'][:7] or 'unknown'}"
        f"{' with uncommitted changes' if record['dirty'] else ''}. Medians of "
        f"{settings['rounds']} rounds of all "
        f"cases in turn, with the least and the greatest.{busy}"
    )


def spread(values: list[float] | None, form: str) -> str:
    if values is None:
        return ""
    mid, low, high = (format(v, form) for v in values)
    return f"{mid} [{low}, {high}]"


def tables(record: dict) -> dict[str, pd.DataFrame]:
    """Tables of text by their titles, the shapes at which other libraries were measured first and
    by falling speed; a part that was not measured has none."""
    rows = {
        kind: [r for r in record["rows"] if r["kind"] == kind]
        for kind in ("training", "cost", "machine", "harvest", "profile")
    }
    shared = {(r["arch"], *shape(r)) for r in rows["training"] if r["library"] != "gsae"}
    beside = [r for r in rows["training"] if (r["arch"], *shape(r)) in shared]
    alone = [r for r in rows["training"] if r not in beside]
    beside.sort(key=lambda r: (r["arch"], *shape(r), r["K"], -r.get("samples_per_s", [0])[0]))
    sections = {
        "Aims": map(target_line, targets(record)),
        "Training, beside other libraries": map(training_line, beside),
        "Training, other shapes": map(training_line, alone),
        "Where a step's time goes": map(profile_line, rows["profile"]),
        "A gated step over a baseline step": map(cost_line, rows["cost"]),
        "Harvest": map(harvest_line, rows["harvest"]),
        "Matrix products of this machine, TFLOP/s": map(machine_line, rows["machine"]),
    }
    made = {title: pd.DataFrame(lines) for title, lines in sections.items()}
    return {title: table.loc[:, (table != "").any()] for title, table in made.items() if len(table)}


def training_line(r: dict) -> dict:
    return {
        "library": f"{NAMES.get(r['library'], r['library'])}, {r['setting']}",
        "SAE": r["arch"],
        "stack": r["K"],
        "n": r["n"],
        "M": r["M"],
        "batch": r["batch"],
        "samples/s": spread(r.get("samples_per_s"), ",.0f") or f"failed: {r['error']}",
        "TFLOP/s": spread(r.get("tflops"), ".3f"),
        "of bf16 rate": spread(r.get("share_of_bf16"), ".0%"),
        "x best peer": spread(r.get("times_fastest_documented"), ".2f"),
        "x best made of a peer": spread(r.get("times_fastest_made"), ".2f"),
    }


def cost_line(r: dict) -> dict:
    return {
        "products in": r["setting"],
        "stack": r["K"],
        "n": r["n"],
        "gated M": r["M"],
        "baseline M": int(r["M"] * r["wider"]),
        "batch": r["batch"],
        "measured": spread(r["measured"], ".2f"),
        "counted": f"{r['count']:.2f}",
    }


def profile_line(r: dict) -> dict:
    shares = {name: f"{share:.0%}" for name, share in r["shares"].items()}
    return {
        "SAE": r["arch"],
        "products in": r["setting"],
        "n": r["n"],
        "M": r["M"],
        "batch": r["batch"],
        **shares,
    }


def machine_line(r: dict) -> dict:
    rates = {name: spread(values, ".3f") for name, values in r["products"].items()}
    return {"dtype": r["dtype"], "n": r["n"], "M": r["M"], "batch": r["batch"], **rates}


def harvest_line(r: dict) -> dict:
    return {
        "forward pass": r["name"], "tokens/s": spread(r["tokens_per_s"], ",.0f"),
        "of the bare forward": spread(r.get("share_of_bare"), ".0%"),
    }  # fmt: skip


# What a step was to reach, written down before it was measured: the case, the quantity, the least.
TARGETS = (
    ("gated, one SAE", {"arch": "gated", "K": 1, "M": 2304}, "share_of_bf16", 0.80),
    ("gated, a stack of 8", {"arch": "gated", "K": 8, "M": 2304}, "share_of_bf16", 0.75),
    ("baseline, one SAE", {"arch": "baseline", "K": 1, "M": 2304}, "share_of_bf16", 0.80),
    ("baseline, M 16,384", {"arch": "baseline", "K": 1, "M": 16_384}, "share_of_bf16", 0.80),
    ("gated, M 16,384", {"arch": "gated", "K": 1, "M": 16_384}, "share_of_bf16", 0.80),
    ("gated, M 2,304", {"arch": "gated", "K": 1, "M": 2304}, "times_fastest_made", 1.5),
    ("gated, M 4,608", {"arch": "gated", "K": 1, "M": 4608}, "times_fastest_made", 2.0),
    ("gated, M 2,304", {"arch": "gated", "K": 1, "M": 2304}, "times_default", 2.5),
)
SETTINGS = {
    "bf16": "",
    "sparse, L0 64": ", 64 latents on",
}  # dense products, and those of training once few are on
QUANTITIES = {"share_of_bf16": "of the bf16 rate", "times_fastest_made": "x best made of a peer",
              "times_default": "x the faster of the peers' defaults",
              "share_of_bare": "of the bare forward"}  # fmt: skip


def targets(record: dict) -> list[dict]:
    """Each target beside what was measured at n 576 and batch 2048, with dense products and with
    sparse ones: `what, quantity, least, measured, met`, the measured as median, least and greatest;
    what was not measured is left out.
    """
    training = [r for r in record["rows"] if r["kind"] == "training" and "error" not in r]
    ours = [r for r in training if (r["library"], r["n"], r["batch"]) == ("gsae", 576, 2048)]
    reached = []
    for (what, case, quantity, least), (setting, note) in product(TARGETS, SETTINGS.items()):
        for r in (r for r in ours if (case | {"setting": setting}).items() <= r.items()):
            defaults = [
                d["rounds"]
                for d in training
                if d["setting"] == "default" and case.items() <= d.items()
            ]
            fastest = max(defaults, key=median, default=None)
            times = [a / b for a, b in zip(r["rounds"], fastest, strict=True)] if fastest else None
            known = r | (
                {"times_default": [median(times), min(times), max(times)]} if times else {}
            )
            if quantity in known:
                reached.append((what + note, quantity, least, known[quantity]))
    reached += [
        (r["name"], "share_of_bare", 0.9, r["share_of_bare"])
        for r in record["rows"]
        if "share_of_bare" in r
    ]
    keys = ("what", "quantity", "least", "measured", "met")
    return [dict(zip(keys, (*one, one[-1][0] >= one[-2]), strict=True)) for one in reached]


def target_line(t: dict) -> dict:
    form = ".0%" if t["quantity"].startswith("share") else ".2f"
    return {
        "case": t["what"],
        "quantity": QUANTITIES[t["quantity"]],
        "aimed at": f"at least {t['least']:{form}}",
        "measured": spread(t["measured"], form),
        "reached": "yes" if t["met"] else "no",
    }


def markdown(table: pd.DataFrame) -> str:
    """A pipe table; what a cell holds is shown as it is."""
    line = lambda cells: (
        f"| {' | '.join(str(c).replace('|', '&#124;').replace('<', '&lt;') for c in cells)} |"
    )
    return "\n".join(
        [
            line(table.columns),
            line("---" for _ in table.columns),
            *map(line, table.itertuples(index=False)),
        ]
    )


def at_reference(record: dict) -> list[dict]:
    """Training rows of the shape at which most stack sizes were measured, dense in bf16, without
    those that failed.
    """
    rows = [r for r in record["rows"] if r["kind"] == "training" and "error" not in r]
    rows = [r for r in rows if r["setting"] != "fp32" and not r["setting"].startswith("sparse")]
    shapes = [
        (r["n"], r["M"], r["batch"])
        for r in rows
        if r["library"] == "gsae" and r["arch"] == "gated"
    ]
    return [
        r
        for r in rows
        if (r["n"], r["M"], r["batch"]) == max(shapes, key=shapes.count, default=None)
    ]


@styled
def figure(record: dict) -> Figure:
    """Samples a second of a whole stack against its size; above, what the machine's products alone
    would allow.
    """
    rows, (figure, axes) = at_reference(record), plt.subplots()
    for arch in ("baseline", "gated"):
        ours = sorted(
            (r for r in rows if r["library"] == "gsae" and r["arch"] == arch), key=lambda r: r["K"]
        )
        if ours:
            bars(axes, ours, COLOURS[arch], MARKERS[arch], f"gsae, {arch}", "-")
        for r in record["rows"]:
            if (
                ours
                and r["kind"] == "machine"
                and r["dtype"] == "bf16"
                and shape(r) == shape(ours[0])
            ):
                roof = r["tflops"][arch][0] * 1e12 / ours[0]["flops_a_sample"]
                axes.axhline(
                    roof, color=COLOURS[arch], lw=1, ls="--", label=f"bf16 products alone, {arch}"
                )
    for library, marker in PEER_MARKERS.items():
        gated = [r for r in rows if r["library"] == library and r["arch"] == "gated"]
        best = max(gated, key=lambda r: r["samples_per_s"][0], default=None)
        if best:
            same = sorted(
                (r for r in gated if r["setting"] == best["setting"]), key=lambda r: r["K"]
            )
            bars(
                axes,
                same,
                COLOURS["truth"],
                marker,
                f"{NAMES[library]}, gated, {best['setting']}",
                ":",
            )
    sizes = sorted({r["K"] for r in rows})
    if sizes:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(k) for k in sizes])
        axes.legend(fontsize=7.5)
        n, M, batch = shape(rows[0])
        axes.set_title(f"n {n}, M {M}, batch {batch}")
    axes.set(xlabel="SAEs in the stack", ylabel="samples/s, all SAEs together", ylim=(0, None))
    return figure


def bars(axes, rows: list[dict], colour: str, marker: str, label: str, style: str) -> None:
    mid, low, high = zip(*(r["samples_per_s"] for r in rows), strict=True)
    ends = [
        [m - a for m, a in zip(mid, low, strict=True)],
        [b - m for m, b in zip(mid, high, strict=True)],
    ]
    axes.errorbar(
        [r["K"] for r in rows],
        mid,
        ends,
        color=colour,
        marker=marker,
        ls=style,
        capsize=2,
        label=label,
    )


def shape(row: dict) -> tuple[int, int, int]:
    return row["n"], row["M"], row["batch"]


def alt(record: dict) -> str:
    """The figure in words."""
    ours = [r for r in at_reference(record) if r["library"] == "gsae" and r["arch"] == "gated"]
    parts = [
        f"{r['samples_per_s'][0]:,.0f} for a stack of {r['K']}"
        for r in sorted(ours, key=lambda r: r["K"])
    ]
    return "Training samples per second against the number of SAEs in a stack, gated: " + "; ".join(
        parts
    )
