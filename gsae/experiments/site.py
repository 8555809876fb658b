"""One hooked place of a language model: its training store, and the evaluation that all its runs
share.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from gsae.evidence import metrics as stats
from gsae.evidence import sums as metrics
from gsae.evidence.run import Run
from gsae.experiments import gpu_parts, limits
from gsae.lm import buffer, corpus, harvest
from gsae.lm import models as language_models
from gsae.lm import store as activations
from gsae.system import distributed
from gsae.system.devices import gpu_memory
from gsae.system.distributed import ALONE, Alone
from gsae.system.files import cache_dir, lock

ROWS = {
    "cpu": 512,
    "cuda": 4096,
}  # tokens encoded at once: on a CPU their codes stay in its cache, twice as fast
SEED_ORDER = 0  # of the store's permutation: a store is shared by runs of every seed


@dataclass
class Site:
    """One hooked place of a language model: its training store and its held-out evaluation, each
    made once.
    """

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
            data = corpus.hub_blocks(
                tokenizer, run.text, run.context, count, split=splits, name=run.lm
            )
        if len(data) < count:
            raise ValueError(
                f"{run.lm}: the {split} text has {len(data):,} blocks of {run.context} tokens, "
                "the run asks "
                f"for {count:,}; lower its tokens or name a larger dataset"
            )
        return data.select(range(count))

    @cached_property
    def store(self) -> "activations.Store | buffer.Buffer":
        return self.stream() if limits.streams(self.run) else self.harvest([self])[0]

    def stream(self) -> "buffer.Buffer":
        run = self.run
        blocks = self.blocks("train", limits.store_rows(run) // (run.context - (not run.keep_pos0)))
        source = buffer.Source(
            self.model,
            blocks,
            *self.key,
            batch=limits.blocks_per_pass(run.context),
            keep_pos0=run.keep_pos0,
        )
        return buffer.Buffer(source, rows=limits.BUFFER, device=self.model.device)

    def parts(self, runs: list[Run]) -> list["gpu_parts.Part"]:
        """Runs of one stack, cut into what the GPU holds at once, as `gsae plan` cuts them; a
        single part without a GPU, or where the language model's shape is not known.
        """
        memory, device = gpu_memory(), self.model.device
        if not (memory and limits.known(self.run.lm)):
            return [gpu_parts.Part(tuple(runs), {"buffer": 0}, {}, "", 0)]
        apart = device.type != "cuda" or device.index != torch.cuda.current_device()
        return gpu_parts.parts(runs, gpu_parts.GPU(memory / 1e9, 1, 1), apart)

    def make_room(self, runs: list[Run]) -> None:
        """Keep the buffer in the host's memory while it does not fit beside these runs."""
        if isinstance(self.store, buffer.Buffer):
            cut = self.parts(runs)
            self.store.move(
                self.model.device if len(cut) == 1 and "buffer" in cut[0].memory else "cpu"
            )

    @staticmethod
    def harvest(sites: list["Site"], ranks: Alone = ALONE) -> list["activations.Store"]:
        """Stores of several sites of one language model with equal text and length, in one pass
        that ranks share.
        """
        run, model = sites[0].run, sites[0].model
        per_block = run.context - (not run.keep_pos0)
        count = -(-(run.tokens + run.batch) // per_block)
        data = sites[0].blocks("train", count)
        name = f"{corpus.token_hash(data)}{'-pos0' * run.keep_pos0}"
        folder = cache_dir() / "activations" / run.lm
        keys = [site.key for site in sites]
        options = {
            "name_hash": name,
            "seed": SEED_ORDER,
            "keep_pos0": run.keep_pos0,
            "ranks": ranks,
        }
        options["batch"] = limits.blocks_per_pass(run.context)
        with distributed.only(ranks, FileLock(lock(f"harvest-{run.lm}-{name}"))):
            stores = harvest.harvest(model, data, keys, count * per_block, folder, **options)
        return [stores[key] for key in keys]

    def batches(self, run: Run):
        return lambda step: self.store.batch(step, run.batch, run.seed)

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Scaled activations of the evaluation blocks, `(blocks, positions, n)` in bfloat16, and
        each block's group.
        """
        per_block = self.run.context - (not self.run.keep_pos0)
        tokens = self.tokens(-(-self.run.eval_tokens // per_block))
        kept, start = None, 0
        few = limits.blocks_per_pass(self.run.context)
        for part in tqdm(
            tokens.split(few),
            desc=f"evaluation text, {self.run.site} {self.run.layer}",
            disable=None,
        ):
            x = self.model.activations(part, [self.key])[self.key][
                :, 0 if self.run.keep_pos0 else 1 :
            ]
            if not x.isfinite().all():
                block = start + int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
                raise ValueError(
                    f"{self.run.lm}: NaN or infinite activation at {self.run.site} of layer "
                    f"{self.run.layer}, block "
                    f"{block} of the evaluation text; load the model in float32, or look at that "
                    "block"
                )
            if kept is None:  # in its place at once: joining parts would take the memory twice
                kept = torch.empty(len(tokens), *x.shape[1:], dtype=torch.bfloat16)
            kept[start : start + len(x)] = (x.float() * self.store.scale).bfloat16()
            start += len(x)
        return kept, torch.arange(len(tokens)) % metrics.GROUPS

    def tokens(self, count: int) -> Tensor:
        return torch.as_tensor(self.blocks("eval", count).with_format("torch")["tokens"][:]).long()

    @cached_property
    def splices(self) -> "Splices | list":
        tokens = self.tokens(-(-self.run.ce_tokens // self.run.context))
        found = Splices(self, tokens.split(limits.blocks_per_pass(self.run.context)))
        return list(found) if limits.keeps_splices(self.run) else found

    @cached_property
    def references(self) -> dict[str, list[Tensor]]:
        """Cross-entropy per block: clean, zero-ablated and mean-ablated (position 0 keeps its
        activation).
        """
        mean = self.store.mean / self.store.scale
        bar = tqdm(self.splices, desc="clean, zero and mean ablation", disable=None)
        rows = [
            (s.ce(None), s.ce(torch.zeros_like(s.clean)), s.ce(mean.to(s.clean).expand_as(s.clean)))
            for s in bar
        ]
        return dict(zip(("clean", "zero", "mean"), map(list, zip(*rows, strict=True)), strict=True))

    def rows_at_once(self, sae: torch.nn.Module) -> int:
        return limits.rows_at_once(
            getattr(sae, "sae", sae).M, ROWS.get(sae.b_dec.device.type, 4096)
        )

    @torch.no_grad()
    def reconstruct(self, sae: torch.nn.Module) -> metrics.Sums:
        """The sums behind an SAE's metrics of reconstruction, over the evaluation activations; no
        cross-entropy.
        """
        sae, sums = sae.eval(), metrics.Sums(self.store.mean)
        data, groups = self.held_out
        few = max(1, self.rows_at_once(sae) // data.shape[1])
        for x, group in zip(data.split(few), groups.split(few), strict=True):
            rows = x.flatten(0, 1).float().to(sae.b_dec.device)
            f = sae.encode(rows)
            sums.add(rows, sae.decode(f), f, group.repeat_interleave(x.shape[1]))
        return sums

    @torch.no_grad()
    def evaluate(self, sae: torch.nn.Module) -> tuple[dict, dict, dict]:
        """Metrics, the sums behind them per group, and the density histogram of an SAE, or of what
        encodes like one.
        """
        sums, most = self.reconstruct(sae), self.rows_at_once(sae)
        start, scale = 0, self.store.scale
        for i, s in enumerate(self.splices):
            rows = (s.clean.float() * scale).to(sae.b_dec.device).flatten(0, 1)
            replaced = (
                torch.cat([sae(x) for x in rows.split(most)]).view(s.clean.shape).to(s.clean.device)
                / scale
            )
            group = torch.arange(start, start + len(s.clean)) % metrics.GROUPS
            known = {name: values[i] for name, values in self.references.items()}
            sums.add_ce(group, **known, sae=s.ce(replaced.to(s.clean.dtype)), tokens=s.targets)
            start += len(s.clean)
        kept = sums.to_dict()
        return (
            {**stats.ratios(kept), "dead_fraction": float(sums.dead_fraction)},
            kept,
            sums.density(),
        )


@dataclass
class Splices:
    """The splices of a site, made anew each time they are gone through: at the paper's size too
    large to keep.
    """

    site: Site
    parts: tuple[Tensor, ...]  # of the text: token ids, (blocks, context)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self):
        return (
            self.site.model.splice(p, *self.site.key, keep_pos0=self.site.run.keep_pos0)
            for p in self.parts
        )
