"""The scores of an SAE's latents and of their controls that are not on record: computed and
written.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gsae.evidence import result_files
from gsae.interpretability import automated_scores, score_controls, score_tables
from gsae.interpretability.place import Place


def write_missing(
    run: str,
    at: str,
    examples: Callable[[str], dict],
    embed: Callable[[], automated_scores.Embed],
    record: dict,
    began: float,
    force: bool,
) -> None:
    """Compute and write what `score_tables.missing` names.

    Args:
        examples: control -> its examples; asked for those alone of which a score is missing.
        embed: makes the embedding of the intruder test, where that is missing.
        record: the provenance of the results, but for their seconds.
        began: of the work for the first score, which pays for the collecting.
    """
    missing = score_tables.missing(run, at)
    for control in score_tables.CONTROLS:
        settings_of_control = [s for s in missing if s["control"] == control]
        if not settings_of_control:
            continue
        data = examples(control)
        for settings in settings_of_control:
            values = score_values(data, settings["score"], embed)
            origin = record | {"seconds": round(time.monotonic() - began, 1)}
            path = result_files.write_result(
                score_tables.SCORES, settings, values, origin, at, force=force
            )
            print(path, file=sys.stderr)
            began = time.monotonic()


def control_examples(
    name: str, place: Place, sae, chosen: list[int], drawn: dict, seed: int
) -> dict:
    """Examples of one control of an SAE: as many latents as were drawn, with their densities.

    Args:
        chosen: the latents drawn.
        drawn: what was collected of them.
    """
    scale = sae.about["scale"]
    densities = torch.tensor([latent["density"] for latent in drawn["latents"]])
    if name == score_tables.SINGLE:
        tokens = place.blocks[:, 1:].flatten()
        shares = tokens.bincount() / len(tokens)
        read = score_controls.single_tokens(tokens_of_share(densities, shares))
    elif name == score_tables.SHUFFLED:
        shuffled = score_controls.Shuffled(sae, seed)
        read = place.read(lambda x: shuffled.encode(x)[..., chosen], scale)
    else:
        directions = score_controls.RandomDirections(place.sample(scale), densities, seed)
        read = place.read(directions.encode, scale)
    return score_controls.control(name, place.blocks, read, place.lm.tokenizer, seed=seed)


def tokens_of_share(densities: Float[Tensor, " K"], shares: Float[Tensor, " V"]) -> list[int]:
    """For each density a token of about that share of the text, no token twice."""
    left, tokens = shares.clone(), []
    for density in densities.tolist():
        distance = (left.log() - np.log(density)).abs()
        token = int(distance.nan_to_num(torch.inf).argmin())
        left[token] = torch.nan  # taken
        tokens.append(token)
    return tokens


def score_values(data: dict, score: str, embed: Callable[[], automated_scores.Embed]) -> dict:
    """One score of collected examples, as the values of a result: those of each latent that has
    enough examples.
    """
    if score == automated_scores.RULE:
        rows = automated_scores.rule(data)
    else:
        rows = automated_scores.intruder(data, embed())
    scored = rows.dropna(subset="value")
    value = scored["value"]
    values = {
        "scored": len(value),
        "value": value.tolist(),
        "place": scored.index.tolist(),
        "latent": scored["latent"].tolist(),
    }
    if len(value):
        values["mean"] = float(value.mean())
    if len(value) > 1:
        values["standard_error"] = float(value.std() / np.sqrt(len(value)))
    return values
