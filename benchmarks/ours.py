"""Our training step, through the public interface that `gsae.training.loop.fit` uses."""

import torch

from benchmarks.cases import Batches, Case, Loop, many_shapes
from gsae.training import sparse_products

SETTINGS = {"bf16": "bfloat16", "fp32": "float32"}  # of dense products
SPARSE = {
    f"sparse, L0 {l0}": l0 for l0 in (32, 64, 128)
}  # products in bf16, where that many latents are on


def open_gates(stack, x: torch.Tensor, l0: int) -> None:
    """Shift the opening bias of every latent alike, so that a sample of `x` has `l0` latents on in
    the mean.
    """
    bias = {"gated": "b_gate", "baseline": "b_enc"}[stack.plan.arch]
    for W, b in zip(stack.w[stack.encoder], stack.w[bias], strict=True):
        pre = (x @ W).flatten()
        b -= pre.kthvalue(len(pre) - l0 * len(x)).values


class Ours:
    """A stack of `case.K` SAEs with lambdas of the range that a sweep has, no schedule, no
    resampling.
    """

    def __init__(self, case: Case, rows, seconds: float, settle: int, device: str = "cpu"):
        from gsae.training.schedule import Plan
        from gsae.training.stack import Stack

        many_shapes()
        l0 = SPARSE.get(case.setting)
        lams = (
            tuple(0.05 * 8 ** (k / max(1, case.K - 1)) for k in range(case.K))
            if case.K > 1
            else (0.1,)
        )
        plan = Plan(
            case.arch,
            case.n,
            case.M,
            lams,
            steps=1_000_000,
            batch=case.batch,
            lr=0.0 if l0 else 1e-3,
            lam_warmup=0.0,
            lr_warmup=0,
            lr_decay=0.0,
            resample=(),
            dtype=SETTINGS.get(case.setting, "bfloat16"),
            device=device,
        )
        self.case, self.stack, self.batches = case, Stack(plan), Batches(rows, case.batch, device)
        self.stack.sparse = l0 is not None
        if (
            l0
        ):  # at a learning rate of 0 it stays so; forced on devices where training never chooses it
            sparse_products.SHARE.setdefault(torch.device(device).type, 1 / 16)
            open_gates(self.stack, self.batches(), l0)
        self.loop = Loop(self.step, seconds, settle, device)

    @property
    def name(self) -> str:
        return self.case.name

    def step(self) -> None:
        self.terms = self.stack.train_step(self.batches())

    def round(self) -> float:
        return self.loop.round()

    def about(self) -> dict:
        """What the speed may depend on."""
        return {"l0": round(float(self.terms["l0"].mean()), 1), "steps_a_round": self.loop.count}
