"""Inference-time optimisation (Appendix A): codes for a given dictionary, found by non-negative
gradient pursuit.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from gsae.saes.base import SAE

CHUNK = 2048  # tokens at once


@torch.no_grad()
def pursue(
    x: Float[Tensor, "b n"], W_dec: Float[Tensor, "M n"], b_dec: Float[Tensor, " n"], s: int
) -> Float[Tensor, "b M"]:
    """Codes `f >= 0` with at most `s` latents a token and a small `|x - b_dec - f @ W_dec|^2` (Eq.
    12).

    Non-negative gradient pursuit: `s` rounds, each of which adds to the support (the latents above
    0) the one of largest signed inner product with the residual, steps along the gradient
    restricted to the support by exact line search, and clips the codes at 0, so that a token may
    end with fewer than `s` latents.

    Args:
        x: activations, in the units of `b_dec`.
        W_dec: unit rows.

    Raises:
        ValueError: when `s` is not between 1 and M.
    """
    return pursue_all(x, W_dec, b_dec, (s,))[0]


@torch.no_grad()
def pursue_all(
    x: Float[Tensor, "b n"],
    W_dec: Float[Tensor, "M n"],
    b_dec: Float[Tensor, " n"],
    sizes: Sequence[int],
) -> list[Float[Tensor, "b M"]]:
    """`pursue` at several sizes for the cost of the largest: a longer pursuit begins with the
    rounds of a shorter.
    """
    M = len(W_dec)
    if not sizes or min(sizes) < 1 or max(sizes) > M:
        raise ValueError(
            f"the number of latents s must be between 1 and M={M}, got {', '.join(map(str, sizes))}"
        )
    parts = [_pursue(part - b_dec, W_dec, sizes) for part in x.split(CHUNK)]
    return [torch.cat(of_size) for of_size in zip(*parts, strict=True)]


def _pursue(x: Tensor, W_dec: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """One chunk. Slot `r` of a token holds the latent chosen in round `r`, by index, and its
    code.
    """

    def decode(index: Tensor, a: Tensor) -> Tensor:  # sparse: only the rows of the support are read
        return embedding_bag(index, W_dec, per_sample_weights=a, mode="sum")

    index = torch.zeros(len(x), max(sizes), dtype=torch.long, device=x.device)
    a, residual, found = x.new_zeros(index.shape), x.clone(), {}
    for r in range(max(sizes)):
        products = residual @ W_dec.T
        chosen = products.max(-1).indices  # several times the speed of argmax
        known = ((index == chosen[:, None]) & (a > 0)).any(
            -1
        )  # in the support already, under an earlier slot
        index[:, r] = chosen
        now, code = index[:, : r + 1], a[:, : r + 1]
        support = code > 0
        support[:, r] = ~known
        g = products.gather(1, now) * support
        gD = decode(now, g)
        # <residual, gD> = sum_i g_i <residual, d_i> = |g|^2
        step = g.square().sum(-1, keepdim=True) / gD.square().sum(-1, keepdim=True).clamp(min=1e-30)
        moved = code + step * g
        code.copy_(moved.clamp(min=0))
        residual -= step * gD
        clipped = (moved < 0).any(-1).nonzero()[:, 0]
        if len(clipped):
            residual[clipped] = x[clipped] - decode(now[clipped], code[clipped])
        if r + 1 in sizes:
            found[r + 1] = x.new_zeros(len(x), len(W_dec)).scatter_add_(1, now, code)
    return [found[s] for s in sizes]


class ITO(nn.Module):
    """An SAE whose encoder is replaced by gradient pursuit on its dictionary; encodes and decodes
    as an `SAE` does.
    """

    def __init__(self, sae: SAE, s: int):
        if not 1 <= s <= len(sae.W_dec):
            raise ValueError(
                f"the number of latents s must be between 1 and M={len(sae.W_dec)}, got {s}"
            )
        super().__init__()
        self.sae, self.s = copy.deepcopy(sae).eval().requires_grad_(False), s

    @property
    def b_dec(self) -> Tensor:
        return self.sae.b_dec

    def encode(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b M"]:
        """Codes with at most `s` latents above 0 (Eq. 12)."""
        f = pursue(x.reshape(-1, x.shape[-1]), self.sae.W_dec, self.sae.b_dec, self.s)
        return f.reshape(*x.shape[:-1], -1)

    def decode(self, f: Float[Tensor, "*b M"]) -> Float[Tensor, "*b n"]:
        """The dictionary's reconstruction (Eq. 3)."""
        return self.sae.decode(f)

    def forward(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
        return self.decode(self.encode(x))
