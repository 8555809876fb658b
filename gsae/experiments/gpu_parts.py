"""The parts of a stack that a GPU holds at once, which train together, and the GPUs that are known
by name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gsae.evidence.run import Run
from gsae.experiments import cost as sizes
from gsae.experiments import limits


@dataclass(frozen=True)
class GPU:
    """GB of memory, dense bf16 TFLOP/s, and a price per hour, for which any rental or cluster has
    its own.
    """

    memory: int | float
    tflops: int | float
    price: int | float


DATED = "2026-11"


# ASSUMPTIONS as of DATED: memory and rate as in the vendors' data sheets, price a round on-demand
# figure in US $
GPUS = {
    "t4": GPU(16, 8.1, 0.35),  # has no bf16 units: its fp32 rate
    "l4": GPU(24, 121, 0.7),
    "a100": GPU(80, 312, 1.6),
    "h100": GPU(80, 989, 2.5),
    "h200": GPU(141, 989, 3.5),
    "b200": GPU(180, 2250, 5.0),
}


UTILISATION = 0.4  # ASSUMPTION: share of that rate which training and forward passes reach


NODE = 8  # GPUs of one machine


USABLE = 0.92  # of a GPU's memory; the rest goes to the driver and to fragments


@dataclass(frozen=True)
class Part:
    """Some runs of one stack, which train together: bytes on a GPU by what they are for, operations
    by phase.
    """

    runs: tuple[Run, ...]
    memory: dict[str, int]
    flops: dict[str, int]
    where: str  # what is placed elsewhere
    lm_gpus: int  # GPUs that hold nothing but the language model

    @property
    def fits(self) -> bool:
        return self.where != "does not fit"


def named(card: str) -> str | None:
    """The key in `GPUS` of a card, from its driver's name for it: "NVIDIA A100-SXM4-80GB" is an
    a100.
    """
    return next((word for word in re.split(r"\W+", card.lower()) if word in GPUS), None)


def parts(stack: Sequence[Run], gpu: GPU, apart: bool | None = None) -> list[Part]:
    """A stack cut into parts that a GPU holds, the buffer in the host's memory or the language
    model on GPUs of its own where that takes the fewest GPU-hours, or where nothing else fits.
    `apart` says where the language model is, where that is settled.
    """
    run, room = stack[0], gpu.memory * 1e9 * USABLE
    buffer = {"buffer": limits.BUFFER * limits.row_bytes(run) if limits.streams(run) else 0}
    model = {"LM": sizes.lm_bytes(run.lm)}
    own = -(-(model["LM"] + sizes.splice_bytes(run) + sizes.forward_bytes(run)) // int(room))
    away, host = f"LM on {own} GPU{'s' * (own > 1)} of its own", "buffer in the host's memory"
    places = (
        (model | buffer, "", 0),
        (model, host, 0),
        (buffer, away, own),
        ({}, f"{away}, {host}", own),
    )
    found = []
    for fixed, where, lm_gpus in places:
        fitting = [
            k for k in range(1, len(stack) + 1) if sum(_memory(run, k, fixed).values()) <= room
        ]
        if fitting and apart in (None, bool(lm_gpus)):
            found.append(_cut(stack, fitting[-1], fixed, where, lm_gpus))
    if not found:
        return _cut(stack, 1, {} if apart else model, "does not fit", own)
    return min(found, key=lambda cut: sum(sum(p.flops.values()) * (1 + p.lm_gpus) for p in cut))


def _memory(run: Run, count: int, fixed: dict[str, int]) -> dict[str, int]:
    work = sizes.work_bytes(run, count, lm="LM" in fixed)
    return {"SAEs": count * sizes.held_bytes(run), "work": work, **fixed}


def _cut(
    stack: Sequence[Run], most: int, fixed: dict[str, int], where: str, lm_gpus: int
) -> list[Part]:
    """Parts of at most `most` runs and nearly equal size, each of which reads the whole text.
    Without the first of them the others stay what they are, so that a sweep is cut alike before and
    after an interruption.
    """
    run, left, found = stack[0], list(stack), []
    while left:
        size = len(left) // -(-len(left) // most)
        some, left = tuple(left[:size]), left[size:]
        memory = _memory(run, len(some), fixed)
        flops = {"train": sum(map(sizes.train_flops, some)), "harvest": sizes.harvest_flops(run)}
        flops["evaluate"] = sizes.site_flops(run) + sum(map(sizes.evaluation_flops, some))
        found.append(Part(some, memory, flops, where, lm_gpus))
    return found


def host_bytes(cut: Sequence[Part]) -> int:
    """Bytes of the host's memory beside a GPU that trains the parts of one stack, Python and torch
    left out.
    """
    run, buffer = cut[0].runs[0], 0
    if limits.streams(run) and "buffer" not in cut[0].memory:
        buffer = limits.BUFFER * limits.row_bytes(run)
    return (
        sizes.held_out_bytes(run)
        + buffer
        + max(sizes.state_bytes(p.runs[0], len(p.runs)) for p in cut)
    )
