"""Inference-time optimisation (Appendix A): codes for a given dictionary, found by non-negative
gradient pursuit.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

CHUNK = 2048  # tokens at once


@torch.no_grad()
def pursue(
    x: Float[Tensor, "b n"], W_dec: Float[Tensor, "M n"], b_dec: Float[Tensor, " n"], s: int
) -> Float[Tensor, "b M"]:
    """Codes `f >= 0` with at most `s` latents a token and a small `|x - b_dec - f @ W_dec|^2`
    (Eq. 12).

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

    def decode(index: Tensor, code: Tensor) -> Tensor:
        # sparse: only the rows of the support are read
        return embedding_bag(index, W_dec, per_sample_weights=code, mode="sum")

    indices = torch.zeros(len(x), max(sizes), dtype=torch.long, device=x.device)
    codes = x.new_zeros(indices.shape)
    residual = x.clone()
    f_of_size = {}
    for r in range(max(sizes)):
        products = residual @ W_dec.T
        chosen = products.max(-1).indices  # several times the speed of argmax
        # in the support already, under an earlier slot
        repeated = ((indices == chosen[:, None]) & (codes > 0)).any(-1)
        indices[:, r] = chosen
        index, code = indices[:, : r + 1], codes[:, : r + 1]  # the slots in use, as views
        support = code > 0
        support[:, r] = ~repeated
        g = products.gather(1, index) * support
        gD = decode(index, g)
        # exact line search: <residual, gD> = sum_i g_i <residual, d_i> = |g|^2
        step = g.square().sum(-1, keepdim=True) / gD.square().sum(-1, keepdim=True).clamp(min=1e-30)
        moved = code + step * g
        code.copy_(moved.clamp(min=0))
        residual -= step * gD
        # where a code was clipped the step was another: decode anew
        clipped = (moved < 0).any(-1).nonzero()[:, 0]
        if len(clipped):
            residual[clipped] = x[clipped] - decode(index[clipped], code[clipped])
        if r + 1 in sizes:
            f_of_size[r + 1] = x.new_zeros(len(x), len(W_dec)).scatter_add_(1, index, code)
    return [f_of_size[s] for s in sizes]
