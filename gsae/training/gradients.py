"""The gradient function of an architecture: a closed form where there is one, else autograd's."""

from collections.abc import Callable
from functools import cache

import torch

from gsae.saes import ARCHITECTURES, SAE
from gsae.system.devices import compiled
from gsae.training.closed_form import closed_form
from gsae.training.sparse_products import chooser


def autograd_form(template: SAE, fuse: Callable = lambda f: f) -> Callable:
    """The gradient function of any architecture, from its `losses`: slower than a closed form, and
    its definition.

    `fuse` wraps the losses, whose backward pass `torch.compile` then fuses as well.
    """
    module = _Losses(template)

    def losses(leaves, x, lam):
        parameters = {f"sae.{name}": leaf for name, leaf in leaves.items()}
        terms, stats = torch.func.functional_call(module, parameters, (x, lam))
        return sum(terms.values()), terms, stats

    losses = fuse(losses)

    def gradients(w, x, lam, dtype):
        template.product_dtype = dtype
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in w.items()}
        total, terms, stats = losses(leaves, x, lam.reshape(()))
        grads = torch.autograd.grad(
            total, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        terms = {name: term.detach() for name, term in terms.items()}
        return dict(zip(leaves, grads, strict=True)), terms, stats

    return gradients


class _Losses(torch.nn.Module):
    def __init__(self, sae: SAE):
        super().__init__()
        self.sae = sae

    def forward(self, x, lam):
        return self.sae.losses(x, lam, return_stats=True)


@cache
def gradient_form(
    arch: str, switches: tuple, n: int, M: int, fast: bool, sparse: bool = True
) -> Callable:
    """The function of (parameters, x, lambda, dtype) that gives gradients, terms and statistics:
    the closed form where there is one for these switches, else autograd's. Where `fast`,
    element-wise parts and losses are compiled; without `sparse` the products are dense at any width
    and density (`gsae.training.sparse_products`).
    """
    fuse = compiled if fast else lambda f: f
    closed = closed_form(arch, fuse, chooser(fuse, M) if sparse else None, **dict(switches))
    return closed or autograd_form(ARCHITECTURES[arch](n, M, **dict(switches)), fuse)
