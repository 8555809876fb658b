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

import numpy as np
import pandas as pd

from gsae.evidence import metrics, run, run_files
from gsae.evidence.provenance import EvidenceError
from gsae.system import files

SCHEMA = 1
KIND = "result"
FIELDS = (
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
RECIPES: dict[str, int] = {}


def recipe(experiment: str) -> int:
    return RECIPES.get(experiment, 1)


def result_id(experiment: str, settings: Mapping, recipe: int) -> str:
    """Twelve hex digits of the experiment, its settings and the recipe."""
    text = json.dumps([KIND, experiment, dict(settings), recipe], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def find(experiment: str, settings: Mapping, scale: str) -> Path | None:
    """The file of a result of the current recipe; None where there is none."""
    path = run_files.path(scale, experiment, result_id(experiment, settings, recipe(experiment)))
    return path if path.exists() else None


def _plain(value) -> bool:
    return (
        value is None
        or isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


def _number(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def validate(record: dict) -> list[str]:
    """What is wrong with a record, in words; an empty list when nothing is."""
    if missing := [k for k in FIELDS if k not in record]:
        return [f"lacks {', '.join(missing)}"]
    problems = []
    if (record["schema"], record["kind"]) != (SCHEMA, KIND):
        problems.append(
            f"is {record['kind']!r} of schema {record['schema']}, this reads {KIND!r} of schema "
            f"{SCHEMA}"
        )
    if bad := [k for k, v in record["settings"].items() if not _plain(v)]:
        problems.append(f"settings {', '.join(bad)} are not plain values")
    elif result_id(record["experiment"], record["settings"], record["recipe"]) != record["id"]:
        problems.append("its id is not the hash of its settings: a setting was edited")
    for name, value in record["values"].items():
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > LONGEST or not all(map(_number, numbers)):
            problems.append(f"its {name} is not a finite number or a list of at most {LONGEST}")
    sums = {k: np.array(v, float) for k, v in record["sums"].items()}
    if len({len(v) for v in sums.values()}) > 1:
        problems.append("its sums have groups of different number")
    elif sums:
        for name, value in metrics.ratios(sums).items():
            if name in record["values"] and not np.isclose(
                record["values"][name], value, rtol=1e-5, atol=1e-7
            ):
                problems.append(f"its {name} is {record['values'][name]}, its sums give {value}")
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
        provenance: of gsae.evidence.run_files.provenance.
        sums: raw sums for each group of text, equal lengths; `values` must agree with their ratios.
        force: write a scale other than smoke from a tree with uncommitted changes.

    Raises:
        EvidenceError: when the result is invalid, or comes from a changed tree at a scale other
            than smoke.
    """
    at = run.scale(scale)
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "recipe": recipe(experiment),
        "id": result_id(experiment, settings, recipe(experiment)),
        "experiment": experiment,
        "scale": at,
        "settings": dict(settings),
        "values": dict(values),
        "sums": dict(sums or {}),
        "provenance": dict(provenance),
    }
    if problems := validate(record):
        raise EvidenceError(f"result {record['id']} of {experiment}: {'; '.join(problems)}")
    if at != "smoke" and record["provenance"].get("dirty", True) and not force:
        raise EvidenceError(
            f"result {record['id']} of {experiment} comes from a tree with uncommitted changes: "
            "commit, then run again"
        )
    target = run_files.path(at, experiment, record["id"])
    with files.replacing(target) as temporary:
        temporary.write_text(json.dumps(record, allow_nan=False) + "\n")
    return target


def _parse(file: Path) -> dict:
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
    record = _parse(file)
    problems = validate(record)
    if not problems and file.stem != record["id"]:
        problems = [f"holds the result {record['id']}"]
    if problems:
        raise EvidenceError(
            f"{file} {'; '.join(problems)}. Restore it with git, or delete it and compute it again"
        )
    return record


def load(experiment: str, scale: str | None = None) -> pd.DataFrame:
    """One row a result on record: settings, values, `status` ("done" or "old recipe"), `id`,
    `file`, and the objects `sums`, `provenance`. Sorted by settings; empty, with those last
    columns, where nothing is on record.

    A value that bears a setting's name is an error of the writer and raises EvidenceError.
    """
    at, rows = run.scale(scale), []
    names: list[str] = []
    for file in sorted((run_files.root(at) / experiment).glob("[!.]*.json")):
        if "run" in _parse(file):  # a run file in the same folder
            continue
        record = read_result(file)
        if both := set(record["settings"]) & set(record["values"]):
            raise EvidenceError(f"{file}: {', '.join(sorted(both))} is both a setting and a value")
        names += [k for k in record["settings"] if k not in names]
        status = "done" if record["recipe"] == recipe(experiment) else "old recipe"
        row = {**record["settings"], **record["values"], "status": status, "id": record["id"]}
        rows.append(
            row
            | {
                "file": f"{experiment}/{file.name}",
                **{k: record[k] for k in ("sums", "provenance")},
            }
        )
    frame = pd.DataFrame(
        rows, columns=None if rows else ["status", "id", "file", "sums", "provenance"]
    )
    return frame.sort_values(names, ignore_index=True) if names else frame
