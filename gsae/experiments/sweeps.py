"""Every experiment as data: scales, settings, and the runs of each sweep. Standard library only."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from gsae.evidence.run import Run, both, grid, rounded, scale, wider
from gsae.experiments import paper_scale, smollm2_sites
from gsae.experiments.settings import (
    BASELINE_SHARE,
    FIRST_SITE_LAMBDAS,
    LAMBDAS,
    LONG,
    LONG_LAMBDAS,
    LOW_LAMBDA,
    MINI,
    PILOT_LAMBDAS,
    POSITION0,
    SEEDS,
    SETTINGS,
    SMOKE_LAMBDAS,
)


def base(scale: str) -> Run:
    """The gated run of a scale that its sweeps vary; at smoke and cpu MLP neurons of the one-layer
    model.
    """
    if scale == "smoke":
        return Run(**SETTINGS[scale] | {name: MINI[name] for name in ("lm", "site", "layer")})
    return Run(**SETTINGS[scale] | (MINI if scale == "cpu" else {}))


def lambdas(scale: str) -> list[float]:
    """The lambdas of the sweeps on `base`, at a scale without a pilot of its own the pilot's inner
    ones.
    """
    return LAMBDAS.get(scale, PILOT_LAMBDAS[1:7])


def pilot(scale: str) -> list[Run]:
    """Eight lambdas an architecture and site (two at smoke), to choose the grids of the other
    sweeps from.

    At cpu half a million tokens, a million at the MLP output of layer 8. At five places of SmolLM2
    it came after the first grids, with little evaluation text; `ends` was chosen from it.
    """
    if scale == "cpu":
        mini = replace(base(scale), tokens=512_000, eval_tokens=200_000)
        return smollm2_sites.pilot_runs() + both(grid(mini, lam=PILOT_LAMBDAS))
    lams = SMOKE_LAMBDAS if scale == "smoke" else PILOT_LAMBDAS
    return both(grid(Run(**SETTINGS[scale]), lam=lams))


def neurons(scale: str) -> list[Run]:
    """MLP neurons of a one-layer model, gated and baseline, one seed and the same lambdas in both
    arms.

    At cpu the first pass, a fifth of the tokens, from which the lambdas of `seeds` were chosen; no
    verdict rests on it.
    """
    return both(grid(base(scale), lam=lambdas(scale)))


def main_sweep(scale: str) -> tuple[Run, list[float], float]:
    """The gated run of `seeds` and its lambdas, and the share of each that the baseline of about
    its L0 has.
    """
    if scale != "cpu":
        return base(scale), lambdas(scale), 1.0
    return replace(base(scale), **LONG), LONG_LAMBDAS, BASELINE_SHARE


def seeds(scale: str) -> list[Run]:
    """Figs 5, 6: at cpu three seeds, 5 M tokens and lambdas of each arm's own; at other scales
    `neurons`.
    """
    run, lams, share = main_sweep(scale)
    if scale == "cpu":
        lams = [LOW_LAMBDA, *lams]
    return both(grid(run, seed=SEEDS.get(scale, [0]), lam=lams), share)


def pareto(scale: str) -> list[Run]:
    """Figs 1, 5, 12, 13: L0 against loss recovered, gated and baseline, at every site there is."""
    if scale == "paper":
        return paper_scale.paper_runs("pareto")
    return seeds(scale) + sites(scale)


def sites(scale: str) -> list[Run]:
    """Figs 1, 12 to 14, Tables 1 to 8: at cpu three sites of a deeper model at two layers, lambdas
    of each arm's own; else one cell.
    """
    if scale == "smoke":
        return pilot(scale)
    if scale == "cpu":
        return smollm2_sites.site_runs()
    mlp_out = replace(base(scale), site="mlp_out")
    return both(grid(mlp_out, lam=lambdas(scale)[1::2][:2]))


def ends(scale: str) -> list[Run]:
    """What was added to `sites` after its verdicts had been read (D17): at cpu, lambdas for the
    cells that did not reach L0 5 or 150 in both arms, and at the residual streams the same without
    resampling. At other scales one pair at half the smallest lambda.
    """
    if scale == "cpu":
        return smollm2_sites.end_runs()
    gated = [run for run in sites(scale) if run.arch == "gated"]
    densest = min(gated, key=lambda run: run.lam)
    return both([replace(densest, lam=rounded(densest.lam / 2))])


def second_seed(scale: str) -> list[Run]:
    """The runs of `sites` in a second seed. A cell joins `sites` when it is whole
    (`settings.SITE_SEEDS`).
    """
    cheap_first = sorted(sites(scale), key=lambda run: (-run.layer, run.site == "attn_z"))
    return [replace(run, seed=1) for run in cheap_first if run.seed == 0]


def position0(scale: str) -> list[Run]:
    """D9: pairs that keep position 0, the attention sink; at cpu two places of `study`, whose runs
    do not.
    """
    if scale == "cpu":
        runs = [run for run in study(scale) if (run.site, run.layer) in POSITION0]
        return [replace(run, keep_pos0=True) for run in runs]
    return both([replace(Run(**SETTINGS[scale]), lam=lambdas(scale)[0], keep_pos0=True)])


def longer(scale: str) -> list[Run]:
    """D4: one pair on twice the tokens of `seeds`, at cpu four times, to see what a short training
    does.
    """
    run, lams, share = main_sweep(scale)
    tokens = 19_998_720 if scale == "cpu" else 2 * run.tokens
    return both([replace(run, lam=lams[1], tokens=tokens)], share)


def rates(scale: str) -> list[Run]:
    """Learning rates at two lambdas, both architectures, so that neither arm is handicapped; no
    verdict rests on it.
    """
    lams = lambdas(scale)
    lams = lams[:1] if scale == "smoke" else lams[1::2][:2]
    rates = [3e-4, 7.5e-4, 1e-3]
    if scale == "cpu":  # where the paper's largest was the best of three
        rates.append(2e-3)
    return both(grid(base(scale), lr=rates, lam=lams))


def schedule(scale: str) -> list[Run]:
    """D5, D6: one pair at the paper's rate for gated runs, with neither warm-up of lambda nor decay
    of the rate.
    """
    run, lams, share = main_sweep(scale)
    return both([replace(run, lam=lams[1], lr=3e-4, lam_warmup=0.0, lr_decay=0.0)], share)


def ablated(
    run: Run, lams: Sequence[float], few: Sequence[float], seeds: Sequence[int]
) -> list[Run]:
    """The arms of Fig. 8: the unfrozen one in every seed, the others, and that without the
    auxiliary term, in the first two; the further arms, of `run`'s seed alone.
    """
    arms = grid(replace(run, freeze="none"), seed=seeds, lam=lams)
    arms += grid(replace(run, tie="shared"), seed=seeds[:2], lam=lams)
    arms += grid(replace(run, tie="none"), seed=seeds[:2], lam=lams)
    arms += grid(replace(run, auxiliary=False), seed=seeds[:2], lam=few)
    arms += grid(replace(run, step=False), lam=few)
    arms += grid(replace(run, freeze="W_dec"), lam=few)
    arms += grid(replace(run, centre_grad=False), lam=few)
    arms += grid(replace(run, magnitude_l1=True), lam=few)
    return arms


def ablations(scale: str) -> list[Run]:
    """Fig. 8 and further arms, by the side of the gated and baseline runs of `seeds`: what has a
    verdict in several seeds, the further arms in the first.
    """
    run, lams, _ = main_sweep(scale)
    main, few = lams[:-1][:4], lams[1:3]
    if scale == "smoke":
        main, few = lams, lams[:1]
    return seeds(scale) + ablated(run, main, few, SEEDS.get(scale, [0]))


def untied(scale: str) -> list[Run]:
    """Whether the learning rate or the width explains what untied encoders cost: beside the Gated
    SAE, both at the paper's rate for gated runs, and both twice as wide, at cpu at the lambdas of
    `ablations`; of no verdict.
    """
    run, lams, _ = main_sweep(scale)
    axes = {"tie": [run.tie, "none"], "lam": lams[:3]}
    return grid(replace(run, lr=3e-4), **axes) + grid(replace(run, M=2 * run.M), **axes)


def narrow(run: Run, lams: Sequence[float], share: float, seeds: Sequence[int]) -> list[Run]:
    """Baselines of the gated width, each at a share of a gated lambda."""
    return [
        replace(wider(gated), M=gated.M, lam=rounded(share * gated.lam))
        for gated in grid(run, seed=seeds, lam=lams)
    ]


def same_width(scale: str) -> list[Run]:
    """Fig. 9: baselines of the gated SAE's own width, whose shrinkage is then repaired
    (`gsae.experiments.run_follow_ups`).
    """
    run, lams, share = main_sweep(scale)
    return narrow(run, lams[:4], share, SEEDS.get(scale, [0]))


def first_pass(scale: str) -> list[Run]:
    """A million tokens a run and one seed, before the sweeps above: their lambdas were chosen from
    it, and chapters say what more tokens changed. No verdict on a frontier rests on it. At scales
    other than cpu, `neurons`.
    """
    if scale != "cpu":
        return neurons(scale)
    run, lams = base(scale), lambdas(scale)
    return [
        *neurons(scale),
        *ablated(run, lams[:4], lams[1:3], [0]),
        *narrow(run, lams[:4], 1.0, [0]),
        *both([replace(run, lam=lams[3], resample=())]),
        *smollm2_sites.first_pass_runs(),
        *smollm2_sites.trial_runs(),
    ]


def resampling(scale: str) -> list[Run]:
    """Appendix D: both arms without resampling at one lambda of `seeds`, at cpu also at the
    residual streams, where latents die: at one lambda of the first pass and at all of `sites`.
    """
    run, lams, share = main_sweep(scale)
    usual = both([replace(run, lam=lams[len(lams) // 2])], share)
    if scale == "cpu":
        first_pass = smollm2_sites.first_pass_runs()
        at_places = [run for run in first_pass if run.lam == FIRST_SITE_LAMBDAS[1]] + sites(scale)
        usual += [run for run in at_places if run.site == "resid_post" and run.seed == 0]
    return [replace(run, resample=()) for run in usual]


def study(scale: str) -> list[Run]:
    """Section 4.3: SAEs whose latents are compared; at cpu one an arm and place, both of about one
    L0 near 50.
    """
    if scale == "cpu":
        return smollm2_sites.pair_runs()
    return pilot(scale)[::2] if scale == "smoke" else neurons(scale)


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
    "ends": ends,
    "second_seed": second_seed,
    "schedule": schedule,
    "untied": untied,
    "first_pass": first_pass,
}


def runs(name: str, at: str | None = None) -> list[Run]:
    """The runs of one experiment at a scale. Raises KeyError, with the names there are, on an
    unknown one.
    """
    if name not in EXPERIMENTS:
        raise KeyError(f"unknown experiment {name!r}: expected one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name](scale(at))


def home(run: Run, at: str, unnamed: str = "own") -> str:
    """The experiment a run's evidence is stored under: the first that names it, or `unnamed`."""
    return next((name for name, make in EXPERIMENTS.items() if run in make(at)), unnamed)
