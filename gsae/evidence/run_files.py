"""Run files: one small json a run, with the sums behind every number and the commit that made it.
No torch.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from gsae.evidence import metrics, run
from gsae.evidence.provenance import CHECKOUT, EvidenceError
from gsae.evidence.run import RECIPES, Run
from gsae.system import files

SCHEMA = 1
FIELDS = (
    "schema",
    "recipe",
    "id",
    "experiment",
    "scale",
    "run",
    "metrics",
    "sums",
    "curve",
    "density",
    "provenance",
)


def root(scale: str) -> Path:
    """Where a scale's run files are: in the repository, or in the cache for smoke and where gsae is
    installed without its repository, as on Colab. GSAE_EVIDENCE overrides both.
    """
    chosen = os.environ.get("GSAE_EVIDENCE")
    if chosen:
        return Path(chosen) / scale
    if scale == "smoke" or not (CHECKOUT / "pyproject.toml").exists():
        return files.cache_dir() / "evidence" / scale
    return CHECKOUT / "book" / "evidence" / scale


def path(scale: str, experiment: str, run_id: str) -> Path:
    return root(scale) / experiment / f"{run_id}.json"


def find(run_id: str, scale: str) -> Path | None:
    """The run's file, under whichever experiment; None where there is none."""
    return next(root(scale).glob(f"*/{run_id}.json"), None)


def uneven(sums: Mapping[str, list]) -> bool:
    """Whether sums are of different numbers of groups of text."""
    return len({len(groups) for groups in sums.values()}) > 1


def contradictions(
    values: Mapping[str, float], sums: Mapping[str, list], equal_nan: bool = False
) -> list[str]:
    """The values that are not what the sums give, in words."""
    given = metrics.ratios({name: np.array(groups, float) for name, groups in sums.items()})
    return [
        f"its {name} is {values[name]}, its sums give {value}"
        for name, value in given.items()
        if name in values
        and not np.isclose(values[name], value, rtol=1e-5, atol=1e-7, equal_nan=equal_nan)
    ]


def validate(record: dict) -> list[str]:
    """What is wrong with a record, in words; an empty list when nothing is."""
    missing = [field for field in FIELDS if field not in record]
    if missing:
        return [f"lacks {', '.join(missing)}"]
    problems = []
    if record["schema"] != SCHEMA:
        problems.append(f"has schema {record['schema']}, this version reads {SCHEMA}")
    try:
        known = Run.of(record["run"])
        corpus, lm = (record["provenance"].get(field) for field in ("corpus", "lm"))
        if known.id_at(record["recipe"], corpus, lm) != record["id"]:
            problems.append("its id is not the hash of its fields: a field was edited")
    except (TypeError, ValueError) as error:
        problems.append(str(error))
    if uneven(record["sums"]):
        problems.append("its sums have groups of different number")
    # A metric that is NaN is told of below, once.
    problems += contradictions(record["metrics"], record["sums"], equal_nan=True)
    bad = [name for name, value in record["metrics"].items() if not np.isfinite(value)]
    if bad:
        problems.append(f"{', '.join(bad)} not finite")
    return problems


def place(record: dict) -> Path:
    """Write a checked record of a run or result to its place, whole or not at all."""
    target = path(record["scale"], record["experiment"], record["id"])
    files.write_json(target, record, allow_nan=False, end="\n")
    return target


def write(record: dict, force: bool = False) -> Path:
    """Check a record and write it to its place, whole or not at all.

    Raises:
        EvidenceError: when the record is invalid, or comes from a changed tree at a scale other
            than smoke.
        gsae.system.files.WriteError: where the disk is full.
    """
    problems = validate(record)
    if problems:
        raise EvidenceError(f"run {record.get('id')}: {'; '.join(problems)}")
    if record["scale"] != "smoke" and record["provenance"]["dirty"] and not force:
        raise EvidenceError(
            f"run {record['id']} comes from a tree with uncommitted changes: commit, then run again"
        )
    return place(record)


def read(file: Path) -> dict:
    """A checked record. Raises EvidenceError, naming the file, where it is damaged or was
    edited.
    """
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise EvidenceError(f"cannot read {file}: {error}") from error
    problems = validate(record)
    if not problems and file.stem != record["id"]:
        problems = [f"holds the run {record['id']}, which its name denies"]
    if problems:
        raise EvidenceError(
            f"{file} {'; '.join(problems)}. Restore it with git, or delete it and run it again"
        )
    return record


def newest(wanted: Run, scale: str) -> Path | None:
    """The run's file under the newest recipe that it was trained with; None where there is none."""
    for recipe in range(RECIPES[wanted.arch], 0, -1):
        file = find(wanted.id_at(recipe), scale)
        if file:
            return file
    return None


def recorded(record: dict) -> dict:
    """What a record adds to the fields of its run, for a row of `load`."""
    current = record["recipe"] == RECIPES[record["run"]["arch"]]
    curve = record["curve"]
    return {
        **record["metrics"],
        "status": "done" if current else "old recipe",
        "id": record["id"],
        "sums": record["sums"],
        "density": record["density"],
        "provenance": record["provenance"],
        "top_share": record.get("store", {}).get("top_share"),
        "curve": pd.DataFrame(curve["rows"], columns=curve["columns"]),
        "file": f"{record['experiment']}/{record['id']}.json",
    }


def load(runs: Iterable[Run], scale: str | None = None) -> pd.DataFrame:
    """One row a run: fields, metrics, `status` ("done", "old recipe", "missing") and the objects
    `sums, curve, density, provenance`. `top_share` is what the largest one in a thousand training
    activations hold of the squared norm.
    """
    scale = run.scale(scale)
    rows = []
    for wanted in runs:
        row = {"id": wanted.id, **asdict(wanted), "scale": scale, "status": "missing"}
        file = newest(wanted, scale)
        rows.append(row | recorded(read(file)) if file else row)
    frame = pd.DataFrame(rows)
    for column in ("sums", "curve", "density", "provenance", "l0", "loss_recovered", "gamma"):
        if column not in frame:
            frame[column] = np.nan
    return frame


def done(df: pd.DataFrame) -> pd.DataFrame:
    """The rows that have numbers."""
    return df[df["status"] != "missing"]
