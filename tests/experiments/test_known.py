"""The known dictionary: exact on the truth itself, and a small study that is written once."""

import pytest
import torch

from gsae.evidence import result_files
from gsae.experiments import follow_ups, run_known_dictionary
from gsae.saes import BaselineSAE
from gsae.saes.toy import SparseData


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path))


def truth(data, factor=1.0, shift=0.0):
    """An SAE with the true directions, orthonormal, in another order, and a shrunk or shifted
    magnitude.
    """
    sae = BaselineSAE(data.n, data.features).requires_grad_(False)
    order = torch.randperm(data.features, generator=torch.Generator().manual_seed(0))
    sae.W_dec.copy_(data.dictionary[order])
    sae.W_enc.copy_(factor * data.dictionary[order].T)
    sae.b_enc.fill_(-shift)
    return sae, order


@pytest.fixture
def orthonormal():
    data = SparseData(n=9, features=9, l0=2.0)
    data.__dict__["dictionary"] = torch.linalg.qr(data.dictionary)[0]
    return data


def test_the_truth_has_cosine_and_slope_one(orthonormal):
    sae, order = truth(orthonormal, shift=1e-4)
    found = run_known_dictionary.recovery(sae, orthonormal, *orthonormal.sample(3000))
    named = "cosine cosine_max found slope recall precision gamma offset_slope magnitude_gamma"
    for name in named.split():
        assert found[name] == pytest.approx(1, abs=2e-3), name
    assert found["l0"] == pytest.approx(2, abs=0.1) and found["mse"] < 1e-5
    true, latent = run_known_dictionary.match(orthonormal.dictionary, sae.W_dec)
    assert torch.equal(order[latent], true)


def test_a_factor_and_a_shift_are_told_apart(orthonormal):
    x, magnitudes = orthonormal.sample(3000)
    scaled = run_known_dictionary.recovery(
        truth(orthonormal, 0.7, 1e-4)[0], orthonormal, x, magnitudes
    )
    assert scaled["slope"] == pytest.approx(0.7, abs=2e-3) and scaled["gamma"] == pytest.approx(
        0.7, abs=2e-3
    )
    assert scaled["magnitude_gamma"] == pytest.approx(0.7, abs=2e-3)
    false = run_known_dictionary.recovery(
        truth(orthonormal, shift=-0.1)[0], orthonormal, x, magnitudes
    )  # on everywhere
    y = magnitudes + 0.1
    assert false["magnitude_gamma"] == pytest.approx(
        float(y.square().sum() / (y * magnitudes).sum()), abs=1e-3
    )
    shift = 0.3 * float(magnitudes[magnitudes > 0].min())
    shifted = run_known_dictionary.recovery(
        truth(orthonormal, 1.0, shift)[0], orthonormal, x, magnitudes
    )
    on = magnitudes[magnitudes > 0]
    assert shifted["offset_slope"] == pytest.approx(1, abs=2e-3) and shifted["slope"] < 0.95
    assert shifted["slope"] == pytest.approx(
        float(1 - shift * on.sum() / on.square().sum()), abs=1e-3
    )


def test_the_matching_is_one_to_one():
    dictionary = torch.eye(3)
    W_dec = torch.tensor([[1.0, 0, 0], [0.9, 0.436, 0], [0, 0, 1.0], [0, 0, -1.0]])
    true, latent = run_known_dictionary.match(dictionary, W_dec)
    assert true.tolist() == [0, 1, 2] and latent.tolist() == [
        0,
        1,
        2,
    ]  # the largest cosine of 1 is row 1's, 0.436


def test_nothing_found_gives_numbers(orthonormal):
    sae, _ = truth(orthonormal)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.ones(9, 9), dim=-1) * -1)
    out = run_known_dictionary.recovery(sae, orthonormal, *orthonormal.sample(200))
    assert out["found"] == 0 and "slope" not in out and all(v == v for v in out.values())


def test_a_small_study_is_computed_once_and_shows_shrinkage(monkeypatch):
    small = dict(
        n=20,
        features=24,
        tokens=100_000,
        batch=128,
        lr=1e-2,
        l0=(2.0,),
        noise=(0.0,),
        seeds=1,
        lam=(0.5,),
    )
    monkeypatch.setitem(follow_ups.KNOWN_GRIDS, "smoke", small)
    monkeypatch.setenv("GSAE_TRAIN", "never")
    assert run_known_dictionary.known_dictionary("smoke").empty
    monkeypatch.delenv("GSAE_TRAIN")
    df = run_known_dictionary.known_dictionary("smoke")
    assert len(df) == 2 and (df["status"] == "done").all()
    at = df.set_index("arch")
    assert at["slope"]["baseline"] < 0.7 < 0.8 < at["slope"]["gated"] < 1.05
    assert at["gamma"]["baseline"] < 0.85 and at["gamma"]["gated"] == pytest.approx(1, abs=0.03)
    assert (df["cosine"] > 0.95).all() and (df["cosine"] <= df["cosine_max"] + 1e-6).all()
    monkeypatch.setattr(run_known_dictionary, "compute", None)  # nothing is computed again
    assert run_known_dictionary.known_dictionary("smoke")["id"].tolist() == df["id"].tolist()
    assert result_files.load_results("known", "smoke")["provenance"][0]["commit"]


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu", "paper"])
def test_every_scale_lists(scale):
    cells = follow_ups.known_settings(scale)
    assert len({result_files.result_id("known", s, 1) for s in cells}) == len(cells)
