"""Before a run: an estimate of memory, disk and time, and a refusal where they cannot be had. No
torch.
"""

import os
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gsae.evidence.run import Run
from gsae.experiments import cost, limits
from gsae.experiments.cost import BASE, disk_bytes, stacks

SPEED = {
    "cpu": 1e11,
    "cuda": 1e13,
}  # operations a second where neither a run on record nor the GPU's name tells
LATEST = 50  # run files that are read for the speed


class TooLarge(RuntimeError):
    """A sweep that memory or disk cannot hold; the message says how much, and what to do."""


@dataclass(frozen=True)
class Estimate:
    """Peak bytes of memory on the host and on the GPU, bytes to be written to disk, seconds."""

    host: int
    gpu: int
    disk: int
    seconds: float


def estimate(
    runs: Sequence[Run],
    speed: int | float,
    device: str = "cpu",
    cache: Path | None = None,
    gpu_memory: int | float = 1e18,
    apart: bool = False,
) -> Estimate:
    """What training and evaluating these runs takes, one stack after another, in one process.

    Args:
        speed: operations a second, of training and evaluation together; see `measured`.
        device: where the SAEs and the language model are: "cpu", or "cuda" for one GPU.
        cache: the cache folder, to leave out stores that are there.
        gpu_memory: bytes of the GPU; a stack that is too large for it trains in parts.
        apart: whether the language model is elsewhere than on that GPU.

    Raises KeyError on a language model whose shape is not known.
    """
    from gsae.experiments import gpu_parts  # which reads plans itself

    host, on_gpu, work, sites = [], [0], 0, set()
    for stack in stacks(runs):
        run = stack[0]
        cut = gpu_parts.parts(stack, gpu_parts.GPU(gpu_memory / 1e9, 1, 1), apart)
        memory = [sum(part.memory.values()) for part in cut]
        if device == "cuda":
            on_gpu += memory
            host.append(gpu_parts.host_bytes(cut))
        else:
            host.append(sum(memory) + cost.held_out_bytes(run))
        work += sum(cost.train_flops(r) + cost.evaluation_flops(r) for r in stack)
        place = run.lm, run.site, run.layer, run.context, run.tokens
        if place not in sites:
            work += cost.site_flops(run)
        if place not in sites or limits.streams(run):
            work += cost.harvest_flops(run) * (len(cut) if limits.streams(run) else 1)
        sites.add(place)
    return Estimate(
        BASE + max(host), max(on_gpu), sum(disk_bytes(runs, cache).values()), work / speed
    )


def like(text: str, device: str, products: str) -> bool:
    """Whether a file is of a run, not of a result computed from runs, and of one that multiplied in
    this dtype.

    Processors of runs that do not name it had bfloat16; of GPUs nothing is known.
    """
    named = re.search(r'"products": "(\w+)"', text)
    known = named[1] if named else "bfloat16" if device == "cpu" else products
    return '"run": {' in text and known == products


def measured(
    at: str, device: str = "cpu", card: str = "", products: str = "bfloat16"
) -> tuple[float, str]:
    """Operations a second, and where that is from: the wall times of the latest runs on record of
    such a device, which multiply in the same dtype, else what `gsae plan` assumes of a GPU of this
    name, as its driver gives it.
    """
    from gsae.evidence import run_files
    from gsae.experiments import gpu_parts

    rates = []
    files = sorted(
        run_files.root(at).glob("*/*.json"), key=lambda f: f.stat().st_mtime, reverse=True
    )
    for record in map(
        run_files.read, islice((f for f in files if like(f.read_text(), device, products)), LATEST)
    ):
        run, origin = Run.of(record["run"]), record["provenance"]
        timed = origin["seconds"] > 0  # a run of less than 0.05 s is recorded as 0.0
        if origin["device"] == device and limits.known(run.lm) and timed:
            rates.append((cost.train_flops(run) + cost.evaluation_flops(run)) / origin["seconds"])
    if rates:
        return statistics.median(rates), f"measured in {len(rates)} runs on record"
    if named := gpu_parts.named(card):
        return (
            gpu_parts.GPUS[named].tflops * 1e12 * gpu_parts.UTILISATION,
            f"assumed of a {named.upper()}: no run is on record",
        )
    return SPEED[device], "assumed: no run of such a device is on record"


def free_memory() -> int | None:
    """Bytes of memory that a process can have now; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):
        if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
            return None
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf(
            "SC_PAGE_SIZE"
        )  # all there is: macOS does not tell what is free
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's or a Slurm job's
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        found = min(found, int(text))
    return found


def duration(seconds: int | float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def check(
    runs: Sequence[Run],
    at: str,
    folder: Path,
    device: str = "cpu",
    gpu_free: int | None = None,
    force: bool = False,
    gpu_memory: int | float = 1e18,
    card: str = "",
    apart: bool = False,
    products: str = "bfloat16",
) -> str:
    """Print one line with the estimate to stderr, and return it.

    Args:
        folder: the cache folder: its disk takes stores, checkpoints and weights.
        gpu_free, gpu_memory, card: bytes free and in all on the GPU, and its name, where there is
            one.
        apart: whether the language model is elsewhere than on that GPU.
        products: the dtype in which this machine multiplies.
        force: go on even if it does not fit.

    Raises TooLarge where memory or disk cannot hold it, unless `force`.
    """
    if unknown := sorted({r.lm for r in runs if not limits.known(r.lm)}):
        line = (
            f"no estimate: the shape of {', '.join(unknown)} is not in gsae.experiments.cost.SHAPES"
        )
        print(line, file=sys.stderr)
        return line
    speed, source = measured(at, device, card, products)
    need, free_disk = (
        estimate(runs, speed, device, folder, gpu_memory, apart),
        shutil.disk_usage(folder).free,
    )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of torchrun on this machine
    wanted = {
        "memory": (processes * need.host, free_memory()),
        "GPU memory": (need.gpu, gpu_free),
        "disk": (need.disk, free_disk),
    }
    shown = [
        f"{name} {size / 1e9:.1f} GB" + (f" of {free / 1e9:.1f} free" if free is not None else "")
        for name, (size, free) in wanted.items()
        if size
    ]
    line = (
        f"estimate for {len(runs)} runs: {', '.join(shown)}, about {duration(need.seconds)} "
        f"({speed / 1e9:,.0f} GFLOP/s, {source})"
    )
    print(line, file=sys.stderr)
    short = [
        f"{size / 1e9:.1f} GB of {name} are needed, {free / 1e9:.1f} GB are free"
        for name, (size, free) in wanted.items()
        if free is not None and size > free
    ]
    if short and not force:
        raise TooLarge(
            f"{'; '.join(short)}. Free some (GSAE_CACHE moves the cache to another disk), take "
            "fewer runs or a smaller "
            "scale, or pass --force to try all the same"
        )
    return line
