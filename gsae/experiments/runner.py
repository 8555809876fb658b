"""Where everything meets: plan -> harvest -> train -> evaluate -> evidence. Public name:
`gsae.run`.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from gsae.evidence import provenance, run_files
from gsae.evidence import run as run_module
from gsae.evidence.run import Run
from gsae.experiments import estimate, limits, sweeps
from gsae.experiments.site import Site
from gsae.lm import models as language_models
from gsae.saes import files
from gsae.system import distributed, tensors
from gsae.system.devices import machine, product_dtype
from gsae.system.distributed import ALONE, Alone
from gsae.system.files import cache_dir, lock
from gsae.training.loop import fit
from gsae.training.schedule import Plan
from gsae.training.stack import Stack


def plan_of(runs: list[Run], site: Site) -> Plan:
    run, device = runs[0], "cuda" if torch.cuda.is_available() else "cpu"
    return Plan(
        run.arch,
        len(site.store.mean),
        run.M,
        tuple(r.lam for r in runs),
        run.steps,
        run.batch,
        run.lr,
        run.seed,
        tuple(sorted(run.switches.items())),
        run.lam_warmup,
        run.lr_warmup,
        run.lr_decay,
        run.resample,
        tuple(r.id for r in runs),
        dtype=product_dtype(device),
        device=device,
    )


def kind(run: Run) -> str:
    """A hash of all that the runs of one stack share: whichever of them are left, it is the
    same.
    """
    return replace(run, lam=0.0).id


def checkpoint_of(plan: Plan, run: Run) -> Path:
    """A stack's checkpoint: named after what its runs share, then after which runs they are."""
    shared = kind(run) + repr(replace(plan, lams=(), names=()))
    parts = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (shared, repr(plan.names)))
    return cache_dir() / "checkpoints" / f"{'-'.join(parts)}.safetensors"


def compositions(left: list[Run], site: Site, at: str, ranks: Alone = ALONE) -> list[list[Run]]:
    """How the runs left of one stack train: those of a checkpoint in the stack that was saved, the
    others together, or, where a GPU does not hold as many, in the parts of `gsae plan`.

    A stack is resumed as it was, with the runs that were finished meanwhile (their evidence is not
    written again): resampling draws by a run's place, and steps already made are not made twice. A
    checkpoint of finished runs alone is of no more use, and deleted; one of runs that are not asked
    for now is kept for when they are.
    """
    stacks, rest, saved = [], list(left), []
    pattern = checkpoint_of(plan_of(left, site), left[0]).name.split("-")[0]
    for path in sorted((cache_dir() / "checkpoints").glob(f"{pattern}-*.safetensors")):
        state = tensors.state(path)
        runs = [replace(left[0], lam=lam) for lam in state.get("lams", ())]
        if not runs or checkpoint_of(plan_of(runs, site), runs[0]) != path:
            raise tensors.CheckpointError(
                f"{path} is damaged: its name is not that of the runs it lists. Delete the file; "
                "it will be made again"
            )
        saved.append((-state.get("step", 0), path, runs))
    ranks.barrier("the checkpoints")
    for _, path, runs in sorted(saved, key=lambda one: one[:2]):
        if set(runs) & set(rest):
            stacks.append(runs)
            rest = [r for r in rest if r not in runs]
        elif ranks.first and all(run_files.find(r.id, at) for r in runs):
            print(f"{path.name} holds finished runs alone: deleted", file=sys.stderr)
            path.unlink()
    return stacks + ([list(part.runs) for part in site.parts(rest)] if rest else [])


def train_stack(
    runs: list[Run], site: Site, home: str, at: str, force: bool = False, ranks: Alone = ALONE
) -> None:
    """Train runs that differ in lambda alone, evaluate each that has no evidence yet and write it
    at once.

    With `ranks`, all train the stack together, and each evaluates its share of the SAEs.
    """
    began, plan = time.monotonic(), plan_of(runs, site)
    checkpoint, stack = checkpoint_of(plan, runs[0]), Stack(plan, ranks)
    if ranks.first:  # what a kill in the middle of a save left
        for half in checkpoint.parent.glob(f".{checkpoint.name}.*"):
            half.unlink()
    # A checkpoint is made at some 0.5 GB/s, while training waits: large ones are made less often.
    saes = fit(
        stack,
        site.batches(runs[0]),
        checkpoint,
        every=max(60.0, 16 * plan.n * plan.M * len(runs) / 1e7),
    )
    seconds = (time.monotonic() - began) / len(runs)
    for k, (one, sae) in enumerate(
        zip(tqdm(runs, desc="evaluate", disable=None), saes, strict=True)
    ):
        if k % ranks.world != ranks.rank or run_files.find(one.id, at):
            continue
        began = time.monotonic()
        files.save(sae, files.weights(one.id), run=asdict(one), scale=site.store.scale)
        values, sums, density = site.evaluate(sae)
        corpus_hash, lm_hash = run_module.sources(one.lm, one.context)
        record = {
            "schema": 1,
            "recipe": run_module.RECIPES[one.arch],
            "id": one.id,
            "experiment": sweeps.home(one, at, home),
            "scale": at,
            "run": asdict(one),
            "metrics": values,
            "sums": sums,
            "curve": {"columns": list(stack.columns), "rows": [row[k] for row in stack.curve]},
            "density": density,
            "store": {
                "scale": site.store.scale,
                "top_share": site.store.top_share,
                "rows": site.store.rows,
            },
            "provenance": provenance.provenance(
                plan.device, seconds + time.monotonic() - began, corpus_hash, lm_hash
            )
            | {
                "lm_commit": site.model.commit,
                "lm_dtype": str(site.model.dtype)[6:],
                "products": plan.dtype,
            }
            | ({"ranks": ranks.world} if ranks.world > 1 else {}),
        }
        run_files.write(record, force=force)
    ranks.barrier("the evaluation")
    if ranks.first:
        checkpoint.unlink(missing_ok=True)


def groups(runs: Iterable, key) -> list[list]:
    """Runs, or what else is given, with an equal key, in order of first appearance."""
    found: dict = {}
    for one in runs:
        found.setdefault(key(one), []).append(one)
    return list(found.values())


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
        gsae.training.loop.Diverged: on a NaN or an infinity; runs finished before it are kept.
    """
    at = run_module.scale(scale)
    runs = (sweeps.runs(name, at) if isinstance(name, str) else list(name))[only or slice(None)]
    ranks = distributed.start()
    is_missing = ranks.agree([run_files.find(r.id, at) is None for r in runs])
    missing = [r for r, new in zip(runs, is_missing, strict=True) if new]
    label = name if isinstance(name, str) else home
    never = os.environ.get("GSAE_TRAIN") == "never"
    todo = (
        ""
        if not missing
        else ", the others are missing (GSAE_TRAIN=never)"
        if never
        else f", {len(missing)} to train"
    )
    if ranks.first:
        print(
            f"{label} at scale {at}: {len(runs) - len(missing)} of {len(runs)} runs are on "
            f"record{todo}",
            file=sys.stderr,
        )
    if missing and not never:
        if at != "smoke" and not force:
            provenance.require_clean()
        if ranks.first:
            estimate.check(missing, at, cache_dir(), force=force, **machine())
        train_missing(missing, at, force, ranks, home)
        ranks.barrier("the other ranks' runs")
    return run_files.load(runs, at)


def train_missing(
    missing: list[Run], at: str, force: bool, ranks: Alone = ALONE, home: str = "own"
) -> None:
    """Train runs, language model by language model and site by site; over ranks, the stacks are
    dealt out.
    """
    for of_model in groups(missing, lambda r: r.lm):
        model = language_models.load(of_model[0].lm)
        parts = []  # for each text: its sites, and the stacks of each
        for of_text in groups(of_model, lambda r: r.read):
            of_sites = groups(of_text, lambda r: r.place)
            parts.append([(Site(rs[0], model), groups(rs, lambda r: r.stack)) for rs in of_sites])
        stacks = [stack for part in parts for _, of_site in part for stack in of_site]
        together = 1 < ranks.world > len(stacks)
        owner = distributed.dealt(
            [sum(r.tokens * r.M for r in stack) for stack in stacks], ranks.world
        )
        mine = [
            stack
            for stack, rank in zip(stacks, owner, strict=True)
            if together or rank == ranks.rank
        ]
        if ranks.world > 1:  # the whole harvest first, while all are here
            for part in parts:
                harvest([site for site, _ in part], ranks)
        for part in parts:
            harvest([site for site, _ in part], ALONE)
            for site, of_site in part:
                own = [stack for stack in of_site if stack in mine]
                train_site(site, own, at, force, ranks if together else ALONE, home)
                for large in ("store", "held_out", "splices", "references"):
                    site.__dict__.pop(large, None)


def harvest(sites: list[Site], ranks: Alone) -> None:
    """Give sites of one text their stores, where they read from stores and have none yet."""
    if not limits.streams(sites[0].run) and any("store" not in site.__dict__ for site in sites):
        for site, store in zip(sites, Site.harvest(sites, ranks), strict=True):
            site.store = store


def train_site(
    site: Site, stacks: list[list[Run]], at: str, force: bool, ranks: Alone, home: str
) -> None:
    """Train a site's stacks, each under a lock: what another process is at comes last, and is then
    on record.
    """
    for wait in (False, True):
        busy = []
        for stack in stacks:
            with ExitStack() as held:
                try:
                    claim = FileLock(
                        lock(f"stack-{kind(stack[0])}"),
                        timeout=-1 if wait or ranks.world > 1 else 0,
                    )
                    held.enter_context(distributed.only(ranks, claim))
                except Timeout:
                    busy.append(stack)
                    continue
                new = ranks.agree([run_files.find(r.id, at) is None for r in stack])
                if left := [r for r, is_new in zip(stack, new, strict=True) if is_new]:
                    for runs in compositions(left, site, at, ranks):
                        site.make_room(runs)
                        train_stack(runs, site, home, at, force, ranks)
        stacks = busy
