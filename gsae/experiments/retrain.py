"""`gsae audit`: runs on record, picked at random, trained again from scratch and compared with
their run files.

The evidence is read once, to choose. Nothing of it, no kept weights and no checkpoint help the
second training, and it writes none: only activations that the cache lacks. A run of a stack is
trained alone here. Its batches and its first dictionary are the same, the products round otherwise;
and latents that were dead at a resampling draw their new directions by the run's place in its
stack, which the record does not name.
"""

import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from gsae.evidence import metrics, provenance, run_files
from gsae.evidence import run as sweeps
from gsae.evidence.run import Run
from gsae.experiments import estimate, runner
from gsae.experiments.site import Site
from gsae.lm import models as language_models
from gsae.lm import store
from gsae.saes import files
from gsae.system.devices import machine
from gsae.system.files import cache_dir, lock
from gsae.training.loop import fit
from gsae.training.stack import Stack

# Metric -> what it may differ by: a share of the recorded value, and an amount in its own units,
# added up.
TOLERANCES = {
    # Counts of tokens: the same text is cut the same way.
    "eval_tokens": (0.0, 0.0),
    "ce_tokens": (0.0, 0.0),
    # No SAE takes part, only products of the language model, which other processors round
    # otherwise.
    "ce_clean": (5e-4, 0.0),
    "ce_zero": (5e-4, 0.0),
    "ce_mean": (5e-4, 0.0),
    # Training in bf16 is chaotic: rounding by another number of threads, or by compiled kernels,
    # grows with the steps.
    "l0": (0.02, 0.0),
    "fvu": (0.02, 0.0),
    "mse": (0.02, 0.0),
    "gamma": (0.0, 0.01),
    # Of its inverse, the factor that fits best: it has itself no bound where a run explains nothing
    # about the mean.
    "gamma_centred": (0.0, 0.01),
    # What the reconstruction costs, and what is made of it: the share of it that is noise is that
    # of the error.
    "delta_ce": (0.05, 0.001),
    "ce_sae": (0.01, 0.0),
    "loss_recovered": (0.0, 0.01),
    "loss_recovered_mean": (0.0, 0.01),
    # Latents near death: a few of them fire on some evaluation token in one training and not in the
    # other.
    "dead_fraction": (0.0, 0.005),
}


def obstacle(record: dict) -> str:
    """Why a run cannot be made again here; empty where it can."""
    run = Run.of(record["run"])
    if record["recipe"] != sweeps.RECIPES[run.arch]:
        return "of an older recipe"
    if (
        record["id"] != run.id
    ):  # the hashes in an id are those that text and model are held to as they are read
        return "of another text or language model"
    if run.text != "packaged":
        return "of text from the hub"
    return "of several processes" if record["provenance"].get("ranks", 1) > 1 else ""


def records(
    at: str, names: Sequence[str] = (), max_tokens: int | None = None, lm: str | None = None
) -> dict[str, dict]:
    """The run files that can be audited, by id; says how many cannot, and why.

    `names` are experiments and run ids; none: all. Raises EvidenceError on a damaged or edited
    file, ValueError on a name or language model that is not on record, or where nothing is left.
    """
    files = (
        f for f in sorted(run_files.root(at).glob("*/[!.]*.json")) if '"run": {' in f.read_text()
    )
    found = list(map(run_files.read, files))
    if unknown := set(names) - {r[key] for r in found for key in ("id", "experiment")}:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no such run or experiment is on record at scale {at}"
        )
    found = [r for r in found if not names or {r["id"], r["experiment"]} & set(names)]
    found = [r for r in found if r["run"]["tokens"] <= (max_tokens or r["run"]["tokens"])]
    if lm and lm not in (known := {r["run"]["lm"] for r in found}):
        raise ValueError(
            f"no run of the language model {lm} is on record here: {', '.join(sorted(known))} are"
        )
    found = [r for r in found if r["run"]["lm"] == (lm or r["run"]["lm"])]
    left = {r["id"]: r for r in found if not obstacle(r)}
    skipped = Counter(filter(None, map(obstacle, found)))
    said = "".join(f"; skipped: {count} {why}" for why, count in skipped.items())
    said = f"{len(left)} runs on record at scale {at} can be audited{said}"
    if not left:
        raise ValueError(said)
    print(said)
    return left


def choose(ids: Iterable[str], runs: int, seed: int | str) -> list[str]:
    """`runs` of the ids, at most all of them; equal ids and seed choose the same."""
    if runs < 1:
        raise ValueError(f"{runs} runs to audit: ask for one at least")
    return random.Random(str(seed)).sample(ids := sorted(ids), min(runs, len(ids)))


def again(runs: Iterable[Run]) -> Iterator[tuple[Run, dict]]:
    """Each run trained from scratch, alone, with its metrics; runs of one site share activations
    and evaluation.
    """
    for of_model in runner.groups(runs, lambda r: r.lm):
        model = language_models.load(of_model[0].lm)
        for same in runner.groups(of_model, lambda r: r.place):
            site, began = Site(same[0], model), time.time()
            folder = getattr(site.store, "folder", None)  # a buffer has none
            kept = folder and (folder / store.META).stat().st_mtime < began
            print(
                f"activations: {f'those in {folder}' if kept else 'harvested anew'}",
                file=sys.stderr,
            )
            for run in same:
                (sae,) = fit(Stack(runner.plan_of([run], site)), site.batches(run))
                yield run, site.evaluate(sae)[0]


def compare(record: dict, metrics: dict) -> pd.DataFrame:
    """One row a metric of TOLERANCES: what is on record, and again; the difference of
    `gamma_centred` is that of its inverse. What is missing or NaN does not pass.
    """
    rows, commit = [], record["provenance"]["commit"][:7]
    for name, (share, amount) in TOLERANCES.items():
        old, new = (float(m.get(name, "nan")) for m in (record["metrics"], metrics))
        a, b = metrics.divide(1, [old, new]) if name == "gamma_centred" else (old, new)
        allowed = share * abs(a) + amount
        rows.append(
            (record["id"], commit, name, old, new, b - a, allowed, bool(abs(b - a) <= allowed))
        )
    return pd.DataFrame(
        rows, columns="run commit metric recorded again difference tolerance passed".split()
    )


def audit(
    names: Sequence[str] = (),
    runs: int = 3,
    seed: int | str = 0,
    scale: str = "cpu",
    max_tokens: int | None = None,
    lm: str | None = None,
) -> Iterator[pd.DataFrame]:
    """Train runs on record again; yields the rows of `compare` of each. Raises what `records` and
    `gsae.run` raise.
    """
    found = records(scale, names, max_tokens, lm)
    chosen = choose(found, runs, seed)
    dirty = ", with uncommitted changes" if provenance.dirty() else ""
    print(
        f"seed {seed} picks {' '.join(chosen)}; the code now: commit "
        f"{provenance.commit()[:7]}{dirty}",
        flush=True,
    )
    picked = [Run.of(found[i]["run"]) for i in chosen]
    estimate.check(picked, scale, cache_dir(), **machine())
    yield from (compare(found[run.id], metrics) for run, metrics in again(picked))


def main(args) -> int:
    """Exit code of `gsae audit`: 0 where all agree, 1 where a metric does not, 130 after Ctrl-C."""
    parts = []
    try:
        for part in audit(args.names, args.runs, args.seed, args.scale, args.max_tokens, args.lm):
            parts.append(part)
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped'}; no record was touched", file=sys.stderr)
        return 130
    finally:  # what was compared before is shown, whatever stopped it
        if parts:
            table = pd.concat(parts, ignore_index=True)
            shown = table.assign(passed=table["passed"].map({True: "pass", False: "FAIL"}))
            print(
                shown.rename(columns={"passed": ""}).to_string(index=False, float_format="%.6g"),
                flush=True,
            )
    failed = table[~table["passed"]].groupby("run")["metric"].agg(", ".join)
    for run, names in failed.items():
        print(
            f"gsae: run {run} differs from its record by more than is allowed: {names}",
            file=sys.stderr,
        )
    print(f"{len(parts) - len(failed)} of {len(parts)} runs agree with their records")
    return int(len(failed) > 0)


# To the record, within the tolerances of an audit; cross-entropy would cost as much again.
HELD = ("l0", "fvu", "gamma")


def weightless(run: Run) -> bool:
    """Whether this machine lacks a run's weights: they are not in git, its evidence is."""
    return not files.weights(run.id).exists()


def remake(runs: Sequence[Run], site: Site, at: str) -> list[Run]:
    """Train the weightless of these runs again, runs of a stack together; no evidence is written.

    Weights are kept, with a note of it in their `about["again"]`, only where L0, FVU and gamma
    agree with the record.

    Returns:
        The runs that did not agree, whose table is printed, and those that cannot be made again
        here.
    """
    failed = []
    for of_stack in runner.groups(runs, lambda r: r.stack):
        with FileLock(lock(f"again-{runner.kind(of_stack[0])}")):  # another process may be at it
            lost = [run for run in of_stack if weightless(run)]
            records = {run.id: run_files.read(run_files.find(run.id, at)) for run in lost}
            for run in [run for run in lost if (why := obstacle(records[run.id]))]:
                print(f"run {run.id} cannot be trained again here: {why}", file=sys.stderr)
                failed.append(run)
                lost.remove(run)
            if lost:
                failed += train(lost, site, records)
    return failed


def train(runs: list[Run], site: Site, records: dict[str, dict]) -> list[Run]:
    plan, failed = runner.plan_of(runs, site), []
    print(
        f"weights of {', '.join(run.id for run in runs)} are not here: trained again",
        file=sys.stderr,
    )
    path = runner.checkpoint_of(plan, runs[0])
    path = path.with_name(f"again-{path.name}")  # a sweep would take it for a stack of its own
    saes = fit(Stack(plan), site.batches(runs[0]), path)
    for run, sae in zip(tqdm(runs, desc="compare", disable=None), saes, strict=True):
        told = compare(records[run.id], metrics.ratios(site.reconstruct(sae).to_dict()))
        told = told[told["metric"].isin(HELD)]
        if told["passed"].all():
            note = {"commit": provenance.commit(), "products": plan.dtype}
            files.save(
                sae, files.weights(run.id), run=asdict(run), scale=site.store.scale, again=note
            )
        else:
            failed.append(run)
            table = told.to_string(index=False)
            print(
                f"run {run.id}, trained again, is not the one on record:\n{table}", file=sys.stderr
            )
    path.unlink(missing_ok=True)
    return failed
