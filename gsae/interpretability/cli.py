"""`gsae study show`, `pairs`, `collect`, `make`, `score`: dashboards, which SAEs can be compared,
the page to rate on, and the result.
"""

import argparse
import math
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from gsae.evidence.run import SCALES, Run
from gsae.experiments import settings, sweeps
from gsae.interpretability import arguments
from gsae.system import files

SD = 1.0  # of paired differences in the paper, from its interval: what a study is planned with


def add(commands: argparse._SubParsersAction, scaled: argparse.ArgumentParser) -> None:
    """Add `study` to the commands of `gsae`; `scaled` brings `--scale`."""
    study = commands.add_parser(
        "study", help="rate the latents of two SAEs without knowing which is which"
    )
    actions = study.add_subparsers(dest="action", required=True, metavar="ACTION")
    matched = argparse.ArgumentParser(add_help=False, parents=[scaled])
    arguments.add_matching(matched)
    arguments.add_pairs(
        actions.add_parser(
            "pairs",
            parents=[matched],
            help="matched runs on record, and the lambda that each missing one needs",
        )
    )
    arguments.add_show(
        actions.add_parser(
            "show", help="dashboards of any SAE as one page, and its latents as data for `make`"
        )
    )
    collect = actions.add_parser(
        "collect",
        parents=[scaled],
        help="draw latents of the matched runs of `gsae run study`, score them and controls",
    )
    collect.add_argument("--force", action="store_true", help="go on in a changed tree")
    arguments.add_make(
        actions.add_parser(
            "make", parents=[matched], help="draw latents at random and write the page and its key"
        )
    )
    arguments.add_score(
        actions.add_parser(
            "score", help="join exported ratings with the key: tables, intervals, tests, power"
        )
    )


def study_pairs(args: argparse.Namespace) -> int:
    """Print the matched SAEs of each place and what is missing; train it where asked to. 0 where
    nothing is missing.
    """
    from gsae.interpretability import compared_saes, match_l0, matched_pairs

    scale = sweeps.scale(args.scale)
    saes = compared_saes.recorded(scale, args.experiment)
    matching = (args.arms, args.l0, args.tolerance)
    if args.train:
        matched, problems = match_l0.from_record(scale, saes, *matching, args.force)
    else:
        matched, problems = matched_pairs.match(saes, *matching)
    places = matched_pairs.places(saes, args.arms)
    problems = [*problems, *without_runs(args.experiment or (), scale, places)]
    for cell, chosen in matched.items():
        named = [f"{sae.arm} {sae.run} (L0 {sae.l0:.1f}, lambda {sae.lam:g})" for sae in chosen]
        print(f"{compared_saes.place_name(cell)}: {', '.join(named)}")
    for problem in problems:
        print(problem)
    if not matched and not problems:
        print(f"no run is on record at {scale}")
    if args.train and (scale, tuple(args.arms)) == ("cpu", matched_pairs.ARMS):
        print_study_lambdas(matched)
    return 0 if matched and not problems else 1


def without_runs(names: Sequence[str], scale: str, places: Container) -> list[str]:
    """A sentence on each place of the named experiments that no run on record is of."""
    from gsae.interpretability import compared_saes

    wanted = {(r.lm, r.site, r.layer) for name in names for r in sweeps.runs(name, scale)}
    return [
        f"{compared_saes.place_name(cell)}: no run of {' or '.join(names)} is on record at {scale}"
        for cell in sorted(wanted)
        if cell not in places
    ]


def print_study_lambdas(matched: Mapping) -> None:
    """What is to be written into the settings for those matched SAEs that could be of `gsae run
    study`.
    """
    from gsae.interpretability import compared_saes

    plain = Run(**settings.SETTINGS["cpu"])
    lines = []
    for (_, site, layer), saes in matched.items():
        run = replace(plain, site=site, layer=layer)
        if saes[0].group == compared_saes.group_of(run):
            lams = ", ".join(f"{sae.lam:g}" for sae in saes)
            lines.append(f'    ("{site}", {layer}): ({lams}),')
    if lines:
        print(
            "\nfor gsae.experiments.settings.STUDY_LAMBDAS, which makes them the runs of `gsae run "
            "study`"
        )
        print(*lines, sep="\n")


def study_collect(args: argparse.Namespace) -> int:
    from gsae.interpretability import collect_and_score, matched_pairs, score_tables

    scale = sweeps.scale(args.scale)
    table = collect_and_score.run(scale, force=args.force)
    print(score_tables.summary(table).to_string(index=False, float_format="%.3f"))
    print(f"\n{' minus '.join(matched_pairs.ARMS)}, 90 % BCa intervals:")
    print(score_tables.differences(table).to_string(index=False, float_format="%.3f"))
    missing = int((table["status"] == "missing").sum())
    note = f"; {missing} scores are missing" if missing else ""
    print(f"\nlatents: {score_tables.folder(scale)}{note}")
    return 0


def study_show(args: argparse.Namespace) -> int:
    from gsae.interpretability import show_latents

    written = show_latents.show(
        args.sae, args.latents, args.tokens, args.out, args.seed, args.lm, args.site, args.layer
    )
    print(*written, sep="\n")
    return 0


def study_make(args: argparse.Namespace) -> int:
    from gsae.evidence import provenance
    from gsae.interpretability import compared_saes, drawing, matched_pairs, rating_page

    has_pairs = min(args.pairs, args.shared) >= 0 and args.pairs + args.shared >= 1
    if not has_pairs or args.pages < 1 or len(args.arms) < 2:
        raise compared_saes.StudyError(
            "a study needs at least one page, one pair (--pairs or --shared) and two --arms"
        )
    # ids are unique: the files say which runs are meant
    scales = [args.scale] if args.scale else SCALES
    known = [sae for scale in scales for sae in compared_saes.recorded(scale, args.experiment)]
    saes = compared_saes.collected(args.data or [provenance.CHECKOUT / "book" / "study"], known)
    cells, problems = matched_pairs.match(saes, args.arms, args.l0, args.tolerance)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not cells:
        raise compared_saes.StudyError(
            f"no place has collected latents of matched {' and '.join(args.arms)} SAEs"
        )
    key, data = drawing.draw(cells, args.pairs, args.pages, args.shared, args.seed)
    *pages, key_file = rating_page.write(key, data, args.out, args.force)
    total = len(key["items"]) // len(args.arms)
    print(
        f"study {key['study']}: {total} pairs of {' and '.join(args.arms)} at {len(cells)} places, "
        f"{len(key['pages'][0]['items'])} latents a page"
    )
    print(f"for raters: {', '.join(map(str, pages))}\nfor nobody who rates: {key_file}")
    print(power_of(total))
    return 0


def power_of(total: int) -> str:
    """What so many pairs can show, in words."""
    from gsae.interpretability import rating_statistics

    powers = rating_statistics.powers(total, SD)
    return (
        f"{total} pairs find a difference of {powers['detectable']:+.2f} with 80 % power "
        f"(one-sided 5 %, s.d. {SD:g} as in the paper); excluding a loss of "
        f"{-rating_statistics.MARGIN:g} takes {powers['pairs_for_non_inferiority']}"
    )


def study_score(args: argparse.Namespace) -> int:
    from gsae.interpretability import rating_analysis, rating_files, rating_report

    key = rating_files.read_key(args.key)
    ratings = rating_files.join(args.ratings, key, args.partial)
    analysis = rating_analysis.analyse(ratings, key["arms"], key["reference"])
    print(f"study {key['study']}")
    print(rating_report.text(analysis))
    if args.json:
        record = {"schema": rating_files.SCHEMA, "study": key["study"], **without_nan(analysis)}
        files.write_json(args.json, record, indent=1, allow_nan=False, end="\n")
    return 0


def without_nan(value: object) -> object:
    """`value` for json, whose numbers are finite: None in the place of NaN."""
    if isinstance(value, dict):
        return {name: without_nan(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


ACTIONS = {
    "pairs": study_pairs,
    "show": study_show,
    "collect": study_collect,
    "make": study_make,
    "score": study_score,
}


def main(args: argparse.Namespace) -> int:
    """Run one action; returns the exit code."""
    return ACTIONS[args.action](args)
