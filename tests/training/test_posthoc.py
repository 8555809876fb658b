"""Rescale & shift and pruning, on dictionaries where the best answer is known."""

import functools

import pytest
import torch

from gsae import train
from gsae.saes import BaselineSAE, GatedSAE, toy
from gsae.training import rescale_shift as posthoc
from gsae.training.divergence import Diverged
from gsae.training.rescale_shift import Pruned, RescaleShift, pruning_threshold, rescale_shift


def random_sae(cls=BaselineSAE, n=5, M=11, seed=0):
    sae, generator = cls(n, M, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in sae.parameters():
            if p.shape in ((M,), (n,)):
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return sae


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def trained(arch):
    """An SAE trained on data from a known dictionary, sparse enough to shrink a baseline; rows seen
    and unseen.
    """
    data = toy.SparseData(n=20, features=30, l0=2.0, seed=3)
    x, _ = data.sample(25_000)
    sae = train(x[:20_000], arch=arch, lam=0.4, M=40, batch=500, lr=3e-3, resample=(), bar=False)
    rows = x * sae.about["scale"]
    return sae.requires_grad_(False), rows[:20_000], rows[20_000:]


@pytest.fixture(scope="module")
def world():
    return trained("baseline")


def batches(rows, size=500):
    return lambda step: rows[(step * size) % len(rows) :][:size]


def gamma(x, x_hat):
    return float((x_hat.square().sum() / (x_hat * x).sum()).detach())


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_step_0_is_the_baseline_exactly(threshold):
    sae, x = random_sae(), normal(7, 5)
    wanted = sae.encode(x) * (sae.encode(x) > threshold)
    assert (wanted > 0).any() and (threshold == 0 or (wanted != sae.encode(x)).any())
    for model in (
        RescaleShift(sae, threshold),
        Pruned(sae, threshold),
        rescale_shift(sae, lambda _: x, 0, threshold=threshold),
    ):
        assert torch.equal(model.encode(x), wanted)
        assert torch.equal(model(x), sae.decode(wanted))


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_gradients_are_those_of_autograd(threshold):
    model, x = RescaleShift(random_sae(), threshold).double(), normal(7, 5).double()
    with torch.no_grad():
        model.r_mag.copy_(0.5 * normal(11, seed=2))
        model.b_mag.add_(0.3 * normal(11, seed=3))
    error = (model(x) - x).square().sum(-1).mean()
    wanted = torch.autograd.grad(error, [model.r_mag, model.b_mag])
    *found, value = posthoc.gradients(model, x)
    assert value == pytest.approx(error.item(), rel=1e-12)
    for a, b in zip(found, wanted, strict=True):
        assert b.abs().max() > 0 and torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_it_finds_the_known_scale_and_shift():
    """Orthonormal rows: each latent is a regression of its own, `x_i = exp(r) pre_i + b` where the
    baseline fires.
    """
    sae = BaselineSAE(5, 5)
    scale, shift = torch.tensor([0.8, 1.0, 1.3, 1.6, 2.0]), torch.tensor([0.2, -0.1, 0.0, 0.3, 0.1])
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(5))
        sae.W_enc.copy_(
            torch.diag(1 / scale)
        )  # so that pre_i = x_i / scale_i, and x_i = scale_i pre_i + 0
        sae.b_enc.fill_(-0.5)
        sae.b_dec.copy_(
            -shift
        )  # x_i - b_dec_i = scale_i pre_i: decoded with b_dec, f_i has to be scale_i pre_i
    x = 3 * torch.rand(4096, 5, generator=torch.Generator().manual_seed(0)) + 1  # all latents fire
    assert (sae.encode(x) > 0).all()
    model = rescale_shift(sae, lambda step: x[(step % 8) * 512 :][:512], 600, lr=2e-2, decay=1.0)
    assert torch.allclose(model.r_mag.exp(), scale, atol=0.02) and torch.allclose(
        model.b_mag, torch.zeros(5), atol=0.04
    )
    assert (model(x) - x).square().mean() < 1e-3 * (sae(x) - x).square().mean()


def test_it_repairs_shrinkage_on_data_it_has_not_seen(world):
    sae, seen, unseen = world
    before = {k: v.clone() for k, v in sae.state_dict().items()}
    model = rescale_shift(sae, batches(seen), 250, lr=1e-2).requires_grad_(False)
    assert all(torch.equal(v, before[k]) for k, v in sae.state_dict().items()), (
        "the baseline was changed"
    )
    assert torch.equal(model.b_dec, sae.b_dec) and torch.equal(model.sae.W_enc, sae.W_enc)
    assert gamma(unseen, sae(unseen)) < 0.9 and gamma(unseen, model(unseen)) == pytest.approx(
        1, abs=0.05
    )
    assert (model(unseen) - unseen).square().sum() < 0.8 * (sae(unseen) - unseen).square().sum()
    on, now = sae.encode(unseen) > 0, model.encode(unseen) > 0
    assert not (now & ~on).any(), "a latent outside the frozen support came on"
    # At the optimum no common factor helps, so gamma is 1 about the frozen b_dec, exactly, on the
    # training rows.
    assert gamma(seen - sae.b_dec, model(seen) - sae.b_dec) == pytest.approx(1, abs=0.005)


def test_the_same_call_gives_the_same_result(world):
    one, two = (rescale_shift(world[0], batches(world[1]), 20) for _ in range(2))
    assert (
        torch.equal(one.r_mag, two.r_mag)
        and torch.equal(one.b_mag, two.b_mag)
        and (one.r_mag != 0).any()
    )


def test_a_latent_of_the_support_can_be_turned_off_but_none_turned_on():
    sae, x = random_sae(), normal(70, 5)
    model = RescaleShift(sae)
    with torch.no_grad():
        model.b_mag.sub_(0.4)
    assert (model.encode(x) > 0).sum() < (sae.encode(x) > 0).sum()
    with torch.no_grad():
        model.b_mag.fill_(10.0)
    assert torch.equal(model.encode(x) > 0, sae.encode(x) > 0)


def test_pruning_then_rescaling_beats_pruning(world):
    sae, seen, unseen = world
    threshold = pruning_threshold(sae, [seen[:2000]], increase=0.05)
    pruned, model = (
        Pruned(sae, threshold),
        rescale_shift(sae, batches(seen), 250, threshold=threshold),
    )
    errors = [float((m(unseen) - unseen).square().sum().detach()) for m in (sae, pruned, model)]
    assert errors[0] < errors[1] < 1.1 * errors[0] and errors[2] < errors[0]
    l0 = [float((m.encode(unseen) > 0).float().sum(-1).mean()) for m in (sae, pruned, model)]
    assert l0[2] <= l0[1] < 0.95 * l0[0]


@pytest.mark.parametrize("arch", ["baseline", "gated"])
def test_thresholds_give_what_was_asked_for(arch):
    sae, _, unseen = trained(arch)
    x = unseen[:2000]
    parts, f = x.split(700), sae.encode(x)
    error = lambda t: float((Pruned(sae, t)(x) - x).square().sum())
    for increase in (0.02, 0.2):
        t = pruning_threshold(sae, parts, increase=increase)
        assert t > 0 and error(t) <= error(0.0) * (1 + increase) * (1 + 1e-6)
        # 40 of 2,000 tokens: twice the resolution of 0.01 of L0
        higher = float(f[f > t].sort().values[40])
        assert error(higher) > error(0.0) * (1 + increase)


def test_wrong_use_is_explained():
    sae = random_sae()
    with pytest.raises(TypeError, match="GatedSAE"):
        RescaleShift(random_sae(GatedSAE))
    with pytest.raises(ValueError, match="at least 0"):
        Pruned(sae, -0.1)
    for increase in (0.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            pruning_threshold(sae, [normal(7, 5)], increase=increase)
    with pytest.raises(ValueError, match="at least one"):
        pruning_threshold(sae, [], increase=0.1)
    with pytest.raises(Diverged, match="step 0"):
        rescale_shift(sae, lambda _: torch.full((7, 5), torch.nan), 2)


def test_summaries_are_numbers_a_result_file_takes(world):
    sae, seen, _ = world
    out = rescale_shift(sae, batches(seen), 50).summary()
    assert 0 < out["moved_fraction"] <= 1 and len(out["r_mag_quantiles"]) == len(
        out["quantile_levels"]
    )
    assert out["r_mag_quantiles"] == sorted(out["r_mag_quantiles"]) and out["r_mag_mean"] > 0
    assert RescaleShift(sae).summary()["moved_fraction"] == 0
    assert Pruned(sae, 0.25).summary() == {"threshold": 0.25}
