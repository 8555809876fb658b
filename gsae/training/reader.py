"""Batches, read by a background thread while the step before them is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from gsae.training.schedule import Plan

# step -> (batch, n) float32, scaled: a pure function, so that any step can be read again
Batches = Callable[[int], Tensor]


class Reader:
    """Batches, each read by one background thread while the step before it is computed, and never
    past the end.

    Every read is in that thread, in order: a `Batches` function need not bear two at a time.
    """

    def __init__(self, batches: Batches, plan: Plan):
        self.batches, self.plan = batches, plan
        self.on_gpu = plan.device.startswith("cuda")
        self.ahead: Future | None = None

    def __enter__(self) -> "Reader":
        options = {}
        if self.on_gpu:  # a thread has a current GPU of its own
            current = torch.cuda.current_device()
            options = {"initializer": torch.cuda.set_device, "initargs": (current,)}
        self.thread = ThreadPoolExecutor(1, "batches", **options)
        return self

    def __exit__(self, *error) -> None:
        self.thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Tensor:
        x = self.batches(step)
        # From pinned memory a copy to the GPU runs beside the computation.
        return x.pin_memory() if self.on_gpu and not x.is_cuda else x

    def __call__(self, step: int) -> Tensor:
        """The batch of any step, out of turn: what resampling chooses from."""
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
