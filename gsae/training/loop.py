"""The one training loop. It trains a stack of SAEs, equal but for lambda, on one stream of
activations.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from gsae.saes import ARCHITECTURES, SAE
from gsae.system.devices import product_dtype
from gsae.training.schedule import Plan
from gsae.training.stack import Batches, Stack

STOP_EVERY = 16  # steps after which ranks on GPUs agree whether to stop


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
    log_every, saved, label = (
        max(1, -(-plan.steps // 200)),
        time.monotonic(),
        f"{plan.arch} x{len(plan.lams)}",
    )
    hide = (None if bar is None else not bar) if ranks.first else True

    def save() -> None:
        stack.verdict()
        if checkpoint and ranks.first:
            stack.save(checkpoint)

    with (
        Reader(batches, plan) as reader,
        stop_flag() as stopped,
        tqdm(
            total=plan.steps, initial=stack.step, desc=label, unit="step", disable=hide
        ) as progress,
    ):
        while stack.step < plan.steps:
            step = stack.step
            if step in plan.events:
                stack.resample(reader)
            x = ranks.slice(reader.take(step).to(plan.device, non_blocking=True))
            terms = stack.train_step(x)
            stack.check(x, terms)
            if step % log_every == 0 or stack.step == plan.steps:
                stack.verdict()
                dead = (stack.silent >= plan.window).float().mean(1)
                columns = [
                    terms.get(c, torch.zeros_like(dead)).tolist() for c in stack.columns[4:8]
                ] + [dead.tolist()]
                head = [step, stack.step * plan.batch]
                stack.curve.append(
                    [
                        [*head, lam * plan.lam_share(step), plan.lr_at(step), *values]
                        for lam, *values in zip(plan.lams, *columns, strict=True)
                    ]
                )
                progress.set_postfix(l0=f"{terms['l0'].mean():.0f}", dead=f"{dead.mean():.0%}")
            progress.update()
            # a wait for the device
            together = ranks.world == 1 or plan.device == "cpu" or step % STOP_EVERY == 0
            if together and ranks.any(stopped.is_set()):
                save()
                kept = (
                    f"kept in {checkpoint}; the same command goes on from it"
                    if checkpoint
                    else "nothing is kept"
                )
                raise KeyboardInterrupt(
                    f"stopped after {stack.step:,} of {plan.steps:,} steps: {kept}"
                )
            if checkpoint and time.monotonic() - saved > every:
                save()
                saved = time.monotonic()
        save()
    return [stack.sae(k) for k in range(len(plan.lams))]


class Reader:
    """Batches, each read by one background thread while the step before it is computed, and never
    past the end.

    Every read is in that thread, in order: a `Batches` function need not bear two at a time.
    """

    def __init__(self, batches: Batches, plan: Plan):
        self.batches, self.plan, self.ahead = batches, plan, None

    def __enter__(self) -> "Reader":
        gpu = self.plan.device.startswith("cuda")  # a thread has a current GPU of its own
        start = (
            {"initializer": torch.cuda.set_device, "initargs": (torch.cuda.current_device(),)}
            if gpu
            else {}
        )
        self.thread = ThreadPoolExecutor(1, "batches", **start)
        return self

    def __exit__(self, *error) -> None:
        self.thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Tensor:
        x = self.batches(step)
        return x.pin_memory() if self.plan.device.startswith("cuda") and not x.is_cuda else x

    def __call__(self, step: int) -> Tensor:
        return self.thread.submit(self._read, step).result()

    def take(self, step: int) -> Tensor:
        """The batch of `step`; the next one is read meanwhile. What reading raises is raised here,
        at its step.
        """
        ahead, self.ahead = self.ahead, None
        x = (ahead or self.thread.submit(self._read, step)).result()
        if step + 1 < self.plan.steps:
            self.ahead = self.thread.submit(self._read, step + 1)
        return x


@contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that no update is cut in half; a second one stops at
    once.

    Handlers are a matter of the main thread: elsewhere the event is never set.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def note(number, frame) -> None:
        if stopped.is_set():
            restore()
            signal.raise_signal(number)
        stopped.set()
        print("\nfinishing this step and saving; once more stops at once", file=sys.stderr)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    try:
        yield stopped
    finally:
        restore()


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

    The activations are divided by one constant so that their mean squared norm is 1 (D1); it is
    kept as `sae.about["scale"]`: encode `x * scale`.

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
        raise ValueError(
            f"unknown architecture {arch!r}: expected one of {', '.join(ARCHITECTURES)}"
        )
    lams = (lam,) if isinstance(lam, int | float) else tuple(lam)
    scale = float(x.double().square().sum(-1).mean().rsqrt())
    per_epoch, n = len(x) // batch, x.shape[1]

    def batches(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step // per_epoch)
        rows = torch.randperm(len(x), generator=generator)[(step % per_epoch) * batch :][:batch]
        return x[rows.to(x.device)].float() * scale

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    plan = Plan(
        arch,
        n,
        M or 4 * n,
        lams,
        math.ceil(epochs * per_epoch),
        batch,
        lr,
        seed,
        tuple(sorted(switches.items())),
        resample=resample,
        device=device,
        dtype=product_dtype(device),
    )
    saes = [
        sae.to(x.device) for sae in fit(Stack(plan), batches, bar=bar)
    ]  # where it can be used on x at once
    for sae in saes:
        sae.about = {"scale": scale}
    return saes[0] if isinstance(lam, int | float) else saes
