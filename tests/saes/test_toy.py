"""The small worlds of gsae.saes.toy against their exact values."""

import math

import pytest
import torch

from gsae.saes import toy

LAMS = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.5, 1.9, 2.0, 3.0], dtype=torch.float64)


def test_fig2_shrinkage_of_one_latent():
    assert toy.one_latent(1.0).item() == 0.5
    assert toy.one_latent(LAMS).tolist() == pytest.approx(
        [1, 0.95, 0.75, 0.5, 0.25, 0.05, 0, 0], abs=1e-12
    )


def test_fig2_the_optimum_is_the_minimum_on_a_grid():
    f = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
    best = f[((1 - f) ** 2 + LAMS * f).argmin(0), 0]
    assert torch.allclose(best, toy.one_latent(LAMS), atol=1e-5)


def test_fig2_descent_reaches_the_optimum():
    path = toy.descend(LAMS)
    assert path.shape == (201, 8) and path[0].tolist() == [1] * 8
    assert (path[-1] - toy.one_latent(LAMS)).abs().max() < 1e-4
    assert (
        path.diff(dim=0) <= 0
    ).all()  # shrinks all the way: the perfect reconstruction is no resting point
    assert (toy.descend(LAMS, start=0.2)[-1] - toy.one_latent(LAMS)).abs().max() < 1e-4


@pytest.mark.parametrize("magnitude", ["uniform", "exponential", "constant"])
@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_sparse_data_has_the_stated_moments(magnitude, noise):
    data = toy.SparseData(n=5, features=11, l0=2.0, magnitude=magnitude, noise=noise, seed=3)
    x, magnitudes = data.sample(200_000, seed=1)
    assert x.shape == (200_000, 5) and magnitudes.shape == (200_000, 11)
    assert torch.allclose(data.dictionary.norm(dim=1), torch.ones(11))
    assert (magnitudes >= 0).all()
    on = magnitudes > 0
    assert on.float().sum(1).mean().item() == pytest.approx(2.0, abs=0.02)
    assert magnitudes[on].mean().item() == pytest.approx(data.scale, rel=0.01)
    assert x.square().sum(1).mean().item() == pytest.approx(1, abs=0.015)
    rest = x - magnitudes @ data.dictionary
    assert rest.square().sum(1).mean().item() == pytest.approx(noise, abs=0.005)


def test_sparse_data_is_a_function_of_its_seeds():
    data = toy.SparseData(n=5, features=11, l0=2.0)
    state = torch.get_rng_state()
    x, _ = data.sample(7, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, toy.SparseData(n=5, features=11, l0=2.0).sample(7, seed=4)[0])
    assert not torch.equal(x, data.sample(7, seed=5)[0])
    assert not torch.allclose(
        data.dictionary, toy.SparseData(n=5, features=11, l0=2.0, seed=1).dictionary
    )


def test_sparse_data_is_not_an_sae_initialisation():
    from gsae.saes import GatedSAE

    cosines = toy.SparseData(n=32, features=11).dictionary @ GatedSAE(32, 11).W_dec.detach().T
    assert cosines.max() < 0.9


@pytest.mark.parametrize(
    "wrong", [{"magnitude": "normal"}, {"l0": 0.0}, {"l0": 100.0}, {"noise": 1.0}, {"noise": -0.1}]
)
def test_sparse_data_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        toy.SparseData(**wrong)


def test_fig4_jump_relu():
    z = torch.tensor([-2.0, -0.5, 0.0, 0.5, 1.0, 1.5])
    assert toy.jump_relu(z, 1.0).tolist() == [0, 0, 0, 0, 0, 1.5]  # at the threshold: closed
    assert toy.jump_relu(z, 0.0).tolist() == torch.relu(z).tolist()
    assert (
        toy.jump_relu(z, -1.0).tolist() == torch.relu(z).tolist()
    )  # z H(z - theta) would give -0.5 at -0.5
    per_latent = toy.jump_relu(z[None].expand(2, 6).T, torch.tensor([-1.0, 1.0]))
    assert per_latent[:, 0].tolist() == torch.relu(z).tolist() and per_latent[:, 1].tolist() == [
        0
    ] * 5 + [1.5]


def test_appendix_f_exact_values():
    assert toy.passing(on=True) == pytest.approx(0.97725, abs=5e-6)
    assert toy.passing(on=False) == pytest.approx(0.15866, abs=5e-6)
    assert toy.squared_error(t=1.0, m=2.0, d=1.0) == pytest.approx(
        0.2224, abs=5e-5
    )  # the plotted ReLU
    assert toy.squared_error(t=1.0, m=1.0, d=0.0) == 0  # the plotted JumpReLU


def test_appendix_f_exact_values_by_quadrature():
    z = torch.linspace(-4, 10, 1_400_001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((z - 2) / 0.5) ** 2) * (z > 0.7)
    for m, d in ((2.0, 0.7), (1.5, 0.2), (0.6, -1.0)):
        error = (density * (m * (z - d) - z) ** 2).sum() / density.sum()
        assert toy.squared_error(0.7, m, d) == pytest.approx(error.item(), rel=1e-4)


def test_appendix_f_samples():
    z, on = toy.mixture(100_000)
    share = on.double().mean().item()
    assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(1e5))
    assert z[on].mean().item() == pytest.approx(2, abs=0.01) and z[
        on
    ].std().item() == pytest.approx(0.5, abs=0.01)
    assert z[~on].mean().item() == pytest.approx(0, abs=0.02) and z[
        ~on
    ].std().item() == pytest.approx(1, abs=0.02)
    for state in (True, False):
        assert (z[on == state] > 1).double().mean().item() == pytest.approx(
            toy.passing(state), abs=0.006
        )
    kept = z[on & (z > 1)]
    relu, jump = toy.relu_reconstruction(kept), toy.jump_reconstruction(kept)
    assert torch.equal(jump, kept)  # exact above the threshold
    assert (relu - kept).square().mean().item() == pytest.approx(
        toy.squared_error(1.0, 2.0, 1.0), abs=0.01
    )


def test_fig15_reconstructions():
    z = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0])
    assert toy.relu_reconstruction(z).tolist() == [0, 0, 1, 2, 4]
    assert toy.jump_reconstruction(z).tolist() == [0, 0, 1.5, 2, 3]
    with pytest.raises(ValueError, match="d=2"):
        toy.jump_reconstruction(z, t=1.0, d=2.0)
