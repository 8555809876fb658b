"""Activations harvested once into a memory-mapped bf16 store, shuffled over the whole store, read
in batches.
"""

import hashlib
import json
import mmap
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor
from tqdm.auto import tqdm

from gsae.lm import store
from gsae.lm.models import LM
from gsae.system import files
from gsae.system.distributed import ALONE, Alone

DATA, META, PROGRESS = "rows.bf16", "meta.json", "progress{}.json"
AGAIN = "delete {} and harvest again"
FLUSH_SECONDS = 30  # an interrupted harvest loses at most this much work


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
        self.checked = files.Checked(
            folder / DATA, meta.get("checksums", {}), StoreError, AGAIN.format(folder)
        )

    @property
    def data(self) -> BFloat16[Tensor, "rows n"]:
        """All stored rows, read anew at each use, not checked."""
        return _read(self.folder, self.n, 0, self.rows)

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Raises StoreError if the harvest never finished, if meta.json was changed, or if the data
        file is not as long as it should be. Its bytes are checked as `batch` reads them."""
        folder = Path(folder)
        if not (folder / META).exists():
            raise StoreError(
                f"{folder} holds no complete store (no {META}): harvest it, an interrupted one "
                "resumes"
            )
        try:
            meta = json.loads((folder / META).read_text())
            intact = meta.pop("digest", None) in (
                None,
                files.digest(meta),
            )  # None: stores of earlier versions
        except ValueError:
            intact = False
        if not intact:
            raise StoreError(
                f"{folder / META} is damaged: its bytes differ from those written: "
                f"{AGAIN.format(folder)}"
            )
        expected = meta["rows"] * meta["n"] * 2
        size = (folder / DATA).stat().st_size if (folder / DATA).exists() else 0
        if size != expected:
            raise StoreError(
                f"{folder / DATA} has {size:,} bytes, expected {expected:,} ({meta['rows']:,} "
                f"rows of {meta['n']} "
                f"bf16 numbers): {AGAIN.format(folder)}"
            )
        return cls(folder, meta)

    def batch(self, step: int, batch: int, seed: int) -> Float32[Tensor, "batch n"]:
        """The scaled rows of one training step: a pure function of (step, batch, seed).

        Each epoch starts at another random row and visits contiguous batches in another random
        order; the rows themselves are shuffled once, by the harvest. Raises ValueError if a batch
        is larger than the store, and StoreError where the bytes on disk are not those that were
        written.
        """
        if not 0 < batch <= self.rows:
            raise ValueError(
                f"a batch of {batch:,} rows from a store of {self.rows:,}: harvest more tokens"
            )
        epoch, place = divmod(step, self.rows // batch)
        offset, order = _epoch(seed, epoch, self.rows, batch)
        start = (offset + int(order[place]) * batch) % self.rows
        rows = self._rows(start, min(start + batch, self.rows))
        if (wrapped := start + batch - self.rows) > 0:
            rows = torch.cat([rows, self._rows(0, wrapped)])
        return rows.float() * self.scale

    def _rows(self, start: int, stop: int) -> Tensor:
        self.checked.check(start * self.n * 2, stop * self.n * 2)
        return _read(self.folder, self.n, start, stop)


def _read(folder: Path, n: int, start: int, stop: int) -> BFloat16[Tensor, "rows n"]:
    """Rows of a store's data file. Read, not mapped: pages of a map would count as memory of the
    process, and a run touches all of them. Raises StoreError where the file ends before."""
    count = (stop - start) * n
    rows = np.fromfile(folder / DATA, np.uint16, count, offset=2 * start * n)
    if len(rows) < count:
        raise StoreError(
            f"{folder / DATA} was cut short: it ends before row {stop:,}: {AGAIN.format(folder)}"
        )
    return torch.from_numpy(rows).view(torch.bfloat16).view(-1, n)


@lru_cache(maxsize=16)
def _epoch(seed: int, epoch: int, rows: int, batch: int) -> tuple[int, np.ndarray]:
    random = np.random.default_rng([seed, epoch])
    return int(random.integers(rows)), random.permutation(rows // batch)


def harvest(
    lm: LM,
    blocks,
    sites: Sequence[tuple[str, int]],
    tokens: int,
    folder: str | Path,
    *,
    name_hash: str,
    seed: int = 0,
    batch: int = 16,
    keep_pos0: bool = False,
    ranks: Alone = ALONE,
) -> dict[tuple[str, int], Store]:
    """Stores of several sites' activations from one pass over the text; a finished one is opened,
    not made again.

    Whole blocks are read until `tokens` rows are full. Position 0 of each block is left out unless
    `keep_pos0`. Every row goes straight to its place in one random permutation of all rows. The
    same call resumes an interrupted harvest and gives the same bytes.

    Args:
        blocks: a `datasets.Dataset` with a column `tokens` of equal-length blocks.
        tokens: rows to store, at least; the store ends with a whole block.
        folder: the parent; each store is a subfolder of it named after its site, layer, size and
            source.
        name_hash: hash of the token blocks; with the model, site and sizes it names the store.
        batch: blocks in one forward pass.
        ranks: the processes that share the blocks out: each writes its rows, the first one
            finishes.
    Raises:
        ValueError: too few blocks, or an activation that is NaN or infinite (names block, site and
            layer).
        OSError: too little disk space.
        StoreError: a finished store on disk is damaged.
    """
    context = len(blocks[0]["tokens"])
    per_block = context - (not keep_pos0)
    count = -(-tokens // per_block)
    if count > len(blocks):
        raise ValueError(
            f"{tokens:,} tokens need {count:,} blocks of {per_block} rows, the text has "
            f"{len(blocks):,}: "
            "ask for fewer tokens or give more text"
        )
    source = {
        "lm": lm.name,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "context": context,
        "blocks": name_hash,
        "seed": seed,
        "keep_pos0": keep_pos0,
        "rows": count * per_block,
    }
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
    folders = {
        key: Path(folder) / f"{key[0]}-{key[1]}-{count * per_block}-{digest}" for key in sites
    }
    new = ranks.agree([not (path / META).exists() for path in folders.values()])
    if todo := {
        key: path for (key, path), is_new in zip(folders.items(), new, strict=True) if is_new
    }:
        if ranks.first:
            for key, path in todo.items():
                _allocate(path, source["rows"], lm.d(key[0]))
        ranks.barrier("space for activations")
        start, stop = (min(i * batch, count) for i in ranks.share(-(-count // batch)))
        _collect(lm, blocks, todo, count, source, batch, (start, stop), ranks.label)
        ranks.barrier("the harvest")
        if ranks.first:
            for (site, layer), path in todo.items():
                _finish(path, lm.d(site), {**source, "site": site, "layer": layer})
        ranks.barrier("the store")
    return {key: Store.open(path) for key, path in folders.items()}


def _collect(
    lm: LM,
    blocks,
    folders: dict,
    count: int,
    source: dict,
    batch: int,
    span: tuple[int, int],
    part: str,
) -> None:
    """Run a span of the text's blocks through the model and write every row at its place."""
    first, rows = (0 if source["keep_pos0"] else 1), source["rows"]
    per_block = rows // count
    place = np.random.default_rng(source["seed"]).permutation(
        np.arange(rows, dtype=np.uint32)
    )  # 4 bytes a row
    tables = {
        key: np.memmap(path / DATA, np.uint16, "r+", shape=(rows, lm.d(key[0])))
        for key, path in folders.items()
    }
    name, source = PROGRESS.format(part), {**source, "span": list(span)}
    done = min(_done(path / name, source, span[0]) for path in folders.values())
    total, ahead = (span[1] - span[0]) * per_block, (done - span[0]) * per_block
    bar = tqdm(
        total=total,
        initial=ahead,
        desc=f"harvest {lm.name}{part}",
        unit="tok",
        unit_scale=True,
        disable=None,
    )
    flushed = time.monotonic()
    for start in range(done, span[1], batch):
        stop = min(start + batch, span[1])
        read = torch.as_tensor(np.asarray(blocks[start:stop]["tokens"]))
        here = place[start * per_block : stop * per_block]
        for key, x in lm.activations(read, list(folders)).items():
            x = x[:, first:].to(torch.bfloat16)
            if not x.isfinite().all():
                block = start + int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
                raise ValueError(
                    f"{lm.name}: NaN or infinite activation at {key[0]} of layer {key[1]}, block "
                    f"{block} of the text; "
                    "load the model in float32, or look at that block"
                )
            tables[key][here] = x.flatten(0, 1).cpu().view(torch.uint16).numpy()
            if hasattr(
                mmap, "MADV_DONTNEED"
            ):  # pages written to, all of the file's in the end, are the system's
                tables[key]._mmap.madvise(mmap.MADV_DONTNEED)
        bar.update(len(here))
        if stop == span[1] or time.monotonic() - flushed > FLUSH_SECONDS:
            for key, path in folders.items():
                tables[key].flush()
                files.write_json(path / name, {"source": source, "blocks": stop})
            flushed = time.monotonic()
    bar.close()


def _allocate(folder: Path, rows: int, n: int) -> None:
    """The data file, at its full length. What an interrupted harvest wrote stays."""
    folder.mkdir(parents=True, exist_ok=True)
    path, size = folder / DATA, rows * n * 2
    have = path.stat().st_size if path.exists() else 0
    if (free := shutil.disk_usage(folder).free) < size - have:
        raise OSError(
            f"{path} needs {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free: make room"
        )
    if have != size:
        _forget(folder)
        files.reserve(path, size)


def _done(path: Path, source: dict, first: int) -> int:
    """The block that an interrupted harvest of the same source, and the same share of it, goes on
    from.
    """
    progress = json.loads(path.read_text()) if path.exists() else {}
    return progress["blocks"] if progress.get("source") == source else first


def _forget(folder: Path) -> None:
    for path in folder.glob(PROGRESS.format("*")):
        path.unlink()


def _finish(folder: Path, n: int, source: dict) -> None:
    """Measure the whole store and write meta.json, which makes it complete."""
    rows = source["rows"]
    parts = (_read(folder, n, start, min(start + 8192, rows)) for start in range(0, rows, 8192))
    meta = {"n": n, "rows": rows, **store.measure(parts, source["site"], source["layer"])}
    meta |= {"complete": True, "source": source, "checksums": files.checksums(folder / DATA)}
    files.write_json(folder / META, {**meta, "digest": files.digest(meta)})
    _forget(folder)


def measure(parts: Iterable[Tensor], site: str, layer: int) -> dict:
    """`scale`, `mean` (a list) and `top_share` of rows that come in parts, as `Store` has them;
    warns of outliers.
    """
    total, norms = 0, []
    for part in parts:
        part = part.float()
        norms.append(part.square().sum(-1).cpu())
        total = total + part.sum(0, dtype=torch.float64).cpu()
    norms = torch.cat(norms)
    rows, whole = len(norms), norms.sum(dtype=torch.float64)
    share = float(norms.topk(max(1, rows // 1000)).values.sum(dtype=torch.float64) / whole)
    scale = float((whole / rows).rsqrt())
    if share > 0.05:
        warnings.warn(
            f"{site} of layer {layer}: 0.1 % of the tokens hold {share:.0%} of the squared norm; "
            "scale, lambda, FVU and gamma will be about them. Leave out position 0, or look at "
            "these tokens",
            stacklevel=4,
        )
    return {"scale": scale, "mean": (total / rows * scale).tolist(), "top_share": share}
