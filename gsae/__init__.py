"""gsae: an executable replication of *Improving Dictionary Learning with Gated Sparse
Autoencoders*.

The names below are loaded on first use, so that listing a sweep never waits for torch.
"""

from importlib import import_module

from gsae.system.about import PAPER, REPO, __version__

_LAZY = {
    "ARCHITECTURES": "gsae.saes",
    "BaselineSAE": "gsae.saes",
    "GatedSAE": "gsae.saes",
    "Run": "gsae.evidence.run",
    "grid": "gsae.evidence.run",
    "train": "gsae.training.loop",
    "run": "gsae.experiments.runner",
    "load": "gsae.saes.files",
}
__all__ = ["PAPER", "REPO", "__version__", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(
        f"module 'gsae' has no attribute {name!r}; public names: {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
