"""A run and its record: sums, metrics, intervals, frontiers, files, provenance, and what a
verdict is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "run": ["Run", "grid"],
        "provenance": ["EvidenceError"],
        "run_files": ["done", "load"],
        "verdict": ["Verdict"],
    },
)
