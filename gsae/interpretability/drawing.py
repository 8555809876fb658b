"""Which latents are rated: drawn at random, blinded, and dealt to pages. No torch."""

import hashlib
import json
import random

from gsae.interpretability.compared_saes import SAE, Cell, StudyError
from gsae.interpretability.rating_files import SCHEMA


def draw(
    cells: dict[Cell, list[SAE]], pairs: int, pages: int = 1, shared: int = 0, seed: int = 0
) -> tuple[dict, dict[str, dict]]:
    """Draw latents at random at every place, and deal them to pages, blinded.

    Args:
        cells: place -> its matched SAEs.
        pairs: pairs of each place on each page, rated on that page alone.
        pages: one for each group of raters; the paper's raters each had their own latents.
        shared: further pairs of each place, the same on every page: they give the agreement between
            raters.

    Returns:
        The key (item -> run, arm, site, layer, latent; never on the page) and item -> collected
        latent.

    Raises:
        StudyError: an SAE with fewer latents than asked for.
    """
    rows, latents = drawn(cells, pairs, pages, shared, seed)
    rng = random.Random(f"{seed} order")
    names = blind_names(len(rows), rng)
    items = dict(zip(names, rows, strict=True))
    shown = dict(zip(names, latents, strict=True))
    arms = [sae.arm for sae in next(iter(cells.values()))]
    key = {
        "schema": SCHEMA,
        "study": study_name(items, shown, seed),
        "seed": seed,
        "arms": arms,
        "reference": arms[-1],
        "pages": shuffled_pages(items, pages, rng),
        "items": items,
    }
    return key, shown


def drawn(
    cells: dict[Cell, list[SAE]], pairs: int, pages: int, shared: int, seed: int
) -> tuple[list[dict], list[dict]]:
    """The rows of the key, in the order of drawing, and the latents that they are of."""
    rows, latents = [], []
    for number, (cell, saes) in enumerate(sorted(cells.items())):
        for arm, sae in enumerate(saes):
            rng = random.Random(f"{seed} {cell} {arm}")
            chosen = sampled(sae, shared + pages * pairs, rng)
            latents += chosen
            for n, latent in enumerate(chosen):
                page, slot = dealt_to(n, pairs, shared)
                rows.append(
                    {
                        **origin_of(sae, cell),
                        "latent": latent["latent"],
                        "pair": f"{number}-{n}",
                        "replicate": n,
                        "slot": slot,
                        "page": page,
                    }
                )
    return rows, latents


def sampled(sae: SAE, count: int, rng: random.Random) -> list[dict]:
    """So many latents of an SAE, of those that are ever on: the others show nothing to rate. Raises
    StudyError where it has fewer.
    """
    alive = [latent for latent in sae.latents if latent["max"] > 0]
    if len(alive) < count:
        raise StudyError(
            f"{sae.file or sae.run} has {len(alive)} latents that are ever on, {count} are asked "
            "for: collect more, or ask for fewer pairs or pages"
        )
    return rng.sample(alive, count)


def origin_of(sae: SAE, cell: Cell) -> dict:
    """What a rater must not know of a latent."""
    lm, site, layer = cell
    return {"arm": sae.arm, "run": sae.run, "lm": lm, "site": site, "layer": layer, "l0": sae.l0}


def dealt_to(n: int, pairs: int, shared: int) -> tuple[int, int]:
    """Page and slot on it of the n-th pair of a place; page 0 stands for all pages."""
    if n < shared:
        return 0, n
    page, slot = divmod(n - shared, pairs)
    return page + 1, shared + slot


def blind_names(count: int, rng: random.Random) -> list[str]:
    """Different random names, which tell nothing of an item: not even the order of drawing."""
    twice = [f"{rng.getrandbits(40):010x}" for _ in range(2 * count)]  # should two be the same
    return list(dict.fromkeys(twice))[:count]


def shuffled_pages(items: dict[str, dict], pages: int, rng: random.Random) -> list[dict]:
    """Each page's items in an order of its own."""
    dealt = []
    for page in range(1, pages + 1):
        names = [name for name, row in items.items() if row["page"] in (0, page)]
        rng.shuffle(names)
        dealt.append({"page": page, "items": names})
    return dealt


def study_name(items: dict[str, dict], shown: dict[str, dict], seed: int) -> str:
    """The name by which ratings and key find each other: a hash of all that was drawn."""
    text = json.dumps([items, shown, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
