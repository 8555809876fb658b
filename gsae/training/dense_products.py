"""The closed forms' products over every latent of every sample: plain matrix products."""

from collections.abc import Callable

from torch import Tensor


def column(b: Tensor) -> Tensor:
    """A vector of latents beside `(M, batch)`."""
    return b.unsqueeze(-1)


class Dense:
    """The products of a step and its element-wise parts, over every latent of every sample.

    Where `gsae.training.sparse_products.Open` multiplies few places alone, `pick` takes these out
    of the pre-activations, `spread` the entries of vectors that belong to them, and `sums` adds up
    what was found at each into vectors of all latents; here there is nothing to pick.
    """

    def __init__(self, fuse: Callable):
        self.fuse = fuse

    def pick(self, pre: Tensor) -> Tensor:
        return pre

    def spread(self, *vectors: Tensor) -> tuple[Tensor, ...]:  # of (M,), to where `pre` is
        return vectors

    def sums(self, *vectors: Tensor) -> tuple[Tensor, ...]:  # back to (M,)
        return vectors

    def encode(self, W: Tensor, u: Tensor) -> Tensor:
        return W.mT @ u.mT

    def decode(self, f: Tensor, W_dec: Tensor) -> Tensor:
        return f.mT @ W_dec

    def back(self, W_dec: Tensor, error: Tensor) -> Tensor:  # the derivative by the codes
        return W_dec @ error.mT

    def to_decoder(self, f: Tensor, error: Tensor) -> Tensor:  # the gradient at W_dec
        return f @ error

    def to_encoder(self, u: Tensor, grad_pre: Tensor) -> Tensor:  # the gradient at W_gate, W_enc
        return u.mT @ grad_pre.mT
