"""Activations of a text, collected once into stores: one pass over the text for several sites,
every row straight to its place in a random order, resumed where it was interrupted.
"""

import hashlib
import json
import mmap
import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import BFloat16
from torch import Tensor
from tqdm.auto import tqdm

from gsae.lm.models import LM
from gsae.lm.rows import check_finite, measure
from gsae.lm.store import DATA, META, Store, read_rows
from gsae.system import files
from gsae.system.distributed import ALONE, Alone

PROGRESS = "progress{}.json"  # one for each process that takes part, named by its label
FLUSH_SECONDS = 30  # an interrupted harvest loses at most this much work
MEASURED_AT_ONCE = 8192  # rows

Key = tuple[str, int]  # site, layer


def harvest(
    lm: LM,
    blocks,
    sites: Sequence[Key],
    tokens: int,
    folder: str | Path,
    *,
    name_hash: str,
    seed: int = 0,
    batch: int = 16,
    keep_pos0: bool = False,
    ranks: Alone = ALONE,
) -> dict[Key, Store]:
    """Stores of several sites' activations from one pass over the text; a finished one is opened,
    not made again.

    Whole blocks are read until `tokens` rows are full. Position 0 of each block is left out unless
    `keep_pos0`. The same call resumes an interrupted harvest and gives the same bytes.

    Args:
        blocks: a `datasets.Dataset` with a column `tokens` of equal-length blocks.
        tokens: rows to store, at least; the store ends with a whole block.
        folder: the parent; each store is a subfolder named after its site, layer, size and source.
        name_hash: hash of the token blocks; with the model, site and sizes it names the store.
        batch: blocks in one forward pass.
        ranks: the processes that share the blocks; each writes its rows, the first one finishes.

    Raises:
        ValueError: too few blocks, or an activation that is NaN or infinite (names block, site and
            layer).
        OSError: too little disk space.
        StoreError: a finished store on disk is damaged.
    """
    source = _describe_source(
        lm, blocks, tokens, name_hash=name_hash, seed=seed, keep_pos0=keep_pos0
    )
    folders = {key: Path(folder) / _name(key, source) for key in sites}
    absent = _absent(folders, ranks)
    if absent:
        _fill(lm, blocks, absent, source, batch, ranks)
        if ranks.first:
            for (site, layer), path in absent.items():
                _finish(path, lm.d(site), {**source, "site": site, "layer": layer})
        ranks.barrier("the store")
    return {key: Store.open(path) for key, path in folders.items()}


def _describe_source(
    lm: LM, blocks, tokens: int, *, name_hash: str, seed: int, keep_pos0: bool
) -> dict:
    """All that a store's bytes depend on, but for its site. Raises ValueError on too few blocks."""
    context = len(blocks[0]["tokens"])
    per_block = context - _first_position(keep_pos0)
    count = -(-tokens // per_block)
    if count > len(blocks):
        raise ValueError(
            f"{tokens:,} tokens need {count:,} blocks of {per_block} rows, the text has "
            f"{len(blocks):,}: ask for fewer tokens or give more text"
        )
    return {
        "lm": lm.name,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "context": context,
        "blocks": name_hash,
        "seed": seed,
        "keep_pos0": keep_pos0,
        "rows": count * per_block,
    }


def _first_position(keep_pos0: bool) -> int:
    """The first position of a block that is stored."""
    return 0 if keep_pos0 else 1


def _rows_per_block(source: dict) -> int:
    return source["context"] - _first_position(source["keep_pos0"])


def _name(key: Key, source: dict) -> str:
    """A store's folder."""
    site, layer = key
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
    return f"{site}-{layer}-{source['rows']}-{digest}"


def _absent(folders: dict[Key, Path], ranks: Alone) -> dict[Key, Path]:
    """The stores that are not finished, as the first rank sees it."""
    absent = ranks.agree([not (path / META).exists() for path in folders.values()])
    pairs = zip(folders.items(), absent, strict=True)
    return {key: path for (key, path), is_absent in pairs if is_absent}


def _fill(lm: LM, blocks, folders: dict[Key, Path], source: dict, batch: int, ranks: Alone) -> None:
    """Write every row of the stores: the ranks share the blocks out, in whole forward passes."""
    if ranks.first:
        for (site, _), path in folders.items():
            _allocate(path, source["rows"], lm.d(site))
    ranks.barrier("space for activations")
    count = source["rows"] // _rows_per_block(source)
    start, stop = (min(i * batch, count) for i in ranks.share(-(-count // batch)))
    _collect(lm, blocks, folders, source, batch, (start, stop), ranks.label)
    ranks.barrier("the harvest")


def _collect(
    lm: LM,
    blocks,
    folders: dict[Key, Path],
    source: dict,
    batch: int,
    span: tuple[int, int],
    label: str,
) -> None:
    """Run a span of the text's blocks through the model and write every row at its place."""
    first, per_block = _first_position(source["keep_pos0"]), _rows_per_block(source)
    places = _places(source["rows"], source["seed"])
    tables = {
        (site, layer): np.memmap(path / DATA, np.uint16, "r+", shape=(source["rows"], lm.d(site)))
        for (site, layer), path in folders.items()
    }
    progress = _Progress(folders.values(), source, span, label)
    begin, end = progress.done(), span[1]
    bar = tqdm(
        total=(end - span[0]) * per_block,
        initial=(begin - span[0]) * per_block,
        desc=f"harvest {lm.name}{label}",
        unit="tok",
        unit_scale=True,
        disable=None,
    )
    for start in range(begin, end, batch):
        stop = min(start + batch, end)
        tokens = torch.as_tensor(np.asarray(blocks[start:stop]["tokens"]))
        of_these = places[start * per_block : stop * per_block]
        for (site, layer), x in lm.activations(tokens, list(folders)).items():
            x = x[:, first:].to(torch.bfloat16)
            check_finite(x, start, lm=lm.name, site=site, layer=layer)
            _write(tables[site, layer], of_these, x.flatten(0, 1))
        bar.update(len(of_these))
        if stop == end or progress.is_due():
            for table in tables.values():
                table.flush()
            progress.save(stop)
    bar.close()


def _places(rows: int, seed: int) -> np.ndarray:
    """The place in the store of each row of the text: a random permutation, 4 bytes a row."""
    return np.random.default_rng(seed).permutation(np.arange(rows, dtype=np.uint32))


def _write(table: np.memmap, places: np.ndarray, x: BFloat16[Tensor, "rows n"]) -> None:
    table[places] = x.cpu().view(torch.uint16).numpy()
    if hasattr(mmap, "MADV_DONTNEED"):
        # pages written to, all of the file's in the end, are the system's
        table._mmap.madvise(mmap.MADV_DONTNEED)


class _Progress:
    """How far one rank is in its span of the text, kept beside each store that it writes to."""

    def __init__(self, folders: Collection[Path], source: dict, span: tuple[int, int], label: str):
        self.paths = [folder / PROGRESS.format(label) for folder in folders]
        self.source = {**source, "span": list(span)}
        self.first = span[0]
        self.saved = time.monotonic()

    def done(self) -> int:
        """The block from which an interrupted harvest of the same source, and the same share of it,
        goes on: the first that one of the stores lacks.
        """
        return min(self._done(path) for path in self.paths)

    def _done(self, path: Path) -> int:
        if not path.exists():
            return self.first
        progress = json.loads(path.read_text())
        return progress["blocks"] if progress.get("source") == self.source else self.first

    def is_due(self) -> bool:
        return time.monotonic() - self.saved > FLUSH_SECONDS

    def save(self, blocks: int) -> None:
        """Note that all rows of the blocks before this one are on disk."""
        for path in self.paths:
            files.write_json(path, {"source": self.source, "blocks": blocks})
        self.saved = time.monotonic()


def _allocate(folder: Path, rows: int, n: int) -> None:
    """The data file, at its full length. What an interrupted harvest wrote stays."""
    folder.mkdir(parents=True, exist_ok=True)
    path, size = folder / DATA, rows * n * 2
    present = path.stat().st_size if path.exists() else 0
    free = shutil.disk_usage(folder).free
    if free < size - present:
        raise OSError(
            f"{path} needs {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free: make room"
        )
    if present != size:
        _forget_progress(folder)
        files.reserve(path, size)


def _forget_progress(folder: Path) -> None:
    for path in folder.glob(PROGRESS.format("*")):
        path.unlink()


def _finish(folder: Path, n: int, source: dict) -> None:
    """Measure the whole store and write meta.json, which makes it complete."""
    rows = source["rows"]
    measured = measure(_parts(folder, n, rows), source["site"], source["layer"])
    meta = {"n": n, "rows": rows, **measured}
    meta |= {"complete": True, "source": source, "checksums": files.checksums(folder / DATA)}
    files.write_json(folder / META, {**meta, "digest": files.digest(meta)})
    _forget_progress(folder)


def _parts(folder: Path, n: int, rows: int) -> Iterable[BFloat16[Tensor, "_ n"]]:
    for start in range(0, rows, MEASURED_AT_ONCE):
        yield read_rows(folder, n, start, min(start + MEASURED_AT_ONCE, rows))
