"""A verdict's text is made of its data: numbers by name, cells and details a line each, its basis
once.
"""

import numpy as np
import pandas as pd

from gsae.evidence import verdict
from gsae.evidence.verdict import NOT, PARTLY, REPRODUCED, Basis, Estimate, Verdict

RATIO = Estimate(1.3, 1.2, 1.4, np.nan, np.nan, seeds=1)
BASIS = Basis("cpu", (1, 3), (1_000_000, 5_000_000))


def test_an_estimate_as_text_and_between_bounds():
    assert f"{RATIO}" == "1.30 [1.20, 1.40]" and f"{RATIO:.1f}" == "1.3 [1.2, 1.4]"
    assert RATIO.inside(1, 2) == (True, True, False) and RATIO.inside(1.25, 2)[:2] == (True, False)
    logs = {"estimate": 0.0, "low": np.nan, "high": np.nan, "t_low": -1, "t_high": 1, "seeds": 2}
    ratio = Estimate.ratio(logs)
    assert f"{ratio:.3f}" == "1.000 (no interval), over seeds [0.368, 2.718]" and ratio.seeds == 2


def test_a_basis_is_said_in_three_lengths():
    assert BASIS.brief == "1 to 3 seeds, 1 M, 5 M tokens"
    assert BASIS.runs == "cpu, 1 to 3 seeds, 1 M, 5 M tokens a run"
    assert str(BASIS) == "scale cpu, 1 to 3 seeds, 1 M, 5 M tokens a run"
    assert str(Basis("smoke", (1,), results=6)) == "scale smoke, single seed, 6 results"


def test_numbers_stand_where_a_sentence_has_their_names_dots_and_all():
    numbers = {"baseline, 1.5x as wide": RATIO, "runs": 4}
    listed = verdict.listed(["baseline, 1.5x as wide"], ":")
    found = Verdict(PARTLY, f"{{runs}} runs: {listed}", "{runs} runs", numbers=numbers, basis=BASIS)
    assert found.ours == f"4 runs: baseline, 1.5x as wide: 1.30 [1.20, 1.40]; {BASIS}"
    assert found.brief == "4 runs" and found.runs == BASIS.runs


def test_a_line_for_each_detail_and_cell_and_what_all_rest_on_once():
    runs = pd.DataFrame(
        {"scale": ["cpu"] * 3, "site": ["a", "a", "b"], "seed": [0, 1, 0], "tokens": 5000}
    )
    cells = {site: verdict.stated(NOT, f"at {site}", rows) for site, rows in runs.groupby("site")}
    cells = verdict.less_in_common(cells | {"c": verdict.stated(NOT, "at c", runs)}, runs)
    whole = verdict.stated(NOT, "", runs, cells=cells)
    assert whole.lines == [
        "a: at a; scale cpu, 2 seeds, 5 k tokens a run",
        "b: at b; scale cpu, single seed, 5 k tokens a run",
        "c: at c",
        "scale cpu, 1 to 2 seeds, 5 k tokens a run",
    ]
    assert Verdict(NOT, "first", details=("second",)).ours == "first\nsecond"


def test_all_numbers_with_bounds_have_to_lie_between_them():
    sure = Estimate(1.3, 1.2, 1.4, 1.1, 1.5, seeds=3)
    assert verdict.all_inside({"a": sure, "b": sure}, {"a": (1, 2), "b": (1, 2)}) == REPRODUCED
    assert verdict.all_inside({"a": sure, "b": RATIO}, {"a": (1, 2), "b": (1, 2)}) == PARTLY
    assert verdict.all_inside({"a": sure, "b": RATIO}, {"a": (1, 2), "b": (2, 3)}) == NOT
    assert verdict.all_inside({"a": sure, "b": RATIO}, {"a": (1, 2)}) == REPRODUCED  # b is free
