"""A store of activations on disk, written once by `harvest`: rows in bf16, shuffled over the whole
store, read in batches.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor

from gsae.system import files

DATA, META = "rows.bf16", "meta.json"
AGAIN = "delete {} and harvest again"


class StoreError(RuntimeError):
    """A store on disk is missing, incomplete or damaged; the message says which and what to do."""


class Store:
    """Rows of activations, (rows, n), in random order. Open one with `Store.open`.

    `scale` times a stored row has unit mean squared norm over the store (D1); `mean` (n,) is in
    those scaled units; `top_share` is the share of the summed squared norm that the largest 0.1 %
    of the rows hold.
    """

    def __init__(self, folder: Path, meta: dict):
        self.folder, self.meta = folder, meta
        self.n, self.rows = meta["n"], meta["rows"]
        self.scale, self.top_share = meta["scale"], meta["top_share"]
        self.mean = torch.tensor(meta["mean"])
        sums = meta.get("checksums", {})
        self.checked = files.Checked(folder / DATA, sums, StoreError, AGAIN.format(folder))

    @property
    def data(self) -> BFloat16[Tensor, "rows n"]:
        """All stored rows, read anew at each use, not checked."""
        return read_rows(self.folder, self.n, 0, self.rows)

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Raises StoreError if the harvest never finished, if meta.json was changed, or if the data
        file is not as long as it should be. Its bytes are checked as `batch` reads them.
        """
        folder = Path(folder)
        meta = _read_meta(folder)
        data = folder / DATA
        size = data.stat().st_size if data.exists() else 0
        expected = meta["rows"] * meta["n"] * 2
        if size != expected:
            raise StoreError(
                f"{data} has {size:,} bytes, expected {expected:,} ({meta['rows']:,} rows of "
                f"{meta['n']} bf16 numbers): {AGAIN.format(folder)}"
            )
        return cls(folder, meta)

    def batch(self, step: int, batch: int, seed: int) -> Float32[Tensor, "batch n"]:
        """The scaled rows of one training step: a pure function of (step, batch, seed).

        Each epoch starts at another random row and visits contiguous batches in another random
        order; the rows themselves are shuffled once, by the harvest.

        Raises:
            ValueError: if a batch is larger than the store.
            StoreError: where the bytes on disk are not those that were written.
        """
        if not 0 < batch <= self.rows:
            raise ValueError(
                f"a batch of {batch:,} rows from a store of {self.rows:,}: harvest more tokens"
            )
        epoch, place = divmod(step, self.rows // batch)
        offset, order = _epoch(seed, epoch, self.rows, batch)
        start = (offset + int(order[place]) * batch) % self.rows
        stop = start + batch
        rows = self._checked_rows(start, min(stop, self.rows))
        if stop > self.rows:  # the batches of an epoch lie in a circle: go on at the first row
            rows = torch.cat([rows, self._checked_rows(0, stop - self.rows)])
        return rows.float() * self.scale

    def _checked_rows(self, start: int, stop: int) -> BFloat16[Tensor, "rows n"]:
        self.checked.check(start * self.n * 2, stop * self.n * 2)
        return read_rows(self.folder, self.n, start, stop)


def _read_meta(folder: Path) -> dict:
    """meta.json without its digest. Raises StoreError where it is absent or was changed."""
    path = folder / META
    if not path.exists():
        raise StoreError(
            f"{folder} holds no complete store (no {META}): harvest it, an interrupted one resumes"
        )
    try:
        meta = json.loads(path.read_text())
        digest = meta.pop("digest", None)
        # stores of earlier versions have no digest
        intact = digest is None or digest == files.digest(meta)
    except ValueError:
        intact = False
    if not intact:
        raise StoreError(
            f"{path} is damaged: its bytes differ from those written: {AGAIN.format(folder)}"
        )
    return meta


def read_rows(folder: Path, n: int, start: int, stop: int) -> BFloat16[Tensor, "rows n"]:
    """Rows of a store's data file, not checked. Raises StoreError where the file ends before."""
    count = (stop - start) * n
    # Read, not mapped: pages of a map would count as memory of the process, and a run touches all
    # of them.
    numbers = np.fromfile(folder / DATA, np.uint16, count, offset=2 * start * n)
    if len(numbers) < count:
        raise StoreError(
            f"{folder / DATA} was cut short: it ends before row {stop:,}: {AGAIN.format(folder)}"
        )
    return torch.from_numpy(numbers).view(torch.bfloat16).view(-1, n)


@lru_cache(maxsize=16)
def _epoch(seed: int, epoch: int, rows: int, batch: int) -> tuple[int, np.ndarray]:
    """The row where an epoch's first batch starts, and the order in which batches are visited."""
    random = np.random.default_rng([seed, epoch])
    return int(random.integers(rows)), random.permutation(rows // batch)
