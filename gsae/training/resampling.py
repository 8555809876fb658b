"""Resampling of dead latents (Bricken et al.; D8): new starts where the SAE reconstructs badly."""

from collections.abc import Callable

import torch
from torch import Tensor

# Inputs to choose from; rows encoded at once, at the paper's width 0.5 GB for each product.
POOL, ROWS = 16_384, 1024
ENCODER_SHARE = 0.2  # norm of a new encoder column, of the mean of those alive (Bricken et al.)


@torch.no_grad()
def resample(stack, batches: Callable[[int], Tensor]) -> None:
    """Give dead latents of a `gsae.training.stack.Stack` a new start on badly reconstructed inputs,
    with fresh Adam state.

    Args:
        stack: whose latents silent for `stack.plan.window` steps are dead.
        batches: `step -> (batch, n)`; the pool to choose from is of the steps that come next.
    """
    plan = stack.plan
    count = max(1, min(4, POOL // plan.batch))
    steps = [(stack.step + i) % plan.steps for i in range(count)]
    pool = torch.cat([batches(step).to(plan.device) for step in steps])
    for k in range(len(plan.lams)):
        dead = (stack.silent[k] >= plan.window).nonzero().squeeze(1)
        if len(dead):
            restart(stack, k, dead, badly_reconstructed(stack, k, pool, len(dead)))


def badly_reconstructed(stack, k: int, pool: Tensor, count: int) -> Tensor:
    """Unit directions `(count, n)` of inputs drawn in proportion to their squared loss."""
    sae = stack.sae(k)
    loss = torch.cat([(sae(x) - x).square().sum(-1) for x in pool.split(ROWS)])
    weights = loss.double().square().cpu()
    generator = torch.Generator().manual_seed(mixed(stack.plan.seed, stack.step, k))
    replacement = count > len(pool)
    chosen = torch.multinomial(weights, count, replacement, generator=generator)
    return torch.nn.functional.normalize(pool[chosen.to(pool.device)], dim=-1)


def restart(stack, k: int, dead: Tensor, direction: Tensor) -> None:
    """Dictionary rows and encoder columns of dead latents become the directions; their biases and
    all state of Adam become 0, so that they start as at the first step (D14).
    """
    alive = torch.ones(stack.plan.M, dtype=torch.bool, device=direction.device)
    alive[dead] = False
    stack.w["W_dec"][k, dead] = direction
    stack.v["W_dec"][k, dead] = 0
    for name in (stack.encoder, "W_mag"):
        if name in stack.w:
            columns = stack.w[name][k].norm(dim=0)
            norm = columns[alive].mean() if alive.any() else torch.tensor(1.0)
            stack.w[name][k][:, dead] = ENCODER_SHARE * norm * direction.T
            stack.v[name][k][:, dead] = 0
    for name in stack.latent:
        stack.w[name][k, dead] = 0
        stack.v[name][k, dead] = 0
    stack.age[k, dead] = 0
    stack.silent[k, dead] = 0


def mixed(*numbers: int) -> int:
    """A seed of 63 bits from small numbers: the xxHash that CPython 3.8 to 3.13 make of a tuple.

    Spelled out, since Python promises no value of `hash` from one version to the next, and runs on
    record drew by it.
    """
    first, second, fifth = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x27D4EB2F165667C5
    bits = 2**64
    mix = fifth
    for number in numbers:
        mix = (mix + number * second) % bits
        mix = (mix << 31 | mix >> 33) % bits  # rotated by 31 bits
        mix = mix * first % bits
    mix = (mix + (len(numbers) ^ fifth ^ 3527539)) % bits
    signed = mix - bits if mix >= bits // 2 else mix
    return signed % 2**63
