"""A sweep on several GPUs: how they share it, and for how many hours. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass

from gsae.evidence.run import Run
from gsae.experiments.gpu_parts import Part
from gsae.experiments.gpus import GPU, UTILISATION


@dataclass(frozen=True)
class Sweep:
    """Runs, cut into parts that a GPU of one kind holds, and how many such GPUs there are."""

    runs: Sequence[Run]
    stacks: list[list[Part]]
    name: str  # of the GPU
    gpu: GPU
    gpus: int
    utilisation: int | float

    @property
    def parts(self) -> list[Part]:
        return [part for parts in self.stacks for part in parts]

    @property
    def groups(self) -> int:
        """Groups of GPUs that train at the same time: more than one GPU each where the language
        model has its own.
        """
        return max(1, self.gpus // max(part.gpus for part in self.parts))

    @property
    def apart(self) -> bool:
        """Whether the language model has GPUs of its own in each group."""
        return self.groups < self.gpus

    @property
    def data_parallel(self) -> bool:
        """Whether all GPUs train one stack after another: there are fewer stacks than GPUs."""
        return not self.apart and len(self.stacks) < self.gpus

    def hours(self, part: Part) -> float:
        """Hours of the GPU that trains."""
        return hours(part, self.gpu, self.utilisation)

    def gpu_hours(self, parts: Sequence[Part]) -> float:
        """Hours of all GPUs that are held meanwhile."""
        return sum(self.hours(part) * part.gpus for part in parts)

    def stack_hours(self, parts: Sequence[Part]) -> float:
        """Until one GPU is done with a stack."""
        return sum(self.hours(part) for part in parts)

    def wall_hours(self) -> float:
        """Until all stacks are done."""
        stacks = [self.stack_hours(parts) for parts in self.stacks]
        return shared_out(stacks, self.groups, together=not self.apart)


def hours(part: Part, gpu: GPU, utilisation: int | float = UTILISATION) -> float:
    """Hours of one GPU."""
    return part.operations / (gpu.tflops * 1e12 * utilisation) / 3600


def shared_out(costs: Sequence[int | float], gpus: int, together: bool = True) -> float:
    """Hours until the last GPU is done: the longest stack first, each to the GPU that is free
    first. With fewer stacks than GPUs, all train one stack after another, data-parallel, where they
    can work `together`.
    """
    if together and len(costs) < gpus:
        return sum(costs) / gpus
    busy = [0.0] * gpus
    for hours_of_stack in sorted(costs, reverse=True):
        busy[busy.index(min(busy))] += hours_of_stack
    return max(busy)
