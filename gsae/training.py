"""The one training loop. It trains a stack of SAEs, equal but for lambda, on one stream of activations."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from gsae.saes import ARCHITECTURES, SAE
from gsae.stack import Batches, Diverged, Plan, Stack

__all__ = ["Diverged", "Plan", "Stack", "fit", "train"]


def fit(
    stack: Stack, batches: Batches, checkpoint: Path | None = None, every: float = 60, bar: bool | None = None
) -> list[SAE]:
    """Train a stack to its last step and return its SAEs; with `checkpoint`, resume from and save to that file.

    Args:
        stack: what to train.
        batches: `step -> (batch, n)`, float32 activations of unit mean squared norm.
        checkpoint: file written every `every` seconds, on Ctrl-C, and at the end.
        bar: progress bar on or off; by default on a terminal only.

    Raises:
        Diverged: on a NaN or an infinity.
        KeyboardInterrupt: on Ctrl-C, after the step is finished and the checkpoint written.
    """
    plan = stack.plan
    if checkpoint:
        stack.resume(checkpoint)
    log_every, saved = max(1, -(-plan.steps // 200)), time.monotonic()
    label = f"{plan.arch} x{len(plan.lams)}"
    with tqdm(
        total=plan.steps,
        initial=stack.step,
        desc=label,
        unit="step",
        disable=None if bar is None else not bar,
    ) as progress:
        while stack.step < plan.steps:
            step = stack.step
            if step in plan.events:
                stack.resample(batches)
            x = batches(step).to(plan.device)
            try:
                terms = stack.train_step(x)
                stack.check(x, terms)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped in step {step}; run the same command to go on from the last checkpoint"
                ) from None
            if step % log_every == 0 or stack.step == plan.steps:
                dead = (stack.silent >= plan.window).float().mean(1)
                columns = [terms.get(c, torch.zeros_like(dead)).tolist() for c in stack.columns[4:8]] + [dead.tolist()]
                head = [step, stack.step * plan.batch]
                stack.curve.append([[*head, lam * plan.lam_share(step), plan.lr_at(step), *values]
                                    for lam, *values in zip(plan.lams, *columns, strict=True)])  # fmt: skip
                progress.set_postfix(l0=f"{terms['l0'].mean():.0f}", dead=f"{dead.mean():.0%}")
            progress.update()
            if checkpoint and time.monotonic() - saved > every:
                stack.save(checkpoint)
                saved = time.monotonic()
    return [stack.sae(k) for k in range(len(plan.lams))]


def train(
    x: Float[Tensor, "tokens n"],
    arch: str = "gated",
    lam: float | Sequence[float] = 0.1,
    M: int | None = None,
    *,
    seed: int = 0,
    batch: int = 2048,
    lr: float = 1e-3,
    epochs: float = 1,
    device: str | None = None,
    bar: bool | None = None,
    resample: tuple[float, ...] = (0.15, 0.30),
    **switches,
):
    """Train an SAE on your own activations; with a list of lambdas, one for each, together.

    The activations are divided by one constant so that their mean squared norm is 1 (D1); it is kept as
    `sae.about["scale"]`: encode `x * scale`.

    Args:
        x: activations, `(tokens, n)`.
        arch: a name in `gsae.ARCHITECTURES`.
        lam: weight of the sparsity term; 0.02 to 1 covers most sites.
        M: number of latents; four times `n` by default.
        switches: the architecture's own arguments, such as `tie="none"`.

    Raises:
        ValueError: when `x` is not a matrix with at least one batch of rows, or `arch` is unknown.
        Diverged: on a NaN or an infinity.
    """
    if x.dim() != 2 or len(x) < batch:
        raise ValueError(
            f"x must be (tokens, n) with at least one batch of {batch} rows, got {tuple(x.shape)}; "
            "pass a smaller batch="
        )
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    lams = (lam,) if isinstance(lam, int | float) else tuple(lam)
    scale = float(x.double().square().sum(-1).mean().rsqrt())
    per_epoch, n = len(x) // batch, x.shape[1]

    def batches(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step // per_epoch)
        rows = torch.randperm(len(x), generator=generator)[(step % per_epoch) * batch :][:batch]
        return x[rows.to(x.device)].float() * scale

    plan = Plan(
        arch, n, M or 4 * n, lams, math.ceil(epochs * per_epoch), batch, lr, seed, tuple(sorted(switches.items())),
        resample=resample, device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )  # fmt: skip
    saes = fit(Stack(plan), batches, bar=bar)
    for sae in saes:
        sae.about = {"scale": scale}
    return saes[0] if isinstance(lam, int | float) else saes
