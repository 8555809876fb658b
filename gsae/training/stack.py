"""A stack of SAEs in training: parameters, state of Adam, one step, resampling, and its file."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gsae.saes import SAE
from gsae.system import tensors
from gsae.system.devices import compiled, compiler
from gsae.system.distributed import ALONE, Alone
from gsae.training.adam import adam, adam_rows
from gsae.training.divergence import Divergence
from gsae.training.gradients import gradient_form
from gsae.training.reader import Batches
from gsae.training.resampling import resample
from gsae.training.schedule import Plan

TERMS = ("reconstruction", "sparsity", "auxiliary", "l0")  # of the curve, as a step returns them
WORTH_COMPILING = 1_000_000  # samples in all: a compilation takes some 20 s


class Stack:
    """K SAEs in training, equal but for lambda: parameters `(K, …)`, Adam's second moments, ages,
    silence counters and the curve.

    With `ranks`, each process takes its slice of every batch, and gradients are averaged: all hold
    the same stack.
    """

    columns = ("step", "tokens", "lam", "lr", *TERMS, "dead")  # of a row of the curve
    # whether products may be sparse where that is faster: see gsae.training.sparse_products
    sparse = True

    def __init__(self, plan: Plan, ranks: Alone = ALONE):
        self.plan, self.ranks = plan, ranks
        self.step, self.curve = 0, []
        sae, K = plan.sae(), len(plan.lams)
        self.encoder = sae.ENCODER
        self.latent = tuple(name for name in sae.LATENT if hasattr(sae, name))
        self.w = {
            name: parameter.detach().repeat(K, *[1] * parameter.dim()).to(plan.device)
            for name, parameter in sae.named_parameters()
        }
        self.v = {name: torch.zeros_like(w) for name, w in self.w.items()}
        # age: Adam's steps since the latent's last resampling, for its bias correction;
        # silent: steps since it last fired.
        self.age = torch.zeros(K, plan.M, device=plan.device)
        self.silent = torch.zeros(K, plan.M, device=plan.device)
        self.lam = torch.tensor(plan.lams, device=plan.device)
        self.divergence = Divergence(deferred=not plan.device.startswith("cpu"))
        self.spoiled: Tensor | None = None  # what the ranks said of the activations of this step

    @property
    def fast(self) -> bool:
        """Whether element-wise parts are compiled."""
        samples = self.plan.steps * self.plan.batch * len(self.plan.lams)
        return compiler() and samples >= WORTH_COMPILING

    @property
    def names(self) -> list[str]:
        return list(self.plan.names) or [f"lambda {lam:g}" for lam in self.plan.lams]

    def train_step(self, x: Float[Tensor, "b n"]) -> dict[str, Tensor]:
        """One step of every SAE on the same batch; returns terms and `l0`, each `(K,)`."""
        plan, dtype, fast = self.plan, getattr(torch, self.plan.dtype), self.fast
        gradients = gradient_form(plan.arch, plan.switches, plan.n, plan.M, fast, self.sparse)
        fuse = compiled if fast else lambda part: part
        lam_share = plan.lam_share(self.step)
        lr = torch.full((), plan.lr_at(self.step), device=plan.device)
        steps = torch.full((), self.step + 1.0, device=plan.device)
        self.age += 1
        values: dict[str, list[Tensor]] = {}  # of each term, one an SAE
        for k in range(len(plan.lams)):  # one at a time: the matrices of one fill the caches
            w = {name: parameter[k] for name, parameter in self.w.items()}
            grads, terms, stats = gradients(w, x, self.lam[k] * lam_share, dtype)
            if self.ranks.world > 1:
                stats = {**stats, "spoiled": ~x.isfinite().all()}
                grads, terms, stats = self.ranks.mean(grads, terms, stats)
                self.spoiled = stats["spoiled"]
            self.update(k, w, grads, fuse, lr, steps)
            self.silent[k] = torch.where(stats["fired"], 0, self.silent[k] + 1)
            for name, value in {**terms, "l0": stats["l0"]}.items():
                values.setdefault(name, []).append(value)
        self.step += 1
        return {name: torch.stack(of_each) for name, of_each in values.items()}

    def update(
        self,
        k: int,
        w: dict[str, Tensor],
        grads: dict[str, Tensor],
        fuse: Callable,
        lr: Tensor,
        steps: Tensor,
    ) -> None:
        """Adam's step of the k-th SAE, in place; the dictionary's is one on the unit sphere."""
        for name, g in grads.items():
            v = self.v[name][k]
            if name == "W_dec":
                adam_rows(fuse, w[name], g, v, self.age[k][:, None], lr)
            elif name == "b_dec":  # belongs to no latent: never resampled
                fuse(adam)(w[name], g, v, steps, lr)
            else:
                fuse(adam)(w[name], g, v, self.age[k], lr)

    def check(self, x: Tensor, terms: dict[str, Tensor]) -> None:
        """Raise Diverged where a term of the step just made is not finite; on a GPU note it, for
        `raise_divergence`.
        """
        self.divergence.note(self.step - 1, x, terms, self.spoiled)
        if not self.divergence.deferred:
            self.raise_divergence()

    def raise_divergence(self) -> None:
        """Raise Diverged, naming step, run and term, where any step so far was not finite."""
        self.divergence.report(self.names)

    def log(self, step: int, terms: dict[str, Tensor]) -> Tensor:
        """A row of the curve for each SAE, of the `step` just made; returns the shares of dead
        latents, `(K,)`.
        """
        plan = self.plan
        dead = (self.silent >= plan.window).float().mean(1)
        absent = torch.zeros_like(dead)  # the term of an arm that has none is written as 0
        measured = torch.stack([*(terms.get(name, absent) for name in TERMS), dead], 1).tolist()
        rows = []
        for lam, values in zip(plan.lams, measured, strict=True):
            schedule = [lam * plan.lam_share(step), plan.lr_at(step)]
            rows.append([step, self.step * plan.batch, *schedule, *values])
        self.curve.append(rows)
        return dead

    def resample(self, batches: Batches) -> None:
        """Give dead latents a new start on badly reconstructed inputs: see
        `gsae.training.resampling`.
        """
        resample(self, batches)
        self.ranks.same([*self.w.values(), *self.v.values(), self.age, self.silent])

    def sae(self, k: int) -> SAE:
        """The k-th SAE, as a plain module sharing no memory with the stack."""
        sae = self.plan.sae().to(self.plan.device)
        sae.load_state_dict({name: parameter[k].clone() for name, parameter in self.w.items()})
        return sae

    def save(self, path: Path) -> None:
        """Write all that training goes on from; the names and lambdas are for a sweep that lost
        some of its runs.
        """
        moments = {f"v.{name}": v for name, v in self.v.items()}
        parameters = {f"w.{name}": w for name, w in self.w.items()}
        state = {
            "plan": repr(self.plan),
            "step": self.step,
            "curve": self.curve,
            "names": self.plan.names,
            "lams": self.plan.lams,
        }
        counters = {"age": self.age, "silent": self.silent}
        tensors.write(path, {**parameters, **moments, **counters}, state)

    def resume(self, path: Path) -> bool:
        """Go on from a checkpoint of the same plan; False where there is none.

        Raises:
            CheckpointError: on a checkpoint of another plan, or a damaged one.
        """
        if not path.exists():
            return False
        saved, state = tensors.read(path)
        if state["plan"] != repr(self.plan):
            raise tensors.CheckpointError(
                f"{path} is of another sweep: {state['plan']}, not {self.plan}. "
                "Delete it to start anew"
            )
        for name in self.w:
            self.w[name].copy_(saved[f"w.{name}"])
            self.v[name].copy_(saved[f"v.{name}"])
        self.age.copy_(saved["age"])
        self.silent.copy_(saved["silent"])
        self.step, self.curve = state["step"], state["curve"]
        return True
