"""Weights on disk: safetensors with a json header, written to a temporary name and renamed."""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gsae.saes import ARCHITECTURES, SAE
from gsae.system import files

HUB_FILE = "sae.safetensors"  # the weights in a folder, as `gsae push` lays it out
HUB_NAME = re.compile(r"(?!.*\.safetensors$)[\w.-]+/[\w.-]+(@[\w./-]+)?")


class CheckpointError(RuntimeError):
    """A file that is damaged, or not what was asked for."""


def write(path: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Write tensors and a json state to one file; a kill at any moment leaves the old file or the new one.

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
        raise CheckpointError(f"cannot read {path}: {error}. Delete the file; it will be made again") from error
    digest = state.pop("sum", None)
    if digest not in (checksum(tensors, state), checksum(tensors)):  # older files: of the tensors alone
        raise CheckpointError(
            f"{path} is damaged: its bytes differ from those written. Delete the file; it will be made again"
        )
    return tensors, state


def state(path: Path) -> dict:
    """The json state of a file, without its tensors. Raises CheckpointError as `read`."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["gsae"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Delete the file; it will be made again") from error


def checksum(tensors: dict[str, Tensor], state: dict | None = None) -> str:
    """A digest of names and bytes, and of the json state, so that a flipped bit is noticed."""
    import hashlib

    digest = hashlib.sha256(b"" if state is None else json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save(sae: SAE, path: str | Path, **about) -> Path:
    """Save an SAE as one safetensors file; `about` are plain values kept beside the weights (run, scale factor…)."""
    arch = next(name for name, cls in ARCHITECTURES.items() if type(sae) is cls)
    write(Path(path), dict(sae.state_dict()), {"arch": arch, "config": sae.config(), "about": about})
    return Path(path)


def load(where: str | Path) -> SAE:
    """The SAE saved in a file or a folder, kept in the cache for a run id, or on the hub: "owner/name".

    A hub name may end in "@revision"; "hub:owner/name" is one even where a folder has that name.
    The factor that scaled its training activations, where known, is `sae.about["scale"]`.

    Raises:
        FileNotFoundError: when there is neither such a file nor kept weights of such a run.
        CheckpointError: when the file is damaged, or of an architecture that this version does not know.
        gsae.experiments.share.HubError: when the hub does not give what it was asked for.
    """
    name = str(where)
    path = Path(where)
    if name.startswith("hub:") or (not path.exists() and HUB_NAME.fullmatch(name)):
        from gsae.experiments import share  # loads only where it is needed

        path = share.pull(name.removeprefix("hub:"))
    elif not path.exists():
        path = weights(name)
    if path.is_dir():
        path = path / HUB_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"no SAE at {name!r}: there is no {path}. Weights are not in git: train the run with `gsae run`, or pass a "
            "file written by gsae.saes.files.save, a folder that holds one, or a name on the hub, owner/name. "
            "Files of SAELens and dictionary_learning are read by gsae.saes.interop.load"
        )
    tensors, state = read(path)
    if state["arch"] not in ARCHITECTURES:
        raise CheckpointError(f"{path} holds an SAE of architecture {state['arch']!r}, unknown here: update gsae")
    sae = ARCHITECTURES[state["arch"]](**state["config"])
    sae.load_state_dict(tensors)
    sae.about = state["about"]
    return sae.eval()


def weights(run_id: str) -> Path:
    """Where a run's weights are kept, outside git."""
    from gsae.system.wheels import cache_dir

    return cache_dir() / "saes" / f"{run_id}.safetensors"
