"""The automated scores of a study as data: what is scored and with which controls, their tables,
what is compared.

Not in the paper. A score is a result file (gsae.evidence.result_files, experiment "study_scores")
with the value of every latent. No torch: `gsae.interpretability.collect_and_score` computes what is
missing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gsae.evidence import provenance, result_files, run_files
from gsae.experiments import records, sweeps
from gsae.interpretability import compared_saes, matched_pairs
from gsae.interpretability.automated_scores import CHANCE, INTRUDER, RULE
from gsae.interpretability.compared_saes import SAE, Cell
from gsae.interpretability.rating_report import several
from gsae.interpretability.rating_statistics import CELL, contrast, interval

STUDY = "study"  # the experiment whose SAEs are compared
SCORES = "study_scores"  # that of their scores
LATENTS = {"smoke": 8}  # drawn at random from the live ones of each SAE; 60 elsewhere
# further latents of each SAE, neither rated nor scored: those that the book shows openly are of
# them
APART = 20
TOKENS = {"smoke": 4_064}  # of evaluation text read; 100,000 elsewhere
NONE = "none"  # no control: the latents themselves
SINGLE, RANDOM, SHUFFLED = "single tokens", "random directions", "shuffled"
CONTROLS = (NONE, SINGLE, RANDOM, SHUFFLED)
SETTINGS = ["run", "control", "score", "latents", "tokens", "seed"]  # what names a score
SEED = 0


def wanted_scores(at: str) -> tuple[str, ...]:
    """At smoke the rule alone: the intruder test's sentence model is another download."""
    return (RULE,) if at == "smoke" else (RULE, INTRUDER)


def sizes(at: str) -> tuple[int, int]:
    """Latents drawn from each SAE, and tokens of text read, at a scale."""
    return LATENTS.get(at, 60), TOKENS.get(at, 100_000)


def settings(run: str, control: str, score: str, at: str) -> dict:
    """What names a score."""
    latents, tokens = sizes(at)
    return dict(zip(SETTINGS, (run, control, score, latents, tokens, SEED), strict=True))


def wanted(run: str, at: str) -> list[dict]:
    """The settings of all scores of an SAE and of its controls."""
    return [
        settings(run, control, score, at) for control in CONTROLS for score in wanted_scores(at)
    ]


def missing(run: str, at: str) -> list[dict]:
    """Those of an SAE's scores that are not on record."""
    return records.missing_results(SCORES, wanted(run, at), at)


def folder(scale: str | None = None) -> Path:
    """Where the collected latents of a scale are: book/study, or beside evidence that is not in the
    repository.
    """
    evidence = run_files.root(sweeps.scale(scale)).parent
    if evidence == provenance.CHECKOUT / "book" / "evidence":
        return evidence.with_name("study")
    return evidence / "study"


def compared(scale: str | None = None) -> tuple[dict[Cell, list[SAE]], list[str]]:
    """Place -> its gated and its baseline SAE of equal L0, among the study's runs on record; and
    why a place has none.

    At smoke, where nothing is matched, the study's two runs whatever their L0.
    """
    at = sweeps.scale(scale)
    saes = compared_saes.recorded(at, [STUDY])
    if at != "smoke":
        return matched_pairs.match(saes)
    if len(saes) != len(matched_pairs.ARMS):
        return {}, []
    pair = sorted(saes, key=lambda sae: matched_pairs.ARMS.index(sae.arm))
    return {pair[0].cell: pair}, []


def table(scale: str | None = None) -> pd.DataFrame:
    """One row a score of each SAE compared and of each of its controls: `arm, run, lm, site, layer,
    l0, control, score, mean, standard_error, scored, value, place, status`; what is not on record
    has status "missing". `value` lists the scores of the latents that have enough examples, `place`
    their places in the order of drawing.
    """
    at = sweeps.scale(scale)
    recipe = result_files.recipe(SCORES)
    rows = []
    for (lm, site, layer), saes in compared(at)[0].items():
        for sae in saes:
            place = {"arm": sae.arm, "lm": lm, "site": site, "layer": layer, "l0": sae.l0}
            for named in wanted(sae.run, at):
                score_id = result_files.result_id(SCORES, named, recipe)
                rows.append(place | named | {"id": score_id})
    columns = ["arm", *CELL, "l0", *SETTINGS, "id"]
    rows = pd.DataFrame(rows, columns=columns).astype({"id": object})
    results = result_files.load_results(SCORES, at).astype({"id": object})
    results = results[["id", *(column for column in results if column not in rows)]]
    rows = rows.merge(results, "left", on="id")
    rows["status"] = rows["status"].fillna("missing").astype(str)
    # Where nothing is on record, there is no column of values yet.
    values = ("mean", "standard_error", "scored", "value", "place")
    return rows.reindex(columns=[*rows, *(column for column in values if column not in rows)])


def done(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have numbers."""
    return rows[(rows["status"] != "missing") & (rows["scored"] > 0)]


def note(rows: pd.DataFrame, at: str) -> str:
    """What a figure of these rows says of itself: scale, sizes, and what is missing."""
    latents, tokens = sizes(at)
    places = several(len(rows.groupby(CELL)), "place")
    text = (
        f"scale {at}: {latents} latents an SAE, {places}, {tokens:,} tokens of text, "
        "bars 90 % BCa intervals"
    )
    if at == "smoke":
        text += ". A test of the code, not a result"
    absent = int((rows["status"] == "missing").sum())
    if absent:
        text += f". MISSING: {absent} of {len(rows)} scores"
    return text


def covered(rows: pd.DataFrame) -> str:
    """The places of a table in words: "smollm2: attn_z at layers 8 and 20; mlp_out at layer 8"."""
    models = []
    for lm, of_lm in rows.groupby("lm"):
        layers = of_lm.groupby("site")["layer"]
        sites = [f"{site} at {named_layers(set(numbers))}" for site, numbers in layers]
        models.append(f"{lm}: {'; '.join(sites)}")
    return ". ".join(models) or "none yet"


def named_layers(numbers: set[int]) -> str:
    """ "layer 8", "layers 4, 8 and 20"."""
    *first, last = map(str, sorted(numbers))
    return f"layers {', '.join(first)} and {last}" if first else f"layer {last}"


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and 90 % interval of each score, arm and control over the latents of all places, with
    how many latents had enough examples, and chance.
    """
    by = ["score", "control", "arm"]
    means = []
    for named, places in done(rows).groupby(by, sort=False):
        values = np.concatenate(places["value"].to_list()).astype(float)
        low, high = interval(values)
        row = dict(zip(by, named, strict=True))
        row |= {"mean": values.mean(), "low": low, "high": high, "chance": CHANCE[row["score"]]}
        row["latents"] = f"{len(values)} of {places['latents'].sum()}"
        means.append(row)
    return pd.DataFrame(means, columns=[*by, "mean", "low", "high", "chance", "latents"])


def differences(rows: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Gated minus baseline, score by score, for the latents and for each control, with the study's
    own statistics.

    A pair is the n-th latent drawn of each arm at one place; pairs of which one side has too few
    examples are left out. The rating pages draw their own pairs of the same latents.

    Args:
        by: further columns to split by, such as `rating_statistics.CELL`; else all places count
            together.

    Returns:
        `score, control, *by, pairs, gated, baseline, difference, low, high, p`: 90 % BCa interval
        of the mean difference and p of the one-sided Wilcoxon-Pratt test. Empty where an arm is
        missing.
    """
    arm, reference = matched_pairs.ARMS
    keys, tests = ["score", "control", *by], []
    for named, places in done(rows).groupby(keys, sort=False):
        pairs = paired(places, arm, reference)
        if pairs.empty:
            continue
        test = contrast(pairs, arm, reference)
        low, high = test["interval"]
        tests.append(
            {
                **dict(zip(keys, named, strict=True)),
                "pairs": test["pairs"],
                arm: test["mean_arm"],
                reference: test["mean_reference"],
                "difference": test["difference"],
                "low": low,
                "high": high,
                "p": test["p"],
            }
        )
    columns = [*keys, "pairs", arm, reference, "difference", "low", "high", "p"]
    return pd.DataFrame(tests, columns=columns)


def paired(rows: pd.DataFrame, arm: str, reference: str) -> pd.DataFrame:
    """One row a pair of latents that both have a score: the scores and their difference `d`."""
    latents = rows[["arm", *CELL, "place", "value"]].explode(["place", "value"])
    pair = latents[[*CELL, "place"]].astype(str).agg(" ".join, axis=1)
    latents = latents.assign(pair=pair, value=latents["value"].astype(float))
    pairs = latents.pivot(index="pair", columns="arm", values="value")
    pairs = pairs.reindex(columns=[arm, reference]).dropna().reset_index()
    return pairs.assign(d=pairs[arm] - pairs[reference])
