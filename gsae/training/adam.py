"""Adam with beta1 = 0 for a stack, and its step on the unit sphere."""

from collections.abc import Callable

import torch
from torch import Tensor

BETA2, EPS = 0.999, 1e-8  # EPS: D19. beta1 is 0 (D.1.1): Adam's first moment is the gradient


@torch.no_grad()
def adam(w: Tensor, g: Tensor, v: Tensor, age: Tensor, lr: Tensor) -> None:
    """Adam with beta1 = 0 in place; `age` counts each entry's own steps, so that a reset state is a
    fresh one (D14).
    """
    g = g.float()
    v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
    w.sub_(lr * g / ((v / (1 - BETA2**age)).sqrt() + EPS))


def along_sphere(g: Tensor, w: Tensor) -> Tensor:
    """The gradient without its part along each unit row."""
    g = g.float()
    return g - w * (g * w).sum(-1, keepdim=True)


@torch.no_grad()
def adam_rows(fuse: Callable, w: Tensor, g: Tensor, v: Tensor, age: Tensor, lr: Tensor) -> None:
    """The dictionary's step: take out the gradient along each unit row, step, **then** make the
    rows unit again.
    """
    fuse(adam)(w, fuse(along_sphere)(g, w), v, age, lr)
    w.div_(w.norm(dim=-1, keepdim=True))
