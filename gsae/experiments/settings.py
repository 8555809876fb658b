"""Settings of each scale and lambdas of each sweep, as data: what `gsae.experiments.sweeps`
combines into runs.
"""

from gsae.evidence.run import log_spaced

# Text of the scales gpu and paper; the paper names none: web text and code, close to all three
# models' own.
TEXT = "monology/pile-uncopyrighted@3be90335b66f24456a5d6659d9c8d208c0357119"
# Settings of each scale. At cpu the tokens are those of first passes and of the study; `LONG`
# replaces them where verdicts on the one-layer model rest (D4). At gpu chapters 04 to 06 take less
# than two hours of a T4.
SETTINGS: dict[str, dict] = {
    "smoke": dict(
        tokens=30_208, batch=512, M=256, resample=(), eval_tokens=10_000, ce_tokens=4_096
    ),
    "cpu": dict(tokens=1_024_000, batch=2048, M=2304, eval_tokens=200_000, ce_tokens=32_768),
    "gpu": dict(
        lm="gelu-1l",
        site="mlp_neurons",
        layer=0,
        text=TEXT,
        tokens=3_002_368,
        batch=4096,
        M=4096,
        lr=1e-3,
        resample=(0.1, 0.2, 0.3, 0.4),
        eval_tokens=1_000_000,
        ce_tokens=262_144,
    ),
    "paper": dict(
        lm="gelu-1l",
        site="mlp_neurons",
        layer=0,
        text=TEXT,
        tokens=300_000 * 4096,
        batch=4096,
        M=131_072,
        lr=3e-4,
        lam_warmup=0.0,
        lr_decay=0.0,
        resample=(1 / 12, 2 / 12, 3 / 12, 4 / 12),
        eval_tokens=2**20,
        ce_tokens=2**20,
    ),
}
# D13: shorter runs are evaluated on less text than those of `LONG`.
MINI = dict(
    lm="gelu-1l-mini", site="mlp_neurons", layer=0, M=2048, eval_tokens=100_000, ce_tokens=65_536
)
# A run of `seeds` at cpu: five times the tokens of the first pass, `neurons`, and more text to
# evaluate on.
LONG = dict(tokens=5_001_216, eval_tokens=200_000, ce_tokens=262_144)
SEEDS: dict[str, list[int]] = {"cpu": [0, 1, 2]}  # of `seeds`; elsewhere one
PILOT_LAMBDAS = log_spaced(0.02, 1.0, 8)
# At cpu, for L0 alone: cross-entropy is dear.
PILOT = dict(tokens=512_000, eval_tokens=50_000, ce_tokens=8_192)
SMOKE_LAMBDAS = [0.1, 0.4]

# Tokens and gated lambdas of `sites` at cpu, from its first pass, the baseline at its share of
# each: both arms should cover L0 5 to 150, but in the residual streams 15 to 150, since lambdas of
# .4 left nine tenths of the gated latents dead there. Four instead of five, for want of compute.
SITE_TOKENS = 2_000_896
SITE_LAMBDAS = {
    "mlp_out": log_spaced(0.08, 0.45, 4),
    "attn_z": log_spaced(0.08, 0.45, 4),
    "resid_post": log_spaced(0.035, 0.2, 4),
}
SITE_SEEDS: dict[tuple[str, int], list[int]] = {  # where `sites` has more than one
    (site, layer): [0, 1] for site in ("mlp_out", "resid_post") for layer in (8, 20)
}
# Gated lambdas beyond those, added after the verdicts on them had been read, for L0 of 5 and 150 in
# both arms, from the pilot and from `sites`. At the sparse end of the residual streams a guess, as
# their L0 does not fall steadily there.
SITE_ENDS: dict[tuple[str, int], list[float]] = {
    ("mlp_out", 8): [0.07],
    ("attn_z", 8): [0.045],
    ("attn_z", 20): [0.06],
    ("resid_post", 8): [0.032, 0.35],
    ("resid_post", 20): [0.024, 0.25],
}
FIRST_SITE_LAMBDAS = log_spaced(0.06, 0.4, 3)  # of the first pass, in both arms
POSITION0 = (("mlp_out", 8), ("resid_post", 8))  # site and layer of `study`
# Site and layer -> lambdas of the gated SAE and of the baseline of its L0, from `gsae study pairs`.
STUDY_LAMBDAS = {
    ("mlp_out", 8): (0.141, 0.116),
    ("attn_z", 8): (0.114, 0.0875),
    ("resid_post", 8): (0.0882, 0.06),
    ("mlp_out", 20): (0.155, 0.129),
    ("attn_z", 20): (0.155, 0.131),
    ("resid_post", 20): (0.06, 0.0438),
}
# Of layer 20, on the way to those above: L0 too far apart.
STUDY_TRIALS = {"mlp_out": 0.121, "resid_post": 0.0277}
# Lambdas of the one-layer model's sweeps, from the pilot: both arms cover L0 5 to 150.
LAMBDAS: dict[str, list[float]] = {"smoke": SMOKE_LAMBDAS, "cpu": log_spaced(0.1, 0.8, 6)}
# Of `seeds` at cpu, from `neurons`: with each arm's own grid both cover L0 5 to 80, and with
# LOW_LAMBDA 5 to 160. Five instead of six, for want of compute.
LONG_LAMBDAS, BASELINE_SHARE = log_spaced(0.1, 0.5, 4), 0.7
# A fifth of `seeds`, added since at 100 latents the best dictionaries lay at the grid's end.
LOW_LAMBDA = 0.06
