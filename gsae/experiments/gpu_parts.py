"""The parts of a stack that a GPU holds at once, which train together: what the runner obeys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gsae.evidence.run import Run
from gsae.experiments import cost, limits

USABLE = 0.92  # of a GPU's memory; the rest goes to the driver and to fragments

NO_ROOM = "does not fit"


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
        return self.where != NO_ROOM

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def operations(self) -> int:
        return sum(self.flops.values())

    @property
    def gpus(self) -> int:
        """The one that trains, and those of the language model."""
        return 1 + self.lm_gpus


class Placement(NamedTuple):
    """What lies on a GPU beside the SAEs and their work, and what is placed elsewhere."""

    fixed: dict[str, int]  # bytes by what they are for
    where: str
    lm_gpus: int


def parts(stack: Sequence[Run], memory: int | float, apart: bool | None = None) -> list[Part]:
    """A stack cut into parts that a GPU of `memory` bytes holds, the buffer in the host's memory or
    the language model on GPUs of its own where that takes the fewest GPU-hours, or where nothing
    else fits. `apart` says where the language model is, where that is settled.
    """
    run, room = stack[0], memory * USABLE
    cuts = []
    for placement in placements(run, room):
        settled_otherwise = apart is not None and apart != bool(placement.lm_gpus)
        most = largest_part(run, len(stack), placement.fixed, room)
        if most and not settled_otherwise:
            cuts.append(cut_evenly(stack, most, placement))
    if cuts:
        return min(cuts, key=gpu_operations)
    fixed = {} if apart else lm_memory(run)
    return cut_evenly(stack, 1, Placement(fixed, NO_ROOM, lm_gpus(run, room)))


def placements(run: Run, room: int | float) -> list[Placement]:
    """Where buffer and language model can be: beside the SAEs first, last both elsewhere."""
    buffer, model = {"buffer": buffer_bytes(run)}, lm_memory(run)
    gpus = lm_gpus(run, room)
    model_away = f"LM on {gpus} GPU{'s' * (gpus > 1)} of its own"
    buffer_away = "buffer in the host's memory"
    return [
        Placement(model | buffer, "", 0),
        Placement(model, buffer_away, 0),
        Placement(buffer, model_away, gpus),
        Placement({}, f"{model_away}, {buffer_away}", gpus),
    ]


def buffer_bytes(run: Run) -> int:
    return limits.BUFFER * limits.row_bytes(run) if limits.streams(run) else 0


def lm_memory(run: Run) -> dict[str, int]:
    return {"LM": cost.lm_bytes(run.lm)}


def lm_gpus(run: Run, room: int | float) -> int:
    """GPUs that a language model takes where it has its own."""
    need = cost.lm_bytes(run.lm) + cost.splice_bytes(run) + cost.forward_bytes(run)
    return -(-need // int(room))


def largest_part(run: Run, count: int, fixed: dict[str, int], room: int | float) -> int:
    """The most of `count` runs like this one that have room beside what is fixed; 0 where not one
    has.
    """
    for size in range(count, 0, -1):
        if sum(part_memory(run, size, fixed).values()) <= room:
            return size
    return 0


def part_memory(run: Run, count: int, fixed: dict[str, int]) -> dict[str, int]:
    """Bytes on a GPU that trains `count` runs like this one, by what they are for."""
    work = cost.work_bytes(run, count, lm="LM" in fixed)
    return {"SAEs": count * cost.held_bytes(run), "work": work, **fixed}


def cut_evenly(stack: Sequence[Run], most: int, placement: Placement) -> list[Part]:
    """Parts of at most `most` runs and nearly equal size, each of which reads the whole text.
    Without the first of them the others stay what they are, so that a sweep is cut alike before and
    after an interruption.
    """
    left, pieces = list(stack), []
    while left:
        parts_left = -(-len(left) // most)
        size = len(left) // parts_left
        pieces.append(make_part(tuple(left[:size]), placement))
        left = left[size:]
    return pieces


def make_part(runs: tuple[Run, ...], placement: Placement) -> Part:
    run = runs[0]
    flops = {
        "train": sum(map(cost.train_flops, runs)),
        "harvest": cost.harvest_flops(run),
        "evaluate": cost.site_flops(run) + sum(map(cost.evaluation_flops, runs)),
    }
    memory = part_memory(run, len(runs), placement.fixed)
    return Part(runs, memory, flops, placement.where, placement.lm_gpus)


def gpu_operations(parts: Sequence[Part]) -> int:
    """Operations as GPU-hours count them: the GPUs of the language model are held meanwhile."""
    return sum(part.operations * part.gpus for part in parts)


def host_bytes(parts: Sequence[Part]) -> int:
    """Bytes of the host's memory beside a GPU that trains the parts of one stack, Python and torch
    left out.
    """
    first = parts[0]
    run = first.runs[0]
    buffer = 0 if "buffer" in first.memory else buffer_bytes(run)
    states = [cost.state_bytes(part.runs[0], len(part.runs)) for part in parts]
    return cost.held_out_bytes(run) + buffer + max(states)
