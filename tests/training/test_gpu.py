"""What runs on a GPU, without one: tensors that hold no numbers know their device, and do not take
part on another.
"""

from types import SimpleNamespace

import pytest
import torch
from test_plan import SWITCHES

from gsae.evidence import sums as metrics
from gsae.evidence.run import Run
from gsae.training import loop
from gsae.training.schedule import Plan
from gsae.training.stack import Stack

N, M, B, K = 5, 11, 7, 3


@pytest.fixture
def fake():
    """Inside, tensors pretend to be where they are put: `cuda:0` needs no GPU."""
    with torch._subclasses.FakeTensorMode() as mode:
        yield mode


def on_gpu(found):
    return all(t.is_meta for t in found)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_a_step_stays_on_the_gpu(switches):
    """`meta` stands for it: a tensor that was made on the host by mistake cannot take part."""
    run = Run(**switches)
    options = dict(switches=tuple(sorted(run.switches.items())), device="meta", resample=())
    stack = Stack(Plan(run.arch, N, M, (0.1, 0.2, 0.3), 40, B, 1e-3, **options))
    assert on_gpu([*stack.w.values(), *stack.v.values(), stack.age, stack.silent, stack.lam])
    x = torch.ones(B, N, device="meta")
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(B, N)
    for _ in range(2):
        terms = stack.train_step(x)
        stack.check(x, terms)
    assert on_gpu(
        [*terms.values(), stack.divergence.first, *stack.w.values(), stack.silent]
    ) and terms["l0"].shape == (K,)
    assert stack.divergence.deferred and stack.plan.steps == 40
    assert on_gpu(stack.sae(1).parameters())


def test_metrics_of_a_gpu_are_summed_on_the_host(fake):
    sums, ones = metrics.Sums(torch.zeros(N)), torch.ones(B, N, device="cuda:0")
    for _ in range(2):
        sums.add(ones, 2 * ones, torch.ones(B, M, device="cuda:0"), torch.arange(B))
    ce = {name: torch.ones(B, device="cuda:0") for name in ("clean", "zero", "mean", "sae")}
    sums.add_ce(torch.arange(B), **ce, tokens=9)
    assert all(t.device.type == "cpu" for t in [*sums.sums.values(), sums.fired])


def test_what_train_returns_is_where_its_activations_are(monkeypatch):
    """A GPU trains activations of the host; `sae.encode(x * scale)` then has to work as it
    stands.
    """
    moved = []
    sae = SimpleNamespace(to=lambda device: moved.append(device) or sae)
    monkeypatch.setattr(loop, "fit", lambda stack, batches, bar: [sae])
    x = torch.randn(B, N)
    assert loop.train(x, M=M, batch=B) is sae and moved == [x.device] and sae.about["scale"] > 0
