"""The runs of an experiment as a table, those that are missing included. No torch."""

import pandas as pd

from gsae.evidence import run_files
from gsae.experiments import sweeps


def load(experiment: str, scale: str | None = None) -> pd.DataFrame:
    """One row a run of an experiment, as `gsae.evidence.run_files.load` makes it; nothing is
    trained.

    Raises KeyError on an unknown experiment, ValueError on an unknown scale.
    """
    return run_files.load(sweeps.runs(experiment, scale), scale)
