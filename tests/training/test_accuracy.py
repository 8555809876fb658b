"""Speed costs no accuracy: the plain float32 loop and the fast path end at the same frontier."""

import pytest
import torch

from gsae.evidence import metrics as stats
from gsae.evidence import sums as metrics
from gsae.saes import toy
from gsae.system import devices
from gsae.training import gradients, sparse_products, stack
from gsae.training.gradients import autograd_form
from gsae.training.schedule import Plan
from gsae.training.stack import Stack

STEPS, BATCH, LAMS = 300, 256, (0.1, 0.3, 0.6)
# Relative. Seen: below 0.0005; a lambda that is 5 % off moves L0 by 2 to 5 %.
TOLERANCE = {"l0": 0.01, "fvu": 0.01, "gamma": 0.002}


def frontier(arch, dtype, compiled, monkeypatch, sparsely=False):
    """L0, FVU and gamma on unseen samples for each lambda; with `compiled` None, by autograd of the
    plain class.
    """
    steps = []
    data = toy.SparseData(24, 40, 3.0, noise=0.05, seed=1)
    x, _ = data.sample(STEPS * BATCH, seed=2)
    plan = Plan(arch, 24, 60, LAMS, STEPS, BATCH, lr=3e-3, seed=0, dtype=dtype, resample=())
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "fast", bool(compiled))
        if compiled is None:
            patch.setattr(stack, "gradient_form", lambda *of: autograd_form(plan.sae()))
        if sparsely:  # as runs of 1,024 latents and more do once few are on
            gradients.gradient_form.cache_clear()
            patch.setattr(sparse_products, "LEAST_M", 1)
            patch.setitem(sparse_products.SHARE, "cpu", 1 / 4)
            patch.setattr(
                sparse_products,
                "Open",
                lambda *of, made=sparse_products.Open: steps.append(1) or made(*of),
            )
        trained = Stack(plan)
        for step in range(STEPS):
            trained.train_step(x[step * BATCH : (step + 1) * BATCH])
    if sparsely:
        gradients.gradient_form.cache_clear()
    assert (len(steps) > STEPS * len(LAMS) / 2) == sparsely
    unseen, _ = data.sample(20_000, seed=3)
    rows = []
    for k in range(len(LAMS)):
        sums, sae = metrics.Sums(unseen.mean(0)), trained.sae(k)
        with torch.no_grad():
            f = sae.encode(unseen)
            sums.add(unseen, sae.decode(f), f, torch.arange(len(unseen)) % metrics.GROUPS)
        found = stats.ratios(sums.to_dict())
        rows.append({name: found[name] for name in TOLERANCE})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["gated", "baseline"])
def test_the_fast_path_ends_at_the_frontier_of_the_plain_float32_loop(arch, monkeypatch):
    plain = frontier(arch, "float32", None, monkeypatch)
    assert plain[0]["l0"] > 2 * plain[-1]["l0"], "the lambdas span a frontier"
    for sparsely in (False, True):
        fast = frontier(arch, "bfloat16", devices.compiler(), monkeypatch, sparsely)
        for one, other in zip(plain, fast, strict=True):
            for name, tolerance in TOLERANCE.items():
                assert other[name] == pytest.approx(one[name], rel=tolerance), (
                    name,
                    sparsely,
                    one,
                    other,
                )
