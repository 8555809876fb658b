"""Where everything meets: plan -> harvest -> train -> evaluate -> evidence. Public name: `gsae.run`."""

import hashlib
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from gsae import activations, checkpoints, corpus, evidence, experiments, metrics, plan, sizes, stats, streaming
from gsae import lm as language_models
from gsae.assets import cache_dir
from gsae.experiments import Run
from gsae.training import Plan, Stack, fit

SEED_ORDER = 0  # of the store's permutation: a store is shared by runs of every seed


@dataclass
class Site:
    """One hooked place of a language model: its training store and its held-out evaluation, each made once."""

    run: Run  # any run of this site: gives lm, layer, text, tokens and evaluation sizes
    model: "language_models.LM"

    @property
    def key(self) -> tuple[str, int]:
        return self.run.site, self.run.layer

    def blocks(self, split: str, count: int):
        run, tokenizer = self.run, self.model.tokenizer
        if run.text == "packaged":
            data = corpus.blocks(tokenizer, split, run.context, name=run.lm)
        else:
            splits = "train" if split == "train" else ("validation", "test")
            data = corpus.hub_blocks(tokenizer, run.text, run.context, count, split=splits, name=run.lm)
        if len(data) < count:
            raise ValueError(
                f"{run.lm}: the {split} text has {len(data):,} blocks of {run.context} tokens, the run asks "
                f"for {count:,}; lower its tokens or name a larger dataset"
            )
        return data.select(range(count))

    @cached_property
    def store(self) -> "activations.Store | streaming.Buffer":
        return self.stream() if sizes.streams(self.run) else self.harvest([self])[0]

    def stream(self) -> "streaming.Buffer":
        run = self.run
        blocks = self.blocks("train", sizes.store_rows(run) // (run.context - (not run.keep_pos0)))
        source = streaming.Source(self.model, blocks, *self.key, keep_pos0=run.keep_pos0)
        return streaming.Buffer(source, rows=sizes.BUFFER, device=self.model.device)

    @staticmethod
    def harvest(sites: list["Site"]) -> list["activations.Store"]:
        """Stores of several sites of one language model with equal text and length, in one pass."""
        run, model = sites[0].run, sites[0].model
        per_block = run.context - (not run.keep_pos0)
        count = -(-(run.tokens + run.batch) // per_block)
        data = sites[0].blocks("train", count)
        name = f"{corpus.token_hash(data)}{'-pos0' * run.keep_pos0}"
        folder = cache_dir() / "activations" / run.lm
        keys = [site.key for site in sites]
        options = {"name_hash": name, "seed": SEED_ORDER, "keep_pos0": run.keep_pos0}
        with FileLock(lock(f"harvest-{run.lm}-{name}")):
            stores = activations.harvest(model, data, keys, count * per_block, folder, **options)
        return [stores[key] for key in keys]

    def batches(self, run: Run):
        return lambda step: self.store.batch(step, run.batch, run.seed)

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Scaled activations of the evaluation blocks, `(blocks, positions, n)` in bfloat16, and each block's group."""
        per_block = self.run.context - (not self.run.keep_pos0)
        tokens = self.tokens(-(-self.run.eval_tokens // per_block))
        kept = []
        for part in tqdm(tokens.split(16), desc=f"evaluation text, {self.run.site} {self.run.layer}", disable=None):
            x = self.model.activations(part, [self.key])[self.key][:, 0 if self.run.keep_pos0 else 1 :]
            kept.append((x.float() * self.store.scale).bfloat16().cpu())
        return torch.cat(kept), torch.arange(len(tokens)) % metrics.GROUPS

    def tokens(self, count: int) -> Tensor:
        return torch.as_tensor(self.blocks("eval", count).with_format("torch")["tokens"][:]).long()

    @cached_property
    def splices(self) -> list:
        tokens = self.tokens(-(-self.run.ce_tokens // self.run.context))
        return [self.model.splice(part, *self.key, keep_pos0=self.run.keep_pos0) for part in tokens.split(16)]

    @cached_property
    def references(self) -> dict[str, list[Tensor]]:
        """Cross-entropy per block: clean, zero-ablated and mean-ablated (position 0 keeps its activation)."""
        mean = self.store.mean / self.store.scale
        bar = tqdm(self.splices, desc="clean, zero and mean ablation", disable=None)
        rows = [(s.ce(None), s.ce(torch.zeros_like(s.clean)), s.ce(mean.to(s.clean).expand_as(s.clean))) for s in bar]
        return dict(zip(("clean", "zero", "mean"), map(list, zip(*rows, strict=True)), strict=True))

    @torch.no_grad()
    def evaluate(self, sae: torch.nn.Module) -> tuple[dict, dict, dict]:
        """Metrics, the sums behind them per group, and the density histogram of an SAE, or of what encodes like one."""
        sae, sums = sae.eval(), metrics.Sums(self.store.mean)
        data, groups = self.held_out
        few = max(1, 512 // data.shape[1])  # codes of some 500 tokens stay in the processor's cache: twice as fast
        for x, group in zip(data.split(few), groups.split(few), strict=True):
            rows = x.flatten(0, 1).float().to(sae.b_dec.device)
            f = sae.encode(rows)
            sums.add(rows, sae.decode(f), f, group.repeat_interleave(x.shape[1]))
        start, scale = 0, self.store.scale
        for i, s in enumerate(self.splices):
            replaced = sae((s.clean.float() * scale).to(sae.b_dec.device)).to(s.clean.device) / scale
            group = torch.arange(start, start + len(s.clean)) % metrics.GROUPS
            known = {name: values[i] for name, values in self.references.items()}
            sums.add_ce(group, **known, sae=s.ce(replaced.to(s.clean.dtype)), tokens=s.targets)
            start += len(s.clean)
        kept = sums.to_dict()
        return {**stats.ratios(kept), "dead_fraction": float(sums.dead_fraction)}, kept, sums.density()


def lock(name: str) -> Path:
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


def train_stack(runs: list[Run], site: Site, experiment: str, at: str, force: bool = False) -> None:
    """Train runs that differ in lambda alone, evaluate each and write its evidence at once."""
    run, began = runs[0], time.monotonic()
    plan = Plan(
        run.arch, len(site.store.mean), run.M, tuple(r.lam for r in runs), run.steps, run.batch, run.lr, run.seed,
        tuple(sorted(run.switches.items())), run.lam_warmup, run.lr_warmup, run.lr_decay, run.resample,
        tuple(r.id for r in runs), device="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    name = hashlib.sha256(repr(plan).encode()).hexdigest()[:12]
    checkpoint = cache_dir() / "checkpoints" / f"{name}.safetensors"
    stack = Stack(plan)
    saes = fit(stack, site.batches(run), checkpoint)
    stack.save(checkpoint)
    seconds = (time.monotonic() - began) / len(runs)
    for k, (one, sae) in enumerate(zip(runs, tqdm(saes, desc="evaluate", disable=None), strict=True)):
        began = time.monotonic()
        checkpoints.save(sae, checkpoints.weights(one.id), run=experiments.asdict(one), scale=site.store.scale)
        values, sums, density = site.evaluate(sae)
        corpus_hash, lm_hash = experiments.sources(one.lm, one.context)
        record = {
            "schema": 1,
            "recipe": experiments.RECIPES[one.arch],
            "id": one.id,
            "experiment": experiment,
            "scale": at,
            "run": experiments.asdict(one),
            "metrics": values,
            "sums": sums,
            "curve": {"columns": list(stack.columns), "rows": [row[k] for row in stack.curve]},
            "density": density,
            "store": {"scale": site.store.scale, "top_share": site.store.top_share, "rows": site.store.rows},
            "provenance": evidence.provenance(plan.device, seconds + time.monotonic() - began, corpus_hash, lm_hash)
            | {"lm_commit": site.model.commit},
        }
        evidence.write(record, force=force)
    checkpoint.unlink(missing_ok=True)


def groups(runs: Iterable[Run], key) -> list[list[Run]]:
    """Runs with an equal key, in order of first appearance."""
    found: dict = {}
    for one in runs:
        found.setdefault(key(one), []).append(one)
    return list(found.values())


def run(
    name: str | list[Run], scale: str | None = None, *, only: slice | None = None, force: bool = False
) -> pd.DataFrame:
    """The table of an experiment: reads the runs that exist at this scale, trains those that do not, says which it did.

    Args:
        name: an experiment of `gsae list`, or your own list of `Run`.
        scale: smoke, cpu, gpu or paper; by default GSAE_SCALE, else smoke.
        force: write evidence of a scale other than smoke from a tree with uncommitted changes, and go on where memory
            or disk seem too small.

    With GSAE_TRAIN=never nothing is trained: missing runs are rows of status "missing".

    Returns:
        One row a run: its fields, its metrics, `status`, and the objects `sums`, `curve`, `density`, `provenance`.

    Raises:
        KeyError, ValueError: on an unknown experiment or scale.
        gsae.plan.TooLarge: where memory or disk cannot hold it.
        gsae.training.Diverged: on a NaN or an infinity; runs finished before it are kept.
    """
    at = experiments.scale(scale)
    runs = (experiments.runs(name, at) if isinstance(name, str) else list(name))[only or slice(None)]
    missing = [r for r in runs if evidence.find(r.id, at) is None]
    label = name if isinstance(name, str) else "own"
    never = os.environ.get("GSAE_TRAIN") == "never"
    todo = (
        "" if not missing else ", the others are missing (GSAE_TRAIN=never)" if never else f", {len(missing)} to train"
    )
    print(
        f"{label} at scale {at}: {len(runs) - len(missing)} of {len(runs)} runs are on record{todo}",
        file=sys.stderr,
    )
    if missing and not never:
        if at != "smoke" and not force:
            evidence.require_clean()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        gpu_free = torch.cuda.mem_get_info()[0] if device == "cuda" else None
        plan.check(missing, at, cache_dir(), device, gpu_free, force)
        train_missing(missing, at, force)
    return evidence.load(runs, at)


def train_missing(missing: list[Run], at: str, force: bool) -> None:
    """Train runs, language model by language model and site by site; a lock keeps two processes off one stack."""
    for of_model in groups(missing, lambda r: r.lm):
        model = language_models.load(of_model[0].lm)
        data = lambda r: (r.text, r.context, r.tokens, r.batch, r.keep_pos0, r.eval_tokens, r.ce_tokens)  # noqa: E731
        for of_data in groups(of_model, data):
            sites = [Site(rs[0], model) for rs in groups(of_data, lambda r: (r.site, r.layer))]
            if not sizes.streams(of_data[0]):
                for site, store in zip(sites, Site.harvest(sites), strict=True):
                    site.store = store
            for site, of_site in zip(sites, groups(of_data, lambda r: (r.site, r.layer)), strict=True):
                for stack in groups(of_site, lambda r: r.stack):
                    with FileLock(lock(f"stack-{stack[0].id}")):
                        left = [r for r in stack if evidence.find(r.id, at) is None]
                        if left:
                            train_stack(left, site, experiments.home(left[0], at), at, force)
                for large in ("store", "held_out", "splices", "references"):
                    site.__dict__.pop(large, None)
