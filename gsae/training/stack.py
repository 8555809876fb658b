"""A stack of SAEs in training: its plan and schedules, Adam, resampling, and its state on disk."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gsae.saes import SAE
from gsae.system import tensors as files
from gsae.system.devices import compiled, compiler
from gsae.system.distributed import ALONE, Alone
from gsae.training.adam import adam, adam_rows
from gsae.training.gradients import gradient_form
from gsae.training.resampling import resample
from gsae.training.schedule import Plan

Batches = Callable[
    [int], Tensor
]  # step -> (batch, n) float32, scaled: a pure function, so that any step can be read again
CURVE = ("step", "tokens", "lam", "lr", "reconstruction", "sparsity", "auxiliary", "l0", "dead")


class Diverged(RuntimeError):
    """A NaN or an infinity in the data or in a loss; names the step, the run and the term."""


class Stack:
    """K SAEs in training: parameters `(K, …)`, Adam's second moments, ages, silence counters and
    the curve.

    With `ranks`, each process takes its slice of every batch, and gradients are averaged: all hold
    the same stack.
    """

    def __init__(self, plan: Plan, ranks: Alone = ALONE):
        self.plan, self.step, self.curve, self.ranks = plan, 0, [], ranks
        sae, K = plan.sae(), len(plan.lams)
        self.encoder, self.latent = sae.ENCODER, tuple(k for k in sae.LATENT if hasattr(sae, k))
        self.w = {
            k: v.detach().repeat(K, *[1] * v.dim()).to(plan.device)
            for k, v in sae.named_parameters()
        }
        self.v = {k: torch.zeros_like(v) for k, v in self.w.items()}
        self.age = torch.zeros(
            K, plan.M, device=plan.device
        )  # Adam steps of each latent since its last resampling
        self.silent = torch.zeros(
            K, plan.M, device=plan.device
        )  # steps since each latent last fired
        self.lam = torch.tensor(plan.lams, device=plan.device)
        # Reading a term is a wait for the device: on a GPU the first bad step is noted there and
        # read now and then.
        self.deferred, self.faults, self.spoiled = not plan.device.startswith("cpu"), None, None

    columns = CURVE
    # whether products may be sparse where that is faster: see gsae.training.sparse_products
    sparse = True

    @property
    def fast(self) -> bool:  # a compilation of some 20 s pays only on longer runs
        return compiler() and self.plan.steps * self.plan.batch * len(self.plan.lams) >= 1_000_000

    def train_step(self, x: Float[Tensor, "b n"]) -> dict[str, Tensor]:
        """One step of every SAE on the same batch; returns terms and `l0`, each `(K,)`."""
        plan, dtype = self.plan, getattr(torch, self.plan.dtype)
        gradients = gradient_form(plan.arch, plan.switches, plan.n, plan.M, self.fast, self.sparse)
        fuse = compiled if self.fast else lambda f: f
        share, lr = (
            plan.lam_share(self.step),
            torch.full((), plan.lr_at(self.step), device=plan.device),
        )
        age = torch.full((), self.step + 1.0, device=plan.device)
        self.age += 1
        rows = []
        for k in range(len(plan.lams)):
            w = {name: t[k] for name, t in self.w.items()}
            grads, terms, stats = gradients(w, x, self.lam[k] * share, dtype)
            if self.ranks.world > 1:
                stats = {**stats, "spoiled": ~x.isfinite().all()}
                grads, terms, stats = self.ranks.mean(grads, terms, stats)
                self.spoiled = stats["spoiled"]
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
        """Raise Diverged where a term of this step is not finite; on a GPU note it for
        `verdict`.
        """
        bad = ~torch.stack(list(terms.values())).isfinite()
        if not self.deferred and not bad.any():
            return
        spoiled = ~x.isfinite().all() if self.spoiled is None else self.spoiled
        bad = torch.cat([spoiled.expand(1, bad.shape[1]), bad])
        if self.faults is None:
            self.faults = torch.full_like(bad, -1, dtype=torch.long)
            self.rows = ["activations", *(f"{name} term" for name in terms)]
        self.faults = torch.where(bad & (self.faults < 0), self.step - 1, self.faults)
        if not self.deferred:
            self.verdict()

    def verdict(self) -> None:
        """Raise Diverged, naming step, run and term, where `check` saw a NaN or an infinity in any
        step so far.
        """
        if self.faults is None or not (self.faults >= 0).any():
            return
        step = int(self.faults[self.faults >= 0].min())
        row, k = (self.faults == step).nonzero()[0].tolist()
        name = self.plan.names[k] if self.plan.names else f"lambda {self.plan.lams[k]:g}"
        raise Diverged(
            f"step {step}, run {name}: the {self.rows[row]} held a NaN or an infinity. "
            "Check the activations' scale and dtype, or lower the learning rate"
        )

    def resample(self, batches: Batches) -> None:
        """Give dead latents a new start on badly reconstructed inputs: see
        `gsae.training.resampling`.
        """
        resample(self, batches)
        self.ranks.same([*self.w.values(), *self.v.values(), self.age, self.silent])

    def sae(self, k: int) -> SAE:
        """The k-th SAE, as a plain module sharing no memory with the stack."""
        sae = self.plan.sae().to(self.plan.device)
        sae.load_state_dict({name: t[k].clone() for name, t in self.w.items()})
        return sae

    def save(self, path: Path) -> None:
        tensors = {f"{part}.{k}": t for part in ("w", "v") for k, t in getattr(self, part).items()}
        state = {"plan": repr(self.plan), "step": self.step, "curve": self.curve}
        state |= {
            "names": self.plan.names,
            "lams": self.plan.lams,
        }  # the composition, for a sweep that lost a part of it
        files.write(path, {**tensors, "age": self.age, "silent": self.silent}, state)

    def resume(self, path: Path) -> bool:
        """Go on from a checkpoint of the same plan; False where there is none. Raises
        CheckpointError on another's.
        """
        if not path.exists():
            return False
        tensors, state = files.read(path)
        if state["plan"] != repr(self.plan):
            raise files.CheckpointError(
                f"{path} is of another sweep: {state['plan']}, not {self.plan}. Delete it to "
                "start anew"
            )
        for part in ("w", "v"):
            for k, t in getattr(self, part).items():
                t.copy_(tensors[f"{part}.{k}"])
        self.age.copy_(tensors["age"])
        self.silent.copy_(tensors["silent"])
        self.step, self.curve = state["step"], state["curve"]
        return True
