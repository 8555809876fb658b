"""Which SAEs are compared: at each place one of each arm, matched in L0; and what to train where
there are none. No torch.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from gsae.evidence.run import rounded
from gsae.interpretability.compared_saes import SAE, Cell, of_arm, place_name

ARMS = ("gated", "baseline")  # the last one is the reference
TARGET = 50.0  # L0 aimed at
TOLERANCE = 0.10  # the arms' ratio is at most 1.1
WINDOW = 1.5  # L0 between 50 / 1.5 and 50 * 1.5


def match(
    saes: Sequence[SAE],
    arms: Sequence[str] = ARMS,
    target: float = TARGET,
    tolerance: float = TOLERANCE,
) -> tuple[dict[Cell, list[SAE]], list[str]]:
    """At each place, one SAE of each arm: L0 within `tolerance` of each other and, of those,
    nearest to `target`.

    Returns:
        place -> SAEs in the order of `arms`; and a sentence for each place that has none, with the
        missing lambda.
    """
    matched, problems = {}, []
    for cell, groups in places(saes, arms).items():
        fits = [Fit.of(chosen, target) for chosen in one_of_each(groups, arms)]
        close = [fit for fit in fits if fit.within(tolerance)]
        if close:
            matched[cell] = list(min(close, key=Fit.rank).saes)
        else:
            problems.append(advice(cell, groups[0], arms, target, tolerance))
    return matched, problems


def one_of_each(groups: list[list[SAE]], arms: Sequence[str]) -> Iterator[tuple[SAE, ...]]:
    """Every choice of one SAE of each arm, of one group."""
    for group in groups:
        yield from product(*(of_arm(group, arm) for arm in arms))


class Fit(NamedTuple):
    """How well SAEs of all arms go together. L0 is compared as its logarithm."""

    saes: tuple[SAE, ...]
    off_target: float  # of the mean
    apart: float

    @classmethod
    def of(cls, saes: tuple[SAE, ...], target: float) -> "Fit":
        logs = [math.log(sae.l0 / target) for sae in saes]
        return cls(saes, abs(sum(logs) / len(logs)), max(logs) - min(logs))

    def within(self, tolerance: float) -> bool:
        near = self.off_target <= math.log(WINDOW)
        return near and self.apart <= math.log(1 + tolerance)

    def rank(self) -> tuple[float, float, list[str]]:
        """Lowest for the best; where all else is equal, by name."""
        return self.off_target, self.apart, [sae.run for sae in self.saes]


def places(saes: Iterable[SAE], arms: Sequence[str] = ARMS) -> dict[Cell, list[list[SAE]]]:
    """Place -> its SAEs of these arms, those of one group together; places in their order.

    First the group that has most SAEs of the arm it has fewest of, then the largest. Of an arm's
    learning rates that of most alone: L0 follows from lambda at one rate, and what was tried beside
    it is nobody's partner.
    """
    by_place: dict[Cell, dict[Hashable, list[SAE]]] = {}
    comparable = [sae for sae in saes if sae.arm in arms and sae.l0 > 0]
    for sae in sorted(comparable, key=lambda sae: sae.cell):
        by_place.setdefault(sae.cell, {}).setdefault(sae.group, []).append(sae)

    def size(group: list[SAE]) -> tuple[int, int]:
        return min(len(of_arm(group, arm)) for arm in arms), len(group)

    ordered = {}
    for cell, by_group in by_place.items():
        groups = map(at_usual_rates, by_group.values())
        ordered[cell] = sorted(groups, key=size, reverse=True)
    return ordered


def at_usual_rates(group: list[SAE]) -> list[SAE]:
    """Of each arm's SAEs those at the learning rate that most of them have."""
    rates: dict[str, float | None] = {}
    for (arm, lr), _ in Counter((sae.arm, sae.lr) for sae in group).most_common():
        rates.setdefault(arm, lr)
    return [sae for sae in group if sae.lr == rates[sae.arm]]


def lam_at(saes: Sequence[SAE], l0: float, reach: float = 1.0) -> float:
    """Lambda that gives an L0: log lambda linear in log L0 between neighbours.

    Beyond the ends the line through the outermost and the next one by which L0 falls as lambda
    rises, by at most a factor of `reach` in lambda; else NaN.
    """
    points = sorted((math.log(s.l0), math.log(s.lam)) for s in saes if s.lam and s.l0 > 0)
    x = math.log(l0)
    if points and points[0][0] <= x <= points[-1][0]:
        return rounded(math.exp(np.interp(x, *zip(*points, strict=True))))
    if len(points) < 2:
        return math.nan
    inwards = points if x < points[0][0] else points[::-1]
    (x0, y0), *others = inwards
    slopes = [(y - y0) / (x1 - x0) for x1, y in others if x1 != x0]
    falling = [slope for slope in slopes if slope < 0]  # a rising one is noise
    if not falling:
        return math.nan
    beyond = (x - x0) * falling[0]
    return rounded(math.exp(y0 + beyond)) if abs(beyond) <= math.log(reach) else math.nan


def off(sae: SAE, l0: float) -> float:
    """How far an SAE's L0 is from another, as the logarithm of their ratio, without its sign."""
    return abs(math.log(sae.l0 / l0))


def nearest_l0(saes: Iterable[SAE], l0: float) -> SAE | None:
    return min(saes, key=lambda sae: off(sae, l0), default=None)


def lacking(
    saes: Sequence[SAE], arms: Sequence[str], target: float, tolerance: float
) -> tuple[float, list[str]]:
    """The L0 that a place's SAEs should have, and the arms that have none there.

    It is that of the first arm's SAE nearest to `target`, if that is near enough for its partners
    to be, too. Else `target`: then all arms are named, the first one first, since the L0 that it
    gets is what the others need.
    """
    first = nearest_l0(of_arm(saes, arms[0]), target)
    if first is None or off(first, target) > math.log(WINDOW) - math.log(1 + tolerance) / 2:
        return target, list(arms)
    # Of the first one, so that all are within the tolerance of each other.
    apart = math.log(1 + tolerance) / (len(arms) - 1)
    without = []
    for arm in arms[1:]:
        partner = nearest_l0(of_arm(saes, arm), first.l0)
        if partner is None or off(partner, first.l0) > apart:
            without.append(arm)
    return first.l0, without


def advice(
    cell: Cell, saes: Sequence[SAE], arms: Sequence[str], target: float, tolerance: float
) -> str:
    """Why a place has no matched SAEs, and what to train: the lambda interpolated from those there
    are.
    """
    nearest = []
    for arm in arms:
        sae = nearest_l0(of_arm(saes, arm), target)
        nearest.append(f"{arm} {sae.l0:.1f}" if sae else f"no {arm} at all")
    wanted, without = lacking(saes, arms, target, tolerance)
    to_train = [training(arm, of_arm(saes, arm), wanted) for arm in without]
    return (
        f"{place_name(cell)}: no {' and '.join(arms)} SAE within {tolerance:.0%} of one L0 near "
        f"{target:g}. Nearest: {', '.join(nearest)}. For L0 {wanted:.1f}, train "
        f"{' and '.join(to_train)}"
    )


def training(arm: str, saes: Sequence[SAE], l0: float) -> str:
    """An arm and the lambda that gives an L0, or why there is none between those of its SAEs."""
    lam = lam_at(saes, l0)
    if not math.isnan(lam):
        return f"{arm} at lambda {lam:g} (interpolated)"
    lams = sorted(sae.lam for sae in saes if sae.lam)
    if not lams:
        return f"{arm} (no lambda is on record)"
    return f"{arm} (outside of the lambdas trained, {lams[0]:g} to {lams[-1]:g})"
