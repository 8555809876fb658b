"""The SAEs that a study may compare, as matching needs to know them: of runs on record, and of
files of collected latents. No torch.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from gsae.evidence import result_files, run_files
from gsae.evidence.run import Run, wider
from gsae.experiments import records
from gsae.interpretability import latent_files

Cell = tuple[str, str, int]  # a place: language model, site, layer


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


def place_name(cell: Cell) -> str:
    return "{} {} layer {}".format(*cell)


def of_arm(saes: Iterable[SAE], arm: str) -> list[SAE]:
    return [sae for sae in saes if sae.arm == arm]


def group_of(run: Run) -> Hashable:
    """Equal for runs that differ in architecture, lambda and learning rate alone, the baseline 1.5
    times as wide.
    """
    plain = run if run.arch == "baseline" else wider(run)
    return replace(plain, lam=0.0, lr=1.0)


def run_of(sae: SAE) -> Run:
    """The run on record that an SAE is of."""
    return Run.of(run_files.read(Path(sae.file))["run"])


def recorded(scale: str, names: Iterable[str] | None = None) -> list[SAE]:
    """The SAEs on record at a scale, ablations left out; where experiments are named, theirs and
    those stored under their names, as `--train` leaves them.
    """
    saes = []
    for file in sorted(files_on_record(scale, names)):
        if f'"kind": "{result_files.KIND}"' in file.read_text():  # computed from runs
            continue
        record = run_files.read(file)
        run = Run.of(record["run"])
        if is_ablation(run):
            continue
        sae = SAE(
            run=record["id"],
            arm=run.arch,
            cell=(run.lm, run.site, run.layer),
            l0=record["metrics"]["l0"],
            lam=run.lam,
            group=group_of(run),
            file=str(file),
            lr=run.lr,
        )
        saes.append(sae)
    return saes


def files_on_record(scale: str, names: Iterable[str] | None) -> set[Path]:
    """The files of runs, and of results, at a scale: of all experiments, or of those named."""
    root = run_files.root(scale)
    if not names:
        return set(root.glob("*/*.json"))
    files = set()
    for name in names:
        files |= set(root.glob(f"{name}/*.json"))
        table = run_files.done(records.load(name, scale))  # may be stored under another name
        files |= {root / file for file in table.get("file", ())}
    return files


def is_ablation(run: Run) -> bool:
    return run.switches not in ({}, Run().switches)


def collected(paths: Iterable[Path | str], known: Iterable[SAE] = ()) -> list[SAE]:
    """The SAEs of files of collected latents; a folder stands for all such files in it. Raises
    StudyError.

    Args:
        known: those on record, for what a file does not say.
    """
    records = {sae.run: sae for sae in known}
    files = [file for path in paths for file in files_in(Path(path))]
    saes = [read_collected(file, records) for file in files]
    # Where an SAE is of one's own, whoever gives the files says what is compared at its place.
    places_of_own = {sae.cell for sae in saes if sae.group is None}
    return [replace(sae, group=None) if sae.cell in places_of_own else sae for sae in saes]


def files_in(path: Path) -> list[Path]:
    """A file itself, or the files of collected latents in a folder. Raises StudyError where it has
    none.
    """
    if path.is_file():
        return [path]
    files = [
        file
        for file in sorted(path.glob("*.json"))
        if '"latents"' in file.read_text(encoding="utf-8")
    ]
    if not files:
        raise StudyError(
            f"{path} has no file of collected latents: make some with gsae.interpretability.latents"
        )
    return files


def read_collected(path: Path, known: dict[str, SAE]) -> SAE:
    """One file of collected latents (`gsae.interpretability.latents`). Arm and L0 are its
    provenance's, else the run's on record.

    Raises:
        DataError: a damaged file.
        StudyError: neither provenance nor a run on record gives arm or L0. Both name the file.
    """
    data = latent_files.load(path)
    origin = data["provenance"]
    record = known.get(origin["run"])
    arm = origin.get("arm") or origin.get("arch") or (record and record.arm)
    l0 = origin.get("l0") or (record and record.l0)
    if not arm or not l0:
        raise StudyError(
            f"{path}: its provenance does not say {'l0' if arm else 'arm'}, and its run "
            f"{origin['run']!r} is not on record: collect it with "
            'about={"arm": …, "l0": …}'
        )
    return SAE(
        run=origin["run"] or path.stem,
        arm=arm,
        cell=(origin["lm"], origin["site"], origin["layer"]),
        l0=float(l0),
        lam=origin.get("lam") or (record and record.lam),
        group=record and record.group,
        latents=tuple(data["latents"]),
        file=str(path),
    )
