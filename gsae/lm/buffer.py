"""Activations streamed through a shuffled buffer, for runs whose store would fill the disk (D.1.1
of the paper).
"""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor
from tqdm.auto import tqdm

from gsae.lm.models import LM
from gsae.lm.rows import check_finite, measure

# rows at the start of the text that fix scale and mean: the scale's standard error is below 1 %
SAMPLE = 2**18
# batches kept, so that resampling can look a few steps ahead without the buffer going back
RECENT = 8


class Source:
    """One site's activations in the order of the text, a chunk of `batch` blocks at a time.

    `rows` and `n` are those of the whole text; `chunk` is the number of rows of each chunk but the
    last. Position 0 of each block is left out unless `keep_pos0`.
    """

    def __init__(
        self, lm: LM, blocks, site: str, layer: int, *, batch: int, keep_pos0: bool = False
    ):
        self.lm, self.blocks, self.site, self.layer = lm, blocks, site, layer
        self.batch = batch
        self.first = 0 if keep_pos0 else 1
        per_block = len(blocks[0]["tokens"]) - self.first
        self.n = lm.d(site)
        self.rows = len(blocks) * per_block
        self.chunk = batch * per_block

    def __call__(self, i: int) -> BFloat16[Tensor, "rows n"]:
        """Chunk `i`. Raises ValueError, naming block, site and layer, on an activation that is NaN
        or infinite.
        """
        start = i * self.batch
        tokens = torch.as_tensor(np.asarray(self.blocks[start : start + self.batch]["tokens"]))
        key = (self.site, self.layer)
        x = self.lm.activations(tokens, [key])[key][:, self.first :].to(torch.bfloat16)
        check_finite(x, start, lm=self.lm.name, site=self.site, layer=self.layer)
        return x.flatten(0, 1)


class State(NamedTuple):
    """What lies where in a buffer follows from these four numbers."""

    batch: int
    seed: int
    epoch: int  # passes over the text before this one
    refill: int  # times that the free half was filled, in this pass


class Buffer:
    """A window of `rows` activations that moves over the text; read like `gsae.lm.store.Store`.

    The buffer is filled, shuffled and read until it is half empty; the free half is filled with the
    next rows of the text, and all of it is shuffled again. At the end of the text what is left is
    read to the last whole batch, and the text starts over with another shuffling: a pass gives each
    row once, less than a batch aside.

    What lies where depends on (batch, seed) alone, so that `batch` is a pure function of its
    arguments. Reading on is free. A jump, as after a resumed run, costs about a second of
    bookkeeping per 100 refills, and reads again what the buffer held at that step: some `rows *
    log2(chunk) / 2` rows of text, 6 million for a million rows in chunks of 2,000, half a per cent
    of the paper's runs.

    Args:
        source: the text's activations, by chunk.
        rows: size of the buffer, in bf16 on `device`: 2 n bytes a row.
        sample: rows at the start of the text, rounded up to chunks, that fix `scale`, `mean` and
            `top_share`.
    """

    def __init__(
        self, source: Source, rows: int, sample: int = SAMPLE, device: torch.device | str = "cpu"
    ):
        self.source, self.n, self.rows = source, source.n, source.rows
        self.size = min(rows, source.rows)
        chunks = range(-(-min(sample, self.rows) // source.chunk))
        parts = (source(i) for i in tqdm(chunks, desc="measure the activations", disable=None))
        measured = measure(parts, source.site, source.layer)
        self.scale, self.top_share = measured["scale"], measured["top_share"]
        self.mean = torch.tensor(measured["mean"])
        self.data = torch.empty(self.size, self.n, dtype=torch.bfloat16, device=device)
        self._state: State | None = None
        # set with the first state: the row of the text in each slot, and the slots that are still
        # to be read, in reading order
        self._origin = self._order = np.empty(0, int)
        self._recent: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()
        self._kept = (None, None)  # the chunk that was read last: its number and its rows

    def batch(self, step: int, batch: int, seed: int) -> Float32[Tensor, "batch n"]:
        """The scaled rows of one training step: a pure function of (step, batch, seed).

        Raises ValueError if the buffer does not hold two batches, or as `Source` does.
        """
        if not 0 < 2 * batch <= self.size:
            raise ValueError(
                f"a batch of {batch:,} rows needs a buffer of {2 * batch:,} at least, it has "
                f"{self.size:,}"
            )
        key = (step, batch, seed)
        if key not in self._recent:
            self._recent[key] = self._read(step, batch, seed)
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        return self._recent[key].float() * self.scale

    def move(self, device: torch.device | str) -> None:
        """Keep the rows in another memory: the host's, or a GPU's."""
        self.data = self.data.to(device)
        self._kept, self._recent = (None, None), OrderedDict()

    def _read(self, step: int, batch: int, seed: int) -> Tensor:
        """The rows of one step as they are stored, after as many refills as they take."""
        epoch, place = divmod(step, self.rows // batch)
        until_half_empty = self.size // 2 // batch  # batches
        refills_of_a_pass = -(-(self.rows - self.size) // (until_half_empty * batch))
        # after the last refill, everything is read
        refill = min(place // until_half_empty, refills_of_a_pass)
        self._bring_to(State(batch, seed, epoch, refill))
        start = (place - refill * until_half_empty) * batch
        return self.data[self._index(self._order[start : start + batch])]

    def _bring_to(self, wanted: State) -> None:
        """Bring the buffer to a state: one refill on, or by a jump that loads all of it anew."""
        state = self._state
        if state == wanted:
            return
        self._state = None  # a failure on the way leaves no half-filled buffer in use
        same_pass = state is not None and state[:3] == wanted[:3]
        reads_on = same_pass and state.refill < wanted.refill
        if not reads_on:
            self._start_pass(wanted)
        done = state.refill if reads_on else 0
        for number in range(done, wanted.refill):
            refilled = self._refill(wanted, number)
        # Of several refills only the bookkeeping is done: most rows would be overwritten unread.
        one_refill_on = reads_on and wanted.refill == done + 1
        self._load(refilled if one_refill_on else self._order)
        self._state = wanted

    def _start_pass(self, wanted: State) -> None:
        """The bookkeeping of a buffer that holds the start of the text."""
        self._origin = np.arange(self.size)
        random = np.random.default_rng([wanted.seed, wanted.epoch, 0])
        self._order = random.permutation(self.size)

    def _refill(self, wanted: State, number: int) -> np.ndarray:
        """The bookkeeping of one refill: the next rows of the text take the slots that were read,
        and all are shuffled. Returns these slots, which are to be loaded.
        """
        half = self.size // 2 // wanted.batch * wanted.batch
        start = self.size + number * half
        rows = np.arange(start, min(start + half, self.rows))
        refilled, unread = self._order[: len(rows)], self._order[half:]
        self._origin[refilled] = rows
        random = np.random.default_rng([wanted.seed, wanted.epoch, number + 1])
        self._order = random.permutation(np.concatenate([unread, refilled]))
        return refilled

    def _load(self, slots: np.ndarray) -> None:
        """Read the rows that belong into these slots, in the order of the text."""
        slots = slots[np.argsort(self._origin[slots])]
        rows = self._origin[slots]
        chunks, starts = np.unique(rows // self.source.chunk, return_index=True)
        stops = [*starts[1:], len(rows)]
        bar = tqdm(chunks, desc="fill the buffer", leave=False, disable=None)
        for i, start, stop in zip(bar, starts, stops, strict=True):
            chunk = self._chunk(int(i))
            within = self._index(rows[start:stop] - i * self.source.chunk)
            self.data[self._index(slots[start:stop])] = chunk[within]

    def _chunk(self, i: int) -> Tensor:
        """A chunk in the buffer's memory. The last one is kept: a refill starts in the chunk where
        the one before it ended.
        """
        if self._kept[0] != i:
            self._kept = (i, self.source(i).to(self.data.device))
        return self._kept[1]

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.data.device)
