"""Metrics, intervals and frontiers on cases whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch

from gsae.evidence import frontiers, intervals
from gsae.evidence import metrics as stats
from gsae.evidence import sums as metrics


def sums_of(x, x_hat, f=None, split=1, mean=None):
    f = torch.ones(len(x), 3) if f is None else f
    total = metrics.Sums(torch.zeros(x.shape[1]) if mean is None else mean)
    group = torch.arange(len(x)) % metrics.GROUPS
    for parts in zip(*(t.chunk(split) for t in (x, x_hat, f, group)), strict=True):
        total.add(*parts)
    return total


def arrays(total):
    return {k: np.array(v) for k, v in total.to_dict().items()}


def test_eq10_half_the_input_has_gamma_one_half():
    x = torch.randn(200, 5)
    assert stats.ratios(arrays(sums_of(x, x / 2)))["gamma"] == pytest.approx(0.5, rel=1e-5)


def test_eq9_gamma_is_the_best_rescaling():
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    x_hat = 0.7 * x + 0.3 * torch.randn(500, 5, generator=torch.Generator().manual_seed(1))
    gamma = stats.ratios(arrays(sums_of(x, x_hat)))["gamma"]
    error = [float((x_hat / g - x).square().sum()) for g in (gamma * 0.99, gamma, gamma * 1.01)]
    assert error[1] < min(error[0], error[2])


def test_the_batch_split_does_not_matter():
    x, f = torch.randn(301, 5), torch.randn(301, 11).relu()
    x_hat = x + 0.1 * torch.randn(301, 5)
    one, many = (stats.ratios(arrays(sums_of(x, x_hat, f, split=s))) for s in (1, 7))
    assert one == pytest.approx(many, rel=1e-6)


def test_fvu_l0_and_dead_latents_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    f = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    total = sums_of(x, x + torch.tensor([[0.5, 0.0], [0.0, 0.5]]), f, mean=torch.tensor([2.0, 0.0]))
    found = stats.ratios(arrays(total))
    assert found["fvu"] == pytest.approx(0.5 / 2) and found["mse"] == pytest.approx(0.25)
    assert found["l0"] == pytest.approx(1.5) and total.dead_fraction == pytest.approx(1 / 3)
    density = total.density()
    assert sum(density["counts"]) == 2 and density["dead"] == 1


@pytest.mark.parametrize("sae,expected", [(2.0, 1.0), (5.0, 0.0), (3.5, 0.5), (1.7, 1.1)])
def test_eq5_loss_recovered(sae, expected):
    total = sums_of(torch.randn(4, 2), torch.randn(4, 2))
    full = torch.full((4,), 10.0)
    total.add_ce(
        torch.arange(4), clean=2 * full, zero=5 * full, mean=4 * full, sae=sae * full, tokens=10
    )
    found = stats.ratios(arrays(total))
    assert found["loss_recovered"] == pytest.approx(expected) and found[
        "ce_clean"
    ] == pytest.approx(2.0)
    assert found["delta_ce"] == pytest.approx(sae - 2)


def test_ratios_are_pooled_not_averaged():
    sums = {k: np.array([1.0, 3.0]) for k in metrics.ACTIVATION_SUMS} | {
        "x_hat_sq": np.array([4.0, 0.0])
    }
    assert stats.ratios(sums)["gamma"] == 1.0  # the mean of the groups' ratios would be 2


def test_bootstrap_covers_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(60):
        sums = {k: np.ones(64) for k in metrics.ACTIVATION_SUMS} | {"l0": rng.normal(5, 1, 64)}
        _, low, high = intervals.bootstrap([sums], lambda r: r[0]["l0"], draws=200, seed=trial)
        hits += low < 5 < high
    assert 48 <= hits <= 60


def frontier(arch, factor, lams=(0.05, 0.1, 0.2, 0.4, 0.8), seed=0):
    rows = []
    for lam in lams:
        l0 = 10 / lam
        lost = (factor / l0) ** 0.8
        ce = {
            "ce_tokens": 10.0,
            "ce_clean": 20.0,
            "ce_zero": 50.0,
            "ce_mean": 40.0,
            "ce_sae": 20 + 30 * lost,
        }
        sums = {k: np.ones(32) for k in metrics.ACTIVATION_SUMS} | {"l0": np.full(32, l0)}
        sums |= {k: np.full(32, v) for k, v in ce.items()}
        rows.append({"arch": arch, "lam": lam, "seed": seed, "sums": sums, **stats.ratios(sums)})
    return pd.DataFrame(rows)


def test_frontiers_give_the_known_ratio():
    gated, baseline = (
        pd.concat([frontier(a, k, seed=s) for s in (0, 1)])
        for a, k in (("gated", 1.0), ("baseline", 2.0))
    )
    found = intervals.by_seed((gated, baseline), frontiers.log_ratio, draws=50)
    assert np.exp(found["estimate"]) == pytest.approx(0.5, rel=1e-6) and found["seeds"] == 2
    assert np.exp(found["low"]) == pytest.approx(0.5, rel=1e-6)


def test_frontiers_without_a_shared_range_are_not_compared():
    gated, baseline = (
        frontier("gated", 1.0, lams=(0.01, 0.02)),
        frontier("baseline", 1.0, lams=(0.4, 0.8)),
    )
    assert np.isnan(intervals.by_seed((gated, baseline), frontiers.log_ratio, draws=20)["estimate"])


def test_envelope_drops_what_another_run_beats():
    l0, loss = frontiers.envelope(
        np.array([10.0, 20.0, 30.0, 40.0]), np.array([0.5, 0.6, 0.2, 0.2])
    )
    assert l0.tolist() == [10, 30] and loss.tolist() == [0.5, 0.2]


def test_the_difference_in_loss_recovered_is_linear_and_needs_no_loss_left():
    def arm(shift):
        return [
            {"l0": l0, "loss_recovered": 0.5 + 0.1 * np.log(l0) + shift}
            for l0 in (2.0, 8.0, 30.0, 120.0)
        ]

    assert frontiers.recovered(arm(0.07), arm(0.0)) == pytest.approx(0.07)
    # More than everything is recovered at the largest L0: logarithms drop that run, and with it the
    # range.
    perfect = arm(0.07)
    perfect[-1]["loss_recovered"] = 1.1
    assert frontiers.recovered(perfect, arm(0.0)) > 0.07 and np.isfinite(
        frontiers.recovered(perfect[-2:], arm(0.0))
    )
    negative = [{**r, "delta_ce": 1 - r["loss_recovered"]} for r in perfect[-2:]]
    assert np.isnan(
        frontiers.log_loss_ratio(
            [{**r, "delta_ce": 1 - r["loss_recovered"]} for r in arm(0.0)], negative
        )
    )
    assert np.isnan(frontiers.recovered(arm(0.0)[:1], arm(0.0)))
