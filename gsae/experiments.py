"""Every experiment as data: scales, sites, the frozen `Run`, and grids of runs. Standard library only."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import product
from pathlib import Path

SITES = ("mlp_out", "attn_z", "resid_post", "mlp_neurons")
SCALES = ("smoke", "cpu", "gpu", "paper")
# Raised by hand whenever code that can move an architecture's numbers changes.
RECIPES = {"baseline": 1, "gated": 1}


@dataclass(frozen=True)
class Run:
    """One SAE to train: plain values only. Equal fields, recipe, text and language model give an equal `id`."""

    arch: str = "gated"
    tie: str = "r_mag"
    freeze: str = "both"
    auxiliary: bool = True
    step: bool = True
    centre_grad: bool = True
    magnitude_l1: bool = False
    lm: str = "smollm2"
    site: str = "mlp_out"
    layer: int = 8
    context: int = 128
    text: str = "packaged"  # or the name of a dataset on the hub
    keep_pos0: bool = False
    M: int = 2304
    lam: float = 0.1
    seed: int = 0
    tokens: int = 1_024_000
    batch: int = 2048
    lr: float = 1e-3
    lam_warmup: float = 0.05  # D5: share of the steps over which lambda rises linearly
    lr_warmup: int = 1000  # D7: steps from 0.1x to 1x, at most 2 % of the run
    lr_decay: float = 0.2  # D6: share of the steps, at the end, over which the rate falls linearly to 0
    resample: tuple[float, ...] = (0.15, 0.30)  # D8: shares of the run at which dead latents are resampled
    eval_tokens: int = 200_000
    ce_tokens: int = 32_768

    def __post_init__(self):
        if self.site not in SITES:
            raise ValueError(f"unknown site {self.site!r}: expected one of {', '.join(SITES)}")
        if self.arch not in RECIPES:
            raise ValueError(f"unknown architecture {self.arch!r}: expected one of {', '.join(RECIPES)}")
        if min(self.M, self.tokens, self.batch, self.context - 1) < 1 or self.lam < 0 or self.lr <= 0:
            raise ValueError(f"M, tokens and batch must be positive, context above 1, lam >= 0, lr > 0: {self}")
        object.__setattr__(self, "resample", tuple(self.resample))

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches that cover `tokens`."""
        return -(-self.tokens // self.batch)

    @property
    def switches(self) -> dict:
        """The ablation switches, as arguments of the architecture's constructor."""
        names = ("tie", "freeze", "auxiliary", "step", "centre_grad", "magnitude_l1")
        return {k: getattr(self, k) for k in names} if self.arch == "gated" else {}

    @property
    def stack(self) -> tuple:
        """Runs with an equal key train together: all but lambda is the same."""
        return tuple(v for k, v in asdict(self).items() if k != "lam")

    @property
    def id(self) -> str:
        """Twelve hex digits of the fields, the recipe, and the hashes of the text and the language model."""
        return self.id_at(RECIPES[self.arch])

    def id_at(self, recipe: int, corpus: dict | None = None, lm: str | None = None) -> str:
        """The id under a recipe and, where given, the hashes that a record names."""
        known_corpus, known_lm = sources(self.lm, self.context)
        corpus, lm = known_corpus if corpus is None else corpus, known_lm if lm is None else lm
        text = json.dumps([asdict(self), recipe, corpus, lm], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @classmethod
    def of(cls, record: dict) -> "Run":
        """The run of a record's `run` field. Raises ValueError on a field this version does not know."""
        known = {f.name for f in fields(cls)}
        if unknown := set(record) - known:
            raise ValueError(
                f"a run has unknown fields {', '.join(sorted(unknown))}: known are {', '.join(sorted(known))}"
            )
        return cls(**record | {"resample": tuple(record.get("resample", cls.resample))})


@cache
def manifest() -> dict:
    """Hashes of the packaged text and language models, committed so that listing needs neither."""
    path = Path(__file__).parent / "data" / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def sources(lm: str, context: int) -> tuple[dict, str]:
    """Hashes of the token blocks and of the weights behind a language model's runs; empty for a hub model."""
    corpora = manifest().get("corpora", {}).get(lm, {})
    return {k: v for k, v in corpora.items() if k.endswith(f"-{context}")}, manifest().get("lms", {}).get(lm, "")


def grid(base: Run, **axes: Iterable) -> list[Run]:
    """Every combination of the axes' values on `base`: `grid(run, lam=[.1, .2], seed=[0, 1])` is four runs."""
    return [replace(base, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """`count` values from `low` to `high`, equal ratios, three significant digits."""
    return [float(f"{low * (high / low) ** (i / (count - 1)):.3g}") for i in range(count)]


def scale(name: str | None = None) -> str:
    """`name`, else GSAE_SCALE, else "smoke". Raises ValueError on a word that is no scale."""
    name = name or os.environ.get("GSAE_SCALE") or "smoke"
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}: GSAE_SCALE must be one of {', '.join(SCALES)}")
    return name


# Settings of each scale. At cpu a run has a million tokens so far (D4); more are a matter of time, not of code.
SETTINGS: dict[str, dict] = {
    "smoke": dict(tokens=30_208, batch=512, M=256, resample=(), eval_tokens=10_000, ce_tokens=4_096),
    "cpu": dict(tokens=1_024_000, batch=2048, M=2304, eval_tokens=200_000, ce_tokens=32_768),
    "gpu": dict(lm="gelu-1l", site="mlp_neurons", layer=0, text="monology/pile-uncopyrighted", tokens=20_000_768,
                batch=4096, M=4096, lr=1e-3, resample=(0.1, 0.2, 0.3, 0.4), eval_tokens=1_000_000,
                ce_tokens=1_000_000),
    "paper": dict(lm="gelu-1l", site="mlp_neurons", layer=0, text="monology/pile-uncopyrighted",
                  tokens=300_000 * 4096, batch=4096, M=131_072, lr=3e-4, lam_warmup=0.0, lr_decay=0.0,
                  resample=(1 / 12, 2 / 12, 3 / 12, 4 / 12), eval_tokens=2**20, ce_tokens=2**20),
}  # fmt: skip
MINI = dict(lm="gelu-1l-mini", site="mlp_neurons", layer=0, M=2048, eval_tokens=100_000, ce_tokens=65_536)
PILOT_LAMBDAS = log_spaced(0.02, 1.0, 8)
SMOKE_LAMBDAS = [0.1, 0.4]


def wider(run: Run) -> Run:
    """The baseline of the paper's comparisons: 1.5 times the gated width, for equal compute (section 4.1)."""
    paper = Run()
    plain = {k: getattr(paper, k) for k in ("tie", "freeze", "auxiliary", "step", "centre_grad", "magnitude_l1")}
    return replace(run, arch="baseline", M=run.M * 3 // 2, **plain)


def both(runs: Sequence[Run]) -> list[Run]:
    """Each run and its 1.5 times wider baseline."""
    return [*runs, *map(wider, runs)]


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
    """Figs 5, 6: MLP neurons of a one-layer model, gated and baseline."""
    return both(grid(base(scale), lam=lambdas(scale)))


def pareto(scale: str) -> list[Run]:
    """Figs 1, 5, 12, 13: L0 against loss recovered, gated and baseline, at every site there is."""
    if scale == "paper":
        from gsae import paper_scale

        return paper_scale.runs("pareto")
    return neurons(scale) + [r for r in pilot(scale) if r.lm == "smollm2"]  # none of these at gpu


def rates(scale: str) -> list[Run]:
    """Learning rates at two lambdas, both architectures, so that neither arm is handicapped; no verdict rests on it."""
    lams = lambdas(scale)
    return both(grid(base(scale), lr=[3e-4, 7.5e-4, 1e-3], lam=lams[1::2][:2] if scale != "smoke" else lams[:1]))


def ablations(scale: str) -> list[Run]:
    """Fig. 8 and further arms, by the side of the gated and baseline runs of `neurons`."""
    run, lams = base(scale), lambdas(scale)
    main, few = (lams, lams[:1]) if scale == "smoke" else (lams[:4], lams[1:3])
    found = neurons(scale)
    for switches in ({"freeze": "none"}, {"tie": "shared"}, {"tie": "none"}):
        found += grid(replace(run, **switches), lam=main)
    for switches in ({"auxiliary": False}, {"step": False}, {"freeze": "W_dec"}, {"centre_grad": False},
                     {"magnitude_l1": True}):  # fmt: skip
        found += grid(replace(run, **switches), lam=few)
    return found


def same_width(scale: str) -> list[Run]:
    """Fig. 9: baselines of the gated SAE's own width, whose shrinkage is then repaired (`gsae.controls`)."""
    lams = lambdas(scale)
    return [replace(wider(r), M=r.M) for r in grid(base(scale), lam=lams[:4])]


def resampling(scale: str) -> list[Run]:
    """Appendix D: both arms without resampling, at one lambda of `neurons`."""
    lams = lambdas(scale)
    return both([replace(base(scale), lam=lams[len(lams) // 2], resample=())])


def study(scale: str) -> list[Run]:
    """Section 4.3: SAEs whose latents are compared; at cpu one an arm, both of L0 about 50 (`gsae study pairs`)."""
    if scale == "cpu":
        return [replace(Run(**SETTINGS[scale]), lam=0.141), replace(wider(Run(**SETTINGS[scale])), lam=0.116)]
    return pilot(scale)[::2] if scale == "smoke" else neurons(scale)


# Lambdas of the one-layer model's sweeps, from the pilot: both arms cover L0 5 to 150.
LAMBDAS: dict[str, list[float]] = {"smoke": SMOKE_LAMBDAS, "cpu": log_spaced(0.1, 0.8, 6)}

EXPERIMENTS: dict[str, Callable[[str], list[Run]]] = {
    "pilot": pilot,
    "neurons": neurons,
    "pareto": pareto,
    "rates": rates,
    "ablations": ablations,
    "same_width": same_width,
    "resampling": resampling,
    "study": study,
}


def runs(name: str, at: str | None = None) -> list[Run]:
    """The runs of one experiment at a scale. Raises KeyError, with the names there are, on an unknown one."""
    if name not in EXPERIMENTS:
        raise KeyError(f"unknown experiment {name!r}: expected one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name](scale(at))


def home(run: Run, at: str) -> str:
    """The experiment a run's evidence is stored under: the first that names it."""
    return next((name for name, make in EXPERIMENTS.items() if run in make(at)), "own")
