"""Which SAEs are compared: matched in L0, with the missing lambda named; latents drawn at random,
blinded, dealt.
"""

import dataclasses
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import study_data

from gsae.cli import main
from gsae.evidence import provenance, run_files
from gsae.evidence.metrics import ratios
from gsae.evidence.run import Run, sources, wider
from gsae.evidence.sums import ACTIVATION_SUMS, CE_SUMS
from gsae.experiments import sweeps
from gsae.interpretability import (
    compared_saes,
    drawing,
    match_l0,
    matched_pairs,
    rating_files,
    score_tables,
)
from gsae.interpretability.compared_saes import SAE, StudyError
from gsae.interpretability.latent_files import DataError, validate

PLACE = ("lm-a", "mlp_out", 8)


def sae(arm, l0, lam=None, cell=PLACE, group=None, lr=None):
    return SAE(f"{arm}-{l0}-{lam}", arm, cell, float(l0), lam, group, lr=lr)


def test_the_made_up_files_are_valid(tmp_path):
    assert validate(study_data.collected("r", dead=2)) == []


# Matching.


def test_the_pair_nearest_to_50_within_ten_percent():
    saes = [
        sae("gated", 30),
        sae("baseline", 31),
        sae("gated", 44),
        sae("baseline", 55),
        sae("gated", 57),
        sae("baseline", 60),
    ]
    found, problems = matched_pairs.match(saes)
    assert [s.l0 for s in found[PLACE]] == [57, 55] and [s.arm for s in found[PLACE]] == [
        "gated",
        "baseline",
    ]
    assert not problems


@pytest.mark.parametrize(
    "baseline,matched", [(54.9, True), (55.1, False), (45.5, True), (45.4, False)]
)
def test_ten_percent_is_ten_percent(baseline, matched):
    found, problems = matched_pairs.match([sae("gated", 50.0), sae("baseline", baseline)])
    assert bool(found) == matched == (not problems)


def test_a_match_far_from_the_target_is_none():
    assert not matched_pairs.match([sae("gated", 90), sae("baseline", 91)])[0]
    assert matched_pairs.match([sae("gated", 90), sae("baseline", 91)], target=100.0)[0]


def test_the_missing_baseline_is_named_with_its_lambda():
    # L0 = 10 / lambda ** 2, so that interpolation in logarithms is exact.
    baseline = [sae("baseline", 10 / lam**2, lam) for lam in (0.2, 0.4, 0.6, 0.8)]
    gated = [sae("gated", 45.0, 0.3), sae("gated", 160.0, 0.1)]
    found, (problem,) = matched_pairs.match([*baseline, *gated])
    assert not found
    assert (
        f"For L0 45.0, train baseline at lambda {math.sqrt(10 / 45):.3g} (interpolated)" in problem
    )
    assert (
        "lm-a mlp_out layer 8" in problem and "gated 45.0" in problem and "baseline 62.5" in problem
    )
    lam = matched_pairs.lam_at(baseline, 45.0)
    assert matched_pairs.match([*baseline, *gated, sae("baseline", 10 / lam**2, lam)])[
        0
    ]  # the advice helps


def test_where_no_gated_run_is_near_both_are_named():
    saes = [
        sae(a, k / lam, lam)
        for a, k in (("gated", 10), ("baseline", 7))
        for lam in (0.07, 0.1, 0.5)
    ]
    _, (problem,) = matched_pairs.match(saes)
    assert (
        "For L0 50.0, train gated at lambda 0.2 (interpolated) and baseline at lambda 0.14 (interp"
        in problem
    )


def test_nothing_is_extrapolated():
    _, (problem,) = matched_pairs.match(
        [sae("gated", 50, 0.1), sae("baseline", 20, 0.4), sae("baseline", 30, 0.2)]
    )
    assert "train baseline (outside of the lambdas trained, 0.2 to 0.4)" in problem
    _, (problem,) = matched_pairs.match([sae("gated", 50, 0.1)])
    assert "no baseline at all" in problem and "no lambda is on record" in problem


class World:
    """A made-up world to train in: L0 falls with lambda along curves that no straight line in
    logarithms fits.
    """

    curves = {
        "gated": lambda lam: 2 / lam**1.5,
        "baseline": lambda lam: 400 * math.exp(-18 * lam**0.8),
    }

    def __init__(self, lams, arms=matched_pairs.ARMS, **curves):
        self.curves, self.asked, self.told = self.curves | curves, [], []
        self.saes = [sae(arm, self.curves[arm](lam), lam) for arm in arms for lam in lams]

    def train(self, steps):
        self.asked.append([(s.like.arm, s.like.cell) for s in steps])
        self.saes += [replace(s.like, l0=self.curves[s.like.arm](s.lam), lam=s.lam) for s in steps]

    def complete(self, **options):
        return match_l0.complete(lambda: self.saes, self.train, tell=self.told.append, **options)

    def arms(self):
        return [arm for asked in self.asked for arm, _ in asked]


def test_the_missing_arm_alone_is_trained_until_it_matches():
    world, other = (
        World((0.02, 0.116, 0.4)),
        ("lm-a", "attn_z", 8),
    )  # gated at L0 50.6; the baseline has to be found
    world.saes += [sae("gated", 50, 0.3, other), sae("baseline", 52, 0.2, other)]
    found, problems = world.complete()
    assert not problems and set(found) == {PLACE, other}
    gated, baseline = found[PLACE]
    assert gated.lam == 0.116 and max(gated.l0, baseline.l0) <= 1.1 * min(gated.l0, baseline.l0)
    assert 2 <= len(world.asked) <= match_l0.ATTEMPTS and set(sum(world.asked, [])) == {
        ("baseline", PLACE)
    }
    assert f"baseline at lambda {baseline.lam:g} has L0 {baseline.l0:.1f}" in world.told[-1]
    before = len(world.asked)
    assert world.complete()[0] == found and len(world.asked) == before  # nothing twice


def test_where_no_gated_run_is_near_it_is_trained_before_the_baseline():
    world = World((0.04, 0.2))
    found, problems = world.complete()
    arms = world.arms()
    assert (
        not problems and arms == sorted(arms, reverse=True) and set(arms) == {"gated", "baseline"}
    )
    assert len(world.asked[0]) == 1  # the baseline's lambda follows from the L0 that comes out


def test_places_are_trained_together():
    world = World((0.04, 0.2))
    world.saes += [replace(s, cell=("lm-a", "attn_z", 8)) for s in world.saes]
    found, problems = world.complete()
    assert len(found) == 2 and all(len(asked) == 2 for asked in world.asked)


def test_partners_of_the_nearest_gated_run_lie_in_the_window_too():
    edge = World(
        (0.04, 0.2), gated=lambda lam: 74 if lam == 0.1 else 2 / lam**1.5
    )  # its partner may have L0 80
    edge.saes.append(sae("gated", 74, 0.1))
    found, problems = edge.complete()
    assert not problems and found[PLACE][0].l0 != 74 and edge.asked[0] == [("gated", PLACE)]


@pytest.mark.parametrize(
    "outcome,why,times",
    [(lambda lam: (90 if lam < 0.1 else 20) - lam, "baseline was trained 4 times", 4),
     (lambda lam: 90.0, "is on record with L0 90.0, not 50.6", 2)],
)  # fmt: skip
def test_training_ends_where_lambda_does_not_help(outcome, why, times):
    world = World((0.116,), arms=["gated"], baseline=outcome)
    world.saes += [sae("baseline", 90.5, 0.02), sae("baseline", 19, 0.4)]
    found, (problem,) = world.complete()
    assert not found and "no gated and baseline SAE within 10%" in problem and why in problem
    assert world.arms() == ["baseline"] * times


def test_a_lambda_on_record_is_not_trained_again():
    # 51 lies between 20 and 90 at the same lambda.
    world = World((0.116,), arms=["gated"])
    world.saes += [sae("baseline", l0, 0.2) for l0 in (90, 20)]
    _, (problem,) = world.complete()
    assert (
        "baseline at lambda 0.2 is on record with L0 90.0, not 50.6" in problem and not world.asked
    )


def test_training_that_leaves_nothing_on_record_is_an_error():
    world = World((0.02, 0.116, 0.4))
    with pytest.raises(
        StudyError, match="baseline at lambda .* not on record after training: is GSAE_TRAIN"
    ):
        match_l0.complete(lambda: world.saes, lambda steps: None, tell=world.told.append)


def test_a_grid_is_left_by_a_little_only():
    near, far = ([sae("baseline", 30, 0.1), sae("baseline", 15, b)] for b in (0.2, 0.9))
    assert math.isnan(matched_pairs.lam_at(near, 60.0))  # unless asked for
    assert matched_pairs.lam_at(near, 60.0, 2.5) == pytest.approx(0.05) and matched_pairs.lam_at(
        near, 7.5, 2.5
    ) == pytest.approx(0.4)
    assert math.isnan(matched_pairs.lam_at(far, 60.0, 2.5)) and math.isnan(
        matched_pairs.lam_at(near[:1], 60.0, 2.5)
    )
    world = World((), gated=None)
    world.saes = [sae("gated", 60, 0.1), *far]
    (problem,) = world.complete()[1]
    assert (
        not world.asked
        and "no lambda for L0 60.0 can be told" in problem
        and "0.1 to 0.9" in problem
    )


def test_nothing_is_extrapolated_along_noise():
    noisy = [sae("baseline", l0, lam) for l0, lam in ((30, 0.1), (32, 0.105), (16, 0.21))]
    assert matched_pairs.lam_at(noisy, 64.0, 2.5) == 0.0525  # by the first and the last of them
    assert math.isnan(matched_pairs.lam_at(noisy[:2], 64.0, 2.5)) and math.isnan(
        matched_pairs.lam_at(noisy[:2], 28.0, 2.5)
    )
    assert math.isnan(
        matched_pairs.lam_at([sae("baseline", 30, 0.1), sae("baseline", 30, 0.11)], 40.0, 2.5)
    )


def test_lambda_follows_from_the_learning_rate_of_most_runs():
    world = World((0.02, 0.116, 0.4))
    world.saes = [replace(s, lr=1e-3) for s in world.saes]
    gated = next(s.l0 for s in world.saes if (s.arm, s.lam) == ("gated", 0.116))
    # Of a sweep of rates: at lambda 0.1 others have the L0 that the baseline is to have, and more.
    world.saes = [
        sae("baseline", l0, 0.1, lr=lr) for l0, lr in ((gated, 3e-4), (gated + 2, 7.5e-4))
    ] + world.saes
    world.saes += [sae("gated", 50, 0.116, lr=3e-4)]
    found, problems = world.complete()
    assert not problems and {s.lr for s in found[PLACE]} == {1e-3} and "baseline" in world.arms()
    assert {s.lr for s in world.saes if s.lam not in (0.02, 0.1, 0.116, 0.4)} == {1e-3}


def test_what_a_place_lacks_is_sought_where_both_arms_are():
    alone = [sae("gated", 40 + 5 * i, 0.1 + i / 100, group="seed 0") for i in range(6)]
    world = World((0.02, 0.116, 0.4))
    world.saes = alone + [replace(s, group="seed 1") for s in world.saes[:6]]
    assert [g[0].group for g in matched_pairs.places(world.saes)[PLACE]] == ["seed 1", "seed 0"]
    found, problems = world.complete()
    assert not problems and {s.group for s in found[PLACE]} == {"seed 1"}


def test_seeds_and_settings_are_not_mixed():
    saes = [sae("gated", 50, group="seed 0"), sae("baseline", 50, group="seed 1")]
    assert not matched_pairs.match(saes)[0]
    assert matched_pairs.match([*saes, sae("baseline", 52, group="seed 0")])[0][PLACE][1].l0 == 52
    large = [sae(arm, l0, group="seed 2") for arm in matched_pairs.ARMS for l0 in (90, 92, 94)]
    assert (
        matched_pairs.match([*large, *saes, sae("baseline", 52, group="seed 0")])[0][PLACE][1].l0
        == 52
    )


def test_an_sae_that_is_never_on_is_none():
    _, (problem,) = matched_pairs.match([sae("gated", 0, 0.5), sae("baseline", 50, 0.1)])
    assert "no gated at all" in problem


def test_three_arms():
    saes = [
        sae("gated", 52),
        sae("topk", 50),
        sae("topk", 47),
        sae("baseline", 48),
        sae("baseline", 55),
    ]
    found, _ = matched_pairs.match(saes, ["gated", "topk", "baseline"])
    assert [s.arm for s in found[PLACE]] == ["gated", "topk", "baseline"]
    l0 = [s.l0 for s in found[PLACE]]
    assert max(l0) / min(l0) <= 1.1


def test_of_three_arms_all_are_brought_within_the_tolerance():
    # Two lie within 10 % of the first one, but not of each other.
    world = World((0.116,), arms=["gated"], topk=lambda lam: 3 / lam)
    world.saes += [sae("topk", 3 / lam, lam) for lam in (0.02, 0.055, 0.4)]
    world.saes += [sae("baseline", world.curves["baseline"](lam), lam) for lam in (0.02, 0.07, 0.4)]
    first, topk, baseline = (
        next(s.l0 for s in world.saes if s.lam == lam) for lam in (0.116, 0.055, 0.07)
    )
    assert 1.05 < topk / first < 1.1 and 1.05 < first / baseline < 1.1
    found, problems = world.complete(arms=("gated", "topk", "baseline"))
    l0 = [s.l0 for s in found[PLACE]]
    assert not problems and max(l0) / min(l0) <= 1.1


def recorded(run, l0, at="smoke", under="pilot"):
    sums = {k: np.ones(128) for k in (*ACTIVATION_SUMS, *CE_SUMS)} | {"l0": np.full(128, l0)}
    sums |= {"ce_zero": np.full(128, 3.0), "ce_mean": np.full(128, 3.0)}
    run_files.write(
        {
            "schema": 1,
            "recipe": 1,
            "id": run.id,
            "experiment": under,
            "scale": at,
            "run": dataclasses.asdict(run),
            "metrics": ratios(sums) | {"dead_fraction": 0.0},
            "sums": {k: v.tolist() for k, v in sums.items()},
            "curve": {"columns": [], "rows": []},
            "density": {"edges": [-1.0, 0.0], "counts": [1], "dead": 0},
            "provenance": provenance.provenance("cpu", 1.0, *sources(run.lm, run.context)),
        },
        force=True,
    )


@pytest.fixture
def own_record(tmp_path, monkeypatch):
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path / "record"))


def test_runs_on_record_are_matched_without_ablations(own_record, capsys):
    gated = Run(lam=0.1, M=2304)
    baseline = wider(replace(gated, lam=0.2))
    recorded(replace(gated, freeze="none"), 50)  # an ablation
    recorded(replace(gated, seed=1), 50)
    recorded(replace(baseline, M=2304), 50)  # as wide as the gated SAE
    recorded(replace(baseline, lr=3e-4), 49)  # each architecture has its own learning rate
    assert (
        main(["study", "pairs", "--scale", "smoke"]) == 1
        and "no gated and baseline" in capsys.readouterr().out
    )
    recorded(gated, 51)
    assert main(["study", "pairs", "--scale", "smoke"]) == 0
    told = capsys.readouterr().out
    assert gated.id in told and "baseline" in told and "L0 49.0" in told
    (chosen,) = matched_pairs.match(compared_saes.recorded("smoke"))[0].values()
    assert [s.run for s in chosen] == [gated.id, replace(baseline, lr=3e-4).id]


@pytest.mark.parametrize("force", [False, True])
def test_the_missing_run_is_trained_by_gsae_run(own_record, capsys, monkeypatch, force):
    gated, command = (
        Run(lam=0.1),
        ["study", "pairs", "--scale", "cpu", "--experiment", "few", "--train"],
    )
    grid = [replace(wider(gated), lam=lam) for lam in (0.05, 0.3)]
    for run, l0 in ((gated, 51), (grid[0], 160), (grid[1], 14)):
        recorded(run, l0, "cpu")
    recorded(replace(gated, layer=20, lam=0.3), 10, "cpu")  # another place, of another experiment
    recorded(replace(gated, seed=1), 50, "cpu")
    asked = []

    def train(runs, scale, **options):
        asked.extend(runs)
        assert scale == "cpu" and options == {"force": force, "home": "study"}
        for run in runs:
            recorded(run, 53, "cpu")

    monkeypatch.setattr("gsae.experiments.runner.run", train)
    monkeypatch.setitem(sweeps.EXPERIMENTS, "few", lambda scale: [gated, *grid])
    assert main(command + ["--force"] * force) == 0
    (run,) = asked
    assert run == replace(grid[0], lam=run.lam) and 0.1 < run.lam < 0.15
    told = capsys.readouterr()
    assert run.id in told.out and f'    ("mlp_out", 8): (0.1, {run.lam:g}),' in told.out
    assert (
        f"baseline at lambda {run.lam:g}, for L0 51.0: training" in told.err
        and "has L0 53.0" in told.err
    )
    # What was found is in no experiment, and counts all the same.
    assert main(command) == 0 and len(asked) == 1 and "STUDY_LAMBDAS" in capsys.readouterr().out
    assert (
        main([*command, "--arms", *matched_pairs.ARMS[::-1]]) == 0
        and "STUDY_LAMBDAS" not in capsys.readouterr().out
    )
    # Lambdas of other tokens are not the study's.
    for run in (gated, asked[0]):
        recorded(replace(run, tokens=9_999, layer=8, site="attn_z"), 50, "cpu")
    assert (
        main([*command[:4], "--train"]) == 1
        and "attn_z" not in capsys.readouterr().out.split("STUDY_LAMBDAS")[1]
    )


def test_pairs_trained_at_any_scale_are_compared_and_collected(own_record):
    found = Run(lm="gelu-1l", site="mlp_out", lam=0.123)  # in no experiment
    assert found not in sweeps.runs("study", "gpu")
    for run, under in (
        (found, "study"),
        (wider(found), "study"),
        (replace(found, layer=1), "own"),
    ):
        recorded(run, 50, "gpu", under)
    places, problems = score_tables.compared("gpu")
    assert [(s.arm, s.run) for s in places.pop(("gelu-1l", "mlp_out", found.layer))][0] == (
        "gated",
        found.id,
    )
    assert not places and not problems


def test_a_named_place_without_any_run_is_told(own_record, capsys, monkeypatch):
    gated = Run(lam=0.1)
    pair = [gated, wider(gated)]
    monkeypatch.setitem(sweeps.EXPERIMENTS, "few", lambda scale: [*pair, replace(gated, layer=20)])
    for run in pair:
        recorded(run, 50)
    assert (
        main(["study", "pairs", "--scale", "smoke"]) == 0
        and "layer 20" not in capsys.readouterr().out
    )
    assert main(["study", "pairs", "--scale", "smoke", "--experiment", "few"]) == 1
    assert (
        "smollm2 mlp_out layer 20: no run of few is on record at smoke" in capsys.readouterr().out
    )


def test_a_damaged_run_file_is_named(own_record, capsys):
    recorded(run := Run(), 50)
    run_files.find(run.id, "smoke").write_text("")
    assert (
        main(["study", "pairs", "--scale", "smoke"]) == 1
        and f"{run.id}.json" in capsys.readouterr().err
    )


@pytest.mark.parametrize("option", ["--l0", "--tolerance"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_l0_and_tolerance_are_positive(option, value, capsys):
    with pytest.raises(SystemExit):
        main(["study", "pairs", option, value])
    assert f"{option}: {value} is not above 0" in capsys.readouterr().err


def test_collected_files_take_arm_and_l0_from_the_record(own_record, tmp_path):
    run = Run(lam=0.1)
    recorded(run, 51)
    path = study_data.write(tmp_path, run=run.id, arm=None, l0=None, site=run.site, lm=run.lm)
    (found,) = compared_saes.collected([path], compared_saes.recorded("smoke"))
    assert (found.arm, found.l0, found.lam, found.cell) == (
        "gated",
        51,
        0.1,
        ("smollm2", "mlp_out", 8),
    )
    study_data.write(tmp_path, run="own", arm="baseline", l0=52, site=run.site, lm=run.lm)
    assert (
        main(["study", "make", str(tmp_path), "--out", str(tmp_path / "out"), "--pairs", "2"]) == 0
    )
    with pytest.raises(StudyError, match=f"{path.name}.*does not say arm.*not on record"):
        compared_saes.collected([path])


def test_wrong_files_and_folders_are_named(tmp_path):
    with pytest.raises(StudyError, match="has no file of collected latents"):
        compared_saes.collected([tmp_path])
    (tmp_path / "cut.json").write_text('{"latents": [')
    with pytest.raises(DataError, match="cut.json"):
        compared_saes.collected([tmp_path])


# Drawing.


@pytest.fixture
def cells(tmp_path):
    return matched_pairs.match(compared_saes.collected(study_data.small(tmp_path, latents=24)))[0]


def test_every_pair_has_one_latent_of_each_arm_from_one_place(cells):
    key, data = drawing.draw(cells, pairs=5)
    by_pair = {}
    for item in key["items"].values():
        by_pair.setdefault(item["pair"], []).append(item)
    assert len(by_pair) == 10 and set(data) == set(key["items"])
    for rows in by_pair.values():
        assert {r["arm"] for r in rows} == {"gated", "baseline"}
        assert len({(r["lm"], r["site"], r["layer"], r["replicate"], r["slot"]) for r in rows}) == 1
    for name, item in key["items"].items():
        assert data[name]["latent"] == item["latent"]
    drawn = [(i["run"], i["latent"]) for i in key["items"].values()]
    assert len(set(drawn)) == len(drawn)  # without replacement


def test_the_same_seed_draws_the_same_study_and_another_another(cells):
    assert drawing.draw(cells, 5, seed=3) == drawing.draw(cells, 5, seed=3)
    one, two = drawing.draw(cells, 5, seed=3)[0], drawing.draw(cells, 5, seed=4)[0]
    assert one["study"] != two["study"] and not set(one["items"]) & set(two["items"])


def test_latents_are_drawn_evenly_and_dead_ones_never(tmp_path):
    for arm in matched_pairs.ARMS:
        study_data.write(tmp_path, run=arm, arm=arm, latents=12, dead=4)
    cells, _ = matched_pairs.match(compared_saes.collected([tmp_path]))
    counts = Counter()
    for seed in range(300):
        counts.update(
            v["latent"]
            for v in drawing.draw(cells, 2, seed=seed)[0]["items"].values()
            if v["arm"] == "gated"
        )
    assert set(counts) == {17 * i + 3 for i in range(4, 12)}
    assert all(45 < n < 110 for n in counts.values())  # 75 expected
    with pytest.raises(StudyError, match="8 latents that are ever on, 9 are asked for"):
        drawing.draw(cells, 9)


def test_names_and_order_tell_nothing_of_the_arm(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one = matched_pairs.match(compared_saes.collected(study_data.small(tmp_path / "a")))[0]
    two = matched_pairs.match(
        compared_saes.collected(study_data.small(tmp_path / "b", arms=("baseline", "gated")))
    )[0]
    keys = [drawing.draw(c, 4)[0] for c in (one, two)]
    # With the arms exchanged, the page has the same names in the same order.
    assert keys[0]["pages"] == keys[1]["pages"]
    assert all(len(name) == 10 and int(name, 16) >= 0 for name in keys[0]["items"])


def test_an_arms_share_does_not_depend_on_the_place_on_the_page(cells):
    first, neighbours = [], []
    for seed in range(200):
        key, _ = drawing.draw(cells, 3, seed=seed)
        row = [key["items"][i] for i in key["pages"][0]["items"]]
        first.append([r["arm"] == "gated" for r in row])
        neighbours += [a["pair"] == b["pair"] for a, b in zip(row, row[1:], strict=False)]
    assert np.abs(np.mean(first, 0) - 0.5).max() < 0.12
    assert np.mean(neighbours) == pytest.approx(1 / 11, abs=0.03)


def test_pages_have_latents_of_their_own_and_shared_ones(cells):
    key, _ = drawing.draw(cells, pairs=3, pages=4, shared=2)
    sets = [set(p["items"]) for p in key["pages"]]
    assert [len(s) for s in sets] == [2 * 2 * 5] * 4  # places, arms, pairs
    everywhere = set.intersection(*sets)
    assert len(everywhere) == 2 * 2 * 2
    assert all(sets[i] & sets[j] == everywhere for i in range(4) for j in range(i))
    assert {key["items"][i]["page"] for i in everywhere} == {0}
    for number, own in enumerate(sets, 1):
        rows = [key["items"][i] for i in own]
        assert {r["page"] for r in rows} == {0, number}
        assert {r["slot"] for r in rows} == set(range(5))
        for place in {r["site"] for r in rows}:  # each slot of a place once in each arm
            assert sorted((r["slot"], r["arm"]) for r in rows if r["site"] == place) == sorted(
                (s, a) for s in range(5) for a in matched_pairs.ARMS
            )
    orders = [[i for i in p["items"] if i in everywhere] for p in key["pages"]]
    assert len({tuple(o) for o in orders}) > 1


# The command.


def test_make_writes_pages_and_a_key_that_score_reads(own_record, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    study_data.small(data)
    study_data.write(data, run="alone", arm="gated", site="mlp_out")
    (data / "scores.json").write_text(
        json.dumps({"other": 1})
    )  # other files of the folder are left alone
    assert (
        main(
            [
                "study",
                "make",
                str(data),
                "--out",
                str(out),
                "--pairs",
                "3",
                "--pages",
                "2",
                "--shared",
                "1",
            ]
        )
        == 0
    )
    told = capsys.readouterr()
    assert "left out: lm-a mlp_out layer 8: no gated and baseline SAE" in told.err
    assert "14 pairs" in told.out and "16 latents a page" in told.out and "80 % power" in told.out
    key = rating_files.read_key(out / "key.json")
    assert sorted(p.name for p in out.iterdir()) == ["key.json", "rate-1.html", "rate-2.html"]
    assert len(key["items"]) == 28 and key["reference"] == "baseline"


def test_the_key_of_another_study_is_not_replaced(own_record, tmp_path, capsys):
    study_data.small(tmp_path)
    command = ["study", "make", str(tmp_path), "--out", str(tmp_path / "out"), "--pairs", "2"]
    assert main(command) == 0 and main(command) == 0
    before = (tmp_path / "out" / "key.json").read_bytes()
    assert main([*command, "--seed", "1"]) == 1
    assert (
        "is the key of study" in capsys.readouterr().err
        and (tmp_path / "out" / "key.json").read_bytes() == before
    )
    assert main([*command, "--seed", "1", "--force"]) == 0


def test_make_without_a_matched_place_is_an_error(own_record, tmp_path, capsys):
    study_data.write(tmp_path, run="alone", arm="gated")
    assert main(["study", "make", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert (
        "no place has collected latents" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )
    assert main(["study", "make", str(tmp_path), "--pairs", "0"]) == 1
    assert "at least one page" in capsys.readouterr().err
