"""`gsae plan`: what a sweep takes on GPUs, and how to share it out. Standard library only."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from gsae.evidence.run import Run
from gsae.experiments import cost, gpu_parts, limits
from gsae.experiments.gpu_parts import USABLE, Part
from gsae.experiments.gpu_sweep import Sweep
from gsae.experiments.gpus import DATED, GPU, GPUS, NODE, UTILISATION

# a row of the table: one language model, site, architecture and width
HEADINGS = (
    "model        site         SAE             M runs in one | "
    " SAEs  work    LM   buf   = GB |   train harvest   eval |   GPU-h       $"
)
ROW = (
    "{lm:12} {site:12} {arch:9} {M:7} {runs:4} {in_one:6} | "
    "{SAEs:5.1f} {work:5.1f} {LM:5.1f} {buffer:5.1f} {GB:6.1f} | "
    "{train:7.1f} {harvest:7.1f} {evaluate:6.2f} | {hours:7.1f} {price:7.0f}  {where}"
)


def report(
    title: str, runs: Sequence[Run], name: str, gpu: GPU, gpus: int, utilisation: int | float
) -> str:
    """The plan of a sweep on GPUs, as text."""
    stacks = [gpu_parts.parts(stack, gpu.memory * 1e9) for stack in cost.stacks(runs)]
    sweep = Sweep(runs, stacks, name, gpu, gpus, utilisation)
    unit = unit_of_work(sweep)
    rows = table_rows(sweep)
    lines = [
        *assumption_lines(title, sweep, unit),
        "",
        HEADINGS,
        *[row_line(row, gpu, unit) for row in rows],
        "",
        *price_lines(rows, gpu),
        disk_line(sweep),
        host_line(sweep),
        *streaming_lines(runs),
    ]
    too_large = [part for part in sweep.parts if not part.fits]
    if too_large:
        lines.append(misfit_line(too_large))
    else:
        lines += sharding_lines(title, sweep)
    return "\n".join(lines)


class Unit(NamedTuple):
    """In which operations are shown."""

    size: float
    name: str


def unit_of_work(sweep: Sweep) -> Unit:
    total = sum(part.operations for part in sweep.parts)
    return Unit(1e18, "EFLOP (10^18)") if total > 1e19 else Unit(1e15, "PFLOP (10^15)")


def assumption_lines(title: str, sweep: Sweep, unit: Unit) -> list[str]:
    gpu, dtype = sweep.gpu, "fp32" if sweep.name == "t4" else "bf16"
    count = f"{len(sweep.runs)} runs in {len(sweep.stacks)} stacks"
    return [
        f"{title}: {count}, on {sweep.gpus} x {sweep.name}",
        f"Assumed ({DATED}; --memory, --tflops, --price and --utilisation override): "
        f"{gpu.memory:g} GB, {gpu.tflops:g} TFLOP/s dense {dtype} of which "
        f"{sweep.utilisation:.0%} is reached, $ {gpu.price:g} an hour.",
        f"GB are 10^9 bytes, operations in {unit.name}, hours and cost of all runs of the line.",
        "SAEs: weights and Adam state; work: a training step beside the harvest, or an evaluation "
        "if that takes more.",
    ]


class Arm(NamedTuple):
    """What the runs of one row have in common."""

    lm: str
    site: str
    arch: str
    M: int


class Row(NamedTuple):
    arm: Arm
    parts: list[Part]
    gpu_hours: float


def table_rows(sweep: Sweep) -> list[Row]:
    parts_of: dict[Arm, list[Part]] = {}
    for parts in sweep.stacks:
        run = parts[0].runs[0]
        arm = Arm(run.lm, run.site, run.arch, run.M)
        parts_of.setdefault(arm, []).extend(parts)
    return [Row(arm, parts, sweep.gpu_hours(parts)) for arm, parts in parts_of.items()]


def row_line(row: Row, gpu: GPU, unit: Unit) -> str:
    """Memory is that of the largest part, operations and hours are those of all."""
    largest = max(row.parts, key=lambda part: part.bytes)
    memory = {  # 0 of what is placed elsewhere
        name: largest.memory.get(name, 0) / 1e9 for name in ("SAEs", "work", "LM", "buffer")
    }
    return ROW.format(
        **row.arm._asdict(),
        runs=sum(len(part.runs) for part in row.parts),
        in_one=len(largest.runs),
        GB=sum(memory.values()),
        hours=row.gpu_hours,
        price=row.gpu_hours * gpu.price,
        where=largest.where,
        train=operations_of("train", row.parts) / unit.size,
        harvest=operations_of("harvest", row.parts) / unit.size,
        evaluate=operations_of("evaluate", row.parts) / unit.size,
        **memory,
    ).rstrip()


def operations_of(phase: str, parts: Sequence[Part]) -> int:
    return sum(part.flops[phase] for part in parts)


def price_lines(rows: Sequence[Row], gpu: GPU) -> list[str]:
    """GPU-hours and their price: of each language model, and in all."""
    totals: dict[str, float] = {}
    for row in rows:
        totals[row.arm.lm] = totals.get(row.arm.lm, 0) + row.gpu_hours
    totals["all"] = sum(totals.values())
    return [
        f"{name:12} {gpu_hours:9.1f} GPU-hours  $ {gpu_hours * gpu.price:,.0f}"
        for name, gpu_hours in totals.items()
    ]


def disk_line(sweep: Sweep) -> str:
    # checkpoints of all stacks that train at the same time, beside those that they replace
    at_once = 1 if sweep.data_parallel else min(sweep.groups, len(sweep.stacks))
    largest = max(part.memory["SAEs"] for part in sweep.parts)
    sizes = cost.disk_bytes(sweep.runs) | {"checkpoints": 2 * at_once * largest}
    sizes = {name: size / 1e9 for name, size in sizes.items()}
    shown = ", ".join(f"{name} {size:.0f} GB" for name, size in sizes.items())
    return f"Disk: {shown}, in all {sum(sizes.values()):.0f} GB."


def host_line(sweep: Sweep) -> str:
    largest = max(gpu_parts.host_bytes(parts) for parts in sweep.stacks)
    return f"Host memory: {(cost.BASE + largest) / 1e9:.1f} GB for each GPU that trains."


def streaming_lines(runs: Sequence[Run]) -> list[str]:
    streamed = sum(limits.streams(run) for run in runs)
    if not streamed:
        return []
    stores = {(run.lm, run.site, run.layer): cost.store_bytes(run) for run in runs}
    return [
        f"{streamed} runs stream their activations through a buffer of {limits.BUFFER:,} rows "
        f"(stores of all sites would take {sum(stores.values()) / 1e12:,.1f} TB); every part of a "
        "stack reads the text again."
    ]


def misfit_line(too_large: Sequence[Part]) -> str:
    runs = sum(len(part.runs) for part in too_large)
    # one SAE at a time, and nothing else on the GPU
    least = [gpu_parts.part_memory(part.runs[0], 1, {}) for part in too_large]
    need = max(sum(memory.values()) for memory in least)
    return f"DOES NOT FIT: {runs} runs need a GPU of {need / 1e9 / USABLE:.0f} GB at least."


def sharding_lines(title: str, sweep: Sweep) -> list[str]:
    gpus = f"{sweep.gpus} GPU{'s' * (sweep.gpus > 1)}"
    how, command = sharing(sweep)
    return [
        f"Sharding: {len(sweep.stacks)} stacks, in {len(sweep.parts)} parts, over {gpus}: {how}: "
        f"{sweep.wall_hours():.1f} hours.",
        f"With: {command} {title.replace(' at scale ', ' --scale ')}",
    ]


def sharing(sweep: Sweep) -> tuple[str, str]:
    """How the GPUs share the stacks, and the command that starts it."""
    longest_first = "the longest first, one GPU each, its parts one after another"
    if sweep.apart:
        groups = f"{sweep.groups} groups of {sweep.gpus // sweep.groups}"
        return (
            f"{longest_first}; {groups}, where one GPU trains and the language model has the rest",
            "in each group: CUDA_VISIBLE_DEVICES=0,1 GSAE_LM_DEVICE=cuda:1 gsae run",
        )
    if sweep.gpus == 1:
        return "one after another", "gsae run"
    nodes = f"--nnodes {-(-sweep.gpus // NODE)} " if sweep.gpus > NODE else ""
    command = f"torchrun {nodes}--nproc-per-node {min(sweep.gpus, NODE)} -m gsae run"
    if sweep.data_parallel:
        return "one after another, data-parallel on all of them", command
    return longest_first, command


# ---- The command


def add_arguments(command: ArgumentParser) -> None:
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


def show(args: Namespace, runs: Sequence[Run], scale: str) -> str:
    """The text of `gsae plan`. Raises ValueError on a number that makes no sense."""
    options = {"memory": args.memory, "tflops": args.tflops, "price": args.price}
    given = {name: value for name, value in options.items() if value is not None}
    not_positive = args.gpus < 1 or any(value <= 0 for value in given.values())
    if not_positive or not 0 < args.utilisation <= 1:
        raise ValueError(
            "--gpus, --memory, --tflops and --price must be positive, --utilisation above 0 and "
            "at most 1"
        )
    gpu = replace(GPUS[args.gpu], **given)
    title = f"{args.name} at scale {scale}"
    return report(title, runs, args.gpu, gpu, args.gpus, args.utilisation)
