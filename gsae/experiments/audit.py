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

import pandas as pd

from gsae.evidence import provenance, run_files
from gsae.evidence.run import Run
from gsae.experiments import estimate
from gsae.experiments.composition import plan_of
from gsae.experiments.evaluate import Evaluation
from gsae.experiments.grouping import groups
from gsae.experiments.retrain import compare, obstacle
from gsae.experiments.site import Site
from gsae.lm import models, store
from gsae.system.devices import machine
from gsae.system.files import cache_dir
from gsae.training import loop
from gsae.training.stack import Stack


def records(
    scale: str, names: Sequence[str] = (), max_tokens: int | None = None, lm: str | None = None
) -> dict[str, dict]:
    """The run files that can be audited, by id; says how many cannot, and why.

    `names` are experiments and run ids; none: all. Raises EvidenceError on a damaged or edited
    file, ValueError on a name or language model that is not on record, or where nothing is left.
    """
    asked = all_records(scale)
    if names:
        asked = of_names(asked, names, scale)
    if max_tokens:
        asked = [record for record in asked if record["run"]["tokens"] <= max_tokens]
    if lm:
        asked = of_language_model(asked, lm)
    obstacles = [obstacle(record) for record in asked]
    skipped = Counter(why for why in obstacles if why)
    left = {record["id"]: record for record, why in zip(asked, obstacles, strict=True) if not why}
    line = f"{len(left)} runs on record at scale {scale} can be audited"
    line += "".join(f"; skipped: {count} {why}" for why, count in skipped.items())
    if not left:
        raise ValueError(line)
    print(line)
    return left


def all_records(scale: str) -> list[dict]:
    """Every run on record, result files left out."""
    files = sorted(run_files.root(scale).glob("*/[!.]*.json"))
    return [run_files.read(file) for file in files if '"run": {' in file.read_text()]


def of_names(records: list[dict], names: Sequence[str], scale: str) -> list[dict]:
    """The records of some experiments and runs."""
    known = {record[field] for record in records for field in ("id", "experiment")}
    unknown = set(names) - known
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no such run or experiment is on record at scale {scale}"
        )
    return [record for record in records if {record["id"], record["experiment"]} & set(names)]


def of_language_model(records: list[dict], lm: str) -> list[dict]:
    known = {record["run"]["lm"] for record in records}
    if lm not in known:
        raise ValueError(
            f"no run of the language model {lm} is on record here: {', '.join(sorted(known))} are"
        )
    return [record for record in records if record["run"]["lm"] == lm]


def choose(ids: Iterable[str], runs: int, seed: int | str) -> list[str]:
    """`runs` of the ids, at most all of them; equal ids and seed choose the same."""
    if runs < 1:
        raise ValueError(f"{runs} runs to audit: ask for one at least")
    ids = sorted(ids)
    return random.Random(str(seed)).sample(ids, min(runs, len(ids)))


def again(runs: Iterable[Run]) -> Iterator[tuple[Run, dict]]:
    """Each run trained from scratch, alone, with its metrics; runs of one site share activations
    and evaluation.
    """
    for of_model in groups(runs, lambda run: run.lm):
        model = models.load(of_model[0].lm)
        for of_site in groups(of_model, lambda run: run.place):
            site = Site(of_site[0], model)
            evaluation = Evaluation(site)
            say_where_activations_are_from(site)
            for run in of_site:
                (sae,) = loop.fit(Stack(plan_of([run], site)), site.batches(run))
                yield run, evaluation.evaluate(sae)[0]


def say_where_activations_are_from(site: Site) -> None:
    began = time.time()
    folder = getattr(site.store, "folder", None)  # a buffer has none
    was_there = folder and (folder / store.META).stat().st_mtime < began
    origin = f"those in {folder}" if was_there else "harvested anew"
    print(f"activations: {origin}", file=sys.stderr)


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
    by_id = records(scale, names, max_tokens, lm)
    chosen = choose(by_id, runs, seed)
    changed = ", with uncommitted changes" if provenance.dirty() else ""
    print(
        f"seed {seed} picks {' '.join(chosen)}; the code now: commit "
        f"{provenance.commit()[:7]}{changed}",
        flush=True,
    )
    picked = [Run.of(by_id[name]["run"]) for name in chosen]
    estimate.check(picked, scale, cache_dir(), **machine())
    for run, metrics in again(picked):
        yield compare(by_id[run.id], metrics)


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
            print_table(pd.concat(parts, ignore_index=True))
    table = pd.concat(parts, ignore_index=True)
    failed = table[~table["passed"]].groupby("run")["metric"].agg(", ".join)
    for run, names in failed.items():
        print(
            f"gsae: run {run} differs from its record by more than is allowed: {names}",
            file=sys.stderr,
        )
    print(f"{len(parts) - len(failed)} of {len(parts)} runs agree with their records")
    return int(len(failed) > 0)


def print_table(table: pd.DataFrame) -> None:
    in_words = table.assign(passed=table["passed"].map({True: "pass", False: "FAIL"}))
    in_words = in_words.rename(columns={"passed": ""})
    print(in_words.to_string(index=False, float_format="%.6g"), flush=True)
