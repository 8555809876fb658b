"""What a verdict is, and the one rule by which estimates and intervals become one. No torch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

REPRODUCED, PARTLY, NOT = "reproduced", "partly", "not reproduced"
NOT_TESTED, NOT_RUN = "not tested", "not yet run"
Truth = bool | np.bool_
LINE = "\n"  # between the cells of a verdict on several


@dataclass(frozen=True)
class Verdict:
    """A verdict with the numbers behind it, as text; `brief` is what the table of all claims has
    room for, and `runs` says on what it rests. `found` is what gsae.evidence.metrics.by_seed says
    of a comparison of frontiers, a log ratio of L0, with `worst`, the least favourable level, and,
    where loss recovered was compared, `more`, `more_low`, `more_high`.
    """

    verdict: str
    ours: str = ""
    brief: str = ""
    runs: str = ""
    found: Mapping[str, float] = field(default_factory=dict)


def graded(estimates: Truth, text: Truth, seeds: Truth) -> str:
    """`reproduced` where the estimates pass and so do both their intervals, over text and over
    seeds; `partly` where the estimates alone do. With one seed there is no interval over seeds.
    """
    return REPRODUCED if estimates and text and seeds else PARTLY if estimates else NOT


_noted: ContextVar[list[pd.DataFrame] | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[list[pd.DataFrame]]:
    """The tables of runs and results on which the verdicts found inside the block rest, as they are
    found.
    """
    token = _noted.set(tables := [])
    try:
        yield tables
    finally:
        _noted.reset(token)


def rests_on(df: pd.DataFrame) -> None:
    """Say, for `noting`, that a verdict rests on the runs or results of a table, those that are
    missing included.
    """
    if (tables := _noted.get()) is not None:
        tables.append(df)


def unfinished(df: pd.DataFrame) -> Verdict | None:
    """`not yet run` where a table has no rows or lacks some; None where all are on record. Notes
    the table.
    """
    rests_on(df)
    missing = int((df["status"] == "missing").sum()) if len(df) else 0
    if len(df) and not missing:
        return None
    return Verdict(NOT_RUN, f"{len(df) - missing} of {len(df)} on record" if len(df) else "")


def count(tokens: int) -> str:
    """A number of tokens, short."""
    return f"{tokens / 1e6:.3g} M" if tokens >= 1e6 else f"{tokens / 1e3:.3g} k"


def about(df: pd.DataFrame) -> str:
    """Scale, seeds (of each series and place) and tokens of the runs behind a number."""
    tokens = dict.fromkeys(count(t) for t in sorted(df["tokens"]))
    places = [c for c in ("lm", "site", "layer", "series" if "series" in df else "arch") if c in df]
    seeds = span(df.groupby(places)["seed"].nunique() if places else [df["seed"].nunique()])
    in_all = f"{seeds} seeds" if seeds != "1" else "single seed"
    return f"scale {df['scale'].iloc[0]}, {in_all}, {', '.join(tokens)} tokens a run"


def span(counts: Iterable[int]) -> str:
    """The least and the largest of several counts."""
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)}))


def stated(
    verdict: str, text: str, df: pd.DataFrame, brief: str = "", found: Mapping | None = None
) -> Verdict:
    """A verdict on a table of runs."""
    return Verdict(
        verdict,
        f"{text}{LINE if LINE in text else '; '}{about(df)}",
        brief or text,
        about(df).removeprefix("scale "),
        found or {},
    )


def by_cell(cells: Mapping[str, Verdict], df: pd.DataFrame) -> str:
    """What was found in each cell, a line each, less what `stated` says of them all anyway."""
    common = f"; {about(df)}" if len(df) else ""
    return LINE.join(f"{name}: {found.ours.removesuffix(common)}" for name, found in cells.items())


def interval(found: Mapping, digits: int = 2, exp: bool = False) -> str:
    """An estimate of gsae.evidence.metrics.by_seed with its interval over text and, where there is
    one, over seeds.
    """
    values = {k: np.exp(v) if exp else v for k, v in found.items() if k != "seeds"}
    out, ends = (
        f"{values['estimate']:.{digits}f}",
        [f"{values[k]:.{digits}f}" for k in ("low", "high")],
    )
    out += f" [{', '.join(ends)}]" if np.isfinite(values["low"]) else " (no interval)"
    if np.isfinite(values["t_low"]):
        out += f", over seeds [{values['t_low']:.{digits}f}, {values['t_high']:.{digits}f}]"
    return out


def inside(found: Mapping, low: float | int, high: float | int) -> tuple[bool, ...]:
    """Whether an estimate, its interval over text and its interval over seeds lie between two
    bounds.
    """
    pairs = (("estimate", "estimate"), ("low", "high"), ("t_low", "t_high"))
    return tuple(
        bool(low < found[a] and found[b] < high) for a, b in pairs
    )  # comparisons with NaN are false


def together(parts: list[tuple[bool, ...]]) -> str:
    """The verdict of several conditions that all have to hold."""
    return graded(*(all(column) for column in zip(*parts, strict=True)))


def above(found: dict, least: float | int) -> tuple[bool, ...]:
    return inside(found, least, np.inf)
