"""Streaming sums over the evaluation set, kept apart for 128 groups of text and divided once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUPS = 128
ACTIVATION_SUMS = (
    "tokens",
    "error",
    "x_sq",
    "x_hat_sq",
    "x_dot",
    "xc_sq",
    "x_hatc_sq",
    "xc_dot",
    "l0",
)
CE_SUMS = ("ce_tokens", "ce_clean", "ce_zero", "ce_mean", "ce_sae")


def recorded_digits(values: Tensor) -> list[float]:
    """What is recorded of sums: nine significant digits."""
    return [float(f"{value:.9g}") for value in values.tolist()]


class Sums:
    """Sums behind every metric of one SAE, per group of evaluation blocks; the batch split does not
    matter.

    Args:
        mean: the mean activation, `(n,)`, about which centred quantities are taken.
    """

    def __init__(self, mean: Float[Tensor, " n"]):
        self.mean = mean.double().cpu()
        self.sums = {k: torch.zeros(GROUPS, dtype=torch.float64) for k in ACTIVATION_SUMS}
        self.fired: Tensor | None = None

    def add(
        self,
        x: Float[Tensor, "b n"],
        x_hat: Float[Tensor, "b n"],
        f: Float[Tensor, "b M"],
        group: Int[Tensor, " b"],
    ) -> None:
        """Add tokens: activations, reconstructions, latents and the group of each."""
        on = (f > 0).float()  # sums of booleans are slow; counts stay exact below 2^24
        mean = self.mean.to(x.device, x.dtype)
        xc, x_hatc = x - mean, x_hat - mean
        rows = {
            "tokens": torch.ones(len(x), device=x.device),
            "error": (x - x_hat).square().sum(-1),
            "x_sq": x.square().sum(-1),
            "x_hat_sq": x_hat.square().sum(-1),
            "x_dot": (x * x_hat).sum(-1),
            "xc_sq": xc.square().sum(-1),
            "x_hatc_sq": x_hatc.square().sum(-1),
            "xc_dot": (xc * x_hatc).sum(-1),
            "l0": on.sum(-1),
        }
        for name, values in rows.items():
            self.sums[name].index_add_(0, group.cpu(), values.double().cpu())
        counts = on.sum(0).double().cpu()
        self.fired = counts if self.fired is None else self.fired + counts

    def add_ce(self, group: Int[Tensor, " b"], *, clean, zero, mean, sae, tokens: int) -> None:
        """Add blocks: summed cross-entropies in nats, `(b,)` each, over `tokens` targets a
        block.
        """
        counts = torch.full((len(group),), tokens)
        for name, values in zip(CE_SUMS, (counts, clean, zero, mean, sae), strict=True):
            total = self.sums.setdefault(name, torch.zeros(GROUPS, dtype=torch.float64))
            total.index_add_(0, group.cpu(), values.double().cpu())

    @property
    def dead_fraction(self) -> float:
        """Share of latents that fired on no evaluation token."""
        if self.fired is None:
            raise ValueError("no tokens were added: call add first")
        return float((self.fired == 0).double().mean())

    def density(self, bins: int = 28) -> dict[str, list]:
        """Histogram of log10 of the share of tokens on which each latent fires, 1e-7 to 1; the dead
        apart.
        """
        share = self.fired.double() / self.sums["tokens"].sum()
        counts, edges = torch.histogram(share[share > 0].log10(), bins, range=(-7.0, 0.0))
        return {
            "edges": edges.tolist(),
            "counts": counts.long().tolist(),
            "dead": int((self.fired == 0).sum()),
        }

    def to_dict(self) -> dict[str, list[float]]:
        """The sums as plain lists of 128 numbers, to nine significant digits."""
        return {name: recorded_digits(values) for name, values in self.sums.items()}
