"""From rounds to rows: medians with their range, useful work, share of the machine's rate, ratio to
a peer's.
"""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import pandas as pd
import torch

from benchmarks import matmul
from benchmarks.cases import Case, flops
from gsae.evidence import provenance

SCHEMA = 1
FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "amx_tile",
    "bf16",
)  # what bf16 products are made of


def spread(values) -> list[float]:
    """Median, least and greatest, five significant digits."""
    return [float(f"{v:.5g}") for v in (median(values), min(values), max(values))]


def training_rows(cases: dict[Case, dict], machine: dict[tuple, list[dict]]) -> list[dict]:
    """One row a training case.

    `cases` maps each to `{"rounds": [seconds a step], …}`; `machine` maps (shape, dtype) to a list
    of rounds of `{product: seconds}`. Shares and ratios are taken round by round, of what was
    measured minutes apart, and then their median: a drift of the machine's clock cancels.
    """
    rates = {
        c: [c.K * c.batch / s for s in timing["rounds"]]
        for c, timing in cases.items()
        if timing["rounds"]
    }
    rows = []
    for case, timing in cases.items():
        row = {
            "kind": "training",
            "name": case.name,
            **vars(case),
            "flops_a_sample": flops(case.arch, case.n, case.M),
        }
        if case not in rates:
            rows.append({**row, "error": timing["error"]})
            continue
        work = [rate * row["flops_a_sample"] for rate in rates[case]]
        row |= {"samples_per_s": spread(rates[case]), "tflops": spread([w / 1e12 for w in work])}
        if roof := machine.get((case.shape, "bf16")):
            roofs = [matmul.rate(case.arch, case.shape, r) for r in roof]
            row["share_of_bf16"] = spread([w / r for w, r in zip(work, roofs, strict=True)])
        for which, settings in (("documented", documented), ("made", lambda c: True)):
            if peer := fastest_peer(case, {c: r for c, r in rates.items() if settings(c)}):
                row[f"fastest_{which}"] = peer.name
                row[f"times_fastest_{which}"] = spread(
                    [a / b for a, b in zip(rates[case], rates[peer], strict=True)]
                )
        rows.append(
            {**row, "rounds": [float(f"{r:.5g}") for r in rates[case]], **timing.get("about", {})}
        )
    return rows


def documented(case: Case) -> bool:
    """Whether a setting is one that the library offers, not one made around it."""
    return not case.setting.startswith("outside")


def fastest_peer(case: Case, rates: dict[Case, list[float]]) -> Case | None:
    """The peer's case of the greatest median on the same task, one SAE or several: peers train
    those in a loop.
    """
    same = [
        c for c in rates if c.library != "gsae" and (c.arch, *c.shape) == (case.arch, *case.shape)
    ]
    return max(same, key=lambda c: median(rates[c]), default=None)


def machine_rows(machine: dict[tuple, list[dict]]) -> list[dict]:
    """One row a shape and dtype: FLOP/s of each product, and of a gated and a baseline step's
    products together.
    """
    rows = []
    for ((n, M, batch), dtype), rounds in machine.items():
        one = 2 * n * M * batch / 1e12
        rows.append({
            "kind": "machine", "dtype": dtype, "n": n, "M": M, "batch": batch,
            "tflops": {arch: spread([matmul.rate(arch, (n, M, batch), r) / 1e12 for r in rounds])
                       for arch in ("gated", "baseline")},
            "products": {name: spread([one / r[name] for r in rounds]) for name in rounds[0]},
        })  # fmt: skip
    return rows


def harvest_rows(passes: dict[str, dict]) -> list[dict]:
    """One row a forward pass; a harvest also as a share of the bare forward of its site."""
    rows = []
    for name, one in passes.items():
        rates = [one["tokens"] / s for s in one["rounds"]]
        row = {"kind": "harvest", "name": name, "tokens_per_s": spread(rates)}
        bare = passes.get(name.replace("[harvest]", "[bare forward]"))
        if bare and bare is not one:
            bare_rates = [bare["tokens"] / s for s in bare["rounds"]]
            row["share_of_bare"] = spread([a / b for a, b in zip(rates, bare_rates, strict=True)])
        rows.append(row)
    return rows


def cost_rows(cases: dict[Case, dict]) -> list[dict]:
    """Seconds of a gated step over a baseline step, at equal width and against 1.5 times the width,
    and the count.
    """
    ours = {
        c: timing["rounds"]
        for c, timing in cases.items()
        if c.library == "gsae" and timing["rounds"]
    }
    rows = []
    for gated, seconds in ours.items():
        for wider in (1.0, 1.5):
            other = Case(
                "gsae",
                gated.setting,
                "baseline",
                gated.K,
                gated.n,
                int(gated.M * wider),
                gated.batch,
            )
            if (
                gated.arch == "gated" and other in ours and gated.setting in matmul.DTYPES
            ):  # others do fewer products
                shared = {k: getattr(gated, k) for k in ("setting", "K", "n", "M", "batch")}
                rows.append(
                    {
                        "kind": "cost",
                        **shared,
                        "wider": wider,
                        "count": round(
                            flops("gated", gated.n, gated.M) / flops("baseline", other.n, other.M),
                            3,
                        ),
                        "measured": spread(
                            [a / b for a, b in zip(seconds, ours[other], strict=True)]
                        ),
                    }
                )
    return rows


def about_machine(device: str) -> dict:
    """Processor, cores, threads, the flags that matter, memory, and how busy it was before the
    first round.
    """
    import psutil

    info = {"model name": platform.processor() or platform.machine()}
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            info |= dict(
                [part.strip() for part in line.split(":", 1)] for line in file if ":" in line
            )
    flags = info.get("flags", info.get("Features", "")).split()  # x86, Arm
    return {
        "device": device if not device.startswith("cuda") else torch.cuda.get_device_name(),
        "cpu": info["model name"],
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [f for f in FLAGS if f in flags],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "busy_before": round(psutil.cpu_percent(interval=1) / 100, 3),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in ("gsae", "torch", "transformers", "transformer-lens"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def origin() -> dict:
    """The commit that is measured: taken before the first round, as the tree may change
    meanwhile.
    """
    return {"commit": provenance.git("rev-parse", "HEAD"), "dirty": provenance.dirty()}


def record(rows: list[dict], settings: dict, peers: dict, machine: dict, origin: dict) -> dict:
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine,
        "settings": settings,
        "versions": versions(),
        "peers": peers,
        **origin,
        "rows": rows,
    }


def terminal(measured: dict) -> str:
    """The record as text tables."""
    from benchmarks import tables

    with pd.option_context("display.width", 200, "display.max_colwidth", 60):
        parts = [
            f"{title}\n{table.to_string(index=False)}"
            for title, table in tables.tables(measured).items()
        ]
    return "\n\n".join([tables.headline(measured), *parts])
