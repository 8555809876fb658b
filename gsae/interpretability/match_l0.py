"""`gsae study pairs --train`: what a place lacks is trained, at lambdas interpolated from those on
record. No torch.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gsae.evidence import run as sweeps
from gsae.evidence import run_files
from gsae.interpretability import matched_pairs

REACH = 2.5  # how far beyond the lambdas trained the next one may be, as a factor
ATTEMPTS = 4  # how often an arm of a place is trained
# the experiment that the runs found are stored under: `settings.STUDY_LAMBDAS` is to name them
HOME = "study"


@dataclass(frozen=True)
class Step:
    """An SAE to train: as `like`, one of its arm and place, but for lambda, which should give it an
    L0.
    """

    like: matched_pairs.SAE
    lam: float
    l0: float

    def __str__(self) -> str:
        return f"{matched_pairs.place(self.like.cell)}: {self.like.arm} at lambda {self.lam:g}"


def after(
    here: Sequence[matched_pairs.SAE],
    arms: Sequence[str],
    target: float,
    tolerance: float,
    done: Counter,
) -> tuple[list[Step], str]:
    """What to train next at a place without matched SAEs; or nothing, and why not.

    First the first arm, near the target, then the others at the L0 that it has.

    Args:
        done: arm -> how often it was trained for this place before.
    """
    l0, without = matched_pairs.lacking(here, arms, target, tolerance)
    steps = []
    for arm in without[:1] if arms[0] in without else without:
        own = [s for s in here if s.arm == arm]
        lam = matched_pairs.lam_at(own, l0, REACH)
        same = next((s for s in own if s.lam == lam), None)
        if done[arm] >= ATTEMPTS:
            return [], f"Given up: {arm} was trained {ATTEMPTS} times"
        if lam != lam:
            return [], (
                f"Not trained: from the {arm} SAEs on record no lambda for L0 {l0:.1f} can be "
                "told: it takes "
                f"two, L0 falling as lambda rises, and at most a factor of {REACH:g} beyond them"
            )
        if same:
            return (
                [],
                f"Given up: {arm} at lambda {lam:g} is on record with L0 {same.l0:.1f}, not "
                f"{l0:.1f}",
            )
        steps.append(Step(own[0], lam, l0))
    return steps, ""


def complete(
    read: Callable[[], list[matched_pairs.SAE]],
    train: Callable[[list[Step]], None],
    arms: Sequence[str] = matched_pairs.ARMS,
    target: float = matched_pairs.TARGET,
    tolerance: float = matched_pairs.TOLERANCE,
    tell: Callable[[str], None] = print,
) -> tuple[dict[matched_pairs.Cell, list[matched_pairs.SAE]], list[str]]:
    """`pairs.match`, once what it lacks is trained: each L0 that comes out refines the
    interpolation of the next.

    What all places need next is trained together, since one pass of the language model serves them
    all.

    Args:
        read: the SAEs on record, asked again after each training: what is there is never trained
            again.
        train: trains steps, and puts their SAEs on record.

    Returns:
        As `pairs.match`; the sentence on a place that did not get there ends with the reason.

    Raises:
        StudyError: where `train` left no SAE.
    """
    tried: dict[matched_pairs.Cell, Counter] = {}
    while True:
        saes = read()
        found, problems = matched_pairs.match(saes, arms, target, tolerance)
        open_places = {
            c: groups[0] for c, groups in matched_pairs.places(saes, arms).items() if c not in found
        }
        made = {c: after(here, arms, target, tolerance, tried.setdefault(c, Counter()))
                for c, here in open_places.items()}  # fmt: skip
        steps = [step for some, _ in made.values() for step in some]
        if not steps:
            return found, [
                f"{said}. {why}" for said, (_, why) in zip(problems, made.values(), strict=True)
            ]
        for step in steps:
            tell(f"{step}, for L0 {step.l0:.1f}: training")
            tried[step.like.cell][step.like.arm] += 1
        train(steps)
        on_record = {(s.cell, s.group, s.arm, s.lr, s.lam): s.l0 for s in read()}
        for step in steps:
            l0 = on_record.get(
                (step.like.cell, step.like.group, step.like.arm, step.like.lr, step.lam)
            )
            if l0 is None:
                raise matched_pairs.StudyError(
                    f"{step} is not on record after training: is GSAE_TRAIN set to never?"
                )
            tell(f"{step} has L0 {l0:.1f}")


def from_record(
    scale: str,
    among: Sequence[matched_pairs.SAE],
    arms: Sequence[str],
    target: float,
    tolerance: float,
    force: bool = False,
) -> tuple[dict[matched_pairs.Cell, list[matched_pairs.SAE]], list[str]]:
    """`complete` by `gsae.run`, at the places of some SAEs on record, from all runs on record
    there.
    """
    from gsae.experiments import runner  # loads torch

    wanted = {(s.cell, s.group) for s in among}

    def train(steps: list[Step]) -> None:
        made = [(sweeps.Run.of(run_files.read(Path(s.like.file))["run"]), s.lam) for s in steps]
        runner.run([replace(run, lam=lam) for run, lam in made], scale, force=force, home=HOME)

    def read() -> list[matched_pairs.SAE]:
        return [s for s in matched_pairs.recorded(scale) if (s.cell, s.group) in wanted]

    return complete(read, train, arms, target, tolerance, lambda text: print(text, file=sys.stderr))
