"""What every architecture shares: the dictionary, its initialisation, and products in bfloat16."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn


def unit_rows(n: int, M: int, seed: int) -> Float[Tensor, "M n"]:
    """Random unit rows (D19), one by one: a wider dictionary of the same seed starts with the
    narrower one's rows.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randn(n, generator=generator) for _ in range(M)])
    return rows / rows.norm(dim=1, keepdim=True)


def products(a: Tensor, b: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`a @ b`, multiplied in `dtype` where one is given and returned in a's own; sums stay in
    float32 (D10).
    """
    if dtype is None or dtype == a.dtype:
        return a @ b
    return (a.to(dtype) @ b.to(dtype)).to(a.dtype)


class SAE(nn.Module):
    """An autoencoder with `M` latents on activations of width `n`.

    A subclass sets its parameters and writes `encode` and `losses`. The decoder is shared: `W_dec:
    (M, n)` with unit rows (the paper's unit columns, transposed) and `b_dec: (n,)`.

    Args:
        n: width of the activation.
        M: number of latents.
        seed: seed of the initial dictionary; the global random state is left alone.
    """

    ENCODER: ClassVar[str]  # name of the (n, M) encoder that starts as the dictionary's transpose
    LATENT: ClassVar[
        tuple[str, ...]
    ]  # parameters of shape (M,): set to 0 when a latent is resampled
    switches: ClassVar[tuple[str, ...]] = ()  # constructor arguments that name an ablation arm

    def __init__(self, n: int, M: int, seed: int = 0):
        super().__init__()
        if n < 1 or M < 1:
            raise ValueError(f"n and M must be at least 1, got n={n}, M={M}")
        self.n, self.M, self.seed = n, M, seed
        self.product_dtype: torch.dtype | None = None
        self.W_dec = nn.Parameter(unit_rows(n, M, seed))
        self.b_dec = nn.Parameter(torch.zeros(n))

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        return products(a, b, self.product_dtype)

    def decode(self, f: Float[Tensor, "*b M"]) -> Float[Tensor, "*b n"]:
        """The reconstruction `f @ W_dec + b_dec` (Eq. 3)."""
        return self.mm(f, self.W_dec) + self.b_dec  # Eq. 3

    def forward(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
        """The reconstruction of `x` (Eq. 1)."""
        return self.decode(self.encode(x))  # Eq. 1

    def config(self) -> dict:
        """Constructor arguments, plain values: `type(sae)(**sae.config())` has the same shape."""
        return {
            "n": self.n,
            "M": self.M,
            "seed": self.seed,
            **{k: getattr(self, k) for k in self.switches},
        }
