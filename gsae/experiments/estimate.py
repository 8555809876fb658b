"""Before a run: an estimate of memory, disk and time, and a refusal where they cannot be had. No
torch.
"""

import os
import re
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from gsae.evidence import run_files
from gsae.evidence.run import Run
from gsae.experiments import cost, gpu_parts, gpus, limits
from gsae.experiments.gpu_parts import Part
from gsae.experiments.gpus import GPU, GPUS, UTILISATION

# operations a second where neither a run on record nor the GPU's name tells
SPEED = {"cpu": 1e11, "cuda": 1e13}
LATEST = 50  # run files that are read for the speed


class TooLarge(RuntimeError):
    """A sweep that memory or disk cannot hold; the message says how much, and what to do."""


# ---- What a sweep takes


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
    gpu = GPU(gpu_memory / 1e9, 1, 1)  # rate and price do not matter here
    stacks = [gpu_parts.parts(stack, gpu.memory * 1e9, apart) for stack in cost.stacks(runs)]
    memory = [memory_of(parts, device) for parts in stacks]
    return Estimate(
        host=cost.BASE + max(host for host, _ in memory),
        gpu=max(on_gpu for _, on_gpu in memory),
        disk=sum(cost.disk_bytes(runs, cache).values()),
        seconds=operations(stacks) / speed,
    )


def memory_of(parts: Sequence[Part], device: str) -> tuple[int, int]:
    """Bytes that a stack takes on the host, Python and torch left out, and on the GPU."""
    each = [part.bytes for part in parts]
    if device == "cuda":
        return gpu_parts.host_bytes(parts), max(each)
    return sum(each) + cost.held_out_bytes(parts[0].runs[0]), 0


def operations(stacks: Sequence[Sequence[Part]]) -> int:
    """Of harvest, training and evaluation of stacks in parts. What runs of one site share is
    counted once, but for streamed text, which every part reads again.
    """
    total, seen = 0, set()
    for parts in stacks:
        for part in parts:
            total += sum(run_operations(run) for run in part.runs)
        run = parts[0].runs[0]
        site = run.lm, run.site, run.layer, run.context, run.tokens
        if site not in seen:
            total += cost.site_flops(run)
        if limits.streams(run):
            total += cost.harvest_flops(run) * len(parts)
        elif site not in seen:
            total += cost.harvest_flops(run)
        seen.add(site)
    return total


def run_operations(run: Run) -> int:
    """Of training and evaluating one SAE."""
    return cost.train_flops(run) + cost.evaluation_flops(run)


# ---- How fast a device is


def measured(
    scale: str, device: str = "cpu", card: str = "", products: str = "bfloat16"
) -> tuple[float, str]:
    """Operations a second, and where that is from: the wall times of the latest runs on record of
    such a device, which multiply in the same dtype, else what `gsae plan` assumes of a GPU of this
    name, as its driver gives it.
    """
    rates = rates_on_record(scale, device, products)
    if rates:
        return statistics.median(rates), f"measured in {len(rates)} runs on record"
    gpu = gpus.named(card)
    if gpu:
        speed = GPUS[gpu].tflops * 1e12 * UTILISATION
        return speed, f"assumed of a {gpu.upper()}: no run is on record"
    return SPEED[device], "assumed: no run of such a device is on record"


def rates_on_record(scale: str, device: str, products: str) -> list[float]:
    """Operations a second of the latest runs on record that this device made."""
    rates = []
    for path in islice(latest_first(scale, device, products), LATEST):
        record = run_files.read(path)
        run, provenance = Run.of(record["run"]), record["provenance"]
        seconds = provenance["seconds"]  # a run of less than 0.05 s is recorded as 0.0
        if provenance["device"] == device and limits.known(run.lm) and seconds > 0:
            rates.append(run_operations(run) / seconds)
    return rates


def latest_first(scale: str, device: str, products: str) -> Iterator[Path]:
    """Files of runs that multiplied in this dtype; found by their text, which is much faster than
    to read and check every record.
    """
    paths = run_files.root(scale).glob("*/*.json")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        text = path.read_text()
        of_a_run = '"run": {' in text  # not a result that was computed from runs
        if of_a_run and products_of(text, device, products) == products:
            yield path


def products_of(text: str, device: str, unknown: str) -> str:
    """The dtype that a record names for its products. Processors of runs that do not name it had
    bfloat16; of GPUs nothing is known.
    """
    named = re.search(r'"products": "(\w+)"', text)
    if named:
        return named[1]
    return "bfloat16" if device == "cpu" else unknown


# ---- What this machine has


def free_memory() -> int | None:
    """Bytes of memory that a process can have now; None where the system does not say."""
    system = available_memory()
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's or a Slurm job's
    if system is None or not limit.exists():
        return system
    text = limit.read_text().strip()
    return min(system, int(text)) if text.isdigit() else system


def available_memory() -> int | None:
    """Bytes that the system says are free, as on Linux, else all there are: macOS does not tell
    what is free.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---- Whether it fits


class Demand(NamedTuple):
    """Bytes of one resource that a sweep takes, and those that are free; None: not known."""

    name: str
    size: int
    free: int | None

    @property
    def fits(self) -> bool:
        return self.free is None or self.size <= self.free

    def __str__(self) -> str:
        text = f"{self.name} {self.size / 1e9:.1f} GB"
        return text if self.free is None else f"{text} of {self.free / 1e9:.1f} free"

    def shortage(self) -> str:
        return (
            f"{self.size / 1e9:.1f} GB of {self.name} are needed, {self.free / 1e9:.1f} GB are free"
        )


def check(
    runs: Sequence[Run],
    scale: str,
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
        scale: whose runs on record tell how fast this device is.
        folder: the cache folder: its disk takes stores, checkpoints and weights.
        gpu_free, gpu_memory, card: bytes free and in all on the GPU, and its name, where there is
            one.
        apart: whether the language model is elsewhere than on that GPU.
        products: the dtype in which this machine multiplies.
        force: go on even if it does not fit.

    Raises TooLarge where memory or disk cannot hold it, unless `force`.
    """
    unknown = sorted({run.lm for run in runs if not limits.known(run.lm)})
    if unknown:
        table = "gsae.experiments.limits.SHAPES"
        line = f"no estimate: the shape of {', '.join(unknown)} is not in {table}"
        print(line, file=sys.stderr)
        return line
    speed, source = measured(scale, device, card, products)
    need = estimate(runs, speed, device, folder, gpu_memory, apart)
    demands = demands_of(need, gpu_free, folder)
    shown = ", ".join(str(demand) for demand in demands if demand.size)
    line = (
        f"estimate for {len(runs)} runs: {shown}, about {duration(need.seconds)} "
        f"({speed / 1e9:,.0f} GFLOP/s, {source})"
    )
    print(line, file=sys.stderr)
    if not force:
        refuse_what_does_not_fit(demands)
    return line


def demands_of(need: Estimate, gpu_free: int | None, folder: Path) -> list[Demand]:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of torchrun on this machine
    return [
        Demand("memory", processes * need.host, free_memory()),
        Demand("GPU memory", need.gpu, gpu_free),
        Demand("disk", need.disk, shutil.disk_usage(folder).free),
    ]


def refuse_what_does_not_fit(demands: Sequence[Demand]) -> None:
    """Raises TooLarge."""
    short = [demand.shortage() for demand in demands if not demand.fits]
    if short:
        raise TooLarge(
            f"{'; '.join(short)}. Free some (GSAE_CACHE moves the cache to another disk), take "
            "fewer runs or a smaller scale, or pass --force to try all the same"
        )


def duration(seconds: int | float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
