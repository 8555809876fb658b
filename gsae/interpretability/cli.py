"""`gsae study show`, `pairs`, `collect`, `make`, `score`: dashboards, which SAEs can be compared,
the page to rate on, and the result.
"""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

from gsae.evidence import run as run_module
from gsae.experiments import settings, sweeps
from gsae.system import files

SD = 1.0  # of paired differences in the paper, from its interval: what a study is planned with


def positive(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def add(commands: argparse._SubParsersAction, scaled: argparse.ArgumentParser) -> None:
    """Add `study` to the commands of `gsae`; `scaled` brings `--scale`."""
    study = commands.add_parser(
        "study", help="rate the latents of two SAEs without knowing which is which"
    )
    actions = study.add_subparsers(dest="action", required=True, metavar="ACTION")
    matched = argparse.ArgumentParser(add_help=False, parents=[scaled])
    matched.add_argument(
        "--arms",
        nargs="+",
        default=["gated", "baseline"],
        metavar="ARM",
        help="what is compared; the last is the reference (default: gated baseline)",
    )
    matched.add_argument("--l0", type=positive, default=50.0, help="L0 aimed at (default: 50)")
    matched.add_argument("--tolerance", type=positive, default=0.1,
                         help="how far apart the arms' L0 may be (default: 0.1)")  # fmt: skip
    matched.add_argument(
        "--experiment",
        action="append",
        help="only its runs on record (may be repeated; default: all)",
    )
    found = actions.add_parser(
        "pairs",
        parents=[matched],
        help="matched runs on record, and the lambda that each missing one needs",
    )
    found.add_argument(
        "--train",
        action="store_true",
        help=(
            "train the missing ones, interpolating again until the arms match; what is there counts"
        ),
    )
    found.add_argument("--force", action="store_true", help="with --train: go on in a changed tree")
    show = actions.add_parser(
        "show", help="dashboards of any SAE as one page, and its latents as data for `make`"
    )
    show.add_argument("sae", help="a run id, a file, a folder, or owner/name on the hub")
    show.add_argument(
        "--latents", type=int, default=100, help="how many, drawn at random (default: 100)"
    )
    show.add_argument(
        "--tokens", type=int, default=100_000, help="of held-out text read (default: 100000)"
    )
    show.add_argument(
        "--lm", default="", help="where an SAE that names no run has its activations from"
    )
    show.add_argument("--site", default="", choices=run_module.SITES, metavar="SITE")
    show.add_argument("--layer", type=int, default=-1)
    show.add_argument(
        "--out", type=Path, default=Path("latents"), help="folder for both (default: latents)"
    )
    show.add_argument("--seed", type=int, default=0)
    collect = actions.add_parser(
        "collect",
        parents=[scaled],
        help="draw latents of the matched runs of `gsae run study`, score them and controls",
    )
    collect.add_argument("--force", action="store_true", help="go on in a changed tree")
    make = actions.add_parser(
        "make", parents=[matched], help="draw latents at random and write the page and its key"
    )
    make.add_argument(
        "data",
        nargs="*",
        type=Path,
        help="files or folders of collected latents (default: book/study)",
    )
    make.add_argument(
        "--out", type=Path, default=Path("study"), help="folder for page and key (default: study)"
    )
    make.add_argument(
        "--pairs",
        type=int,
        default=10,
        help="pairs of each model, site and layer on a page (default: 10)",
    )
    make.add_argument(
        "--pages",
        type=int,
        default=1,
        help="pages with latents of their own, one a rater (default: 1)",
    )
    make.add_argument(
        "--shared",
        type=int,
        default=0,
        help="further pairs of each place, the same on every page (default: 0)",
    )
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--force", action="store_true", help="replace the key of another study")
    score = actions.add_parser(
        "score", help="join exported ratings with the key: tables, intervals, tests, power"
    )
    score.add_argument("ratings", nargs="+", type=Path, help="files exported from the page")
    score.add_argument("--key", type=Path, required=True)
    score.add_argument("--json", type=Path, help="also write the result there, machine-readable")
    score.add_argument(
        "--partial", action="store_true", help="accept files in which latents are not rated yet"
    )


def pairs_on_record(args: argparse.Namespace, scale: str) -> int:
    from gsae.interpretability import match_l0, matched_pairs

    how, here = (args.arms, args.l0, args.tolerance), matched_pairs.recorded(scale, args.experiment)
    named = {
        (r.lm, r.site, r.layer) for name in args.experiment or () for r in sweeps.runs(name, scale)
    }
    found, problems = (
        match_l0.from_record(scale, here, *how, args.force)
        if args.train
        else matched_pairs.match(here, *how)
    )
    problems += [
        f"{matched_pairs.place(cell)}: no run of {' or '.join(args.experiment)} is on record at "
        f"{scale}"
        for cell in sorted(named - set(matched_pairs.places(here, args.arms)))
    ]
    for cell, saes in found.items():
        print(
            f"{matched_pairs.place(cell)}: "
            + ", ".join(f"{s.arm} {s.run} (L0 {s.l0:.1f}, lambda {s.lam:g})" for s in saes)
        )
    for problem in problems:
        print(problem)
    if not found and not problems:
        print(f"no run is on record at {scale}")
    run = run_module.Run(**settings.SETTINGS["cpu"])
    study = [
        ((site, layer), saes)
        for (_, site, layer), saes in found.items()
        if saes[0].group == matched_pairs.group_of(replace(run, site=site, layer=layer))
    ]
    if args.train and study and (scale, tuple(args.arms)) == ("cpu", matched_pairs.ARMS):
        print(
            "\nfor gsae.experiments.settings.STUDY_LAMBDAS, which makes them the runs of `gsae "
            "run study`"
        )
        for (site, layer), saes in study:
            print(f'    ("{site}", {layer}): ({", ".join(f"{s.lam:g}" for s in saes)}),')
    return 0 if found and not problems else 1


def collect(args: argparse.Namespace, scale: str) -> int:
    from gsae.interpretability import collect_and_score, score_tables

    table = collect_and_score.run(scale, force=args.force)
    print(score_tables.summary(table).to_string(index=False, float_format="%.3f"))
    print(f"\n{' minus '.join(score_tables.pairs.ARMS)}, 90 % BCa intervals:")
    print(score_tables.differences(table).to_string(index=False, float_format="%.3f"))
    missing = int((table["status"] == "missing").sum())
    print(
        f"\nlatents: {score_tables.folder(scale)}"
        + (f"; {missing} scores are missing" if missing else "")
    )
    return 0


def show(args: argparse.Namespace) -> int:
    from gsae.interpretability import collect_and_score

    written = collect_and_score.show(
        args.sae, args.latents, args.tokens, args.out, args.seed, args.lm, args.site, args.layer
    )
    print(*written, sep="\n")
    return 0


def make(args: argparse.Namespace) -> int:
    from gsae.evidence import provenance
    from gsae.interpretability import matched_pairs, rating_page, rating_statistics

    if (
        args.pairs < 0
        or args.pages < 1
        or args.shared < 0
        or args.pairs + args.shared < 1
        or len(args.arms) < 2
    ):
        raise matched_pairs.StudyError(
            "a study needs at least one page, one pair (--pairs or --shared) and two --arms"
        )
    # ids are unique: the files say which runs are meant
    scales = [args.scale] if args.scale else run_module.SCALES
    known = [sae for scale in scales for sae in matched_pairs.recorded(scale, args.experiment)]
    saes = matched_pairs.collected(args.data or [provenance.CHECKOUT / "book" / "study"], known)
    cells, problems = matched_pairs.match(saes, args.arms, args.l0, args.tolerance)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not cells:
        raise matched_pairs.StudyError(
            f"no place has collected latents of matched {' and '.join(args.arms)} SAEs"
        )
    key, data = matched_pairs.draw(cells, args.pairs, args.pages, args.shared, args.seed)
    *written, kept = rating_page.write(key, data, args.out, args.force)
    total = len(key["items"]) // len(args.arms)
    print(
        f"study {key['study']}: {total} pairs of {' and '.join(args.arms)} at {len(cells)} places, "
        f"{len(key['pages'][0]['items'])} latents a page"
    )
    print(f"for raters: {', '.join(map(str, written))}\nfor nobody who rates: {kept}")
    plan = rating_statistics.powers(total, SD)
    print(
        f"{total} pairs find a difference of {plan['detectable']:+.2f} with 80 % power (one-sided "
        f"5 %, s.d. {SD:g} as "
        f"in the paper); excluding a loss of {-rating_statistics.MARGIN:g} takes "
        f"{plan['pairs_for_non_inferiority']}"
    )
    return 0


def plain(value: object) -> object:
    """`value` for json, whose numbers are finite: None in the place of NaN."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def score(args: argparse.Namespace) -> int:
    from gsae.interpretability import rating_files, rating_report, rating_statistics

    key = rating_files.read_key(args.key)
    found = rating_statistics.analyse(
        rating_files.join(args.ratings, key, args.partial), key["arms"], key["reference"]
    )
    print(f"study {key['study']}")
    print(rating_report.text(found))
    if args.json:
        record = {"schema": rating_files.SCHEMA, "study": key["study"], **plain(found)}
        with files.replacing(args.json) as temporary:
            temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return 0


def main(args: argparse.Namespace) -> int:
    """Run one action; returns the exit code."""
    if args.action == "score":
        return score(args)
    if args.action == "show":
        return show(args)
    if args.action == "collect":
        return collect(args, run_module.scale(args.scale))
    return (
        make(args) if args.action == "make" else pairs_on_record(args, run_module.scale(args.scale))
    )
