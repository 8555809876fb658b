"""Where everything meets: plan -> harvest -> train -> evaluate -> evidence. Public name:
`gsae.run`.
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

from gsae.evidence import provenance, run_files
from gsae.evidence.run import RECIPES, Run, sources
from gsae.experiments import estimate, limits, records, sweeps
from gsae.experiments.composition import checkpoint_of, compositions, kind, plan_of
from gsae.experiments.evaluate import Evaluation
from gsae.experiments.grouping import groups
from gsae.experiments.site import Site
from gsae.lm import models
from gsae.saes import SAE, files
from gsae.system import distributed
from gsae.system.devices import machine
from gsae.system.distributed import ALONE, Alone
from gsae.system.files import cache_dir, lock
from gsae.training import loop
from gsae.training.schedule import Plan
from gsae.training.stack import Stack


def run(
    name: str | list[Run],
    scale: str | None = None,
    *,
    only: slice | None = None,
    force: bool = False,
    home: str = "own",
) -> pd.DataFrame:
    """The table of an experiment: reads the runs that exist at this scale, trains those that do
    not, says which it did.

    Args:
        name: an experiment of `gsae list`, or your own list of `Run`.
        scale: smoke, cpu, gpu or paper; by default GSAE_SCALE, else smoke.
        only: which of the experiment's runs, by their place in it; all by default.
        force: write evidence of a scale other than smoke from a tree with uncommitted changes, and
            go on where memory or disk seem too small.
        home: the experiment under which runs are stored that no experiment names.

    Under `torchrun --nproc-per-node N -m gsae run …` the work is shared out: see
    `gsae.system.distributed`. With GSAE_TRAIN=never nothing is trained: missing runs are rows of
    status "missing".

    Returns:
        One row a run: its fields, its metrics, `status`, and the objects `sums`, `curve`,
        `density`, `provenance`.

    Raises:
        KeyError, ValueError: on an unknown experiment or scale.
        gsae.experiments.estimate.TooLarge: where memory or disk cannot hold it.
        gsae.lm.store.StoreError, gsae.saes.files.CheckpointError, gsae.system.files.WriteError: on
            a damaged file, a full disk.
        gsae.training.divergence.Diverged: on a NaN or an infinity; runs finished before it are
            kept.
    """
    scale = sweeps.scale(scale)
    runs = sweeps.runs(name, scale) if isinstance(name, str) else list(name)
    runs = runs[only or slice(None)]
    ranks = distributed.start()
    missing = missing_runs(runs, scale, ranks)
    if ranks.first:
        label = name if isinstance(name, str) else home
        say_what_is_on_record(label, scale, len(runs), len(missing))
    if records.to_be_made(missing, scale, force):
        if ranks.first:
            estimate.check(missing, scale, cache_dir(), force=force, **machine())
        train_missing(missing, scale, force, ranks, home)
        ranks.barrier("the other ranks' runs")
    return run_files.load(runs, scale)


def missing_runs(runs: list[Run], scale: str, ranks: Alone) -> list[Run]:
    """The runs without evidence, as the first rank sees it: files may appear between one rank's
    look and another's.
    """
    is_missing = ranks.agree([run_files.find(run.id, scale) is None for run in runs])
    return [run for run, missing in zip(runs, is_missing, strict=True) if missing]


def say_what_is_on_record(label: str, scale: str, count: int, missing: int) -> None:
    line = f"{label} at scale {scale}: {count - missing} of {count} runs are on record"
    if missing and records.reads_only():
        line += ", the others are missing (GSAE_TRAIN=never)"
    elif missing:
        line += f", {missing} to train"
    print(line, file=sys.stderr)


class Work(NamedTuple):
    """A site and the stacks that train there."""

    site: Site
    stacks: list[list[Run]]


def train_missing(
    missing: list[Run], scale: str, force: bool, ranks: Alone = ALONE, home: str = "own"
) -> None:
    """Train runs, language model by language model and site by site; over ranks, the stacks are
    dealt out.
    """
    for of_model in groups(missing, lambda run: run.lm):
        model = models.load(of_model[0].lm)
        texts = [work_on(of_text, model) for of_text in groups(of_model, lambda run: run.read)]
        train_texts(texts, scale, force, ranks, home)


def work_on(runs: list[Run], model: "models.LM") -> list[Work]:
    """The work on runs of one text, site by site."""
    return [
        Work(Site(of_site[0], model), groups(of_site, lambda run: run.stack))
        for of_site in groups(runs, lambda run: run.place)
    ]


def train_texts(texts: list[list[Work]], scale: str, force: bool, ranks: Alone, home: str) -> None:
    """Train all the work with one language model, text by text.

    Where there are fewer stacks than ranks, the ranks train one after another together; else each
    trains stacks of its own.
    """
    all_stacks = [stack for works in texts for work in works for stack in work.stacks]
    together = 1 < ranks.world and len(all_stacks) < ranks.world
    mine = all_stacks if together else dealt_to(ranks, all_stacks)
    if ranks.world > 1:  # the whole harvest first, while all are here
        for works in texts:
            harvest([work.site for work in works], ranks)
    for works in texts:
        harvest([work.site for work in works], ALONE)
        for site, stacks in works:
            stacks = [stack for stack in stacks if stack in mine]
            train_site(site, stacks, scale, force, ranks if together else ALONE, home)
            site.release()


def dealt_to(ranks: Alone, stacks: list[list[Run]]) -> list[list[Run]]:
    """The stacks that this rank trains."""
    # Runs of a stack differ in lambda alone: each is as much work.
    work = [len(stack) * stack[0].tokens * stack[0].M for stack in stacks]
    owners = distributed.dealt(work, ranks.world)
    return [stack for stack, owner in zip(stacks, owners, strict=True) if owner == ranks.rank]


def harvest(sites: list[Site], ranks: Alone) -> None:
    """Give sites of one text their stores, where they read from stores and have none yet."""
    if limits.streams(sites[0].run) or all("store" in site.__dict__ for site in sites):
        return
    for site, store in zip(sites, Site.harvest(sites, ranks), strict=True):
        site.store = store


def train_site(
    site: Site, stacks: list[list[Run]], scale: str, force: bool, ranks: Alone, home: str
) -> None:
    """Train a site's stacks, each under a lock: what another process is at comes last, and is then
    on record.
    """
    evaluation = Evaluation(site)
    busy = []
    for stack in stacks:
        if not train_if_free(stack, evaluation, scale, force, ranks, home, wait=False):
            busy.append(stack)
    for stack in busy:
        train_if_free(stack, evaluation, scale, force, ranks, home, wait=True)


def train_if_free(
    stack: list[Run],
    evaluation: Evaluation,
    scale: str,
    force: bool,
    ranks: Alone,
    home: str,
    wait: bool,
) -> bool:
    """Train what is missing of a stack, under its lock; without `wait`, False where another process
    holds that. Ranks always wait: they go through the stacks in step.
    """
    site = evaluation.site
    patience = -1 if wait or ranks.world > 1 else 0
    claim = FileLock(lock(f"stack-{kind(stack[0])}"), timeout=patience)
    with ExitStack() as held:
        try:
            held.enter_context(distributed.only(ranks, claim))
        except Timeout:
            return False
        left = missing_runs(stack, scale, ranks)
        for runs in compositions(left, site, scale, ranks) if left else ():
            site.make_room(runs)
            train_stack(runs, evaluation, home, scale, force, ranks)
    return True


def train_stack(
    runs: list[Run],
    evaluation: Evaluation,
    home: str,
    scale: str,
    force: bool = False,
    ranks: Alone = ALONE,
) -> None:
    """Train runs that differ in lambda alone, evaluate each that has no evidence yet and write it
    at once.

    With `ranks`, all train the stack together, and each evaluates its share of the SAEs.
    """
    began = time.monotonic()
    plan = plan_of(runs, evaluation.site)
    checkpoint = checkpoint_of(plan, runs[0])
    stack = Stack(plan, ranks)
    if ranks.first:
        remove_halves(checkpoint)
    batches = evaluation.site.batches(runs[0])
    saes = loop.fit(stack, batches, checkpoint, every=checkpoint_interval(plan))
    seconds = (time.monotonic() - began) / len(runs)
    bar = tqdm(runs, desc="evaluate", disable=None)
    for k, (run, sae) in enumerate(zip(bar, saes, strict=True)):
        is_mine = k % ranks.world == ranks.rank
        if is_mine and not run_files.find(run.id, scale):
            curve = {"columns": list(stack.columns), "rows": [row[k] for row in stack.curve]}
            trained = Trained(run, sae, curve, seconds)
            write_evidence(trained, evaluation, plan, home, scale, force, ranks)
    ranks.barrier("the evaluation")
    if ranks.first:
        checkpoint.unlink(missing_ok=True)


def remove_halves(checkpoint: Path) -> None:
    """Remove what a kill in the middle of a save left."""
    for half in checkpoint.parent.glob(f".{checkpoint.name}.*"):
        half.unlink()


def checkpoint_interval(plan: Plan) -> float:
    """Seconds between two checkpoints. One is made at some 0.5 GB/s, while training waits: large
    ones are made less often.
    """
    return max(60.0, 16 * plan.n * plan.M * len(plan.lams) / 1e7)


class Trained(NamedTuple):
    """An SAE of a stack: its run, the curve of its training, and its share of the seconds."""

    run: Run
    sae: SAE
    curve: dict
    seconds: float


def write_evidence(
    trained: Trained,
    evaluation: Evaluation,
    plan: Plan,
    home: str,
    scale: str,
    force: bool,
    ranks: Alone,
) -> None:
    """Keep an SAE's weights, evaluate it, and write its run file."""
    began = time.monotonic()
    run, sae, curve, train_seconds = trained
    store, model = evaluation.site.store, evaluation.site.model
    files.save(sae, files.weights(run.id), run=asdict(run), scale=store.scale)
    metrics, sums, density = evaluation.evaluate(sae)
    seconds = train_seconds + time.monotonic() - began
    origin = provenance.provenance(plan.device, seconds, *sources(run.lm, run.context))
    origin["lm_commit"] = model.commit
    origin["lm_dtype"] = str(model.dtype).removeprefix("torch.")
    origin["products"] = plan.dtype
    if ranks.world > 1:
        origin["ranks"] = ranks.world
    record = {
        "schema": run_files.SCHEMA,
        "recipe": RECIPES[run.arch],
        "id": run.id,
        "experiment": sweeps.home(run, scale, home),
        "scale": scale,
        "run": asdict(run),
        "metrics": metrics,
        "sums": sums,
        "curve": curve,
        "density": density,
        "store": {"scale": store.scale, "top_share": store.top_share, "rows": store.rows},
        "provenance": origin,
    }
    run_files.write(record, force=force)
