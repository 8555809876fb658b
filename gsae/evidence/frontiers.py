"""Frontiers: the Pareto envelope of an arm, and how two arms compare at equal loss or equal L0."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np


def envelope(l0: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Pareto-optimal points, by rising L0: no other point has both a lower L0 and a lower
    loss.
    """
    order = np.lexsort((loss, l0))
    l0, loss = np.asarray(l0, float)[order], np.asarray(loss, float)[order]
    best = np.minimum.accumulate(np.concatenate([[np.inf], loss[:-1]]))
    keep = (loss < best) & (l0 > 0) & (loss > 0)
    return l0[keep], loss[keep]


def shared(arms: Sequence[tuple[np.ndarray, np.ndarray]], levels: int) -> list[np.ndarray] | None:
    """Each arm's y, interpolated at `levels` points equally spaced over the range of x that all
    share.

    Arms are pairs of a rising x and its y. None where an arm has fewer than two points or no range
    is shared: nothing is extrapolated.
    """
    if min(len(x) for x, _ in arms) < 2:
        return None
    low, high = max(x[0] for x, _ in arms), min(x[-1] for x, _ in arms)
    if not low < high:
        return None
    points = np.linspace(low, high, levels)
    return [np.interp(points, x, y) for x, y in arms]


def unrecovered(run: Mapping) -> float:
    return 1 - run["loss_recovered"]


def unexplained(run: Mapping) -> float:
    return run["fvu"]


def front(
    arm: Sequence[Mapping], lost: Callable[[Mapping], float]
) -> tuple[np.ndarray, np.ndarray]:
    """The envelope of an arm's runs, L0 against what each has lost."""
    return envelope(np.array([run["l0"] for run in arm]), np.array([lost(run) for run in arm]))


def log_ratio(
    gated: Sequence[dict],
    baseline: Sequence[dict],
    *others: Sequence[dict],
    levels: int = 5,
    lost: Callable = unrecovered,
    over_levels: Callable = np.mean,
) -> float:
    """Mean log ratio of L0, gated to baseline, at equal 1 - loss recovered or other loss; NaN
    without a shared range.

    log L0 is interpolated against log(1 - loss recovered) on each arm's envelope, without
    extrapolation, at `levels` equally spaced over the shared range. Below 0 the gated SAE needs
    fewer latents. With `over_levels=np.max` the level that favours it least. `others` have to share
    the range as well: so pairs are compared on common levels.
    """
    curves = []
    for arm in (gated, baseline, *others):
        l0, loss = front(arm, lost)
        curves.append((np.log(loss)[::-1], np.log(l0)[::-1]))  # x has to rise
    log_l0s = shared(curves, levels)
    return float(over_levels(log_l0s[0] - log_l0s[1])) if log_l0s else np.nan


def log_losses(arms: Sequence[Sequence[dict]], levels: int = 5) -> list[np.ndarray] | None:
    """Each arm's log delta CE at equal L0, interpolated as `log_ratio` does it, with the axes
    exchanged.
    """
    fronts = [front(arm, lambda run: run["delta_ce"]) for arm in arms]
    return shared([(np.log(l0), np.log(loss)) for l0, loss in fronts], levels)


def log_loss_ratio(arm: Sequence[dict], reference: Sequence[dict], levels: int = 5) -> float:
    """Mean log ratio of delta CE, arm to reference, at equal L0; above 0 the arm loses more."""
    losses = log_losses((arm, reference), levels)
    return float(np.mean(losses[0] - losses[1])) if losses else np.nan


def gap_closed(
    repaired: Sequence[dict],
    baseline: Sequence[dict],
    gated: Sequence[dict],
    levels: int = 5,
    log: bool = False,
) -> float:
    """Share of the gap in loss recovered, baseline to gated, that a repaired baseline closes at
    equal L0 (Fig. 9).

    1 is all of it. In nats, so that the sparse end, where most is lost, weighs most; or in the
    logarithm of what is lost, in which all levels weigh alike. NaN without a shared range, or where
    the gated frontier is not above.
    """
    losses = log_losses((repaired, baseline, gated), levels)
    if not losses:
        return np.nan
    # delta CE ~ 1 - loss recovered
    left, before, least = ((loss if log else np.exp(loss)).mean() for loss in losses)
    return float((before - left) / (before - least)) if before > least else np.nan


def recovered(arm: Sequence[dict], reference: Sequence[dict], levels: int = 5) -> float:
    """Mean difference in loss recovered, arm less reference, at equal L0 over the shared range.

    Linear where `log_loss_ratio` is logarithmic: defined also where a run recovers all of the loss,
    or more by chance.
    """
    # From 2: no loss is negative, so that `envelope` leaves no run out.
    fronts = [front(runs, lambda run: 2 - run["loss_recovered"]) for runs in (arm, reference)]
    kept = shared([(np.log(l0), -loss) for l0, loss in fronts], levels)
    return float(np.mean(kept[0] - kept[1])) if kept else np.nan
