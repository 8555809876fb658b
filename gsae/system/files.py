"""Files written whole or not at all, and data files that are checked as they are read. Standard
library only.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_dir

SEGMENT = 2**22  # bytes under one checksum


class WriteError(OSError):
    """A file could not be written, as on a full disk; names the file and what to do. Nothing
    half-written is left.
    """


# ---- Where files are


def cache_dir() -> Path:
    """The cache folder: GSAE_CACHE, else the platform's own."""
    folder = Path(os.environ.get("GSAE_CACHE") or user_cache_dir("gsae")).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lock(name: str) -> Path:
    """The file of a lock that the processes of this cache share."""
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


# ---- Writing


@contextmanager
def replacing(path: Path, *errors: type[Exception]) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` at the end: a kill at any moment leaves the
    old file or the new.

    Raises WriteError in place of an OSError (or of `errors`) inside; the temporary file is then
    gone, the old one is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:  # a KeyboardInterrupt leaves nothing behind either
        temporary.unlink(missing_ok=True)
        if isinstance(error, (OSError, *errors)):
            raise WriteError(
                f"cannot write {path}: {error}. What was finished before is intact: make room, or "
                "move the cache with GSAE_CACHE, and run the same command to go on"
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all. Raises WriteError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object, *, end: str = "", **layout) -> None:
    """Write `value` as json, and `end` behind it, whole or not at all. Raises WriteError as
    `replacing`.

    `layout` is of `json.dumps`. Files that people read or that git keeps take `end="\n"`, and most
    of them `allow_nan=False`: a number that is not finite is then a ValueError.
    """
    write_text(path, json.dumps(value, **layout) + end)


def reserve(path: Path, size: int) -> None:
    """A file of `size` bytes whose blocks are the file's own, so that writing into its memory map
    cannot fail later.

    Without the reservation a disk that fills up meanwhile would end the process by a signal, with
    no message. Raises WriteError where the disk is full; the file is then gone.
    """
    try:
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise WriteError(
            f"cannot reserve {size:,} bytes for {path}: {error}. Make room, or set GSAE_CACHE"
        ) from error


# ---- Checking


def digest(value: dict) -> str:
    """The first 16 hex digits of the sha256 of a value's json, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def checksums(path: Path, segment: int = SEGMENT) -> dict:
    """CRC-32 of each segment of a file, and the segments' length."""
    with open(path, "rb") as file:
        segments = iter(lambda: file.read(segment), b"")
        return {"segment": segment, "crc32": [zlib.crc32(data) for data in segments]}


class Checked:
    """A data file whose segments are compared with their checksums, each the first time it is read.

    A whole check when a file is opened would read all of it, minutes for 40 GB. This way every byte
    that is used has been checked, the cost (about a GB/s) is spread over the reading, and a resumed
    run pays only for what it reads.
    """

    def __init__(self, path: Path, sums: dict, error: type[Exception], remedy: str):
        self.path = path
        self.segment = sums.get("segment", SEGMENT)
        self.sums = sums.get("crc32", [])
        self.left = set(range(len(self.sums)))  # segments that were not read yet
        self.error = error
        self.remedy = remedy

    def check(self, start: int, stop: int) -> None:
        """Check the segments that hold bytes `start` to `stop`; raises `error`, naming file and
        place.
        """
        first, end = start // self.segment, -(-stop // self.segment)
        for i in range(first, end):
            if i in self.left:
                self.check_segment(i)
                self.left.discard(i)

    def check_segment(self, i: int) -> None:
        with open(self.path, "rb") as file:
            file.seek(i * self.segment)
            data = file.read(self.segment)
        if zlib.crc32(data) != self.sums[i]:
            raise self.error(
                f"{self.path} is damaged in its {self.segment:,} bytes from byte "
                f"{i * self.segment:,} on: they differ from those written: {self.remedy}"
            )
