"""Activations streamed through a shuffled buffer, for runs whose store would fill the disk (D.1.1
of the paper).
"""

from collections import OrderedDict

import numpy as np
import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor
from tqdm.auto import tqdm

from gsae.lm import store
from gsae.lm.models import LM

# rows at the start of the text that fix scale and mean: the standard error of the scale is below 1
# %
SAMPLE = 2**18
RECENT = (
    8  # batches kept, so that resampling can look a few steps ahead without the buffer going back
)


class Source:
    """One site's activations in the order of the text, a chunk of `batch` blocks at a time.

    `rows` and `n` are those of the whole text; `chunk` is the number of rows of each chunk but the
    last. Position 0 of each block is left out unless `keep_pos0`.
    """

    def __init__(
        self, lm: LM, blocks, site: str, layer: int, *, batch: int, keep_pos0: bool = False
    ):
        self.lm, self.blocks, self.site, self.layer = lm, blocks, site, layer
        context = len(blocks[0]["tokens"])
        self.first, self.batch = 0 if keep_pos0 else 1, batch
        per_block = context - self.first
        self.n, self.rows, self.chunk = lm.d(site), len(blocks) * per_block, self.batch * per_block

    def __call__(self, i: int) -> BFloat16[Tensor, "rows n"]:
        """Chunk `i`. Raises ValueError, naming block, site and layer, on an activation that is NaN
        or infinite.
        """
        read = torch.as_tensor(
            np.asarray(self.blocks[i * self.batch : (i + 1) * self.batch]["tokens"])
        )
        key = (self.site, self.layer)
        x = self.lm.activations(read, [key])[key][:, self.first :].to(torch.bfloat16)
        if not x.isfinite().all():
            block = i * self.batch + int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(
                f"{self.lm.name}: NaN or infinite activation at {self.site} of layer "
                f"{self.layer}, block {block} of "
                "the text; load the model in float32, or look at that block"
            )
        return x.flatten(0, 1)


class Buffer:
    """A window of `rows` activations that moves over the text; read like `activations.Store`.

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
        self.source, self.n, self.rows, self.size = (
            source,
            source.n,
            source.rows,
            min(rows, source.rows),
        )
        chunks = range(-(-min(sample, self.rows) // source.chunk))
        parts = (source(i) for i in tqdm(chunks, desc="measure the activations", disable=None))
        found = store.measure(parts, source.site, source.layer)
        self.scale, self.mean, self.top_share = (
            found["scale"],
            torch.tensor(found["mean"]),
            found["top_share"],
        )
        self.data = torch.empty(self.size, self.n, dtype=torch.bfloat16, device=device)
        self._at, self._recent, self._kept = None, OrderedDict(), (None, None)

    def batch(self, step: int, batch: int, seed: int) -> Float32[Tensor, "batch n"]:
        """The scaled rows of one training step: a pure function of (step, batch, seed).

        Raises ValueError if the buffer does not hold two batches, or as `Source` does.
        """
        if not 0 < 2 * batch <= self.size:
            raise ValueError(
                f"a batch of {batch:,} rows needs a buffer of {2 * batch:,} at least, it has "
                f"{self.size:,}"
            )
        if (key := (step, batch, seed)) not in self._recent:
            epoch, place = divmod(step, self.rows // batch)
            until = self.size // 2 // batch  # batches, after which the buffer is half empty
            refills = -(-(self.rows - self.size) // (until * batch))
            refill = min(place // until, refills)  # after the last one, everything is read
            self._go(batch, seed, epoch, refill)
            start = (place - refill * until) * batch
            slots = torch.from_numpy(self._order[start : start + batch]).to(self.data.device)
            self._recent[key] = self.data[slots]
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        return self._recent[key].float() * self.scale

    def move(self, device: torch.device | str) -> None:
        """Keep the rows in another memory: the host's, or a GPU's."""
        self.data = self.data.to(device)
        self._kept, self._recent = (None, None), OrderedDict()

    def _go(self, batch: int, seed: int, epoch: int, refill: int) -> None:
        """Bring the buffer to its state after a refill: one refill on, or by a jump that loads all
        of it anew.
        """
        if self._at == (batch, seed, epoch, refill):
            return
        half = self.size // 2 // batch * batch
        at, self._at = self._at, None  # a failure on the way leaves no half-filled buffer in use
        if at is None or at[:3] != (batch, seed, epoch) or at[3] > refill:
            self._origin = np.arange(self.size)  # the row of the text in each slot
            self._order = np.random.default_rng([seed, epoch, 0]).permutation(
                self.size
            )  # slots, in reading order
            at, jump = (batch, seed, epoch, 0), True
        else:
            jump = refill > at[3] + 1
        fresh = np.empty(0, int)
        for i in range(at[3], refill):
            start = self.size + i * half
            rows = np.arange(start, min(start + half, self.rows))
            fresh, kept = self._order[: len(rows)], self._order[half:]
            self._origin[fresh] = rows
            self._order = np.random.default_rng([seed, epoch, i + 1]).permutation(
                np.concatenate([kept, fresh])
            )
        self._load(self._order if jump else fresh)
        self._at = (batch, seed, epoch, refill)

    def _load(self, slots: np.ndarray) -> None:
        """Read the rows that belong into these slots, in the order of the text."""
        slots = slots[np.argsort(self._origin[slots])]
        rows = self._origin[slots]
        chunks, starts = np.unique(rows // self.source.chunk, return_index=True)
        bar = tqdm(chunks, desc="fill the buffer", leave=False, disable=None)
        for i, start, stop in zip(bar, starts, [*starts[1:], len(rows)], strict=True):
            if self._kept[0] != i:  # a refill starts in the chunk where the last one ended
                self._kept = (i, self.source(int(i)).to(self.data.device))
            within = torch.from_numpy(rows[start:stop] - i * self.source.chunk).to(self.data.device)
            self.data[torch.from_numpy(slots[start:stop]).to(self.data.device)] = self._kept[1][
                within
            ]
