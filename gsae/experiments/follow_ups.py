"""What is computed from finished runs, as data: which controls and pursuits there are, and their
tables. No torch.
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from gsae.evidence import result_files
from gsae.evidence import run as sweeps
from gsae.experiments import records

CONTROLS, ITO = "controls", "ito"  # the experiments' names
RUNS = "seeds"  # the experiment whose runs are pruned and pursued, and on which the verdicts rest
PURSUED = (RUNS, "same_width", "longer")
INCREASES = (0.01, 0.05)  # of the mean squared error that pruning may cost, on training data
PURSUITS = (10, 30, 100)  # Fig. 10's numbers of latents at test time
# experiment -> which controls of its runs (rescale & shift and both together: baselines alone)
KINDS = {
    "same_width": ("rescale_shift", "pruned", "pruned_rescale_shift"),
    RUNS: ("pruned",),
}
STEPS = {"smoke": 100}  # of rescale & shift; 500 elsewhere
TOKENS = {"smoke": 512}  # of pursuit; 16,384 elsewhere


def settings(run_id: str, control: str, increase: float = 0.0, steps: int = 0) -> dict:
    """What names a control: `increase` is 0 without pruning, `steps` 0 without training."""
    return {"run": run_id, "control": control, "increase": increase, "steps": steps}


def plan(row, increases: Sequence[float] = INCREASES, steps: int = 500) -> list[dict]:
    """The controls of one finished run: pruning for both arms; for baselines also rescale & shift,
    with and without.
    """
    pruned = [settings(row.id, "pruned", increase) for increase in increases]
    if row.arch != "baseline":
        return pruned
    both = [settings(row.id, "pruned_rescale_shift", increase, steps) for increase in increases]
    return [settings(row.id, "rescale_shift", steps=steps), *pruned, *both]


def pursuit(run_id: str, s: int, tokens: int) -> dict:
    """What names a pursuit: `s` latents at most, 0 for the run's own encoder, on `tokens` of
    evaluation text.
    """
    return {"run": run_id, "s": s, "tokens": tokens}


def wanted(kind: str, runs: pd.DataFrame, experiment: str, at: str) -> list[dict]:
    """The settings of every result of one kind, "controls" or "ito", for the runs of an experiment.

    Raises KeyError where no controls are defined for the experiment.
    """
    if kind == ITO:
        sizes = (0, *PURSUITS)
        return [
            pursuit(row.id, s, TOKENS.get(at, 16_384)) for row in runs.itertuples() for s in sizes
        ]
    if experiment not in KINDS:
        raise KeyError(
            f"no controls are defined for {experiment!r}: expected one of {', '.join(KINDS)}"
        )
    planned = [of for row in runs.itertuples() for of in plan(row, steps=STEPS.get(at, 500))]
    return [of for of in planned if of["control"] in KINDS[experiment]]


def missing(kind: str, of: Iterable[dict], at: str) -> list[dict]:
    return [one for one in of if result_files.find_result(kind, one, at) is None]


def table(kind: str, experiment: str, scale: str | None = None) -> pd.DataFrame:
    """The results of one kind joined with the runs they were computed from; what is not on record
    is "missing".

    Returns:
        One row a result: its settings, metrics and `sums`, and the fields of its run (`arch`,
            `lam`, `seed`, `M`, …);
        what both have, as `l0` or `tokens`, is the result's, and the run's under the suffix `_run`.
        `run` is its id.
    """
    at = sweeps.scale(scale)
    runs = records.load(experiment, at)
    rows = pd.DataFrame(of := wanted(kind, runs, experiment, at))
    rows["id"] = [result_files.result_id(kind, one, result_files.recipe(kind)) for one in of]
    found = result_files.load_results(kind, at)
    found = found[["id", *(c for c in found if c not in rows)]]
    rows = rows.merge(found, "left", on="id").merge(
        runs, "left", left_on="run", right_on="id", suffixes=("", "_run"), validate="many_to_one"
    )
    rows["status"] = rows["status"].fillna("missing")
    for column in (
        "l0",
        "loss_recovered",
        "gamma",
        "sums",
    ):  # nothing on record: the run's own are not the result's
        if f"{column}_run" not in rows:
            rows = rows.rename(columns={column: f"{column}_run"}).assign(**{column: float("nan")})
    return rows


EXPERIMENT = "known"


FIXED = dict(n=32, features=48, tokens=300_000, batch=256, lr=5e-3)


GRID: dict[str, dict] = {  # of each scale; `lam` are lambdas of each architecture, trained together
    "smoke": FIXED | dict(l0=(2.0,), noise=(0.0,), seeds=1, lam=(0.5,), tokens=150_000),
    "cpu": FIXED | dict(l0=(2.0, 4.0), noise=(0.0, 0.1, 0.3), seeds=3, lam=(0.3, 0.5, 0.8)),
}


def grid(scale: str | None = None) -> list[dict]:
    """The settings of every result at a scale, plain values."""
    of = GRID[sweeps.scale(scale)]
    fixed = {k: of[k] for k in FIXED} | {"M": of["features"] * 3 // 2}
    return [
        {"arch": arch, "lam": lam, "data_l0": l0, "noise": noise, "seed": seed, **fixed}
        for l0 in of["l0"]
        for noise in of["noise"]
        for seed in range(of["seeds"])
        for arch in ("gated", "baseline")
        for lam in of["lam"]
    ]
