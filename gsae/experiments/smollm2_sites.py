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


def pilot() -> list[Run]:
    """Eight lambdas an architecture and place: a million tokens at the first place, half of that at
    the others.
    """
    places = cells(replace(DEEP, **PILOT), lam=PILOT_LAMBDAS)
    others = [run for run in places if (run.site, run.layer) != (DEEP.site, DEEP.layer)]
    return both(grid(DEEP, lam=PILOT_LAMBDAS)) + both(others)


def sites() -> list[Run]:
    """Each arm at its own lambdas; for attention twice the text for cross-entropy, as its loss
    recovered is a ratio of small numbers.
    """
    places = [
        replace(r, ce_tokens=65_536) if r.site == "attn_z" else r
        for r in cells(replace(DEEP, tokens=SITE_TOKENS))
    ]
    found = [
        one for run in places for one in grid(run, seed=SITE_SEEDS.get((run.site, run.layer), [0]))
    ]
    return both(
        [replace(run, lam=lam) for run in found for lam in site_lambdas(run)], BASELINE_SHARE
    )


def ends() -> list[Run]:
    """The runs of `sites` at the lambdas of `settings.SITE_ENDS`, and at the residual streams, of
    seed 0, the same without resampling.
    """
    gated = [
        r for r in sites() if r.arch == "gated" and r.lam in SITE_ENDS.get((r.site, r.layer), [])
    ]
    found = both(gated, BASELINE_SHARE)
    return found + [
        replace(r, resample=()) for r in found if r.site == "resid_post" and r.seed == 0
    ]


def first_pass() -> list[Run]:
    """The first pass: a million tokens, three lambdas, the same in both arms."""
    return both(cells(DEEP, lam=FIRST_SITE_LAMBDAS))


def trials() -> list[Run]:
    """Baselines of layer 20 on the way to the pairs of the study, whose L0 was too far apart."""
    return [
        replace(wider(DEEP), layer=20, site=site, lam=lam) for site, lam in STUDY_TRIALS.items()
    ]


def pairs() -> list[Run]:
    """The study's: one SAE an arm and place, both of about one L0 near 50."""
    found = [
        (replace(DEEP, site=site, layer=layer), lams)
        for (site, layer), lams in STUDY_LAMBDAS.items()
    ]
    return [
        replace(one, lam=lam)
        for run, lams in found
        for one, lam in zip((run, wider(run)), lams, strict=True)
    ]
