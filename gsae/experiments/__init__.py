"""Sweeps as data, the runner where all rooms meet, what is computed of finished runs, and what
it costs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "evaluate": ["Evaluation"],
        "runner": ["run"],
        "site": ["Site"],
        "sweeps": ["EXPERIMENTS", "runs", "scale"],
    },
)
