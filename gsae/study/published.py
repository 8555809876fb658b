"""What the book shows of the study, made from the committed latents alone: dashboards, rating pages, the verdict.

The pages and their key follow from the data and a fixed seed, so that a clone, the built book and whoever scores have
the same study.
"""

from html import escape
from pathlib import Path

from gsae.study import dashboards, data, page, pairs, ratings, report, statistics

PAIRS, PAGES, SEED = 5, 12, 0  # ten latents a page; 60 pairs in all
QUARTILES = (0.25, 0.5, 0.75)


def study(folder: Path) -> tuple[dict, dict[str, dict]] | None:
    """Key and shown latents (`pairs.draw`) of the book's own study; None where the latents are not collected yet.

    Raises StudyError or DataError where the folder's files are damaged, or not of matched SAEs.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        return None
    cells, problems = pairs.match(pairs.collected(files))
    if not cells:
        raise pairs.StudyError("; ".join(problems))
    fewest = min(len(sae.latents) for saes in cells.values() for sae in saes)
    return pairs.draw(cells, min(PAIRS, fewest), min(PAGES, max(fewest // PAIRS, 1)), seed=SEED)


def publish(folder: Path, target: Path) -> list[Path]:
    """Write rating pages and key to `target`; returns the pages, then the key; nothing where nothing is collected."""
    made = study(folder)
    return page.write(*made, target, force=True) if made else []


def names(key: dict) -> list[str]:
    """The pages' file names, as `page.write` chooses them."""
    several = len(key["pages"]) > 1
    return [f"rate-{p['page']}.html" if several else "rate.html" for p in key["pages"]]


def links(folder: Path, way: str) -> str:
    """Links to pages and key as HTML; `way` leads from the page that shows them to the folder of `publish`."""
    made = study(folder)
    if made is None:
        return "<p>Not yet run: no latents are collected. <code>gsae study collect --scale cpu</code></p>"
    key = made[0]
    total, each = len(key["items"]) // len(key["arms"]), len(key["pages"][0]["items"])
    items = "".join(f'<li><a href="{escape(way)}/{n}">page {i}</a></li>' for i, n in enumerate(names(key), 1))
    return (
        f'<div class="gsae-study"><p>Study <code>{escape(key["study"])}</code>: '
        f"{total} pairs, {each} latents a page. Choose any:</p>"
        f'<ul style="display:flex;flex-wrap:wrap;gap:.2em 1.2em;list-style:none;padding:0">{items}</ul>'
        f'<p><a href="{escape(way)}/key.json" download>The key</a>: open it after rating only. '
        "It says which latent is of which autoencoder, and a rater who has seen it is no longer blind.</p></div>"
    )


def chosen(held: dict) -> list[dict]:
    """Of one SAE's drawn latents the three nearest to the quartiles of their densities, lowest density first."""
    rows = sorted(held["latents"], key=lambda latent: (latent["density"], latent["latent"]))
    return [rows[round(q * (len(rows) - 1))] for q in QUARTILES]


def gallery(folder: Path) -> str:
    """Dashboards of `chosen` latents of every SAE as HTML, each folded but the first of an SAE."""
    parts = [f"<style>{dashboards.css()}</style>"]
    for file in sorted(Path(folder).glob("*.json")):
        held = data.load(file)
        source = held["provenance"]
        title = f"{source.get('arm', '')} SAE, {source['lm']}, {source['site']}, layer {source['layer']}"
        parts.append(f"<p><b>{escape(title)}</b>, run {escape(source['run'])}</p>")
        for place, latent in enumerate(chosen(held)):
            told = f"Latent {latent['latent']}: {('lower quartile', 'median', 'upper quartile')[place]} of density"
            body = dashboards.fragment(latent, style=False)
            parts.append(f"<details{' open' if place == 0 else ''}><summary>{told}</summary>{body}</details>")
    if len(parts) == 1:
        return "<p>Not yet run: no latents are collected. <code>gsae study collect --scale cpu</code></p>"
    return f'<div class="gsae-gallery">{"".join(parts)}</div>'


def verdict(folder: Path) -> str:
    """The analysis of the ratings in `folder`/ratings, by the book's own key; what to do where there are none."""
    files = sorted((Path(folder) / "ratings").glob("*.json"))
    if not files:
        return (
            "not yet run: no ratings are on record.\n"
            "Rate a page, export, then: gsae study score ratings-*.json --key key.json"
        )
    made = study(folder)
    if made is None:
        raise pairs.StudyError(
            f"{folder} has ratings and no collected latents to join them with: restore them with git"
        )
    key = made[0]
    return report.text(statistics.analyse(ratings.join(files, key), key["arms"], key["reference"]))
