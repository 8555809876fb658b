"""`gsae plan`: what a sweep takes on GPUs, and how to share it out. Standard library only."""

from collections.abc import Sequence
from dataclasses import replace

from gsae.evidence.run import Run
from gsae.experiments import cost as sizes
from gsae.experiments import limits
from gsae.experiments.gpu_parts import (
    DATED,
    GPU,
    GPUS,
    NODE,
    USABLE,
    UTILISATION,
    Part,
    _memory,
    host_bytes,
    parts,
)


def hours(part: Part, gpu: GPU, utilisation: int | float = UTILISATION) -> float:
    """Hours of one GPU."""
    return sum(part.flops.values()) / (gpu.tflops * 1e12 * utilisation) / 3600


def shared_out(costs: Sequence[int | float], gpus: int, together: bool = True) -> float:
    """Hours until the last GPU is done: the longest stack first, each to the GPU that is free
    first. With fewer stacks than GPUs, all train one stack after another, data-parallel, where they
    can work `together`.
    """
    if together and len(costs) < gpus:
        return sum(costs) / gpus
    free = [0.0] * gpus
    for cost in sorted(costs, reverse=True):
        free[free.index(min(free))] += cost
    return max(free)


def report(
    title: str, runs: Sequence[Run], name: str, gpu: GPU, gpus: int, utilisation: int | float
) -> str:
    """The plan of a sweep on GPUs, as text."""
    cut = [(stack, parts(stack, gpu)) for stack in sizes.stacks(runs)]
    every = [p for _, found in cut for p in found]
    large = sum(sum(p.flops.values()) for p in every) > 1e19
    unit, word = (1e18, "EFLOP (10^18)") if large else (1e15, "PFLOP (10^15)")
    lines = [
        f"{title}: {len(runs)} runs in {len(cut)} stacks, on {gpus} x {name}",
        f"Assumed ({DATED}; --memory, --tflops, --price and --utilisation override): "
        f"{gpu.memory:g} GB, "
        f"{gpu.tflops:g} TFLOP/s dense {'fp32' if name == 't4' else 'bf16'} of which "
        f"{utilisation:.0%} is reached, "
        f"$ {gpu.price:g} an hour.",
        f"GB are 10^9 bytes, operations in {word}, hours and cost of all runs of the line.",
        "SAEs: weights and Adam state; work: a training step beside the harvest, or an evaluation "
        "if that takes more.",
        "",
        f"{'model':12} {'site':12} {'SAE':9} {'M':>7} {'runs':>4} {'in one':>6} | {'SAEs':>5} "
        f"{'work':>5} {'LM':>5} "
        f"{'buf':>5} {'= GB':>6} | {'train':>7} {'harvest':>7} {'eval':>6} | {'GPU-h':>7} {'$':>7}",
    ]
    rows: dict[tuple, list[Part]] = {}
    for stack, found in cut:
        rows.setdefault((stack[0].lm, stack[0].site, stack[0].arch, stack[0].M), []).extend(found)
    totals: dict[str, float] = {}
    for (lm, site, arch, M), found in rows.items():
        one = max(found, key=lambda p: sum(p.memory.values()))
        gb = {k: v / 1e9 for k, v in one.memory.items()}
        shown = " ".join(f"{gb.get(k, 0):5.1f}" for k in ("SAEs", "work", "LM", "buffer"))
        work = {k: sum(p.flops[k] for p in found) / unit for k in ("train", "harvest", "evaluate")}
        used = sum(hours(p, gpu, utilisation) * (1 + p.lm_gpus) for p in found)
        totals[lm] = totals.get(lm, 0) + used
        lines.append(
            f"{lm:12} {site:12} {arch:9} {M:7} {sum(len(p.runs) for p in found):4} "
            f"{len(one.runs):6} | {shown} "
            f"{sum(gb.values()):6.1f} | {work['train']:7.1f} {work['harvest']:7.1f} "
            f"{work['evaluate']:6.2f} | "
            f"{used:7.1f} {used * gpu.price:7.0f}  {one.where}".rstrip()
        )
    groups = max(1, gpus // (1 + max(p.lm_gpus for p in every)))
    # checkpoints, beside those that they replace
    at_once = 1 if groups == gpus > len(cut) else min(groups, len(cut))
    disk = sizes.disk_bytes(runs) | {
        "checkpoints": 2 * at_once * max(p.memory["SAEs"] for p in every)
    }
    disk = {k: v / 1e9 for k, v in disk.items()}
    host = (sizes.BASE + max(host_bytes(found) for _, found in cut)) / 1e9
    lines += [""] + [
        f"{lm:12} {used:9.1f} GPU-hours  $ {used * gpu.price:,.0f}" for lm, used in totals.items()
    ]
    total = sum(totals.values())
    lines.append(f"{'all':12} {total:9.1f} GPU-hours  $ {total * gpu.price:,.0f}")
    lines.append(
        "Disk: "
        + ", ".join(f"{k} {v:.0f} GB" for k, v in disk.items())
        + f", in all {sum(disk.values()):.0f} GB."
    )
    lines.append(f"Host memory: {host:.1f} GB for each GPU that trains.")
    if streamed := sum(map(limits.streams, runs)):
        whole = (
            sum(
                {
                    (r.lm, r.site, r.layer): limits.store_rows(r) * limits.row_bytes(r)
                    for r in runs
                }.values()
            )
            / 1e12
        )
        lines.append(
            f"{streamed} runs stream their activations through a buffer of {limits.BUFFER:,} rows "
            "(stores of all sites "
            f"would take {whole:,.1f} TB); every part of a stack reads the text again."
        )
    if bad := [p for p in every if not p.fits]:
        need = max(sum(_memory(p.runs[0], 1, {}).values()) for p in bad) / 1e9 / USABLE
        lines.append(
            f"DOES NOT FIT: {sum(len(p.runs) for p in bad)} runs need a GPU of {need:.0f} GB at "
            "least."
        )
        return "\n".join(lines)
    costs = [sum(hours(p, gpu, utilisation) for p in found) for _, found in cut]
    wall = shared_out(costs, groups, groups == gpus)
    how = (
        "the longest first, one GPU each, its parts one after another"
        if gpus > 1
        else "one after another"
    )
    nodes = f"--nnodes {-(-gpus // NODE)} " if gpus > NODE else ""
    command = (
        f"torchrun {nodes}--nproc-per-node {min(gpus, NODE)} -m gsae run"
        if gpus > 1
        else "gsae run"
    )
    if groups < gpus:
        how += (
            f"; {groups} groups of {gpus // groups}, where one GPU trains and the language "
            "model has the rest"
        )
        command = "in each group: CUDA_VISIBLE_DEVICES=0,1 GSAE_LM_DEVICE=cuda:1 gsae run"
    elif len(cut) < gpus:
        how = "one after another, data-parallel on all of them"
    of = f"{gpus} GPU{'s' * (gpus > 1)}"
    lines.append(
        f"Sharding: {len(cut)} stacks, in {len(every)} parts, over {of}: {how}: {wall:.1f} hours."
    )
    lines.append(f"With: {command} {title.replace(' at scale ', ' --scale ')}")
    return "\n".join(lines)


def add_arguments(command) -> None:
    """The options of `gsae plan`."""
    command.add_argument("--gpu", choices=GPUS, default="h100")
    command.add_argument("--gpus", type=int, default=8, help="how many; default 8")
    for option, text in (
        ("memory", "GB of one GPU"),
        ("tflops", "dense bf16 TFLOP/s"),
        ("price", "$ an hour"),
    ):
        command.add_argument(f"--{option}", type=float, help=f"{text}; default: the table's")
    command.add_argument(
        "--utilisation",
        type=float,
        default=UTILISATION,
        help=f"share reached; default {UTILISATION}",
    )


def show(args, runs: Sequence[Run], at: str) -> str:
    """The text of `gsae plan`. Raises ValueError on a number that makes no sense."""
    own = {
        k: getattr(args, k) for k in ("memory", "tflops", "price") if getattr(args, k) is not None
    }
    if args.gpus < 1 or not 0 < args.utilisation <= 1 or any(v <= 0 for v in own.values()):
        raise ValueError(
            "--gpus, --memory, --tflops and --price must be positive, --utilisation above 0 and "
            "at most 1"
        )
    gpu = replace(GPUS[args.gpu], **own)
    return report(f"{args.name} at scale {at}", runs, args.gpu, gpu, args.gpus, args.utilisation)
