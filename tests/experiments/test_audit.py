"""The audit: which runs it picks, that it trains them anew and touches nothing, and which wrong
numbers it catches.
"""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_safety import BASE, LAMS, tiny_world

from gsae import cli
from gsae.evidence import metrics, provenance, run_files
from gsae.evidence.run import RECIPES, Run, grid, wider
from gsae.experiments import audit, retrain, runner, site
from gsae.training.schedule import Plan

RUNS = grid(replace(BASE, resample=()), lam=LAMS) + [
    wider(replace(BASE, resample=()))
]  # three in a stack, one alone
PAGE = Path(__file__).parents[2] / "book/how_to_run.md"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A cache and the evidence of four small runs of a random language model."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        tiny_world(patch.setattr)
        patch.setenv("GSAE_CACHE", str(folder / "cache"))
        patch.setenv("GSAE_EVIDENCE", str(folder / "evidence"))
        runner.run(RUNS, "smoke")
    return folder


@pytest.fixture
def world(finished, tmp_path, monkeypatch):
    tiny_world(monkeypatch.setattr)
    for name in ("cache", "evidence"):
        shutil.copytree(finished / name, tmp_path / name)
        monkeypatch.setenv(f"GSAE_{name.upper()}", str(tmp_path / name))
    return tmp_path


def contents(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".lock"
    }


def gsae(*words):
    return cli.main(["audit", "--scale", "smoke", *words])


def forge(run: Run, /, **changes):
    """Edit a run's file as its whole record: fields of it, or sums by a factor, with the metrics
    that follow.
    """
    file = run_files.find(run.id, "smoke")
    record = json.loads(file.read_text())
    for name, change in changes.items():
        if name in record["sums"]:
            record["sums"][name] = (np.array(record["sums"][name]) * change).tolist()
        else:
            record[name] |= change
    record["metrics"] |= metrics.ratios(
        {k: np.array(v) for k, v in record["sums"].items()}
    ) | changes.get("metrics", {})
    record["id"] = Run.of(record["run"]).id
    file.unlink()
    file.with_name(f"{record['id']}.json").write_text(json.dumps(record))
    return record


def test_runs_trained_anew_agree_and_nothing_is_touched(world, capsys):
    shutil.rmtree(world / "cache/saes")  # kept weights are of no use to an audit
    before = contents(world)
    assert gsae("--runs", "4") == 0
    assert contents(world) == before
    out, err = capsys.readouterr()
    assert (
        all(out.count(r.id) == 1 + len(retrain.TOLERANCES) for r in RUNS)
        and "4 of 4 runs agree" in out
    )
    assert "FAIL" not in out and out.count("pass") == 4 * len(retrain.TOLERANCES)
    record = run_files.read(run_files.find(RUNS[0].id, "smoke"))
    assert record["provenance"]["commit"][:7] in out and provenance.commit()[:7] in out
    assert "estimate for 4 runs" in err and "activations: those in" in err


def test_activations_are_harvested_where_there_are_none(world, capsys):
    evidence_before = contents(world / "evidence")
    shutil.rmtree(world / "cache/activations")
    assert gsae(RUNS[0].id) == 0
    assert (
        "harvested anew" in capsys.readouterr().err
        and contents(world / "evidence") == evidence_before
    )


def test_a_number_wrong_by_five_percent_is_caught(world, capsys):
    forge(RUNS[1], l0=1.05)
    assert gsae("--runs", "4") == 1
    out, err = capsys.readouterr()
    assert f"run {RUNS[1].id} differs from its record by more than is allowed: l0\n" in err
    assert "3 of 4 runs agree" in out and out.count("FAIL") == 1


def test_code_that_moves_the_numbers_is_caught(world, monkeypatch, capsys):
    rate = Plan.lr_at
    monkeypatch.setattr(Plan, "lr_at", lambda self, step: 0.5 * rate(self, step))
    assert gsae(RUNS[0].id) == 1
    assert "fvu" in capsys.readouterr().err


CASES = {
    "l0": ({"l0": 0.95}, {"l0"}),
    "error": ({"error": 1.05}, {"fvu", "mse"}),
    "shrinkage": ({"x_hat_sq": 0.95}, {"gamma"}),
    "cost": ({"ce_sae": 1.05}, {"ce_sae", "delta_ce", "loss_recovered", "loss_recovered_mean"}),
    "clean": ({"ce_clean": 1.001}, {"ce_clean"}),
    "zero": ({"ce_zero": 1.001}, {"ce_zero"}),
    "dead": ({"metrics": {"dead_fraction": 0.9}}, {"dead_fraction"}),
    "tokens": ({"tokens": 1.01}, {"eval_tokens"}),
}


@pytest.mark.parametrize("changes,caught", CASES.values(), ids=CASES)
def test_each_kind_of_wrong_number_is_caught(world, changes, caught):
    honest = run_files.read(run_files.find(RUNS[0].id, "smoke"))
    assert retrain.compare(honest, honest["metrics"])["passed"].all()
    table = retrain.compare(forge(RUNS[0], **changes), honest["metrics"])
    assert caught <= set(table["metric"][~table["passed"]])


def test_what_is_missing_or_nan_does_not_pass(world):
    record = run_files.read(run_files.find(RUNS[0].id, "smoke"))
    for again in (
        {k: v for k, v in record["metrics"].items() if k != "l0"},
        record["metrics"] | {"l0": float("nan")},
    ):
        table = retrain.compare(record, again)
        assert list(table["metric"][~table["passed"]]) == ["l0"]


@pytest.mark.parametrize("name,old,new,passes", [
    ("gamma_centred", -71.9, 37.7, False), ("gamma_centred", -71.9, -60.0, True), ("gamma_centred", 1.0, 1.009, True),
    ("gamma_centred", 1.0, 1.012, False), ("gamma_centred", 1.0, 0.0, False),
    ("gamma", 1.0, 1.009, True), ("gamma", 1.0, 1.012, False), ("gamma", 1.6, 1.612, False), ("gamma", 1.0, 0.0, False),
])  # fmt: skip
def test_a_gamma_about_the_mean_is_compared_by_the_factor_that_fits_best(
    world, name, old, new, passes
):
    record = run_files.read(run_files.find(RUNS[0].id, "smoke"))
    found = retrain.compare(
        record | {"metrics": record["metrics"] | {name: old}}, record["metrics"] | {name: new}
    )
    row = found[found["metric"] == name].iloc[0]
    assert bool(row["passed"]) is passes and (row["recorded"], row["again"]) == (old, new)


def test_every_recorded_metric_has_a_tolerance_and_the_page_states_it(world):
    assert set(retrain.TOLERANCES) == set(
        run_files.read(run_files.find(RUNS[0].id, "smoke"))["metrics"]
    )
    stated = {}
    for names, share, amount in re.findall(
        r"^\| (`.+`) \| ([\d.]+) % \| ([\d.]+) \|", PAGE.read_text(), re.M
    ):
        stated |= {
            name: (float(share) / 100, float(amount)) for name in re.findall(r"`(\w+)`", names)
        }
    assert set(stated) == set(retrain.TOLERANCES)
    assert all(
        stated[name] == pytest.approx(allowed) for name, allowed in retrain.TOLERANCES.items()
    )


def test_an_edited_file_stops_the_audit(world, capsys):
    file = run_files.find(RUNS[0].id, "smoke")
    record = json.loads(file.read_text())
    record["metrics"]["l0"] *= 1.05
    file.write_text(json.dumps(record))
    assert gsae(RUNS[0].id) == 1
    assert re.search(rf"{file.name}.*its l0 is .*Restore it with git", capsys.readouterr().err)


def test_the_seed_makes_the_choice():
    ids = [r.id for r in grid(Run(), lam=[0.1 * i for i in range(1, 12)])]
    picked = audit.choose(ids, 3, "7c48cb4")
    assert (
        picked == audit.choose(reversed(ids), 3, "7c48cb4")
        and len(set(picked)) == 3
        and set(picked) <= set(ids)
    )
    assert audit.choose(ids, 3, 0) == audit.choose(ids, 3, "0")
    assert len({tuple(audit.choose(ids, 3, seed)) for seed in range(20)}) > 10
    assert {i for seed in range(40) for i in audit.choose(ids, 3, seed)} == set(ids)
    assert sorted(audit.choose(ids, 99, 0)) == sorted(ids)
    with pytest.raises(ValueError, match="one at least"):
        audit.choose(ids, 0, 0)


def test_only_runs_that_can_be_made_again_are_picked(world, monkeypatch, capsys):
    forge(RUNS[0], provenance={"ranks": 2})
    forge(RUNS[1], run={"text": "owner/name"})
    assert set(audit.records("smoke")) == {RUNS[2].id, RUNS[3].id}
    assert "2 runs on record at scale smoke can be audited" in (out := capsys.readouterr().out)
    assert "skipped: 1 of several processes" in out and "1 of text from the hub" in out
    file = run_files.find(RUNS[2].id, "smoke")
    monkeypatch.setitem(RECIPES, "gated", 2)
    assert (
        set(audit.records("smoke")) == {RUNS[3].id}
        and "3 of an older recipe" in capsys.readouterr().out
    )
    assert file.exists() and cli.main(["audit", "--scale", "smoke", file.stem]) == 1
    assert (
        "0 runs on record at scale smoke can be audited; skipped: 1 of an older recipe"
        in capsys.readouterr().err
    )


def test_a_run_of_another_text_is_not_picked(world):
    record = run_files.read(run_files.find(RUNS[0].id, "smoke"))
    assert retrain.obstacle(record) == ""
    record["id"] = RUNS[0].id_at(1, {"train-7": "another"}, record["provenance"]["lm"])
    assert retrain.obstacle(record) == "of another text or language model"


def test_experiments_ids_and_length_restrict_the_choice(world, capsys):
    assert set(audit.records("smoke", [RUNS[0].id, RUNS[3].id])) == {RUNS[0].id, RUNS[3].id}
    assert set(audit.records("smoke", ["own"])) == {r.id for r in RUNS}
    assert set(audit.records("smoke", lm=BASE.lm)) == {r.id for r in RUNS}
    assert (
        gsae("--lm", "gpt2") == 1
        and "no run of the language model gpt2 is on record" in capsys.readouterr().err
    )
    forge(RUNS[0], run={"tokens": 300})
    assert set(audit.records("smoke", max_tokens=280)) == {r.id for r in RUNS[1:]}
    assert gsae("neurons") == 1
    assert (
        "neurons: no such run or experiment is on record at scale smoke" in capsys.readouterr().err
    )


def test_ctrl_c_shows_what_was_compared_and_leaves_nothing(world, monkeypatch, capsys):
    source, first, second = site.Site.batches, *audit.choose((r.id for r in RUNS), 2, 3)

    def press(self, run):
        def read(step):
            if run.id == second and step == 20:
                os.kill(os.getpid(), signal.SIGINT)
            return source(self, run)(step)

        return read

    monkeypatch.setattr(site.Site, "batches", press)
    before = contents(world)
    assert gsae("--runs", "2", "--seed", "3") == 130
    out, err = capsys.readouterr()
    assert out.count(first) == 1 + len(retrain.TOLERANCES) and out.count(second) == 1
    assert re.search(r"stopped after \d+ of 27 steps: nothing is kept; no record was touched", err)
    assert contents(world) == before
