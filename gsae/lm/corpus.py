"""Text to fixed-length token blocks: the packaged text, split by source file, or any dataset of the
hub.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, disable_progress_bars, load_dataset, load_from_disk
from huggingface_hub import HfApi, constants, snapshot_download
from tqdm import tqdm

from gsae.lm.packaged_text import SPLITS, clean, read_wheel
from gsae.system import files, hub_access, wheels

# between documents: a special token there would draw attention sinks to mid-block positions
SEPARATOR = "\n\n"
# saving and flattening take a second each; the long steps have bars of their own
disable_progress_bars()
VERSION = 1  # raised when a change here changes the text
DOCUMENTS = 1000  # of hub text, tokenized together
BLOCKS = "blocks.arrow"  # hub text in the cache, mapped into memory


class CorpusError(RuntimeError):
    """Text that is not the text the evidence was made with, or a data set that cannot be read."""


def documents(split: str) -> Dataset:
    """The packaged text of one split: columns `text, source, kind ("prose" | "code"), held_out` (a
    whole wheel).

    Raises:
        ValueError: on an unknown split.
        AssetError: when a wheel cannot be fetched.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")

    def make(folder: Path) -> None:
        names = [name for name, wheel in wheels.wheels().items() if wheel["kind"] == "text"]
        wheels.fetch_all(["text"])
        with ProcessPoolExecutor(2) as pool:
            parts = list(
                tqdm(pool.map(read_wheel, names), total=len(names), desc="read text", disable=None)
            )
        for name, rows in clean([d for part in parts for d in part]).items():
            columns = dict(
                zip(
                    ("text", "source", "kind", "held_out"),
                    map(list, zip(*rows, strict=True)),
                    strict=True,
                )
            )
            Dataset.from_dict(columns).save_to_disk(folder / name)

    return load_from_disk(
        wheels.once(files.cache_dir() / "corpus" / f"text-{VERSION}", make) / split
    )


def as_blocks(tokens: np.ndarray, context: int) -> Dataset:
    whole = tokens[: len(tokens) // context * context].astype(np.int32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(whole), context)
    return Dataset(pa.table({"tokens": column})).with_format("numpy")


def blocks(tokenizer, split: str, context: int = 128, *, name: str) -> Dataset:
    """Blocks of `context` tokens of the packaged text, column `tokens`, in a fixed random order;
    made once.

    `name` is the language model's: it names the folder in the cache and the expected hash.

    Raises:
        CorpusError: when the token ids are not those that the committed evidence was made with.
    """

    def make(folder: Path) -> None:
        texts = documents(split)
        order, parts = np.random.default_rng(0).permutation(len(texts)), []
        encode = tokenizer.backend_tokenizer.encode_batch_fast
        for start in tqdm(
            range(0, len(order), 1000),
            desc=f"tokenize {name} {split}",
            unit="k documents",
            disable=None,
        ):
            batch = [text + SEPARATOR for text in texts[order[start : start + 1000]]["text"]]
            parts += [
                np.array(e.ids, dtype=np.int32) for e in encode(batch, add_special_tokens=False)
            ]
        data = as_blocks(np.concatenate(parts), context)
        shuffled = data.select(np.random.default_rng(1).permutation(len(data))).flatten_indices()
        shuffled.save_to_disk(folder)

    data = load_from_disk(
        wheels.once(files.cache_dir() / "corpus" / f"{name}-{split}-{context}-{VERSION}", make)
    )
    expected = (
        json.loads(wheels.data_path("manifest.json").read_text())["corpora"]
        .get(name, {})
        .get(f"{split}-{context}")
    )
    if expected and (found := token_hash(data)) != expected:
        raise CorpusError(
            f"the {split} text for {name} has hash {found}, the evidence was made with {expected}. "
            f"Delete {files.cache_dir() / 'corpus'} and run `gsae fetch` again; "
            "check the versions of tokenizers and transformers against constraints.txt"
        )
    return data.with_format("numpy")


def token_hash(data: Dataset) -> str:
    """First 16 hex digits of the sha256 of a block data set's shape and token ids."""
    digest = hashlib.sha256()
    for part in data.with_format("numpy").iter(10_000):
        ids = np.ascontiguousarray(part["tokens"], dtype="<i4")
        digest.update(str(ids.shape).encode() + ids.tobytes())
    return digest.hexdigest()[:16]


def hub_blocks(
    tokenizer,
    dataset: str,
    context: int,
    n_blocks: int,
    *,
    split: str | tuple[str, ...] = "train",
    text: str = "text",
    name: str | None = None,
) -> Dataset:
    """`n_blocks` blocks of a hub data set (or a local folder), streamed: only what is needed is
    downloaded.

    Args:
        dataset: "owner/name", "owner/name:config", either with "@revision", or a folder.
        split: a split; of several, the first that the data set has.
        text: the column of text.
        name: the language model's; with it the blocks are kept in the cache, under that name.

    Raises:
        CorpusError: when the data set cannot be read, lacks the split or the text column, or ends
            too early.
    """

    def make(
        folder: Path,
    ) -> None:  # piece by piece: the paper's texts have more than a billion tokens
        parts = stream(tokenizer, dataset, context, n_blocks, split, text)
        first = next(parts)
        with pa.ipc.new_stream(str(folder / BLOCKS), first.schema) as file:
            for part in chain([first], parts):
                file.write_table(part)

    if name is None:
        parts = list(stream(tokenizer, dataset, context, n_blocks, split, text))
        return Dataset(pa.concat_tables(parts)).with_format("numpy")
    key = hashlib.sha256(
        repr((dataset, context, n_blocks, split, text, name, VERSION)).encode()
    ).hexdigest()[:12]
    made = wheels.once(files.cache_dir() / "corpus" / f"hub-{key}", make)
    return Dataset.from_file(str(made / BLOCKS)).with_format("numpy")


def stream(
    tokenizer, dataset: str, context: int, n_blocks: int, split: str | tuple[str, ...], text: str
) -> Iterator[pa.Table]:
    """Blocks of a hub data set as it comes, some thousands at a time: see `hub_blocks`."""
    where, revision = hub_access.split(dataset)
    where, _, config = (where, "", "") if Path(where).exists() else where.partition(":")
    try:
        source = where
        if (
            constants.HF_HUB_OFFLINE and not Path(where).exists()
        ):  # `datasets` itself would not look into the cache
            source, revision = (
                snapshot_download(where, repo_type="dataset", revision=revision),
                None,
            )
        elif not Path(where).exists():  # `datasets` drops the reason of a refusal: ask for it first
            HfApi().auth_check(where, repo_type="dataset")
        splits = load_dataset(source, config or None, revision=revision, streaming=True)
    except Exception as error:
        reason = hub_access.why(error, where, "dataset", revision)
        raise CorpusError(f"cannot read the data set {dataset!r}: {reason}") from error
    wanted = (split,) if isinstance(split, str) else split
    if not (found := next((s for s in wanted if s in splits), None)):
        held_out = (
            ". Evaluation needs text that is not trained on: take a data set that has such a "
            "split, or divide this one "
            "into two files in a folder, train.jsonl and validation.jsonl, and give the folder as "
            "the text"
        )
        have = f"{dataset} has no split {' or '.join(wanted)}, only {', '.join(splits)}"
        raise CorpusError(have + ("" if isinstance(split, str) else held_out))
    rows, kept, have, done = iter(splits[found]), [], 0, 0
    words = tokenizer.backend_tokenizer
    words.no_padding()
    words.no_truncation()
    with tqdm(total=n_blocks, desc=f"stream {dataset}", unit="block", disable=None) as bar:
        while done < n_blocks:
            try:
                batch = list(islice(rows, DOCUMENTS))
            except Exception as error:
                reason = hub_access.why(error, where, "dataset")
                raise CorpusError(
                    f"cannot go on reading the data set {dataset!r}: {reason}"
                ) from error
            if not batch or text not in batch[0]:
                problem = (
                    "it ended"
                    if not batch
                    else f"it has no column {text!r}, only {', '.join(batch[0])}"
                )
                raise CorpusError(
                    f"{dataset}: {done:,} of {n_blocks:,} blocks were read and then {problem}"
                )
            read = words.encode_batch_fast(
                [row[text] + SEPARATOR for row in batch], add_special_tokens=False
            )
            kept += [np.array(e.ids, dtype=np.int32) for e in read]
            joined = np.concatenate(kept)
            whole = as_blocks(joined, context)
            kept = [joined[len(whole) * context :]]
            if count := min(len(whole), n_blocks - done):
                yield whole.data.table.slice(0, count)
                done += count
                bar.update(count)
