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
from gsae.evidence import run as sweeps
from gsae.interpretability import matched_pairs, rating_report, rating_statistics
from gsae.interpretability.automated_scores import CHANCE, INTRUDER, RULE

STUDY, SCORES = (
    "study",
    "study_scores",
)  # the experiment whose SAEs are compared, and that of their scores
LATENTS = {"smoke": 8}  # drawn at random from the live ones of each SAE; 60 elsewhere
# further latents of each SAE, neither rated nor scored: those that the book shows openly are of
# them
APART = 20
TOKENS = {"smoke": 4_064}  # of evaluation text read; 100,000 elsewhere
NONE, SINGLE, RANDOM, SHUFFLED = CONTROLS = (
    "none",
    "single tokens",
    "random directions",
    "shuffled",
)
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
    return {
        "run": run,
        "control": control,
        "score": score,
        "latents": latents,
        "tokens": tokens,
        "seed": SEED,
    }


def folder(scale: str | None = None) -> Path:
    """Where the collected latents of a scale are: book/study, or beside evidence that is not in the
    repository.
    """
    home = run_files.root(sweeps.scale(scale)).parent
    return (
        home.with_name("study")
        if home == provenance.CHECKOUT / "book" / "evidence"
        else home / "study"
    )


def compared(
    scale: str | None = None,
) -> tuple[dict[matched_pairs.Cell, list[matched_pairs.SAE]], list[str]]:
    """Place -> its gated and its baseline SAE of equal L0, among the study's runs on record; and
    why a place has none.

    At smoke, where nothing is matched, the study's two runs whatever their L0.
    """
    at = sweeps.scale(scale)
    saes = matched_pairs.recorded(at, [STUDY])
    if at != "smoke":
        return matched_pairs.match(saes)
    found = sorted(saes, key=lambda s: matched_pairs.ARMS.index(s.arm))
    return ({found[0].cell: found}, []) if len(found) == len(matched_pairs.ARMS) else ({}, [])


def table(scale: str | None = None) -> pd.DataFrame:
    """One row a score of each SAE compared and of each of its controls: `arm, run, lm, site, layer,
    l0, control, score, mean, standard_error, scored, value, place, status`; what is not on record
    has status "missing". `value` lists the scores of the latents that have enough examples, `place`
    their places in the order of drawing.
    """
    at = sweeps.scale(scale)
    rows = []
    for (lm, site, layer), saes in compared(at)[0].items():
        for sae in saes:
            about = {"arm": sae.arm, "lm": lm, "site": site, "layer": layer, "l0": sae.l0}
            for control in CONTROLS:
                rows += [
                    about | settings(sae.run, control, score, at) for score in wanted_scores(at)
                ]
    for row in rows:
        named = {k: row[k] for k in settings("", "", "", at)}
        row["id"] = result_files.result_id(SCORES, named, result_files.recipe(SCORES))
    columns = ["arm", "lm", "site", "layer", "l0", *settings("", "", "", at), "id"]
    rows = pd.DataFrame(rows, columns=columns).astype({"id": object})
    found = result_files.load_results(SCORES, at).astype({"id": object})
    found = found[["id", *(c for c in found if c not in rows)]]
    rows = rows.merge(found, "left", on="id")
    rows["status"] = rows["status"].fillna("missing").astype(str)
    late = ("mean", "standard_error", "scored", "value", "place")
    return rows.reindex(columns=[*rows, *(c for c in late if c not in rows)])


def done(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have numbers."""
    return rows[(rows["status"] != "missing") & (rows["scored"] > 0)]


def note(rows: pd.DataFrame, at: str) -> str:
    """What a figure of these rows says of itself: scale, sizes, and what is missing."""
    latents, tokens = sizes(at)
    places = rating_report.several(len(rows.groupby(rating_statistics.CELL)), "place")
    text = f"scale {at}: {latents} latents an SAE, {places}, {tokens:,} tokens of text, "
    text += "bars 90 % BCa intervals"
    if at == "smoke":
        text += ". A test of the code, not a result"
    missing = int((rows["status"] == "missing").sum())
    return text + (f". MISSING: {missing} of {len(rows)} scores" if missing else "")


def covered(rows: pd.DataFrame) -> str:
    """The places of a table in words: "smollm2: attn_z at layers 8 and 20; mlp_out at layer 8"."""
    models = []
    for lm, of_lm in rows.groupby("lm"):
        sites = []
        for site, layers in of_lm.groupby("site")["layer"].unique().items():
            *first, last = map(str, sorted(layers))
            sites.append(
                f"{site} at layer{'s' * bool(first)} "
                f"{', '.join(first)}{' and ' * bool(first)}{last}"
            )
        models.append(f"{lm}: {'; '.join(sites)}")
    return ". ".join(models) or "none yet"


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and 90 % interval of each score, arm and control over the latents of all places, with
    how many latents had enough examples, and chance.
    """
    found = []
    for (score, control, arm), here in done(rows).groupby(["score", "control", "arm"], sort=False):
        value = np.concatenate(here["value"].to_list()).astype(float)
        found.append(
            {
                "score": score,
                "control": control,
                "arm": arm,
                "mean": value.mean(),
                "chance": CHANCE[score],
                **dict(zip(("low", "high"), rating_statistics.interval(value), strict=True)),
                "latents": f"{len(value)} of {here['latents'].sum()}",
            }
        )
    return pd.DataFrame(
        found, columns=["score", "control", "arm", "mean", "low", "high", "chance", "latents"]
    )


def differences(rows: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Gated minus baseline, score by score, for the latents and for each control, with the study's
    own statistics.

    A pair is the n-th latent drawn of each arm at one place; pairs of which one side has too few
    examples are left out. The rating pages draw their own pairs of the same latents.

    Args:
        by: further columns to split by, such as `statistics.CELL`; else all places count together.

    Returns:
        `score, control, *by, pairs, gated, baseline, difference, low, high, p`: 90 % BCa interval
            of the mean
        difference and p of the one-sided Wilcoxon-Pratt test. Empty where an arm is missing.
    """
    arm, reference = matched_pairs.ARMS
    keys, found = ["score", "control", *by], []
    for named, here in done(rows).groupby(keys, sort=False):
        long = here[["arm", *rating_statistics.CELL, "place", "value"]].explode(["place", "value"])
        cells = long[[*rating_statistics.CELL, "place"]].astype(str).agg(" ".join, axis=1)
        wide = long.assign(pair=cells, value=long["value"].astype(float)).pivot(
            index="pair", columns="arm", values="value"
        )
        wide = wide.reindex(columns=[arm, reference]).dropna().reset_index()
        if wide.empty:
            continue
        of = rating_statistics.contrast(wide.assign(d=wide[arm] - wide[reference]), arm, reference)
        found.append(
            {**dict(zip(keys, named, strict=True)), "pairs": of["pairs"], arm: of["mean_arm"],
             reference: of["mean_reference"], "difference": of["difference"],
             **dict(zip(("low", "high"), of["interval"], strict=True)), "p": of["p"]}
        )  # fmt: skip
    return pd.DataFrame(
        found, columns=[*keys, "pairs", arm, reference, "difference", "low", "high", "p"]
    )
