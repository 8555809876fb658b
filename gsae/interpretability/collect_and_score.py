"""From trained SAEs to what is committed of them: latents drawn at random, their dashboards' data,
automated scores.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from gsae.evidence import provenance
from gsae.evidence.run import sources
from gsae.experiments import records, retrain, sweeps
from gsae.experiments.estimate import TooLarge, check
from gsae.experiments.evaluate import Evaluation
from gsae.experiments.site import Site
from gsae.interpretability import automated_scores, latent_files, latents, score_tables
from gsae.interpretability.compared_saes import SAE, StudyError, run_of
from gsae.interpretability.missing_scores import control_examples, write_missing
from gsae.interpretability.place import Place
from gsae.lm import models as language_models
from gsae.saes import files
from gsae.system.devices import machine
from gsae.system.files import cache_dir


def run(scale: str | None = None, *, force: bool = False) -> pd.DataFrame:
    """Collect and score the latents of the study's matched SAEs: reads what is on record, computes
    what is missing.

    Latents are drawn at random from those that are on at least once in the text. What dashboards
    show goes to `score_tables.folder()`, the scores to result files. Weights that this machine
    lacks are trained again and held to the run's record. With GSAE_TRAIN=never nothing is computed.
    Returns `score_tables.table`.

    Raises:
        StudyError: no matched SAEs on record, with the lambda to train; or, after the other places
            are collected, no weights that agree with their record, no room to train them, or too
            few latents.
        EvidenceError: a changed tree at a scale other than smoke; `force` writes all the same.
    """
    at = sweeps.scale(scale)
    cells, problems = score_tables.compared(at)
    todo = places_to_do(cells.values(), at)
    if records.reads_only():
        return score_tables.table(at)
    if not cells:
        raise StudyError(
            "; ".join(problems)
            or f"no run of the study is on record at {at}: `gsae run {score_tables.STUDY}`"
        )
    records.to_be_made(todo, at, force)  # refuses a changed tree
    load, embed = cache(language_models.load), cache(automated_scores.sentences)
    failed = []
    for saes in todo:
        try:
            collect_place(saes, load, at, embed, force)
        except (StudyError, TooLarge) as error:
            failed.append(str(error))
    if failed:
        done = len(todo) - len(failed)
        raise StudyError(f"{'; '.join(failed)} ({done} of {len(todo)} places are collected)")
    return score_tables.table(at)


def places_to_do(places: Iterable[list[SAE]], at: str) -> list[list[SAE]]:
    """The SAEs of each place of which anything is missing; first the places whose weights are all
    here, since training may fail.
    """
    todo = []
    for saes in places:
        unfinished = [sae for sae in saes if incomplete(sae, at)]
        if unfinished:
            todo.append(unfinished)
    return sorted(todo, key=lambda saes: not all(map(has_weights, saes)))


def has_weights(sae: SAE) -> bool:
    return files.weights(sae.run).exists()


def kept_in(run: str, at: str) -> tuple[Path, Path]:
    """Files of an SAE's latents to be rated and scored, and of those that the book shows openly."""
    folder = score_tables.folder(at)
    return folder / f"{run}.json", folder / "apart" / f"{run}.json"


def incomplete(sae: SAE, at: str) -> bool:
    """Whether latents or a score of an SAE are missing."""
    rated, apart = kept_in(sae.run, at)
    if not rated.exists():
        return True
    # Nothing is computed from those kept apart: they do not ask for weights that are elsewhere.
    if not apart.exists() and has_weights(sae):
        return True
    return bool(score_tables.missing(sae.run, at))


def collect_place(
    saes: Sequence[SAE],
    load: Callable[[str], language_models.LM],
    at: str,
    embed: Callable[[], automated_scores.Embed],
    force: bool,
) -> None:
    """Collect and score SAEs of one place, which share the activations of its text."""
    run = run_of(saes[0])
    train_again(saes, load(run.lm), at, force)
    for sae in saes:  # before the place's text is read, not after it
        weights(sae)
    _, tokens = score_tables.sizes(at)
    place = Place(run, load(run.lm), tokens)
    for sae in saes:
        collect_one(sae, place, at, embed, force)


def train_again(saes: Sequence[SAE], lm: language_models.LM, at: str, force: bool) -> None:
    """Train again, held to their record, those SAEs of one place whose weights are not here; says
    how long at most.
    """
    lost = []
    for sae in saes:
        run = run_of(sae)
        # A record of an older recipe has another id: what is trained now would not be its SAE.
        if run.id == sae.run and retrain.weightless(run):
            lost.append(run)
    if lost:
        check(lost, at, cache_dir(), force=force, **machine())
        retrain.remake(lost, Evaluation(Site(lost[0], lm)), at)


def weights(sae: SAE) -> torch.nn.Module:
    """The kept weights of a run on record. Raises StudyError, naming run and file, where there are
    none.
    """
    path = files.weights(sae.run)
    if not path.exists():
        raise StudyError(
            f"the weights of run {sae.run} ({sae.arm}, L0 {sae.l0:.1f}) are not in {path}: "
            "weights are not in git, and none that agree with the record could be made here. Run "
            "this where it was trained, or put them there"
        )
    return files.load(sae.run)


def collect_one(
    sae: SAE,
    place: Place,
    at: str,
    embed: Callable[[], automated_scores.Embed],
    force: bool,
) -> None:
    """Draw latents of one SAE, keep what their dashboards show, score them and the controls. What
    exists is kept.
    """
    began = time.monotonic()
    model, seed = weights(sae), score_tables.SEED
    alive = alive_in_random_order(model, place, seed)
    count, _ = score_tables.sizes(at)
    chosen = alive[:count]
    if len(chosen) < count:
        raise StudyError(
            f"run {sae.run} has {len(chosen)} latents that are ever on in this text, not {count}"
        )
    context = place.blocks.shape[1]
    record = provenance.provenance("cpu", 0.0, *sources(place.lm.name, context))
    about = {"arm": sae.arm, "l0": sae.l0, "lam": sae.lam, "live": len(alive), "seed": seed}
    about |= {name: record[name] for name in ("commit", "date")}

    def collect(numbers: list[int]) -> dict:
        return latents.collect(
            model, place.lm, place.blocks, *place.key, numbers, run=sae.run, about=about
        )

    drawn = collect(chosen)
    rated, apart = kept_in(sae.run, at)
    if not rated.exists():
        keep(drawn, rated)
    if not apart.exists():  # no latent that is shown with its architecture may be on a rating page
        keep(collect(alive[count : count + score_tables.APART]), apart)

    def examples(control: str) -> dict:
        if control == score_tables.NONE:
            return drawn
        return control_examples(control, place, model, chosen, drawn, seed)

    write_missing(sae.run, at, examples, embed, record, began, force)


def alive_in_random_order(model, place: Place, seed: int) -> list[int]:
    """The latents that are on at least once in a place's text."""
    scale = model.about["scale"]
    alive = (place.counts(model.encode, scale) > 0).nonzero()[:, 0]
    order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))
    return alive[order].tolist()


def keep(data: dict, path: Path) -> None:
    """Write what dashboards show of collected latents, and tell where."""
    print(latent_files.save(latent_files.slim(data), path), file=sys.stderr)
