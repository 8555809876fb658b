"""The paper's own sweeps as data: models, sites, widths, tokens, learning rates, lambdas. Standard
library only.

Stated in the paper: models, sites, layers, contexts, steps, batch, widths, learning rates, and the
range of lambdas of its tables. Not stated, and chosen here: the text, GELU-1L's width (the tables'
2^17) and its lambdas, and which Gemma baselines had which of two learning rates (the lower is used
throughout).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gsae.evidence.run import Run, grid, log_spaced, wider
from gsae.experiments import settings

BATCH = 4096
RESAMPLE_STEPS = (25_000, 50_000, 75_000, 100_000)  # Bricken et al., whom the paper follows (D.1.1)
LAMBDAS = 6  # runs an architecture and site


@dataclass(frozen=True)
class Model:
    """One row of section 4.1 and D.1.2: where its SAEs sit, for how long they train, and their
    baselines' rate.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    context: int
    steps: int
    baseline_lr: float


THREE = ("mlp_out", "attn_z", "resid_post")
MODELS = {
    "gelu-1l": Model(("mlp_neurons",), (0,), 128, 300_000, 3e-4),
    "pythia-2.8b": Model(THREE, (4, 12, 16, 20, 28), 2048, 400_000, 1e-3),
    "gemma-7b": Model(
        THREE, (6, 13, 20, 27), 1024, 300_000, 7.5e-4
    ),  # 1e-3 at some sites, without saying which
}
GATED_LR = 3e-4
# Width of the Gated SAE; the baseline has 1.5 times as many latents, 3 * 2^16 and 3 * 2^14.
WIDTH, NARROW = 2**17, 2**15  # the narrow one at Pythia's residual stream, for its dead latents

# Lambda in the tables, where the error is divided by n: (lowest, highest) of the gated runs.
TABLE = {
    ("pythia-2.8b", "mlp_out"): (4e-4, 2e-3),
    ("pythia-2.8b", "attn_z"): (4e-4, 2e-3),
    ("pythia-2.8b", "resid_post"): (1e-3, 7.5e-3),
    **{("gemma-7b", site): (8e-6, 3e-3) for site in THREE},
}
# Root of the mean squared norm of each site's activations, (lm, site, layer) -> s: 1 / scale in any
# run's evidence. The conversion needs it, the paper does not give it, and it has not been measured
# here: none is known yet.
NORMS: dict[tuple[str, str, int], float] = {}
# Range where the table or s is unknown, and of every baseline: the published grids of SAEs trained
# in our very units (inputs of unit mean squared norm, error summed over n) span 0.012 to 0.08 for
# gated SAEs and 0.012 to 0.06 for baselines; widened upwards until our own pilots reach L0 5.
RANGE = (0.012, 0.5)


def convert(lam: float, n: int, s: int | float) -> float:
    """A gated lambda of the paper's tables in our units (D1, D2).

    The paper divides the error by n, so its lambda times n belongs to a summed error; and with
    inputs divided by s, the error falls by s^2 and the penalty by s, so lambda falls by s.
    Baselines' lambdas are not converted: their loss was divided by the mean squared norm as well,
    in a way too loosely described.
    """
    return n * lam / s


def table_lambda(lam: float, n: int, s: int | float) -> float:
    """The inverse of `convert`: our lambda as the paper's tables would print it."""
    return lam * s / n


def lambdas(run: Run, n: int, norms: Mapping[tuple[str, str, int], float] = NORMS) -> list[float]:
    """The lambdas of a site: the converted range of the paper's tables where `norms` has the site,
    else `RANGE`.
    """
    low_high, s = TABLE.get((run.lm, run.site)), norms.get((run.lm, run.site, run.layer))
    if run.arch == "gated" and low_high and s:
        return log_spaced(convert(low_high[0], n, s), convert(low_high[1], n, s), LAMBDAS)
    return log_spaced(*RANGE, LAMBDAS)


def sites() -> list[Run]:
    """One gated run for each of the paper's 28 sites: 1 of GELU-1L, 15 of Pythia-2.8B, 12 of
    Gemma-7B.
    """
    found = []
    for lm, m in MODELS.items():
        base = Run(
            lm=lm,
            context=m.context,
            text=settings.TEXT,
            tokens=m.steps * BATCH,
            batch=BATCH,
            lr=GATED_LR,
            lam_warmup=0.0,
            lr_decay=0.0,
            resample=tuple(step / m.steps for step in RESAMPLE_STEPS),
            eval_tokens=2**20,
            ce_tokens=2**20,
        )
        for site in m.sites:
            M = NARROW if (lm, site) == ("pythia-2.8b", "resid_post") else WIDTH
            found += [replace(base, site=site, layer=layer, M=M) for layer in m.layers]
    return found


def runs(name: str = "pareto", norms: Mapping[tuple[str, str, int], float] = NORMS) -> list[Run]:
    """The runs of "pareto" (every site) or of "gelu-1l" (Figs 5, 6): gated, and the 1.5 times wider
    baseline.

    Raises KeyError on another name.
    """
    from gsae.experiments.limits import shape

    if name not in ("pareto", "gelu-1l"):
        raise KeyError(f"unknown sweep of the paper {name!r}: expected pareto or gelu-1l")
    found = []
    for gated in sites():
        if name == "gelu-1l" and gated.lm != name:
            continue
        for run in (gated, replace(wider(gated), lr=MODELS[gated.lm].baseline_lr)):
            found += grid(run, lam=lambdas(run, shape(run.lm).n(run.site), norms))
    return found
