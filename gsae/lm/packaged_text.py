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
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gsae.system import wheels

SPLITS = ("train", "lm_heldout", "eval")
CODE_BYTES = 3_500_000  # most source code taken from one wheel, so that no package dominates


def split_of(key: str) -> str:
    """The split of a source file, from a hash of its wheel and path: 3 % evaluation, 1.5 % held out
    for the LM.
    """
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    return "eval" if share < 0.03 else "lm_heldout" if share < 0.045 else "train"


def paragraphs(text: str) -> Iterator[str]:
    """Running prose in a docstring: paragraphs of 80 characters or more, four fifths of them
    letters and spaces.
    """
    for part in re.split(r"\n\s*\n", textwrap.dedent(text)):
        part = " ".join(part.split())
        if len(part) >= 80 and sum(c.isalpha() or c == " " for c in part) >= 0.8 * len(part):
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
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
        ):
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                prose += paragraphs(first.value.value)
                for i in range(first.lineno - 1, first.end_lineno):
                    lines[i] = None
    return prose, "\n".join(line for line in lines if line is not None).strip()


def read_service(path: Path) -> list[str]:
    """The prose of one botocore service description: its documentation fields without their HTML
    tags.
    """
    if path.suffix == ".gz":
        data = json.loads(gzip.decompress(path.read_bytes()))
    else:
        data = json.loads(path.read_text("utf-8"))
    found, todo = [], [data]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if isinstance(node.get("documentation"), str):
                found += paragraphs(
                    html.unescape(
                        re.sub(r"<[^>]+>", " ", node["documentation"].replace("</p>", "\n\n"))
                    )
                )
            todo += node.values()
        elif isinstance(node, list):
            todo += node
    return found


def read_wheel(name: str) -> list[tuple[str, str, str, bool]]:
    """Documents of one wheel, `(text, source, kind, held out)`, in path order; code up to
    `CODE_BYTES`.
    """
    root, held_out, documents, code = (
        wheels.fetch(name),
        bool(wheels.wheels()[name].get("held_out")),
        [],
        0,
    )
    paths = sorted(p for p in root.rglob("*") if p.suffix in (".py", ".json", ".gz"))
    # In hash order, so that the cap takes files from everywhere in a package.
    for path in sorted(
        paths, key=lambda p: hashlib.sha256(str(p.relative_to(root)).encode()).digest()
    ):
        source = f"{name}/{path.relative_to(root).as_posix()}"
        prose, text = (read_source(path)) if path.suffix == ".py" else (read_service(path), "")
        if prose:
            documents.append(("\n\n".join(prose), source, "prose", held_out))
        if len(text) > 200 and code < CODE_BYTES:
            code += len(text)
            documents.append((text, source, "code", held_out))
    return documents


def grams(text: str, size: int = 13) -> np.ndarray:
    """64-bit hashes of a text's word 13-grams."""
    words = np.array([hash_word(w) for w in text.split()], dtype=np.uint64)
    if len(words) < size:
        return words[:0]
    windows = np.lib.stride_tricks.sliding_window_view(words, size)
    weights = np.array(
        [pow(0x9E3779B97F4A7C15, i + 1, 2**64) for i in range(size)], dtype=np.uint64
    )
    return (windows * weights).sum(1, dtype=np.uint64)


@cache
def hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def clean(
    documents: list[tuple[str, str, str, bool]],
) -> dict[str, list[tuple[str, str, str, bool]]]:
    """Split by file, drop repeated paragraphs and files, and held-out documents that share 13-grams
    with train.
    """
    seen: set[bytes] = set()
    splits: dict[str, list] = {name: [] for name in SPLITS}
    prose = botocore = 0
    for text, source, kind, held_out in sorted(
        documents, key=lambda d: d[1].startswith("botocore/")
    ):  # botocore last
        fresh = []
        for part in text.split("\n\n") if kind == "prose" else [text]:
            key = hashlib.blake2b(
                re.sub(r"\W+", "", part).lower().encode(), digest_size=12
            ).digest()
            if key not in seen:
                seen.add(key)
                fresh.append(part)
        text = "\n\n".join(fresh)
        if source.startswith("botocore/"):
            if botocore + len(text) > prose / 3:  # at most a quarter of all prose
                continue
            botocore += len(text)
        elif kind == "prose":
            prose += len(text)
        if text:
            splits["eval" if held_out else split_of(source)].append((text, source, kind, held_out))
    held = splits["eval"] + splits["lm_heldout"]
    known = np.unique(np.concatenate([grams(d[0]) for d in held] or [np.zeros(0, np.uint64)]))
    shared: set[int] = set()
    for text, *_ in tqdm(splits["train"], desc="13-gram overlap", unit="document", disable=None):
        found = grams(text)
        shared.update(
            found[
                known[np.searchsorted(known, found).clip(max=max(0, len(known) - 1))] == found
            ].tolist()
        )
    repeated = np.array(sorted(shared), dtype=np.uint64)
    for name in ("eval", "lm_heldout"):
        splits[name] = [d for d in splits[name] if overlap(d[0], repeated) <= 0.02]
    return splits


def overlap(text: str, known: np.ndarray) -> float:
    """Share of a text's 13-grams that are among `known`; 0 for a text shorter than one."""
    found = grams(text)
    return float(np.isin(found, known).mean()) if len(found) else 0.0
