"""Result files: what is computed from runs, or from no language model at all, one small json each.
No torch.

A run file (gsae.evidence.run_files) records a training run. A result file records anything else
with a number in a verdict: inference-time optimisation, rescale & shift and pruning of a finished
run, the known-dictionary study. Its `settings` are plain values (a parent run is named by its id,
under `run`), its `values` flat numbers or short lists; `sums`, where there are any, are the raw
sums of gsae.evidence.sums for the same groups of text as the parent's, so that intervals resample
runs and results jointly. The two kinds share the folders `book/evidence/<scale>/<experiment>/`.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from gsae.evidence import run, run_files
from gsae.evidence.provenance import EvidenceError

KIND = "result"
RESULT_SCHEMA = 1
RESULT_FIELDS = (
    "schema",
    "kind",
    "recipe",
    "id",
    "experiment",
    "scale",
    "settings",
    "values",
    "sums",
    "provenance",
)
LONGEST = 200  # numbers in one list of `values`
# Raised by hand whenever code that can move an experiment's numbers changes; 1 for an experiment
# that is not named.
RESULT_RECIPES: dict[str, int] = {}


def recipe(experiment: str) -> int:
    return RESULT_RECIPES.get(experiment, 1)


def result_id(experiment: str, settings: Mapping, recipe: int) -> str:
    """Twelve hex digits of the experiment, its settings and the recipe."""
    text = json.dumps([KIND, experiment, dict(settings), recipe], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def find_result(experiment: str, settings: Mapping, scale: str) -> Path | None:
    """The file of a result of the current recipe; None where there is none."""
    path = run_files.path(scale, experiment, result_id(experiment, settings, recipe(experiment)))
    return path if path.exists() else None


def _plain(value) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | bool | int)


def _numbers(value) -> bool:
    """Whether a value is a finite number, or a list of them that is not too long."""
    numbers = value if isinstance(value, list) else [value]
    finite = (isinstance(n, int | float) and math.isfinite(n) for n in numbers)
    return len(numbers) <= LONGEST and all(finite)


def result_problems(record: dict) -> list[str]:
    """What is wrong with a record, in words; an empty list when nothing is."""
    missing = [field for field in RESULT_FIELDS if field not in record]
    if missing:
        return [f"lacks {', '.join(missing)}"]
    problems = []
    if (record["schema"], record["kind"]) != (RESULT_SCHEMA, KIND):
        problems.append(
            f"is {record['kind']!r} of schema {record['schema']}, this reads {KIND!r} of schema "
            f"{RESULT_SCHEMA}"
        )
    bad = [name for name, value in record["settings"].items() if not _plain(value)]
    if bad:
        problems.append(f"settings {', '.join(bad)} are not plain values")
    elif result_id(record["experiment"], record["settings"], record["recipe"]) != record["id"]:
        problems.append("its id is not the hash of its settings: a setting was edited")
    problems += [
        f"its {name} is not a finite number or a list of at most {LONGEST}"
        for name, value in record["values"].items()
        if not _numbers(value)
    ]
    if run_files.uneven(record["sums"]):
        problems.append("its sums have groups of different number")
    elif record["sums"]:
        problems += run_files.contradictions(record["values"], record["sums"])
    return problems


def write_result(
    experiment: str,
    settings: Mapping,
    values: Mapping,
    provenance: Mapping,
    scale: str | None = None,
    sums: Mapping | None = None,
    force: bool = False,
) -> Path:
    """Check a result and write it to its place, whole or not at all.

    Args:
        settings: plain values that name the result; with the recipe they make its id.
        values: numbers, or lists of at most 200.
        provenance: of gsae.evidence.provenance.provenance.
        sums: raw sums for each group of text, equal lengths; `values` must agree with their ratios.
        force: write a scale other than smoke from a tree with uncommitted changes.

    Raises:
        EvidenceError: when the result is invalid, or comes from a changed tree at a scale other
            than smoke.
    """
    scale = run.scale(scale)
    record = {
        "schema": RESULT_SCHEMA,
        "kind": KIND,
        "recipe": recipe(experiment),
        "id": result_id(experiment, settings, recipe(experiment)),
        "experiment": experiment,
        "scale": scale,
        "settings": dict(settings),
        "values": dict(values),
        "sums": dict(sums or {}),
        "provenance": dict(provenance),
    }
    problems = result_problems(record)
    if problems:
        raise EvidenceError(f"result {record['id']} of {experiment}: {'; '.join(problems)}")
    if scale != "smoke" and record["provenance"].get("dirty", True) and not force:
        raise EvidenceError(
            f"result {record['id']} of {experiment} comes from a tree with uncommitted changes: "
            "commit, then run again"
        )
    return run_files.place(record)


def _parsed(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise EvidenceError(
            f"cannot read {file}: {error}. Restore it with git, or delete it"
        ) from error


def read_result(file: Path) -> dict:
    """A checked record. Raises EvidenceError, naming the file, where it is damaged or was
    edited.
    """
    record = _parsed(file)
    problems = result_problems(record)
    if not problems and file.stem != record["id"]:
        problems = [f"holds the result {record['id']}"]
    if problems:
        raise EvidenceError(
            f"{file} {'; '.join(problems)}. Restore it with git, or delete it and compute it again"
        )
    return record


def _row(file: Path, record: dict) -> dict:
    """A result as a row of `load_results`."""
    settings, values = record["settings"], record["values"]
    both = set(settings) & set(values)
    if both:
        raise EvidenceError(f"{file}: {', '.join(sorted(both))} is both a setting and a value")
    current = record["recipe"] == recipe(file.parent.name)
    return {
        **settings,
        **values,
        "status": "done" if current else "old recipe",
        "id": record["id"],
        "file": f"{file.parent.name}/{file.name}",
        "sums": record["sums"],
        "provenance": record["provenance"],
    }


def load_results(experiment: str, scale: str | None = None) -> pd.DataFrame:
    """One row a result on record: settings, values, `status` ("done" or "old recipe"), `id`,
    `file`, and the objects `sums`, `provenance`. Sorted by settings; empty, with those last
    columns, where nothing is on record.

    A value that bears a setting's name is an error of the writer and raises EvidenceError.
    """
    rows: list[dict] = []
    settings: dict[str, None] = {}  # their names, in the order of the files
    folder = run_files.root(run.scale(scale)) / experiment
    for file in sorted(folder.glob("[!.]*.json")):
        if "run" in _parsed(file):  # a run file in the same folder
            continue
        record = read_result(file)
        rows.append(_row(file, record))
        settings |= dict.fromkeys(record["settings"])
    if not rows:
        return pd.DataFrame(columns=["status", "id", "file", "sums", "provenance"])
    frame = pd.DataFrame(rows)
    return frame.sort_values(list(settings), ignore_index=True) if settings else frame
