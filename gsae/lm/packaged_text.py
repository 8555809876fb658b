"""The packaged text: prose and code read out of pinned wheels, split by source file, repeats
removed.
"""

import ast
import gzip
import hashlib
import html
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gsae.system import wheels

SPLITS = ("train", "lm_heldout", "eval")
CODE_BYTES = 3_500_000  # most source code taken from one wheel, so that no package dominates
BOTOCORE = "botocore/"  # the wheel of service descriptions: prose of one kind, and very much of it


class Document(NamedTuple):
    """A piece of text; its fields are the columns of the data set that is made of it."""

    text: str
    source: str  # the wheel's name and the file's path in it
    kind: str  # "prose" or "code"
    held_out: bool  # whether the whole wheel is


# ---- Reading


def split_of(key: str) -> str:
    """The split of a source file, from a hash of its wheel and path: 3 % evaluation, 1.5 % held out
    for the LM.
    """
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    if share < 0.03:
        return "eval"
    return "lm_heldout" if share < 0.045 else "train"


def paragraphs(text: str) -> Iterator[str]:
    """Running prose in a docstring: paragraphs of 80 characters or more, four fifths of them
    letters and spaces.
    """
    for part in re.split(r"\n\s*\n", textwrap.dedent(text)):
        part = " ".join(part.split())
        letters = sum(character.isalpha() or character == " " for character in part)
        if len(part) >= 80 and letters >= 0.8 * len(part):
            yield part


def read_source(path: Path) -> tuple[list[str], str]:
    """A Python file as its docstrings' prose paragraphs and its code without them; empty where it
    does not parse.
    """
    try:
        source = path.read_text("utf-8")
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return [], ""
    lines, prose = source.splitlines(), []
    for docstring in _docstrings(tree):
        prose += paragraphs(docstring.value.value)
        for i in range(docstring.lineno - 1, docstring.end_lineno):
            lines[i] = None
    return prose, "\n".join(line for line in lines if line is not None).strip()


def _docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """The docstrings of a module, its classes and its functions: their statements in the tree."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if not isinstance(node, documented) or not node.body:
            continue
        first = node.body[0]
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            continue
        if isinstance(first.value.value, str):
            yield first


def read_service(path: Path) -> list[str]:
    """The prose of one botocore service description: its documentation fields without their HTML
    tags.
    """
    if path.suffix == ".gz":
        data = json.loads(gzip.decompress(path.read_bytes()))
    else:
        data = json.loads(path.read_text("utf-8"))
    prose, todo = [], [data]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if isinstance(node.get("documentation"), str):
                prose += paragraphs(_without_tags(node["documentation"]))
            todo += node.values()
        elif isinstance(node, list):
            todo += node
    return prose


def _without_tags(text: str) -> str:
    with_breaks = text.replace("</p>", "\n\n")
    return html.unescape(re.sub(r"<[^>]+>", " ", with_breaks))


def read_wheel(name: str) -> list[Document]:
    """Documents of one wheel; code up to `CODE_BYTES`."""
    root = wheels.fetch(name)
    held_out = bool(wheels.wheels()[name].get("held_out"))
    documents, code_bytes = [], 0
    for path in _in_hash_order(root):
        source = f"{name}/{path.relative_to(root).as_posix()}"
        if path.suffix == ".py":
            prose, code = read_source(path)
        else:
            prose, code = read_service(path), ""
        if prose:
            documents.append(Document("\n\n".join(prose), source, "prose", held_out))
        if len(code) > 200 and code_bytes < CODE_BYTES:
            code_bytes += len(code)
            documents.append(Document(code, source, "code", held_out))
    return documents


def _in_hash_order(root: Path) -> list[Path]:
    """The files of a wheel that hold text, so ordered that the cap takes files from everywhere in
    a package.
    """

    def key(path: Path) -> bytes:
        return hashlib.sha256(str(path.relative_to(root)).encode()).digest()

    paths = (path for path in root.rglob("*") if path.suffix in (".py", ".json", ".gz"))
    return sorted(sorted(paths), key=key)


# ---- Repeats and splits


def clean(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Split by file, drop repeated paragraphs and files, and held-out documents that share 13-grams
    with train.
    """
    splits: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for document in _limited(_without_repeats(documents)):
        if document.text:
            name = "eval" if document.held_out else split_of(document.source)
            splits[name].append(document)
    repeated = _shared_grams(splits["train"], splits["eval"] + splits["lm_heldout"])
    for name in ("eval", "lm_heldout"):
        splits[name] = [d for d in splits[name] if overlap(d.text, repeated) <= 0.02]
    return splits


def _without_repeats(documents: Iterable[Document]) -> Iterator[Document]:
    """Each paragraph of prose, and each file of code, where it comes first; botocore's come
    last.
    """
    seen: set[bytes] = set()
    for document in sorted(documents, key=lambda document: document.source.startswith(BOTOCORE)):
        is_prose = document.kind == "prose"
        fresh = []
        for part in document.text.split("\n\n") if is_prose else [document.text]:
            letters = re.sub(r"\W+", "", part).lower()
            key = hashlib.blake2b(letters.encode(), digest_size=12).digest()
            if key not in seen:
                seen.add(key)
                fresh.append(part)
        yield document._replace(text="\n\n".join(fresh))


def _limited(documents: Iterable[Document]) -> Iterator[Document]:
    """Documents, those of botocore, which come last, as long as they are at most a quarter of all
    prose.
    """
    prose = botocore = 0  # characters
    for document in documents:
        length = len(document.text)
        if document.source.startswith(BOTOCORE):
            if botocore + length > prose / 3:
                continue
            botocore += length
        elif document.kind == "prose":
            prose += length
        yield document


def grams(text: str, size: int = 13) -> np.ndarray:
    """64-bit hashes of a text's word 13-grams."""
    words = np.array([hash_word(word) for word in text.split()], dtype=np.uint64)
    if len(words) < size:
        return words[:0]
    windows = np.lib.stride_tricks.sliding_window_view(words, size)
    # powers of an odd number: the same words in another order have another sum, modulo 2**64
    powers = [pow(0x9E3779B97F4A7C15, i + 1, 2**64) for i in range(size)]
    return (windows * np.array(powers, dtype=np.uint64)).sum(1, dtype=np.uint64)


@cache
def hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _shared_grams(train: list[Document], held_out: list[Document]) -> np.ndarray:
    """The 13-grams of held-out documents that are in the training text as well, sorted."""
    nothing = np.zeros(0, np.uint64)
    known = np.unique(np.concatenate([nothing, *(grams(d.text) for d in held_out)]))
    shared: set[int] = set()
    for document in tqdm(train, desc="13-gram overlap", unit="document", disable=None):
        present = grams(document.text)
        # the only place where each could stand in the sorted ones; past the end, the last place
        places = np.searchsorted(known, present).clip(max=max(0, len(known) - 1))
        shared.update(present[known[places] == present].tolist())
    return np.array(sorted(shared), dtype=np.uint64)


def overlap(text: str, known: np.ndarray) -> float:
    """Share of a text's 13-grams that are among `known`; 0 for a text shorter than one."""
    of_text = grams(text)
    return float(np.isin(of_text, known).mean()) if len(of_text) else 0.0
