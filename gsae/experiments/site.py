"""One hooked place of a language model, and the activations that its runs train on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from filelock import FileLock
from torch import Tensor

from gsae.evidence.run import Run
from gsae.experiments import gpu_parts, limits
from gsae.lm import buffer, corpus, harvest, models
from gsae.lm.store import Store
from gsae.system import devices, distributed
from gsae.system.distributed import ALONE, Alone
from gsae.system.files import cache_dir, lock

SEED_ORDER = 0  # of the store's permutation: a store is shared by runs of every seed


@dataclass
class Site:
    """One hooked place of a language model, with the activations that its runs train on: a store,
    or a buffer where a store would fill the disk.
    """

    run: Run  # any run of this site: gives lm, layer, text, tokens and evaluation sizes
    model: "models.LM"

    @property
    def key(self) -> tuple[str, int]:
        return self.run.site, self.run.layer

    @property
    def positions(self) -> int:
        """Tokens of a block whose activations are read: all, or all but the first."""
        return self.run.context - (not self.run.keep_pos0)

    def blocks(self, split: str, count: int):
        """The first `count` blocks of "train" or "eval" text, a `datasets.Dataset`. Raises
        ValueError where the text has fewer.
        """
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
                f"the run asks for {count:,}; lower its tokens or name a larger dataset"
            )
        return data.select(range(count))

    @cached_property
    def store(self) -> "Store | buffer.Buffer":
        """What training reads; made when it is first needed, and kept until `release`."""
        return self.stream() if limits.streams(self.run) else self.harvest([self])[0]

    def release(self) -> None:
        """Let go of the store, or of the buffer and its memory."""
        self.__dict__.pop("store", None)

    def stream(self) -> "buffer.Buffer":
        run = self.run
        source = buffer.Source(
            self.model,
            self.blocks("train", limits.store_rows(run) // self.positions),
            *self.key,
            batch=limits.blocks_per_pass(run.context),
            keep_pos0=run.keep_pos0,
        )
        return buffer.Buffer(source, rows=limits.BUFFER, device=self.model.device)

    @staticmethod
    def harvest(sites: list["Site"], ranks: Alone = ALONE) -> list["Store"]:
        """Stores of several sites of one language model with equal text and length, in one pass
        that ranks share.
        """
        first = sites[0]
        run, rows = first.run, limits.store_rows(first.run)
        blocks = first.blocks("train", rows // first.positions)
        name = f"{corpus.token_hash(blocks)}{'-pos0' if run.keep_pos0 else ''}"
        with distributed.only(ranks, FileLock(lock(f"harvest-{run.lm}-{name}"))):
            stores = harvest.harvest(
                first.model,
                blocks,
                [site.key for site in sites],
                rows,
                cache_dir() / "activations" / run.lm,
                name_hash=name,
                seed=SEED_ORDER,
                batch=limits.blocks_per_pass(run.context),
                keep_pos0=run.keep_pos0,
                ranks=ranks,
            )
        return [stores[site.key] for site in sites]

    def batches(self, run: Run) -> Callable[[int], Tensor]:
        """`step -> batch` of a run's own stream."""
        return lambda step: self.store.batch(step, run.batch, run.seed)

    def parts(self, runs: list[Run]) -> list["gpu_parts.Part"]:
        """Runs of one stack, cut into what the GPU holds at once; `gsae plan` cuts them alike. A
        single part without a GPU, or where the language model's shape is not known.
        """
        memory, device = devices.gpu_memory(), self.model.device
        if not (memory and limits.known(self.run.lm)):
            return [gpu_parts.Part(tuple(runs), {"buffer": 0}, {}, "", 0)]
        apart = device.type != "cuda" or device.index != torch.cuda.current_device()
        return gpu_parts.parts(runs, memory, apart)

    def make_room(self, runs: list[Run]) -> None:
        """Keep the buffer in the host's memory while it does not fit beside these runs."""
        if not isinstance(self.store, buffer.Buffer):
            return
        cut = self.parts(runs)
        fits_beside = len(cut) == 1 and "buffer" in cut[0].memory
        self.store.move(self.model.device if fits_beside else "cpu")
