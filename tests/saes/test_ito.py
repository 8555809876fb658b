"""Gradient pursuit against a slow one-vector version, against exact answers, and against
non-negative least squares.
"""

import pytest
import torch
from scipy.optimize import nnls

from gsae.saes import gradient_pursuit
from gsae.saes.base import unit_rows
from gsae.saes.gradient_pursuit import pursue, pursue_all


def slow(x, W_dec, b_dec, s):
    """One vector, the dictionary as columns, everything recomputed from the codes in each round."""
    D, target = W_dec.T, x - b_dec
    a, errors, clips = torch.zeros(D.shape[1], dtype=x.dtype), [], []
    for _ in range(s):
        residual = target - D @ a
        inner = torch.stack([d @ residual for d in D.T])
        support = a > 0
        support[inner.argmax()] = True
        g = torch.where(support, inner, torch.zeros_like(inner))
        direction = D @ g
        if direction @ direction > 0:
            a = a + (residual @ direction) / (direction @ direction) * g
        clips.append(bool((a < 0).any()))
        a = a.clamp(min=0)
        errors.append(float((target - D @ a).square().sum()))
    return a, errors, clips


def world(b=7, n=5, M=11, seed=0, common=0.0):
    """Vectors, a random dictionary whose rows share a direction to the degree `common`, and a
    decoder bias.
    """
    generator = torch.Generator().manual_seed(seed)
    x, b_dec = (torch.randn(*k, generator=generator, dtype=torch.float64) for k in ((b, n), (n,)))
    W_dec = unit_rows(n, M, seed).double() + common * unit_rows(n, 1, seed + 1).double()
    return x, torch.nn.functional.normalize(W_dec, dim=-1), b_dec


@pytest.mark.parametrize("shape", [(7, 5, 11, 0, 0.0), (40, 12, 30, 0, 1.0), (8, 9, 6, 0, 0.0)])
def test_eq12_equals_the_slow_version(shape, monkeypatch):
    monkeypatch.setattr(gradient_pursuit, "CHUNK", 3)
    x, W_dec, b_dec = world(*shape)
    for s in (1, 2, 5, min(12, shape[2])):
        f = pursue(x, W_dec, b_dec, s)
        wanted = torch.stack([slow(row, W_dec, b_dec, s)[0] for row in x])
        assert torch.allclose(f, wanted, atol=1e-10)
        assert (
            (f >= 0).all()
            and ((f > 0).sum(-1) <= s).all()
            and (s > 1 or ((f > 0).sum(-1) == 1).float().mean() > 0.8)
        )


def test_some_codes_are_clipped_and_some_latents_chosen_again():
    """So that the test above covers the two branches it is there for."""
    x, W_dec, b_dec = world(40, 12, 30, 0, 1.0)
    assert any(any(slow(row, W_dec, b_dec, 12)[2]) for row in x)
    assert ((pursue(x, W_dec, b_dec, 12) > 0).sum(-1) < 12).any()


def test_orthonormal_rows_give_the_largest_positive_coefficients():
    x, _, b_dec = world(50, 9, 9)
    Q = torch.linalg.qr(
        torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )[0]
    coefficients = (x - b_dec) @ Q.T
    kept = coefficients.topk(3).indices
    wanted = (
        torch.zeros_like(coefficients).scatter(1, kept, coefficients.gather(1, kept)).clamp(min=0)
    )
    # each round adds one exact coefficient: the others' gradients are 0
    assert torch.allclose(pursue(x, Q, b_dec, 3), wanted, atol=1e-10)


def test_eq11_a_square_dictionary_and_positive_codes_are_recovered():
    generator = torch.Generator().manual_seed(2)
    W_dec = torch.nn.functional.normalize(
        torch.eye(6) + 0.1 * torch.randn(6, 6, generator=generator), dim=-1
    ).double()
    codes = torch.rand(20, 6, generator=generator).double() + 0.5
    b_dec = torch.randn(6, generator=generator).double()
    x = codes @ W_dec + b_dec
    errors = [
        float((pursue(x, W_dec, b_dec, s) @ W_dec + b_dec - x).norm() / x.norm()) for s in (3, 6)
    ]
    assert errors[1] < 0.1 and errors[1] < 0.3 * errors[0]
    # one gradient step a round leaves a remainder; it shrinks with the rows' overlap and is 0
    # without
    assert torch.allclose(
        pursue(codes @ torch.eye(6).double(), torch.eye(6).double(), 0 * b_dec, 6), codes
    )
    single = codes[:, :1] @ W_dec[:1] + b_dec  # one latent: exact in one round
    assert torch.allclose(pursue(single, W_dec, b_dec, 1)[:, 0], codes[:, 0])


def test_the_error_falls_in_every_round_without_clipping():
    x, W_dec, b_dec = world(60, 12, 30, seed=4)
    compared = 0
    for row in x:
        _, errors, clips = slow(row, W_dec, b_dec, 8)
        at = [
            float((row - b_dec - pursue(row[None], W_dec, b_dec, s)[0] @ W_dec).square().sum())
            for s in range(1, 9)
        ]
        assert at == pytest.approx(errors, abs=1e-9) and at[0] < float((row - b_dec).square().sum())
        for r in range(1, 8):
            if not clips[r]:
                compared += 1
                assert at[r] <= at[r - 1] + 1e-12
    assert compared > 200
    each = pursue_all(x, W_dec, b_dec, range(1, 9))
    mean = [float((x - b_dec - f @ W_dec).square().sum()) for f in each]
    assert mean == sorted(mean, reverse=True) and mean[-1] < 0.2 * mean[0]


def test_non_negative_least_squares_on_the_support_is_a_lower_bound():
    x, W_dec, b_dec = world(30, 12, 30, seed=5)
    f = pursue(x, W_dec, b_dec, 5)
    gaps = []
    for row, code in zip(x - b_dec, f, strict=True):
        on = code > 0
        best = nnls(W_dec[on].T.numpy(), row.numpy())[1] ** 2
        error = float((row - code @ W_dec).square().sum())
        assert best <= error + 1e-9
        gaps.append((error - best) / float(row.square().sum()))
    assert sum(gaps) / len(gaps) < 0.05


def test_several_sizes_for_the_price_of_one():
    x, W_dec, b_dec = world(7, 5, 11)
    for s, f in zip((4, 1, 3), pursue_all(x, W_dec, b_dec, (4, 1, 3)), strict=True):
        assert torch.equal(f, pursue(x, W_dec, b_dec, s))


def test_a_residual_of_zero_stays_finite():
    _, W_dec, b_dec = world()
    f = pursue(b_dec.expand(7, 5), W_dec, b_dec, 4)
    assert (f == 0).all()
    assert pursue(b_dec + W_dec[3:4] * 2, W_dec, b_dec, 4)[0, 3] == pytest.approx(2.0)


@pytest.mark.parametrize("s", [0, 12])
def test_a_number_of_latents_out_of_range_is_explained(s):
    x, W_dec, b_dec = world()
    with pytest.raises(ValueError, match="between 1 and M=11"):
        pursue(x, W_dec, b_dec, s)
