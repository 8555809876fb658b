"""The one training loop. It trains a stack of SAEs, equal but for lambda, on one stream of
activations.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from gsae.saes import ARCHITECTURES, SAE
from gsae.system.devices import product_dtype, training_device
from gsae.system.stopping import stop_flag
from gsae.training.reader import Batches, Reader
from gsae.training.schedule import Plan
from gsae.training.stack import Stack

STOP_EVERY = 16  # steps after which ranks on GPUs agree whether to stop
CURVE_ROWS = 200


def fit(
    stack: Stack,
    batches: Batches,
    checkpoint: Path | None = None,
    every: float = 60,
    bar: bool | None = None,
) -> list[SAE]:
    """Train a stack to its last step and return its SAEs; with `checkpoint`, resume from and save
    to that file.

    Args:
        stack: what to train.
        batches: `step -> (batch, n)`, float32 activations of unit mean squared norm.
        checkpoint: file written every `every` seconds, on Ctrl-C or SIGTERM, and at the end.
        bar: progress bar on or off; by default on a terminal only.

    Raises:
        Diverged: on a NaN or an infinity.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the step is finished and the checkpoint
            written; says where.
        gsae.system.files.WriteError: where the disk is full; the checkpoint before is as it was.
    """
    plan, ranks = stack.plan, stack.ranks
    if checkpoint:
        stack.resume(checkpoint)
    log_every, saved = math.ceil(plan.steps / CURVE_ROWS), time.monotonic()
    progress = progress_bar(stack, bar)
    with Reader(batches, plan) as reader, stop_flag() as stopped, progress:
        while stack.step < plan.steps:
            step = stack.step
            if step in plan.events:
                stack.resample(reader)
            x = ranks.slice(reader.take(step).to(plan.device, non_blocking=True))
            terms = stack.train_step(x)
            stack.check(x, terms)
            if step % log_every == 0 or stack.step == plan.steps:
                stack.raise_divergence()
                dead = stack.log(step, terms)
                progress.set_postfix(l0=f"{terms['l0'].mean():.0f}", dead=f"{dead.mean():.0%}")
            progress.update()
            if looks_for_a_stop(stack, step) and ranks.any(stopped.is_set()):
                save(stack, checkpoint)
                raise KeyboardInterrupt(stopped_at(stack, checkpoint))
            if checkpoint and time.monotonic() - saved > every:
                save(stack, checkpoint)
                saved = time.monotonic()
        save(stack, checkpoint)
    return [stack.sae(k) for k in range(len(plan.lams))]


def looks_for_a_stop(stack: Stack, step: int) -> bool:
    """Whether to look for a stop at this step. Among ranks on GPUs it is a wait for the device, so
    they look now and then.
    """
    alone_or_cpu = stack.ranks.world == 1 or stack.plan.device == "cpu"
    return alone_or_cpu or step % STOP_EVERY == 0


def progress_bar(stack: Stack, shown: bool | None) -> tqdm:
    """A bar over the steps: shown, hidden, or (None) on a terminal only; never twice over ranks."""
    plan, hidden = stack.plan, None if shown is None else not shown
    label = f"{plan.arch} x{len(plan.lams)}"
    if not stack.ranks.first:
        hidden = True
    return tqdm(total=plan.steps, initial=stack.step, desc=label, unit="step", disable=hidden)


def save(stack: Stack, checkpoint: Path | None) -> None:
    """Save a stack, but never one that has diverged."""
    stack.raise_divergence()
    if checkpoint and stack.ranks.first:
        stack.save(checkpoint)


def stopped_at(stack: Stack, checkpoint: Path | None) -> str:
    if checkpoint:
        kept = f"kept in {checkpoint}; the same command goes on from it"
    else:
        kept = "nothing is kept"
    return f"stopped after {stack.step:,} of {stack.plan.steps:,} steps: {kept}"


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

    The activations are multiplied by one constant so that their mean squared norm is 1 (D1); it is
    kept as `sae.about["scale"]`: encode `x * scale`.

    Args:
        x: activations, `(tokens, n)`.
        arch: a name in `gsae.ARCHITECTURES`.
        lam: weight of the sparsity term; 0.02 to 1 covers most sites.
        M: number of latents; four times `n` by default.
        seed: of the initial dictionary, the order of the rows and resampling.
        batch, lr: rows a step, and the learning rate of Adam.
        epochs: times that all rows are read.
        device, bar: by default a GPU where there is one, and a progress bar on a terminal only.
        resample: shares of the run at which dead latents get a new start (D8).
        switches: the architecture's own arguments, such as `tie="none"`.

    Raises:
        ValueError: when `x` is not a matrix with at least one batch of rows, or `arch` is unknown.
        Diverged: on a NaN or an infinity.
    """
    check_arguments(x, arch, batch)
    lams = (lam,) if isinstance(lam, int | float) else tuple(lam)
    scale = float(x.double().square().sum(-1).mean().rsqrt())
    steps, n = math.ceil(epochs * (len(x) // batch)), x.shape[1]
    device = device or training_device()
    plan = Plan(
        arch, n, M or 4 * n, lams, steps, batch, lr, seed, tuple(sorted(switches.items())),
        resample=resample, device=device, dtype=product_dtype(device),
    )  # fmt: skip
    saes = fit(Stack(plan), shuffled(x, scale, batch, seed), bar=bar)
    for sae in saes:
        sae.about = {"scale": scale}
        sae.to(x.device)  # for use on x at once
    return saes[0] if isinstance(lam, int | float) else saes


def shuffled(x: Tensor, scale: float, batch: int, seed: int) -> Batches:
    """Scaled batches of the rows of `x`, each epoch in another random order."""
    per_epoch = len(x) // batch

    def batches(step: int) -> Tensor:
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        rows = torch.randperm(len(x), generator=generator)[place * batch :][:batch]
        return x[rows.to(x.device)].float() * scale

    return batches


def check_arguments(x: Tensor, arch: str, batch: int) -> None:
    """Raises ValueError as `train` does."""
    if x.dim() != 2 or len(x) < batch:
        raise ValueError(
            f"x must be (tokens, n) with at least one batch of {batch} rows, got {tuple(x.shape)}; "
            "pass a smaller batch="
        )
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"unknown architecture {arch!r}: expected one of {known}")
