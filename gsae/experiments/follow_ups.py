"""What is computed beside training, as data: the controls and pursuits of finished runs with their
tables, and the known dictionary, which needs no runs. No torch.
"""

from collections.abc import Sequence

import pandas as pd

from gsae.evidence import result_files
from gsae.experiments import records, sweeps

CONTROLS, ITO, KNOWN = "controls", "ito", "known"  # the experiments' names
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


def steps_at(scale: str) -> int:
    return STEPS.get(scale, 500)


def tokens_at(scale: str) -> int:
    return TOKENS.get(scale, 16_384)


def control_settings(run_id: str, control: str, increase: float = 0.0, steps: int = 0) -> dict:
    """What names a control: `increase` is 0 without pruning, `steps` 0 without training."""
    return {"run": run_id, "control": control, "increase": increase, "steps": steps}


def controls_of(row, increases: Sequence[float] = INCREASES, steps: int = 500) -> list[dict]:
    """The controls of one finished run: pruning for both arms; for baselines also rescale & shift,
    with and without.
    """
    pruned = [control_settings(row.id, "pruned", increase) for increase in increases]
    if row.arch != "baseline":
        return pruned
    rescaled = control_settings(row.id, "rescale_shift", steps=steps)
    both = [
        control_settings(row.id, "pruned_rescale_shift", increase, steps) for increase in increases
    ]
    return [rescaled, *pruned, *both]


def pursuit_settings(run_id: str, s: int, tokens: int) -> dict:
    """What names a pursuit: `s` latents at most, 0 for the run's own encoder, on `tokens` of
    evaluation text.
    """
    return {"run": run_id, "s": s, "tokens": tokens}


def wanted(kind: str, runs: pd.DataFrame, experiment: str, scale: str) -> list[dict]:
    """The settings of every result of one kind, "controls" or "ito", for the runs of an experiment.

    Raises KeyError where no controls are defined for the experiment.
    """
    if kind == ITO:
        tokens = tokens_at(scale)
        return [pursuit_settings(name, s, tokens) for name in runs["id"] for s in (0, *PURSUITS)]
    if experiment not in KINDS:
        raise KeyError(
            f"no controls are defined for {experiment!r}: expected one of {', '.join(KINDS)}"
        )
    steps, kinds = steps_at(scale), KINDS[experiment]
    planned = [settings for row in runs.itertuples() for settings in controls_of(row, steps=steps)]
    return [settings for settings in planned if settings["control"] in kinds]


def table(kind: str, experiment: str, scale: str | None = None) -> pd.DataFrame:
    """The results of one kind joined with the runs they were computed from; what is not on record
    is "missing".

    Returns:
        One row a result: its settings, metrics and `sums`, and the fields of its run (`arch`,
        `lam`, `seed`, `M`, …); what both have, as `l0` or `tokens`, is the result's, and the run's
        under the suffix `_run`. `run` is its id.
    """
    scale = sweeps.scale(scale)
    runs = records.load(experiment, scale)
    settings = wanted(kind, runs, experiment, scale)
    recipe = result_files.recipe(kind)
    rows = pd.DataFrame(settings)
    rows["id"] = [result_files.result_id(kind, each, recipe) for each in settings]
    results = result_files.load_results(kind, scale)
    measured = [column for column in results if column not in rows]
    rows = rows.merge(results[["id", *measured]], "left", on="id")
    rows = rows.merge(
        runs,
        "left",
        left_on="run",
        right_on="id",
        suffixes=("", "_run"),
        validate="many_to_one",
    )
    rows["status"] = rows["status"].fillna("missing")
    # With nothing on record these are the run's own, which are not the result's.
    for column in ("l0", "loss_recovered", "gamma", "sums"):
        if f"{column}_run" not in rows:
            rows = rows.rename(columns={column: f"{column}_run"}).assign(**{column: float("nan")})
    return rows


# Of the known dictionary: what all its results at a scale share, and, scale -> what they run over;
# `lam` are lambdas of each architecture, trained together.
KNOWN_SHARED = dict(n=32, features=48, tokens=300_000, batch=256, lr=5e-3)
KNOWN_SWEEP = dict(l0=(2.0, 4.0), noise=(0.0, 0.1, 0.3), seeds=3, lam=(0.3, 0.5, 0.8))
KNOWN_GRIDS: dict[str, dict] = {
    "smoke": KNOWN_SHARED | dict(l0=(2.0,), noise=(0.0,), seeds=1, lam=(0.5,), tokens=150_000),
    "cpu": KNOWN_SHARED | KNOWN_SWEEP,
    "gpu": KNOWN_SHARED | KNOWN_SWEEP,
    "paper": KNOWN_SHARED | KNOWN_SWEEP,
}


def known_settings(scale: str | None = None) -> list[dict]:
    """The settings of every result of the known dictionary at a scale, plain values."""
    grid = KNOWN_GRIDS[sweeps.scale(scale)]
    shared = {name: grid[name] for name in KNOWN_SHARED} | {"M": grid["features"] * 3 // 2}
    return [
        {"arch": arch, "lam": lam, "data_l0": l0, "noise": noise, "seed": seed, **shared}
        for l0 in grid["l0"]
        for noise in grid["noise"]
        for seed in range(grid["seeds"])
        for arch in ("gated", "baseline")
        for lam in grid["lam"]
    ]
