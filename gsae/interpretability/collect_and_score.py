"""From trained SAEs to what is committed of them: latents drawn at random, their dashboards' data,
automated scores.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gsae.evidence import provenance, result_files, run_files
from gsae.evidence import run as run_module
from gsae.experiments import retrain
from gsae.experiments.estimate import TooLarge, check
from gsae.experiments.site import Site
from gsae.interpretability import (
    automated_scores,
    dashboards,
    latent_files,
    latents,
    matched_pairs,
    score_controls,
    score_tables,
)
from gsae.lm import models as language_models
from gsae.saes import ARCHITECTURES, files
from gsae.system.devices import machine
from gsae.system.files import cache_dir

THRESHOLD_BLOCKS = 512  # of the text, on which random directions get their thresholds


class Once(language_models.LM):
    """A language model that reads each batch of text once: the activations are kept in bfloat16, 2
    n bytes a token.
    """

    def __init__(self, lm: language_models.LM):
        vars(self).update(vars(lm))
        self.kept: dict = {}

    def activations(self, tokens, sites):
        key = (tokens.cpu().numpy().tobytes(), *sites)
        if key not in self.kept:
            found = super().activations(tokens, sites)
            self.kept[key] = {site: x.bfloat16().cpu() for site, x in found.items()}
        return self.kept[key]


def held_out(run: run_module.Run, lm: language_models.LM, tokens: int) -> Int[Tensor, "N T"]:
    """Blocks of evaluation text with at least that many tokens after position 0."""
    blocks = Site(run, lm).blocks("eval", -(-tokens // (run.context - 1)))
    return torch.as_tensor(blocks.with_format("torch")["tokens"][:]).long()


class Place:
    """One place of a language model with the text that its SAEs' latents are shown on: `lm, blocks,
    key`.
    """

    def __init__(self, run: run_module.Run, lm: language_models.LM, tokens: int):
        self.lm, self.key = Once(lm), (run.site, run.layer)
        self.blocks = held_out(run, self.lm, tokens)

    def read(self, encode: Callable[[Tensor], Tensor], scale: float) -> Callable[[Tensor], Tensor]:
        """`read` of `gsae.interpretability.examples`: tokens -> what `encode` makes of the scaled
        activations from position 1 on.
        """
        return lambda part: encode(
            self.lm.activations(part, [self.key])[self.key][:, 1:].float() * scale
        )

    @torch.no_grad()
    def counts(self, encode: Callable[[Tensor], Tensor], scale: float) -> Int[Tensor, " M"]:
        """At how many tokens each latent is on."""
        read = self.read(encode, scale)
        return sum((read(part) > 0).sum((0, 1)) for part in self.blocks.split(16))

    @torch.no_grad()
    def some(self, scale: float) -> Float[Tensor, "tokens n"]:
        """Scaled activations of the first blocks."""
        read = self.read(lambda x: x, scale)
        return torch.cat(
            [read(part).flatten(0, 1) for part in self.blocks[:THRESHOLD_BLOCKS].split(16)]
        )


def weights(sae: matched_pairs.SAE) -> torch.nn.Module:
    """The kept weights of a run on record. Raises StudyError, naming run and file, where there are
    none.
    """
    path = files.weights(sae.run)
    if not path.exists():
        raise matched_pairs.StudyError(
            f"the weights of run {sae.run} ({sae.arm}, L0 {sae.l0:.1f}) are not in {path}: "
            "weights are not in git, and "
            "none that agree with the record could be made here. Run this where it was trained, "
            "or put them there"
        )
    return files.load(sae.run)


def train_again(
    saes: Sequence[matched_pairs.SAE], lm: language_models.LM, at: str, force: bool
) -> None:
    """Train again, held to their record, those SAEs of one place whose weights are not here; says
    how long at most.
    """
    known = [(sae.run, run_module.Run.of(run_files.read(Path(sae.file))["run"])) for sae in saes]
    lost = [run for name, run in known if run.id == name and retrain.weightless(run)]
    if lost:
        check(lost, at, cache_dir(), force=force, **machine())
        retrain.remake(lost, Site(lost[0], lm), at)


def nearest(densities: Float[Tensor, " K"], shares: Float[Tensor, " V"]) -> list[int]:
    """For each density a token of about that share of the text, no token twice."""
    left, found = shares.clone(), []
    for density in densities.tolist():
        found.append(int((left.log() - np.log(density)).abs().nan_to_num(torch.inf).argmin()))
        left[found[-1]] = torch.nan
    return found


def control(name: str, place: Place, sae, chosen: list[int], drawn: dict, seed: int) -> dict:
    """Examples of one control of an SAE: as many latents as were drawn, with their densities."""
    scale, densities = (
        sae.about["scale"],
        torch.tensor([latent["density"] for latent in drawn["latents"]]),
    )
    if name == score_tables.SINGLE:
        tokens = place.blocks[:, 1:].flatten()
        read = score_controls.single_tokens(nearest(densities, tokens.bincount() / len(tokens)))
    elif name == score_tables.SHUFFLED:
        shuffled = score_controls.Shuffled(sae, seed)
        read = place.read(lambda x: shuffled.encode(x)[..., chosen], scale)
    else:
        read = place.read(
            score_controls.RandomDirections(place.some(scale), densities, seed).encode, scale
        )
    return score_controls.control(name, place.blocks, read, place.lm.tokenizer, seed=seed)


def score(found: dict, name: str, embed: Callable[[], automated_scores.Embed]) -> dict:
    """One score of collected examples, as the values of a result: those of each latent that has
    enough examples.
    """
    rows = (
        automated_scores.rule(found)
        if name == automated_scores.RULE
        else automated_scores.intruder(found, embed())
    )
    kept = rows["value"].dropna()
    values = {"scored": len(kept), "value": kept.tolist(), "place": kept.index.tolist(),
              "latent": rows["latent"][kept.index].tolist()}  # fmt: skip
    if len(kept):
        values["mean"] = float(kept.mean())
    if len(kept) > 1:
        values["standard_error"] = float(kept.std() / np.sqrt(len(kept)))
    return values


def kept_in(run: str, at: str) -> tuple[Path, Path]:
    """Files of an SAE's latents to be rated and scored, and of those that the book shows openly."""
    return score_tables.folder(at) / f"{run}.json", score_tables.folder(
        at
    ) / "apart" / f"{run}.json"


def collect_one(
    sae: matched_pairs.SAE,
    place: Place,
    at: str,
    embed: Callable[[], automated_scores.Embed],
    force: bool,
) -> None:
    """Draw latents of one SAE, keep what their dashboards show, score them and the controls. What
    exists is kept.
    """
    began = time.monotonic()
    model, (count, _) = weights(sae), score_tables.sizes(at)
    scale, seed = model.about["scale"], score_tables.SEED
    alive = (place.counts(model.encode, scale) > 0).nonzero()[:, 0]
    order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))
    chosen = alive[order[:count]].tolist()
    if len(chosen) < count:
        raise matched_pairs.StudyError(
            f"run {sae.run} has {len(chosen)} latents that are ever on in this text, not {count}"
        )
    record = provenance.provenance(
        "cpu", 0.0, *run_module.sources(place.lm.name, place.blocks.shape[1])
    )
    about = {"arm": sae.arm, "l0": sae.l0, "lam": sae.lam, "live": len(alive), "seed": seed,
             **{k: record[k] for k in ("commit", "date")}}  # fmt: skip
    drawn = latents.collect(
        model, place.lm, place.blocks, *place.key, chosen, run=sae.run, about=about
    )
    target, apart = kept_in(sae.run, at)
    if not target.exists():
        print(latent_files.save(latent_files.slim(drawn), target), file=sys.stderr)
    if not apart.exists():  # no latent that is shown with its architecture may be on a rating page
        others = alive[order[count : count + score_tables.APART]].tolist()
        found = latents.collect(
            model, place.lm, place.blocks, *place.key, others, run=sae.run, about=about
        )
        print(latent_files.save(latent_files.slim(found), apart), file=sys.stderr)
    for name in score_tables.CONTROLS:
        todo = [score_tables.settings(sae.run, name, s, at) for s in score_tables.wanted_scores(at)]
        todo = [of for of in todo if result_files.find_result(score_tables.SCORES, of, at) is None]
        if todo:
            found = (
                drawn
                if name == score_tables.NONE
                else control(name, place, model, chosen, drawn, seed)
            )
        for of in todo:
            values, seconds = score(found, of["score"], embed), time.monotonic() - began
            origin = record | {"seconds": round(seconds, 1)}
            print(
                result_files.write_result(score_tables.SCORES, of, values, origin, at, force=force),
                file=sys.stderr,
            )
            began = time.monotonic()


def incomplete(sae: matched_pairs.SAE, at: str) -> bool:
    """Whether latents or a score of an SAE are missing."""
    named = (
        score_tables.settings(sae.run, c, s, at)
        for c in score_tables.CONTROLS
        for s in score_tables.wanted_scores(at)
    )
    rated, apart = (path.exists() for path in kept_in(sae.run, at))
    # Nothing is computed from those kept apart: they do not ask for weights that are elsewhere.
    return (
        not rated
        or (not apart and files.weights(sae.run).exists())
        or any(result_files.find_result(score_tables.SCORES, of, at) is None for of in named)
    )


def run(scale: str | None = None, *, force: bool = False) -> pd.DataFrame:
    """Collect and score the latents of the study's matched SAEs: reads what is on record, computes
    what is missing.

    Latents are drawn at random from those that are on at least once in the text. What dashboards
    show goes to `automated.folder()`, the scores to result files. Weights that this machine lacks
    are trained again and held to the run's record. With GSAE_TRAIN=never nothing is computed.
    Returns `automated.table`.

    Raises:
        StudyError: no matched SAEs on record, with the lambda to train; or, after the other places
            are collected, no weights that agree with their record, no room to train them, or too
            few latents.
        EvidenceError: a changed tree at a scale other than smoke; `force` writes all the same.
    """
    at = run_module.scale(scale)
    cells, problems = score_tables.compared(at)
    todo = {cell: [s for s in saes if incomplete(s, at)] for cell, saes in cells.items()}
    todo = {cell: saes for cell, saes in todo.items() if saes}
    if os.environ.get("GSAE_TRAIN") == "never":
        return score_tables.table(at)
    if not cells:
        raise matched_pairs.StudyError(
            "; ".join(problems)
            or f"no run of the study is on record at {at}: `gsae run {score_tables.STUDY}`"
        )
    if todo and at != "smoke" and not force:
        provenance.require_clean()
    load, embed, failed = cache(language_models.load), cache(automated_scores.sentences), []
    for saes in sorted(
        todo.values(), key=lambda of: not all(files.weights(s.run).exists() for s in of)
    ):
        run = run_module.Run.of(run_files.read(Path(saes[0].file))["run"])
        try:
            train_again(saes, load(run.lm), at, force)
            list(map(weights, saes))  # before the place's text is read, not after it
            place = Place(run, load(run.lm), score_tables.sizes(at)[1])
            for sae in saes:
                collect_one(sae, place, at, embed, force)
        except (matched_pairs.StudyError, TooLarge) as why:
            failed.append(str(why))
    if failed:
        raise matched_pairs.StudyError(
            "; ".join(failed) + f" ({len(todo) - len(failed)} of {len(todo)} places are collected)"
        )
    return score_tables.table(at)


def show(
    where: str,
    count: int,
    tokens: int,
    folder: Path,
    seed: int = 0,
    lm: str = "",
    site: str = "",
    layer: int = -1,
) -> list[Path]:
    """Dashboards of latents of any SAE that `gsae.load` finds, drawn at random of all, from one
    pass over text.

    Args:
        lm, site, layer: where its activations are from, for an SAE that does not name the run that
            made it.

    Returns:
        The page, and the latents as data for `gsae study make`.

    Raises:
        StudyError: an SAE that does not say where its activations are from; or fewer latents than
            asked for.
    """
    sae = files.load(where)
    given = {k: v for k, v in (("lm", lm), ("site", site), ("layer", layer)) if v not in ("", -1)}
    origin = sae.about.get("run", {}) | given
    if missing := [f"--{k}" for k in ("lm", "site", "layer") if k not in origin]:
        raise matched_pairs.StudyError(
            f"{where} does not say which activations it reads: give {', '.join(missing)}"
        )
    if not 0 < count <= len(sae.W_dec):
        raise matched_pairs.StudyError(
            f"{where} has {len(sae.W_dec)} latents, {count} are asked for"
        )
    run, name = run_module.Run.of(origin), Path(where).stem
    arm = next(k for k, v in ARCHITECTURES.items() if type(sae) is v)
    model = language_models.load(run.lm)
    chosen = torch.randperm(len(sae.W_dec), generator=torch.Generator().manual_seed(seed))[
        :count
    ].tolist()
    found = latents.collect(
        sae, model, held_out(run, model, tokens), run.site, run.layer, chosen, run=name,
        about={"arm": arm, "seed": seed},
    )  # fmt: skip
    page = dashboards.write(found, folder / f"{name}.html", f"Latents of {name}")
    return [page, latent_files.save(latent_files.slim(found), folder / f"{name}.json")]
