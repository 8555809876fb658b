"""`make bench`, or `python -m benchmarks`: measures, prints the tables, writes one json file."""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import profile, report
from benchmarks.cases import Case, read_data, write_data
from benchmarks.matmul import Machine
from benchmarks.ours import SPARSE, Ours
from benchmarks.peers import PYTHON, ROOT, SETTINGS, Peer, PeerError, Peers
from gsae.system import files
from gsae.system.devices import training_device

FOLDER = ROOT / "book" / "evidence" / "bench"
REFERENCE = 576, 2304, 2048  # n, M, batch: SmolLM2's width, the `cpu` scale's M and batch
SITES = [("mlp_out", 8), ("resid_post", 20)]


def our_cases(quick: bool) -> list[Case]:
    """Both architectures; one SAE and a stack of 8 over shapes; stack sizes; the paper's 1.5 x;
    widths up to 65,536, with dense products and with sparse ones at several L0.
    """
    make = lambda arch, K, n, M, batch, setting="bf16": Case("gsae", setting, arch, K, n, M, batch)
    archs, (n, M, batch) = ("gated", "baseline"), REFERENCE
    sizes = (1, 8) if quick else (1, 2, 4, 8)
    cases = [make(arch, K, *REFERENCE) for arch in archs for K in sizes]
    cases.append(make("baseline", 1, n, M * 3 // 2, batch))
    if quick:
        return cases
    cases.append(make("baseline", 8, n, M * 3 // 2, batch))
    cases += [
        make(a, K, d, m, b)
        for a in archs
        for K in (1, 8)
        for d in (n, 512)
        for m in (M, 4096)
        for b in (batch, 4096)
    ]
    cases += [make(arch, 1, n, wide, batch) for arch in archs for wide in (2 * M, 16_384)]
    cases += [
        make(arch, 1, n, wide, batch, s)
        for arch in archs
        for wide in (M, 2 * M, 8192, 16_384)
        for s in ("bf16", *SPARSE)
    ]
    cases += [make(arch, 8, *REFERENCE, "sparse, L0 64") for arch in archs]
    cases += [make("gated", 1, n, 65_536, batch, setting) for setting in ("bf16", "sparse, L0 64")]
    cases += [make(arch, 1, *REFERENCE, "fp32") for arch in archs]
    return list(dict.fromkeys(cases))


def peer_cases(quick: bool) -> list[Case]:
    """Every setting of every peer on the gated SAE at two widths, and on the baseline; a sweep of 8
    uncompiled.
    """
    n, M, batch = REFERENCE
    cases = []
    for library, settings in SETTINGS.items():
        for setting in settings:
            if quick and setting not in ("autocast", "outside: autocast"):
                continue
            cases.append(Case(library, setting, "gated", 1, *REFERENCE))
            if not quick:
                cases.append(Case(library, setting, "gated", 1, n, 2 * M, batch))
                cases.append(Case(library, setting, "baseline", 1, *REFERENCE))
            if not quick and setting in (
                "autocast",
                "outside: autocast",
            ):  # each SAE would compile on its own
                cases.append(Case(library, setting, "gated", 8, *REFERENCE))
    return cases


def profiled(cases: Iterable[Case]) -> list[Case]:
    """Those whose step is taken apart: one gated SAE, at the reference's M and at 16,384, dense and
    at L0 64.
    """
    n, M, batch = REFERENCE
    return [
        c
        for c in cases
        if (c.library, c.arch, c.K, c.n, c.batch) == ("gsae", "gated", 1, n, batch)
        and c.M in (M, 16_384)
        and c.setting in ("bf16", "sparse, L0 64")
    ]


def attempt(failed: dict[str, str], name: str, call: Callable):
    """The call's value; where a peer cannot do it, None, and its message in `failed`."""
    try:
        return call()
    except PeerError as error:
        failed[name] = str(error)
        tqdm.write(f"{name}: {error}", file=sys.stderr)


def measure(
    subjects: list, rounds: int, failed: dict[str, str], bar: bool | None = None
) -> dict[str, list]:
    """Rounds of every subject in turn, there and back again, so that a drift of the machine falls
    on all alike.
    """
    readings: dict[str, list] = {s.name: [] for s in subjects}
    with tqdm(
        total=rounds * len(subjects), desc="rounds", disable=bar if bar is None else not bar
    ) as progress:
        for i in range(rounds):
            for subject in subjects if i % 2 == 0 else reversed(subjects):
                if subject.name not in failed:
                    readings[subject.name].append(attempt(failed, subject.name, subject.round))
                progress.update()
    return {name: values if name not in failed else [] for name, values in readings.items()}


def bench(
    cases: Iterable[Case],
    sites: Iterable[tuple] = (),
    *,
    rounds: int = 5,
    seconds: float = 1.0,
    settle: int = 5,
    rows: int = 32_768,
    device: str = "cpu",
    python: Path = PYTHON,
    language_model: Callable | None = None,
    bar: bool | None = None,
) -> dict:
    """Prepare every case, measure in rounds, and return the record.

    Args:
        cases: what to train; a peer's case that fails is a row that says why.
        sites: (site, layer) to harvest.
        rounds: of all subjects in turn.
        seconds: of one timed round of one subject, about; a round has at least one step.
        settle: untimed steps before the first round.
        rows: preloaded activations.
        python: of the peers' environment.
        language_model: `device -> (lm, load in transformers)`; SmolLM2 by default.
    """
    cases, sites, machine, origin = (
        list(cases),
        list(sites),
        report.about_machine(device),
        report.origin(),
    )
    if machine["busy_before"] > 0.1:
        print(
            f"the processors are {machine['busy_before']:.0%} busy before the first round: not a "
            "quiet machine",
            file=sys.stderr,
        )
    subjects, failed, peers = [], {}, {}
    with tempfile.TemporaryDirectory(prefix="gsae-bench-") as folder:
        if cases:
            data = Path(folder) / "data.safetensors"
            write_data(data, {c.n for c in cases}, rows)
            activations = read_data(data)
        for library in {c.library for c in cases} - {"gsae"}:
            peers[library] = Peers(python, data, torch.get_num_threads())
        for shape in dict.fromkeys(c.shape for c in cases):
            subjects += [Machine(shape, dtype, seconds, device) for dtype in ("bf16", "fp32")]
        for case in tqdm(cases, desc="compile and settle", disable=bar if bar is None else not bar):
            if case.library == "gsae":
                subjects.append(Ours(case, activations[case.n], seconds, settle, device))
            else:
                made = attempt(
                    failed,
                    case.name,
                    lambda c=case: Peer(c, peers[c.library], seconds, settle, device),
                )
                subjects += [made] if made else []
        if sites:
            from benchmarks import harvest

            lm, plain = (language_model or harvest.load)(device)
            for site in sites:
                subjects += [
                    harvest.Harvest(lm, *site, seconds),
                    harvest.Bare(lm, plain(), *site, seconds),
                ]
        readings = measure(subjects, rounds, failed, bar)
        training = {
            c: {"rounds": readings.get(c.name, []), "error": failed.get(c.name)} for c in cases
        }
        products = {
            (s.shape, s.dtype): readings[s.name] for s in subjects if isinstance(s, Machine)
        }
        harvests = {}
        for subject in subjects:
            if isinstance(subject, Ours | Peer) and subject.name not in failed:
                training[subject.case]["about"] = subject.about()
            elif hasattr(subject, "tokens"):
                harvests[subject.name] = {
                    "rounds": readings[subject.name],
                    "tokens": subject.tokens,
                }
                subject.close()
        for peer in peers.values():
            peer.close()
    table = report.training_rows(training, products) + report.machine_rows(products)
    if device == "cpu" and (parts := profiled(cases)):
        table += [
            profile.shares(c, activations[c.n]) for c in tqdm(parts, desc="profile", disable=None)
        ]
    table += report.harvest_rows(harvests) + report.cost_rows(training)
    settings = dict(
        rounds=rounds, seconds=seconds, settle=settle, rows=rows, threads=torch.get_num_threads()
    )
    return report.record(
        table, settings, next(iter(peers.values())).versions if peers else {}, machine, origin
    )


def write(record: dict, path: Path) -> None:
    files.write_json(path, record, indent=1, allow_nan=False, end="\n")


def default_path(record: dict, whole: bool) -> Path:
    """`<machine>-<date>.json`, where the book finds it if everything was measured; the machine is
    its device or processor, and its threads."""
    machine = record["machine"]
    name = (
        machine["device"]
        if machine["device"] != "cpu"
        else f"{machine['cpu']} {machine['threads']}t"
    )
    folder = FOLDER if whole else ROOT / "_build" / "bench"
    return folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{record['date']}.json"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    top.add_argument(
        "--quick",
        action="store_true",
        help="few cases, 3 rounds of half a second; not for publication",
    )
    top.add_argument(
        "--only",
        metavar="REGEX",
        help="cases whose name matches, such as 'gsae.*gated x1 ' or harvest",
    )
    top.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    top.add_argument("--rounds", type=int, help="rounds of all cases in turn; 5")
    top.add_argument(
        "--seconds", type=float, help="about how long a timed round of one case lasts; 1"
    )
    top.add_argument(
        "--settle", type=int, default=5, help="untimed training steps before the first round; 5"
    )
    top.add_argument("--no-peers", action="store_true", help="measure no other library")
    top.add_argument("--no-harvest", action="store_true", help="load no language model")
    top.add_argument("--device", default=training_device())
    top.add_argument(
        "--threads", type=int, help="of torch, here and in the peers; by default torch's own number"
    )
    top.add_argument(
        "--out",
        type=Path,
        help="the json file; by default <machine>-<date>.json in book/evidence/bench, or in "
        "_build/bench if not everything was measured",
    )
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    wanted = re.compile(args.only or "").search
    cases = our_cases(args.quick) + ([] if args.no_peers else peer_cases(args.quick))
    cases = [c for c in cases if wanted(c.name)]
    sites = (
        []
        if args.no_harvest
        else [s for s in SITES[: 1 if args.quick else None] if wanted(f"harvest {s[0]} {s[1]}")]
    )
    if args.list:
        print(
            "\n".join(
                [c.name for c in cases] + [f"harvest {site} {layer}" for site, layer in sites]
            )
        )
        return 0
    if not cases and not sites:
        print(f"no case matches {args.only!r}: see --list", file=sys.stderr)
        return 1
    if any(c.library != "gsae" for c in cases) and not PYTHON.exists():
        print(f"{PYTHON} is not there: run `make peers`, or pass --no-peers", file=sys.stderr)
        return 1
    if args.threads:
        torch.set_num_threads(args.threads)
    rounds, seconds = (
        args.rounds or (3 if args.quick else 5),
        args.seconds or (0.5 if args.quick else 1.0),
    )
    record = bench(
        cases, sites, rounds=rounds, seconds=seconds, settle=args.settle, device=args.device
    )
    whole = rounds >= 5 and not (args.quick or args.only or args.no_peers or args.no_harvest)
    path = args.out or default_path(record, whole)
    write(record, path)
    print(f"{report.terminal(record)}\n\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
