"""What is on record beside what is wanted: the runs of an experiment as a table, the results that
are missing, and whether those may be computed here. No torch.
"""

import os
from collections.abc import Iterable, Sequence

import pandas as pd

from gsae.evidence import provenance, result_files, run_files
from gsae.experiments import sweeps


def load(experiment: str, scale: str | None = None) -> pd.DataFrame:
    """One row a run of an experiment, as `gsae.evidence.run_files.load` makes it; nothing is
    trained.

    Raises KeyError on an unknown experiment, ValueError on an unknown scale.
    """
    return run_files.load(sweeps.runs(experiment, scale), scale)


def missing_results(kind: str, wanted: Iterable[dict], scale: str) -> list[dict]:
    """Those of the wanted results of one kind, each given by its settings, that are not on
    record.
    """
    return [
        settings for settings in wanted if result_files.find_result(kind, settings, scale) is None
    ]


def reads_only() -> bool:
    """Whether nothing is to be trained or computed: GSAE_TRAIN=never."""
    return os.environ.get("GSAE_TRAIN") == "never"


def to_be_made(missing: Sequence, scale: str, force: bool) -> bool:
    """Whether what is missing is to be trained or computed now.

    Raises EvidenceError where, at a scale other than smoke, it could not be traced to a commit;
    not with `force`.
    """
    if not len(missing) or reads_only():
        return False
    if scale != "smoke" and not force:
        provenance.require_clean()
    return True
