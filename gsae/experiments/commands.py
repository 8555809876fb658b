"""The commands of this room: `gsae list`, `plan`, `run`, `status`, `audit`. Each has two functions,
its arguments and what it does; what an action needs is imported when it runs.
"""

from argparse import ArgumentParser, Namespace

from gsae.evidence.run import SCALES
from gsae.experiments import plan, sweeps

RESULTS = ("controls", "ito", "known")  # of finished runs; the last of no language model at all
COLUMNS = (
    "arch lam seed control increase s data_l0 noise l0 loss_recovered delta_ce gamma fvu "
    "dead_fraction slope status"
)


def list_arguments(command: ArgumentParser) -> None:
    command.add_argument("name", nargs="?", help="an experiment; without it, all of them")


def list_runs(args: Namespace, scale: str) -> None:
    if args.name is None:
        for name in sweeps.EXPERIMENTS:
            print(f"{name:12} {len(sweeps.runs(name, scale)):4} runs at {scale}")
        return
    for run in sweeps.runs(args.name, scale):
        where = f"{run.lm} {run.site} {run.layer}"
        print(
            f"{run.id}  {run.arch:8} {where:24} M {run.M:<7} lambda {run.lam:<7g} "
            f"seed {run.seed}  {run.tokens:,} tokens"
        )


def plan_arguments(command: ArgumentParser) -> None:
    command.add_argument("name", choices=list(sweeps.EXPERIMENTS))
    plan.add_arguments(command)


def show_plan(args: Namespace, scale: str) -> None:
    print(plan.show(args, sweeps.runs(args.name, scale), scale))


def show_status(args: Namespace, scale: str) -> None:
    from gsae.evidence import run_files

    for name in sweeps.EXPERIMENTS:
        runs = sweeps.runs(name, scale)
        done = sum(run_files.find(run.id, scale) is not None for run in runs)
        print(f"{name:12} {done:4} of {len(runs)} runs on record at {scale}")


# ---- Training, and what is computed of finished runs


def run_arguments(command: ArgumentParser) -> None:
    command.add_argument("name", choices=[*sweeps.EXPERIMENTS, *RESULTS])
    command.add_argument(
        "--force", action="store_true", help="go on in a changed tree, or if it may not fit"
    )


def run_experiment(args: Namespace, scale: str) -> None:
    if args.name in RESULTS:
        table = computed(args.name, scale, args.force)
    else:
        from gsae.experiments import runner

        table = runner.run(args.name, scale, force=args.force)
    columns = [column for column in COLUMNS.split() if column in table]
    print(table[columns].to_string(index=False, float_format="%.4g"))


def computed(name: str, scale: str, force: bool):
    """The table of results of finished runs, computed where they are missing."""
    if name == "known":
        from gsae.experiments import run_known_dictionary

        return run_known_dictionary.known_dictionary(scale, force=force)
    import pandas as pd

    from gsae.experiments import follow_ups, run_follow_ups

    kinds = follow_ups.KINDS if name == "controls" else follow_ups.PURSUED
    tables = [run_follow_ups.follow_up(name, kind, scale, force=force) for kind in kinds]
    return pd.concat(tables, ignore_index=True)


def audit_arguments(command: ArgumentParser) -> None:
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="experiments or run ids to pick from; default: all"
    )
    command.add_argument("--runs", type=int, default=3, help="how many, at most; default: 3")
    command.add_argument(
        "--seed",
        default="0",
        help="a number or a word; the same one picks the same runs; default: 0",
    )
    command.add_argument("--max-tokens", type=int, help="leave out runs of more training tokens")
    command.add_argument(
        "--lm", help="leave out runs of other language models than this one, as gelu-1l-mini"
    )
    command.add_argument(
        "--scale", choices=SCALES, default="cpu", help="default: cpu, the book's evidence"
    )


def run_audit(args: Namespace, scale: str) -> int:
    from gsae.experiments import audit

    return audit.main(args)
