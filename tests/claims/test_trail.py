"""From verdicts and sweeps to the files behind them: all there, none invented; and the sweeps'
figures.
"""

import json
import re

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import yaml
from test_evidence import record

import gsae
from gsae import claims
from gsae.claims import evidence_page, readme
from gsae.evidence import intervals, result_files, run_files, verdict
from gsae.evidence.provenance import CHECKOUT
from gsae.evidence.run import Run
from gsae.experiments import follow_ups, records, sweeps
from gsae.figures import sweeps as sweep_figures

FILE = re.compile(re.escape(gsae.REPO) + r"/blob/main/(book/evidence/[^\"]+\.json)\">([\w-]+)</a>")


@pytest.fixture(scope="module")
def pages():
    """Every claim's section, from the evidence in the repository; no bootstrap, as no number is
    looked at.
    """
    with pytest.MonkeyPatch.context() as patch:
        found = dict.fromkeys(("estimate", "low", "high", "t_low", "t_high"), 0.1) | {"seeds": 1}
        patch.setattr(intervals, "by_seed", lambda *args, **options: found)
        claims.forget()
        sections = evidence_page.sections("cpu", "../")
    claims.forget()  # these verdicts rest on no bootstrap
    return sections


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path))


def test_every_verdict_leads_to_its_own_section(pages):
    assert list(pages) == [claims.anchor(c.item) for c in claims.CLAIMS]
    assert len(pages) == len(claims.CLAIMS)
    for of in claims.CLAIMS:
        title, text = pages[claims.anchor(of.item)]
        assert title == of.item and of.sentence in text and of.rule in text and of.paper in text


def test_every_verdict_with_runs_reaches_files_that_exist_with_their_commits_and_commands(pages):
    without = set()
    for anchor, (_, text) in pages.items():
        listed = FILE.findall(text)
        on_record = re.search(r"^(\d+) of (\d+) files on record", text, re.M)
        if not on_record:
            without.add(anchor)
            continue
        assert len(listed) == int(on_record[1]) and text.count("<tr><td>") == int(on_record[2]), (
            anchor
        )
        for path, name in listed:
            origin = json.loads((CHECKOUT / path).read_text())
            origin = origin.get("provenance", origin)
            assert name == (CHECKOUT / path).stem and f"/commit/{origin['commit']}" in text
            assert f'"../_static/{path.removeprefix("book/")}">json</a>' in text
        assert "gsae run " in text or "make bench" in text
        trained = any(path.split("/")[3] in sweeps.EXPERIMENTS for path, _ in listed)
        assert trained == bool(re.search(r"^gsae audit \w{12} --scale cpu$", text, re.M)), anchor
    exact = {
        "claim-fig-2",
        "claim-eqs-6-to-8-figs-3-16-17",
        "claim-app-e-fig-4",
        "claim-app-f-fig-15",
    }
    assert exact <= without and not without & {
        "claim-fig-5",
        "claim-fig-6",
        "claim-fig-8-decoder",
        "claim-fig-10",
    }
    for anchor in exact:
        assert (
            "gsae.claims.method." in pages[anchor][1]
            and "/blob/main/tests/claims/test_claims.py" in pages[anchor][1]
        )


def test_the_runs_of_figure_5_are_those_of_its_sweep_the_missing_ones_too(pages):
    text = pages["claim-fig-5"][1]
    df = records.load("seeds", "cpu")
    assert set(df["id"]) == set(re.findall(r"<tr><td>(?:<a[^>]*>)?(\w{12})", text))
    assert "gsae run seeds --scale cpu" in text


def test_pursuit_reaches_its_results_and_the_runs_they_were_computed_from(pages):
    folders = {path.split("/")[3] for path, _ in FILE.findall(pages["claim-fig-10"][1])}
    assert folders == {"ito", "seeds"}


def test_a_result_brings_its_parent_and_what_is_missing_is_said(own_folder):
    runs = sweeps.runs("neurons", "smoke")
    path = run_files.write(record(runs[0], l0=5.0) | {"experiment": "neurons"})
    pursuit = follow_ups.pursuit_settings(runs[0].id, 10, 512)
    origin = json.loads(path.read_text())["provenance"] | {"commit": "ab" * 20}
    made = result_files.write_result("ito", pursuit, {"l0": 9.5}, origin, "smoke")
    df = evidence_page.files([follow_ups.table("ito", "neurons", "smoke")])
    assert not df["id"].duplicated().any() and set(r.id for r in runs) < set(df["id"])
    assert list(df["id"][df["status"] == "done"]) == [made.stem, path.stem]
    assert df.set_index("id")["l0"].dropna().to_dict() == pytest.approx(
        {made.stem: 9.5, path.stem: 5.0}
    )
    html = evidence_page.table(df, "../files")
    row = next(line for line in html.splitlines() if made.stem in line)
    assert "<td>9.5</td>" in row and "<code>abababa</code>" in row and "<td>done</td>" in row
    assert f'<a href="../files/smoke/ito/{made.stem}.json">json</a>' in row
    assert (
        f'<a href="{gsae.REPO}/blob/main/book/evidence/smoke/ito/{made.stem}.json">{made.stem}</a>'
        in row
    )
    absent = next(line for line in html.splitlines() if runs[1].id in line)
    assert "<td>missing</td>" in absent and "<a " not in absent
    assert evidence_page.commands(df) == [
        "gsae run ito --scale smoke", "gsae run neurons --scale smoke",
        f"gsae audit {path.stem} --scale smoke",
    ]  # fmt: skip


def test_the_known_dictionary_lists_what_is_missing(own_folder):
    of = next(c for c in claims.CLAIMS if c.item == "ours")
    text = evidence_page.section(of, "smoke", "../")
    assert (
        re.search(r"^0 of [1-9]\d* files on record", text, re.M)
        and "gsae run known --scale smoke" in text
    )


def test_what_all_rows_share_is_said_once_and_the_tree_is_named(own_folder):
    runs = sweeps.runs("pilot", "smoke")
    for run, dirty in zip(runs, (True, False), strict=False):
        run_files.write(record(run, dirty=dirty))
    df = records.load("pilot", "smoke").iloc[:2]
    html = evidence_page.table(df, "x")
    assert "<th>tree</th>" in html and "uncommitted changes" in html and "<td>clean</td>" in html
    first = html[: html.index("<table")]
    assert (
        "All 2: " in first
        and "site mlp_out" in first
        and "layer 8" in first
        and "/commit/" in first
    )
    df.at[0, "provenance"] = df.at[0, "provenance"] | {"carried": {"from": "aaa", "run": "b<b"}}
    assert (
        "<td>carried over from aaa, of run b&lt;b</td>" in evidence_page.table(df, "x")
        and "carried" not in html
    )
    assert "<th>site</th>" not in html and "<th>site</th>" in evidence_page.table(df.iloc[:1], "x")


def test_switches_that_differ_from_the_papers_are_named_and_text_is_escaped():
    row = pd.Series({"arch": "gated", "tie": "shared", "freeze": "both", "step": False})
    assert evidence_page.arm(row) == "gated, tie shared, step False"
    assert (
        evidence_page.plain("<b>") == "&lt;b&gt;"
        and evidence_page.plain(1024000.0) == "1,024,000"
        and evidence_page.plain(np.nan) == ""
    )


def test_a_verdict_carries_what_it_rests_on_the_missing_too():
    df = pd.DataFrame({"status": ["done", "missing"]})
    assert verdict.unfinished(df) and not verdict.unfinished(df[:1]) and verdict.unfinished(df[:0])
    (table,) = verdict.not_run(df).tables
    assert table is df


def test_a_claim_is_judged_once_until_the_evidence_changes(own_folder):
    asked = []

    def judge(scale):
        asked.append(scale)
        return verdict.Verdict(verdict.NOT_RUN)

    claim = claims.Claim("item", "sentence", "rule", judge=judge)
    first = claim.verdict("smoke")
    assert claim.verdict("smoke") is first and asked == ["smoke"]
    claim.verdict("cpu")
    run_files.write(record())
    assert claim.verdict("smoke") is not first and asked == ["smoke", "cpu", "smoke"]
    claims.forget()
    claim.verdict("smoke")
    assert len(asked) == 4


def test_every_run_of_a_scale_is_on_the_page_of_its_home(own_folder):
    shown = {
        name: pd.concat(evidence_page.sweep(name, "cpu").values())
        for name in evidence_page.with_pages("cpu")
    }
    for name in sweeps.EXPERIMENTS:
        for run in sweeps.runs(name, "cpu")[::9]:
            assert run.id in set(shown[sweeps.home(run, "cpu")]["id"])


def test_the_readme_leads_to_the_published_page():
    base = yaml.safe_load((CHECKOUT / "_config.yml").read_text())["html"]["baseurl"]
    assert (
        readme.PAGE == f"{base}book/evidence_by_claim.html"
        and (CHECKOUT / "book/evidence_by_claim.md").exists()
    )


def finished(run, l0=12.0, counts=(0, 2, 7, 2), dead=0, steps=5):
    """A finished run as a row of a table, with its training curve and density."""
    i = np.arange(1, steps + 1)
    curve = pd.DataFrame(
        {"tokens": 1e5 * i, "reconstruction": 1 / i, "l0": l0 * i, "sparsity": 0.1 * i}
    )
    density = {"edges": [-4.0, -3.0, -2.0, -1.0, 0.0], "counts": list(counts), "dead": dead}
    fields = {**vars(run), "id": run.id, "scale": "cpu", "status": "done"}
    return fields | {"l0": l0, "curve": curve, "density": density, "provenance": {}}


def sweep(lams=(0.1, 0.3, 0.9), missing=True, **switches):
    runs = [Run(arch=arch, M=M, lam=lam, **(switches if arch == "gated" else {}))
            for arch, M in (("gated", 22), ("baseline", 33)) for lam in lams]  # fmt: skip
    rows = [finished(run, l0=2 / run.lam) for run in runs]
    if missing:
        rows[1] |= {"status": "missing", "curve": np.nan, "density": np.nan, "l0": np.nan}
    return pd.DataFrame(rows)


TABLES = {
    "a missing run": (sweep(), 5),
    "a single run": (sweep().iloc[:1], 1),
    "a run whose latents are all dead": (
        pd.DataFrame([finished(Run(M=11), 0.0, (0, 0, 0, 0), 11)]),
        1,
    ),
    "no run": (sweep().iloc[1:2], 0),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("kind", sweep_figures.FIGURES)
def test_figures_of_a_sweep_draw(kind, case):
    df, count = TABLES[case]
    draw, shows = sweep_figures.FIGURES[kind]
    figure = draw(df, "a title")
    assert isinstance(figure, matplotlib.figure.Figure)
    figure.canvas.draw()
    foot = figure.get_supxlabel()
    assert "scale cpu" in foot and "1.02 M tokens" in foot and "single seed" in foot
    assert (
        ("MISSING: 1 of" in foot)
        == (len(df) > count)
        == ("MISSING: 1 of" in sweep_figures.alt(df, shows))
    )
    drawn = [
        p
        for axes in figure.axes
        for p in (*axes.patches, *axes.lines)
        if len(getattr(p, "get_xdata", list)()) > 1
    ]
    if kind == "curves":  # a line a run in each panel
        assert len(drawn) == count * len(figure.axes)
    elif kind == "density":
        steps = [p for axes in figure.axes for p in axes.patches]
        assert len(steps) == count
        for patch, (_, run) in zip(steps, df[df["status"] == "done"].iterrows(), strict=True):
            M = sum(run["density"]["counts"]) + run["density"]["dead"]
            assert patch.get_data().values.sum() * M == pytest.approx(sum(run["density"]["counts"]))


def test_dead_latents_are_counted_at_the_side():
    figure = sweep_figures.density(pd.DataFrame([finished(Run(M=14), counts=(0, 2, 7, 2), dead=3)]))
    (axes,) = figure.axes
    assert "3 of 14 latents never fired" in axes.get_title()
    (x,), (y,) = next(line.get_data() for line in axes.lines if len(line.get_xdata()) == 1)
    assert (
        y == pytest.approx(3 / 14) and x < -3.0 and axes.get_xticklabels()[0].get_text() == "never"
    )
    assert axes.get_xlim()[0] < x


def test_a_line_a_series_with_the_setting_that_varies_and_shades_by_lambda():
    both = pd.concat([sweep(missing=False), sweep(missing=False, freeze="none")], ignore_index=True)
    assert [line.label for line in sweep_figures.sweep_lines(both)] == [
        "gated", "baseline, 1.5x as wide", "unfrozen decoder"
    ]  # fmt: skip
    alone = both[both["arch"] == "baseline"]
    assert [line.label for line in sweep_figures.sweep_lines(alone)] == ["baseline, same width"]
    rates = pd.DataFrame(
        [finished(Run(lr=lr, lam=lam)) for lr in (1e-3, 3e-4) for lam in (0.1, 0.2)]
    )
    found = sweep_figures.sweep_lines(rates)
    assert [line.label for line in found] == ["gated, lr 0.001", "gated, lr 0.0003"]
    assert len({line.dash for line in found}) == 2 and len({line.colour for line in found}) == 1
    widths = pd.DataFrame([finished(Run(M=m, lam=lam)) for m in (14, 28) for lam in (0.1, 0.2)])
    assert [line.label for line in sweep_figures.sweep_lines(widths)] == [
        "gated, M 14",
        "gated, M 28",
    ]
    strengths = [
        strength
        for _, strength in sweep_figures.shaded(sweep_figures.sweep_lines(sweep(missing=False))[0])
    ]
    assert strengths == sorted(strengths) and strengths[0] < strengths[-1] == 1


def test_the_map_names_what_is_off_its_axis():
    df = pd.DataFrame(
        [finished(Run(auxiliary=False, lam=lam), l0) for lam, l0 in ((0.1, 30.0), (0.4, 0.0))]
    )
    figure = sweep_figures.lambda_map(df)
    (legend,) = figure.legends
    assert "1 with L0 0: off the axis" in legend.get_texts()[0].get_text()
    assert all(len(line.get_xdata()) == 1 for line in figure.axes[0].lines if len(line.get_xdata()))
