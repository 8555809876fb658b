"""The baseline: a ReLU encoder trained with an L1 penalty on its activations (section 2 of the
paper).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gsae.saes.base import SAE


class BaselineSAE(SAE):
    """ReLU SAE (Eqs 2 to 4): `f = relu((x - b_dec) @ W_enc + b_enc)`, unit-norm dictionary rows, L1
    penalty on `f`.

    Parameters: `W_enc: (n, M)`, `b_enc: (M,)`, `W_dec: (M, n)`, `b_dec: (n,)`.

    Trained by the gradients of `gsae.training.closed_form.Baseline`, derived by hand.
    """

    ENCODER = "W_enc"
    LATENT = ("b_enc",)

    def __init__(self, n: int, M: int, seed: int = 0):
        super().__init__(n, M, seed)
        self.W_enc = nn.Parameter(self.W_dec.detach().T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(M))

    def encode(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b M"]:
        """Latent activations, `f >= 0` (Eq. 2)."""
        return torch.relu(self.mm(x - self.b_dec, self.W_enc) + self.b_enc)  # Eq. 2

    def losses(self, x: Float[Tensor, "b n"], lam: float | Tensor, return_stats: bool = False):
        """The terms of Eq. 4, each a mean over the batch; their sum is the objective.

        With `return_stats`, also detached `fired: (M,)` bool, `l0` and `error: (batch,)`, the
        squared error.
        """
        f = self.encode(x)
        error = (self.decode(f) - x).square().sum(-1)  # D2
        terms = {"reconstruction": error.mean(), "sparsity": lam * f.sum(-1).mean()}  # Eq. 4
        if not return_stats:
            return terms
        on = f.detach() > 0
        return terms, {"fired": on.any(0), "l0": on.sum(-1).float().mean(), "error": error.detach()}
