"""Controls computed from finished runs: rescale & shift, pruning, and inference-time optimisation,
as result files.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from gsae.evidence import metrics as stats
from gsae.evidence import provenance, result_files, run_files
from gsae.evidence import run as run_module
from gsae.evidence import sums as metrics
from gsae.experiments import follow_ups, records, retrain, runner, sweeps
from gsae.experiments.estimate import check
from gsae.experiments.follow_ups import CONTROLS, INCREASES, ITO, PURSUITS, plan, pursuit
from gsae.experiments.site import Site
from gsae.lm import models as language_models
from gsae.saes import SAE, files, gradient_pursuit
from gsae.system.devices import machine
from gsae.system.files import cache_dir
from gsae.training.rescale_shift import Pruned, pruning_threshold, rescale_shift

THRESHOLD_BATCHES = 4  # of the run's own training stream, that a pruning threshold is chosen on


def weights(row) -> SAE:
    """The kept weights of a finished run. Raises FileNotFoundError with the remedy where there are
    none.
    """
    if not files.weights(row.id).exists():
        raise FileNotFoundError(
            f"run {row.id} ({row.arch}, lambda {row.lam:g}, seed {row.seed}) is on record but its "
            "weights are not in "
            f"{files.weights(row.id)}: weights are not in git. `gsae run {ITO}` and `gsae run "
            f"{CONTROLS}` train "
            "again what they need"
        )
    return files.load(row.id).to("cuda" if torch.cuda.is_available() else "cpu")


def training_batches(row, site: Site) -> Callable[[int], Tensor]:
    """`step -> batch` of the run's own stream."""
    return lambda step: site.store.batch(step, int(row.batch), int(row.seed))


def make(sae: SAE, of: dict, batches: Callable[[int], Tensor]):
    """The changed SAE that `of`, one of `plan`, describes."""
    threshold = 0.0
    if of["increase"]:
        threshold = pruning_threshold(
            sae, map(batches, range(THRESHOLD_BATCHES)), increase=of["increase"]
        )
    if of["control"] == "pruned":
        return Pruned(sae, threshold)
    return rescale_shift(sae, batches, of["steps"], threshold=threshold)


@torch.no_grad()
def pursue_site(sae: SAE, site: Site, sizes: Sequence[int]) -> dict[int, tuple[dict, dict]]:
    """Metrics and sums of pursuit at several sizes, and, under 0, of the SAE's own encoder, on the
    same tokens.

    One pass over the texts of the cross-entropy: pursuit is some hundred times the cost of an
    encoder, so that it sees `ce_tokens` tokens and not the run's whole evaluation set, and its
    numbers have to be compared with those of 0.
    """
    first, scale, start = int(not site.run.keep_pos0), site.store.scale, 0
    total = {s: metrics.Sums(site.store.mean) for s in (0, *sizes)}
    for i, splice in enumerate(tqdm(site.splices, desc="pursuit", leave=False, disable=None)):
        group = torch.arange(start, start + len(splice.clean)) % metrics.GROUPS
        known = {name: values[i] for name, values in site.references.items()}
        x = (splice.clean[:, first:].float() * scale).to(sae.b_dec.device)
        rows = x.flatten(0, 1)
        codes = [sae.encode(rows), *gradient_pursuit.pursue_all(rows, sae.W_dec, sae.b_dec, sizes)]
        for s, f in zip((0, *sizes), codes, strict=True):
            x_hat = sae.decode(f)
            total[s].add(rows, x_hat, f, group.repeat_interleave(x.shape[1]))
            replaced = splice.clean.clone()
            replaced[:, first:] = (x_hat.reshape(x.shape) / scale).to(replaced)
            total[s].add_ce(group, **known, sae=splice.ce(replaced), tokens=splice.targets)
        start += len(splice.clean)
    return {
        s: (stats.ratios(kept := t.to_dict()) | {"dead_fraction": t.dead_fraction}, kept)
        for s, t in total.items()
    }


def done(runs: pd.DataFrame, site: Site) -> Iterator:
    """The finished runs of a table, as named tuples. Raises ValueError where one is of another
    site.
    """
    for row in run_files.done(runs).itertuples():
        if (of := (row.lm, row.site, row.layer)) != (here := (site.run.lm, *site.key)):
            raise ValueError(
                f"run {row.id} is of {of}, the site is {here}: pass the runs of one site at a time"
            )
        yield row


def write(
    experiment: str,
    of: dict,
    values: dict,
    sums: dict,
    row,
    sae: SAE,
    seconds: float,
    at: str,
    force: bool,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    origin = provenance.provenance(device, seconds, *run_module.sources(row.lm, row.context))
    origin |= {
        k: v for k, v in sae.about.items() if k == "again"
    }  # weights that were made a second time
    result_files.write_result(experiment, of, values, origin, at, sums, force)


def controls(
    runs: pd.DataFrame,
    site: Site,
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
        runs: a table of `gsae.run`, all of `site`; missing runs are passed over.
        site: gives training batches and the evaluation of the runs themselves.
        increases: relative increases of the mean squared error that pruning may cost; chosen on
            training batches.
        steps: of rescale & shift.
        only: which of the three.

    Returns:
        The results on record at this scale, one row a control; `run` is the parent's id.

    Raises:
        FileNotFoundError: where a finished run has no kept weights.
    """
    at = run_module.scale(scale)
    todo = [
        (row, of)
        for row in done(runs, site)
        for of in plan(row, increases, steps)
        if of["control"] in set(only)
    ]
    todo = [(row, of) for row, of in todo if result_files.find_result(CONTROLS, of, at) is None]
    for row, of in tqdm(todo, desc=f"controls, {site.run.site} {site.run.layer}", disable=None):
        began = time.monotonic()
        sae = weights(row)
        model = make(sae, of, training_batches(row, site))
        values, sums, _ = site.evaluate(model)
        write(
            CONTROLS,
            of,
            values | model.summary(),
            sums,
            row,
            sae,
            time.monotonic() - began,
            at,
            force,
        )
    return result_files.load_results(CONTROLS, at)


def pursuits(
    runs: pd.DataFrame,
    site: Site,
    scale: str | None = None,
    *,
    sizes: Sequence[int] = PURSUITS,
    tokens: int = 16_384,
    force: bool = False,
) -> pd.DataFrame:
    """Inference-time optimisation (Figs 10, 11) on the dictionary of every finished run of one
    site, both arms.

    Args:
        runs, site: as for `controls`; the store and the language model of `site` are used.
        sizes: numbers of latents, at most.
        tokens: of evaluation text, from the start of the evaluation set.

    Returns:
        The results on record at this scale; `s` is 0 for the run's own encoder on the same tokens.
    """
    at = run_module.scale(scale)
    unseen = lambda row: follow_ups.missing(
        ITO, [pursuit(row.id, s, tokens) for s in (0, *sizes)], at
    )
    todo = [row for row in done(runs, site) if unseen(row)]
    if todo:
        part = Site(replace(site.run, ce_tokens=tokens), site.model)
        part.store = site.store
    for row in tqdm(todo, desc=f"pursuit, {site.run.site} {site.run.layer}", disable=None):
        began = time.monotonic()
        sae = weights(row)
        found = pursue_site(sae, part, sizes)
        for s, (values, sums) in found.items():
            seconds = (time.monotonic() - began) / len(found)
            write(ITO, pursuit(row.id, s, tokens), values, sums, row, sae, seconds, at, force)
    return result_files.load_results(ITO, at)


def run(
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
    at = run_module.scale(scale)
    experiment = experiment or {CONTROLS: "same_width", ITO: follow_ups.RUNS}[kind]
    runs = records.load(experiment, at)
    of = follow_ups.wanted(kind, runs, experiment, at)
    left = {one["run"] for one in follow_ups.missing(kind, of, at)}
    todo = run_files.done(runs)
    todo = todo[todo["id"].isin(left)]
    print(
        f"{kind} of {experiment} at scale {at}: of {len(runs)} runs {len(runs) - len(left)} have "
        "all results on record",
        file=sys.stderr,
    )
    if len(todo) and os.environ.get("GSAE_TRAIN") != "never":
        if at != "smoke" and not force:
            provenance.require_clean()
        made = dict(zip(runs["id"], sweeps.runs(experiment, at), strict=True))
        known = {
            name: run for name in todo["id"] if (run := made[name]).id == name
        }  # not of an older recipe
        if lost := list(filter(retrain.weightless, known.values())):
            check(lost, at, cache_dir(), force=force, **machine())
        failed: set[str] = set()
        for site, here in sites({name: made[name] for name in todo["id"]}):
            for stack in runner.groups(
                here, lambda name: made[name].stack
            ):  # each as soon as its weights are there
                failed |= {
                    run.id
                    for run in retrain.remake(
                        [known[name] for name in stack if name in known], site, at
                    )
                }
                table = todo[todo["id"].isin(set(stack) - failed)]
                if kind == ITO:
                    pursuits(table, site, at, tokens=of[0]["tokens"], force=force)
                else:
                    steps = follow_ups.STEPS.get(at, 500)
                    controls(
                        table, site, at, steps=steps, only=follow_ups.KINDS[experiment], force=force
                    )
        if failed:
            raise provenance.EvidenceError(
                f"{', '.join(sorted(failed))}: no weights that agree with the record could be "
                "made here, see above; "
                "what these runs lack stays missing, all else is computed"
            )
    return follow_ups.table(kind, experiment, at)


def sites(made: dict[str, run_module.Run]) -> Iterator[tuple[Site, list[str]]]:
    """Each site of runs, given by their ids on record, with the ids that are of it; a language
    model is loaded once.
    """
    for of_model in runner.groups(made.values(), lambda r: r.lm):
        model = language_models.load(of_model[0].lm)
        for of_site in runner.groups(of_model, lambda r: r.place):
            yield Site(of_site[0], model), [name for name, one in made.items() if one in of_site]
