"""Statistics of paired ratings: known answers, published examples, the paper's summary, and files
that are wrong.
"""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gsae.cli import main
from gsae.interpretability import (
    rating_agreement,
    rating_analysis,
    rating_effects,
    rating_files,
    rating_report,
    rating_statistics,
)

ARMS = ["gated", "baseline"]
CELLS = [("lm-a", site, layer) for site in ("s1", "s2", "s3") for layer in (4, 9, 15)]


def study(n=5, cells=CELLS, pages=1, shared=0, arms=ARMS):
    """A key with `n` pairs of each cell on each of `pages`, and `shared` on all; item names are
    readable, for tests.
    """
    items = {}
    for c, (lm, site, layer) in enumerate(cells):
        for r in range(shared + n * pages):
            page, slot = (
                (0, r) if r < shared else (1 + (r - shared) // n, shared + (r - shared) % n)
            )
            for arm in arms:
                items[f"{c}.{r}.{arm[0]}"] = {
                    "arm": arm,
                    "run": f"run-{arm}-{c}",
                    "lm": lm,
                    "site": site,
                    "layer": layer,
                    "latent": 10 * r,
                    "pair": f"{c}-{r}",
                    "replicate": r,
                    "slot": slot,
                    "page": page,
                }
    dealt = [
        {"page": p, "items": [i for i, v in items.items() if v["page"] in (0, p)]}
        for p in range(1, pages + 1)
    ]
    return {
        "schema": 1,
        "study": "abc",
        "arms": arms,
        "reference": arms[-1],
        "pages": dealt,
        "items": items,
    }


def exported(key, label, rater="AB", page=1):
    """A rating file in which `label(item's row in the key)` is the answer."""
    names = list(rating_statistics.SCALE)
    shown = next(p["items"] for p in key["pages"] if p["page"] == page)
    rows = [
        {"item": i, "rating": names[label(key["items"][i])], "explanation": "", "seconds": 1.0}
        for i in shown
    ]
    return {"schema": 1, "study": "abc", "page": page, "rater": rater, "ratings": rows}


def joined(tmp_path, key, *files, partial=False):
    paths = [tmp_path / f"{i}.json" for i in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_text(json.dumps(data))
    return rating_files.join(paths, key, partial)


def rng(seed=0):
    return np.random.default_rng(seed)


# The paper's published summary (paper, section 4.3.2).


def test_the_papers_interval_implies_a_standard_deviation_of_about_one():
    sd = rating_statistics.implied_sd(
        *rating_statistics.PAPER_BOUNDS, rating_statistics.PAPER_PAIRS
    )
    assert sd == pytest.approx(1.0, abs=0.05)
    assert rating_statistics.pairs_needed(0.13, sd) == pytest.approx(390, rel=0.01)
    assert rating_statistics.pairs_needed(-rating_statistics.MARGIN, sd) == pytest.approx(
        290, rel=0.02
    )
    assert rating_statistics.pairs_needed(0.13 - rating_statistics.MARGIN, sd) == pytest.approx(
        85, abs=1
    )


def test_the_papers_p_follows_from_its_interval():
    sd = rating_statistics.implied_sd(
        *rating_statistics.PAPER_BOUNDS, rating_statistics.PAPER_PAIRS
    )
    z = rating_statistics.PAPER_EFFECT / (sd / np.sqrt(rating_statistics.PAPER_PAIRS))
    assert stats.norm.sf(z) == pytest.approx(
        rating_statistics.PAPER_P, abs=0.012
    )  # the paper's is of the ranks, this one of the mean


def test_labels_like_the_papers_reproduce_its_row(tmp_path):
    # 171 pairs of labels with the published mean difference; 90 % interval and p must come out near
    # the published ones.
    a, b = rng(4).integers(0, 3, 171), rng(5).integers(0, 3, 171)
    spare = iter(np.flatnonzero((a < 2) if (a - b).sum() < 22 else (a > 0)))
    while (gap := 22 - (a - b).sum()) != 0:
        a[next(spare)] += np.sign(gap)
    cells = [("lm-a", "s1", 4)]
    key = study(n=171, cells=cells)
    table = joined(
        tmp_path,
        key,
        exported(key, lambda v: int((a if v["arm"] == "gated" else b)[v["replicate"]])),
    )
    found = rating_analysis.compare(table, *ARMS)["contrasts"]["all"]
    assert found["difference"] == pytest.approx(22 / 171)
    assert found["interval"] == pytest.approx((0.0, 0.26), abs=0.03) and found[
        "p"
    ] == pytest.approx(0.06, abs=0.03)


# Power.


def test_power_agrees_with_simulation():
    sd, effect, n = 1.0, 0.2, 120
    d = rng().normal(effect, sd, (4000, n))
    t = d.mean(1) / (d.std(1, ddof=1) / np.sqrt(n))
    assert (t > stats.t.ppf(0.95, n - 1)).mean() == pytest.approx(
        rating_statistics.power(effect, sd, n), abs=0.02
    )


def test_power_of_the_wilcoxon_pratt_test_on_labels_is_that_of_the_plan():
    labels = np.arange(3)
    a = rng(1).choice(labels, (300, 150), p=[0.2, 0.3, 0.5])
    b = rng(2).choice(labels, (300, 150), p=[0.3, 0.35, 0.35])
    d = a - b
    found = np.mean([rating_statistics.wilcoxon(row) < 0.05 for row in d])
    assert found == pytest.approx(rating_statistics.power(d.mean(), d.std(), 150), abs=0.06)


def test_pairs_needed_have_the_power_wanted():
    n = rating_statistics.pairs_needed(0.13, 1.1)
    assert rating_statistics.power(0.13, 1.1, n) >= 0.8 > rating_statistics.power(0.13, 1.1, n - 1)
    told = rating_statistics.powers(n, 1.1)
    assert (
        told["detectable"] == pytest.approx(0.13, rel=0.01) and told["pairs_for_paper_effect"] == n
    )


# Interval and test of the mean difference.


def test_the_interval_covers_as_often_as_it_says():
    truth, hits = 0.15, 0
    for seed in range(200):
        d = rng(seed).choice([-2, -1, 0, 1, 2], 80, p=[0.05, 0.2, 0.4, 0.25, 0.1])
        low, high = rating_statistics.interval(d)
        hits += low <= truth <= high
    assert 168 <= hits <= 191  # 180 expected, s.d. 4.2


def test_the_interval_is_bca_not_percentile():
    skewed = rng(3).exponential(1, 40)
    draws = rng(0).choice(skewed, (9999, 40)).mean(1)
    low, high = rating_statistics.interval(skewed)
    assert low > np.quantile(draws, 0.05) + 0.01 and high > np.quantile(draws, 0.95) + 0.01


@pytest.mark.parametrize("d", [[], [1.0], [0, 0, 0], [1, 1, 1]])
def test_no_interval_where_there_is_none(d):
    assert np.isnan(rating_statistics.interval(d)).all()


def test_wilcoxon_keeps_zeros_in_the_ranking():
    d = np.array([0, 0, 0, 1, 1, 1, -2, 2, 0, 1])
    ranks = stats.rankdata(np.abs(d))[d != 0]
    signs = np.array(np.meshgrid(*[[0, 1]] * len(ranks))).reshape(len(ranks), -1)
    sums = ranks @ signs  # every way to give the signs
    exact = (sums >= ranks[d[d != 0] > 0].sum() - 1e-9).mean()
    assert rating_statistics.wilcoxon(d) == pytest.approx(exact, abs=0.02)
    dropped = stats.wilcoxon(d, zero_method="wilcox", alternative="greater").pvalue
    assert abs(dropped - rating_statistics.wilcoxon(d)) > 1e-3


def test_wilcoxon_is_one_sided_and_defined_on_zeros():
    d = np.array([1, 2, 1, 1, 2, 1, -1, 1, 2, 1, 0, 1])
    assert rating_statistics.wilcoxon(d) < 0.01 and rating_statistics.wilcoxon(-d) > 0.99
    assert rating_statistics.wilcoxon(np.zeros(9)) == 1.0 and np.isnan(
        rating_statistics.wilcoxon([])
    )


@pytest.mark.parametrize(
    "low,high,pairs,word",
    [(-0.1, 0.3, 60, "not inferior"), (-0.2, 0.3, 60, "underpowered"), (-0.5, -0.2, 60, "inferior"),
     (-0.15, 0.1, 60, "underpowered"), (np.nan, np.nan, 60, "no interval"), (-0.1, 0.3, 20, "not inferior"),
     (-0.1, 0.3, 19, "too few pairs"), (np.nan, np.nan, 5, "too few pairs")],
)  # fmt: skip
def test_non_inferiority(low, high, pairs, word):
    assert (
        rating_statistics.non_inferiority(low, high, pairs) == word
        and rating_statistics.MARGIN == -0.15
    )


def test_the_fewest_pairs_that_decide_are_enough_for_the_interval():
    """At a true loss on the margin, "not inferior" may be said 5 % of the time, whatever the
    labels; five pairs say it far more often.
    """
    labels, share = np.array([-2, -1, 0, 1]), np.array([0.04, 0.17, 0.69, 0.1])
    assert labels @ share == pytest.approx(rating_statistics.MARGIN)

    def wrong(pairs):
        draws = [rng(seed).choice(labels, pairs, p=share) for seed in range(300)]
        return np.mean([rating_statistics.interval(d)[0] > rating_statistics.MARGIN for d in draws])

    assert wrong(rating_statistics.LEAST) < 0.1 and wrong(5) > 0.12


# The joined table.


def test_a_table_by_hand(tmp_path):
    key = study(n=4, cells=[("lm-a", "s1", 4)])
    gated, baseline = [2, 2, 1, 0], [0, 2, 0, 1]
    table = joined(
        tmp_path,
        key,
        exported(key, lambda v: (gated if v["arm"] == "gated" else baseline)[v["replicate"]]),
    )
    found = rating_analysis.compare(table, *ARMS)
    row = found["contrasts"]["all"]
    assert (row["pairs"], row["mean_arm"], row["mean_reference"], row["difference"]) == (
        4,
        1.25,
        0.75,
        0.5,
    )
    assert row["sd"] == pytest.approx(np.std([2, 0, 1, -1], ddof=1))
    # rows: the label of gated; columns: that of baseline
    assert found["contingency"]["all"] == [[0, 1, 0], [1, 0, 0], [1, 0, 1]]
    assert list(found["contrasts"]) == ["all"]  # one cell: nothing is said twice


def test_raters_of_the_same_pairs_count_once(tmp_path):
    key = study(n=30, cells=CELLS[:2])
    label = lambda v: int(rng(hash((v["pair"], v["arm"])) % 2**32).integers(0, 3))
    one = rating_analysis.compare(joined(tmp_path, key, exported(key, label)), *ARMS)["contrasts"][
        "all"
    ]
    three = [exported(key, label, rater) for rater in ("A", "B", "C")]
    many = rating_analysis.compare(joined(tmp_path, key, *three), *ARMS)["contrasts"]["all"]
    assert many == one and one["pairs"] == 60


def test_groups_have_their_own_rows(tmp_path):
    key = study(n=3)
    table = joined(
        tmp_path,
        key,
        exported(key, lambda v: 2 if v["arm"] == "gated" and v["site"] == "s1" else 1),
    )
    found = rating_analysis.compare(table, *ARMS)["contrasts"]
    assert found["s1"]["difference"] == 1 and found["s2"]["difference"] == 0
    assert found["all"]["difference"] == pytest.approx(1 / 3)
    assert {"lm-a layer 4", "lm-a s1 layer 4"} <= set(found) and found["lm-a s1 layer 4"][
        "pairs"
    ] == 3
    assert "lm-a" not in found


def test_several_arms_against_one_reference(tmp_path):
    arms = ["gated", "topk", "baseline"]
    key = study(n=6, cells=CELLS[:1], arms=arms)
    table = joined(
        tmp_path, key, exported(key, lambda v: {"gated": 2, "topk": 1, "baseline": 0}[v["arm"]])
    )
    found = rating_analysis.analyse(table, arms, "baseline")["comparisons"]
    assert [(c["arm"], c["contrasts"]["all"]["difference"]) for c in found] == [
        ("gated", 2),
        ("topk", 1),
    ]


# Secondary effects.


def test_friedman_of_a_textbook_table():
    # Hollander & Wolfe, rounding first base: 22 runners, three methods, S = 11.1 with ties.
    rows = """5.40 5.50 5.55;5.85 5.70 5.75;5.20 5.60 5.50;5.55 5.50 5.40;5.90 5.85 5.70;5.45 5.55 5.60;5.40 5.40 5.35;
    5.45 5.50 5.35;5.25 5.15 5.00;5.85 5.80 5.70;5.25 5.20 5.10;5.65 5.55 5.45;5.60 5.35 5.45;5.05 5.00 4.95;
    5.50 5.50 5.40;5.45 5.55 5.50;5.55 5.55 5.35;5.45 5.50 5.55;5.50 5.45 5.25;5.65 5.60 5.40;5.70 5.65 5.55;
    6.30 6.30 6.25"""
    table = pd.DataFrame([[float(x) for x in r.split()] for r in rows.split(";")])
    found = rating_effects.related(table)
    assert found["p"] == pytest.approx(stats.chi2.sf(11.1, 2), rel=0.05) and found["blocks"] == 22


def test_a_planted_effect_is_found_where_it_is_and_nowhere_else(tmp_path):
    key = study(n=12)
    noise = rng(7)

    def label(v):
        rise = {4: 0.0, 9: 0.6, 15: 1.2}[v["layer"]] if v["arm"] == "gated" else 0.6
        return int(np.clip(np.round(rise + noise.normal(0.4, 0.6)), 0, 2))

    table = joined(tmp_path, key, exported(key, label))
    found = rating_effects.effects(rating_statistics.label_differences(table, *ARMS), "d")
    assert found["layer, lm-a"]["p"] < 1e-3 and found["layer trend, lm-a"]["p"] < 1e-4
    assert found["site"]["p"] > 0.05 and found["site"]["blocks"] == 36
    falling = table.assign(layer=-table["layer"])
    assert (
        rating_effects.effects(rating_statistics.label_differences(falling, *ARMS), "d")[
            "layer trend, lm-a"
        ]["p"]
        > 0.99
    )


def test_layers_are_ordered_as_numbers(tmp_path):
    key = study(n=8, cells=[("lm-a", "s1", layer) for layer in (4, 9, 15)])
    table = joined(tmp_path, key, exported(key, lambda v: {4: 0, 9: 1, 15: 2}[v["layer"]]))
    found = rating_effects.effects(table, "label")
    assert (
        found["layer trend, lm-a"]["levels"] == ["4", "9", "15"]
        and found["layer trend, lm-a"]["p"] < 1e-4
    )


def test_a_strict_rater_is_seen_in_labels_and_not_in_differences(tmp_path):
    key = study(n=4, cells=CELLS[:6])
    noise = rng(3)
    soft = exported(key, lambda v: int(noise.choice(3, p=[0.1, 0.2, 0.7])), "soft")
    also = exported(key, lambda v: int(noise.choice(3, p=[0.1, 0.2, 0.7])), "also soft")
    strict = exported(key, lambda v: int(noise.choice(3, p=[0.7, 0.2, 0.1])), "strict")
    table = joined(tmp_path, key, soft, also, strict)
    raw = rating_effects.effects(table, "label")
    assert (
        raw["rater"]["test"] == "Kruskal-Wallis"
        and raw["rater"]["p"] < 1e-6
        and raw["rater, lm-a"]["p"] < 1e-6
    )
    assert (
        rating_effects.effects(rating_statistics.label_differences(table, *ARMS), "d")[
            "rater, lm-a"
        ]["p"]
        > 0.05
    )


def test_raters_with_latents_of_their_own_are_matched_by_cell(tmp_path):
    key = study(n=2, pages=3)
    rows = [exported(key, lambda v, k=k: k, f"R{k}", k + 1) for k in range(3)]
    found = rating_effects.effects(joined(tmp_path, key, *rows), "label")
    assert found["rater, lm-a"]["blocks"] == 9 * 2 * 2 and found["rater, lm-a"]["p"] < 1e-6
    assert found["site"]["blocks"] == 3 * 6 * 2 and found["site"]["p"] == 1.0


def test_two_levels_and_one_level(tmp_path):
    key = study(
        n=9, cells=[("lm-a", "s1", 4), ("lm-a", "s1", 9), ("lm-b", "s1", 4), ("lm-b", "s1", 9)]
    )
    table = joined(
        tmp_path, key, exported(key, lambda v: 2 if v["lm"] == "lm-b" else int(v["layer"] == 9))
    )
    found = rating_effects.effects(table, "label")
    assert found["layer, lm-a"]["test"] == "Wilcoxon-Pratt" and found["layer, lm-a"]["p"] < 1e-3
    assert found["layer, lm-b"]["p"] == 1.0
    assert found["model"]["test"] == "Mann-Whitney" and found["model"]["p"] < 1e-6
    for name in ("site", "rater", "layer trend, lm-a"):
        assert np.isnan(found[name]["p"]) and "needs" in found[name]["why"]


def test_effects_have_the_error_rate_they_claim():
    tied, free = [], []
    for seed in range(300):
        labels, normal = (
            pd.DataFrame(x)
            for x in (rng(seed).integers(0, 3, (18, 3)), rng(seed).normal(size=(18, 3)))
        )
        tied.append(
            [
                test(labels)["p"] < 0.1
                for test in (rating_effects.related, rating_effects.page_trend)
            ]
        )
        free.append(rating_effects.page_trend(normal)["p"] < 0.1)
    friedman, trend = np.mean(tied, 0)
    assert friedman == pytest.approx(0.1, abs=0.045)
    assert (
        0.01 < trend < 0.1 and 0.04 < np.mean(free) < 0.12
    )  # exact, discrete, and conservative with ties


# Agreement.


def test_krippendorff_of_the_published_example():
    # Krippendorff, "Computing Krippendorff's alpha-reliability": four observers, twelve units,
    # interval alpha .849.
    text = (
        "1 2 3 3 2 1 4 1 2 . . .;1 2 3 3 2 2 4 1 2 5 . 3;. 3 3 3 2 3 4 2 2 5 1 .;1 2 3 3 2 4 4 "
        "1 2 5 1 ."
    )
    values = [[np.nan if x == "." else float(x) for x in row.split()] for row in text.split(";")]
    assert rating_agreement.krippendorff(values) == pytest.approx(0.849, abs=5e-4)


def test_krippendorff_at_its_ends():
    same = rng().integers(0, 3, 400).astype(float)
    assert rating_agreement.krippendorff([same, same]) == pytest.approx(1)
    assert rating_agreement.krippendorff(rng(1).integers(0, 3, (3, 4000))) == pytest.approx(
        0, abs=0.04
    )
    assert rating_agreement.krippendorff([same, 2 - same]) < -0.9
    assert np.isnan(rating_agreement.krippendorff(np.ones((2, 5)))) and np.isnan(
        rating_agreement.krippendorff([[1, np.nan]])
    )


def test_agreement_counts_only_shared_items(tmp_path):
    key = study(n=2, pages=2, shared=1, cells=CELLS[:3])
    one, two = (exported(key, lambda v: v["replicate"] % 3, r, p) for r, p in (("A", 1), ("B", 2)))
    found = rating_agreement.agreement(joined(tmp_path, key, one, two))
    assert found["items"] == 6 and found["equal"] == 1.0
    alone = rating_agreement.agreement(joined(tmp_path, key, one))
    assert alone["items"] == 0 and np.isnan(alone["alpha"])


# Files that are wrong.


def broken(change):
    key = study(n=2, cells=CELLS[:1])
    data = exported(key, lambda v: 1)
    change(data)
    return key, data


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda d: d.update(study="other"), "0.json rates study 'other', the key is of 'abc'"),
        (lambda d: d.update(page=7), "rates page 7, the key has 1"),
        (lambda d: d.update(schema=9), "schema 9"),
        (lambda d: d.update(rater="  "), "'rater' is empty"),
        (lambda d: d.pop("ratings"), "has no 'ratings'"),
        (lambda d: d.update(ratings=[]), "has no rating"),
        (lambda d: d["ratings"].__setitem__(2, "x"), "0.json, rating 3: expected an object"),
        (lambda d: d["ratings"][1].update(rating="yes"), (r"rating 2 \(item 0.0.b\): rating 'yes' "
        r"is not one of No")),
        (lambda d: d["ratings"][1].update(rating=1), "rating 2: 'rating' must be a str"),
        (lambda d: d["ratings"][1].update(item="zz"), (r"rating 2 \(item zz\): the key has no such "
        r"item")),
        (lambda d: d["ratings"][1].update(item="0.0.g"), (r"rating 2 \(item 0.0.g\): the item is "
        r"rated before")),
        (lambda d: d["ratings"][1].update(explanation=3), "'explanation' must be a text"),
        (lambda d: d["ratings"].pop(1), "1 of 4 items are not rated, the first is 0.0.b"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_entry(tmp_path, change, message):
    key, data = broken(change)
    with pytest.raises(rating_files.RatingError, match=message) as error:
        joined(tmp_path, key, data)
    assert "0.json" in str(error.value)


def test_items_of_another_page_and_repeated_raters(tmp_path):
    key = study(n=2, pages=2, cells=CELLS[:1])
    strange = exported(key, lambda v: 1)
    strange["ratings"][3]["item"] = key["pages"][1]["items"][0]
    with pytest.raises(rating_files.RatingError, match="rating 4 .*not on page 1"):
        joined(tmp_path, key, strange)
    with pytest.raises(
        rating_files.RatingError, match=r"rates item \S+ in .*0.json and in .*1.json"
    ):
        joined(tmp_path, key, *[exported(key, lambda v: 1)] * 2)


def test_partial_files_keep_the_pairs_rated_on_both_sides(tmp_path):
    key, data = broken(lambda d: d["ratings"].pop(1))
    table = joined(tmp_path, key, data, partial=True)
    assert len(table) == 3 and list(rating_statistics.label_differences(table, *ARMS)["pair"]) == [
        "0-1"
    ]
    data["ratings"] = data["ratings"][:1]
    with pytest.raises(ValueError, match="no pair of gated and baseline is rated on both sides"):
        rating_analysis.compare(joined(tmp_path, key, data, partial=True), *ARMS)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda k: k.pop("items"), "has no 'items'"),
        (lambda k: k["items"]["0.0.g"].pop("site"), "item 0.0.g: has no 'site'"),
        (
            lambda k: k["items"]["0.0.g"].update(arm="other"),
            "item 0.0.g: arm 'other' is not one of gated, baseline",
        ),
        (lambda k: k["pages"][0]["items"].append("zz"), "page 1: item 'zz' has no entry"),
        (lambda k: k.update(reference="x"), "reference 'x'"),
        (lambda k: k.update(ratings=[]), "is a rating file, not a key"),
    ],
)
def test_a_wrong_key_is_named_with_its_item(tmp_path, change, message):
    key = study(n=2, cells=CELLS[:1])
    change(key)
    path = tmp_path / "key.json"
    path.write_text(json.dumps(key))
    with pytest.raises(rating_files.RatingError, match=message) as error:
        rating_files.read_key(path)
    assert str(path) in str(error.value)


# The command.


def test_score_prints_a_table_and_writes_json(tmp_path, capsys):
    key = study(n=6, pages=2, shared=1)
    noise = rng(5)
    paths = []
    for page, rater in ((1, "AB"), (2, "CD")):
        label = lambda v: int(np.clip(noise.integers(0, 3) + (v["arm"] == "gated"), 0, 2))
        paths.append(tmp_path / f"{rater}.json")
        paths[-1].write_text(json.dumps(exported(key, label, rater, page)))
    (tmp_path / "key.json").write_text(json.dumps(key))
    arguments = [
        "study",
        "score",
        *map(str, paths),
        "--key",
        str(tmp_path / "key.json"),
        "--json",
        str(tmp_path / "r"),
    ]
    assert main(arguments) == 0
    told, record = capsys.readouterr().out, json.loads((tmp_path / "r").read_text())
    row = record["comparisons"][0]["contrasts"]["all"]
    assert row["pairs"] == 9 * 13 and row["difference"] > 0.3 and row["p"] < 1e-3
    assert f"{row['difference']:+.2f}" in told and "not inferior" in told
    assert (
        record["comparisons"][0]["effects_on_differences"]["model"]["p"] is None
    )  # NaN is not json
    table = record["comparisons"][0]["contingency"]["all"]
    assert sum(map(sum, table)) == 9 * 14  # nine shared pairs, rated twice
    assert (
        "The paper, 171 pairs: +0.13 [+0.00, +0.26], p 0.060" in told
        and told.count("Ratings, ") == 4
    )  # all, 3 sites
    assert "Krippendorff" in told and record["agreement"]["items"] == 18


SIX = [("lm-a", site, layer) for site in ("s1", "s2", "s3") for layer in (8, 20)]


def test_the_report_has_the_mean_labels_of_sites_and_layers_with_intervals(tmp_path):
    key, noise = study(n=10, cells=SIX), rng(2)
    label = lambda v: int(
        np.clip(noise.integers(0, 3) - (v["layer"] == 20 and v["arm"] == "baseline"), 0, 2)
    )
    found = rating_analysis.analyse(joined(tmp_path, key, exported(key, label)), ARMS, "baseline")
    told = rating_report.text(found)
    of = found["comparisons"][0]["contrasts"]
    assert list(of) == ["all", "s1", "s2", "s3", "lm-a layer 8", "lm-a layer 20", *[" ".join(
        (lm, site, f"layer {layer}")) for lm, site, layer in SIX]]  # fmt: skip
    section = told[told.index("Mean labels of each arm:") :].split("\n\n")[0].splitlines()
    assert len(section) == 1 + 1 + len(of)
    for name in ("s2", "lm-a layer 20"):
        (line,) = [row for row in section if row.startswith(name + "  ")]
        row = of[name]
        for mean, bounds in (
            ("mean_arm", "arm_interval"),
            ("mean_reference", "reference_interval"),
        ):
            assert f"{row[mean]:.2f}  [{row[bounds][0]:.2f}, {row[bounds][1]:.2f}]" in line
    assert of["lm-a layer 20"]["mean_reference"] < of["lm-a layer 8"]["mean_reference"] - 0.3
    assert told.startswith("120 ratings by 1 rater: AB")
    effects = found["comparisons"][0]["effects_on_differences"]
    assert effects["site"]["test"] == "Friedman" and effects["site"]["blocks"] == 20
    assert effects["layer, lm-a"]["test"] == "Wilcoxon-Pratt" and effects["layer, lm-a"]["p"] < 0.2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("answers", [(0, 1, 2), (1,), (0, 2)])
@pytest.mark.parametrize("kept", [2, 3, 5, 12])
def test_one_rater_and_few_ratings_give_a_table_without_warnings(tmp_path, capsys, kept, answers):
    key = study(n=1, cells=SIX)
    data = exported(key, lambda v: answers[(v["layer"] + (v["arm"] == "gated")) % len(answers)])
    data["ratings"] = data["ratings"][:kept]
    (tmp_path / "r.json").write_text(json.dumps(data))
    (tmp_path / "key.json").write_text(json.dumps(key))
    assert (
        main(
            [
                "study",
                "score",
                str(tmp_path / "r.json"),
                "--key",
                str(tmp_path / "key.json"),
                "--partial",
            ]
        )
        == 0
    )
    told = capsys.readouterr()
    (row,) = [
        line.split()
        for line in told.out.splitlines()
        if line.startswith("all ") and "too few pairs" in line
    ]
    assert (
        row[1] == str(kept // 2) and not told.err and f"{kept} ratings by 1 rater: AB" in told.out
    )


def test_score_names_a_file_that_is_not_json(tmp_path, capsys):
    (tmp_path / "key.json").write_text(json.dumps(study()))
    (tmp_path / "bad.json").write_text("{")
    assert (
        main(["study", "score", str(tmp_path / "bad.json"), "--key", str(tmp_path / "key.json")])
        == 1
    )
    assert "bad.json is not json" in capsys.readouterr().err
    assert (
        main(["study", "score", str(tmp_path / "none.json"), "--key", str(tmp_path / "key.json")])
        == 1
    )
    assert "cannot read" in capsys.readouterr().err


def test_report_of_equal_ratings_says_so(tmp_path):
    key = study(n=2, cells=CELLS[:1])
    told = rating_report.text(
        rating_analysis.analyse(joined(tmp_path, key, exported(key, lambda v: 1)), ARMS, "baseline")
    )
    assert (
        "all differences are equal" in told
        and "too few pairs" in told
        and "no latent was rated by two" in told
    )
