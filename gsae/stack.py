"""A stack of SAEs in training: its plan and schedules, Adam, resampling, and its state on disk."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gsae import checkpoints
from gsae.closed import closed_form
from gsae.optim import adam, adam_rows, compiled, compiler
from gsae.saes import ARCHITECTURES, SAE

Batches = Callable[
    [int], Tensor
]  # step -> (batch, n) float32, scaled: a pure function, so that any step can be read again
CURVE = ("step", "tokens", "lam", "lr", "reconstruction", "sparsity", "auxiliary", "l0", "dead")


class Diverged(RuntimeError):
    """A NaN or an infinity in the data or in a loss; names the step, the run and the term."""


@dataclass(frozen=True)
class Plan:
    """What a stack trains: its architecture, one lambda a run, and the schedules, all over `steps` steps."""

    arch: str
    n: int
    M: int
    lams: tuple[float, ...]
    steps: int
    batch: int
    lr: float
    seed: int = 0
    switches: tuple[tuple[str, object], ...] = ()
    lam_warmup: float = 0.05
    lr_warmup: int = 1000
    lr_decay: float = 0.2
    resample: tuple[float, ...] = (0.15, 0.30)
    names: tuple[str, ...] = ()  # run ids, for messages and checkpoints
    dtype: str = "bfloat16"  # of the products; the weights, targets and sums are float32 (D10)
    device: str = "cpu"

    @property
    def events(self) -> list[int]:
        return [round(share * self.steps) for share in self.resample]

    @property
    def window(self) -> int:
        """Steps of silence that make a latent dead: half the interval between resamplings (Bricken et al.)."""
        first = self.events[0] if self.events else round(0.15 * self.steps)
        return max(1, first // 2)

    def lam_share(self, step: int) -> float:
        """Share of its full lambda that a run has at `step`: linear warm-up (D5)."""
        return min(1.0, (step + 1) / max(1, round(self.lam_warmup * self.steps)))

    def lr_at(self, step: int) -> float:
        """Learning rate: cosine from 0.1x to 1x at the start and after resampling (D7), linear to 0 at the end (D6)."""
        warm = min(self.lr_warmup, self.steps // 50)
        since = step - max([e for e in self.events if e <= step], default=0)
        rise = 0.1 + 0.45 * (1 - math.cos(math.pi * since / warm)) if since < warm else 1.0
        decay = round(self.lr_decay * self.steps)
        return self.lr * rise * min(1.0, (self.steps - step) / decay if decay else 1.0)

    def sae(self) -> SAE:
        return ARCHITECTURES[self.arch](self.n, self.M, self.seed, **dict(self.switches))


def autograd_form(template: SAE) -> Callable:
    """The gradient function of any architecture, from its `losses`: slower than a closed form, and its definition."""

    def gradients(w, x, lam, dtype):
        template.product_dtype = dtype
        leaves = {k: v.detach().requires_grad_() for k, v in w.items()}
        call = torch.func.functional_call(
            _Losses(template), {f"sae.{k}": v for k, v in leaves.items()}, (x, lam.reshape(()))
        )
        terms, stats = call
        grads = torch.autograd.grad(
            sum(terms.values()), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(leaves, grads, strict=True)), {k: v.detach() for k, v in terms.items()}, stats

    return gradients


class _Losses(torch.nn.Module):
    def __init__(self, sae: SAE):
        super().__init__()
        self.sae = sae

    def forward(self, x, lam):
        return self.sae.losses(x, lam, return_stats=True)


@cache
def gradient_form(arch: str, switches: tuple, n: int, M: int, fast: bool) -> Callable:
    """The function of (parameters, x, lambda, dtype) that gives gradients, terms and statistics: the closed form where
    there is one for these switches, else autograd's. Element-wise parts are compiled where `fast`.
    """
    closed = closed_form(arch, compiled if fast else lambda f: f, **dict(switches))
    return closed or autograd_form(ARCHITECTURES[arch](n, M, **dict(switches)))


class Stack:
    """K SAEs in training: parameters `(K, …)`, Adam's second moments, ages, silence counters and the curve."""

    def __init__(self, plan: Plan):
        self.plan, self.step, self.curve = plan, 0, []
        sae, K = plan.sae(), len(plan.lams)
        self.encoder, self.latent = sae.ENCODER, tuple(k for k in sae.LATENT if hasattr(sae, k))
        self.w = {k: v.detach().repeat(K, *[1] * v.dim()).to(plan.device) for k, v in sae.named_parameters()}
        self.v = {k: torch.zeros_like(v) for k, v in self.w.items()}
        self.age = torch.zeros(K, plan.M, device=plan.device)  # Adam steps of each latent since its last resampling
        self.silent = torch.zeros(K, plan.M, device=plan.device)  # steps since each latent last fired
        self.lam = torch.tensor(plan.lams, device=plan.device)

    columns = CURVE

    @property
    def fast(self) -> bool:  # a compilation of some 20 s pays only on longer runs
        return compiler() and self.plan.steps * self.plan.batch * len(self.plan.lams) >= 1_000_000

    def train_step(self, x: Float[Tensor, "b n"]) -> dict[str, Tensor]:
        """One step of every SAE on the same batch; returns terms and `l0`, each `(K,)`."""
        plan, dtype = self.plan, getattr(torch, self.plan.dtype)
        gradients = gradient_form(plan.arch, plan.switches, plan.n, plan.M, self.fast)
        fuse = compiled if self.fast else lambda f: f
        share, lr = plan.lam_share(self.step), torch.tensor(plan.lr_at(self.step), device=plan.device)
        age = torch.tensor(float(self.step + 1), device=plan.device)
        self.age += 1
        rows = []
        for k in range(len(plan.lams)):
            w = {name: t[k] for name, t in self.w.items()}
            grads, terms, stats = gradients(w, x, self.lam[k] * share, dtype)
            for name, g in grads.items():
                own = self.age[k] if name != "b_dec" else age
                if name == "W_dec":
                    adam_rows(fuse, w[name], g, self.v[name][k], own[:, None], lr)
                else:
                    fuse(adam)(w[name], g, self.v[name][k], own, lr)
            self.silent[k] = torch.where(stats["fired"], 0, self.silent[k] + 1)
            rows.append({**terms, "l0": stats["l0"]})
        self.step += 1
        return {key: torch.stack([r[key] for r in rows]) for key in rows[0]}

    def check(self, x: Tensor, terms: dict[str, Tensor]) -> None:
        """Raise Diverged where a term of this step is not finite."""
        values = torch.stack(list(terms.values()))
        if values.isfinite().all():
            return
        row, k = (~values.isfinite()).nonzero()[0].tolist()
        name = self.plan.names[k] if self.plan.names else f"lambda {self.plan.lams[k]:g}"
        where = "the activations" if not x.isfinite().all() else f"the {list(terms)[row]} term"
        raise Diverged(
            f"step {self.step - 1}, run {name}: {where} held a NaN or an infinity. "
            "Check the activations' scale and dtype, or lower the learning rate"
        )

    @torch.no_grad()
    def resample(self, batches: Batches) -> None:
        """Give dead latents a new start on badly reconstructed inputs (Bricken et al.; D8), with fresh Adam state."""
        plan = self.plan
        steps = [(self.step + i) % plan.steps for i in range(max(1, min(4, 16384 // plan.batch)))]
        pool = torch.cat([batches(s) for s in steps])
        for k in range(len(plan.lams)):
            dead = (self.silent[k] >= plan.window).nonzero().squeeze(1)
            if not len(dead):
                continue
            sae = self.sae(k)
            error = (sae(pool) - pool).square().sum(-1)
            generator = torch.Generator().manual_seed(hash((plan.seed, self.step, k)) % 2**63)
            chosen = torch.multinomial(
                error.double().square().cpu(), len(dead), len(dead) > len(pool), generator=generator
            )
            direction = torch.nn.functional.normalize(pool[chosen.to(pool.device)], dim=-1)
            encoders = [name for name in (self.encoder, "W_mag") if name in self.w]
            alive = torch.ones(plan.M, dtype=torch.bool, device=pool.device)
            alive[dead] = False
            self.w["W_dec"][k, dead] = direction
            for name in encoders:
                norm = self.w[name][k].norm(dim=0)[alive].mean() if alive.any() else torch.tensor(1.0)
                self.w[name][k][:, dead] = 0.2 * norm * direction.T
                self.v[name][k][:, dead] = 0
            for name in self.latent:
                self.w[name][k, dead] = 0
                self.v[name][k, dead] = 0
            self.v["W_dec"][k, dead] = 0
            self.age[k, dead] = 0
            self.silent[k, dead] = 0

    def sae(self, k: int) -> SAE:
        """The k-th SAE, as a plain module sharing no memory with the stack."""
        sae = self.plan.sae().to(self.plan.device)
        sae.load_state_dict({name: t[k].clone() for name, t in self.w.items()})
        return sae

    def save(self, path: Path) -> None:
        tensors = {f"{part}.{k}": t for part in ("w", "v") for k, t in getattr(self, part).items()}
        state = {"plan": repr(self.plan), "step": self.step, "curve": self.curve}
        checkpoints.write(path, {**tensors, "age": self.age, "silent": self.silent}, state)

    def resume(self, path: Path) -> bool:
        """Go on from a checkpoint of the same plan; False where there is none. Raises CheckpointError on another's."""
        if not path.exists():
            return False
        tensors, state = checkpoints.read(path)
        if state["plan"] != repr(self.plan):
            raise checkpoints.CheckpointError(
                f"{path} is of another sweep: {state['plan']}, not {self.plan}. Delete it to start anew"
            )
        for part in ("w", "v"):
            for k, t in getattr(self, part).items():
                t.copy_(tensors[f"{part}.{k}"])
        self.age.copy_(tensors["age"])
        self.silent.copy_(tensors["silent"])
        self.step, self.curve = state["step"], state["curve"]
        return True
