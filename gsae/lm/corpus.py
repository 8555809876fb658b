"""Text to fixed-length token blocks: the packaged text, split by source file, or any dataset of the
hub.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import (
    Dataset,
    IterableDatasetDict,
    disable_progress_bars,
    load_dataset,
    load_from_disk,
)
from huggingface_hub import HfApi, constants, snapshot_download
from tqdm import tqdm

from gsae.lm.packaged_text import SPLITS, Document, clean, read_wheel
from gsae.system import files, hub_access, wheels

# between documents: a special token there would draw attention sinks to mid-block positions
SEPARATOR = "\n\n"
# saving and flattening take a second each; the long steps have bars of their own
disable_progress_bars()
VERSION = 1  # raised when a change here changes the text
DOCUMENTS = 1000  # read and tokenized together
BLOCKS = "blocks.arrow"  # hub text in the cache, mapped into memory


class CorpusError(RuntimeError):
    """Text that is not the text the evidence was made with, or a data set that cannot be read."""


# ---- The packaged text


def documents(split: str) -> Dataset:
    """The packaged text of one split: columns `text, source, kind ("prose" | "code"), held_out` (a
    whole wheel).

    Raises:
        ValueError: on an unknown split.
        AssetError: when a wheel cannot be fetched.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    folder = files.cache_dir() / "corpus" / f"text-{VERSION}"
    return load_from_disk(wheels.once(folder, _read_wheels) / split)


def _read_wheels(folder: Path) -> None:
    """Write the packaged text, a data set for each split."""
    names = [name for name, wheel in wheels.wheels().items() if wheel["kind"] == "text"]
    wheels.fetch_all(["text"])
    with ProcessPoolExecutor(2) as pool:
        read = pool.map(read_wheel, names)
        parts = list(tqdm(read, total=len(names), desc="read text", disable=None))
    for name, rows in clean(list(chain.from_iterable(parts))).items():
        columns = zip(*rows, strict=True)
        table = {
            field: list(values) for field, values in zip(Document._fields, columns, strict=True)
        }
        Dataset.from_dict(table).save_to_disk(folder / name)


def blocks(tokenizer, split: str, context: int = 128, *, name: str) -> Dataset:
    """Blocks of `context` tokens of the packaged text, column `tokens`, in a fixed random order;
    made once.

    `name` is the language model's: it names the folder in the cache and the expected hash.

    Raises:
        CorpusError: when the token ids are not those that the committed evidence was made with.
    """

    def make(folder: Path) -> None:
        tokens = _tokenize(tokenizer, documents(split), f"tokenize {name} {split}")
        data = as_blocks(tokens, context)
        order = np.random.default_rng(1).permutation(len(data))
        data.select(order).flatten_indices().save_to_disk(folder)

    folder = files.cache_dir() / "corpus" / f"{name}-{split}-{context}-{VERSION}"
    data = load_from_disk(wheels.once(folder, make))
    expected = _hashes(name).get(f"{split}-{context}")
    if expected:
        _check_hash(data, expected, name, split)
    return data.with_format("numpy")


def _tokenize(tokenizer, texts: Dataset, label: str) -> np.ndarray:
    """The token ids of all documents, in a fixed random order, one after the other."""
    order = np.random.default_rng(0).permutation(len(texts))
    starts = range(0, len(order), DOCUMENTS)
    ids = []
    for start in tqdm(starts, desc=label, unit="k documents", disable=None):
        batch = texts[order[start : start + DOCUMENTS]]["text"]
        ids += _token_ids(tokenizer.backend_tokenizer, batch)
    return np.concatenate(ids)


def _token_ids(words, texts: Iterable[str]) -> list[np.ndarray]:
    """The token ids of each document, a separator after it."""
    separated = [text + SEPARATOR for text in texts]
    encoded = words.encode_batch_fast(separated, add_special_tokens=False)
    return [np.array(document.ids, dtype=np.int32) for document in encoded]


def as_blocks(tokens: np.ndarray, context: int) -> Dataset:
    """Whole blocks of consecutive tokens; what is left at the end is dropped."""
    whole = tokens[: len(tokens) // context * context].astype(np.int32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(whole), context)
    return Dataset(pa.table({"tokens": column})).with_format("numpy")


def token_hash(data: Dataset) -> str:
    """First 16 hex digits of the sha256 of a block data set's shape and token ids."""
    digest = hashlib.sha256()
    for part in data.with_format("numpy").iter(10_000):
        ids = np.ascontiguousarray(part["tokens"], dtype="<i4")
        digest.update(str(ids.shape).encode() + ids.tobytes())
    return digest.hexdigest()[:16]


def _hashes(name: str) -> dict[str, str]:
    """Split and context -> hash of the tokens that the evidence of a language model was made
    with.
    """
    manifest = json.loads(wheels.data_path("manifest.json").read_text())
    return manifest["corpora"].get(name, {})


def _check_hash(data: Dataset, expected: str, name: str, split: str) -> None:
    actual = token_hash(data)
    if actual != expected:
        raise CorpusError(
            f"the {split} text for {name} has hash {actual}, the evidence was made with "
            f"{expected}. Delete {files.cache_dir() / 'corpus'} and run `gsae fetch` again; "
            "check the versions of tokenizers and transformers against constraints.txt"
        )


# ---- Data sets of the hub


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
    if name is None:
        parts = list(stream(tokenizer, dataset, context, n_blocks, split, text))
        return Dataset(pa.concat_tables(parts)).with_format("numpy")

    def make(folder: Path) -> None:
        # piece by piece: the paper's texts have more than a billion tokens
        parts = stream(tokenizer, dataset, context, n_blocks, split, text)
        first = next(parts)
        with pa.ipc.new_stream(str(folder / BLOCKS), first.schema) as file:
            for part in chain([first], parts):
                file.write_table(part)

    content = repr((dataset, context, n_blocks, split, text, name, VERSION))
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    folder = wheels.once(files.cache_dir() / "corpus" / f"hub-{key}", make)
    return Dataset.from_file(str(folder / BLOCKS)).with_format("numpy")


def stream(
    tokenizer, dataset: str, context: int, n_blocks: int, split: str | tuple[str, ...], text: str
) -> Iterator[pa.Table]:
    """Blocks of a hub data set as it comes, some thousands at a time: see `hub_blocks`."""
    splits = _open(dataset)
    rows = iter(splits[_split(splits, split, dataset)])
    words = tokenizer.backend_tokenizer
    words.no_padding()
    words.no_truncation()
    left = []  # token ids: less than a block
    done = 0  # blocks
    with tqdm(total=n_blocks, desc=f"stream {dataset}", unit="block", disable=None) as bar:
        while done < n_blocks:
            batch = _next_documents(rows, dataset)
            problem = _problem(batch, text)
            if problem:
                raise CorpusError(
                    f"{dataset}: {done:,} of {n_blocks:,} blocks were read and then {problem}"
                )
            tokens = np.concatenate([*left, *_token_ids(words, [row[text] for row in batch])])
            whole = as_blocks(tokens, context)
            left = [tokens[len(whole) * context :]]
            count = min(len(whole), n_blocks - done)
            if count:
                yield whole.data.table.slice(0, count)
                done += count
                bar.update(count)


def _repository(dataset: str) -> tuple[str, str, str | None]:
    """The parts of "owner/name:config@revision", or a folder; a configuration not named is ""."""
    name, revision = hub_access.split(dataset)
    if Path(name).exists():
        return name, "", revision
    name, _, config = name.partition(":")
    return name, config, revision


def _open(dataset: str) -> IterableDatasetDict:
    """The splits of a data set, nothing of them read yet. Raises CorpusError."""
    repository, config, revision = _repository(dataset)
    source = repository
    is_remote = not Path(repository).exists()
    try:
        if is_remote and constants.HF_HUB_OFFLINE:
            # `datasets` itself would not look into the cache
            source = snapshot_download(repository, repo_type="dataset", revision=revision)
            revision = None  # the folder holds this one alone
        elif is_remote:
            # `datasets` drops the reason of a refusal: ask for it first
            HfApi().auth_check(repository, repo_type="dataset")
        return load_dataset(source, config or None, revision=revision, streaming=True)
    except Exception as error:
        reason = hub_access.why(error, repository, "dataset", revision)
        raise CorpusError(f"cannot read the data set {dataset!r}: {reason}") from error


def _split(splits: IterableDatasetDict, wanted: str | tuple[str, ...], dataset: str) -> str:
    """The first of the wanted splits that the data set has. Raises CorpusError if it has none."""
    names = (wanted,) if isinstance(wanted, str) else wanted
    for name in names:
        if name in splits:
            return name
    message = f"{dataset} has no split {' or '.join(names)}, only {', '.join(splits)}"
    if not isinstance(wanted, str):  # several are asked for where the text is to evaluate on
        message += (
            ". Evaluation needs text that is not trained on: take a data set that has such a "
            "split, or divide this one into two files in a folder, train.jsonl and "
            "validation.jsonl, and give the folder as the text"
        )
    raise CorpusError(message)


def _next_documents(rows: Iterator[dict], dataset: str) -> list[dict]:
    """The next rows of a data set, none at its end. Raises CorpusError where the hub gives up."""
    try:
        return list(islice(rows, DOCUMENTS))
    except Exception as error:
        reason = hub_access.why(error, _repository(dataset)[0], "dataset")
        raise CorpusError(f"cannot go on reading the data set {dataset!r}: {reason}") from error


def _problem(batch: list[dict], text: str) -> str:
    """Why no text can be taken from these rows; "" where it can."""
    if not batch:
        return "it ended"
    if text not in batch[0]:
        return f"it has no column {text!r}, only {', '.join(batch[0])}"
    return ""
