"""Small worlds where the right answer is known: one latent (Fig. 2), a sparse dictionary, and the
mixture of Appendix F.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gsae.saes.base import unit_rows

# ---- One latent with target 1 (Fig. 2)


def one_latent(lam: float | Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """The activation that minimises `(1 - f)^2 + lam * f` over `f >= 0`: `max(0, 1 - lam / 2)`
    (Fig. 2).
    """
    return (1 - torch.as_tensor(lam, dtype=torch.float64) / 2).clamp(min=0)


def descend(
    lam: float | Float[Tensor, "*k"], steps: int = 200, lr: float = 0.1, start: float = 1.0
) -> Float[Tensor, "path *k"]:
    """Gradient descent on the one-parameter SAE `f = relu(w)` with target 1 and penalty `lam * f`
    (Fig. 2).

    Starts at `w = start`, by default the perfect reconstruction. Returns the activation `f` before
    and after each step: `(steps + 1, *lam.shape)`, float64.
    """
    lam = torch.as_tensor(lam, dtype=torch.float64)
    w = torch.full_like(lam, start).requires_grad_()
    path = [torch.relu(w.detach())]
    for _ in range(steps):
        f = torch.relu(w)
        loss = ((1 - f).square() + lam * f).sum()
        w = (w - lr * torch.autograd.grad(loss, w)[0]).detach().requires_grad_()
        path.append(torch.relu(w.detach()))
    return torch.stack(path)


# ---- Sparse data from a known dictionary

MAGNITUDES = {  # distribution -> mean, mean square
    "uniform": (1.0, 13 / 12),
    "exponential": (1.0, 2.0),
    "constant": (1.0, 1.0),
}


@dataclass(frozen=True)
class SparseData:
    """Activations `x = magnitudes @ dictionary + noise` whose dictionary and magnitudes are known.

    Each of the `features` directions is on independently with probability `l0 / features`. Its
    magnitude is then drawn from `magnitude`: "uniform" on [1/2, 3/2], "exponential" or "constant",
    all of mean 1. The whole is scaled so that the mean squared norm of `x` is 1, noise included, as
    the activations of a language model are.

    Args:
        n: width of the activation.
        features: number of true directions, unit vectors drawn at random.
        l0: how many of them are on, on average.
        magnitude: the distribution of the magnitudes before scaling.
        noise: the share of the mean squared norm that is Gaussian noise, at least 0 and below 1.
        seed: of the dictionary; samples have their own.

    Raises:
        ValueError: on an unknown `magnitude`, or `l0` or `noise` out of range.
    """

    n: int = 32
    features: int = 64
    l0: float = 3.0
    magnitude: str = "uniform"
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.magnitude not in MAGNITUDES:
            raise ValueError(
                f"magnitude must be one of {', '.join(MAGNITUDES)}, got {self.magnitude!r}"
            )
        if not 0 < self.l0 <= self.features:
            raise ValueError(
                f"l0 must be above 0 and at most features={self.features}, got {self.l0}"
            )
        if not 0 <= self.noise < 1:
            raise ValueError(
                f"noise is a share of the squared norm, at least 0 and below 1, got {self.noise}"
            )

    @cached_property
    def dictionary(self) -> Float[Tensor, "features n"]:
        """The true directions, unit rows."""
        return unit_rows(self.n, self.features, 10_000 + self.seed)  # not an SAE's start

    @cached_property
    def scale(self) -> float:
        """What a magnitude of mean 1 is multiplied by, so that the mean squared norm of `x` is 1
        (exact).
        """
        p = self.l0 / self.features
        mean, square = MAGNITUDES[self.magnitude]
        # sum of d_i . d_j over i != j: two directions that are on at once are not orthogonal
        overlap = float(self.dictionary.sum(0).square().sum()) - self.features
        squared_norm = self.features * p * square + p * p * mean * mean * overlap
        return math.sqrt((1 - self.noise) / squared_norm)

    def sample(
        self, count: int, seed: int = 0
    ) -> tuple[Float[Tensor, "count n"], Float[Tensor, "count features"]]:
        """`count` activations and their true magnitudes, in the activations' own units, so that
        `E|x|^2 = 1`.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (count, self.features)
        on = torch.rand(shape, generator=generator) < self.l0 / self.features
        draw = torch.rand(shape, generator=generator)
        sizes = {
            "uniform": draw + 0.5,
            "exponential": -torch.log1p(-draw),
            "constant": torch.ones(shape),
        }
        magnitudes = self.scale * on * sizes[self.magnitude]
        noise = math.sqrt(self.noise / self.n) * torch.randn(count, self.n, generator=generator)
        return magnitudes @ self.dictionary + noise, magnitudes


# ---- JumpReLU (Fig. 4, Appendix E) and the mixture of Appendix F

ON_MEAN, ON_SD = 2.0, 0.5  # the projection when the feature is on; N(0, 1) when it is off


def jump_relu(z: Float[Tensor, "*k"], theta: float | Float[Tensor, "*t"]) -> Float[Tensor, "*k"]:
    """`z` above the threshold, else 0 (Eq. 16, Fig. 4). The magnitudes pass a ReLU, so a negative
    `theta` acts as 0.
    """
    threshold = torch.as_tensor(theta, dtype=z.dtype).clamp(min=0)
    return torch.where(z > threshold, z, torch.zeros_like(z))


def mixture(count: int, seed: int = 0) -> tuple[Float[Tensor, " count"], Bool[Tensor, " count"]]:
    """Projections `z` and whether the feature is on, with probability 1/2 (Appendix F,
    Fig. 15a).
    """
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(count, generator=generator, dtype=torch.float64) < 0.5
    z = torch.randn(count, generator=generator, dtype=torch.float64)
    return torch.where(on, ON_MEAN + ON_SD * z, z), on


def relu_reconstruction(
    z: Float[Tensor, "*k"], t: float = 1.0, m: float = 2.0
) -> Float[Tensor, "*k"]:
    """`m (z - t)` above `t`, else 0: the threshold must also be the offset (Appendix F,
    Fig. 15b).
    """
    return jump_reconstruction(z, t, m, t)


def jump_reconstruction(
    z: Float[Tensor, "*k"], t: float = 1.0, m: float = 1.0, d: float = 0.0
) -> Float[Tensor, "*k"]:
    """`m (z - d)` above `t`, else 0, with `d <= t` (Appendix F, Fig. 15b).

    Raises:
        ValueError: if `d > t`, which would reconstruct negative values.
    """
    if d > t:
        raise ValueError(f"the offset d must be at most the threshold t, got d={d}, t={t}")
    return torch.where(z > t, m * (z - d), torch.zeros_like(z))


def normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def passing(on: bool, t: float = 1.0) -> float:
    """Exact probability that the projection exceeds `t`, given the feature on or off
    (Appendix F).
    """
    return normal_cdf((ON_MEAN - t) / ON_SD) if on else normal_cdf(-t)


def squared_error(t: float, m: float, d: float) -> float:
    """Exact mean of `(m (z - d) - z)^2` given the feature on and `z > t` (Appendix F); for a ReLU,
    `d = t`.
    """
    # moments of a normal truncated from below
    a = (t - ON_MEAN) / ON_SD
    hazard = math.exp(-a * a / 2) / math.sqrt(2 * math.pi) / normal_cdf(-a)
    mean = ON_MEAN + ON_SD * hazard
    variance = ON_SD**2 * (1 + a * hazard - hazard**2)
    return (m - 1) ** 2 * variance + ((m - 1) * mean - m * d) ** 2
