"""Tensors on disk: safetensors with a json state beside them, written whole or not at all, checked
when read.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gsae.system import files


class CheckpointError(RuntimeError):
    """A file that is damaged, or not what was asked for."""


def write(path: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Write tensors and a json state to one file; a kill at any moment leaves the old file or the
    new one.

    Raises gsae.system.files.WriteError where the disk is full; the old file is then as it was.
    """
    with files.replacing(path, SafetensorError) as temporary:
        with torch.no_grad():
            digest = checksum(tensors, state)
        header = {"gsae": json.dumps({**state, "sum": digest})}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, header)


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and state of a file. Raises CheckpointError, naming the file, where it is damaged."""
    with opened(path) as file:
        state = header_of(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    written = state.pop("sum", None)
    # older files have a checksum of the tensors alone
    if written not in (checksum(tensors, state), checksum(tensors)):
        raise CheckpointError(
            f"{path} is damaged: its bytes differ from those written. Delete the file; it will be "
            "made again"
        )
    return tensors, state


def state(path: Path) -> dict:
    """The json state of a file, without its tensors. Raises CheckpointError as `read`."""
    with opened(path) as file:
        return header_of(file)


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file. Raises CheckpointError, naming it, where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}. Delete the file; it will be made again"
        ) from error


def header_of(file: safe_open) -> dict:
    return json.loads((file.metadata() or {})["gsae"])


def checksum(tensors: dict[str, Tensor], state: dict | None = None) -> str:
    """A digest of names and bytes, and of the json state, so that a flipped bit is noticed."""
    digest = hashlib.sha256(b"" if state is None else json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
