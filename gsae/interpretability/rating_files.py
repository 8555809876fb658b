"""Rating files and the key: read, checked entry by entry, joined. No torch."""

import json
from collections.abc import Container, Iterable
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


def read_json(path: Path, wanted: dict[str, type], what: str) -> dict:
    """A json file with the fields that are wanted of it; `what` it is among, for the message on
    another schema. Raises RatingError.
    """
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
    data = read_json(path, {}, "keys")
    if "ratings" in data:
        raise RatingError(
            f"{path} is a rating file, not a key: the key is written by `gsae study make`"
        )
    fields(data, KEY, f"{path}")
    check_items(path, data)
    if data["reference"] not in data["arms"] or len(data["arms"]) < 2:
        raise RatingError(
            f"{path}: the reference {data['reference']!r} must be one of at least two arms"
        )
    return data


def check_items(path: Path, key: dict) -> None:
    """Raises RatingError on an entry of a key that is malformed, of an unknown arm, or missing."""
    for name, item in key["items"].items():
        fields(item, ITEM, f"{path}, item {name}")
        if item["arm"] not in key["arms"]:
            raise RatingError(
                f"{path}, item {name}: arm {item['arm']!r} is not one of {', '.join(key['arms'])}"
            )
    for i, page in enumerate(key["pages"], 1):
        fields(page, {"page": int, "items": list}, f"{path}, page {i}")
        unknown = [name for name in page["items"] if name not in key["items"]]
        if unknown:
            raise RatingError(f"{path}, page {i}: item {unknown[0]!r} has no entry under 'items'")


def read_ratings(path: Path, key: dict, partial: bool = False) -> list[dict]:
    """The ratings of one exported file, each checked against the key.

    Raises:
        RatingError: not json, of another study, an unknown, repeated or malformed entry; or, unless
            `partial`, items of the page that are not rated. Names the file and the entry.
    """
    data = read_json(path, FILE, "ratings")
    page = page_rated(path, data, key)
    rater = data["rater"].strip()
    if not rater:
        raise RatingError(
            f"{path}: 'rater' is empty: write a name or code there, the same in all files of one "
            "person"
        )
    rows: dict[str, dict] = {}
    for number, entry in enumerate(data["ratings"], 1):
        where = f"{path}, rating {number}"
        fields(entry, {"item": str, "rating": str}, where)
        item = entry["item"]
        where += f" (item {item})"
        check_item(where, item, key, page, data["page"])
        if item in rows:
            earlier = list(rows).index(item) + 1
            raise RatingError(
                f"{where}: the item is rated before, by rating {earlier}: delete one of them"
            )
        check_answer(where, entry)
        rows[item] = {
            "rater": rater,
            "item": item,
            "label": SCALE[entry["rating"]],
            "file": str(path),
            "explanation": entry.get("explanation", ""),
            "seconds": entry.get("seconds"),
        }
    if not rows:
        raise RatingError(f"{path} has no rating")
    if not partial:
        check_complete(path, page, rows)
    return list(rows.values())


def page_rated(path: Path, data: dict, key: dict) -> list[str]:
    """The items of the page that a file rates. Raises RatingError where the key has no such study
    or page.
    """
    if data["study"] != key["study"]:
        raise RatingError(
            f"{path} rates study {data['study']!r}, the key is of {key['study']!r}: give its own "
            "key"
        )
    for page in key["pages"]:
        if page["page"] == data["page"]:
            return page["items"]
    numbers = ", ".join(str(page["page"]) for page in key["pages"])
    raise RatingError(f"{path} rates page {data['page']}, the key has {numbers}")


def check_item(where: str, item: str, key: dict, page: list[str], number: int) -> None:
    """Raises RatingError where an item is not of the page, whose number is for the message."""
    if item not in key["items"]:
        raise RatingError(f"{where}: the key has no such item")
    if item not in page:
        raise RatingError(f"{where}: the item is not on page {number}")


def check_answer(where: str, entry: dict) -> None:
    """Raises RatingError on a rating off the scale and on an explanation that is no text."""
    if entry["rating"] not in SCALE:
        raise RatingError(f"{where}: rating {entry['rating']!r} is not one of {', '.join(SCALE)}")
    if not isinstance(entry.get("explanation", ""), str):
        raise RatingError(
            f"{where}: 'explanation' must be a text, got {entry['explanation']!r:.60}"
        )


def check_complete(path: Path, page: list[str], rated: Container[str]) -> None:
    """Raises RatingError where an item of the page is not rated."""
    missing = [item for item in page if item not in rated]
    if missing:
        raise RatingError(
            f"{path}: {len(missing)} of {len(page)} items are not rated, the first is "
            f"{missing[0]}: rate them and export again, or use --partial, which keeps the pairs "
            "rated on both sides"
        )


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
                f"{row['file']}: give one of the two files, or tell the raters apart by their "
                "codes"
            )
    return pd.DataFrame([row | origin(key, row["item"]) for row in rows])


def origin(key: dict, item: str) -> dict:
    """Where an item is from: its fields in the key that every key has."""
    return {name: key["items"][item][name] for name in ITEM}
