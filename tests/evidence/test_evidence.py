"""Run files: written whole, refused when dirty, caught when edited; experiments as data;
figures.
"""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest

from gsae.evidence import arms, intervals, provenance, run_files
from gsae.evidence import metrics as stats
from gsae.evidence import run as run_module
from gsae.evidence import sums as metrics
from gsae.evidence.run import Run, grid
from gsae.experiments import follow_ups, records, sweeps, tables
from gsae.figures import arms as arm_figures
from gsae.figures import base, sites


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path))


def record(run=None, scale="smoke", dirty=False, l0=5.0):
    run = run or sweeps.runs("pilot", scale)[0]
    sums = {k: (np.arange(128) % 7 + 1.0) for k in (*metrics.ACTIVATION_SUMS, *metrics.CE_SUMS)}
    sums |= {
        "l0": sums["tokens"] * l0,
        "ce_zero": 3 * sums["ce_tokens"],
        "ce_mean": 3 * sums["ce_tokens"],
    }
    columns = [
        "step",
        "tokens",
        "lam",
        "lr",
        "reconstruction",
        "sparsity",
        "auxiliary",
        "l0",
        "dead",
    ]
    return {
        "schema": 1,
        "recipe": 1,
        "id": run.id,
        "experiment": "pilot",
        "scale": scale,
        "run": dataclasses.asdict(run),
        "metrics": stats.ratios(sums) | {"dead_fraction": 0.0},
        "sums": {k: v.tolist() for k, v in sums.items()},
        "curve": {
            "columns": columns,
            "rows": [[i, i * 10, 0.1, 1e-3, 0.5, 0.1, 0.2, 9, 0.0] for i in range(1, 4)],
        },
        "density": {"edges": [-2.0, -1.0, 0.0], "counts": [3, 4], "dead": 1},
        "provenance": provenance.provenance("cpu", 1.0, *run_module.sources(run.lm, run.context))
        | {"dirty": dirty},
    }


def test_round_trip_and_missing_rows():
    run_files.write(record())
    df = records.load("pilot", "smoke")
    assert list(df["status"]) == ["done", "missing", "missing", "missing"]
    assert df["l0"][0] == pytest.approx(5.0) and len(df["curve"][0]) == 3


def test_results_of_a_changed_tree_are_refused():
    with pytest.raises(provenance.EvidenceError, match="uncommitted"):
        run_files.write(record(scale="cpu", dirty=True))
    assert run_files.write(record(scale="cpu", dirty=True), force=True).exists()


@pytest.mark.parametrize(
    "origin,known", [({"vcs_info": {"commit_id": "abc123"}}, "abc123"), ({}, "")]
)
def test_an_installation_without_a_repository_names_the_commit_that_pip_installed(
    tmp_path, monkeypatch, origin, known
):
    monkeypatch.delenv("GSAE_EVIDENCE")
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path / "drive"))
    for module in (provenance, run_files):  # as on Colab: site-packages
        monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    monkeypatch.setattr(
        provenance,
        "distribution",
        lambda name: SimpleNamespace(read_text=lambda f: json.dumps(origin)),
    )
    assert provenance.commit() == known and provenance.dirty() == (not known)
    assert run_files.root("gpu") == (tmp_path / "drive" / "evidence" / "gpu").resolve()


@pytest.mark.parametrize("edit", ["field", "metric", "nan", "cut"])
def test_an_edited_file_is_caught(edit):
    path = run_files.write(record())
    data = json.loads(path.read_text())
    if edit == "field":
        data["run"]["lam"] = 0.7
    elif edit == "metric":
        data["metrics"]["l0"] *= 1.01
    elif edit == "nan":
        data["metrics"]["dead_fraction"] = float("nan")
    text = json.dumps(data)
    path.write_text(text[:-100] if edit == "cut" else text)
    with pytest.raises(provenance.EvidenceError, match=path.name):
        records.load("pilot", "smoke")


def test_a_run_file_under_another_runs_name_is_caught():
    path, other = (
        run_files.write(record()),
        dataclasses.replace(run_module.Run.of(record()["run"]), lam=0.7),
    )
    path.rename(path.with_stem(other.id))
    with pytest.raises(
        provenance.EvidenceError, match=f"{other.id}.json holds the run {path.stem}"
    ):
        run_files.load([other], "smoke")


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(provenance.EvidenceError):
        run_files.write(record() | {"id": "000000000000"})
    assert not list(tmp_path.rglob("*.json"))


def test_an_older_recipe_is_shown_and_labelled(monkeypatch):
    run_files.write(record())
    monkeypatch.setitem(run_module.RECIPES, "gated", 2)
    assert records.load("pilot", "smoke")["status"][0] == "old recipe"


def test_ids_depend_on_every_field():
    run = Run()
    changed = {
        "lm": "gelu-1l-mini",
        "arch": "baseline",
        "tie": "none",
        "freeze": "none",
        "site": "attn_z",
        "text": "other",
    }
    for field in dataclasses.fields(Run):
        value = getattr(run, field.name)
        if field.name in changed:
            other = changed[field.name]
        else:
            other = (
                not value
                if isinstance(value, bool)
                else (*value, 0.4)
                if isinstance(value, tuple)
                else value * 2 + 1
            )
        assert dataclasses.replace(run, **{field.name: other}).id != run.id, field.name


def test_grid_and_pairs():
    runs = grid(Run(), lam=[0.1, 0.2], seed=[0, 1, 2])
    assert len({r.id for r in runs}) == 6 and len({r.stack for r in runs}) == 3
    wide = run_module.wider(Run(tie="none"))
    assert (wide.arch, wide.M, wide.tie) == ("baseline", 3456, "r_mag")


def test_unknown_words_are_explained(monkeypatch):
    monkeypatch.setenv("GSAE_SCALE", "huge")
    with pytest.raises(ValueError, match="smoke, cpu, gpu, paper"):
        run_module.scale()
    with pytest.raises(KeyError, match="pareto"):
        sweeps.runs("nothing", "cpu")
    with pytest.raises(ValueError, match="mlp_out"):
        Run(site="mlp")


@pytest.mark.parametrize("scale", run_module.SCALES)
def test_every_experiment_lists_at_every_scale(scale):
    for name in sweeps.EXPERIMENTS:
        runs = sweeps.runs(name, scale)
        assert runs and len({r.id for r in runs}) == len(runs)


def table():
    for i, run in enumerate(sweeps.runs("pilot", "smoke")[:3]):
        run_files.write(record(run, l0=5.0 + i))
    return records.load("pilot", "smoke")


@pytest.mark.parametrize("name", ["pareto", "shrinkage"])
def test_figures_say_scale_and_what_is_missing(name):
    figure = getattr(base, name)(table())
    assert isinstance(figure, matplotlib.figure.Figure)
    text = figure.get_supxlabel()
    assert "scale smoke" in text and "MISSING: 1 of 4" in text and "not a result" in text
    figure.canvas.draw()


def test_figures_of_ratios_and_of_results_say_scale_seeds_and_tokens():
    df = arms.named(table())
    drawn = arm_figures.forest(tables.against(df, [arms.WIDE]), df, "ratio").get_supxlabel()
    assert drawn.startswith("scale smoke, single seed") and "tokens a run" in drawn
    assert base.caption(df.assign(pursuit_tokens=16_384)).startswith(
        base.caption(df).split(". ")[0]
    )
    assert ", on 16.4 k tokens of text" in base.caption(df.assign(pursuit_tokens=16_384))
    one = {
        "arch": "gated",
        "lam": 0.3,
        "data_l0": 2.0,
        "noise": 0.0,
        "seed": 0,
        "tokens": 3000,
        "M": 72,
        "l0": 3.0,
        "slope": 0.9,
        "cosine": 0.9,
        "scale": "smoke",
    }
    drawn = arm_figures.known_dictionary(pd.DataFrame([one, one | {"lam": 0.1}])).get_supxlabel()
    assert drawn.endswith("scale smoke, 1 seed, 3,000 tokens a dictionary, M = 72")


@pytest.fixture
def history():
    """Skips where the checkout has not all of its commits."""
    top, shallow = (
        provenance.git("rev-parse", word) for word in ("--show-toplevel", "--is-shallow-repository")
    )
    if shallow != "false" or Path(top) != provenance.CHECKOUT:
        pytest.skip("needs the whole history: `git fetch --unshallow`")


def test_every_record_names_a_commit_of_this_repository(history):
    known = set(provenance.git("rev-list", "HEAD").split())
    files = sorted((provenance.CHECKOUT / "book" / "evidence").rglob("*.json"))
    files = [path for path in files if path.parent.name != "bench"]
    named = {
        path.name: json.loads(path.read_text()).get("provenance", {}).get("commit")
        for path in files
    }
    strange = {name: commit for name, commit in named.items() if commit not in known}
    assert len(files) > 500 and not strange, strange


BEFORE = (
    "e56810c63722096d56d7362630d0106d43bc552c"  # the last commit with results of both evaluations
)


def test_results_that_were_carried_over_are_those_of_the_same_run_on_less_evaluation_text(history):
    folder, runs = provenance.CHECKOUT / "book" / "evidence" / "cpu", {}
    for home in ("seeds", "same_width"):
        for name in provenance.git(
            "ls-tree", "--name-only", f"{BEFORE}:book/evidence/cpu/{home}"
        ).split():
            runs[name.removesuffix(".json")] = f"{BEFORE}:book/evidence/cpu/{home}/{name}"
    kept = [json.loads(path.read_text()) for path in (folder / "ito").glob("*.json")]
    carried = [record for record in kept if "carried" in record["provenance"]]
    for new in carried:
        origin = new["provenance"]["carried"]
        old = json.loads(
            provenance.git("show", f"{BEFORE}:book/evidence/cpu/ito/{origin['from']}.json")
        )
        assert (new["values"], new["sums"]) == (old["values"], old["sums"])
        assert old["settings"] == new["settings"] | {"run": origin["run"]}
        a, b = (
            json.loads(provenance.git("show", runs[of["settings"]["run"]]))["run"]
            for of in (old, new)
        )
        assert {k for k in a if a[k] != b[k]} == {"eval_tokens", "ce_tokens"}
    assert carried


def test_an_empty_table_still_draws():
    figure = sites.site_gammas(records.load("sites", "cpu").iloc[:0])
    assert "no run" in figure.axes[0].texts[0].get_text()
    base.pareto(records.load("pareto", "cpu")).canvas.draw()


@pytest.mark.parametrize("draw", [sites.site_fronts, sites.site_gammas])
def test_a_panel_a_site_and_layer_and_one_legend(draw):
    runs = sweeps.runs("sites", "cpu")
    cell = [one for one in runs if (one.site, one.layer) == ("attn_z", 20)]
    for run in cell:
        run_files.write(record(run, "cpu", l0=50 * run.lam))
    df = arms.named(records.load("sites", "cpu"))
    figure = draw(df)
    figure.canvas.draw()
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert "attention before W_O, layer 20\n1 seed, 5 lambdas" in panels
    missing = f"MISSING: {len(runs) - len(cell)} of {len(runs)} runs"
    assert len(panels) == 6 and missing in figure.get_supxlabel()
    empty = {
        name for name, axes in panels.items() if any("no run" in t.get_text() for t in axes.texts)
    }
    assert {name.split("\n")[0] for name in set(panels) - empty} == {
        "attention before W_O, layer 20"
    }
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {arms.GATED, arms.WIDE}


def test_one_layer_of_two_language_models_is_two_rows_of_panels():
    df = with_attention()
    figure = sites.site_fronts(pd.concat([df, df.assign(lm="other")], ignore_index=True))
    titles = ["\n".join(axes.get_title().split("\n")[:2]) for axes in figure.axes]
    assert len(titles) == len(set(titles)) == 12
    assert {f"{lm}\nattention before W_O, layer 20" for lm in ("smollm2", "other")} < set(titles)


def with_attention():
    """The runs of `sites`, of which those of the attention of layer 20 are on record."""
    for run in (
        one for one in sweeps.runs("sites", "cpu") if (one.site, one.layer) == ("attn_z", 20)
    ):
        run_files.write(record(run, "cpu", l0=50 * run.lam))
    return arms.named(records.load("sites", "cpu"))


def test_an_interval_far_off_does_not_squeeze_the_panel_and_no_point_is_outside_it():
    df = with_attention()
    points = df.index[df["status"] == "done"]
    df.loc[points, "gamma"] = np.linspace(0.8, 1.3, len(points))
    df.at[points[-1], "sums"] = {
        k: np.asarray(v, float) for k, v in df.at[points[-1], "sums"].items()
    }
    df.at[points[-1], "sums"]["x_hat_sq"][0] *= 1e4
    panel = next(
        a
        for a in sites.site_gammas(df).axes
        if a.get_title().startswith("attention before W_O, layer 20")
    )
    low, high = panel.get_ylim()
    assert 0.75 < low < 0.8 and 1.3 < high < 1.35
    df["gamma"] = float("nan")
    sites.site_gammas(df).canvas.draw()


def test_runs_that_recover_all_are_named_where_a_log_axis_has_no_place_for_them():
    df = with_attention()
    df["loss_recovered"] = 0.9
    df.loc[df.index[df["status"] == "done"][0], ["l0", "loss_recovered"]] = 33.2, 1.004
    drawn = sites.site_fronts(df).axes
    panels = {axes.get_title().split("\n")[0]: [t.get_text() for t in axes.texts] for axes in drawn}
    assert panels["attention before W_O, layer 20"] == ["all recovered:\ngated at 33"]


def test_intervals_hold_the_estimate():
    df = table()
    bounds = intervals.intervals(df, ["l0", "gamma"])
    done = df["status"] == "done"
    assert (bounds["l0_low"][done] <= df["l0"][done] + 1e-9).all() and isinstance(
        bounds, pd.DataFrame
    )


@pytest.mark.parametrize(("experiment", "names"), [
    ("seeds", {arms.GATED, arms.WIDE}), ("same_width", {arms.SAME}),
])  # fmt: skip
def test_pursuits_are_named_after_the_width_of_the_runs(experiment, names):
    df = tables.pursuits("cpu", experiment)
    assert set(df["series"]) == names and set(df["s"]) == {0, *follow_ups.PURSUITS}
    runs = records.load(experiment, "cpu")
    assert len(df) == 4 * len(runs) and set(df["run"]) == set(runs["id"])
    assert (df["tokens"] == runs["tokens"].iloc[0]).all() and (df["pursuit_tokens"] == 16_384).all()
