"""Which SAEs are compared, and which of their latents are rated: matched in L0, drawn at random,
blinded. No torch.
"""

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from gsae.evidence import result_files, run_files
from gsae.evidence import run as sweeps
from gsae.experiments import records
from gsae.interpretability import latent_files
from gsae.interpretability.rating_files import SCHEMA

ARMS = ("gated", "baseline")  # the last one is the reference
TARGET, TOLERANCE, WINDOW = (
    50.0,
    0.10,
    1.5,
)  # L0 aimed at; the arms' ratio at most 1.1; between 50 / 1.5 and 50 * 1.5
Cell = tuple[str, str, int]


class StudyError(ValueError):
    """A study that cannot be made; says what is missing and how to get it."""


@dataclass(frozen=True)
class SAE:
    """One arm at one place: what matching needs to know. `group`: only SAEs of equal groups may be
    compared.
    """

    run: str
    arm: str
    cell: Cell
    l0: float
    lam: float | None = None
    group: Hashable = None
    latents: tuple[dict, ...] = field(default=(), repr=False, compare=False)
    file: str = ""
    lr: float | None = None


def group_of(run: sweeps.Run) -> Hashable:
    """Equal for runs that differ in architecture, lambda and learning rate alone, the baseline 1.5
    times as wide.
    """
    plain = run if run.arch == "baseline" else sweeps.wider(run)
    return replace(plain, lam=0.0, lr=1.0)


def recorded(scale: str, names: Iterable[str] | None = None) -> list[SAE]:
    """The SAEs on record at a scale, ablations left out; where experiments are named, theirs and
    those stored under their names, as `--train` leaves them.
    """
    root = run_files.root(scale)
    files = {file for name in names or ["*"] for file in root.glob(f"{name}/*.json")}
    for table in (run_files.done(records.load(name, scale)) for name in names or ()):
        files |= {root / file for file in table.get("file", ())}
    found = []
    for file in sorted(files):
        if f'"kind": "{result_files.KIND}"' in file.read_text():  # computed from runs
            continue
        record = run_files.read(file)
        run = sweeps.Run.of(record["run"])
        if run.switches in ({}, sweeps.Run().switches):
            found.append(
                SAE(
                    record["id"],
                    run.arch,
                    (run.lm, run.site, run.layer),
                    record["metrics"]["l0"],
                    run.lam,
                    group_of(run),
                    file=str(file),
                    lr=run.lr,
                )
            )
    return found


def lam_at(saes: Sequence[SAE], l0: float, reach: float = 1.0) -> float:
    """Lambda that gives an L0: log lambda linear in log L0 between neighbours.

    Beyond the ends the line through the outermost and the next one by which L0 falls as lambda
    rises, by at most a factor of `reach` in lambda; else NaN.
    """
    points = sorted((math.log(s.l0), math.log(s.lam)) for s in saes if s.lam and s.l0 > 0)
    x = math.log(l0)
    if points and points[0][0] <= x <= points[-1][0]:
        return sweeps.rounded(math.exp(np.interp(x, *zip(*points, strict=True))))
    if len(points) < 2:
        return math.nan
    (x0, y0), *others = points if x < points[0][0] else points[::-1]
    slopes = ((y1 - y0) / (x1 - x0) for x1, y1 in others if x1 != x0)
    beyond = (x - x0) * next(
        (slope for slope in slopes if slope < 0), math.nan
    )  # a rising one is noise
    return sweeps.rounded(math.exp(y0 + beyond)) if abs(beyond) <= math.log(reach) else math.nan


def place(cell: Cell) -> str:
    return "{} {} layer {}".format(*cell)


def places(saes: Iterable[SAE], arms: Sequence[str] = ARMS) -> dict[Cell, list[list[SAE]]]:
    """Place -> its SAEs of these arms, those of one group together; places in their order.

    First the group that has most SAEs of the arm it has fewest of, then the largest. Of an arm's
    learning rates that of most alone: L0 follows from lambda at one rate, and what was tried beside
    it is nobody's partner.
    """
    found: dict[Cell, dict[Hashable, list[SAE]]] = {}
    for s in sorted((s for s in saes if s.arm in arms and s.l0 > 0), key=lambda s: s.cell):
        found.setdefault(s.cell, {}).setdefault(s.group, []).append(s)

    def usual(group: list[SAE]) -> list[SAE]:
        rate = dict(
            pair for pair, _ in reversed(Counter((s.arm, s.lr) for s in group).most_common())
        )
        return [s for s in group if s.lr == rate[s.arm]]

    def size(group: list[SAE]) -> tuple[int, int]:
        return min(sum(s.arm == arm for s in group) for arm in arms), len(group)

    return {
        cell: sorted(map(usual, groups.values()), key=size, reverse=True)
        for cell, groups in found.items()
    }


def lacking(
    saes: Sequence[SAE], arms: Sequence[str], target: float, tolerance: float
) -> tuple[float, list[str]]:
    """The L0 that a place's SAEs should have, and the arms that have none there.

    It is that of the first arm's SAE nearest to `target`, if that is near enough for its partners
    to be, too. Else `target`: then all arms are named, the first one first, since the L0 that it
    gets is what the others need.
    """
    of = {arm: [s for s in saes if s.arm == arm] for arm in arms}
    far = lambda s, l0: abs(math.log(s.l0 / l0))
    first = min(of[arms[0]], key=lambda s: far(s, target), default=None)
    if first is None or far(first, target) > math.log(WINDOW) - math.log(1 + tolerance) / 2:
        return target, list(arms)
    # Of the first one, so that all are within the tolerance of each other.
    apart = math.log(1 + tolerance) / (len(arms) - 1)
    return first.l0, [arm for arm in arms[1:] if all(far(s, first.l0) > apart for s in of[arm])]


def advice(
    cell: Cell, saes: Sequence[SAE], arms: Sequence[str], target: float, tolerance: float
) -> str:
    """Why a place has no matched SAEs, and what to train: the lambda interpolated from those there
    are.
    """
    text = (
        f"{place(cell)}: no {' and '.join(arms)} SAE within {tolerance:.0%} of one L0 near "
        f"{target:g}. "
    )
    near = {
        arm: min(
            (s for s in saes if s.arm == arm),
            key=lambda s: abs(math.log(s.l0 / target)),
            default=None,
        )
        for arm in arms
    }
    text += (
        "Nearest: "
        + ", ".join(f"{arm} {s.l0:.1f}" if s else f"no {arm} at all" for arm, s in near.items())
        + ". "
    )
    wanted, without = lacking(saes, arms, target, tolerance)
    todo = []
    for arm in without:
        own = [s for s in saes if s.arm == arm]
        lam = lam_at(own, wanted)
        lams = sorted(s.lam for s in own if s.lam)
        beyond = (
            f"outside of the lambdas trained, {lams[0]:g} to {lams[-1]:g}"
            if lams
            else "no lambda is on record"
        )
        todo.append(
            f"{arm} at lambda {lam:g} (interpolated)" if lam == lam else f"{arm} ({beyond})"
        )
    return text + f"For L0 {wanted:.1f}, train {' and '.join(todo)}"


def match(
    saes: Sequence[SAE],
    arms: Sequence[str] = ARMS,
    target: float = TARGET,
    tolerance: float = TOLERANCE,
) -> tuple[dict[Cell, list[SAE]], list[str]]:
    """At each place, one SAE of each arm: L0 within `tolerance` of each other and, of those,
    nearest to `target`.

    Returns:
        place -> SAEs in the order of `arms`; and a sentence for each place that has none, with the
        missing lambda.
    """
    found, problems = {}, []
    for cell, groups in places(saes, arms).items():
        sets = [c for g in groups for c in product(*([s for s in g if s.arm == a] for a in arms))]

        def distance(chosen: Sequence[SAE]) -> tuple[float, float, list[str]]:
            logs = [math.log(s.l0 / target) for s in chosen]
            return abs(sum(logs) / len(logs)), max(logs) - min(logs), [s.run for s in chosen]

        near = [
            c
            for c in sets
            if distance(c)[0] <= math.log(WINDOW) and distance(c)[1] <= math.log(1 + tolerance)
        ]
        if near:
            found[cell] = list(min(near, key=distance))
        else:
            problems.append(advice(cell, groups[0], arms, target, tolerance))
    return found, problems


def read(path: Path, records: dict[str, SAE] | None = None) -> SAE:
    """One file of collected latents (`gsae.interpretability.latents`). Arm and L0 are its
    provenance's, else the run's on record.

    Raises:
        DataError: a damaged file.
        StudyError: neither provenance nor a run on record gives arm or L0. Both name the file.
    """
    held = latent_files.load(path)
    origin = held["provenance"]
    record = (records or {}).get(origin["run"])
    arm = origin.get("arm") or origin.get("arch") or (record and record.arm)
    l0 = origin.get("l0") or (record and record.l0)
    if not arm or not l0:
        raise StudyError(
            f"{path}: its provenance does not say {'l0' if arm else 'arm'}, and its run "
            f"{origin['run']!r} "
            'is not on record: collect it with about={"arm": …, "l0": …}'
        )
    cell = (origin["lm"], origin["site"], origin["layer"])
    return SAE(
        origin["run"] or Path(path).stem,
        arm,
        cell,
        float(l0),
        origin.get("lam") or (record and record.lam),
        record and record.group,
        tuple(held["latents"]),
        str(path),
    )


def collected(paths: Iterable[Path], records: Iterable[SAE] = ()) -> list[SAE]:
    """The SAEs of files of collected latents; a folder stands for all such files in it. Raises
    StudyError.
    """
    files, known = [], {s.run: s for s in records}
    for path in map(Path, paths):
        inside = sorted(
            p for p in path.glob("*.json") if '"latents"' in p.read_text(encoding="utf-8")
        )
        if not path.is_file() and not inside:
            raise StudyError(
                f"{path} has no file of collected latents: make some with "
                "gsae.interpretability.latents"
            )
        files += [path] if path.is_file() else inside
    saes = [read(file, known) for file in files]
    own = {
        s.cell for s in saes if s.group is None
    }  # SAEs of one's own: whoever gives the files says what is compared
    return [replace(s, group=None) if s.cell in own else s for s in saes]


def draw(
    cells: dict[Cell, list[SAE]], pairs: int, pages: int = 1, shared: int = 0, seed: int = 0
) -> tuple[dict, dict[str, dict]]:
    """Draw latents at random at every place, and deal them to pages, blinded.

    Args:
        pairs: pairs of each place on each page, rated on that page alone.
        pages: one for each group of raters; the paper's raters each had their own latents.
        shared: further pairs of each place, the same on every page: they give the agreement between
            raters.

    Returns:
        The key (item -> run, arm, site, layer, latent; never on the page) and item -> collected
        latent.

    Raises:
        StudyError: an SAE with fewer latents than asked for.
    """
    total, rows = shared + pages * pairs, []
    for number, (cell, saes) in enumerate(sorted(cells.items())):
        for place, sae in enumerate(saes):
            alive = [
                latent for latent in sae.latents if latent["max"] > 0
            ]  # the others show nothing to rate
            if len(alive) < total:
                raise StudyError(
                    f"{sae.file or sae.run} has {len(alive)} latents that are ever on, {total} "
                    "are asked "
                    "for: collect more, or ask for fewer pairs or pages"
                )
            chosen = random.Random(f"{seed} {cell} {place}").sample(alive, total)
            for n, latent in enumerate(chosen):
                page, slot = divmod(n - shared, pairs) if n >= shared else (-1, n - shared)
                origin = dict(zip(("lm", "site", "layer"), cell, strict=True))
                rows.append(
                    {
                        "arm": sae.arm,
                        "run": sae.run,
                        **origin,
                        "l0": sae.l0,
                        "latent": latent["latent"],
                        "pair": f"{number}-{n}",
                        "replicate": n,
                        "slot": slot + shared,
                        "page": page + 1,
                        "dashboard": latent,
                    }
                )
    rng = random.Random(f"{seed} order")
    names = iter(dict.fromkeys(f"{rng.getrandbits(40):010x}" for _ in range(2 * len(rows))))
    named = {next(names): row for row in rows}
    shown = {name: row.pop("dashboard") for name, row in named.items()}
    dealt = []
    for page in range(1, pages + 1):
        items = [name for name, row in named.items() if row["page"] in (0, page)]
        rng.shuffle(items)
        dealt.append({"page": page, "items": items})
    digest = hashlib.sha256(json.dumps([named, shown, seed], sort_keys=True).encode()).hexdigest()[
        :10
    ]
    arms = [s.arm for s in next(iter(cells.values()))]
    return {
        "schema": SCHEMA,
        "study": digest,
        "seed": seed,
        "arms": arms,
        "reference": arms[-1],
        "pages": dealt,
        "items": named,
    }, shown
