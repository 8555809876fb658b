"""Controls of finished runs on a small stand-in for a language model: what is written, skipped, and
how it compares.
"""

from dataclasses import asdict
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from gsae import train
from gsae.evidence import metrics, provenance, result_files, run_files
from gsae.evidence.run import Run, grid
from gsae.experiments import estimate, retrain, run_follow_ups, runner, sweeps
from gsae.experiments.evaluate import Evaluation
from gsae.experiments.site import Site
from gsae.lm.models import LM
from gsae.saes import files as sae_files
from gsae.saes.toy import SparseData
from gsae.system import distributed
from gsae.system.files import cache_dir

WORLD = SparseData(n=12, features=20, l0=2.0, seed=1)
VOCAB = 600
TOKENS = torch.randint(VOCAB, (200, 8), generator=torch.Generator().manual_seed(0))


class Splice:
    """Cross-entropy that rises with the squared error of what replaces the activations, position 0
    apart.
    """

    def __init__(self, clean):
        self.clean, self.targets = clean, clean.shape[1] - 2

    def ce(self, replacement):
        if replacement is None:
            return torch.full((len(self.clean),), 1.0 * self.targets)
        error = (replacement - self.clean)[:, 1:].square().sum(-1)
        return self.targets * (1.0 + error.mean(-1))


class Model(LM):
    """A "language model" with one activation a token."""

    def __init__(self, table):
        self.table, self.commit = table, "of a test"
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def activations(self, tokens, sites):
        return {sites[0]: self.table[tokens]}

    def splice(self, tokens, site, layer, keep_pos0=False):
        return Splice(self.table[tokens])


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path / "evidence"))
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Evaluation, "tokens", lambda self, count: TOKENS[:count])
    run = Run(
        site="mlp_neurons",
        layer=0,
        context=8,
        tokens=4000,
        batch=200,
        M=24,
        eval_tokens=1400,
        ce_tokens=400,
    )
    made = Site(run, Model(3 * WORLD.sample(VOCAB)[0]))
    rows = 3 * WORLD.sample(4000, seed=1)[0]
    made.store = SimpleNamespace(
        scale=1 / 3,
        rows=4000,
        top_share=0.1,
        mean=rows.mean(0) / 3,
        batch=lambda step, batch, seed: rows[(step * batch) % 4000 :][:batch] / 3,
    )
    return made


@pytest.fixture
def evaluation(site):
    return Evaluation(site)


def finished(evaluation, arches=("baseline", "gated"), lam=0.4):
    """The table of trained and evaluated runs, their weights kept; and one that is missing."""
    site, rows = evaluation.site, []
    for arch in arches:
        run = Run(**asdict(site.run) | {"arch": arch, "lam": lam})
        x = torch.cat([site.store.batch(i, 200, 0) for i in range(20)])
        sae = train(x, arch, lam, 24, batch=200, lr=5e-3, epochs=5.0, resample=(), bar=False)
        sae_files.save(sae, sae_files.weights(run.id))
        rows.append({"id": run.id, **asdict(run), **evaluation.evaluate(sae)[0], "status": "done"})
    return pd.DataFrame([*rows, {**rows[0], "id": "000000000000", "status": "missing"}])


def test_controls_are_written_once_and_compare_as_they_must(evaluation, monkeypatch):
    runs = finished(evaluation)
    df = run_follow_ups.compute_controls(runs, evaluation, "smoke", increases=(0.05,), steps=200)
    baseline, gated = runs["id"][:2]
    assert sorted(df[df["run"] == baseline]["control"]) == [
        "pruned",
        "pruned_rescale_shift",
        "rescale_shift",
    ]
    assert list(df[df["run"] == gated]["control"]) == ["pruned"]
    of = df[df["run"] == baseline].set_index("control")
    assert of["l0"]["rescale_shift"] <= runs["l0"][0] + 1e-9 and of["l0"]["pruned"] < runs["l0"][0]
    assert of["mse"]["rescale_shift"] < 0.8 * runs["mse"][0] < runs["mse"][0] < of["mse"]["pruned"]
    assert of["mse"]["pruned_rescale_shift"] < of["mse"]["pruned"]
    assert runs["gamma"][0] < 0.95 and abs(of["gamma"]["rescale_shift"] - 1) < 0.05
    assert of["loss_recovered"]["rescale_shift"] > runs["loss_recovered"][0]
    assert (
        of["threshold"]["rescale_shift"]
        == 0
        < of["threshold"]["pruned"]
        == of["threshold"]["pruned_rescale_shift"]
    )
    for row in df.itertuples():
        assert metrics.ratios({k: v for k, v in row.sums.items()})["l0"] == pytest.approx(row.l0)
    monkeypatch.setattr(run_follow_ups, "make", None)  # nothing is computed again
    assert (
        run_follow_ups.compute_controls(runs, evaluation, "smoke", increases=(0.05,), steps=200)[
            "id"
        ].tolist()
        == df["id"].tolist()
    )


def test_one_kind_alone(evaluation):
    df = run_follow_ups.compute_controls(
        finished(evaluation, ("baseline",)), evaluation, "smoke", steps=3, only=["rescale_shift"]
    )
    assert list(df["control"]) == ["rescale_shift"] and list(df["steps"]) == [3]


def test_pursuit_beats_the_encoder_and_sees_the_same_tokens(evaluation, monkeypatch):
    runs = finished(evaluation)
    df = run_follow_ups.compute_pursuits(runs, evaluation, "smoke", sizes=(2, 5), tokens=320)
    assert sorted(df["s"]) == [0, 0, 2, 2, 5, 5] and set(df["run"]) == set(runs["id"][:2])
    assert df["eval_tokens"].unique().tolist() == [320 / 8 * 7] and df[
        "ce_tokens"
    ].unique().tolist() == [320 / 8 * 6]
    for _, of in df.groupby("run"):
        by = of.set_index("s")
        assert by["l0"][2] <= 2 and by["l0"][2] < by["l0"][5] <= 5
        assert by["mse"][5] < by["mse"][2] and by["mse"][5] < by["mse"][0]
        assert by["loss_recovered"][5] > by["loss_recovered"][0]
        assert by["ce_clean"].nunique() == 1 and by["ce_zero"].nunique() == 1
    monkeypatch.setattr(Evaluation, "pursue", None)
    again = run_follow_ups.compute_pursuits(runs, evaluation, "smoke", sizes=(2, 5), tokens=320)
    assert again["id"].tolist() == df["id"].tolist()


def test_the_encoder_under_pursuit_is_evaluated_as_the_site_does_it(evaluation):
    runs = finished(evaluation, ("gated",))
    sae = sae_files.load(runs["id"][0])
    wanted, sums, _ = evaluation.evaluate(sae)
    found, _ = evaluation.pursue(sae, (2,))[0]
    for name in ("ce_sae", "loss_recovered", "loss_recovered_mean", "delta_ce"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5), name


def test_missing_weights_and_other_sites_are_explained(evaluation):
    runs = finished(evaluation, ("gated",))
    sae_files.weights(runs["id"][0]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{runs['id'][0]}.*gsae run ito.*train again"):
        run_follow_ups.compute_controls(runs, evaluation, "smoke")
    with pytest.raises(ValueError, match="one site at a time"):
        run_follow_ups.compute_pursuits(runs.assign(layer=3), evaluation, "smoke")
    assert result_files.load_results("controls", "smoke").empty


@pytest.fixture
def recorded(site):
    """Two runs of one stack, trained, evaluated and on record."""
    runs = grid(site.run, lam=[0.1, 0.3])
    runner.train_site(site, [runs], "smoke", False, distributed.ALONE, "own")
    return runs


def test_weights_that_are_gone_are_made_again(site, recorded, monkeypatch):
    files, first = (
        [run_files.find(run.id, "smoke") for run in recorded],
        sae_files.load(recorded[1].id),
    )
    before = [file.read_bytes() for file in files]
    sae_files.weights(recorded[1].id).unlink()
    assert retrain.remake(recorded, Evaluation(site), "smoke") == []
    again = sae_files.load(recorded[1].id)
    assert torch.allclose(again.W_dec, first.W_dec, atol=1e-3)
    assert again.about["again"]["commit"] == provenance.commit() and "again" not in first.about
    assert [file.read_bytes() for file in files] == before and not list(
        (cache_dir() / "checkpoints").glob("*")
    )
    monkeypatch.setattr(retrain, "train", None)  # nothing is gone
    assert retrain.remake(recorded, Evaluation(site), "smoke") == []


def test_weights_that_do_not_agree_with_the_record_are_not_kept(site, recorded, capsys):
    for run in recorded:
        sae_files.weights(run.id).unlink()
    other = WORLD.sample(200, seed=5)[0]
    site.store.batch = lambda step, batch, seed: other  # as if the text were another
    assert retrain.remake(recorded, Evaluation(site), "smoke") == recorded
    assert all(map(retrain.weightless, recorded))
    assert (
        f"run {recorded[1].id}, trained again, is not the one on record" in capsys.readouterr().err
    )


def test_a_whole_experiment_goes_on_without_the_run_that_does_not_agree(
    site, recorded, monkeypatch
):
    monkeypatch.setitem(sweeps.EXPERIMENTS, "same_width", lambda at: recorded)
    monkeypatch.setattr(run_follow_ups, "sites_of", lambda made: [(site, list(made))])
    monkeypatch.setattr(estimate, "check", lambda runs, at, cache, **of: asked.append(list(runs)))
    asked, compare = [], retrain.compare
    for run in recorded:
        sae_files.weights(run.id).unlink()

    def strict(record, again):
        return compare(record, again).assign(passed=record["id"] != recorded[0].id)

    monkeypatch.setattr(retrain, "compare", strict)
    with pytest.raises(provenance.EvidenceError, match=f"^{recorded[0].id}: no weights that agree"):
        run_follow_ups.follow_up("controls", scale="smoke")
    assert asked == [recorded]
    df = result_files.load_results("controls", "smoke")
    assert set(df["run"]) == {recorded[1].id} and df["provenance"][0]["again"]["products"] in (
        "float32",
        "bfloat16",
    )
