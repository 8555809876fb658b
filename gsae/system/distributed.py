"""Several processes on one sweep: `torchrun --nproc-per-node N -m gsae run …`.

The harvest is split over ranks by blocks. With at least as many stacks as ranks, each rank trains
stacks of its own; with fewer, all ranks train one stack after another, each on its slice of every
batch, with gradients averaged. A process alone never loads torch.distributed.
"""

import atexit
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

# longest wait for another rank inside training: all take the same step
STEP = timedelta(minutes=30)
TURN = timedelta(hours=48)  # longest wait for another rank's share of the work


class RankError(RuntimeError):
    """The processes cannot share this out; the message says what would fit."""


class Alone:
    """One process. What several do together is here done by itself, or nothing."""

    rank, world = 0, 1
    first = True  # whether it speaks, and writes, for all
    label = ""  # of its own files

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """The first rank's view: files may appear between one rank's look and another's."""
        return list(flags)

    def barrier(self, what: str) -> None:
        """Wait until every rank is here. Raises RankError, naming `what` was waited for, when one
        never comes.
        """

    def share(self, count: int) -> tuple[int, int]:
        """The part of `count` items, first and last + 1, that this rank takes."""
        return 0, count

    def slice(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "_ n"]:
        """This rank's rows of a global batch."""
        return x

    def mean(self, grads: dict, terms: dict, stats: dict) -> tuple[dict, dict, dict]:
        """Gradients, terms, `l0`, `fired` and `spoiled` of the global batch, from each rank's
        slice.
        """
        return grads, terms, stats

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by the first rank's, in place."""

    def any(self, flag: bool) -> bool:
        return flag


ALONE = Alone()


class Ranks(Alone):
    """The processes that torchrun started: NCCL between GPUs, Gloo between CPUs."""

    def __init__(self):
        import torch.distributed as dist

        self.dist = dist
        local = int(os.environ.get("LOCAL_RANK", 0))
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            take_gpu(local)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=STEP)
            atexit.register(dist.destroy_process_group)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.first = self.rank == 0
        self.label = f"-{self.rank}of{self.world}"
        self.patient = dist.new_group(backend="gloo", timeout=TURN)  # waits of hours, on the host
        self.node = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        self.device = torch.device("cuda", local) if on_gpu else torch.device("cpu")

    def agree(self, flags):
        seen = torch.tensor([*flags], dtype=torch.uint8)
        self.dist.broadcast(seen, 0, group=self.patient)
        return seen.bool().tolist()

    def barrier(self, what):
        try:
            self.dist.monitored_barrier(self.patient, TURN)
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} waited for {what}, and another rank never came: {error}"
            ) from error

    def share(self, count):
        # The first node's ranks alone: they write into one memory map, which network disks do not
        # keep coherent.
        ranks = min(self.node, self.world)
        if self.rank >= ranks:
            return count, count
        return count * self.rank // ranks, count * (self.rank + 1) // ranks

    def slice(self, x):
        if len(x) % self.world:
            raise RankError(
                f"a batch of {len(x):,} rows cannot be shared evenly by {self.world} ranks: start "
                "a number of them that divides it"
            )
        return x.chunk(self.world)[self.rank]

    def mean(self, grads, terms, stats):
        parts = [*grads.values(), *terms.values(), stats["l0"], stats["fired"], stats["spoiled"]]
        # one message for all of them, in float32: sums in bf16 lose bits
        flat = torch.cat([part.float().flatten() for part in parts])
        self.dist.all_reduce(flat)
        pieces = flat.split([part.numel() for part in parts])
        shaped = zip(pieces, parts, strict=True)
        sums = iter([piece.view(part.shape) for piece, part in shaped])
        # each takes its sum, in the order of `parts`
        grads = {name: next(sums) / self.world for name in grads}
        terms = {name: next(sums) / self.world for name in terms}
        l0 = next(sums) / self.world
        fired, spoiled = next(sums) > 0, next(sums) > 0
        return grads, terms, {**stats, "l0": l0, "fired": fired, "spoiled": spoiled}

    def same(self, tensors):
        for tensor in tensors:
            self.dist.broadcast(tensor, 0)

    def any(self, flag):
        seen = torch.tensor(float(flag), device=self.device)
        self.dist.all_reduce(seen)
        return bool(seen)


def take_gpu(local: int) -> None:
    """Compute on the GPU of a rank of this node. Raises RankError where there is none."""
    count = torch.cuda.device_count()
    if local >= count:
        raise RankError(f"rank {local} of this node has no GPU: it has {count}. Lower N")
    torch.cuda.set_device(local)


def start() -> Alone:
    """The ranks that torchrun started, or ALONE. Ranks other than the first then print nothing to
    stdout.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or "RANK" not in os.environ:
        return ALONE
    return _join()


@cache
def _join() -> Ranks:
    ranks = Ranks()
    if not ranks.first:
        sys.stdout = open(os.devnull, "w")
    return ranks


def dealt(work: Sequence[int | float], world: int) -> list[int]:
    """The rank of each piece of work: the largest first, each to the rank with the least so far."""
    load, owner = [0.0] * world, [0] * len(work)
    largest_first = sorted(range(len(work)), key=lambda i: (-work[i], i))
    for i in largest_first:
        owner[i] = load.index(min(load))
        load[owner[i]] += work[i]
    return owner


@contextmanager
def only(ranks: Alone, lock):
    """Hold a lock on behalf of all ranks: the first one takes it, the others go on once it has."""
    if ranks.first:
        with lock:
            ranks.agree([True])
            yield
    else:
        ranks.agree([True])
        yield
