"""`gsae study pairs --train`: what a place lacks is trained, at lambdas interpolated from those on
record. No torch.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gsae.interpretability import compared_saes, matched_pairs
from gsae.interpretability.compared_saes import SAE, Cell, StudyError

REACH = 2.5  # how far beyond the lambdas trained the next one may be, as a factor
ATTEMPTS = 4  # how often an arm of a place is trained
# the experiment that the runs found are stored under: `settings.STUDY_LAMBDAS` is to name them
HOME = "study"


@dataclass(frozen=True)
class Step:
    """An SAE to train: as `like`, one of its arm and place, but for lambda, which should give it an
    L0.
    """

    like: SAE
    lam: float
    l0: float

    def __str__(self) -> str:
        return f"{compared_saes.place_name(self.like.cell)}: {self.like.arm} at lambda {self.lam:g}"

    def made(self, saes: Sequence[SAE]) -> SAE | None:
        """The SAE that this step has made, of those on record."""
        wanted = (self.like.cell, self.like.group, self.like.arm, self.like.lr, self.lam)
        made = [s for s in saes if (s.cell, s.group, s.arm, s.lr, s.lam) == wanted]
        return made[-1] if made else None


def complete(
    read: Callable[[], list[SAE]],
    train: Callable[[list[Step]], None],
    arms: Sequence[str] = matched_pairs.ARMS,
    target: float = matched_pairs.TARGET,
    tolerance: float = matched_pairs.TOLERANCE,
    tell: Callable[[str], None] = print,
) -> tuple[dict[Cell, list[SAE]], list[str]]:
    """`matched_pairs.match`, once what it lacks is trained: each L0 that comes out refines the
    interpolation of the next.

    What all places need next is trained together, since one pass of the language model serves them
    all.

    Args:
        read: the SAEs on record, asked again after each training: what is there is never trained
            again.
        train: trains steps, and puts their SAEs on record.

    Returns:
        As `matched_pairs.match`; the sentence on a place that did not get there ends with the
        reason.

    Raises:
        StudyError: where `train` left no SAE.
    """
    attempts: Counter[tuple[Cell, str]] = Counter()
    while True:
        saes = read()
        matched, problems = matched_pairs.match(saes, arms, target, tolerance)
        steps, reasons = [], []
        for cell, groups in matched_pairs.places(saes, arms).items():
            if cell not in matched:
                next_steps, reason = after(cell, groups[0], arms, target, tolerance, attempts)
                steps += next_steps
                reasons.append(reason)
        if not steps:
            sentences = zip(problems, reasons, strict=True)
            return matched, [f"{problem}. {reason}" for problem, reason in sentences]
        for step in steps:
            tell(f"{step}, for L0 {step.l0:.1f}: training")
            attempts[step.like.cell, step.like.arm] += 1
        train(steps)
        tell_results(steps, read(), tell)


def after(
    cell: Cell,
    saes: Sequence[SAE],
    arms: Sequence[str],
    target: float,
    tolerance: float,
    attempts: Counter[tuple[Cell, str]],
) -> tuple[list[Step], str]:
    """What to train next at a place whose SAEs do not match; or nothing, and why not.

    First the first arm, near the target, then the others at the L0 that it has.

    Args:
        attempts: how often each arm was trained for its place before.
    """
    l0, without = matched_pairs.lacking(saes, arms, target, tolerance)
    if arms[0] in without:
        without = without[:1]
    steps = []
    for arm in without:
        trained = compared_saes.of_arm(saes, arm)
        lam = matched_pairs.lam_at(trained, l0, REACH)
        reason = why_not(arm, trained, lam, l0, attempts[cell, arm])
        if reason:
            return [], reason
        steps.append(Step(trained[0], lam, l0))
    return steps, ""


def why_not(arm: str, trained: Sequence[SAE], lam: float, l0: float, tries: int) -> str:
    """Why an arm is not trained at a lambda for an L0 after so many tries; else nothing."""
    if tries >= ATTEMPTS:
        return f"Given up: {arm} was trained {ATTEMPTS} times"
    if math.isnan(lam):
        return (
            f"Not trained: from the {arm} SAEs on record no lambda for L0 {l0:.1f} can be told: it "
            "takes two, L0 falling as lambda rises, and at most a factor of "
            f"{REACH:g} beyond them"
        )
    for sae in trained:
        if sae.lam == lam:
            return (
                f"Given up: {arm} at lambda {lam:g} is on record with L0 {sae.l0:.1f}, not {l0:.1f}"
            )
    return ""


def tell_results(
    steps: Sequence[Step], on_record: Sequence[SAE], tell: Callable[[str], None]
) -> None:
    """Tell which L0 each step gave. Raises StudyError on a step that is not on record."""
    for step in steps:
        made = step.made(on_record)
        if made is None:
            raise StudyError(f"{step} is not on record after training: is GSAE_TRAIN set to never?")
        tell(f"{step} has L0 {made.l0:.1f}")


def from_record(
    scale: str,
    among: Sequence[SAE],
    arms: Sequence[str],
    target: float,
    tolerance: float,
    force: bool = False,
) -> tuple[dict[Cell, list[SAE]], list[str]]:
    """`complete` by `gsae.run`, at the places of some SAEs on record, from all runs on record
    there.
    """
    from gsae.experiments import runner  # loads torch

    wanted = {(sae.cell, sae.group) for sae in among}

    def read() -> list[SAE]:
        return [sae for sae in compared_saes.recorded(scale) if (sae.cell, sae.group) in wanted]

    def train(steps: list[Step]) -> None:
        runs = [replace(compared_saes.run_of(step.like), lam=step.lam) for step in steps]
        runner.run(runs, scale, force=force, home=HOME)

    def tell(text: str) -> None:
        print(text, file=sys.stderr)

    return complete(read, train, arms, target, tolerance, tell)
