"""Controls computed from finished runs: rescale & shift, pruning, and inference-time optimisation,
as result files.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import pandas as pd
from torch import Tensor
from tqdm import tqdm

from gsae.evidence import provenance, result_files, run_files
from gsae.evidence.run import Run, sources
from gsae.experiments import estimate, follow_ups, records, retrain, sweeps
from gsae.experiments.evaluate import Evaluation
from gsae.experiments.follow_ups import CONTROLS, INCREASES, ITO, PURSUITS
from gsae.experiments.grouping import groups
from gsae.experiments.site import Site
from gsae.lm import models
from gsae.saes import SAE, files
from gsae.system.devices import machine, training_device
from gsae.system.files import cache_dir
from gsae.training.rescale_shift import Pruned, pruning_threshold, rescale_shift

THRESHOLD_BATCHES = 4  # of the run's own training stream, that a pruning threshold is chosen on
BY_DEFAULT = {CONTROLS: "same_width", ITO: follow_ups.RUNS}  # whose runs


def follow_up(
    kind: str = CONTROLS,
    experiment: str | None = None,
    scale: str | None = None,
    *,
    force: bool = False,
) -> pd.DataFrame:
    """Controls (Fig. 9) or pursuits (Figs 10, 11) of an experiment's finished runs: reads what is
    on record at this scale, computes what is not from the kept weights, and says which it did.
    Weights that this machine lacks are trained again and held to the run's record. With
    GSAE_TRAIN=never nothing is computed.

    Args:
        kind: "controls" or "ito".
        experiment: whose runs; by default `same_width` for controls, `seeds` for pursuit.
        force: write results of a scale other than smoke from a tree with uncommitted changes.

    Returns:
        The table of gsae.experiments.follow_ups: results joined with their runs, what is missing
        said.

    Raises:
        EvidenceError: where results of a scale other than smoke could not be traced to a commit, or
            some runs could not be made again as they are on record; what the others lacked is then
            computed.
    """
    scale = sweeps.scale(scale)
    experiment = experiment or BY_DEFAULT[kind]
    runs = records.load(experiment, scale)
    wanted = follow_ups.wanted(kind, runs, experiment, scale)
    incomplete = {result["run"] for result in records.missing_results(kind, wanted, scale)}
    print(
        f"{kind} of {experiment} at scale {scale}: of {len(runs)} runs "
        f"{len(runs) - len(incomplete)} have all results on record",
        file=sys.stderr,
    )
    finished = run_files.done(runs)
    todo = finished[finished["id"].isin(incomplete)]
    if records.to_be_made(list(todo["id"]), scale, force):
        by_id = dict(zip(runs["id"], sweeps.runs(experiment, scale), strict=True))
        complete(kind, experiment, todo, by_id, scale, force)
    return follow_ups.table(kind, experiment, scale)


def complete(
    kind: str, experiment: str, todo: pd.DataFrame, by_id: dict[str, Run], scale: str, force: bool
) -> None:
    """Compute what the runs of the table `todo` lack, site by site and stack by stack; `by_id` has
    each run under its id on record.

    Raises EvidenceError, after the others are computed, naming runs without weights that agree with
    their record.
    """
    asked = {name: by_id[name] for name in todo["id"]}
    # Runs of an older recipe cannot be made again: their ids on record are not their own.
    current = {name: run for name, run in asked.items() if run.id == name}
    lost = [run for run in current.values() if retrain.weightless(run)]
    if lost:
        estimate.check(lost, scale, cache_dir(), force=force, **machine())
    failed: set[str] = set()
    for site, names in sites_of(asked):
        evaluation = Evaluation(site)
        stacks = groups(names, lambda name: asked[name].stack)
        for stack in stacks:  # each as soon as its weights are there
            possible = [current[name] for name in stack if name in current]
            failed |= {run.id for run in retrain.remake(possible, evaluation, scale)}
            table = todo[todo["id"].isin(set(stack) - failed)]
            compute_results(kind, experiment, table, evaluation, scale, force)
    if failed:
        raise provenance.EvidenceError(
            f"{', '.join(sorted(failed))}: no weights that agree with the record could be made "
            "here, see above; what these runs lack stays missing, all else is computed"
        )


def sites_of(runs: dict[str, Run]) -> Iterator[tuple[Site, list[str]]]:
    """Each site of runs, given by their ids on record, with the ids that are of it; a language
    model is loaded once.
    """
    for of_model in groups(runs.values(), lambda run: run.lm):
        model = models.load(of_model[0].lm)
        for of_site in groups(of_model, lambda run: run.place):
            yield Site(of_site[0], model), [name for name, run in runs.items() if run in of_site]


def compute_results(
    kind: str,
    experiment: str,
    table: pd.DataFrame,
    evaluation: Evaluation,
    scale: str,
    force: bool,
) -> None:
    """Compute what some runs of one site lack, with the settings of this scale."""
    if kind == ITO:
        tokens = follow_ups.tokens_at(scale)
        compute_pursuits(table, evaluation, scale, tokens=tokens, force=force)
    else:
        steps, only = follow_ups.steps_at(scale), follow_ups.KINDS[experiment]
        compute_controls(table, evaluation, scale, steps=steps, only=only, force=force)


def compute_controls(
    runs: pd.DataFrame,
    evaluation: Evaluation,
    scale: str | None = None,
    *,
    increases: Sequence[float] = INCREASES,
    steps: int = 500,
    only: Iterable[str] = ("rescale_shift", "pruned", "pruned_rescale_shift"),
    force: bool = False,
) -> pd.DataFrame:
    """Rescale & shift (Fig. 9), pruning, and both, of every finished run of one site; what is on
    record is skipped.

    Args:
        runs: a table of `gsae.run`, all of one site; missing runs are passed over.
        evaluation: of that site; gives the evaluation of the runs themselves, and training batches.
        increases: relative increases of the mean squared error that pruning may cost; chosen on
            training batches.
        steps: of rescale & shift.
        only: which of the three.

    Returns:
        The results on record at this scale, one row a control; `run` is the parent's id.

    Raises:
        FileNotFoundError: where a finished run has no kept weights.
    """
    scale = sweeps.scale(scale)
    site, kinds = evaluation.site, set(only)
    todo = []
    for row in finished_runs(runs, site):
        controls = follow_ups.controls_of(row, increases, steps)
        controls = [settings for settings in controls if settings["control"] in kinds]
        missing = records.missing_results(CONTROLS, controls, scale)
        todo += [(row, settings) for settings in missing]
    bar = tqdm(todo, desc=f"controls, {site.run.site} {site.run.layer}", disable=None)
    for row, settings in bar:
        began = time.monotonic()
        sae = weights(row)
        changed = make(sae, settings, training_batches(row, site))
        values, sums, _ = evaluation.evaluate(changed)
        seconds = time.monotonic() - began
        measured = values | changed.summary(), sums
        write(CONTROLS, settings, measured, row, sae, seconds, scale, force)
    return result_files.load_results(CONTROLS, scale)


def compute_pursuits(
    runs: pd.DataFrame,
    evaluation: Evaluation,
    scale: str | None = None,
    *,
    sizes: Sequence[int] = PURSUITS,
    tokens: int = 16_384,
    force: bool = False,
) -> pd.DataFrame:
    """Inference-time optimisation (Figs 10, 11) on the dictionary of every finished run of one
    site, both arms.

    Args:
        runs, evaluation: as for `compute_controls`; the store and the language model are used.
        sizes: numbers of latents, at most.
        tokens: of evaluation text, from the start of the evaluation set.

    Returns:
        The results on record at this scale; `s` is 0 for the run's own encoder on the same tokens.
    """
    scale = sweeps.scale(scale)
    site = evaluation.site
    todo = []
    for row in finished_runs(runs, site):
        wanted = [follow_ups.pursuit_settings(row.id, s, tokens) for s in (0, *sizes)]
        if records.missing_results(ITO, wanted, scale):
            todo.append(row)
    if not todo:
        return result_files.load_results(ITO, scale)
    on_tokens = Site(replace(site.run, ce_tokens=tokens), site.model)
    on_tokens.store = site.store
    shorter = Evaluation(on_tokens)
    for row in tqdm(todo, desc=f"pursuit, {site.run.site} {site.run.layer}", disable=None):
        began = time.monotonic()
        sae = weights(row)
        pursued = shorter.pursue(sae, sizes)
        for s, measured in pursued.items():
            settings = follow_ups.pursuit_settings(row.id, s, tokens)
            seconds = (time.monotonic() - began) / len(pursued)
            write(ITO, settings, measured, row, sae, seconds, scale, force)
    return result_files.load_results(ITO, scale)


def finished_runs(runs: pd.DataFrame, site: Site) -> Iterator:
    """The finished runs of a table, as named tuples. Raises ValueError where one is of another
    site.
    """
    place = (site.run.lm, *site.key)
    for row in run_files.done(runs).itertuples():
        place_of_run = (row.lm, row.site, row.layer)
        if place_of_run != place:
            raise ValueError(
                f"run {row.id} is of {place_of_run}, the site is {place}: pass the runs of one "
                "site at a time"
            )
        yield row


def weights(row) -> SAE:
    """The kept weights of a finished run. Raises FileNotFoundError with the remedy where there are
    none.
    """
    file = files.weights(row.id)
    if not file.exists():
        raise FileNotFoundError(
            f"run {row.id} ({row.arch}, lambda {row.lam:g}, seed {row.seed}) is on record but its "
            f"weights are not in {file}: weights are not in git. `gsae run {ITO}` and `gsae run "
            f"{CONTROLS}` train again what they need"
        )
    return files.load(row.id).to(training_device())


def training_batches(row, site: Site) -> Callable[[int], Tensor]:
    """`step -> batch` of the run's own stream."""
    return lambda step: site.store.batch(step, int(row.batch), int(row.seed))


def make(sae: SAE, settings: dict, batches: Callable[[int], Tensor]):
    """The changed SAE that the settings of a control describe."""
    threshold = 0.0
    if settings["increase"]:
        chosen_on = map(batches, range(THRESHOLD_BATCHES))
        threshold = pruning_threshold(sae, chosen_on, increase=settings["increase"])
    if settings["control"] == "pruned":
        return Pruned(sae, threshold)
    return rescale_shift(sae, batches, settings["steps"], threshold=threshold)


def write(
    kind: str,
    settings: dict,
    measured: tuple[dict, dict],
    row,
    sae: SAE,
    seconds: float,
    scale: str,
    force: bool,
) -> None:
    """Write one result of a run: `measured` are its values and the sums behind them."""
    values, sums = measured
    parents = sources(row.lm, row.context)
    origin = provenance.provenance(training_device(), seconds, *parents)
    if "again" in sae.about:  # weights that were made a second time
        origin["again"] = sae.about["again"]
    result_files.write_result(kind, settings, values, origin, scale, sums, force)
