"""The places of SmolLM2 that scale cpu trains at, as data: three sites of layers 8 and 20. Standard
library only.
"""

from dataclasses import replace

from gsae.evidence.run import Run, both, grid, wider
from gsae.experiments.settings import (
    BASELINE_SHARE,
    FIRST_SITE_LAMBDAS,
    PILOT,
    PILOT_LAMBDAS,
    SETTINGS,
    SITE_ENDS,
    SITE_LAMBDAS,
    SITE_SEEDS,
    SITE_TOKENS,
    STUDY_LAMBDAS,
    STUDY_TRIALS,
)

DEEP = Run(**SETTINGS["cpu"])  # its own place, the MLP output of layer 8, came first


def cells(run: Run, **axes) -> list[Run]:
    """`run` at each of the six places, and over the axes' values."""
    return grid(run, layer=[8, 20], site=list(SITE_LAMBDAS), **axes)


def site_lambdas(run: Run) -> list[float]:
    """The gated lambdas of a place of `sites`."""
    return SITE_LAMBDAS[run.site] + SITE_ENDS.get((run.site, run.layer), [])


def pilot_runs() -> list[Run]:
    """Eight lambdas an architecture and place: a million tokens at the first place, half of that at
    the others.
    """
    places = cells(replace(DEEP, **PILOT), lam=PILOT_LAMBDAS)
    others = [run for run in places if (run.site, run.layer) != (DEEP.site, DEEP.layer)]
    return both(grid(DEEP, lam=PILOT_LAMBDAS)) + both(others)


def site_runs() -> list[Run]:
    """Each arm at its own lambdas; for attention twice the text for cross-entropy, as its loss
    recovered is a ratio of small numbers.
    """
    runs = []
    for place in cells(replace(DEEP, tokens=SITE_TOKENS)):
        if place.site == "attn_z":
            place = replace(place, ce_tokens=65_536)
        seeds = SITE_SEEDS.get((place.site, place.layer), [0])
        runs += grid(place, seed=seeds, lam=site_lambdas(place))
    return both(runs, BASELINE_SHARE)


def end_runs() -> list[Run]:
    """The runs of `sites` at the lambdas of `settings.SITE_ENDS`, and at the residual streams, of
    seed 0, the same without resampling.
    """
    gated = [
        run
        for run in site_runs()
        if run.arch == "gated" and run.lam in SITE_ENDS.get((run.site, run.layer), [])
    ]
    runs = both(gated, BASELINE_SHARE)
    streams = [run for run in runs if run.site == "resid_post" and run.seed == 0]
    return runs + [replace(run, resample=()) for run in streams]


def first_pass_runs() -> list[Run]:
    """The first pass: a million tokens, three lambdas, the same in both arms."""
    return both(cells(DEEP, lam=FIRST_SITE_LAMBDAS))


def trial_runs() -> list[Run]:
    """Baselines of layer 20 on the way to the pairs of the study, whose L0 was too far apart."""
    return [
        replace(wider(DEEP), layer=20, site=site, lam=lam) for site, lam in STUDY_TRIALS.items()
    ]


def pair_runs() -> list[Run]:
    """The study's: one SAE an arm and place, both of about one L0 near 50."""
    runs = []
    for (site, layer), (gated_lam, baseline_lam) in STUDY_LAMBDAS.items():
        gated = replace(DEEP, site=site, layer=layer, lam=gated_lam)
        runs += [gated, replace(wider(gated), lam=baseline_lam)]
    return runs
