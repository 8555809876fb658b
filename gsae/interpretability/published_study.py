"""What the book shows of the study, made from the committed latents alone: dashboards, rating
pages, the verdict.

The pages and their key follow from the data and a fixed seed, so that a clone, the built book and
whoever scores have the same study.
"""

from html import escape
from pathlib import Path

from gsae.evidence.verdict import NOT_RUN, NOT_TESTED, Verdict, graded
from gsae.interpretability import (
    dashboards,
    latent_files,
    matched_pairs,
    rating_files,
    rating_page,
    rating_report,
    rating_statistics,
)

PAIRS, LEAST, SEED = 5, 60, 0  # at least so many pairs a page, and in all
QUARTILES = (0.25, 0.5, 0.75)
COMMAND = (
    "gsae study score ratings-*.json --key key.json --partial"  # who stops half way rates, too
)


def dealt(places: int, fewest: int) -> tuple[int, int]:
    """Pairs of each place on a page, and pages: ten to twelve latents a page (of four places 16),
    `LEAST` pairs in all, as far as the fewest latents collected of an SAE go.
    """
    pairs = min(-(-PAIRS // places), fewest)
    return pairs, max(min(-(-LEAST // (pairs * places)), fewest // pairs), 1)


def matched(folder: Path) -> tuple[dict[matched_pairs.Cell, list[matched_pairs.SAE]], int]:
    """The places with collected latents of matched SAEs, and the fewest latents of one of these; no
    place where nothing is collected. Raises StudyError or DataError where the folder's files are
    damaged, or not of matched SAEs.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        return {}, 0
    cells, problems = matched_pairs.match(matched_pairs.collected(files))
    if not cells:
        raise matched_pairs.StudyError("; ".join(problems))
    return cells, min(
        sum(latent["max"] > 0 for latent in sae.latents) for saes in cells.values() for sae in saes
    )


def study(folder: Path) -> tuple[dict, dict[str, dict]] | None:
    """Key and shown latents (`pairs.draw`) of the book's own study; None where the latents are not
    collected yet.

    Raises as `matched`.
    """
    cells, fewest = matched(folder)
    return matched_pairs.draw(cells, *dealt(len(cells), fewest), seed=SEED) if cells else None


def publish(folder: Path, target: Path) -> list[Path]:
    """Write rating pages and key to `target`; returns the pages, then the key; nothing where
    nothing is collected. Pages of an earlier study there are removed.
    """
    made = study(folder)
    written = rating_page.write(*made, target, force=True) if made else []
    for old in set(Path(target).glob("rate*.html")) - set(written):
        old.unlink()
    return written


def names(key: dict) -> list[str]:
    """The pages' file names, as `page.write` chooses them."""
    several = len(key["pages"]) > 1
    return [f"rate-{p['page']}.html" if several else "rate.html" for p in key["pages"]]


def places(key: dict) -> list[tuple[str, str, int]]:
    """Where the latents of a study are from, in order: language model, site, layer."""
    return sorted({(row["lm"], row["site"], row["layer"]) for row in key["items"].values()})


def links(folder: Path, way: str) -> str:
    """Links to pages and key as HTML; `way` leads from the page that shows them to the folder of
    `publish`.
    """
    made = study(folder)
    if made is None:
        return (
            "<p>Not yet run: no latents are collected. <code>gsae study collect --scale "
            "cpu</code></p>"
        )
    key = made[0]
    total, each = len(key["items"]) // len(key["arms"]), len(key["pages"][0]["items"])
    items = "".join(
        f'<li><a href="{escape(way)}/{n}">page {i}</a></li>' for i, n in enumerate(names(key), 1)
    )
    return (
        f'<div class="gsae-study"><p>Study <code>{escape(key["study"])}</code>: '
        f"{total} pairs from {rating_report.several(len(places(key)), 'place')}, {each} latents a "
        "page. Choose any:</p>"
        '<ul style="display:flex;flex-wrap:wrap;gap:.2em '
        f'1.2em;list-style:none;padding:0">{items}</ul>'
        f'<p><a href="{escape(way)}/key.json" download>The key</a>: open it after rating only. '
        "It says which latent is of which autoencoder, and a rater who has seen it is no longer "
        "blind.</p></div>"
    )


def larger(folder: Path) -> str:
    """What study the collected latents suffice for, beyond the book's own, and the command that
    makes it.
    """
    cells, fewest = matched(folder)
    if not cells:
        return "No latents are collected: gsae study collect --scale cpu"
    of_each, pages = dealt(len(cells), fewest)
    total, most = len(cells) * of_each * pages, len(cells) * of_each * (fewest // of_each)
    if fewest // of_each <= pages:
        return f"All latents that are collected are on the pages above: {total} pairs."
    return (
        f"The pages above have {total} pairs, the latents that are collected suffice for {most}: "
        f"gsae study make --pairs {of_each} --pages {fewest // of_each}"
    )


def chosen(held: dict) -> list[dict]:
    """Of one SAE's latents the three nearest to the quartiles of their densities, lowest density
    first.
    """
    rows = sorted(held["latents"], key=lambda latent: (latent["density"], latent["latent"]))
    return [rows[round(q * (len(rows) - 1))] for q in QUARTILES]


def gallery(folder: Path) -> str:
    """Dashboards of `chosen` latents of every SAE as HTML, place by place; open are the first ones
    of the first place.

    They are of `folder`/apart, none of which is on a rating page: whoever rates after reading is
    still blind. Where none are kept apart, they are of the rated ones, all folded, and the reader
    is told.
    """
    apart = sorted((Path(folder) / "apart").glob("*.json"))
    files, note = (
        apart or sorted(Path(folder).glob("*.json")),
        "These latents are on the rating pages too: rate first.",
    )
    if not files:
        return (
            "<p>Not yet run: no latents are collected. <code>gsae study collect --scale "
            "cpu</code></p>"
        )
    parts = [f"<style>{dashboards.css()}</style>", "" if apart else f"<p><b>{note}</b></p>"]
    order = {arm: n for n, arm in enumerate(matched_pairs.ARMS)}
    of = lambda p: (p["lm"], p["layer"], p["site"])
    every = sorted(
        map(latent_files.load, files),
        key=lambda h: (of(h["provenance"]), order.get(h["provenance"].get("arm"), 9)),
    )
    for held in every:
        source = held["provenance"]
        first = of(source) == of(every[0]["provenance"])
        title = (
            f"{source.get('arm', '')} SAE, {source['lm']}, {source['site']}, layer "
            f"{source['layer']}"
        )
        parts.append(f"<p><b>{escape(title)}</b>, run {escape(source['run'])}</p>")
        for place, latent in enumerate(chosen(held)):
            told = (
                f"Latent {latent['latent']}: "
                f"{('lower quartile', 'median', 'upper quartile')[place]} of density"
            )
            body = dashboards.fragment(latent, style=False)
            opened = " open" if apart and first and place == 0 else ""
            parts.append(f"<details{opened}><summary>{told}</summary>{body}</details>")
    return f'<div class="gsae-gallery">{"".join(parts)}</div>'


def analysis(folder: Path) -> dict | None:
    """`statistics.analyse` of the ratings in `folder`/ratings, by the book's own key; None where
    there are none. Pages may be rated in part.
    """
    files = sorted((Path(folder) / "ratings").glob("*.json"))
    if not files:
        return None
    made = study(folder)
    if made is None:
        raise matched_pairs.StudyError(
            f"{folder} has ratings and no collected latents to join them with: restore them with "
            "git"
        )
    key = made[0]
    return rating_statistics.analyse(
        rating_files.join(files, key, partial=True), key["arms"], key["reference"]
    )


def verdict(folder: Path) -> str:
    """The analysis of the ratings on record as a text; what to do where there are none."""
    found = analysis(folder)
    return (
        rating_report.text(found)
        if found
        else f"not yet run: no ratings are on record.\nRate a page, export, then: {COMMAND}"
    )


def judged(folder: Path) -> Verdict:
    """Section 4.3 by its rule: the lower bound of the mean difference against the margin, over all
    pairs on record.

    One SAE an arm and place is compared: the interval covers the choice of latents, not the seed,
    so it is `partly` at best.
    """
    found = analysis(folder)
    if found is None:
        more = larger(folder).partition("gsae study make")
        pages = f"`{more[1]}{more[2]}`, raters, then " if more[1] else ""
        return Verdict(
            NOT_RUN,
            f"no ratings on record; what settles it: {pages}`{COMMAND}`",
            "no ratings on record",
        )
    of = found["comparisons"][0]["contrasts"]["all"]
    ours = (
        f"{of['difference']:+.2f} {rating_report.bounds(of['interval'], '+')}, {of['pairs']} "
        "pairs, "
    )
    ours += (
        f"{rating_report.several(len(found['raters']), 'rater')}: {of['non_inferiority']}; "
        "one SAE an arm and place"
    )
    if of["non_inferiority"] in rating_statistics.SILENT:
        return Verdict(NOT_TESTED, ours)
    margin = rating_statistics.MARGIN
    return Verdict(graded(of["difference"] > margin, of["interval"][0] > margin, seeds=False), ours)
