"""Every experiment as data: scales, settings, and the runs of each sweep. Standard library only."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from gsae.runs import RECIPES, SITES, Run, grid, log_spaced, manifest, rounded, sources

__all__ = [
    "EXPERIMENTS", "RECIPES", "SCALES", "SITES", "Run", "asdict", "grid", "log_spaced", "manifest", "rounded", "runs",
    "scale", "sources",
]  # fmt: skip

SCALES = ("smoke", "cpu", "gpu", "paper")


def scale(name: str | None = None) -> str:
    """`name`, else GSAE_SCALE, else "smoke". Raises ValueError on a word that is no scale."""
    name = name or os.environ.get("GSAE_SCALE") or "smoke"
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}: GSAE_SCALE must be one of {', '.join(SCALES)}")
    return name


# Text of the scales gpu and paper; the paper names none: web text and code, close to all three models' own.
TEXT = "monology/pile-uncopyrighted@3be90335b66f24456a5d6659d9c8d208c0357119"
# Settings of each scale. At cpu the tokens are those of first passes and of the study; `LONG` and `SITE_TOKENS` replace
# them where verdicts rest (D4). At gpu chapters 04 to 06 take less than two hours of a T4.
SETTINGS: dict[str, dict] = {
    "smoke": dict(tokens=30_208, batch=512, M=256, resample=(), eval_tokens=10_000, ce_tokens=4_096),
    "cpu": dict(tokens=1_024_000, batch=2048, M=2304, eval_tokens=200_000, ce_tokens=32_768),
    "gpu": dict(lm="gelu-1l", site="mlp_neurons", layer=0, text=TEXT, tokens=3_002_368, batch=4096, M=4096, lr=1e-3,
                resample=(0.1, 0.2, 0.3, 0.4), eval_tokens=1_000_000, ce_tokens=262_144),
    "paper": dict(lm="gelu-1l", site="mlp_neurons", layer=0, text=TEXT,
                  tokens=300_000 * 4096, batch=4096, M=131_072, lr=3e-4, lam_warmup=0.0, lr_decay=0.0,
                  resample=(1 / 12, 2 / 12, 3 / 12, 4 / 12), eval_tokens=2**20, ce_tokens=2**20),
}  # fmt: skip
MINI = dict(lm="gelu-1l-mini", site="mlp_neurons", layer=0, M=2048, eval_tokens=100_000, ce_tokens=65_536)
LONG = 5_001_216  # tokens of a run of `seeds` at cpu, five times those of the first pass, `neurons`
SEEDS: dict[str, list[int]] = {"cpu": [0, 1, 2]}  # of `seeds`; elsewhere one
PILOT_LAMBDAS = log_spaced(0.02, 1.0, 8)
SMOKE_LAMBDAS = [0.1, 0.4]


def wider(run: Run) -> Run:
    """The baseline of the paper's comparisons: 1.5 times the gated width, for equal compute (section 4.1)."""
    paper = Run()
    plain = {k: getattr(paper, k) for k in ("tie", "freeze", "auxiliary", "step", "centre_grad", "magnitude_l1")}
    return replace(run, arch="baseline", M=run.M * 3 // 2, **plain)


def both(runs: Sequence[Run], share: float = 1.0) -> list[Run]:
    """Each run and its 1.5 times wider baseline, at `share` of its lambda."""
    return [*runs, *(replace(wider(run), lam=rounded(share * run.lam)) for run in runs)]


def base(scale: str) -> Run:
    """The gated run of a scale that its sweeps vary; at smoke and cpu MLP neurons of the one-layer model."""
    if scale == "smoke":
        return Run(**SETTINGS[scale] | {k: MINI[k] for k in ("lm", "site", "layer")})
    return Run(**SETTINGS[scale] | (MINI if scale == "cpu" else {}))


def lambdas(scale: str) -> list[float]:
    """The lambdas of the sweeps on `base`, at a scale without a pilot of its own the pilot's inner ones."""
    return LAMBDAS.get(scale, PILOT_LAMBDAS[1:7])


def pilot(scale: str) -> list[Run]:
    """Eight lambdas an architecture and site (two at smoke): from these the grids of the other sweeps are chosen."""
    deep = both(grid(Run(**SETTINGS[scale]), lam=SMOKE_LAMBDAS if scale == "smoke" else PILOT_LAMBDAS))
    mini = replace(base(scale), tokens=512_000, eval_tokens=200_000)
    return deep + both(grid(mini, lam=PILOT_LAMBDAS)) if scale == "cpu" else deep


def neurons(scale: str) -> list[Run]:
    """MLP neurons of a one-layer model, gated and baseline, one seed and the same lambdas in both arms.

    At cpu the first pass, a fifth of the tokens, from which the lambdas of `seeds` were chosen; no verdict rests on it.
    """
    return both(grid(base(scale), lam=lambdas(scale)))


def main_sweep(scale: str) -> tuple[Run, list[float], float]:
    """The gated run of `seeds` and its lambdas, and the share of each that the baseline of about its L0 has."""
    if scale != "cpu":
        return base(scale), lambdas(scale), 1.0
    return replace(base(scale), tokens=LONG), LONG_LAMBDAS, BASELINE_SHARE


def seeds(scale: str) -> list[Run]:
    """Figs 5, 6: at cpu three seeds, 5 M tokens and lambdas of each arm's own; at other scales `neurons`."""
    run, lams, share = main_sweep(scale)
    return both(grid(run, seed=SEEDS.get(scale, [0]), lam=lams), share)


def pareto(scale: str) -> list[Run]:
    """Figs 1, 5, 12, 13: L0 against loss recovered, gated and baseline, at every site there is."""
    if scale == "paper":
        from gsae import paper_scale

        return paper_scale.runs("pareto")
    return seeds(scale) + sites(scale)


def sites(scale: str) -> list[Run]:
    """Figs 1, 12 to 14, Tables 1 to 8: at cpu three sites of a deeper model at two layers, else one cell. Attention has
    twice the text for cross-entropy, as its loss recovered is a ratio of small numbers."""
    if scale == "smoke":
        return pilot(scale)
    if scale != "cpu":
        return both(grid(replace(base(scale), site="mlp_out"), lam=lambdas(scale)[1::2][:2]))
    cells = grid(replace(Run(**SETTINGS[scale]), tokens=SITE_TOKENS), layer=[8, 20], site=list(SITE_LAMBDAS))
    cells = [replace(run, ce_tokens=65_536) if run.site == "attn_z" else run for run in cells]
    return both([replace(run, lam=lam) for run in cells for lam in SITE_LAMBDAS[run.site]], BASELINE_SHARE)


def position0(scale: str) -> list[Run]:
    """D9: pairs that keep position 0, the attention sink; at cpu two places of `study`, whose runs do not."""
    if scale == "cpu":
        return [replace(run, keep_pos0=True) for run in study(scale) if (run.site, run.layer) in POSITION0]
    return both([replace(Run(**SETTINGS[scale]), lam=lambdas(scale)[0], keep_pos0=True)])


def longer(scale: str) -> list[Run]:
    """D4: one pair on twice the tokens of `seeds`, at cpu four times, to see what a short training does."""
    run, lams, share = main_sweep(scale)
    return both([replace(run, lam=lams[1], tokens=19_998_720 if scale == "cpu" else 2 * run.tokens)], share)


def rates(scale: str) -> list[Run]:
    """Learning rates at two lambdas, both architectures, so that neither arm is handicapped; no verdict rests on it."""
    lams = lambdas(scale)
    rate = [3e-4, 7.5e-4, 1e-3] + [2e-3] * (scale == "cpu")  # at cpu the paper's largest was the best of three
    return both(grid(base(scale), lr=rate, lam=lams[1::2][:2] if scale != "smoke" else lams[:1]))


def schedule(scale: str) -> list[Run]:
    """D5, D6: one pair at the paper's rate for gated runs, with neither warm-up of lambda nor decay of the rate."""
    run, lams, share = main_sweep(scale)
    return both([replace(run, lam=lams[1], lr=3e-4, lam_warmup=0.0, lr_decay=0.0)], share)


def ablations(scale: str) -> list[Run]:
    """Fig. 8 and further arms, by the side of the gated and baseline runs of `seeds`: what has a verdict in every seed,
    the further arms in the first."""
    run, lams, _ = main_sweep(scale)
    main, few = (lams, lams[:1]) if scale == "smoke" else (lams[:-1][:4], lams[1:3])
    every, found = SEEDS.get(scale, [0]), seeds(scale)
    for switches in ({"freeze": "none"}, {"tie": "shared"}, {"tie": "none"}):
        found += grid(replace(run, **switches), seed=every, lam=main)
    found += grid(replace(run, auxiliary=False), seed=every, lam=few)
    for switches in ({"step": False}, {"freeze": "W_dec"}, {"centre_grad": False}, {"magnitude_l1": True}):
        found += grid(replace(run, **switches), lam=few)
    return found


def same_width(scale: str) -> list[Run]:
    """Fig. 9: baselines of the gated SAE's own width, whose shrinkage is then repaired (`gsae.controls`)."""
    run, lams, share = main_sweep(scale)
    found = grid(run, seed=SEEDS.get(scale, [0]), lam=lams[:4])
    return [replace(wider(r), M=r.M, lam=rounded(share * r.lam)) for r in found]


def resampling(scale: str) -> list[Run]:
    """Appendix D: both arms without resampling at one lambda of `seeds`, at cpu also at the largest lambda of the
    residual streams of `sites`, where most latents die."""
    run, lams, share = main_sweep(scale)
    alone = [replace(run, lam=lams[len(lams) // 2])]
    if scale == "cpu":
        last = SITE_LAMBDAS["resid_post"][-1]
        alone += [r for r in sites(scale) if (r.arch, r.site, r.lam) == ("gated", "resid_post", last)]
    return both([replace(r, resample=()) for r in alone], share)


def study(scale: str) -> list[Run]:
    """Section 4.3: SAEs whose latents are compared; at cpu one an arm and place, both of about one L0 near 50."""
    if scale == "cpu":
        run = Run(**SETTINGS[scale])
        found = [(replace(run, site=site, layer=layer), lams) for (site, layer), lams in STUDY_LAMBDAS.items()]
        return [replace(one, lam=lam) for run, lams in found for one, lam in zip((run, wider(run)), lams, strict=True)]
    return pilot(scale)[::2] if scale == "smoke" else neurons(scale)


# Tokens and gated lambdas of `sites`, from its first pass on half the tokens: there both arms cover L0 5 to 150, the
# baseline at its share of each lambda. Four instead of five, for want of compute.
SITE_TOKENS = 2_000_896
SITE_LAMBDAS = {
    "mlp_out": log_spaced(0.08, 0.45, 4),
    "attn_z": log_spaced(0.08, 0.45, 4),
    "resid_post": log_spaced(0.035, 0.2, 4),
}
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
# Lambdas of the one-layer model's sweeps, from the pilot: both arms cover L0 5 to 150.
LAMBDAS: dict[str, list[float]] = {"smoke": SMOKE_LAMBDAS, "cpu": log_spaced(0.1, 0.8, 6)}
# Of `seeds` at cpu, from `neurons`: with each arm's own grid both cover L0 5 to 110 and no more. Four instead of six,
# for want of compute.
LONG_LAMBDAS, BASELINE_SHARE = log_spaced(0.1, 0.5, 4), 0.7

EXPERIMENTS: dict[str, Callable[[str], list[Run]]] = {
    "pilot": pilot,
    "neurons": neurons,
    "seeds": seeds,
    "sites": sites,
    "pareto": pareto,
    "rates": rates,
    "ablations": ablations,
    "same_width": same_width,
    "resampling": resampling,
    "study": study,
    "position0": position0,
    "longer": longer,
    "schedule": schedule,
}


def runs(name: str, at: str | None = None) -> list[Run]:
    """The runs of one experiment at a scale. Raises KeyError, with the names there are, on an unknown one."""
    if name not in EXPERIMENTS:
        raise KeyError(f"unknown experiment {name!r}: expected one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name](scale(at))


def home(run: Run, at: str, unnamed: str = "own") -> str:
    """The experiment a run's evidence is stored under: the first that names it, or `unnamed`."""
    return next((name for name, make in EXPERIMENTS.items() if run in make(at)), unnamed)
