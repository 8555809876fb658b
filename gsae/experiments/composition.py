"""How the runs of one stack train: their training plan, their checkpoint, and which of those that
are left train together.
"""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

from gsae.evidence import run_files
from gsae.evidence.run import Run
from gsae.experiments.site import Site
from gsae.system import tensors
from gsae.system.devices import product_dtype, training_device
from gsae.system.distributed import ALONE, Alone
from gsae.system.files import cache_dir
from gsae.training.schedule import Plan


def plan_of(runs: list[Run], site: Site) -> Plan:
    run, device = runs[0], training_device()
    return Plan(
        arch=run.arch,
        n=len(site.store.mean),
        M=run.M,
        lams=tuple(run.lam for run in runs),
        steps=run.steps,
        batch=run.batch,
        lr=run.lr,
        seed=run.seed,
        switches=tuple(sorted(run.switches.items())),
        lam_warmup=run.lam_warmup,
        lr_warmup=run.lr_warmup,
        lr_decay=run.lr_decay,
        resample=run.resample,
        names=tuple(run.id for run in runs),
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
    shared = short_hash(kind(run) + repr(replace(plan, lams=(), names=())))
    return checkpoints() / f"{shared}-{short_hash(repr(plan.names))}.safetensors"


def checkpoints() -> Path:
    return cache_dir() / "checkpoints"


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compositions(left: list[Run], site: Site, scale: str, ranks: Alone = ALONE) -> list[list[Run]]:
    """How the runs left of one stack train: those of a checkpoint in the stack that was saved, the
    others together, or, where a GPU does not hold as many, in parts that it holds (`gsae plan` cuts
    them alike).

    A stack is resumed as it was, with the runs that were finished meanwhile (their evidence is not
    written again): resampling draws by a run's place, and steps already made are not made twice. A
    checkpoint of finished runs alone is of no more use, and deleted; one of runs that are not asked
    for now is kept for when they are.
    """
    saved = saved_stacks(left, site)
    ranks.barrier("the checkpoints")
    resumed, fresh = [], list(left)
    for path, runs in saved:
        if set(runs) & set(fresh):
            resumed.append(runs)
            fresh = [run for run in fresh if run not in runs]
        elif ranks.first and all(run_files.find(run.id, scale) for run in runs):
            print(f"{path.name} holds finished runs alone: deleted", file=sys.stderr)
            path.unlink()
    if not fresh:
        return resumed
    return resumed + [list(part.runs) for part in site.parts(fresh)]


def saved_stacks(runs: list[Run], site: Site) -> list[tuple[Path, list[Run]]]:
    """The checkpoints of stacks of this kind, with the runs of each; those that are furthest come
    first.

    Raises CheckpointError on a checkpoint whose name is not that of the runs it lists.
    """
    shared = checkpoint_of(plan_of(runs, site), runs[0]).name.split("-")[0]
    saved = []
    for path in sorted(checkpoints().glob(f"{shared}-*.safetensors")):
        state = tensors.state(path)
        stack = [replace(runs[0], lam=lam) for lam in state.get("lams", ())]
        if not stack or checkpoint_of(plan_of(stack, site), stack[0]) != path:
            raise tensors.CheckpointError(
                f"{path} is damaged: its name is not that of the runs it lists. Delete the file; "
                "it will be made again"
            )
        saved.append((-state.get("step", 0), path, stack))
    saved.sort(key=lambda checkpoint: checkpoint[:2])
    return [(path, stack) for _, path, stack in saved]
