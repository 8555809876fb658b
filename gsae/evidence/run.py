"""The frozen `Run`, its identity, and grids of runs. Standard library only."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import product
from pathlib import Path

DEEP_SITES = ("mlp_out", "attn_z", "resid_post")  # of a deeper model (section 4.1)
SITES = (*DEEP_SITES, "mlp_neurons")
# Raised by hand whenever code that can move an architecture's numbers changes.
RECIPES = {"baseline": 1, "gated": 1}
# The ablation switches, which the gated architecture alone has.
SWITCHES = ("tie", "freeze", "auxiliary", "step", "centre_grad", "magnitude_l1")


@dataclass(frozen=True)
class Run:
    """One SAE to train: plain values only. Equal fields, recipe, text and language model give an
    equal `id`.
    """

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
    context: int = 128  # D16
    text: str = "packaged"  # or the name of a dataset on the hub
    keep_pos0: bool = False
    M: int = 2304  # D3: four times SmolLM2's width
    lam: float = 0.1
    seed: int = 0
    tokens: int = 1_024_000
    batch: int = 2048
    lr: float = 1e-3  # D12
    lam_warmup: float = 0.05  # D5: share of the steps over which lambda rises linearly
    lr_warmup: int = 1000  # D7: steps from 0.1x to 1x, at most 2 % of the run
    lr_decay: float = 0.2  # D6: share of the steps, at the end, over which it falls linearly to 0
    resample: tuple[float, ...] = (0.15, 0.30)  # D8: shares of the run; dead latents are resampled
    eval_tokens: int = 200_000
    ce_tokens: int = 32_768

    def __post_init__(self):
        if self.site not in SITES:
            raise ValueError(f"unknown site {self.site!r}: expected one of {', '.join(SITES)}")
        if self.arch not in RECIPES:
            raise ValueError(
                f"unknown architecture {self.arch!r}: expected one of {', '.join(RECIPES)}"
            )
        positive = min(self.M, self.tokens, self.batch, self.context - 1) >= 1
        if not positive or self.lam < 0 or self.lr <= 0:
            raise ValueError(
                f"M, tokens and batch must be positive, context above 1, lam >= 0, lr > 0: {self}"
            )
        object.__setattr__(self, "resample", tuple(self.resample))

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches that cover `tokens`."""
        return -(-self.tokens // self.batch)

    @property
    def switches(self) -> dict:
        """The ablation switches, as arguments of the architecture's constructor."""
        return {name: getattr(self, name) for name in SWITCHES} if self.arch == "gated" else {}

    @property
    def read(self) -> tuple:
        """Runs of one language model with an equal key train on the same text: one harvest serves
        them all.
        """
        return self.text, self.context, self.tokens, self.batch, self.keep_pos0

    @property
    def data(self) -> tuple:
        """Runs of one language model with an equal key read the same texts, for training and for
        evaluation.
        """
        return *self.read, self.eval_tokens, self.ce_tokens

    @property
    def place(self) -> tuple:
        """Runs of one language model with an equal key share a `gsae.experiments.site.Site`:
        activations and evaluation.
        """
        return self.data, self.site, self.layer

    @property
    def stack(self) -> tuple:
        """Runs with an equal key train together: all but lambda is the same."""
        return tuple(v for k, v in asdict(self).items() if k != "lam")

    @property
    def id(self) -> str:
        """Twelve hex digits of the fields, the recipe, and the hashes of the text and the language
        model.
        """
        return self.id_at(RECIPES[self.arch])

    def id_at(self, recipe: int, corpus: dict | None = None, lm: str | None = None) -> str:
        """The id under a recipe and, where given, the hashes that a record names."""
        known_corpus, known_lm = sources(self.lm, self.context)
        corpus = known_corpus if corpus is None else corpus
        lm = known_lm if lm is None else lm
        text = json.dumps([asdict(self), recipe, corpus, lm], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @classmethod
    def of(cls, record: dict) -> "Run":
        """The run of a record's `run` field. Raises ValueError on a field this version does not
        know.
        """
        known = {f.name for f in fields(cls)}
        unknown = set(record) - known
        if unknown:
            raise ValueError(
                f"a run has unknown fields {', '.join(sorted(unknown))}: known are "
                f"{', '.join(sorted(known))}"
            )
        resample = tuple(record.get("resample", cls.resample))  # a list, in json
        return cls(**(record | {"resample": resample}))


@cache
def manifest() -> dict:
    """Hashes of the packaged text and language models, committed so that listing needs neither."""
    path = Path(__file__).parents[1] / "data" / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def sources(lm: str, context: int) -> tuple[dict, str]:
    """Hashes of the token blocks and of the weights behind a language model's runs; empty for a hub
    model.
    """
    corpora = manifest().get("corpora", {}).get(lm, {})
    corpus = {name: value for name, value in corpora.items() if name.endswith(f"-{context}")}
    return corpus, manifest().get("lms", {}).get(lm, "")


def grid(base: Run, **axes: Iterable) -> list[Run]:
    """Every combination of the axes' values on `base`: `grid(run, lam=[.1, .2], seed=[0, 1])` is
    four runs.
    """
    combinations = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
    return [replace(base, **values) for values in combinations]


def rounded(lam: float) -> float:
    """Three significant digits, as all lambdas that are computed have: a run's id hashes every
    digit.
    """
    return float(f"{lam:.3g}")


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """`count` values from `low` to `high`, equal ratios, `rounded`."""
    return [rounded(low * (high / low) ** (i / (count - 1))) for i in range(count)]


def wider(run: Run) -> Run:
    """The baseline of the paper's comparisons: 1.5 times the gated width, for equal compute
    (section 4.1).
    """
    return replace(run, arch="baseline", M=run.M * 3 // 2, **Run().switches)


def both(runs: Sequence[Run], share: float = 1.0) -> list[Run]:
    """Each run and its 1.5 times wider baseline, at `share` of its lambda."""
    return [*runs, *(replace(wider(run), lam=rounded(share * run.lam)) for run in runs)]


SCALES = ("smoke", "cpu", "gpu", "paper")


def scale(name: str | None = None) -> str:
    """`name`, else GSAE_SCALE, else "smoke". Raises ValueError on a word that is no scale."""
    name = name or os.environ.get("GSAE_SCALE") or "smoke"
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}: GSAE_SCALE must be one of {', '.join(SCALES)}")
    return name
