"""Where a NaN or an infinity first appeared in training: step, run and term."""

import torch
from torch import Tensor


class Diverged(RuntimeError):
    """A NaN or an infinity in the data or in a loss; names the step, the run and the term."""


class Divergence:
    """The first step at which each term of each run was not finite.

    To look at a term is to wait for the device. On a CPU every step is looked at; elsewhere, with
    `deferred`, steps are noted on the device, and `report` looks now and then.
    """

    def __init__(self, deferred: bool):
        self.deferred = deferred
        self.first: Tensor | None = None  # (1 + terms, K) steps, -1 where all has been finite
        self.rows: list[str] = []

    def note(
        self, step: int, x: Tensor, terms: dict[str, Tensor], spoiled: Tensor | None = None
    ) -> None:
        """Note the terms of a step, `(K,)` each, and its activations, unless it is known already
        whether they were `spoiled`. On a CPU they are read only where a term is bad.
        """
        bad_terms = ~torch.stack(list(terms.values())).isfinite()
        if not self.deferred and not bad_terms.any():
            return
        if spoiled is None:
            spoiled = ~x.isfinite().all()
        bad = torch.cat([spoiled.expand(1, bad_terms.shape[1]), bad_terms])
        if self.first is None:
            self.first = torch.full_like(bad, -1, dtype=torch.long)
            self.rows = ["activations", *(f"{name} term" for name in terms)]
        self.first = torch.where(bad & (self.first < 0), step, self.first)

    def report(self, names: list[str]) -> None:
        """Raise Diverged where some step noted so far was not finite; `names` are the K runs'."""
        if self.first is None or not (self.first >= 0).any():
            return
        step = int(self.first[self.first >= 0].min())
        row, k = (self.first == step).nonzero()[0].tolist()
        raise Diverged(
            f"step {step}, run {names[k]}: the {self.rows[row]} held a NaN or an infinity. "
            "Check the activations' scale and dtype, or lower the learning rate"
        )
