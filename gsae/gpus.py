"""`gsae plan`: what a sweep takes on GPUs, and how to share it out. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gsae import plan, sizes
from gsae.experiments import Run


@dataclass(frozen=True)
class GPU:
    """GB of memory, dense bf16 TFLOP/s, and a price per hour, for which any rental or cluster has its own."""

    memory: int | float
    tflops: int | float
    price: int | float


DATED = "2026-11"
# ASSUMPTIONS as of DATED: memory and rate as in the vendors' data sheets, price a round on-demand figure in US $
GPUS = {
    "t4": GPU(16, 8.1, 0.35),  # has no bf16 units: its fp32 rate
    "l4": GPU(24, 121, 0.7),
    "a100": GPU(80, 312, 1.6),
    "h100": GPU(80, 989, 2.5),
    "h200": GPU(141, 989, 3.5),
    "b200": GPU(180, 2250, 5.0),
}
UTILISATION = 0.4  # ASSUMPTION: share of that rate which training and forward passes reach
USABLE = 0.92  # of a GPU's memory; the rest goes to the driver and to fragments


@dataclass(frozen=True)
class Part:
    """Some runs of one stack, which train together: bytes on a GPU by what they are for, operations by phase."""

    runs: tuple[Run, ...]
    memory: dict[str, int]
    flops: dict[str, int]
    where: str  # what is placed elsewhere
    lm_gpus: int  # GPUs that hold nothing but the language model

    @property
    def fits(self) -> bool:
        return self.where != "does not fit"


def parts(stack: Sequence[Run], gpu: GPU) -> list[Part]:
    """A stack cut into parts that a GPU holds, the buffer in the host's memory or the language model on GPUs of its own
    where that takes the fewest GPU-hours, or where nothing else fits.
    """
    run, room = stack[0], gpu.memory * 1e9 * USABLE
    buffer = {"buffer": sizes.BUFFER * sizes.row_bytes(run) if sizes.streams(run) else 0}
    model = {"LM": sizes.lm_bytes(run.lm), "forward": sizes.forward_bytes(run), "splices": sizes.splice_bytes(run)}
    own = -(-sum(model.values()) // int(room))
    apart, host = f"LM on {own} GPU{'s' * (own > 1)} of its own", "buffer in the host's memory"
    places = (model | buffer, "", 0), (model, host, 0), (buffer, apart, own), ({}, f"{apart}, {host}", own)
    found = []
    for fixed, where, lm_gpus in places:
        left = room - sum(fixed.values()) - sizes.step_bytes(run)
        if (most := int(left // sizes.held_bytes(run))) >= 1:
            found.append(_cut(stack, most, fixed, where, lm_gpus))
    if not found:
        return _cut(stack, 1, {}, "does not fit", own)
    return min(found, key=lambda cut: sum(sum(p.flops.values()) * (1 + p.lm_gpus) for p in cut))


def _cut(stack: Sequence[Run], most: int, fixed: dict[str, int], where: str, lm_gpus: int) -> list[Part]:
    """Parts of at most `most` runs and nearly equal size; each reads the whole text."""
    run, number, found = stack[0], -(-len(stack) // most), []
    for i in range(number):
        some = tuple(stack[i * len(stack) // number : (i + 1) * len(stack) // number])
        memory = {"SAEs": len(some) * sizes.held_bytes(run), "step": sizes.step_bytes(run), **fixed}
        flops = {"train": sum(map(sizes.train_flops, some)), "harvest": sizes.harvest_flops(run)}
        flops["evaluate"] = sizes.site_flops(run) + sum(map(sizes.evaluation_flops, some))
        found.append(Part(some, memory, flops, where, lm_gpus))
    return found


def hours(part: Part, gpu: GPU, utilisation: int | float = UTILISATION) -> float:
    """Hours of one GPU."""
    return sum(part.flops.values()) / (gpu.tflops * 1e12 * utilisation) / 3600


def shared_out(costs: Sequence[int | float], gpus: int) -> float:
    """Hours until the last GPU is done: the longest part first, each to the GPU that is free first. With more GPUs than
    parts, each part trains data-parallel on an equal number of them.
    """
    each = max(1, gpus // len(costs))
    free = [0.0] * min(gpus, len(costs))
    for cost in sorted(costs, reverse=True):
        free[free.index(min(free))] += cost / each
    return max(free)


def report(title: str, runs: Sequence[Run], name: str, gpu: GPU, gpus: int, utilisation: int | float) -> str:
    """The plan of a sweep on GPUs, as text."""
    cut = [(stack, parts(stack, gpu)) for stack in plan.stacks(runs)]
    lines = [
        f"{title}: {len(runs)} runs in {len(cut)} stacks, on {gpus} x {name}",
        f"Assumed ({DATED}; --memory, --tflops, --price and --utilisation override): {gpu.memory:g} GB, "
        f"{gpu.tflops:g} TFLOP/s dense bf16 of which {utilisation:.0%} is reached, $ {gpu.price:g} an hour.",
        "GB are 10^9 bytes, operations in EFLOP (10^18), hours and cost of all runs of the line.",
        "",
        f"{'model':12} {'site':12} {'SAE':9} {'M':>7} {'runs':>4} {'in one':>6} | {'SAEs':>5} {'step':>5} {'LM':>5} "
        f"{'fwd':>5} {'eval':>5} {'buf':>5} {'= GB':>6} | {'train':>7} "
        f"{'harvest':>7} {'eval':>6} | {'GPU-h':>7} {'$':>7}",
    ]
    rows: dict[tuple, list[Part]] = {}
    for stack, found in cut:
        rows.setdefault((stack[0].lm, stack[0].site, stack[0].arch, stack[0].M), []).extend(found)
    totals: dict[str, float] = {}
    for (lm, site, arch, M), found in rows.items():
        one = max(found, key=lambda p: sum(p.memory.values()))
        gb = {k: v / 1e9 for k, v in one.memory.items()}
        shown = " ".join(f"{gb.get(k, 0):5.1f}" for k in ("SAEs", "step", "LM", "forward", "splices", "buffer"))
        work = {k: sum(p.flops[k] for p in found) / 1e18 for k in ("train", "harvest", "evaluate")}
        used = sum(hours(p, gpu, utilisation) * (1 + p.lm_gpus) for p in found)
        totals[lm] = totals.get(lm, 0) + used
        lines.append(
            f"{lm:12} {site:12} {arch:9} {M:7} {sum(len(p.runs) for p in found):4} {len(one.runs):6} | {shown} "
            f"{sum(gb.values()):6.1f} | {work['train']:7.1f} {work['harvest']:7.1f} {work['evaluate']:6.2f} | "
            f"{used:7.1f} {used * gpu.price:7.0f}  {one.where}".rstrip()
        )
    every = [p for _, found in cut for p in found]
    disk = {k: v / 1e9 for k, v in plan.disk_bytes(runs).items()}
    host = plan.BASE / 1e9 + max(max(sizes.held_out_bytes(r), sizes.text_bytes(r)) for r in runs) / 1e9
    lines += [""] + [f"{lm:12} {used:9.1f} GPU-hours  $ {used * gpu.price:,.0f}" for lm, used in totals.items()]
    total = sum(totals.values())
    lines.append(f"{'all':12} {total:9.1f} GPU-hours  $ {total * gpu.price:,.0f}")
    lines.append(
        "Disk: " + ", ".join(f"{k} {v:.0f} GB" for k, v in disk.items()) + f", in all {sum(disk.values()):.0f} GB."
    )
    lines.append(f"Host memory: {host:.1f} GB a process, without a buffer that is kept there.")
    if streamed := sum(map(sizes.streams, runs)):
        whole = sum({(r.lm, r.site, r.layer): sizes.store_rows(r) * sizes.row_bytes(r) for r in runs}.values()) / 1e12
        lines.append(
            f"{streamed} runs stream their activations through a buffer of {sizes.BUFFER:,} rows (stores of all sites "
            f"would take {whole:,.1f} TB); every part of a stack reads the text again."
        )
    if bad := [p for p in every if not p.fits]:
        need = max(p.memory["SAEs"] + p.memory["step"] for p in bad) / 1e9 / USABLE
        lines.append(f"DOES NOT FIT: {sum(len(p.runs) for p in bad)} runs need a GPU of {need:.0f} GB at least.")
        return "\n".join(lines)
    groups = max(1, gpus // (1 + max(p.lm_gpus for p in every)))
    wall = shared_out([hours(p, gpu, utilisation) for p in every], groups)
    each = groups // len(every)
    how = f"each of them data-parallel on {each} GPUs" if each > 1 else "longest first, one a GPU at a time"
    extra = (
        ""
        if groups == gpus
        else f" ({groups} groups of {gpus // groups}: one GPU trains, the language model has the rest)"
    )
    lines.append(
        f"Sharding: {len(every)} parts of stacks over {gpus} GPU{'s' * (gpus > 1)}{extra}, {how}: {wall:.1f} hours."
    )
    return "\n".join(lines)


def add_arguments(command) -> None:
    """The options of `gsae plan`."""
    command.add_argument("--gpu", choices=GPUS, default="h100")
    command.add_argument("--gpus", type=int, default=8, help="how many; default 8")
    for option, text in (("memory", "GB of one GPU"), ("tflops", "dense bf16 TFLOP/s"), ("price", "$ an hour")):
        command.add_argument(f"--{option}", type=float, help=f"{text}; default: the table's")
    command.add_argument("--utilisation", type=float, default=UTILISATION, help=f"share reached; default {UTILISATION}")


def show(args, runs: Sequence[Run], at: str) -> str:
    """The text of `gsae plan`. Raises ValueError on a number that makes no sense."""
    own = {k: getattr(args, k) for k in ("memory", "tflops", "price") if getattr(args, k) is not None}
    if args.gpus < 1 or not 0 < args.utilisation <= 1 or any(v <= 0 for v in own.values()):
        raise ValueError("--gpus, --memory, --tflops and --price must be positive, --utilisation above 0 and at most 1")
    gpu = replace(GPUS[args.gpu], **own)
    return report(f"{args.name} at scale {at}", runs, args.gpu, gpu, args.gpus, args.utilisation)
