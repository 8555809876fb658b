"""Arms: the names under which runs are drawn and compared, and the switches that make each."""

import pandas as pd

GATED, WIDE, SAME = "gated", "baseline, 1.5x as wide", "baseline, same width"
UNREVIVED = ", no resampling"  # behind the name of a series
RESCALED, PRUNED, BOTH = "rescale & shift", "pruned", "pruned, rescale & shift"

ARMS = {  # Fig. 8, then ours: the switch that makes each arm
    "unfrozen decoder": ("freeze", "none"),
    "no r_mag": ("tie", "shared"),
    "untied encoders": ("tie", "none"),
    "no auxiliary term": ("auxiliary", False),
    "no step function": ("step", False),
    "auxiliary b_dec live": ("freeze", "W_dec"),
    "centring detached": ("centre_grad", False),
    "penalty on magnitudes": ("magnitude_l1", True),
}
PAPER_ARMS = ("unfrozen decoder", "no r_mag", "untied encoders")


def arm(row) -> str:
    """The series of a run: baseline, gated, or the ablation arm that its switches make."""
    if row.arch == "baseline":
        return WIDE
    for name, (switch, value) in ARMS.items():
        if getattr(row, switch) == value:
            return name
    return GATED


def named(df: pd.DataFrame) -> pd.DataFrame:
    """A table of runs with the column `series`."""
    return df.assign(series=[arm(row) for row in df.itertuples()])
