"""Resampling of dead latents (Bricken et al.; D8): new directions where the SAE reconstructs
badly.
"""

from collections.abc import Callable

import torch
from torch import Tensor

POOL, CHUNK = (
    16_384,
    1024,
)  # inputs to choose from; rows encoded at once, at the paper's width 0.5 GB for each product


@torch.no_grad()
def resample(stack, batches: Callable[[int], Tensor]) -> None:
    """Give dead latents of a `gsae.training.stack.Stack` a new start on badly reconstructed inputs,
    with fresh Adam state.
    """
    plan = stack.plan
    steps = [(stack.step + i) % plan.steps for i in range(max(1, min(4, POOL // plan.batch)))]
    pool = torch.cat([batches(s).to(plan.device) for s in steps])
    for k in range(len(plan.lams)):
        dead = (stack.silent[k] >= plan.window).nonzero().squeeze(1)
        if not len(dead):
            continue
        sae = stack.sae(k)
        error = torch.cat([(sae(x) - x).square().sum(-1) for x in pool.split(CHUNK)])
        generator = torch.Generator().manual_seed(hash((plan.seed, stack.step, k)) % 2**63)
        chosen = torch.multinomial(
            error.double().square().cpu(), len(dead), len(dead) > len(pool), generator=generator
        )
        direction = torch.nn.functional.normalize(pool[chosen.to(pool.device)], dim=-1)
        encoders = [name for name in (stack.encoder, "W_mag") if name in stack.w]
        alive = torch.ones(plan.M, dtype=torch.bool, device=pool.device)
        alive[dead] = False
        stack.w["W_dec"][k, dead] = direction
        for name in encoders:
            norm = stack.w[name][k].norm(dim=0)[alive].mean() if alive.any() else torch.tensor(1.0)
            stack.w[name][k][:, dead] = 0.2 * norm * direction.T
            stack.v[name][k][:, dead] = 0
        for name in stack.latent:
            stack.w[name][k, dead] = 0
            stack.v[name][k, dead] = 0
        stack.v["W_dec"][k, dead] = 0
        stack.age[k, dead] = 0
        stack.silent[k, dead] = 0
