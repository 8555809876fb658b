"""Each claim of the paper: its pass rule, stated before the evidence is read, and the verdict. No
torch at import.

`reproduced` needs an estimate that passes, and both its intervals: over groups of evaluation text,
and over seeds; where a rule bounds each run, as for gamma, shut gates and dead latents, every run
of more than one seed. So with one seed a claim about trained runs is `partly` at best. `not yet
run`: runs are missing; `not tested`: they are there and share no range to compare, or the claim's
premise fails.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from gsae.claims import (
    ablations,
    dictionaries,
    interpretability,
    method,
    pareto,
    reconstruction_bias,
    shrinkage,
)
from gsae.evidence import run_files
from gsae.evidence.verdict import NOT_RUN, Verdict


@dataclass(frozen=True)
class Claim:
    """One row of the verdict table. `judge` takes a scale and reads what it needs; without one
    nothing has been run.
    """

    item: str
    sentence: str
    rule: str
    paper: str = ""
    link: str = ""
    judge: Callable[[str], Verdict] | None = None

    def verdict(self, scale: str) -> Verdict:
        """Judged once while the evidence stays as it is: several pages of a book show a verdict."""
        return _judged(self, scale, evidence_state(scale)) if self.judge else Verdict(NOT_RUN)


@lru_cache(maxsize=64)
def _judged(claim: Claim, scale: str, state: tuple) -> Verdict:
    return claim.judge(scale)


def evidence_state(scale: str) -> tuple:
    """Each file that verdicts of a scale are read from, with its size and time of change."""
    from gsae.interpretability import score_tables

    folders = (run_files.root(scale), run_files.root("bench"), score_tables.folder(scale))
    files = [file for folder in folders for file in sorted(folder.rglob("*.json"))]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def forget() -> None:
    """Judge every claim anew, though no file of evidence has changed: for tests that change the
    code.
    """
    _judged.cache_clear()


def anchor(item: str) -> str:
    """Where the book's page of evidence has a claim, by the paper's item."""
    return "claim-" + re.sub(r"\W+", "-", item.lower()).strip("-")


SHRINKAGE, GATED, PARETO = "notebooks/01_shrinkage", "notebooks/02_gated_sae", "notebooks/04_pareto"
BIAS, ABLATIONS = "notebooks/05_reconstruction_bias", "notebooks/06_ablations"
ENOUGH, DICTIONARIES = "notebooks/07_is_shrinkage_enough", "notebooks/08_dictionaries"
INTERPRETABILITY = "notebooks/09_interpretability"
CLAIMS = [
    Claim(
        "Fig. 2",
        "An L1 penalty shrinks a latent to 1 - lambda / 2.",
        "within 1e-4 for lambdas up to 3",
        "1/2 at lambda = 1",
        SHRINKAGE,
        method.one_latent,
    ),
    Claim(
        "Eqs 6 to 8, Figs 3, 16, 17",
        "Two parameters a latent more; each loss term trains what the paper says.",
        "2 M more parameters; every zero of the gradient exactly 0, the rest as derived",
        "an identity",
        GATED,
        method.equations,
    ),
    Claim(
        "App. E, Fig. 4",
        "A tied Gated SAE is a JumpReLU SAE.",
        "equal to floating-point precision",
        "an identity",
        GATED,
        method.jump_relu,
    ),
    Claim(
        "App. F, Fig. 15",
        "A threshold apart from the offset reconstructs a feature exactly.",
        "exact values within sampling error",
        "ReLU distorts, JumpReLU does not",
        GATED,
        method.toy_model,
    ),
    Claim(
        "Sec. 4.1, cost",
        "A gated step costs at most 1.5 times a baseline step of equal width.",
        "about 1.4 by count, at most 1.5 by time in the median of each shape",
        "at most 1.5",
        PARETO,
        method.step_cost,
    ),
    Claim(
        "Fig. 5",
        "On MLP neurons of a one-layer model, the gated frontier is better at every L0.",
        "loss recovered higher at equal L0, both intervals",
        "gated higher everywhere",
        PARETO,
        pareto.neurons,
    ),
    Claim(
        "Sec. 4.1",
        "The same loss recovered needs about half the L0.",
        "L0 ratio below 1; note whether at most 0.6",
        "0.28 to 0.62 at healthy sites",
        PARETO,
        pareto.half_the_latents,
    ),
    Claim(
        "Figs 1, 12, 13",
        "The gated frontier is better at MLP output, attention and residual stream.",
        "better in all cells but at most one, on average over five levels",
        "all 15 cells of Pythia-2.8B; of Gemma-7B all but one MLP or residual site",
        PARETO,
        pareto.sites,
    ),
    Claim(
        "Limitations",
        "Tiny activations inflate the baseline's L0; the gain survives pruning them.",
        "L0 ratio against the baseline, pruned or not, below 1",
        "conceded, not tested",
        ENOUGH,
        shrinkage.tiny_activations,
    ),
    Claim(
        "Fig. 6",
        "Gated reconstructions are unbiased, the baseline's shrink: MLP neurons.",
        "healthy gated gamma .98 to 1.02; baseline below 1 and falling with lambda",
        "figure alone",
        BIAS,
        reconstruction_bias.gamma_neurons,
    ),
    Claim(
        "Fig. 14",
        "The same at the sites of a deeper model.",
        "as Fig. 6",
        "healthy .985 to 1.02, others .93 to 2.56; .72 to .98",
        BIAS,
        reconstruction_bias.gamma_deep,
    ),
    Claim(
        "Fig. 8, decoder",
        "Freezing the decoder in the auxiliary term matters.",
        "unfrozen: delta CE at equal L0 more than 1.05 times the gated",
        "clearly worse, figure alone",
        ABLATIONS,
        ablations.unfrozen,
    ),
    Claim(
        "Fig. 8, encoder",
        "Untied encoders or no r_mag change little, and the baseline is worse.",
        "delta CE at equal L0 within 1.05 of the gated, either way; baseline's above it",
        "slightly worse (figure)",
        ABLATIONS,
        ablations.small_changes,
    ),
    Claim(
        "Sec. 3.2, auxiliary term",
        "Without the auxiliary term the gates shut.",
        "L0 below 1, or below a tenth of the gated at the same lambda",
        "nothing fires",
        ABLATIONS,
        ablations.no_auxiliary,
    ),
    Claim(
        "Fig. 9",
        "Fixing shrinkage alone is not enough.",
        "gamma within .05 of 1 after rescale & shift, and below .4 of the gap closed; to .5 partly",
        "a small part (figure)",
        ENOUGH,
        shrinkage.shrinkage_alone,
    ),
    Claim(
        "Fig. 10",
        "Gated dictionaries are slightly better, whatever the encoder.",
        "lower delta CE under pursuit at most of 10, 30 and 100 latents",
        "small but real (figure)",
        DICTIONARIES,
        dictionaries.dictionaries,
    ),
    Claim(
        "Fig. 10, training L0",
        "The best dictionary for a number of latents was trained at a higher L0.",
        "one trained at 1.5 times the number beats the one trained nearest to it, in most cases",
        "often; best baseline's about 99, best gated's 20 to 30",
        DICTIONARIES,
        dictionaries.training_l0,
    ),
    Claim(
        "Fig. 11",
        "Gated encoders are nearer to what pursuit finds for their dictionaries.",
        "delta CE of encoder over pursuit at equal L0: the baseline's above the gated's",
        "smaller gap (figure)",
        DICTIONARIES,
        dictionaries.encoder_gap,
    ),
    Claim(
        "App. D",
        "Resampling keeps more latents alive.",
        "where 1 % are dead without it, fewer with it by .5 %, in both architectures",
        "used throughout, no numbers",
        ABLATIONS,
        ablations.resampling,
    ),
    Claim(
        "ours",
        "In a known dictionary the gated SAE finds directions and magnitudes, the baseline "
        "shrinks.",
        "gated gamma within .02 of 1, slope within .05; cosine at least the baseline's; baseline "
        "slope below 1",
        "",
        DICTIONARIES,
        dictionaries.known_dictionary,
    ),
    Claim(
        "Sec. 4.3",
        "Gated latents are at least as interpretable, to human raters.",
        "lower 90 % bound of the mean difference above -0.15",
        "+0.13 [0, 0.26]",
        INTERPRETABILITY,
        interpretability.human_ratings,
    ),
]
