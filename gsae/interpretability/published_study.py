"""What the book shows of the study, made from the committed latents alone: dashboards, rating
pages, the verdict.

The pages and their key follow from the data and a fixed seed, so that a clone, the built book and
whoever scores have the same study.
"""

from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gsae.evidence.verdict import NOT_RUN, NOT_TESTED, Verdict, graded
from gsae.interpretability import (
    compared_saes,
    dashboards,
    drawing,
    latent_files,
    matched_pairs,
    rating_analysis,
    rating_files,
    rating_page,
    rating_report,
    rating_statistics,
)
from gsae.interpretability.compared_saes import SAE, Cell, StudyError
from gsae.interpretability.rating_report import several

PAIRS = 5  # at least so many a page
LEAST_PAIRS = 60  # in all
DRAWING_SEED = 0
QUARTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}
COLLECT = "gsae study collect --scale cpu"
# --partial: who stops half way rates, too
COMMAND = "gsae study score ratings-*.json --key key.json --partial"
NOT_COLLECTED = f"<p>Not yet run: no latents are collected. <code>{COLLECT}</code></p>"


def dealt(places: int, fewest: int) -> tuple[int, int]:
    """Pairs of each place on a page, and pages: ten to twelve latents a page (of four places 16),
    `LEAST_PAIRS` pairs in all, as far as the fewest latents collected of an SAE go.
    """
    pairs = min(-(-PAIRS // places), fewest)
    enough = -(-LEAST_PAIRS // (pairs * places))
    return pairs, max(min(enough, fewest // pairs), 1)


def matched(folder: Path) -> tuple[dict[Cell, list[SAE]], int]:
    """The places with collected latents of matched SAEs, and the fewest latents of one of these; no
    place where nothing is collected. Raises StudyError or DataError where the folder's files are
    damaged, or not of matched SAEs.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        return {}, 0
    cells, problems = matched_pairs.match(compared_saes.collected(files))
    if not cells:
        raise StudyError("; ".join(problems))
    saes = [sae for pair in cells.values() for sae in pair]
    return cells, min(map(ever_on, saes))


def ever_on(sae: SAE) -> int:
    """How many of an SAE's collected latents are ever on."""
    return sum(latent["max"] > 0 for latent in sae.latents)


def study(folder: Path) -> tuple[dict, dict[str, dict]] | None:
    """Key and shown latents (`drawing.draw`) of the book's own study; None where the latents are
    not collected yet.

    Raises as `matched`.
    """
    cells, fewest = matched(folder)
    if not cells:
        return None
    pairs, pages = dealt(len(cells), fewest)
    return drawing.draw(cells, pairs, pages, seed=DRAWING_SEED)


def publish(folder: Path, target: Path) -> list[Path]:
    """Write rating pages and key to `target`; returns the pages, then the key; nothing where
    nothing is collected. Pages of an earlier study there are removed.
    """
    made = study(folder)
    written = rating_page.write(*made, target, force=True) if made else []
    for old in set(Path(target).glob("rate*.html")) - set(written):
        old.unlink()
    return written


def studied_places(key: dict) -> list[Cell]:
    """Where the latents of a study are from, in order: language model, site, layer."""
    return sorted({(row["lm"], row["site"], row["layer"]) for row in key["items"].values()})


def links(folder: Path, way: str) -> str:
    """Links to pages and key as HTML; `way` leads from the page that shows them to the folder of
    `publish`.
    """
    made = study(folder)
    if made is None:
        return NOT_COLLECTED
    key, _ = made
    total, each = len(key["items"]) // len(key["arms"]), len(key["pages"][0]["items"])
    way = escape(way)
    items = [
        f'<li><a href="{way}/{name}">page {number}</a></li>'
        for number, name in enumerate(rating_page.page_names(key), 1)
    ]
    return (
        f'<div class="gsae-study"><p>Study <code>{escape(key["study"])}</code>: '
        f"{total} pairs from {several(len(studied_places(key)), 'place')}, {each} latents a "
        "page. Choose any:</p>"
        '<ul style="display:flex;flex-wrap:wrap;gap:.2em '
        f'1.2em;list-style:none;padding:0">{"".join(items)}</ul>'
        f'<p><a href="{way}/key.json" download>The key</a>: open it after rating only. '
        "It says which latent is of which autoencoder, and a rater who has seen it is no longer "
        "blind.</p></div>"
    )


class StudySize(NamedTuple):
    """How large the book's own study is, and how large the collected latents let one be."""

    places: int
    pairs: int  # of each place on a page
    pages: int
    most_pages: int

    def command(self) -> str | None:
        """What makes the largest study; None where the book's own is it."""
        if self.most_pages <= self.pages:
            return None
        return f"gsae study make --pairs {self.pairs} --pages {self.most_pages}"


def study_size(folder: Path) -> StudySize | None:
    """None where nothing is collected. Raises as `matched`."""
    cells, fewest = matched(folder)
    if not cells:
        return None
    pairs, pages = dealt(len(cells), fewest)
    return StudySize(len(cells), pairs, pages, fewest // pairs)


def larger(folder: Path) -> str:
    """What study the collected latents suffice for, beyond the book's own, and the command that
    makes it.
    """
    size = study_size(folder)
    if size is None:
        return f"No latents are collected: {COLLECT}"
    a_page = size.places * size.pairs
    command = size.command()
    if command is None:
        return (
            f"All latents that are collected are on the pages above: {a_page * size.pages} pairs."
        )
    return (
        f"The pages above have {a_page * size.pages} pairs, the latents that are collected suffice "
        f"for {a_page * size.most_pages}: {command}"
    )


def chosen(data: dict) -> list[dict]:
    """Of one SAE's latents the three nearest to the quartiles of their densities, lowest density
    first.
    """
    rows = sorted(data["latents"], key=lambda latent: (latent["density"], latent["latent"]))
    return [rows[round(share * (len(rows) - 1))] for share in QUARTILES.values()]


def gallery(folder: Path) -> str:
    """Dashboards of `chosen` latents of every SAE as HTML, place by place; open are the first ones
    of the first place.

    They are of `folder`/apart, none of which is on a rating page: whoever rates after reading is
    still blind. Where none are kept apart, they are of the rated ones, all folded, and the reader
    is told.
    """
    apart = sorted((Path(folder) / "apart").glob("*.json"))
    files = apart or sorted(Path(folder).glob("*.json"))
    if not files:
        return NOT_COLLECTED
    parts = [f"<style>{dashboards.css()}</style>"]
    if not apart:
        parts.append("<p><b>These latents are on the rating pages too: rate first.</b></p>")
    saes = sorted(map(latent_files.load, files), key=order_shown)
    first_place = place_shown(saes[0])
    for data in saes:
        unfolded = bool(apart) and place_shown(data) == first_place
        parts.append(shown_sae(data, unfolded))
    return f'<div class="gsae-gallery">{"".join(parts)}</div>'


def place_shown(data: dict) -> tuple[str, int, str]:
    source = data["provenance"]
    return source["lm"], source["layer"], source["site"]


def order_shown(data: dict) -> tuple:
    """By place, gated before baseline, other arms last."""
    ranks = {arm: rank for rank, arm in enumerate(matched_pairs.ARMS)}
    return place_shown(data), ranks.get(data["provenance"].get("arm"), len(ranks))


def shown_sae(data: dict, unfolded: bool) -> str:
    """The `chosen` latents of one SAE, folded, but the first one where asked for."""
    source = data["provenance"]
    title = (
        f"{source.get('arm', '')} SAE, {source['lm']}, {source['site']}, layer {source['layer']}"
    )
    parts = [f"<p><b>{escape(title)}</b>, run {escape(source['run'])}</p>"]
    for place, (quartile, latent) in enumerate(zip(QUARTILES, chosen(data), strict=True)):
        summary = f"Latent {latent['latent']}: {quartile} of density"
        body = dashboards.fragment(latent, style=False)
        opened = " open" if unfolded and place == 0 else ""
        parts.append(f"<details{opened}><summary>{summary}</summary>{body}</details>")
    return "".join(parts)


def analysis(folder: Path) -> dict | None:
    """`rating_analysis.analyse` of the ratings in `folder`/ratings, by the book's own key; None
    where there are none. Pages may be rated in part.
    """
    files = sorted((Path(folder) / "ratings").glob("*.json"))
    if not files:
        return None
    made = study(folder)
    if made is None:
        raise StudyError(
            f"{folder} has ratings and no collected latents to join them with: restore them with "
            "git"
        )
    key, _ = made
    ratings = rating_files.join(files, key, partial=True)
    return rating_analysis.analyse(ratings, key["arms"], key["reference"])


def verdict(folder: Path) -> str:
    """The analysis of the ratings on record as a text; what to do where there are none."""
    result = analysis(folder)
    if result is None:
        return f"not yet run: no ratings are on record.\nRate a page, export, then: {COMMAND}"
    return rating_report.text(result)


def judged(folder: Path) -> Verdict:
    """Section 4.3 by its rule: the lower bound of the mean difference against the margin, over all
    pairs on record.

    One SAE an arm and place is compared: the interval covers the choice of latents, not the seed,
    so it is `partly` at best.
    """
    result = analysis(folder)
    if result is None:
        size = study_size(folder)
        command = size.command() if size else None
        pages = f"`{command}`, raters, then " if command else ""
        return Verdict(
            NOT_RUN,
            f"no ratings on record; what settles it: {pages}`{COMMAND}`",
            "no ratings on record",
        )
    contrast, margin = result["comparisons"][0]["contrasts"]["all"], rating_statistics.MARGIN
    lower, upper = contrast["interval"]
    finding = (
        "{difference:+.2f} {interval}, {pairs} pairs, {raters}: {word}; one SAE an arm and place"
    )
    numbers = {
        "difference": contrast["difference"],
        "lower": lower,
        "upper": upper,
        "interval": rating_report.bounds((lower, upper), "+"),
        "pairs": contrast["pairs"],
        "raters": several(len(result["raters"]), "rater"),
        "word": contrast["non_inferiority"],
    }
    if contrast["non_inferiority"] in rating_statistics.SILENT:
        word = NOT_TESTED
    else:
        word = graded(contrast["difference"] > margin, lower > margin, seeds=False)
    return Verdict(word, finding, numbers=numbers, bounds={"lower": (margin, np.inf)})
