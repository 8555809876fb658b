"""The options of `gsae study`, action by action."""

import argparse
from pathlib import Path

from gsae.evidence.run import SITES


def positive(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def add_matching(matched: argparse.ArgumentParser) -> None:
    """Which SAEs are compared: of `pairs` and of `make`."""
    matched.add_argument(
        "--arms",
        nargs="+",
        default=["gated", "baseline"],
        metavar="ARM",
        help="what is compared; the last is the reference (default: gated baseline)",
    )
    matched.add_argument("--l0", type=positive, default=50.0, help="L0 aimed at (default: 50)")
    matched.add_argument(
        "--tolerance",
        type=positive,
        default=0.1,
        help="how far apart the arms' L0 may be (default: 0.1)",
    )
    matched.add_argument(
        "--experiment",
        action="append",
        help="only its runs on record (may be repeated; default: all)",
    )


def add_pairs(pairs: argparse.ArgumentParser) -> None:
    pairs.add_argument(
        "--train",
        action="store_true",
        help=(
            "train the missing ones, interpolating again until the arms match; what is there counts"
        ),
    )
    pairs.add_argument("--force", action="store_true", help="with --train: go on in a changed tree")


def add_show(show: argparse.ArgumentParser) -> None:
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
    show.add_argument("--site", default="", choices=SITES, metavar="SITE")
    show.add_argument("--layer", type=int, default=-1)
    show.add_argument(
        "--out", type=Path, default=Path("latents"), help="folder for both (default: latents)"
    )
    show.add_argument("--seed", type=int, default=0)


def add_make(make: argparse.ArgumentParser) -> None:
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


def add_score(score: argparse.ArgumentParser) -> None:
    score.add_argument("ratings", nargs="+", type=Path, help="files exported from the page")
    score.add_argument("--key", type=Path, required=True)
    score.add_argument("--json", type=Path, help="also write the result there, machine-readable")
    score.add_argument(
        "--partial", action="store_true", help="accept files in which latents are not rated yet"
    )
