"""Rating files and the key: read, checked entry by entry, joined. No torch."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from gsae.interpretability.rating_statistics import SCALE

SCHEMA = 1
ITEM = {
    "arm": str,
    "run": str,
    "lm": str,
    "site": str,
    "layer": int,
    "latent": int,
    "pair": str,
    "replicate": int,
    "slot": int,
}
KEY = {"study": str, "arms": list, "reference": str, "pages": list, "items": dict}
FILE = {"study": str, "page": int, "rater": str, "ratings": list}


class RatingError(ValueError):
    """A rating file or key that cannot be used; names the file and the entry."""


def fields(value: object, wanted: dict[str, type], where: str) -> dict:
    """`value`, an object that has every wanted field in its type. Raises RatingError."""
    if not isinstance(value, dict):
        raise RatingError(
            f"{where}: expected an object with {', '.join(wanted)}, got {value!r:.60}"
        )
    for name, kind in wanted.items():
        if name not in value:
            raise RatingError(f"{where}: has no {name!r}")
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise RatingError(
                f"{where}: {name!r} must be a {kind.__name__}, got {value[name]!r:.60}"
            )
    return value


def read(path: Path, wanted: dict[str, type], what: str) -> dict:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RatingError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RatingError(f"{path} is not json: {error}. Export it from the page again") from error
    if isinstance(data, dict) and data.get("schema") != SCHEMA:
        raise RatingError(
            f"{path} has schema {data.get('schema')!r}, this version reads {what} of schema "
            f"{SCHEMA}"
        )
    return fields(data, wanted, f"{path}")


def read_key(path: Path) -> dict:
    """The key of a study: item -> run, arm, site, layer, latent. Raises RatingError, naming file
    and item.
    """
    if "ratings" in (data := read(path, {}, "keys")):
        raise RatingError(
            f"{path} is a rating file, not a key: the key is written by `gsae study make`"
        )
    fields(data, KEY, f"{path}")
    for name, item in data["items"].items():
        fields(item, ITEM, f"{path}, item {name}")
        if item["arm"] not in data["arms"]:
            raise RatingError(
                f"{path}, item {name}: arm {item['arm']!r} is not one of {', '.join(data['arms'])}"
            )
    for i, page in enumerate(data["pages"], 1):
        fields(page, {"page": int, "items": list}, f"{path}, page {i}")
        if unknown := [x for x in page["items"] if x not in data["items"]]:
            raise RatingError(f"{path}, page {i}: item {unknown[0]!r} has no entry under 'items'")
    if data["reference"] not in data["arms"] or len(data["arms"]) < 2:
        raise RatingError(
            f"{path}: the reference {data['reference']!r} must be one of at least two arms"
        )
    return data


def read_ratings(path: Path, key: dict, partial: bool = False) -> list[dict]:
    """The ratings of one exported file, each checked against the key.

    Raises:
        RatingError: not json, of another study, an unknown, repeated or malformed entry; or, unless
            `partial`, items of the page that are not rated. Names the file and the entry.
    """
    data = read(path, FILE, "ratings")
    if data["study"] != key["study"]:
        raise RatingError(
            f"{path} rates study {data['study']!r}, the key is of {key['study']!r}: give its own "
            "key"
        )
    page = next((p["items"] for p in key["pages"] if p["page"] == data["page"]), None)
    if page is None:
        raise RatingError(
            f"{path} rates page {data['page']}, the key has "
            f"{', '.join(str(p['page']) for p in key['pages'])}"
        )
    if not data["rater"].strip():
        raise RatingError(
            f"{path}: 'rater' is empty: write a name or code there, the same in all files of one "
            "person"
        )
    rows, seen = [], {}
    for i, entry in enumerate(data["ratings"], 1):
        where = f"{path}, rating {i}"
        fields(entry, {"item": str, "rating": str}, where)
        item = entry["item"]
        where += f" (item {item})"
        if item not in key["items"]:
            raise RatingError(f"{where}: the key has no such item")
        if item not in page:
            raise RatingError(f"{where}: the item is not on page {data['page']}")
        if item in seen:
            raise RatingError(
                f"{where}: the item is rated before, by rating {seen[item]}: delete one of them"
            )
        if entry["rating"] not in SCALE:
            raise RatingError(
                f"{where}: rating {entry['rating']!r} is not one of {', '.join(SCALE)}"
            )
        if not isinstance(entry.get("explanation", ""), str):
            raise RatingError(
                f"{where}: 'explanation' must be a text, got {entry['explanation']!r:.60}"
            )
        seen[item] = i
        rows.append(
            {
                "rater": data["rater"].strip(),
                "item": item,
                "label": SCALE[entry["rating"]],
                "file": str(path),
                "explanation": entry.get("explanation", ""),
                "seconds": entry.get("seconds"),
            }
        )
    if not rows:
        raise RatingError(f"{path} has no rating")
    missing = [item for item in page if item not in seen]
    if missing and not partial:
        raise RatingError(
            f"{path}: {len(missing)} of {len(page)} items are not rated, the first is "
            f"{missing[0]}: rate them and "
            "export again, or use --partial, which keeps the pairs rated on both sides"
        )
    return rows


def join(paths: Iterable[Path], key: dict, partial: bool = False) -> pd.DataFrame:
    """One row a rating: rater, item, label (0, 1, 2), explanation, seconds, and the item's fields
    in the key.

    Raises:
        RatingError: as `read_ratings`; also where one rater rates an item in two files.
    """
    rows = [row for path in paths for row in read_ratings(path, key, partial)]
    if not rows:
        raise RatingError("no rating file given")
    first = {}
    for row in rows:
        other = first.setdefault((row["rater"], row["item"]), row)
        if other is not row:
            raise RatingError(
                f"rater {row['rater']!r} rates item {row['item']} in {other['file']} and in "
                f"{row['file']}: give one of "
                "the two files, or tell the raters apart by their codes"
            )
    return pd.DataFrame([row | {k: key["items"][row["item"]][k] for k in ITEM} for row in rows])
