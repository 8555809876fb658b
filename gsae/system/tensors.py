"""Tensors on disk: safetensors with a json state beside them, written whole or not at all, checked
when read.
"""

import json
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
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, header)


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and state of a file. Raises CheckpointError, naming the file, where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["gsae"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}. Delete the file; it will be made again"
        ) from error
    digest = state.pop("sum", None)
    if digest not in (
        checksum(tensors, state),
        checksum(tensors),
    ):  # older files: of the tensors alone
        raise CheckpointError(
            f"{path} is damaged: its bytes differ from those written. Delete the file; it will be "
            "made again"
        )
    return tensors, state


def state(path: Path) -> dict:
    """The json state of a file, without its tensors. Raises CheckpointError as `read`."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["gsae"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}. Delete the file; it will be made again"
        ) from error


def checksum(tensors: dict[str, Tensor], state: dict | None = None) -> str:
    """A digest of names and bytes, and of the json state, so that a flipped bit is noticed."""
    import hashlib

    digest = hashlib.sha256(b"" if state is None else json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(
            tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        )
    return digest.hexdigest()
