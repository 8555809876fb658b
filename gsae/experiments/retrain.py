"""Runs on record, trained again from scratch and held to their run files: what may differ, what
cannot be made again, and `remake`, for weights that this machine lacks.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from gsae.evidence import metrics, provenance, run_files
from gsae.evidence.run import RECIPES, Run
from gsae.experiments.composition import checkpoint_of, kind, plan_of
from gsae.experiments.evaluate import Evaluation
from gsae.experiments.grouping import groups
from gsae.experiments.site import Site
from gsae.saes import SAE, files
from gsae.system.files import lock
from gsae.training import loop
from gsae.training.schedule import Plan
from gsae.training.stack import Stack

# Metric -> what it may differ by: a share of the recorded value, and an amount in its own units,
# added up.
TOLERANCES = {
    # Counts of tokens: the same text is cut the same way.
    "eval_tokens": (0.0, 0.0),
    "ce_tokens": (0.0, 0.0),
    # No SAE takes part, only products of the language model, which other processors round
    # otherwise.
    "ce_clean": (5e-4, 0.0),
    "ce_zero": (5e-4, 0.0),
    "ce_mean": (5e-4, 0.0),
    # Training in bf16 is chaotic: rounding by another number of threads, or by compiled kernels,
    # grows with the steps.
    "l0": (0.02, 0.0),
    "fvu": (0.02, 0.0),
    "mse": (0.02, 0.0),
    "gamma": (0.0, 0.01),
    # Of its inverse, the factor that fits best: it has itself no bound where a run explains nothing
    # about the mean.
    "gamma_centred": (0.0, 0.01),
    # What the reconstruction costs, and what is made of it: the share of it that is noise is that
    # of the error.
    "delta_ce": (0.05, 0.001),
    "ce_sae": (0.01, 0.0),
    "loss_recovered": (0.0, 0.01),
    "loss_recovered_mean": (0.0, 0.01),
    # Latents near death: a few of them fire on some evaluation token in one training and not in the
    # other.
    "dead_fraction": (0.0, 0.005),
}


def obstacle(record: dict) -> str:
    """Why a run cannot be made again here; empty where it can."""
    run = Run.of(record["run"])
    if record["recipe"] != RECIPES[run.arch]:
        return "of an older recipe"
    # The hashes in an id are those that text and model are held to as they are read.
    if record["id"] != run.id:
        return "of another text or language model"
    if run.text != "packaged":
        return "of text from the hub"
    if record["provenance"].get("ranks", 1) > 1:
        return "of several processes"
    return ""


def compare(record: dict, remade: dict) -> pd.DataFrame:
    """One row a metric of TOLERANCES: what is on record, and again; the difference of
    `gamma_centred` is that of its inverse. What is missing or NaN does not pass.
    """
    rows = []
    for name, (share, amount) in TOLERANCES.items():
        recorded = float(record["metrics"].get(name, "nan"))
        again = float(remade.get(name, "nan"))
        old, new = recorded, again
        if name == "gamma_centred":
            old, new = metrics.divide(1, [recorded, again])
        difference = new - old
        tolerance = share * abs(old) + amount
        rows.append(
            {
                "run": record["id"],
                "commit": record["provenance"]["commit"][:7],
                "metric": name,
                "recorded": recorded,
                "again": again,
                "difference": difference,
                "tolerance": tolerance,
                "passed": bool(abs(difference) <= tolerance),
            }
        )
    return pd.DataFrame(rows)


# To the record, within the tolerances of an audit; cross-entropy would cost as much again.
HELD = ("l0", "fvu", "gamma")


def weightless(run: Run) -> bool:
    """Whether this machine lacks a run's weights: they are not in git, its evidence is."""
    return not files.weights(run.id).exists()


def remake(runs: Sequence[Run], evaluation: Evaluation, scale: str) -> list[Run]:
    """Train the weightless of these runs of one site again, runs of a stack together; no evidence
    is written.

    Weights are kept, with a note of it in their `about["again"]`, only where L0, FVU and gamma
    agree with the record.

    Returns:
        The runs that did not agree, whose table is printed, and those that cannot be made again
        here.
    """
    failed = []
    for stack in groups(runs, lambda run: run.stack):
        with FileLock(lock(f"again-{kind(stack[0])}")):  # another process may be at it
            lost = [run for run in stack if weightless(run)]
            records = {run.id: run_files.read(run_files.find(run.id, scale)) for run in lost}
            obstacles = {run: obstacle(records[run.id]) for run in lost}
            for run, why in obstacles.items():
                if why:
                    print(f"run {run.id} cannot be trained again here: {why}", file=sys.stderr)
                    failed.append(run)
            possible = [run for run in lost if not obstacles[run]]
            if possible:
                failed += train(possible, evaluation, records)
    return failed


def train(runs: list[Run], evaluation: Evaluation, records: dict[str, dict]) -> list[Run]:
    """Train runs of one stack together, and keep the weights of those that agree with their
    records; returns the others.
    """
    site = evaluation.site
    plan = plan_of(runs, site)
    print(
        f"weights of {', '.join(run.id for run in runs)} are not here: trained again",
        file=sys.stderr,
    )
    checkpoint = checkpoint_of(plan, runs[0])
    # A sweep would take one of the usual name for a stack of its own.
    checkpoint = checkpoint.with_name(f"again-{checkpoint.name}")
    saes = loop.fit(Stack(plan), site.batches(runs[0]), checkpoint)
    failed = []
    for run, sae in zip(tqdm(runs, desc="compare", disable=None), saes, strict=True):
        table = compare(records[run.id], metrics.ratios(evaluation.reconstruct(sae).to_dict()))
        table = table[table["metric"].isin(HELD)]
        if table["passed"].all():
            save_again(run, sae, site, plan)
            continue
        failed.append(run)
        print(
            f"run {run.id}, trained again, is not the one on record:\n"
            f"{table.to_string(index=False)}",
            file=sys.stderr,
        )
    checkpoint.unlink(missing_ok=True)
    return failed


def save_again(run: Run, sae: SAE, site: Site, plan: Plan) -> None:
    """Keep the weights of a run that was trained a second time, with a note of it."""
    note = {"commit": provenance.commit(), "products": plan.dtype}
    scale = site.store.scale
    files.save(sae, files.weights(run.id), run=asdict(run), scale=scale, again=note)
