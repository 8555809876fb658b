"""The paper's own sweeps as data: models, sites, widths, tokens, learning rates, lambdas. Standard
library only.

Stated in the paper: models, sites, layers, contexts, steps, batch, widths, learning rates. Not
stated, and chosen here: the text, GELU-1L's width (the tables' 2^17) and its lambdas, and which
Gemma baselines had which of two learning rates (the lower is used throughout).
"""

from dataclasses import dataclass, replace

from gsae.evidence.run import DEEP_SITES, Run, grid, log_spaced, wider
from gsae.experiments import settings

BATCH = 4096
RESAMPLE_STEPS = (25_000, 50_000, 75_000, 100_000)  # Bricken et al., whom the paper follows (D.1.1)
LAMBDA_COUNT = 6  # runs an architecture and site


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


MODELS = {
    "gelu-1l": Model(("mlp_neurons",), (0,), 128, 300_000, 3e-4),
    "pythia-2.8b": Model(DEEP_SITES, (4, 12, 16, 20, 28), 2048, 400_000, 1e-3),
    # its baselines' rate was 1e-3 at some sites, without saying which
    "gemma-7b": Model(DEEP_SITES, (6, 13, 20, 27), 1024, 300_000, 7.5e-4),
}
GATED_LR = 3e-4
# Width of the Gated SAE; the baseline has 1.5 times as many latents, 3 * 2^16 and 3 * 2^14.
WIDTH, NARROW = 2**17, 2**15  # the narrow one at Pythia's residual stream, for its dead latents

# Of every lambda here. The ranges of the paper's tables could be converted (`convert`) where a
# site's norm is known, which the paper does not give. The published grids of SAEs trained in our
# very units (inputs of unit mean squared norm, error summed over n) span 0.012 to 0.08 for gated
# SAEs and 0.012 to 0.06 for baselines; widened upwards until our own pilots reach L0 5.
RANGE = (0.012, 0.5)


def convert(lam: float, n: int, s: int | float) -> float:
    """A gated lambda of the paper's tables in our units (D1, D2), where `s` is the root of the mean
    squared norm of the site's activations: 1 / scale in any run's evidence.

    The paper divides the error by n, so its lambda times n belongs to a summed error; and with
    inputs divided by s, the error falls by s^2 and the penalty by s, so lambda falls by s.
    Baselines' lambdas are not converted: their loss was divided by the mean squared norm as well,
    in a way too loosely described.
    """
    return n * lam / s


def gated_sites() -> list[Run]:
    """One gated run for each of the paper's 28 sites: 1 of GELU-1L, 15 of Pythia-2.8B, 12 of
    Gemma-7B.
    """
    runs = []
    for lm, model in MODELS.items():
        base = Run(
            lm=lm,
            context=model.context,
            text=settings.TEXT,
            tokens=model.steps * BATCH,
            batch=BATCH,
            lr=GATED_LR,
            lam_warmup=0.0,
            lr_decay=0.0,
            resample=tuple(step / model.steps for step in RESAMPLE_STEPS),
            eval_tokens=2**20,
            ce_tokens=2**20,
        )
        for site in model.sites:
            M = NARROW if (lm, site) == ("pythia-2.8b", "resid_post") else WIDTH
            runs += [replace(base, site=site, layer=layer, M=M) for layer in model.layers]
    return runs


def paper_runs(name: str = "pareto") -> list[Run]:
    """The runs of "pareto" (every site) or of "gelu-1l" (Figs 5, 6): gated, and the 1.5 times wider
    baseline.

    Raises KeyError on another name.
    """
    if name not in ("pareto", "gelu-1l"):
        raise KeyError(f"unknown sweep of the paper {name!r}: expected pareto or gelu-1l")
    lams = log_spaced(*RANGE, LAMBDA_COUNT)
    runs = []
    for gated in gated_sites():
        if name == "pareto" or gated.lm == name:
            baseline = replace(wider(gated), lr=MODELS[gated.lm].baseline_lr)
            runs += grid(gated, lam=lams) + grid(baseline, lam=lams)
    return runs
