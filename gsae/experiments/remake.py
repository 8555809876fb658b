"""Weights of runs on record that this machine lacks, trained again and held to their records before they are kept."""

import sys
from collections.abc import Sequence

from filelock import FileLock
from tqdm import tqdm

from gsae.evidence import metrics, run_files
from gsae.experiments import retrain, runner
from gsae.experiments.site import Site, lock
from gsae.experiments.sweeps import Run, asdict
from gsae.saes import files
from gsae.training.loop import fit
from gsae.training.stack import Stack

# To the record, within the tolerances of an audit; cross-entropy would cost as much again.
HELD = ("l0", "fvu", "gamma")


def weightless(run: Run) -> bool:
    """Whether this machine lacks a run's weights: they are not in git, its evidence is."""
    return not files.weights(run.id).exists()


def remake(runs: Sequence[Run], site: Site, at: str) -> list[Run]:
    """Train the weightless of these runs again, runs of a stack together; no evidence is written.

    Weights are kept, with a note of it in their `about["again"]`, only where L0, FVU and gamma agree with the record.

    Returns:
        The runs that did not agree, whose table is printed, and those that cannot be made again here.
    """
    failed = []
    for of_stack in runner.groups(runs, lambda r: r.stack):
        with FileLock(lock(f"again-{runner.kind(of_stack[0])}")):  # another process may be at it
            lost = [run for run in of_stack if weightless(run)]
            records = {run.id: run_files.read(run_files.find(run.id, at)) for run in lost}
            for run in [run for run in lost if (why := retrain.obstacle(records[run.id]))]:
                print(f"run {run.id} cannot be trained again here: {why}", file=sys.stderr)
                failed.append(run)
                lost.remove(run)
            if lost:
                failed += train(lost, site, records)
    return failed


def train(runs: list[Run], site: Site, records: dict[str, dict]) -> list[Run]:
    plan, failed = runner.plan_of(runs, site), []
    print(f"weights of {', '.join(run.id for run in runs)} are not here: trained again", file=sys.stderr)
    path = runner.checkpoint_of(plan, runs[0])
    path = path.with_name(f"again-{path.name}")  # a sweep would take it for a stack of its own
    saes = fit(Stack(plan), site.batches(runs[0]), path)
    for run, sae in zip(tqdm(runs, desc="compare", disable=None), saes, strict=True):
        told = retrain.compare(records[run.id], metrics.ratios(site.reconstruct(sae).to_dict()))
        told = told[told["metric"].isin(HELD)]
        if told["passed"].all():
            note = {"commit": run_files.commit(), "products": plan.dtype}
            files.save(sae, files.weights(run.id), run=asdict(run), scale=site.store.scale, again=note)
        else:
            failed.append(run)
            table = told.to_string(index=False)
            print(f"run {run.id}, trained again, is not the one on record:\n{table}", file=sys.stderr)
    path.unlink(missing_ok=True)
    return failed
