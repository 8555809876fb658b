"""Run files: one small json a run, with the sums behind every number and the commit that made it.
No torch.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from gsae.evidence import metrics
from gsae.evidence import run as run_module
from gsae.evidence.provenance import CHECKOUT, EvidenceError
from gsae.evidence.run import RECIPES, Run
from gsae.system import files
from gsae.system.files import cache_dir

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
    if own := os.environ.get("GSAE_EVIDENCE"):
        return Path(own) / scale
    cached = scale == "smoke" or not (CHECKOUT / "pyproject.toml").exists()
    return (cache_dir() / "evidence" if cached else CHECKOUT / "book" / "evidence") / scale


def path(scale: str, experiment: str, run_id: str) -> Path:
    return root(scale) / experiment / f"{run_id}.json"


def find(run_id: str, scale: str) -> Path | None:
    """The run's file, under whichever experiment; None where there is none."""
    return next(root(scale).glob(f"*/{run_id}.json"), None)


def validate(record: dict) -> list[str]:
    """What is wrong with a record, in words; an empty list when nothing is."""
    if missing := [k for k in FIELDS if k not in record]:
        return [f"lacks {', '.join(missing)}"]
    problems = []
    if record["schema"] != SCHEMA:
        problems.append(f"has schema {record['schema']}, this version reads {SCHEMA}")
    try:
        run = Run.of(record["run"])
        if (
            run.id_at(
                record["recipe"], record["provenance"].get("corpus"), record["provenance"].get("lm")
            )
            != record["id"]
        ):
            problems.append("its id is not the hash of its fields: a field was edited")
    except (TypeError, ValueError) as error:
        problems.append(str(error))
    if len({len(v) for v in record["sums"].values()}) > 1:
        problems.append("its sums have groups of different number")
    for name, value in metrics.ratios({k: np.array(v) for k, v in record["sums"].items()}).items():
        if name in record["metrics"] and not np.isclose(
            record["metrics"][name], value, rtol=1e-5, atol=1e-7, equal_nan=True
        ):
            problems.append(f"its {name} is {record['metrics'][name]}, its sums give {value}")
    if bad := [k for k, v in record["metrics"].items() if not np.isfinite(v)]:
        problems.append(f"{', '.join(bad)} not finite")
    return problems


def write(record: dict, force: bool = False) -> Path:
    """Check a record and write it to its place, whole or not at all.

    Raises:
        EvidenceError: when the record is invalid, or comes from a changed tree at a scale other
            than smoke.
        gsae.system.files.WriteError: where the disk is full.
    """
    if problems := validate(record):
        raise EvidenceError(f"run {record.get('id')}: {'; '.join(problems)}")
    if record["scale"] != "smoke" and record["provenance"]["dirty"] and not force:
        raise EvidenceError(
            f"run {record['id']} comes from a tree with uncommitted changes: commit, then run again"
        )
    target = path(record["scale"], record["experiment"], record["id"])
    with files.replacing(target) as temporary:
        temporary.write_text(json.dumps(record, allow_nan=False) + "\n")
    return target


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


def load(runs: Iterable[Run], scale: str | None = None) -> pd.DataFrame:
    """One row a run: fields, metrics, `status` ("done", "old recipe", "missing") and the objects
    `sums, curve, density, provenance`. `top_share` is what the largest one in a thousand training
    activations hold of the squared norm.
    """
    at = run_module.scale(scale)
    rows = []
    for run in runs:
        row = {"id": run.id, **asdict(run), "scale": at, "status": "missing"}
        recipes = range(RECIPES[run.arch], 0, -1)
        found = next((f for recipe in recipes if (f := find(run.id_at(recipe), at))), None)
        if found:
            record = read(found)
            current = record["recipe"] == RECIPES[run.arch]
            row |= record["metrics"] | {
                "status": "done" if current else "old recipe",
                "id": record["id"],
            }
            row |= {k: record[k] for k in ("sums", "density", "provenance")}
            row["top_share"] = record.get("store", {}).get("top_share")
            row["curve"] = pd.DataFrame(record["curve"]["rows"], columns=record["curve"]["columns"])
            row["file"] = f"{record['experiment']}/{record['id']}.json"
        rows.append(row)
    frame = pd.DataFrame(rows)
    for column in ("sums", "curve", "density", "provenance", "l0", "loss_recovered", "gamma"):
        if column not in frame:
            frame[column] = np.nan
    return frame


def done(df: pd.DataFrame) -> pd.DataFrame:
    """The rows that have numbers."""
    return df[df["status"] != "missing"]
