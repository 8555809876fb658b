"""Weights on disk and on the hub: safetensors with a json header, written to a temporary name and
renamed.
"""

import re
from pathlib import Path

from gsae.saes import ARCHITECTURES, SAE
from gsae.system.files import cache_dir
from gsae.system.tensors import CheckpointError, read, write

HUB_FILE = "sae.safetensors"  # the weights in a folder, as `gsae push` lays it out
# "owner/name" or "owner/name@revision"; no weights file
HUB_NAME = re.compile(r"(?!.*\.safetensors$)[\w.-]+/[\w.-]+(@[\w./-]+)?")


def save(sae: SAE, path: str | Path, **about) -> Path:
    """Save an SAE as one safetensors file; `about` are plain values kept beside the weights (run,
    scale factor…).
    """
    path = Path(path)
    arch = next(name for name, cls in ARCHITECTURES.items() if type(sae) is cls)
    write(path, dict(sae.state_dict()), {"arch": arch, "config": sae.config(), "about": about})
    return path


def load(where: str | Path) -> SAE:
    """The SAE saved in a file or a folder, kept in the cache for a run id, or on the hub:
    "owner/name".

    A hub name may end in "@revision"; "hub:owner/name" is one even where a folder has that name.
    The factor that scaled its training activations, where known, is `sae.about["scale"]`.

    Raises:
        FileNotFoundError: when there is neither such a file nor kept weights of such a run.
        CheckpointError: when the file is damaged, or of an architecture that this version does not
            know.
        HubError: when the hub does not give what it was asked for.
    """
    path = _find(where)
    if not path.exists():
        raise FileNotFoundError(
            f"no SAE at {str(where)!r}: there is no {path}. Weights are not in git: train the run "
            "with `gsae run`, or pass a file written by gsae.saes.files.save, a folder that holds "
            "one, or a name on the hub, owner/name. Files of SAELens and dictionary_learning are "
            "read by gsae.saes.importing.import_sae"
        )
    tensors, state = read(path)
    if state["arch"] not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} holds an SAE of architecture {state['arch']!r}, unknown here: update gsae"
        )
    sae = ARCHITECTURES[state["arch"]](**state["config"])
    sae.load_state_dict(tensors)
    sae.about = state["about"]
    return sae.eval()


def _find(where: str | Path) -> Path:
    """The file of weights that is meant; only what is on the hub is known to exist."""
    name, path = str(where), Path(where)
    if name.startswith("hub:") or (not path.exists() and HUB_NAME.fullmatch(name)):
        path = pull(name.removeprefix("hub:"))
    elif not path.exists():
        path = weights(name)
    return path / HUB_FILE if path.is_dir() else path


def weights(run_id: str) -> Path:
    """Where a run's weights are kept, outside git."""
    return cache_dir() / "saes" / f"{run_id}.safetensors"


class HubError(RuntimeError):
    """A repository cannot be read or written; the message says why and what to do."""


def pull(repo: str) -> Path:
    """The folder of `owner/name`, or `owner/name@revision`, in the hub's cache; downloaded if it is
    not there.

    Raises:
        HubError: when it cannot be had, or holds no SAE of this package.
    """
    # The hub's client loads slowly, and an SAE on this disk needs none.
    from huggingface_hub import snapshot_download

    from gsae.system import hub_access

    name, revision = hub_access.split(repo)
    try:
        wanted = [HUB_FILE, "*.json", "README.md"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise HubError(f"cannot pull {repo}: {hub_access.why(error, name)}") from error
    if not (folder / HUB_FILE).exists():
        raise HubError(
            f"{repo} holds no {HUB_FILE}: it was not pushed by gsae. For an SAE of SAELens or "
            "dictionary_learning, `hf download` it and use `gsae import`"
        )
    return folder
