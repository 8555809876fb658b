"""What a verdict is, the one rule by which estimates and intervals become one, and its text. No
torch.

A verdict is data: a word, the numbers, and the tables of runs and results on which they rest. What
people read of it is made at the end, by the properties of `Verdict`, and nowhere else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd

REPRODUCED, PARTLY, NOT = "reproduced", "partly", "not reproduced"
NOT_TESTED, NOT_RUN = "not tested", "not yet run"
Truth = bool | np.bool_
Bounds = tuple[float | int, float | int]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval over groups of text and its interval over seeds, NaN where there
    is none. As text `0.50 [0.48, 0.52], over seeds [0.45, 0.55]`, each in the format that is asked
    for.
    """

    value: float
    low: float  # the bootstrap's over groups of text
    high: float
    t_low: float  # Student's t over seeds
    t_high: float
    seeds: int = 0

    @classmethod
    def of(cls, comparison: Mapping[str, Any]) -> "Estimate":
        """Of a result of gsae.evidence.intervals.by_seed."""
        bounds = {side: comparison[side] for side in ("low", "high", "t_low", "t_high")}
        return cls(comparison["estimate"], **bounds, seeds=comparison["seeds"])

    @classmethod
    def ratio(cls, logs: Mapping[str, Any]) -> "Estimate":
        """The same of a log ratio, as a ratio."""
        return cls.of({k: v if k == "seeds" else np.exp(v) for k, v in logs.items()})

    @property
    def known(self) -> bool:
        """Whether there is a number: frontiers without a shared range have none."""
        return bool(np.isfinite(self.value))

    def inside(self, low: float | int, high: float | int) -> tuple[bool, bool, bool]:
        """Whether the number, its interval over text and its interval over seeds lie between two
        bounds. Not where they are NaN.
        """
        spans = ((self.value, self.value), (self.low, self.high), (self.t_low, self.t_high))
        number, text, seeds = (bool(low < least and most < high) for least, most in spans)
        return number, text, seeds

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        text = f"{self.value:{spec}}"
        if np.isfinite(self.low):
            text += f" [{self.low:{spec}}, {self.high:{spec}}]"
        else:
            text += " (no interval)"
        if np.isfinite(self.t_low):
            text += f", over seeds [{self.t_low:{spec}}, {self.t_high:{spec}}]"
        return text


def interval(comparison: Mapping[str, Any], digits: int = 2, exp: bool = False) -> str:
    """A result of gsae.evidence.intervals.by_seed, or its exponential, as text."""
    estimate = Estimate.ratio(comparison) if exp else Estimate.of(comparison)
    return f"{estimate:.{digits}f}"


def count(tokens: int) -> str:
    """A number of tokens, short."""
    return f"{tokens / 1e6:.3g} M" if tokens >= 1e6 else f"{tokens / 1e3:.3g} k"


def span(counts: Iterable[int]) -> str:
    """The least and the largest of several counts."""
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)}))


@dataclass(frozen=True)
class Basis:
    """On what numbers rest: the scale, how many seeds there are of each series and place, and the
    tokens of a run, or how many results there are.
    """

    scale: str
    seeds: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    results: int = 0

    @classmethod
    def of(cls, runs: pd.DataFrame) -> "Basis":
        """Of a table of runs, or of results with the fields of their runs."""
        series = "series" if "series" in runs else "arch"
        places = [column for column in ("lm", "site", "layer", series) if column in runs]
        seeds = runs.groupby(places)["seed"].nunique() if places else [runs["seed"].nunique()]
        scale, tokens = runs["scale"].iloc[0], sorted(set(runs["tokens"]))
        return cls(scale, tuple(sorted(set(seeds))), tuple(tokens))

    @property
    def brief(self) -> str:
        """Seeds and tokens."""
        seeds = span(self.seeds)
        text = "single seed" if seeds == "1" else f"{seeds} seeds"
        if self.tokens:
            tokens = dict.fromkeys(count(n) for n in self.tokens)  # equal ones are said once
            text += f", {', '.join(tokens)} tokens"
        return text

    @property
    def runs(self) -> str:
        """Scale, seeds and tokens."""
        return f"{self.scale}, {self.brief}{' a run' if self.tokens else ''}"

    def __str__(self) -> str:
        results = f", {self.results} results" if self.results else ""
        return f"scale {self.runs}{results}"


def about(runs: pd.DataFrame) -> str:
    """Scale, seeds (of each series and place) and tokens of the runs behind a number."""
    return str(Basis.of(runs))


class _ByName(Formatter):
    """Puts numbers where a sentence has their names; a name may have dots, as that of a series."""

    def get_field(self, field_name, args, kwargs):
        return kwargs[field_name], field_name


@dataclass(frozen=True, eq=False)
class Verdict:
    """A verdict with all that it rests on.

    Args:
        verdict: one of the five words.
        finding: what was found, a sentence with `{names}` where numbers belong.
        short: the same for the table of all claims, which has less room; by default the finding.
        numbers: estimates and plain values, by name.
        bounds: between which two values the rule wants some of them.
        details: further sentences, a line each.
        cells: verdicts on the parts that the claim is about, by name, a line each.
        basis: scale, seeds and tokens behind the numbers; None where nothing was compared.
        tables: the runs and results that were read, those that are missing included.
    """

    verdict: str
    finding: str = ""
    short: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    details: tuple[str, ...] = ()
    cells: Mapping[str, "Verdict"] = field(default_factory=dict)
    basis: Basis | None = None
    tables: tuple[pd.DataFrame, ...] = ()

    def filled(self, sentence: str) -> str:
        """A sentence with the numbers in it."""
        return _ByName().vformat(sentence, (), self.numbers)

    @property
    def lines(self) -> list[str]:
        """What was found, and on what it rests: one line, or one for each detail and cell."""
        sentences = [self.finding, *self.details] if self.finding else []
        lines = [self.filled(sentence) for sentence in sentences]
        lines += [f"{name}: {cell.ours}" for name, cell in self.cells.items()]
        if self.basis is None:
            return lines
        return [f"{lines[0]}; {self.basis}"] if len(lines) == 1 else [*lines, str(self.basis)]

    @property
    def ours(self) -> str:
        """All that was found, and on what it rests."""
        return "\n".join(self.lines)

    @property
    def brief(self) -> str:
        """What the table of all claims has room for."""
        return self.filled(self.short or self.finding)

    @property
    def runs(self) -> str:
        """Scale, seeds and tokens of the runs that it rests on."""
        return self.basis.runs if self.basis else ""


def graded(estimates: Truth, text: Truth, seeds: Truth) -> str:
    """`reproduced` where the estimates pass and so do both their intervals, over text and over
    seeds; `partly` where the estimates alone do. With one seed there is no interval over seeds.
    """
    if not estimates:
        return NOT
    return REPRODUCED if text and seeds else PARTLY


def all_inside(numbers: Mapping[str, Estimate], bounds: Mapping[str, Bounds]) -> str:
    """The verdict where every number that has bounds has to lie between them."""
    passed = [numbers[name].inside(*limits) for name, limits in bounds.items()]
    estimates, text, seeds = (all(column) for column in zip(*passed, strict=True))
    return graded(estimates, text, seeds)


def unfinished(table: pd.DataFrame) -> bool:
    """Whether a table of runs or results has no rows, or lacks some."""
    return not len(table) or bool((table["status"] == "missing").any())


def not_run(table: pd.DataFrame) -> Verdict:
    """`not yet run`, for a table that is unfinished."""
    if not len(table):
        return Verdict(NOT_RUN, tables=(table,))
    on_record = int((table["status"] != "missing").sum())
    numbers = {"on_record": on_record, "wanted": len(table)}
    finding = "{on_record} of {wanted} on record"
    return Verdict(NOT_RUN, finding, numbers=numbers, tables=(table,))


def stated(verdict: str, finding: str, runs: pd.DataFrame, **fields) -> Verdict:
    """A verdict on a table of runs that are all on record, with the other fields of `Verdict`."""
    fields = {"short": finding, "tables": (runs,)} | fields
    return Verdict(verdict, finding, basis=Basis.of(runs), **fields)


def listed(names: Iterable[str], after: str = "") -> str:
    """The place of several numbers in a sentence, each behind its name."""
    return "; ".join(f"{name}{after} {{{name}}}" for name in names)


def less_in_common(cells: Mapping[str, Verdict], runs: pd.DataFrame) -> dict[str, Verdict]:
    """Verdicts on the cells of a table of runs, without the basis of those that rest on what the
    whole table does: the verdict on the whole says it once.
    """
    if not cells:
        return {}
    common = Basis.of(runs)
    return {
        name: replace(cell, basis=None) if cell.basis == common else cell
        for name, cell in cells.items()
    }
